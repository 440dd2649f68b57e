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
from typing import TYPE_CHECKING, Final, Protocol

import trio

from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts
from engine.net.haproxy import Haproxy
from engine.net.interface import address_family, choose_interface
from engine.net.options import BIND_OPTIONS, options_after_connect, socket_options
from engine.net.port import port_for
from engine.net.proxy import handshake
from engine.net.socks5 import Socks5
from engine.net.stream import SocketStream
from engine.outcome import Cause, Peer, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.net.options import ConnectOptions, SocketOption
    from engine.net.proxy import Dialogue
    from engine.net.stream import ByteStream
    from engine.route import Candidate
    from engine.setting_types import Proxy

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
        """Connect to a candidate, through the first proxy that takes us where there are any.

        Cancelled or failed, it leaves no socket open.

        Raises:
            ConnectFailed: There is no connection; it says why, and who is to blame.
            ValueError: The candidate's address is no IP address, or its port out of range.
        """
        started = trio.current_time()
        peer = Peer(candidate.host, candidate.address, port_for(candidate, options))
        address_family(candidate.address)
        if options.proxies:
            way = await self._pass_a_proxy(peer, options)
        else:
            way = await self._go_straight(peer, options)
        facts = ConnectionFacts(
            host=candidate.host,
            address=candidate.address,
            port=port_for(candidate, options),
            local_address=way.local[0],
            local_port=way.local[1],
            is_ipv6=candidate.is_ipv6,
            interface=way.interface,
            proxy=way.proxy,
            fast_open="off",
            connect_seconds=trio.current_time() - started,
        )
        return Connection(way.stream, facts)

    async def _go_straight(self, peer: Peer, options: ConnectOptions) -> _Way:
        interface = _choose_interface(peer, options)
        with _deadline(options.connect_timeout, peer):
            sock, local = await self._dial(peer, interface, options)
        # TLS on connect comes here, under a deadline of its own.
        return _Way(SocketStream(sock), local, interface)

    async def _pass_a_proxy(self, peer: Peer, options: ConnectOptions) -> _Way:
        """Go through the first proxy that can be connected to.

        One that is connected to decides: what it refuses, the next one would too.
        """
        failures = []
        deadline = trio.current_time() + options.connect_timeout
        for proxy in options.proxies:
            try:
                return await self._go_through(proxy, peer, options, deadline)
            except ConnectFailed as failure:
                if failure.stage is Stage.PROXY:
                    raise
                failures.append(failure)
        text = f"connect to {peer}: no proxy: {'; '.join(each.text for each in failures)}"
        last = failures[-1]
        raise ConnectFailed(Stage.PROXY, last.cause, Scope.SOURCE, text, last.errno)

    async def _go_through(
        self, proxy: Proxy, peer: Peer, options: ConnectOptions, deadline: float
    ) -> _Way:
        name = f"{proxy.scheme}://{_bracketed(proxy.host)}:{proxy.port}"
        gate = Peer(name, proxy.host, proxy.port)
        seconds = max(deadline - trio.current_time(), 0.0)
        with _deadline(seconds, gate):
            gate = await _find(gate)
            # A relay binds the address that the header names; ours towards it is no matter.
            is_relay = proxy.scheme == "haproxy"
            interface = _choose_interface(peer if is_relay else gate, options)
            sock, local = await self._dial(gate, None if is_relay else interface, options)
        stream = SocketStream(sock)
        try:
            seconds = max(deadline - trio.current_time(), 0.0)
            dialogue = _dialogue(proxy, peer, interface)
            doing = f"connect to {peer} through {name}"
            tunnel = await handshake(stream, dialogue, seconds, doing=doing)
        except BaseException:
            stream.close()
            raise
        if is_relay and interface is not None:
            local = (interface, 0)
        elif tunnel.bound is not None and tunnel.bound[0] not in _UNSPECIFIED:
            local = tunnel.bound
        return _Way(SocketStream(sock, tunnel.leftover), local, interface, name)

    async def _dial(
        self, peer: Peer, interface: str | None, options: ConnectOptions
    ) -> tuple[socket.socket, tuple[str, int]]:
        """Return a socket connected to an address, and our end of it."""
        assert peer.address is not None
        family = address_family(peer.address)
        sock = self._open(family, peer)
        try:
            sock.setblocking(False)
            _apply(sock, socket_options(options, family))
            _bind(sock, interface, peer)
            # Fast Open is decided here: it changes how the SYN is sent.
            await _establish(sock, peer)
            _apply(sock, options_after_connect(options))
            return sock, _local_address(sock, peer)
        except BaseException:
            sock.close()
            raise

    def _open(self, family: socket.AddressFamily, peer: Peer) -> socket.socket:
        try:
            return self._socket_factory(family, socket.SOCK_STREAM)
        except OSError as error:
            doing = f"make a socket for {peer}"
            raise ConnectFailed.from_os_error(Stage.CONNECT, doing, error) from error


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to a peer that is open.

    Attributes:
        stream: To the peer.
        local: Our address and port as the peer sees them, or as near as we know.
        interface: The address we were told to connect from.
        proxy: What it goes through, without credentials.
    """

    stream: SocketStream
    local: tuple[str, int]
    interface: str | None
    proxy: str | None = None


#: What a proxy says that will not tell where it connects from (RFC 1928 §6).
_UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, never bound


def _dialogue(proxy: Proxy, peer: Peer, interface: str | None) -> Dialogue:
    assert peer.address is not None
    assert peer.port is not None
    if proxy.scheme == "haproxy":
        # A header without source has no room for the target, and that is what this is about.
        anywhere = "::" if ":" in peer.address else "0.0.0.0"  # noqa: S104 - told, never bound
        return Haproxy((interface or anywhere, 0), (peer.address, peer.port))
    return Socks5(peer.address, peer.port, proxy.username, proxy.password)


async def _find(gate: Peer) -> Peer:
    """Look a proxy's name up as the system does: it is a neighbour, and need not be in the DNS."""
    try:
        found = await trio.socket.getaddrinfo(gate.address, gate.port, type=socket.SOCK_STREAM)
    except OSError as error:
        text = f"look up {gate.host}: {error.strerror}"
        raise ConnectFailed(Stage.CONNECT, Cause.DNS, Scope.SOURCE, text) from error
    return Peer(gate.host, str(found[0][4][0]), gate.port)


def _choose_interface(peer: Peer, options: ConnectOptions) -> str | None:
    assert peer.address is not None
    is_ipv6 = address_family(peer.address) is socket.AF_INET6
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


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
