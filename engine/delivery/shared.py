"""What all pools of one engine share; made by the engine, owned by it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final

from engine.delivery.session import Timeouts
from engine.net.options import ConnectOptions
from engine.setting_types import DSCP_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from engine.choices import AddressFamily
    from engine.hints import Hints
    from engine.net.connector import ConnectorLike
    from engine.outcome import Outcome, Peer
    from engine.paths import SettingsTable
    from engine.report.statistics import Recorder
    from engine.report.stream import EventStream
    from engine.report.transcript import Transcript
    from engine.route import Candidate, Route
    from engine.settings import Settings

#: The ports that the protocols are known by (RFC 5321 §4.5.4.2, RFC 2033 §5, RFC 8314 §7.3).
_PORTS: Final = {"smtp": 25, "lmtp": 24, "smtps": 465}


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
        veto: Callable[[Peer, str], str | None] | None = None,
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
        self.veto = veto
        self._connections = count(1)

    def number_connection(self) -> int:
        """Return the number of a connection that was just established, from 1."""
        return next(self._connections)


@dataclass(frozen=True, slots=True)
class Path:
    """The settings that hold towards one candidate, ready for use.

    Attributes:
        settings: All of them.
        options: How to connect.
        timeouts: How long to wait.
    """

    settings: Settings
    options: ConnectOptions
    timeouts: Timeouts

    @classmethod
    def of(cls, settings: Settings) -> Path:
        """Read what the connector and a session need from the settings."""
        return cls(
            settings,
            ConnectOptions(
                port=settings.port if settings.port is not None else _PORTS[settings.protocol],
                interface=settings.interface,
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
        )


def _traffic_octet(dscp: int | str | None) -> int | None:
    """Return the octet of the IP header: a code point is its six high bits (RFC 2474 §3)."""
    if isinstance(dscp, str):
        return DSCP_NAMES[dscp]
    return None if dscp is None else dscp << 2
