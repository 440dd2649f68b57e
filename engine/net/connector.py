"""Make one outgoing connection: from a candidate to a byte stream and its facts.

Delivery calls it for each candidate.  It chooses no candidate, tries none twice and speaks no SMTP.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts
from engine.net.interface import address_family, choose_interface
from engine.net.options import BIND_OPTIONS, options_after_connect, socket_options
from engine.net.port import port_for
from engine.net.stream import SocketStream
from engine.outcome import Cause, Peer, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.net.options import ConnectOptions, SocketOption
    from engine.net.stream import ByteStream
    from engine.route import Candidate

_log = logging.getLogger("engine.net")


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection that is up; whoever holds it closes `stream`."""

    stream: ByteStream
    facts: ConnectionFacts


class ConnectorLike(Protocol):
    """Anything that makes connections; users may supply their own."""

    async def connect(self, candidate: Candidate, options: ConnectOptions) -> Connection:
        """Connect, or raise `ConnectFailed` and leave nothing open."""
        ...


class Connector:
    """Make TCP connections; one serves any number of tasks, for it keeps no state."""

    def __init__(self, socket_factory: Callable[[int, int], socket.socket] = socket.socket) -> None:
        """Take what makes a socket of a family and a type."""
        self._socket_factory = socket_factory

    async def connect(self, candidate: Candidate, options: ConnectOptions) -> Connection:
        """Connect to a candidate.

        Cancelled or failed, it leaves no socket open.

        Raises:
            ConnectFailed: There is no connection; it says why, and who is to blame.
            ValueError: The candidate's address is no IP address, or its port out of range.
        """
        started = trio.current_time()
        family = address_family(candidate.address)
        port = port_for(candidate, options)
        peer = Peer(candidate.host, candidate.address, port)
        interface = _choose_interface(peer, family, options)

        sock = self._open(family, peer)
        try:
            sock.setblocking(False)
            _apply(sock, socket_options(options, family))
            _bind(sock, interface, peer)
            # Fast Open is decided here: it changes how the SYN is sent.
            with _deadline(options.connect_timeout, peer):
                await _establish(sock, peer)
                # A proxy's handshake comes here, under the same deadline.
            _apply(sock, options_after_connect(options))
            local_address, local_port = _local_address(sock, peer)
            connect_seconds = trio.current_time() - started
            # TLS on connect comes here, under a deadline of its own.
            stream = SocketStream(sock)
        except BaseException:
            sock.close()
            raise
        facts = ConnectionFacts(
            host=peer.host,
            address=candidate.address,
            port=port,
            local_address=local_address,
            local_port=local_port,
            is_ipv6=family is socket.AF_INET6,
            interface=interface,
            proxy=None,
            fast_open="off",
            connect_seconds=connect_seconds,
        )
        return Connection(stream, facts)

    def _open(self, family: socket.AddressFamily, peer: Peer) -> socket.socket:
        try:
            return self._socket_factory(family, socket.SOCK_STREAM)
        except OSError as error:
            doing = f"make a socket for {peer}"
            raise ConnectFailed.from_os_error(Stage.CONNECT, doing, error) from error


def _choose_interface(
    peer: Peer, family: socket.AddressFamily, options: ConnectOptions
) -> str | None:
    is_ipv6 = family is socket.AF_INET6
    interface = choose_interface(options.interface, is_ipv6)
    if interface is None and options.interface and options.interface_strict:
        wanted = "IPv6" if is_ipv6 else "IPv4"
        text = (
            f"connect to {peer}: no {wanted} address among interface {', '.join(options.interface)}"
        )
        raise ConnectFailed(Stage.CONNECT, Cause.CONFIG, Scope.SOURCE, text)
    return interface


def _apply(sock: socket.socket, plan: Iterable[SocketOption]) -> None:
    for level, name, value in plan:
        try:
            sock.setsockopt(level, name, value)
        except OSError as error:
            # Mail without an option is better than no mail.
            _log.debug("setsockopt(%d, %d, %d) failed: %s", level, name, value, error)


def _bind(sock: socket.socket, interface: str | None, peer: Peer) -> None:
    if interface is None:
        return
    _apply(sock, BIND_OPTIONS)
    try:
        sock.bind((interface, 0))
    except OSError as error:
        # This number means something else at connect: here the address is simply not ours.
        cause = Cause.CONFIG if error.errno == errno.EADDRNOTAVAIL else None
        raise ConnectFailed.from_os_error(
            Stage.CONNECT,
            f"bind to {interface} for {peer}",
            error,
            scope=Scope.SOURCE,
            cause=cause,
        ) from error


@contextmanager
def _deadline(seconds: float, peer: Peer) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        text = f"connect to {peer}: timed out after {seconds:g} s"
        raise ConnectFailed(Stage.CONNECT, Cause.TIMEOUT, Scope.HOST, text) from None


async def _establish(sock: socket.socket, peer: Peer) -> None:
    # Who is already cancelled, as when the engine drains, sends no SYN any more.
    await trio.lowlevel.checkpoint_if_cancelled()
    number = sock.connect_ex((peer.address, peer.port))
    if number == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        error = OSError(number, os.strerror(number))
        raise ConnectFailed.from_os_error(Stage.CONNECT, f"connect to {peer}", error) from error


def _local_address(sock: socket.socket, peer: Peer) -> tuple[str, int]:
    try:
        address, port, *_ = sock.getsockname()
    except OSError as error:
        doing = f"find our address towards {peer}"
        raise ConnectFailed.from_os_error(Stage.CONNECT, doing, error, cause=Cause.IO) from error
    return address, port
