"""Numbers of one engine since its start.  Knows no I/O.

The engine owns a `Recorder` and its rooms count; whoever asks gets a frozen `Statistics`.  A site's numbers
come from its pool, which alone knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.outcome import Status

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class SiteStatistics:
    """One site now, and what became of its recipients since its pool was made.

    Attributes:
        site: The receiver.
        waiting: Delivery attempts (a message to its recipients here) that wait for a connection.
        connections: Open connections.
        idle: Those of them that carry nothing.
        delivered: Recipients the site took.
        deferred: Recipients worth trying again.
        failed: Recipients refused for good.
        unknown: Recipients that may or may not have been accepted.
    """

    site: str
    waiting: int = 0
    connections: int = 0
    idle: int = 0
    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot; its `repr` is one line and stable.

    Attributes:
        messages: Messages submitted.
        submitted: Their recipients.
        in_flight: Recipients that have no outcome yet.
        delivered: Recipients some peer took.
        deferred: Recipients worth trying again.
        failed: Recipients refused for good.
        unknown: Recipients that may or may not have been accepted.
        connections_opened: TCP connections established.
        connections_open: Those of them that still are.
        connections_failed: Connections asked for that could not be had.
        transactions: Mail transactions begun.
        octets: Octets of content sent, a message as often as it was sent.
        events_dropped: Events lost on slow subscribers.
        sites: One entry a site that has a pool now, in order of its name.
    """

    messages: int = 0
    submitted: int = 0
    in_flight: int = 0
    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    unknown: int = 0
    connections_opened: int = 0
    connections_open: int = 0
    connections_failed: int = 0
    transactions: int = 0
    octets: int = 0
    events_dropped: int = 0
    sites: tuple[SiteStatistics, ...] = ()


class Recorder:
    """Counts since the start; whoever sees a thing happen adds to its number.

    Attributes:
        messages: Messages submitted.
        recipients: Their recipients.
        settled: Outcomes, by their status.
        connections_opened: TCP connections established.
        connections_closed: Those of them that are gone.
        connections_failed: Connections that could not be had.
        transactions: Mail transactions begun.
        octets: Octets of content written.
    """

    __slots__ = (
        "connections_closed",
        "connections_failed",
        "connections_opened",
        "messages",
        "octets",
        "recipients",
        "settled",
        "transactions",
    )

    def __init__(self) -> None:
        self.messages = self.recipients = 0
        self.settled = dict.fromkeys(Status, 0)
        self.connections_opened = self.connections_closed = self.connections_failed = 0
        self.transactions = self.octets = 0

    def snapshot(
        self, *, events_dropped: int = 0, sites: Iterable[SiteStatistics] = ()
    ) -> Statistics:
        """Return the numbers of this moment.

        Args:
            events_dropped: What the event stream lost.
            sites: The pools' numbers, in any order.
        """
        settled = self.settled
        return Statistics(
            messages=self.messages,
            submitted=self.recipients,
            # Derived and not counted, so that it cannot disagree with the rest.
            in_flight=self.recipients - sum(settled.values()),
            delivered=settled[Status.DELIVERED],
            deferred=settled[Status.DEFERRED],
            failed=settled[Status.FAILED],
            unknown=settled[Status.UNKNOWN],
            connections_opened=self.connections_opened,
            connections_open=self.connections_opened - self.connections_closed,
            connections_failed=self.connections_failed,
            transactions=self.transactions,
            octets=self.octets,
            events_dropped=events_dropped,
            sites=tuple(sorted(sites, key=lambda each: each.site)),
        )
