"""What all pools of one engine share; made by the engine, owned by it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from engine.delivery.session_terms import Timeouts
from engine.net.options import ConnectOptions
from engine.net.tls_material import TlsMaterial
from engine.setting_types import DSCP_NAMES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from random import Random

    from engine.choices import AddressFamily
    from engine.delivery.lane import PoliciesLike
    from engine.hints import Hints
    from engine.net.connector import ConnectorLike
    from engine.net.tls import TlsClient
    from engine.outcome import Outcome, Peer
    from engine.paths import SettingsTable
    from engine.report.statistics import Recorder
    from engine.report.stream import EventStream
    from engine.report.tlsrpt import TlsCounters
    from engine.report.transcript import Transcript
    from engine.route import Candidate, Route
    from engine.settings import Settings

#: The ports that the protocols are known by (RFC 5321 §4.5.4.2, RFC 2033 §5, RFC 8314 §7.3).
_PORTS: Final = {"smtp": 25, "lmtp": 24, "smtps": 465}


#: Writes down which contents are about to go out to their end: message ids and addresses.
Journal: TypeAlias = "Callable[[Sequence[tuple[str, Sequence[str]]]], Awaitable[None]]"


class Shared:
    """The engine's parts as the pools see them.

    Attributes:
        connector: Makes connections.
        table: The settings of every path.
        plan: Orders a route's candidates for one attempt, by address family policy.
        events: Where events are published.
        recorder: Counts.
        settle: Takes the outcome of each recipient; never waits.
        clock: Wall clock for events, seconds since the epoch.
        rng: Shuffles equals.
        grace: Seconds a cancelled engine still waits for the reply to a content that has left.
        veto: Asked before each connection, with the peer and its site; what it returns is why the
            peer is not to be connected to, `None` where it may be.
        hints: What was learned of hosts.
        policies: Say what TLS hosts must show.
        tls: Makes TLS connections.
        tls_counters: Count how TLS went, for the reports of that; `None`: nobody reports.
        veto_greeting: Asked when a host has greeted, with both ends and the greeting; answers as
            `veto` does.
        journal: Told which contents are about to go out to their end, and for whom: pairs of a
            message's id and addresses.  They go when it returns, and not if it raises; `None`:
            nobody wants to know.
        learn_route: Told the site of each domain that was routed; `None`: nobody wants to know.
        turns: For hosts that get one connection at a time.
        make_transcript: Makes the scribe of a session; `None` where no transcript is wanted.
    """

    def __init__(
        self,
        *,
        connector: ConnectorLike,
        table: SettingsTable,
        plan: Callable[[Route, AddressFamily, Random], tuple[Candidate, ...]],
        events: EventStream,
        recorder: Recorder,
        settle: Callable[[Outcome], None],
        clock: Callable[[], float],
        rng: Random,
        grace: float,
        make_transcript: Callable[[], Transcript] | None,
        hints: Hints,
        policies: PoliciesLike,
        tls: TlsClient,
        tls_counters: TlsCounters | None = None,
        veto: Callable[[Peer, str], str | None] | None = None,
        veto_greeting: Callable[[Peer, str], str | None] | None = None,
        journal: Journal | None = None,
        learn_route: Callable[[str, str], None] | None = None,
    ) -> None:
        self.connector = connector
        self.table = table
        self.plan = plan
        self.events = events
        self.recorder = recorder
        self.settle = settle
        self.clock = clock
        self.rng = rng
        self.grace = grace
        self.make_transcript = make_transcript
        self.hints = hints
        self.policies = policies
        self.tls = tls
        self.tls_counters = tls_counters
        self.veto = veto
        self.veto_greeting = veto_greeting
        self.journal = journal
        self.learn_route = learn_route
        self.turns = Turns()
        self._connections = count(1)

    def number_connection(self) -> int:
        """Return the number of a connection that was just established, from 1."""
        return next(self._connections)


class Turns:
    """One at a time for each name, first come, first served."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[trio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Hold the turn of a name for the length of the block."""
        lock, users = self._locks.get(name, (None, 0))
        lock = lock or trio.Lock()
        self._locks[name] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = lock, users - 1


@dataclass(frozen=True, slots=True)
class Path:
    """The settings that hold towards one candidate, ready for use.

    Attributes:
        settings: All of them.
        options: How to connect.
        timeouts: How long to wait.
        material: What our side of TLS is made of.
    """

    settings: Settings
    options: ConnectOptions
    timeouts: Timeouts
    material: TlsMaterial

    @classmethod
    def of(cls, settings: Settings) -> Path:
        """Read what the connector and a session need from the settings."""
        return cls(
            settings,
            ConnectOptions(
                port=settings.port if settings.port is not None else _PORTS[settings.protocol],
                # A function chooses for each message; see `engine.delivery.approach`.
                interface=() if callable(settings.interface) else settings.interface,
                interface_strict=settings.interface_strict,
                connect_timeout=settings.connect_timeout,
                dscp=_traffic_octet(settings.dscp),
                keepalive=settings.keepalive,
                fast_open=settings.fast_open,
                proxies=settings.proxy,
                keepalive_idle=settings.keepalive_idle,
                keepalive_interval=settings.keepalive_interval,
                keepalive_count=settings.keepalive_count,
                user_timeout=settings.user_timeout,
            ),
            Timeouts(
                greeting=settings.greeting_timeout,
                command=settings.command_timeout,
                data=settings.data_timeout,
                final=settings.final_timeout,
                quit=settings.quit_timeout,
            ),
            TlsMaterial.from_settings(settings),
        )


def _traffic_octet(dscp: int | str | None) -> int | None:
    """Return the octet of the IP header: a code point is its six high bits (RFC 2474 §3)."""
    if isinstance(dscp, str):
        return DSCP_NAMES[dscp]
    return None if dscp is None else dscp << 2
