"""The lanes of the store in memory: where recipients wait, and who is next.  Knows no I/O.

Used by `engine.queue.memory` alone.  The same rules as in `engine.queue.sql_lease`, with heaps for
indexes; entries of a heap that are out of date are thrown away when they come up.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.queue.turns import Share, Turns, allowance, eligible_at
from engine.queue.values import SiteState, to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Recipients one lane gives before others have their turn.
_QUANTUM: Final = 10


class Waiting(NamedTuple):
    """A recipient in a lane; times in milliseconds."""

    due: int
    number: int


class LaneKey(NamedTuple):
    """Whose mail waits in a lane."""

    site: str
    share: Share


@dataclass(slots=True)
class Lane:
    """One lane.

    Attributes:
        key: Whose mail waits here.
        waiting: A heap of who does.
        due: When it may be put into the line, if it is not in it.
        turn: Its place in the line, `None` while it is not in it.
    """

    key: LaneKey
    waiting: list[Waiting] = field(default_factory=list)
    due: int = 0
    turn: float | None = None


class Lanes:
    """All lanes, and the sites they belong to.

    Attributes:
        sites: The sites that are not in good health.
        out: How many recipients of each site are leased.
        weights: What was said of tenants, and of jobs (job `None`: the tenant itself).
    """

    def __init__(self, overdue: int) -> None:
        self.sites: dict[str, SiteState] = {}
        self.out: Counter[str] = Counter()
        self.weights: dict[tuple[str, str | None], float] = {}
        self._overdue = overdue
        self._lanes: dict[LaneKey, Lane] = {}
        self._place_of: dict[int, tuple[Lane, Waiting]] = {}
        self._coming: list[tuple[int, LaneKey]] = []
        self._turns = Turns()

    # -- in and out -------------------------------------------------------------------------

    def put(self, key: LaneKey, waiting: Waiting) -> None:
        """Let a recipient wait."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        heapq.heappush(lane.waiting, waiting)
        self._place_of[waiting.number] = (lane, waiting)
        self._look_at(lane)

    def remove(self, number: int) -> None:
        """Take a recipient out, wherever it waits."""
        place = self._place_of.pop(number, None)
        if place is not None:
            lane, _ = place
            if self.head(lane) is None:
                del self._lanes[lane.key]
            else:
                self._look_at(lane)

    def site_of(self, number: int) -> str:
        """Return the site for which a recipient waits."""
        return self._place_of[number][0].key.site

    def head(self, lane: Lane) -> Waiting | None:
        """Return who is due first in a lane."""
        while lane.waiting:
            first = lane.waiting[0]
            place = self._place_of.get(first.number)
            if place is not None and place[0] is lane and place[1] == first:
                return first
            heapq.heappop(lane.waiting)
        return None

    def first_due(self) -> int | None:
        """Return when the next lane that is not in the line may be."""
        self._drop_outdated()
        return self._coming[0][0] if self._coming else None

    def is_anybody_in_line(self) -> bool:
        """Whether any lane is in the line."""
        return any(True for _ in self._line())

    # -- sites ------------------------------------------------------------------------------

    def note_site(self, state: SiteState) -> None:
        """Note how a site has been doing; its lanes follow."""
        self.sites[state.name] = state
        if not state.failures and not state.not_before:
            del self.sites[state.name]
        for lane in [lane for lane in self._lanes.values() if lane.key.site == state.name]:
            lane.turn = None
            self._look_at(lane)

    def move(self, old: str, new: str) -> None:
        """Let what waits for one site wait for another."""
        for key in [key for key in self._lanes if key.site == old]:
            lane = self._lanes.pop(key)
            while (first := self.head(lane)) is not None:
                heapq.heappop(lane.waiting)
                self.put(LaneKey(new, key.share), first)
        self.out[new] += self.out.pop(old, 0)

    # -- leasing ----------------------------------------------------------------------------

    def line_up(self, now: int) -> None:
        """Put lanes whose time has come into the line."""
        self._drop_outdated()
        while self._coming and self._coming[0][0] <= now:
            _, key = heapq.heappop(self._coming)
            self._stand_in_line(self._lanes[key], 1)
            self._drop_outdated()

    def harvest(self, now: int, seats: int, site_seats: int) -> Iterator[tuple[int, str]]:
        """Walk along the line and yield the number and the site of who is next.

        They do not wait any more, and count as being out.
        """
        line = [(-lane.key.share.priority, lane.turn or 0.0, lane.key) for lane in self._line()]
        heapq.heapify(line)
        while line and seats > 0:
            _, turn, key = heapq.heappop(line)
            lane = self._lanes[key]
            room = allowance(self.out[key.site], seats, site_seats)
            if not room:
                continue
            taken = list(self._pop_due(lane, now, min(room, _QUANTUM)))
            for number in taken:
                self.out[key.site] += 1
                seats -= 1
                yield number, key.site
            if taken:
                self._turns.serve(key.share.priority, turn)
            if self._leave(lane, now, len(taken)):
                heapq.heappush(line, (-key.share.priority, lane.turn or 0.0, key))

    def _pop_due(self, lane: Lane, now: int, count: int) -> Iterator[int]:
        before = now - (self._not_before(lane) > now) * self._overdue
        for _ in range(count):
            first = self.head(lane)
            if first is None or first.due > before:
                return
            heapq.heappop(lane.waiting)
            del self._place_of[first.number]
            yield first.number

    def _leave(self, lane: Lane, now: int, taken: int) -> bool:
        """Let a lane go to the end of the line, step aside, or end; return whether it stays."""
        first = self.head(lane)
        if first is None:
            del self._lanes[lane.key]
            return False
        if eligible_at(first.due, self._not_before(lane), self._overdue) > now:
            lane.turn = None
            self._look_at(lane)
            return False
        self._stand_in_line(lane, max(taken, 1))
        return True

    def _stand_in_line(self, lane: Lane, cost: int) -> None:
        share = lane.key.share
        weight = self.weights.get((share.tenant, None), 1.0)
        weight *= self.weights.get((share.tenant, share.job), 1.0)
        self._turns.weights[share.tenant, share.job] = weight
        lane.turn = self._turns.place(share, cost, self._jobs_beside(share))

    def _jobs_beside(self, share: Share) -> int:
        clock = self._turns.clocks.get(share.priority, 0.0)
        return 1 + sum(
            other.tenant == share.tenant
            and other.priority == share.priority
            and other.job != share.job
            and turn > clock
            for other, turn in self._turns.shares.items()
        )

    def tidy(self, now: int) -> None:
        """Forget back-offs that are over, and jobs whose turn lies behind the clock."""
        for state in list(self.sites.values()):
            if not state.failures and to_milliseconds(state.not_before) <= now:
                del self.sites[state.name]
        turns = self._turns
        turns.shares = {
            share: turn
            for share, turn in turns.shares.items()
            if turn > turns.clocks.get(share.priority, 0.0)
        }

    # -- lanes that are not in the line -----------------------------------------------------

    def _line(self) -> Iterable[Lane]:
        return (lane for lane in self._lanes.values() if lane.turn is not None)

    def _not_before(self, lane: Lane) -> int:
        state = self.sites.get(lane.key.site)
        return to_milliseconds(state.not_before) if state else 0

    def _look_at(self, lane: Lane) -> None:
        """Have a lane that is not in the line looked at when its time comes."""
        first = self.head(lane)
        if lane.turn is None and first is not None:
            lane.due = eligible_at(first.due, self._not_before(lane), self._overdue)
            heapq.heappush(self._coming, (lane.due, lane.key))

    def _drop_outdated(self) -> None:
        while self._coming:
            due, key = self._coming[0]
            lane = self._lanes.get(key)
            if lane is not None and lane.turn is None and lane.due == due:
                return
            heapq.heappop(self._coming)
