"""Race for a connection: several candidates at once, a short while apart (RFC 8305 §5).

Delivery calls it for the candidates of one MX preference.  It knows neither sockets nor limits:
how to connect, and how many attempts at once a site can bear, is the caller's to say.  Never give
it a `connect` that sends early data: whoever loses must have heard no SMTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final, Protocol

import trio

from engine.net.errors import ConnectFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from engine.net.connector import Connection
    from engine.route import Candidate

#: Seconds between two attempts.  RFC 8305 §5 recommends 250 ms, and no less than 100 ms.
STAGGER: Final = 0.25


class Seats(Protocol):
    """How many attempts may run at the same time, beyond the one that every race has."""

    def take(self) -> bool:
        """Take a seat for one more attempt; false when there is none now."""
        ...

    def give_back(self) -> None:
        """Give a seat back."""
        ...


@dataclass(frozen=True, slots=True)
class Failed:
    """A candidate that could not be connected to."""

    candidate: Candidate
    failure: ConnectFailed


@dataclass(slots=True)
class Race:
    """How a race ended.

    Attributes:
        winner: Who was connected to first; `None` when nobody was.
        connection: The connection to it; whoever has the race closes it.
        failures: Who failed before the end, in the order in which that was known.  Who was still
            being connected to, or not yet begun with, is not among them.
    """

    winner: Candidate | None = None
    connection: Connection | None = None
    failures: list[Failed] = field(default_factory=list)


async def race(
    candidates: Iterable[Candidate],
    connect: Callable[[Candidate], Awaitable[Connection]],
    *,
    seats: Seats | None = None,
    stagger: float = STAGGER,
) -> Race:
    """Connect to whichever candidate answers first.

    The first is begun with at once.  The next one follows when `stagger` has passed without a
    result, or at once when an attempt has failed.  What still runs when one has won is cancelled,
    and a connection that stood at the same moment is closed without a word.

    Cancelled, or ended by an exception of `connect` that is no `ConnectFailed` (it comes out in
    Trio's group), it leaves no connection open and no seat taken.

    Args:
        candidates: In the order to try them; `interleave` makes a good one.
        connect: Connects to one candidate; cancelled or failed, it leaves nothing open.
        seats: Asked before an attempt that would run beside another; while there is none, the
            race waits, and asks again after each `stagger`.  `None`: there are always some.
        stagger: Seconds, above 0.

    Returns:
        The winner and who failed.
    """
    runner = _Runner(connect, seats)
    try:
        await runner.run(candidates, stagger)
    except BaseException:
        if runner.race.connection is not None:
            runner.race.connection.stream.close()
        raise
    return runner.race


def interleave(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return candidates with their families by turns, that of the first one first (RFC 8305 §4).

    A family that is broken then holds a race up by one stagger, however many addresses it has.
    """
    kept = tuple(candidates)
    first = [each for each in kept if each.is_ipv6 is kept[0].is_ipv6]
    other = [each for each in kept if each.is_ipv6 is not kept[0].is_ipv6]
    pairs = zip_longest(first, other)
    return tuple(each for each in chain.from_iterable(pairs) if each is not None)


class _Runner:
    """One race while it runs.

    Attributes:
        race: How it stands.
    """

    def __init__(
        self, connect: Callable[[Candidate], Awaitable[Connection]], seats: Seats | None
    ) -> None:
        self.race = Race()
        self._connect = connect
        self._seats = seats
        self._running = 0
        self._successors = 0  # that may start at once, for an attempt has failed
        self._ended = trio.Event()

    async def run(self, candidates: Iterable[Candidate], stagger: float) -> None:
        async with trio.open_nursery() as nursery:
            for candidate in candidates:
                if not await self._is_next_due(stagger):
                    break
                self._running += 1
                nursery.start_soon(self._attempt, candidate)
            while self._running and self.race.winner is None:
                await self._end_of_one()
            nursery.cancel_scope.cancel()

    async def _is_next_due(self, stagger: float) -> bool:
        """Wait until the next attempt may start; false when somebody has won."""
        is_due = False
        while self.race.winner is None:
            if not self._running or ((is_due or self._successors) and self._take_seat()):
                self._successors = max(self._successors - 1, 0)
                return True
            with trio.move_on_after(stagger) as scope:
                await self._end_of_one()
            is_due = scope.cancelled_caught
        return False

    async def _end_of_one(self) -> None:
        self._ended = trio.Event()
        await self._ended.wait()

    def _take_seat(self) -> bool:
        return self._seats is None or self._seats.take()

    async def _attempt(self, candidate: Candidate) -> None:
        has_won = False
        try:
            connection = await self._connect(candidate)
            has_won = self._arrived(candidate, connection)
        except ConnectFailed as failure:
            self.race.failures.append(Failed(candidate, failure))
            self._successors += 1
        finally:
            self._running -= 1
            self._ended.set()
            # The winner keeps the race's own seat, as does the last one that runs.
            is_last = not self._running and self.race.winner is None
            if self._seats is not None and not (has_won or is_last):
                self._seats.give_back()

    def _arrived(self, candidate: Candidate, connection: Connection) -> bool:
        if self.race.winner is not None:
            connection.stream.close()
            return False
        self.race.winner, self.race.connection = candidate, connection
        return True
