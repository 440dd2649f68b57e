"""Seats and outcomes: how much may be inside the engine, and how results come out.

Every recipient takes a seat when it is submitted and gives it back when its outcome is *taken*.  So
whoever does not read outcomes stops being able to submit, memory stays bounded, and no delivery
task ever waits to hand an outcome over: results cannot be lost on the way out, not even when the
engine is cancelled.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import trio

from engine.errors import EngineClosedError

if TYPE_CHECKING:
    from engine.outcome import Outcome

#: Outcomes that one task may take without letting others run.
_IN_A_ROW: Final = 32
#: Why nothing is taken any more.
CLOSED: Final = "the engine is draining or closed; it takes no more messages"


@dataclass(slots=True, eq=False)
class _Ticket:
    """A group that waits: how many they are, and whether they have seats."""

    count: int
    called: trio.Event = field(default_factory=trio.Event)
    is_seated: bool = False


class Seats:
    """A count of free places; whoever finds none waits, first come, first served."""

    def __init__(self, total: int) -> None:
        """Make `total` seats, at least 1."""
        if total < 1:
            raise ValueError(f"max_in_flight is {total}; at least 1 is needed")
        self._total = total
        self._free = total
        self._waiting: deque[_Ticket] = deque()
        self._is_closed = False

    @property
    def taken(self) -> int:
        """How many seats are in use."""
        return self._total - self._free

    def take_nowait(self, count: int) -> bool:
        """Take seats if they are free, and return whether they were.

        Raises:
            EngineClosedError: The house is closed.
        """
        if self._is_closed:
            raise EngineClosedError(CLOSED)
        # Who waits is not overtaken by who comes later.
        if self._waiting or (self._free < count and not self._has_room(count)):
            return False
        self._free -= count
        return True

    async def take(self, count: int) -> None:
        """Take seats, waiting for them; a group larger than the house waits for an empty one.

        Cancelled, none is taken.

        Raises:
            EngineClosedError: The house is closed, or closed meanwhile.
        """
        if self.take_nowait(count):
            return
        ticket = _Ticket(count)
        self._waiting.append(ticket)
        try:
            await ticket.called.wait()
        except trio.Cancelled:
            # Between being cancelled and learning of it here it may have been called.
            if ticket.is_seated:
                self._free += count
            elif not ticket.called.is_set():
                self._waiting.remove(ticket)
            self._seat()  # a smaller group behind may have waited for this one alone
            raise
        if self._is_closed:
            raise EngineClosedError(CLOSED)

    def give_back(self, count: int = 1) -> None:
        """Free seats and seat who waits for them."""
        self._free += count
        # In batches: a submitter that is woken to many free seats costs one task switch for all.
        if self._waiting and self._free >= self._total // 8:
            self._seat()

    def close(self) -> None:
        """Turn everybody who waits away, and all who come later."""
        self._is_closed = True
        while self._waiting:
            self._waiting.popleft().called.set()

    def _seat(self) -> None:
        while self._waiting and self._has_room(self._waiting[0].count):
            ticket = self._waiting.popleft()
            self._free -= ticket.count
            ticket.is_seated = True
            ticket.called.set()

    def _has_room(self, count: int) -> bool:
        return self._free >= count or self._free == self._total


class Places(Protocol):
    """What outcomes have until they are read."""

    def give_back(self, count: int = 1) -> None:
        """Hear that so many were read."""
        ...


class Outcomes(trio.abc.ReceiveChannel["Outcome"]):
    """The channel outcomes come back on; taking one gives its seat back.

    Ends when the engine has drained and all were taken.  It is Trio's memory channel but for what
    seats make needless: a bound of its own, and a sender that may have to wait.
    """

    def __init__(self, seats: Places) -> None:
        self._seats = seats
        self._in_a_row = 0
        # Not bounded here: what can be in it has a seat each, and seats are bounded.
        self._ready: deque[Outcome] = deque()
        self._waiting = trio.lowlevel.ParkingLot()
        self._waiters = 0  # the lot knows, but every outcome asks
        self._has_ended = False

    def put(self, outcome: Outcome) -> None:
        """Add an outcome; never waits."""
        self._ready.append(outcome)
        if self._waiters:
            self._waiting.unpark()

    def end(self) -> None:
        """Let the channel end behind what is in it."""
        self._has_ended = True
        self._waiting.unpark_all()

    def __len__(self) -> int:
        return len(self._ready)

    async def receive(self) -> Outcome:
        """Return the next outcome; a checkpoint when it has to wait, and every now and then.

        Cancelled, none was taken.

        Raises:
            trio.EndOfChannel: There will be none any more.
        """
        # Under load many wait: a task switch for each would cost more than the outcome itself.
        self._in_a_row += 1
        if not self._ready or self._in_a_row >= _IN_A_ROW:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
            while not self._ready and not self._has_ended:
                self._waiters += 1
                try:
                    await self._waiting.park()
                finally:
                    self._waiters -= 1
        return self._take()

    def receive_nowait(self) -> Outcome:
        """Return the next outcome if there is one.

        Raises:
            trio.WouldBlock: There is none now.
            trio.EndOfChannel: There will be none any more.
        """
        if not self._ready and not self._has_ended:
            raise trio.WouldBlock
        return self._take()

    def _take(self) -> Outcome:
        if not self._ready:
            raise trio.EndOfChannel
        self._seats.give_back()
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Leave the channel open: outcomes belong to whoever reads next, and none may be lost."""
        await trio.lowlevel.checkpoint()
