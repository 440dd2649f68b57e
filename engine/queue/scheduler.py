"""The scheduler: leases what is due as seats are free, hands it over, settles what comes back.

    async with Scheduler(store, …) as scheduler:
        async with Engine(…) as engine:
            await scheduler.run(engine.submit, engine.outcomes)

The engine is inside, so that it has ended, and every recipient it took has its outcome, when the
scheduler settles what is left.  Every recipient that was leased is settled exactly once, however
the block ends; when the store does not answer any more, it is the next run's to recover.

Decisions are elsewhere: who is next (the store), what an outcome makes of a recipient
(`engine.queue.decision`), when a site is left alone (`engine.queue.backoff`, and
`engine.queue.site_health`, which knows the sites).  Here are the tasks: one leases, one takes
outcomes, one settles, one keeps the leases, one keeps house.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, Protocol, Self

import trio

from engine.errors import EngineClosedError
from engine.queue import decision
from engine.queue.backoff import BackOff
from engine.queue.decision import Policy, Settled
from engine.queue.errors import StoreError
from engine.queue.flight import Flight, Out, outs_of
from engine.queue.settler import FIRST_PAUSE, LAST_PAUSE, Settler
from engine.queue.site_health import SiteHealth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    from engine.message import Message
    from engine.outcome import Outcome
    from engine.queue.store import Store
    from engine.queue.values import Lease, LeasedMessage, Settlement

#: Recipients that are leased and not settled; the engine holds as many.
DEFAULT_SEATS: Final = 1000
#: Of these, so many of one site: 20 connections with some work before each.
DEFAULT_SITE_SEATS: Final = 200
#: A worker that is gone is noticed after so many seconds where another one shares its store.
DEFAULT_LEASE_SECONDS: Final = 120.0
#: What a worker had leased when it died is due again after so many seconds: if a message killed it,
#: it is not killed again at once.
DEFAULT_CRASH_SECONDS: Final = 60.0
#: The longest sleep: other processes may have queued something, and wall clocks jump.
DEFAULT_IDLE_SECONDS: Final = 30.0
#: How long ids of messages are known after they are done with, in seconds.
DEFAULT_REMEMBER: Final = 3 * 86_400.0
DEFAULT_SWEEP_SECONDS: Final = 60.0
DEFAULT_CLOSE_SECONDS: Final = 10.0

#: A store that says there is more, and gives nothing, is asked again after so many seconds.
_HICCUP: Final = 0.05
#: With few seats free, a lease waits so many seconds for more.
_GATHER: Final = 0.02

_log = logging.getLogger("engine.queue")


class Outcomes(Protocol):
    """Where outcomes come from: the engine's, or a memory channel."""

    async def receive(self) -> Outcome:
        """Return the next; `trio.EndOfChannel` when there will be none any more."""
        ...

    def receive_nowait(self) -> Outcome:
        """The same, or `trio.WouldBlock` when there is none now."""
        ...


@dataclass(frozen=True, slots=True)
class Tally:
    """What a scheduler has done, and what it has in hand.

    Attributes:
        out: Recipients that are leased and have no outcome yet.
        unsettled: Recipients with an outcome that the store has not been told yet.
        leased: Recipients leased so far.
        settled: Recipients settled so far.
        lost: Of these, those the store did not want to hear of: their lease was lost.
        failure: Why nothing can be leased or settled at the moment, `None` where it can.
    """

    out: int
    unsettled: int
    leased: int
    settled: int
    lost: int
    failure: StoreError | OSError | None = None


class Scheduler:
    """See the head of the module."""

    def __init__(
        self,
        store: Store,
        *,
        owner: str,
        policy: Policy | None = None,
        back_off: BackOff | None = None,
        seats: int = DEFAULT_SEATS,
        site_seats: int = DEFAULT_SITE_SEATS,
        on_settled: Callable[[Sequence[Settled]], Awaitable[None]] | None = None,
        on_kept: Callable[[Sequence[Settled]], None] | None = None,
        is_full: Callable[[], bool] = lambda: False,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        crash_seconds: float = DEFAULT_CRASH_SECONDS,
        idle_seconds: float = DEFAULT_IDLE_SECONDS,
        sweep_seconds: float = DEFAULT_SWEEP_SECONDS,
        close_seconds: float = DEFAULT_CLOSE_SECONDS,
        remember: float = DEFAULT_REMEMBER,
        clock: Callable[[], float] = time.time,
        rng: Random | None = None,
    ) -> None:
        """Make a scheduler; it works in `run`, inside its `async with` block.

        Args:
            store: Where the queue is.
            owner: Names this run of this worker; no other run may ever bear its name.
            policy: How outcomes are dealt with.
            back_off: How long sites are left alone.
            seats: Recipients that may be out at a time, at least 1.
            site_seats: Of these, of one site.
            on_settled: Told of outcomes and what they make of their recipients, before the store
                is: a crash in between is a line twice, never one that is missing.  An `OSError`
                is taken for a lack that passes, and the same is told again later.
            on_kept: Told of the same behind the store, once each; must not wait.  What the store has
                not taken is told when the block ends.
            is_full: Whether nothing more is to be leased, as `on_kept` has enough; `look_again` says
                that there is room.
            lease_seconds: For how long leases hold without being put off.
            crash_seconds: When what is leased is due again, should this process die.
            idle_seconds: How long the store is left alone at most, though nothing is due.
            sweep_seconds: How often the store is swept.
            close_seconds: For how long the end of a block, even of a cancelled one, may settle.
            remember: For how long ids are known after their messages are done with.
            clock: Wall clock, seconds since the epoch: for times that are stored.
            rng: For the jitter of pauses of sites.
        """
        if seats < 1 or site_seats < 1:
            raise ValueError(
                f"seats {seats}, site_seats {site_seats}; at least 1 of each is needed"
            )
        self._store = store
        self._owner = owner
        self._policy = policy or Policy()
        self._seats = seats
        self._site_seats = site_seats
        self._is_full = is_full
        self._lease_seconds = lease_seconds
        self._crash_seconds = crash_seconds
        self._idle_seconds = idle_seconds
        self._sweep_seconds = sweep_seconds
        self._close_seconds = close_seconds
        self._remember = remember
        self._clock = clock
        rng = rng or Random()  # noqa: S311 - spreads load, guards nothing
        self._health = SiteHealth(back_off or BackOff(), rng)
        self._flight = Flight()
        self._settler = Settler(
            store,
            clock=clock,
            on_settled=on_settled,
            on_kept=on_kept,
            on_batch=self._note_settled,
            patience=close_seconds,
        )
        self._outcomes: Outcomes | None = None
        self._draining = trio.Event()
        self._lease_failure: StoreError | None = None
        self._is_clogged = False
        # When the leasing task will look again, by the wall clock.
        self._wake_at = math.inf
        # Of the store's changes: at that count there was nothing to do, now or ever.
        self._idle_since: int | None = None
        self._leased = 0
        self._few = max(1, seats // 4)
        # Each is set when there is news of its kind, and replaced by who waits for it.
        self._work = trio.Event()
        self._progress = trio.Event()

    # -- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with trio.move_on_after(self._close_seconds, shield=True):
                await self._settle_what_is_left()
        finally:
            self._settler.end()
        if left := len(self._settler) + len(self._flight):
            _log.error("%d recipients stay leased; the next run recovers them", left)

    async def run(
        self,
        deliver: Callable[[Message], Awaitable[object]],
        outcomes: Outcomes,
    ) -> None:
        """Lease, hand over and settle until drained; call it once.

        Cancelled, it ends at once; what it had leased is settled when the block ends.

        Args:
            deliver: Takes a message for delivery, waiting while it has no room for it.  Cancelled,
                it has not taken it.
            outcomes: One outcome for each recipient that was handed over.
        """
        self._outcomes = outcomes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_outcomes, outcomes)
            nursery.start_soon(self._settler.run)
            nursery.start_soon(self._keep_leases)
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self._watch_store)
            await self._lease_and_deliver(deliver)
            await self._wait_until(self._is_quiet)
            nursery.cancel_scope.cancel()

    def drain(self) -> None:
        """Lease nothing any more; `run` returns when all that is out has been settled."""
        self._draining.set()
        self._work.set()

    def look_again(self) -> None:
        """Hear that whoever `is_full` asks about has room again."""
        self._work.set()

    async def wait_empty(self) -> None:
        """Wait until nothing is out and nothing will ever be due, as things are."""
        await self._wait_until(lambda: self._idle_since == self._store.changes and self._is_quiet())

    def tally(self) -> Tally:
        """Return the numbers of this moment."""
        return Tally(
            out=len(self._flight),
            unsettled=len(self._settler),
            leased=self._leased,
            settled=self._settler.settled,
            lost=self._settler.lost,
            failure=self._settler.failure or self._lease_failure,
        )

    async def recover(self, *, dead: Sequence[str] = ()) -> int:
        """Take over what owners that are gone have left; once before `run`, which then goes on.

        Args:
            dead: Owners that are known to be gone although their leases still hold: all others,
                where only one worker may be at a store.

        Returns:
            How many recipients were queued again, and how many may have been delivered.

        Raises:
            StoreError: It did not happen.
        """
        now = self._clock()
        recovered = await self._store.recover(
            owner=self._owner, now=now, deadline=now + self._lease_seconds, dead=dead
        )
        count = 0
        for message in recovered.doubtful:
            for out in outs_of(message):
                self._conclude(out, decision.doubtful(message, out.place))
                count += 1
        if recovered.released or count:
            _log.warning(
                "recovered from a worker that is gone: %d recipients are queued again, "
                "%d may have been delivered",
                recovered.released,
                count,
            )
        return recovered.released + count

    # -- for the deliverer ------------------------------------------------------------------

    async def mark(self, contents: Iterable[tuple[str, Iterable[str]]]) -> None:
        """Write down that the last octets of contents are about to go out; call it before.

        Cancelled, or with an error, they must not go out.

        Args:
            contents: For each the message's id, and those of its recipients whom this mail
                transaction is for.

        Raises:
            LeaseLostError: Somebody else may be at them by now.
            StoreError: It was not written.
        """
        by_lease: dict[int, list[Out]] = {}
        for message, addresses in contents:
            for out in self._flight.find(message, addresses):
                by_lease.setdefault(out.message.lease, []).append(out)
        for lease, marked in by_lease.items():
            await self._store.mark(lease, [out.recipient.number for out in marked])
            self._flight.mark(marked)

    def learn_route(self, domain: str, site: str) -> None:
        """Note which site a domain's mail goes to; whoever routes it says so."""
        if self._health.learn_route(domain, site):
            self._settler.note_route(domain, site)

    # -- leasing ----------------------------------------------------------------------------

    async def _lease_and_deliver(self, deliver: Callable[[Message], Awaitable[object]]) -> None:
        pause = 0.0
        while not self._draining.is_set():
            # From here on whatever becomes due is news: a lease may have been given before it.
            self._work, self._wake_at = trio.Event(), math.inf
            free = self._free_seats()
            if self._settler.failure is not None or free <= 0:
                await self._work.wait()
                continue
            if free < self._few:
                await self._gather_seats()
                if self._draining.is_set():
                    return
                free = self._free_seats()
            try:
                lease = await self._lease(free)
            except StoreError as error:
                self._lease_failure = error
                pause = min(max(2 * pause, FIRST_PAUSE), LAST_PAUSE)
                _log.error("nothing can be leased: %s; next try in %.1f s", error, pause)
                with trio.move_on_after(pause):
                    await self._draining.wait()
                continue
            self._lease_failure, pause = None, 0.0
            if lease.messages or lease.expired:
                await self._hand_over(lease, deliver)
            else:
                await self._wait_for_work(lease)

    async def _gather_seats(self) -> None:
        """Wait a moment for more seats: a lease of many costs little more than a lease of one."""
        with trio.move_on_after(_GATHER):
            while self._free_seats() < self._few and not self._draining.is_set():
                self._work = trio.Event()
                await self._work.wait()

    async def _lease(self, free: int) -> Lease:
        now, changes, is_quiet = self._clock(), self._store.changes, self._is_quiet()
        lease = await self._store.lease(
            owner=self._owner,
            now=now,
            seats=free,
            deadline=now + self._lease_seconds,
            retry_at=now + self._crash_seconds,
            site_seats=self._site_seats,
        )
        self._is_clogged = lease.is_clogged
        # What is not written yet is newer.
        self._health.note(
            state for name, state in lease.sites.items() if not self._settler.has_news_of(name)
        )
        for message in lease.messages:
            self._flight.add(message)
            self._leased += len(message.recipients)
        for message in lease.expired:
            self._leased += len(message.recipients)
            for out in outs_of(message):
                self._conclude(out, decision.expired(message, out.place))
        nothing = not lease.messages and not lease.expired and not lease.is_clogged
        # While anybody was out, he may have been queued again behind its back.
        is_idle = is_quiet and nothing and lease.next_due is None
        self._idle_since = changes if is_idle else None
        if self._idle_since is not None:
            self._progress.set()
        return lease

    async def _hand_over(
        self, lease: Lease, deliver: Callable[[Message], Awaitable[object]]
    ) -> None:
        for message in lease.messages:
            if self._draining.is_set():
                self._release(message)
                continue
            try:
                await deliver(message.message)
            except EngineClosedError:
                self.drain()
                self._release(message)
            except Exception:  # noqa: BLE001 - the bulkhead: a bug costs an attempt, and no mail
                _log.exception("message %r could not be handed over", message.message.id)
                self._undeliverable(message)

    async def _wait_for_work(self, lease: Lease) -> None:
        """Sleep until something may be due, or something else happens; wall clocks may jump."""
        seconds, self._wake_at = self._idle_seconds, math.inf
        if lease.next_due is not None:
            self._wake_at = lease.next_due
            seconds = min(max(lease.next_due - self._clock(), _HICCUP), seconds)
        with trio.move_on_after(seconds):
            await self._work.wait()

    def _release(self, message: LeasedMessage) -> None:
        now = self._clock()
        for index, recipient in enumerate(message.recipients):
            if self._flight.take(message.message.id, recipient.address) is not None:
                self._settler.add(decision.release(message, index, now))

    def _undeliverable(self, message: LeasedMessage) -> None:
        for index, recipient in enumerate(message.recipients):
            out = self._flight.take(message.message.id, recipient.address)
            if out is not None:
                text = "internal error; see the log"
                self._conclude(out, decision.undelivered(message, index, text))

    async def _watch_store(self) -> None:
        while True:
            changes = self._store.changes
            self._work.set()
            await self._store.wait_changed(changes)

    # -- outcomes ---------------------------------------------------------------------------

    async def _take_outcomes(self, outcomes: Outcomes) -> None:
        try:
            while True:
                self._take(await outcomes.receive())
        except trio.EndOfChannel:
            return

    def _take(self, outcome: Outcome) -> None:
        out = self._flight.take(outcome.message, outcome.recipient)
        if out is None:
            _log.error(
                "an outcome of %r for %r, which is not out; it is ignored",
                outcome.message,
                outcome.recipient,
            )
            return
        self._conclude(out, outcome)

    def _conclude(self, out: Out, outcome: Outcome) -> None:
        """Decide what an outcome makes of its recipient and of its site."""
        now = self._clock()
        news = self._health.judge(out, outcome, now, self._flight.of_site)
        if news is not None:
            self._settler.note_site(news)
        self._settler.add(decision.settle(self._policy, out.message, out.place, outcome, now))

    # -- settling ---------------------------------------------------------------------------

    def _note_settled(self, settlements: Sequence[Settlement]) -> None:
        """Wake the leasing task, if what was settled makes a difference to it."""
        self._progress.set()
        dues = [each.due for each in settlements if each.result.is_queued]
        if dues:
            self._idle_since = None
        is_due = bool(dues) and min(dues) < self._wake_at
        is_short = self._free_seats() - len(settlements) < self._few
        if is_due or is_short or self._is_clogged or self._is_quiet():
            self._work.set()

    def _is_quiet(self) -> bool:
        """Whether nobody is out, and everybody who was is settled."""
        return not self._flight and not self._settler

    def _free_seats(self) -> int:
        if self._is_full():
            return 0
        return self._seats - len(self._flight) - len(self._settler)

    async def _settle_what_is_left(self) -> None:
        """Settle everybody who is out: the engine has ended, or never took them."""
        if self._outcomes is not None:
            with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                while True:
                    self._take(self._outcomes.receive_nowait())
        now = self._clock()
        for out in list(self._flight):
            is_marked = self._flight.is_marked(out)
            self._flight.take(out.message.message.id, out.recipient.address)
            if is_marked:
                self._conclude(out, decision.doubtful(out.message, out.place))
            else:
                self._settler.add(decision.release(out.message, out.place, now))
        await self._settler.finish()

    # -- keeping ----------------------------------------------------------------------------

    async def _keep_leases(self) -> None:
        """Put our deadlines off, and take over what others left."""
        while True:
            await trio.sleep(self._lease_seconds / 4)
            try:
                now = self._clock()
                await self._store.extend(self._owner, deadline=now + self._lease_seconds)
                await self.recover()
            except StoreError as error:
                _log.error("leases cannot be put off: %s", error)

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(self._sweep_seconds)
            try:
                await self._store.sweep(now=self._clock(), remember=self._remember)
            except StoreError as error:
                _log.warning("the store cannot be swept: %s", error)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._progress.is_set():
                self._progress = trio.Event()  # one for all who wait
            await self._progress.wait()
