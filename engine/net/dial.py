"""Open one socket and connect it: options, interface, SYN, the wait for the answer, our address.

The connector calls it, for a candidate or for a proxy before it.  Whatever fails is a
`ConnectFailed`, and failed or cancelled it leaves no socket open.  It tries nothing twice.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from engine.net.errors import ConnectFailed
from engine.net.fastopen import SYN_FLAGS, Step, is_harmful, judge, next_step, syn_payload
from engine.net.interface import address_family
from engine.net.link import Link
from engine.net.options import BIND_OPTIONS, options_after_connect, socket_options
from engine.net.tcp_info import TcpState, read_tcp_info
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.net.fastopen_memory import FastOpenMemory
    from engine.net.options import ConnectOptions, SocketOption
    from engine.net.tcp_info import TcpInfo
    from engine.outcome import FastOpen, Peer

_log = logging.getLogger("engine.net")

#: One system call less than asking for it afterwards, where the system has it.
_NONBLOCK: Final = getattr(socket, "SOCK_NONBLOCK", 0)
#: Seconds before a Unix socket with a full queue is tried again: the first time, and at most.
_PAUSES: Final = (0.01, 0.5)


class Dialed(NamedTuple):
    """A connected socket.

    Attributes:
        socket: It; non-blocking.
        local: Our address and port; `None` for a Unix socket, which has neither.
        sent: Octets of the early data that rode in the SYN.
        link: For questions to the kernel, `None` for a Unix socket.
        round_trip: Seconds the handshake took by the kernel's clock, `None` where it does not say.
    """

    socket: socket.socket
    local: tuple[str, int] | None = None
    sent: int = 0
    link: Link | None = None
    round_trip: float | None = None


class _Syn(NamedTuple):
    """A SYN that is on its way: octets it carries, and Fast Open as far as that is known."""

    sent: int
    fast_open: FastOpen | None


class Dialer:
    """Connects sockets; one serves any number of tasks."""

    def __init__(
        self, socket_factory: Callable[[int, int], socket.socket], memory: FastOpenMemory
    ) -> None:
        """Take what makes a socket of a family and a type, and the memory of Fast Open."""
        self._socket_factory = socket_factory
        self._memory = memory

    async def dial(
        self,
        peer: Peer,
        interface: str | None,
        options: ConnectOptions,
        seconds: float,
        early_data: bytes = b"",
    ) -> Dialed:
        """Connect to an address over TCP.

        Args:
            peer: Its address and port, and its name for a person.
            interface: Our address to connect from.
            options: How.
            seconds: How long it may take.
            early_data: What the caller will send first; the SYN may carry its beginning
                (`Dialed.sent`).

        Raises:
            ConnectFailed: There is no connection.
        """
        assert peer.address is not None
        family = address_family(peer.address)
        sock = self._open(family, peer)
        syn = _Syn(0, "off")
        try:
            _apply(sock, socket_options(options, family))
            _bind(sock, interface, peer)
            with _deadline(seconds, peer):
                # Who is already cancelled, as when the engine drains, sends no SYN any more.
                await trio.lowlevel.checkpoint_if_cancelled()
                syn = self._send_syn(sock, peer, options, early_data)
                info = await _answer(sock, peer)
            _apply(sock, options_after_connect(options))
            local = _local_address(sock, peer)
        except BaseException as error:
            sock.close()
            if isinstance(error, ConnectFailed) and error.cause is Cause.TIMEOUT:
                self._blame(syn, peer, "timed out")
            raise
        if info is not None and is_harmful(info):
            self._blame(syn, peer, "the SYN had to be repeated")
        link = Link(sock, peer, syn.fast_open or judge(info, syn.sent), self._memory)
        return Dialed(sock, local, syn.sent, link, (info.rtt or None) if info else None)

    async def dial_unix(self, path: str, peer: Peer, seconds: float) -> Dialed:
        """Connect to a Unix socket; arguments and errors as for `dial`."""
        sock = self._open(socket.AF_UNIX, peer)
        try:
            with _deadline(seconds, peer):
                await _connect_locally(sock, path, peer)
        except BaseException:
            sock.close()
            raise
        return Dialed(sock)

    def _open(self, family: socket.AddressFamily, peer: Peer) -> socket.socket:
        try:
            sock = self._socket_factory(family, socket.SOCK_STREAM | _NONBLOCK)
        except OSError as error:
            doing = f"make a socket for {peer}"
            raise ConnectFailed.from_os_error(Stage.CONNECT, doing, error) from error
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        return sock

    def _send_syn(
        self, sock: socket.socket, peer: Peer, options: ConnectOptions, early_data: bytes
    ) -> _Syn:
        assert peer.address is not None
        where = peer.address, peer.port
        is_avoided = options.fast_open != "off" and self._memory.avoids(peer.address)
        payload = syn_payload(options.fast_open, early_data, is_avoided=is_avoided)
        if payload is not None:
            assert SYN_FLAGS is not None
            number = sent = 0
            try:
                sent = sock.sendto(payload, SYN_FLAGS, where)
            except OSError as error:
                number = error.errno or 0
            step = next_step(number)
            if step is Step.FAIL:
                raise _failed(peer, number)
            if step is Step.WAIT:
                return _Syn(sent, _first_judgement(sock, payload, number))
        number = sock.connect_ex(where)
        if number not in {0, errno.EINPROGRESS}:
            raise _failed(peer, number)
        return _Syn(0, "off")

    def _blame(self, syn: _Syn, peer: Peer, what: str) -> None:
        if syn.fast_open != "off":
            self._memory.blame(peer, what)


def _first_judgement(sock: socket.socket, payload: bytes, number: int) -> FastOpen | None:
    """Say of Fast Open what can only be known now; `None` where the answer will tell."""
    if payload:
        # The kernel had no cookie; it took nothing.
        return "asked" if number else None
    info = read_tcp_info(sock)
    return judge(info, 0) if info is not None and info.state == TcpState.SYN_SENT else None


async def _answer(sock: socket.socket, peer: Peer) -> TcpInfo | None:
    """Wait until the peer has answered the SYN; return what the kernel knows then."""
    while True:
        await trio.lowlevel.wait_writable(sock)
        info = read_tcp_info(sock)
        if info is not None and info.is_answered:
            return info
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise _failed(peer, number)
        if info is None or info.state != TcpState.SYN_SENT:
            return info  # a kernel that does not tell: no error is all there is to go by


async def _connect_locally(sock: socket.socket, path: str, peer: Peer) -> None:
    await trio.lowlevel.checkpoint_if_cancelled()
    pause, longest = _PAUSES
    # A server's queue that is full says so at once, and nothing tells when it is not.
    while (number := sock.connect_ex(path)) == errno.EAGAIN:
        await trio.sleep(pause)
        pause = min(2 * pause, longest)
    if number:
        raise _failed(peer, number)


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
        text = f"connect to {peer}: timed out after {round(seconds, 3):g} s"
        raise ConnectFailed(Stage.CONNECT, Cause.TIMEOUT, Scope.HOST, text) from None


def _failed(peer: Peer, number: int) -> ConnectFailed:
    error = OSError(number, os.strerror(number))
    failure = ConnectFailed.from_os_error(Stage.CONNECT, f"connect to {peer}", error)
    failure.__cause__ = error
    return failure


def _local_address(sock: socket.socket, peer: Peer) -> tuple[str, int]:
    try:
        address, port, *_ = sock.getsockname()
    except OSError as error:
        # Some systems no longer know the name of a socket that the peer has reset.  Otherwise
        # nobody but this machine is to blame.
        is_reset = error.errno in {errno.ECONNRESET, errno.ENOTCONN}
        _log.log(
            logging.INFO if is_reset else logging.ERROR,
            "getsockname() failed for the connection to %s: %s",
            peer,
            error,
        )
        raise ConnectFailed.from_os_error(
            Stage.CONNECT,
            f"find our address towards {peer}",
            error,
            scope=Scope.HOST if is_reset else Scope.LOCAL,
            cause=Cause.REFUSED if is_reset else Cause.IO,
        ) from error
    return address, port
