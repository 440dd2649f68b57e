"""Numbers of one engine since its start.  Knows no I/O.

The engine owns a `Recorder` and counts; whoever asks gets a frozen `Statistics`.  A site's numbers
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
    """Counts as things happen; every call is O(1)."""

    __slots__ = (
        "_closed",
        "_failed",
        "_messages",
        "_octets",
        "_opened",
        "_settled",
        "_submitted",
        "_transactions",
    )

    def __init__(self) -> None:
        self._messages = self._submitted = 0
        self._settled = dict.fromkeys(Status, 0)
        self._opened = self._closed = self._failed = 0
        self._transactions = self._octets = 0

    def message_submitted(self, recipients: int) -> None:
        """Count a message and its recipients."""
        self._messages += 1
        self._submitted += recipients

    def recipient_settled(self, status: Status) -> None:
        """Count the outcome of one recipient."""
        self._settled[status] += 1

    def connection_opened(self) -> None:
        """Count an established TCP connection."""
        self._opened += 1

    def connection_closed(self) -> None:
        """Count the end of an established TCP connection."""
        self._closed += 1

    def connection_failed(self) -> None:
        """Count a connection that could not be had."""
        self._failed += 1

    def transaction_started(self) -> None:
        """Count a mail transaction."""
        self._transactions += 1

    def content_sent(self, octets: int) -> None:
        """Count octets of content written."""
        self._octets += octets

    def snapshot(
        self, *, events_dropped: int = 0, sites: Iterable[SiteStatistics] = ()
    ) -> Statistics:
        """Return the numbers of this moment.

        Args:
            events_dropped: What the event stream lost.
            sites: The pools' numbers, in any order.
        """
        settled = self._settled
        return Statistics(
            messages=self._messages,
            submitted=self._submitted,
            # Derived and not counted, so that it cannot disagree with the rest.
            in_flight=self._submitted - sum(settled.values()),
            delivered=settled[Status.DELIVERED],
            deferred=settled[Status.DEFERRED],
            failed=settled[Status.FAILED],
            unknown=settled[Status.UNKNOWN],
            connections_opened=self._opened,
            connections_open=self._opened - self._closed,
            connections_failed=self._failed,
            transactions=self._transactions,
            octets=self._octets,
            events_dropped=events_dropped,
            sites=tuple(sorted(sites, key=lambda each: each.site)),
        )
