"""Make one outgoing connection: from a candidate to a byte stream and its facts.

Delivery calls it for each candidate.  It chooses no candidate, tries none twice and speaks no SMTP
of its own.  How a single socket gets connected is `engine.net.dial`'s; ways through proxies are
`engine.net.detour`'s.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

import trio

from engine.net.detour import Detour, Way
from engine.net.dial import Dialer
from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts, LinkFacts
from engine.net.fastopen_memory import FastOpenMemory
from engine.net.interface import interface_for
from engine.net.port import port_for
from engine.net.proxy_choice import ProxyMemory
from engine.net.stream import SocketStream
from engine.outcome import Cause, Peer, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.hints import Hints
    from engine.net.link import Link
    from engine.net.options import ConnectOptions
    from engine.net.stream import ByteStream
    from engine.route import Candidate


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection that is up: the peer's system, or the proxy's, has answered.

    Whoever holds it closes `stream`.  Who puts another stream in its place, such as TLS, keeps the
    rest (`dataclasses.replace`).

    Attributes:
        stream: The octets.
        facts: What is known about it.
        link: The TCP connection beneath; `None` where there is none.
    """

    stream: ByteStream
    facts: ConnectionFacts
    link: Link | None = None

    def observe(self) -> LinkFacts:
        """Return how the TCP connection fares now; worth asking once a reply was heard."""
        if self.link is None:
            return LinkFacts(self.facts.fast_open, self.facts.round_trip_seconds)
        return self.link.observe()

    def note_silence(self) -> None:
        """Take notice that the first read timed out or failed: nothing was ever heard.

        It may be the doing of TCP Fast Open; then the next connection to this address goes without.
        """
        if self.link is not None:
            self.link.note_silence()


class ConnectorLike(Protocol):
    """Anything that makes connections; users may supply their own."""

    async def connect(
        self, candidate: Candidate, options: ConnectOptions, *, early_data: bytes = b""
    ) -> Connection:
        """Connect, or raise `ConnectFailed` and leave nothing open.

        Args:
            candidate: To whom.
            options: How.
            early_data: What is said first, whatever the peer says: all of it is sent.  Given only
                where early pipelining or TLS from the first octet is in use.
        """
        ...


class Connector:
    """Make connections over TCP, through proxies, or to Unix sockets.

    One serves any number of tasks: what it learns of addresses and proxies stands in the hints.
    """

    def __init__(
        self,
        socket_factory: Callable[[int, int], socket.socket] = socket.socket,
        *,
        hints: Hints | None = None,
        rng: Random | None = None,
    ) -> None:
        """Make one.

        Args:
            socket_factory: Makes a socket of a family and a type.
            hints: Keeps where TCP Fast Open had trouble and which proxies were out of reach;
                `None`: nothing of that is remembered.
            rng: Chooses among proxies of one priority.
        """
        rng = rng or Random()  # noqa: S311 - spreads load, guards nothing
        self._dialer = Dialer(socket_factory, FastOpenMemory(hints))
        self._detour = Detour(self._dialer, ProxyMemory(hints), rng)

    async def connect(
        self, candidate: Candidate, options: ConnectOptions, *, early_data: bytes = b""
    ) -> Connection:
        """Connect to a candidate, through a proxy where there are any; to a Unix socket without.

        It returns when the peer's system has answered, also where early data rode in the SYN.
        Cancelled or failed, it leaves no socket open; the peer may have got early data all the
        same.

        Args:
            candidate: To whom.
            options: How.
            early_data: What is said first.  With `fast_open = commands` it rides in the SYN, as
                far as it fits; it may arrive twice then (RFC 7413 §2.1), so it must do no harm:
                commands or a ClientHello, never content.  What did not ride, or cannot, is sent
                as soon as the connection stands, behind a proxy's handshake.  A peer that hangs
                up on it is no failure here: what it said before can still be read.

        Raises:
            ConnectFailed: There is no connection; it says why, and who is to blame.
            ValueError: The candidate's address is no IP address, or its port out of range.
        """
        started = trio.current_time()
        deadline = started + options.connect_timeout
        peer = Peer(candidate.host, candidate.address, port_for(candidate, options))
        if candidate.unix_path is not None:
            way = await self._go_local(candidate.unix_path, peer, options)
        elif options.proxies:
            way = await self._detour.find(peer, options, deadline)
        else:
            way = await self._go_straight(peer, options, early_data)
        dialed = way.dialed
        rest = early_data if way.through is not None else early_data[dialed.sent :]
        if rest:
            await _send_first(way.stream, rest, deadline, peer)
        local_address, local_port = way.local or (None, None)
        facts = ConnectionFacts(
            host=peer.host,
            address=peer.address,
            port=peer.port,
            local_address=local_address,
            local_port=local_port,
            is_ipv6=candidate.is_ipv6,
            interface=way.interface,
            proxy=way.through.name if way.through is not None else None,
            fast_open=dialed.link.fast_open if dialed.link is not None else "off",
            connect_seconds=trio.current_time() - started,
            round_trip_seconds=dialed.round_trip,
            through=way.through,
        )
        return Connection(way.stream, facts, dialed.link)

    async def _go_local(self, path: str, peer: Peer, options: ConnectOptions) -> Way:
        dialed = await self._dialer.dial_unix(path, peer, options.connect_timeout)
        return Way(SocketStream(dialed.socket), dialed)

    async def _go_straight(self, peer: Peer, options: ConnectOptions, early_data: bytes) -> Way:
        interface = interface_for(peer, options)
        seconds = options.connect_timeout
        dialed = await self._dialer.dial(peer, interface, options, seconds, early_data)
        return Way(SocketStream(dialed.socket), dialed, dialed.local, interface)


async def _send_first(stream: SocketStream, data: bytes, deadline: float, peer: Peer) -> None:
    """Send what is said first; a peer that hung up may have said why, so that is no failure."""
    try:
        sent = stream.send_nowait(data)
        if sent < len(data):
            with trio.fail_at(deadline):
                await stream.send_all(data[sent:])
    except trio.BrokenResourceError:
        return
    except trio.TooSlowError:
        stream.close()
        text = f"connect to {peer}: timed out while the first octets were sent"
        raise ConnectFailed(Stage.CONNECT, Cause.TIMEOUT, Scope.HOST, text) from None
    except BaseException:
        stream.close()
        raise
