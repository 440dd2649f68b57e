"""One site, one egress source: the mail that waits for it and the delivery tasks that carry it.

The pool decides; its tasks wait.  All decisions stand in plain functions that await nothing:
`put`, `take`, `put_back` and `_grow`.  A task owns one connection at a time.

How many connections: one at once; a further one for every `_BACKLOG_PER_CONNECTION` attempts that
wait, and one whenever something has waited for `_PATIENCE` seconds; never more than
`max_connections`.  A few messages share a connection (its set-up costs more than they do), many
spread quickly, and a slow or silent host delays nobody who could have a connection of their own.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from engine.delivery.envelope import too_long
from engine.delivery.host_memory import HostMemory
from engine.delivery.lane import Lane, Line
from engine.delivery.shared import Path
from engine.delivery.task import DeliveryTask
from engine.delivery.verdict import Verdict, ours
from engine.delivery.walk import Walk
from engine.net.port import port_for
from engine.outcome import Cause, Peer, Scope, Status
from engine.report.events import SiteClosed, SiteOpened
from engine.report.statistics import SiteStatistics
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from engine.delivery.approach import Approach
    from engine.delivery.attempt import Attempt
    from engine.delivery.session import Session
    from engine.delivery.shared import Shared
    from engine.outcome import Outcome
    from engine.route import Candidate, Route
    from engine.security import MessageTls, Stance

_log = logging.getLogger("engine.delivery")

#: Attempts waiting for each connection before another is opened for them.
_BACKLOG_PER_CONNECTION: Final = 8
#: Seconds an attempt waits for an open connection to come free before it gets a new one.
_PATIENCE: Final = 1.0
#: Attempts that a connection takes past one that needs another host, when no seat is free for it.
_TURNS: Final = 20
#: Attempts on their way elsewhere that a connection looks through for one it suits.
_LOOK_AHEAD: Final = 16
#: Seconds a host that could not be connected to is left alone, and that no further connection is
#: opened to one that took no more of them.
_REST: Final = 15.0
#: Connections in a row that a host turns away before it is left alone: one may be unlucky, and
#: without end a backlog would knock once for each message.
_KNOCKS: Final = 3
#: Seconds a pool without mail and connections is kept.
_LINGER: Final = 30.0


class _Waiter:
    """A task with an open connection and nothing to carry.

    Attributes:
        line: What the connection can carry.
        room: How many attempts it begins with at once.
        woken: Set when there may be something to do, or nothing any more.
    """

    __slots__ = ("line", "room", "woken")

    def __init__(self, line: Line, room: int) -> None:
        self.line = line
        self.room = room
        self.woken = trio.Event()


class _Seats:
    """The seats of a pool, for who wants to try several hosts at once."""

    def __init__(self, pool: SitePool) -> None:
        self._pool = pool

    def take(self) -> bool:
        """Take a seat, if one is free."""
        return self._pool.take_seat()

    def give_back(self) -> None:
        """Give a seat back."""
        self._pool.give_seat_back()


class SitePool:
    """The delivery tasks of one site, in a nursery of their own.

    Attributes:
        site: The site's name.
        route: The newest route to it.
        seats: Seats for connections, for who wants more than one.
        is_closed: Whether it has ended, or is about to; mail given to it now is settled unsent.
    """

    def __init__(
        self, shared: Shared, site: str, route: Route, rules: tuple[int, ...], domain: str
    ) -> None:
        """Make a pool; it works once `run` runs.

        Args:
            shared: The engine's parts.
            site: The site's name.
            route: The route to it.
            rules: The rules for paths that hold for the site and its domains.
            domain: One of the domains; all of a pool's match the same rules.
        """
        self.shared = shared
        self.site = site
        self.route = route
        self.settings = shared.table.settings(rules)
        self._domain = domain
        self._fresh: deque[Attempt] = deque()  # asked nobody yet
        self._moved: deque[Attempt] = deque()  # on their way to another host or connection
        self._idle: list[_Waiter] = []
        self._most = self.settings.max_connections
        self._roused = 0  # room of those that were woken and have not had their turn
        self._resting: dict[Candidate, tuple[float, Verdict]] = {}
        self._turned_away: Counter[Candidate] = Counter()  # in a row
        self._full_until = -math.inf
        self._paths: dict[Candidate, Path] = {}
        self._best: tuple[Route, float, int] | None = None
        self._in_transit: set[DeliveryTask] = set()
        self._lanes: dict[tuple[MessageTls, Stance], Lane] = {}
        self._lines: set[Line] = set()
        self._connections = 0
        self._turns = 0
        self.seats = _Seats(self)
        self._nursery: trio.Nursery | None = None
        self._is_patient = False
        self._is_ending = False  # no new mail comes
        self._is_draining = False
        self.is_closed = False
        self._quiet = trio.Event()
        self._tally = dict.fromkeys(Status, 0)

    # -- for the engine ---------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many attempts no task has taken."""
        return len(self._fresh) + len(self._moved)

    @property
    def is_busy(self) -> bool:
        """Whether anything waits, or any connection is open or being opened."""
        return bool(self._connections or self._fresh or self._moved)

    def statistics(self) -> SiteStatistics:
        """Return the numbers of this moment."""
        return SiteStatistics(
            site=self.site,
            waiting=self.waiting,
            connections=self._connections,
            idle=len(self._idle),
            delivered=self._tally[Status.DELIVERED],
            deferred=self._tally[Status.DEFERRED],
            failed=self._tally[Status.FAILED],
            unknown=self._tally[Status.UNKNOWN],
        )

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome of a recipient of this site."""
        self._tally[outcome.status] += 1
        self.shared.settle(outcome)

    def put(self, attempt: Attempt) -> None:
        """Take an attempt for delivery; it is settled whatever happens from here on."""
        most = self.settings.max_line_length
        facts = attempt.message.content.facts
        if 0 < most < facts.longest_line and not facts.is_binary:
            attempt.end(too_long(attempt.message, most), trio.current_time())
            return
        self._fresh.append(attempt)
        if self._idle:
            if len(self._fresh) <= self._roused or self._rouse(attempt):
                return
        elif self._connections >= self._most:
            return
        self._grow()
        if self._idle and self._connections >= self._most:
            self._idle[0].woken.set()  # it leads elsewhere, and its seat is needed

    def expect_no_more(self) -> None:
        """Take note that no new mail will come, so that connections may end with what there is."""
        self._is_ending = True

    def drain(self) -> None:
        """Take leave of idle connections at once, now and from now on."""
        self._is_ending = self._is_draining = True
        for waiter in self._idle:
            waiter.woken.set()
        for task in self._in_transit:
            if task.attempt is None:
                task.scope.cancel()  # what it went for, others have delivered
        self._quiet.set()

    async def run(self, on_closed: Callable[[SitePool], None]) -> None:
        """Run until there has been nothing to do for a while; then tell, and end.

        Cancelled, every attempt is settled: as `deferred`, cause `cancelled`, unless its content
        has left, which is waited for during `Shared.grace` seconds and `unknown` after that.
        """
        self._publish(SiteOpened)
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    self._grow()
                    await self._wait_quiet()
                finally:
                    # Also when cancelled: as soon as its last task has ended, the nursery takes no
                    # other one.  What is put from here on waits for the end below.
                    self.is_closed = True
                on_closed(self)
                self._nursery.cancel_scope.cancel()  # patience alone may be left
        finally:
            self._nursery = None
            self.is_closed = True
            cancelled = ours(
                Status.DEFERRED, Cause.CANCELLED, Stage.CONNECT, "the engine was stopped first"
            )
            for attempt in (*self._fresh, *self._moved):
                attempt.end(cancelled, trio.current_time())
            self._fresh.clear()
            self._moved.clear()
            on_closed(self)  # also when cancelled: mail given to it now would stay in it
            self._publish(SiteClosed)

    async def _wait_quiet(self) -> None:
        while True:
            while self.is_busy:
                self._quiet = trio.Event()
                await self._quiet.wait()
            if self._is_draining:
                return
            self._quiet = trio.Event()
            with trio.move_on_after(_LINGER) as linger:
                await self._quiet.wait()  # it was busy once more: then it lingers anew
            if linger.cancelled_caught and not self.is_busy:
                return

    # -- for the delivery tasks -------------------------------------------------------------

    def take(self, line: Line) -> Attempt | None:
        """Return the next attempt for a task with an open connection."""
        best, fresh = self._best, self._fresh
        if (
            fresh
            and best is not None
            and best[0] is self.route
            and line.candidate.preference == best[2]
            and not (self._moved or self._resting)
            and line.carries(fresh[0])
        ):
            return fresh.popleft()  # the rule: nothing is unusual
        for attempt in islice(self._moved, _LOOK_AHEAD):
            if (
                attempt.redo is None
                and attempt.walk
                and attempt.walk.accepts(line.candidate)
                and line.carries(attempt)
            ):
                self._moved.remove(attempt)
                attempt.walk.take(line.candidate)
                attempt.arrive()
                return attempt
        if (
            self._moved or (fresh and not line.carries(fresh[0]))
        ) and self._connections >= self._most:
            # Somebody needs another connection and all seats are taken: pass them by a few times,
            # then give this seat up.
            self._turns += 1
            if self._turns > _TURNS:
                self._turns = 0
                return None
        if self._is_first_choice(line.candidate):
            return self._take_fresh(line) or self._take_over(line)
        return None

    def _take_fresh(self, line: Line) -> Attempt | None:
        for attempt in islice(self._fresh, _LOOK_AHEAD):
            if line.carries(attempt):
                self._fresh.remove(attempt)
                return attempt
        return None

    def _take_over(self, line: Line) -> Attempt | None:
        """Take an attempt from a task that is still on its way to its first host.

        A server that accepts connections and greets late, or never, keeps no mail from those that
        are open.
        """
        for task in self._in_transit:
            attempt = task.attempt
            if attempt is not None and attempt.is_untouched and line.carries(attempt):
                task.attempt = None
                attempt.walk = None
                return attempt
        return None

    def take_any(self) -> Attempt | None:
        """Return the next attempt for a task that will connect to wherever it needs to go."""
        if self._moved:
            return self._moved.popleft()
        return self._fresh.popleft() if self._fresh and not self._is_full else None

    def put_back(self, attempt: Attempt, candidate: Candidate) -> None:
        """Take back an attempt that is not done at this candidate.

        It needs another connection, or another host; where there is none left it is settled.
        """
        if attempt.redo is None:
            walk = self.walk_of(attempt)
            walk.strike(candidate)  # it may have come here on somebody else's connection
            if walk.peek() is None:
                attempt.give_up(trio.current_time())
                return
        self._moved.append(attempt)
        self._grow()

    async def wait_for_work(
        self, session: Session, line: Line, room: int, seconds: float
    ) -> Attempt | None:
        """Keep a connection idle until there is work for it, it is lost, or the time is over.

        Not at all while there is work that it may not do and all seats are taken.

        Args:
            session: It; nothing is in flight.
            line: What it can carry.
            room: How many attempts it can begin with at once.
            seconds: How long it is kept.
        """
        if not self._may_lie_down:
            return None
        deadline = trio.current_time() + seconds
        # Under load whoever submits only waits for a turn: that is cheaper than to lie down.
        await trio.lowlevel.checkpoint()
        while True:
            attempt = self.take(line)
            if attempt is not None or trio.current_time() >= deadline or not self._may_lie_down:
                return attempt
            await self._lie_down(session, _Waiter(line, room), deadline)
            if not session.is_at_rest:
                return None

    async def _lie_down(self, session: Session, waiter: _Waiter, deadline: float) -> None:
        self._idle.append(waiter)
        session.when_over = waiter.woken.set
        try:
            async with session.listening():
                with trio.move_on_at(deadline):
                    await waiter.woken.wait()
        finally:
            session.when_over = None
            if waiter in self._idle:
                self._idle.remove(waiter)
            else:
                self._roused -= waiter.room

    @property
    def _may_lie_down(self) -> bool:
        """Whether a connection without work may be kept.

        Not when work waits that needs one to somewhere else, and none may be opened.
        """
        is_full = self._connections >= self._most
        return not self._is_draining and not (self.waiting and is_full)

    def walk_of(self, attempt: Attempt) -> Walk:
        """Return where an attempt stands among the hosts; it begins with the newest route."""
        if attempt.walk is None:
            settings = self.settings
            candidates = self.shared.plan(self.route, settings.address_family, self.shared.rng)
            attempt.walk = Walk(
                candidates,
                self.route.failures,
                limit=settings.max_hosts_tried,
                hard_limit=settings.max_hosts_tried_hard,
                is_static=self.route.is_static,
            )
        return attempt.walk

    def resting(self, candidate: Candidate) -> Verdict | None:
        """Return what a host did lately that it is left alone for, `None` when it is not."""
        known = self._resting.get(candidate)
        if known is None:
            return None
        if known[0] <= trio.current_time():
            del self._resting[candidate]
            self._best = None
            return None
        return known[1]

    def rest(self, candidate: Candidate, verdict: Verdict) -> None:
        """Leave a host alone for a while that could not be connected to."""
        self._resting[candidate] = (trio.current_time() + _REST, verdict)
        self._best = None

    def rest_after(self, candidate: Candidate, verdict: Verdict) -> None:
        """Leave a host alone for a while if all our mail to it would meet with the same, or wait.

        It refused what all mail has in common, it accepts connections and then says nothing, or it
        has turned several away in a row: at once, or before it took any mail.
        """
        if verdict.scope is Scope.SOURCE:
            self.rest(candidate, verdict)
        elif self._leads_to(candidate):
            return  # mail flows
        elif verdict.cause is Cause.TIMEOUT and verdict.stage.is_setup:
            self.rest(candidate, verdict)
        elif verdict.stage in (Stage.GREETING, Stage.HELLO) and verdict.cause is not Cause.EVENT:
            self._turn_away(candidate, verdict)

    def _turn_away(self, candidate: Candidate, verdict: Verdict) -> None:
        """Count a connection of which the host took no mail, and leave it alone after some."""
        self._turned_away[candidate] += 1
        if self._turned_away[candidate] >= _KNOCKS:
            self.rest(candidate, verdict)

    def spare(self, candidate: Candidate, task: DeliveryTask, cause: Cause) -> bool:
        """Account for a connection that a host did not give a task, if there are others to it.

        It takes no more of them: mail flows over those that it has, and no other one is opened for
        a while.  An attempt that asked nobody else yet goes back to wait for one of them.  Beside a
        refusal those count, too, that are being opened; silence they may all be met with.

        Args:
            candidate: The host.
            task: Who wanted one.
            cause: What it got instead.

        Returns:
            Whether the host has others.
        """
        is_on_its_way = cause is not Cause.TIMEOUT and any(
            other.heading == candidate and other is not task for other in self._in_transit
        )
        if not (is_on_its_way or self._leads_to(candidate)):
            return False
        self._full_until = trio.current_time() + _REST
        attempt = task.attempt
        if attempt is not None and attempt.is_untouched and not self._is_stray(attempt):
            task.attempt = attempt.walk = None
            self._fresh.appendleft(attempt)
            self._rouse(attempt)
        return True

    def _leads_to(self, candidate: Candidate) -> bool:
        return any(line.candidate == candidate for line in self._lines)

    @property
    def _is_full(self) -> bool:
        """Whether the host that mail begins with takes no more connections than it has."""
        return self._full_until > trio.current_time() and any(
            self._is_first_choice(candidate)
            for candidate in (
                *[line.candidate for line in self._lines],
                *[task.heading for task in self._in_transit if task.heading is not None],
            )
        )

    def path_to(self, candidate: Candidate) -> Path:
        """Return the settings that hold towards a candidate."""
        path = self._paths.get(candidate)
        if path is None:
            table = self.shared.table
            rules = table.matching(
                domain=self._domain,
                site=self.site,
                host=candidate.host,
                address=candidate.address,
            )
            path = self._paths[candidate] = Path.of(table.settings(rules))
        return path

    def take_seat(self) -> bool:
        """Take one more seat for a task that has one, to try another host at the same time."""
        if self._connections >= self._most:
            return False
        self._connections += 1
        return True

    def give_seat_back(self) -> None:
        """Give such a seat back."""
        self._connections -= 1
        self._grow()

    def lane(self, message: MessageTls, stance: Stance, domain: str) -> Lane:
        """Return the lane for messages that ask for this, to domains that ask for that."""
        lane = self._lanes.get((message, stance))
        if lane is None:
            lane = self._lanes[message, stance] = Lane(message, stance, domain)
        return lane

    def opened(self, line: Line) -> None:
        """Account for a connection that can carry mail."""
        self._lines.add(line)

    def closed(self, line: Line, dismissal: Verdict | None = None) -> None:
        """Account for one that cannot any more.

        Args:
            line: It.
            dismissal: What it means for other mail that the host has ended the session, if it has.
        """
        self._lines.discard(line)
        candidate = line.candidate
        if line.has_served or dismissal is None:
            del self._turned_away[candidate]
        elif any(other.has_served and other.candidate == candidate for other in self._lines):
            # Mail flows over those that it has, and it takes no more of them.
            self._full_until = trio.current_time() + _REST
        else:
            self._turn_away(candidate, dismissal)

    def peer_of(self, candidate: Candidate) -> Peer:
        """Return a candidate as it is named where there is no connection to it."""
        port = port_for(candidate, self.path_to(candidate).options)
        return Peer(candidate.host, candidate.address, port)

    def memory_of(self, candidate: Candidate) -> HostMemory:
        """Return what is remembered of a host."""
        return HostMemory(self.shared.hints, self.peer_of(candidate))

    def only_one(self, way: Approach) -> AbstractAsyncContextManager[object]:
        """Wait until nobody else is connected to the host, where `serialize` asks for that."""
        if way.path.settings.serialize:
            return self.shared.turns.of(way.candidate.host)
        return nullcontext()

    @property
    def is_over(self) -> bool:
        """Whether no more mail will come, and none is left that a connection could take."""
        return self._is_ending and not self.waiting and not self._in_transit

    def departed(self, task: DeliveryTask) -> None:
        """Account for a task that is on its way to a host."""
        self._in_transit.add(task)

    def arrived(self, task: DeliveryTask) -> None:
        """Account for a task that has said hello to one, or will not get there."""
        self._in_transit.discard(task)

    # -- decisions --------------------------------------------------------------------------

    def _rouse(self, attempt: Attempt) -> bool:
        """Wake a connection for what has come, the one that was idle for the shortest."""
        for place in range(len(self._idle) - 1, -1, -1):
            waiter = self._idle[place]
            line = waiter.line
            if self._is_first_choice(line.candidate) and line.carries(attempt):
                del self._idle[place]
                self._roused += waiter.room
                waiter.woken.set()
                return True
        return False

    def _is_first_choice(self, candidate: Candidate) -> bool:
        """Whether a message that has asked nobody may begin with this candidate."""
        best = self._best
        if (
            best is None
            or best[0] is not self.route
            or (self._resting and best[1] <= trio.current_time())
        ):
            usable = [c.preference for c in self.route.candidates if self.resting(c) is None]
            rested_at = min((at for at, _ in self._resting.values()), default=math.inf)
            best = self._best = (self.route, rested_at, min(usable, default=-1))
        return candidate.preference == best[2]

    def _grow(self) -> None:
        """Start the tasks that the backlog calls for."""
        if self._nursery is None or self.is_closed:
            return
        free = self._most - self._connections
        if free <= 0 or not self.waiting:
            return
        wanted = 1 + self.waiting // _BACKLOG_PER_CONNECTION - self._connections
        if not self._in_transit and (self._moved or self._is_stray(self._fresh[0])):
            # No open connection suits these; whoever goes first may carry the others.
            wanted = max(1, wanted)
        for _ in range(min(free, wanted)):
            attempt = self.take_any()
            if attempt is None:
                break
            self._start(attempt)
        if self.waiting and not self._is_patient:
            self._is_patient = True
            self._nursery.start_soon(self._be_patient, name=f"patience {self.site}")

    def _is_stray(self, attempt: Attempt) -> bool:
        """Whether no open connection may carry it."""
        return len(self._lanes) > 1 and not any(line.carries(attempt) for line in self._lines)

    def _start(self, attempt: Attempt) -> None:
        assert self._nursery is not None
        self._connections += 1
        self._nursery.start_soon(self._deliver, attempt, name=f"delivery {self.site}")

    async def _be_patient(self) -> None:
        """Give what has waited too long a connection of its own."""
        try:
            while self.waiting and self._connections < self._most:
                head = (self._moved or self._fresh)[0]
                await trio.sleep(_PATIENCE)
                if (
                    self._connections < self._most
                    and self.waiting
                    and (self._moved or self._fresh)[0] is head
                    and (attempt := self.take_any()) is not None
                ):
                    self._start(attempt)
        finally:
            self._is_patient = False

    async def _deliver(self, attempt: Attempt) -> None:
        """Run one delivery task; the bulkhead between a bug in it and the rest."""
        task = DeliveryTask(self)
        try:
            with task.scope:
                await task.run(attempt)
        except Exception:  # noqa: BLE001 - the bulkhead: a bug costs one task, and no mail
            _log.exception("delivery to %s failed by a bug of ours; mail is deferred", self.site)
            task.end(Cause.INTERNAL, "internal error; see the log")
        finally:
            task.end(Cause.CANCELLED, "the engine was stopped first")
            self.arrived(task)
            self._connections -= 1
            if not self.is_busy:
                self._quiet.set()
        self._grow()

    def _publish(self, event: type[SiteOpened | SiteClosed]) -> None:
        if event in self.shared.events.wanted:
            self.shared.events.publish(event(self.shared.clock(), self.site))
