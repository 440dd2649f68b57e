"""Reach a peer through a proxy: choose one, connect to it, and get through.

The connector calls it where there are proxies.  Which one is tried first is decided by
`engine.net.proxy_choice`, and `engine.net.proxy` runs the handshake.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from engine.net.errors import ConnectFailed
from engine.net.facts import ProxyFacts
from engine.net.haproxy import Haproxy
from engine.net.interface import address_family, interface_for
from engine.net.proxy import handshake
from engine.net.proxy_choice import in_order
from engine.net.socks5 import Socks5
from engine.net.stream import SocketStream
from engine.outcome import Cause, Peer, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from random import Random

    from engine.net.dial import Dialed, Dialer
    from engine.net.options import ConnectOptions
    from engine.net.proxy import Dialogue
    from engine.net.proxy_choice import ProxyMemory
    from engine.setting_proxy import Proxy


class Way(NamedTuple):
    """A way to a peer that is open.

    Attributes:
        stream: To the peer.
        dialed: The socket beneath.
        local: Our address and port as the peer sees them, or as near as we know.
        interface: The address we were told to connect from.
        through: The proxy it goes through.
    """

    stream: SocketStream
    dialed: Dialed
    local: tuple[str, int] | None = None
    interface: str | None = None
    through: ProxyFacts | None = None


class Detour:
    """Ways through proxies; one serves any number of tasks."""

    def __init__(self, dialer: Dialer, memory: ProxyMemory, rng: Random) -> None:
        self._dialer = dialer
        self._memory = memory
        self._rng = rng

    async def find(self, peer: Peer, options: ConnectOptions, deadline: float) -> Way:
        """Go through the first proxy that can be connected to.

        One that is connected to decides: what it refuses, the next one would too.  Cancelled or
        failed, it leaves no socket open.

        Args:
            peer: Whom to reach, by IP address and port.
            options: How; there is one proxy at least.
            deadline: Until when, by Trio's clock.

        Raises:
            ConnectFailed: There is no way; scope `source`, unless this machine is exhausted.
            ValueError: The peer's address is no IP address.
        """
        failures: list[ConnectFailed] = []
        for proxy in in_order(options.proxies, self._rng, self._memory.is_resting):
            seconds = min(proxy.timeout, deadline - trio.current_time())
            if failures and seconds <= 0:
                break
            try:
                return await self._go_through(proxy, peer, options, max(seconds, 0.0), deadline)
            except ConnectFailed as failure:
                if failure.stage is Stage.PROXY or failure.scope is Scope.LOCAL:
                    raise
                if failure.scope is Scope.HOST:
                    self._memory.rest(proxy)
                failures.append(failure)
        text = f"connect to {peer}: no proxy: {'; '.join(each.text for each in failures)}"
        last = failures[-1]
        raise ConnectFailed(Stage.PROXY, last.cause, Scope.SOURCE, text, last.errno)

    async def _go_through(
        self, proxy: Proxy, peer: Peer, options: ConnectOptions, seconds: float, deadline: float
    ) -> Way:
        is_relay = proxy.scheme == "haproxy"
        # A relay binds the address that the header names; ours towards it is no matter.
        interface = interface_for(peer, options) if is_relay else None
        dialogue = _dialogue(proxy, peer, interface)
        gate = await self._reach(proxy, options, seconds, dialogue.begin())
        dialed = gate.dialed
        stream = SocketStream(dialed.socket)
        try:
            seconds = max(deadline - trio.current_time(), 0.0)
            doing = f"connect to {peer} through {proxy.name}"
            tunnel = await handshake(stream, dialogue, seconds, doing=doing, sent=dialed.sent)
        except BaseException as error:
            if isinstance(error, ConnectFailed):
                assert dialed.link is not None
                dialed.link.note_silence()
            stream.close()
            raise
        assert dialed.local is not None
        external = (interface, None) if is_relay else _told(tunnel.bound)
        through = ProxyFacts(proxy.name, gate.address, proxy.port, *dialed.local, *external)
        local = dialed.local
        if external[0] is not None and _is_address(external[0]):
            local = external[0], external[1] or 0
        stream = SocketStream(dialed.socket, tunnel.leftover)
        return Way(stream, dialed, local, interface if is_relay else gate.interface, through)

    async def _reach(
        self, proxy: Proxy, options: ConnectOptions, seconds: float, first: bytes
    ) -> _Gate:
        """Connect to a proxy at the first of its addresses that answers."""
        deadline = trio.current_time() + seconds
        failure: ConnectFailed | None = None
        for address in await _find(proxy, seconds):
            left = deadline - trio.current_time()
            if failure is not None and left <= 0:
                break
            gate = Peer(proxy.name, address, proxy.port)
            try:
                interface = None if proxy.scheme == "haproxy" else interface_for(gate, options)
                dialed = await self._dialer.dial(gate, interface, options, max(left, 0.0), first)
            except ConnectFailed as error:
                failure = error
            else:
                return _Gate(address, interface, dialed)
        assert failure is not None
        raise failure


class _Gate(NamedTuple):
    """A proxy that is connected to, at one of its addresses and from one of ours."""

    address: str
    interface: str | None
    dialed: Dialed


#: What a proxy says that will not tell where it connects from (RFC 1928 §6).
_UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, never bound


def _told(bound: tuple[str, int] | None) -> tuple[str, int] | tuple[None, None]:
    """Return what a proxy says of where it connects from, if it says anything."""
    return (None, None) if bound is None or bound[0] in _UNSPECIFIED else bound


def _is_address(text: str) -> bool:
    try:
        address_family(text)
    except ValueError:
        return False
    return True


def _dialogue(proxy: Proxy, peer: Peer, interface: str | None) -> Dialogue:
    assert peer.address is not None
    assert peer.port is not None
    if proxy.scheme == "haproxy":
        # A header without source has no room for the target, and that is what this is about.
        anywhere = "::" if ":" in peer.address else "0.0.0.0"  # noqa: S104 - told, never bound
        return Haproxy((interface or anywhere, 0), (peer.address, peer.port))
    return Socks5(peer.address, peer.port, proxy.username, proxy.password)


async def _find(proxy: Proxy, seconds: float) -> tuple[str, ...]:
    """Look a proxy's name up as the system does: it is a neighbour, and need not be in the DNS."""
    try:
        with trio.fail_after(seconds):
            found = await trio.socket.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except OSError as error:
        text = f"look up {proxy.name}: {error.strerror}"
        raise ConnectFailed(Stage.CONNECT, Cause.DNS, Scope.SOURCE, text) from error
    except trio.TooSlowError:
        text = f"look up {proxy.name}: timed out after {round(seconds, 3):g} s"
        raise ConnectFailed(Stage.CONNECT, Cause.DNS, Scope.SOURCE, text) from None
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))
