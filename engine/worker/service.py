"""One worker process at its store: from the lock to the last settlement.

    lock → store, hints → control socket → shift (engine, scheduler, bounces) → "ready"
    TERM → the shift drains → socket, store and lock go, in that order

Called by `engine.worker.start` with a configuration that was read.

Theory of reloading

A new configuration is a new shift on the same store.  First it is read, and an engine made of it; if
that fails the old one stays in force.  Then the old shift leases nothing more.  The new one begins when
all that the old one had in flight is settled, or after a few seconds, for one slow host must not
stop the mail to all others; what the old one still has is leased to it, so nobody else tries it.
Limits of a site may be exceeded by just these stragglers, for `drain_timeout` at most.  No mail can be
lost on the way: it is in the store all the time.

What is opened once cannot change: the store, the socket, the hints and the number of processes.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import trio

from engine.errors import EngineError
from engine.nursery import tasks_beside
from engine.queue.errors import StoreDamagedError, StoreError
from engine.queue.sql_submit import DEFAULT_RESERVE_OCTETS
from engine.queue.sqlite import open_store
from engine.units import timestamp
from engine.worker.given import open_state
from engine.worker.lock import hold_lock
from engine.worker.refusals import explain_refusal
from engine.worker.removal_log import RemovalLog, lock_of
from engine.worker.share import Share, files_of, share_config
from engine.worker.shift import Shift
from engine.worker.signals import heed_signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from engine.hints import Hints
    from engine.queue.store import Store
    from engine.worker.config import Config
    from engine.worker.desk import Desk
    from engine.worker.notify import Notifier
    from engine.worker.process_log import ProcessLog

#: How long a new configuration waits for what is in flight under the old one, in seconds.
HANDOVER_SECONDS: Final = 5.0
#: How often it is seen whether anything is left to do, in seconds.
_LOOK_SECONDS: Final = 1.0
#: Between two tries of what did not work, at first and at most.
_PAUSE: Final = 0.1
_LAST_PAUSE: Final = 30.0

#: What became of recipients, as `Shift.report` counts them.
_STATUSES: Final = ("delivered", "deferred", "failed", "unknown")

#: What stays as it is until the worker is started anew.
_FIXED: Final = (
    ("queue", "path"),
    ("worker", "socket"),
    ("worker", "state"),
    ("worker", "processes"),
)

_log = logging.getLogger("engine.worker")


@dataclass(frozen=True, slots=True)
class Manner:
    """How a worker runs.

    Attributes:
        read_config: Reads the configuration anew; it blocks, and raises as `load_config` does.
        share: Which process of how many.
        until_empty: Whether it ends when nothing is left to do; what is held does not count.
        patience: Seconds to wait for another worker to leave the store.
        clock: Wall clock, seconds since the epoch.
    """

    read_config: Callable[[], Config]
    share: Share = field(default_factory=Share)
    until_empty: bool = False
    patience: float = 0.0
    clock: Callable[[], float] = time.time


class Service:
    """A worker process; `run` is its life.  Signals, or whoever owns it, steer it."""

    def __init__(
        self,
        config: Config,
        manner: Manner,
        log: ProcessLog,
        notifier: Notifier,
        on_ready: Callable[[str], None],
    ) -> None:
        """Prepare a worker.

        Args:
            config: What it begins with.
            manner: How it runs.
            log: Where its lines go.
            notifier: Who is told how it is.
            on_ready: Called with one line when it works for the first time.
        """
        self._config = config
        self._began_with = config
        self._manner = manner
        self._log = log
        self._notifier = notifier
        self._on_ready = on_ready
        self._files = files_of(config, manner.share.number)
        self._began = manner.clock()
        self._shifts: list[Shift] = []
        self._desk: Desk | None = None
        self._removals: RemovalLog | None = None
        self._ending = trio.Event()
        self._is_stopping = False
        self._is_reload_wanted = False
        self._is_reloading = False
        self._news = trio.Event()
        self._question = trio.Event()
        self._damage: StoreDamagedError | None = None

    async def run(self) -> None:
        """Work until told to end, or until nothing is left where that was asked for.

        Raises:
            LockedError: Another worker is at the store.
            ConfigError: The configuration cannot be used.
            StoreError: The store cannot be opened, or what is left in it not taken over; or it is
                damaged, where nothing else is left to do.
            OSError: A file cannot be made.
        """
        files = self._files
        async with tasks_beside() as signals:
            # Around everything: a signal that comes late must not cut the end short.
            await signals.start(heed_signals, self)
            # Nothing runs yet that waiting for it could hold up.
            with hold_lock(files.store, patience=self._manner.patience):
                async with (
                    open_store(files.store, clock=self._manner.clock) as store,
                    open_state(str(files.state)) as hints,
                ):
                    await self._serve(store, hints)
        _log.info("ended")

    async def _serve(self, store: Store, hints: Hints | None) -> None:
        from engine.worker.control_server import serve_control
        from engine.worker.desk import Desk

        # The lock says that nobody else is here: whoever holds leases is gone.
        dead = [owner.name for owner in await store.owners()]
        shift = self._make_shift(self._config, store, hints, dead=dead)
        removals = self._removals = RemovalLog(store, shift.outcomes, lock_of(self._files.store))
        desk = self._desk = Desk(
            store,
            clock=self._manner.clock,
            status=self.status,
            on_removed=removals.flush,
            max_message_octets=self._config.queue.max_message_octets,
        )
        async with tasks_beside() as beside:
            await beside.start(serve_control, self._files.socket, desk)
            async with tasks_beside() as shifts:
                await self._begin(shift, shifts)
                beside.start_soon(self._notifier.keep_alive, _answering(store))
                beside.start_soon(removals.run)
                beside.start_soon(self._tell_when_asked, store)
                if self._manner.until_empty:
                    beside.start_soon(self._end_when_empty, store)
                self._say_ready()
                self._on_ready(self._description())
                await self._lead(store, hints, shifts)
            await removals.flush()
            await removals.outcomes.close()
        if self._damage is not None:
            raise self._damage

    # -- being steered ----------------------------------------------------------------------

    def drain(self) -> None:
        """Finish what is in flight, and end."""
        count = sum(shift.scheduler.tally().out for shift in self._shifts)
        _log.info("ending: finishing %d in flight, beginning no more; again: at once", count)
        self._end()

    def stop(self) -> None:
        """End at once."""
        _log.info("ending at once")
        self._is_stopping = True
        self._end()
        for shift in self._shifts:
            shift.stop()

    def reload(self) -> None:
        """Read the configuration again, and open logs anew."""
        self._is_reload_wanted = True
        self._news.set()

    def tell(self) -> None:
        """Say in the log how much is there, and what was done so far."""
        self._question.set()

    def _end(self) -> None:
        if not self._is_ending:
            self._notifier.stopping("finishing what is in flight")
        self._ending.set()
        self._news.set()

    @property
    def _is_ending(self) -> bool:
        return self._ending.is_set()

    def status(self) -> Mapping[str, object]:
        """Return what a worker has to say of itself, in values of JSON."""
        state = "ending" if self._is_ending else "working"
        now = self._manner.clock()
        facts: dict[str, object] = {
            "version": version("delivery-engine"),
            "pid": os.getpid(),
            "process": str(self._manner.share),
            "state": "reloading" if self._is_reloading and not self._is_ending else state,
            "since": timestamp(self._began),
            "seconds": round(now - self._began, 3),
            "store": str(self._files.store),
            "outcomes": str(self._files.outcomes),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
        }
        if self._shifts:
            facts |= self._shifts[-1].report()
            facts["stragglers"] = sum(s.scheduler.tally().out for s in self._shifts[:-1])
        if problem := _full_disk(self._files.store):
            facts |= {"healthy": False, "problem": problem}
        return facts

    async def _tell_when_asked(self, store: Store) -> None:
        while True:
            await self._question.wait()
            self._question = trio.Event()
            try:
                counts = await store.counts(now=self._manner.clock())
            except StoreError as error:
                there = f"the store cannot be counted: {error}"
            else:
                there = (
                    f"{counts.queued} queued ({counts.due} due), {counts.leased} leased, "
                    f"{counts.held} held, {counts.ended} to be reported on"
                )
            facts = self.status()
            done = ", ".join(f"{facts[name]} {name}" for name in _STATUSES)
            _log.info(
                "%s: %s; %s connections; so far %s",
                facts["state"],
                there,
                facts["connections"],
                done,
            )

    def _description(self) -> str:
        return f"pid {os.getpid()}, store {self._files.store}, socket {self._files.socket}"

    def _say_ready(self) -> None:
        self._notifier.ready(f"working at {self._files.store}")

    # -- shifts -----------------------------------------------------------------------------

    async def _lead(self, store: Store, hints: Hints | None, shifts: trio.Nursery) -> None:
        """Do what was asked for, until that is to end; then wait for all shifts."""
        while not self._is_ending:
            if self._is_reload_wanted:
                self._is_reload_wanted = False
                await self._reload(store, hints, shifts)
                continue
            self._news = trio.Event()
            await self._news.wait()
        for shift in self._shifts:
            shift.end()
        for shift in list(self._shifts):
            await shift.is_over.wait()

    def _make_shift(
        self, config: Config, store: Store, hints: Hints | None, *, dead: Sequence[str] = ()
    ) -> Shift:
        config = share_config(config, self._manner.share)
        return Shift(config, store, hints, self._log, dead=dead, clock=self._manner.clock)

    async def _begin(self, shift: Shift, shifts: trio.Nursery) -> None:
        await shifts.start(shift.run, name="shift")
        self._shifts = [each for each in self._shifts if not each.is_over.is_set()]
        self._shifts.append(shift)
        if self._removals is not None:
            self._removals.outcomes = shift.outcomes
        if self._is_stopping:
            shift.stop()

    async def _reload(self, store: Store, hints: Hints | None, shifts: trio.Nursery) -> None:
        """Put a new configuration in force, or say why not."""
        self._notifier.reloading()
        self._is_reloading = True

        def make(config: Config) -> Shift:
            return self._make_shift(config, store, hints)

        for shift in self._shifts:
            await shift.outcomes.close()
        try:
            config = await trio.to_thread.run_sync(self._manner.read_config)
            shift = make(config)
        except (EngineError, OSError) as error:
            _refuse(error)
        else:
            await self._hand_over(config, shift, make, shifts)
        self._is_reloading = False
        if not self._is_ending:
            self._say_ready()

    async def _hand_over(
        self, config: Config, shift: Shift, make: Callable[[Config], Shift], shifts: trio.Nursery
    ) -> None:
        """End the shift that works and begin another: with the old configuration, if need be."""
        old, pause = self._shifts[-1], 0.0
        old.end()
        with trio.move_on_after(HANDOVER_SECONDS):
            await old.is_over.wait()
        while not self._is_ending:
            try:
                await self._begin(shift, shifts)
            except (EngineError, OSError) as error:
                if config is not self._config and not isinstance(error, StoreError):
                    _refuse(error)
                    config = self._config
                else:
                    # A full disk, most likely: it passes.
                    pause = min(max(2 * pause, _PAUSE), _LAST_PAUSE)
                    _log.error("nothing can be delivered: %s; next try in %.1f s", error, pause)
                    with trio.move_on_after(pause):
                        await self._ending.wait()
                shift = make(config)
                continue
            if config is not self._config:
                self._take_over(config)
            return

    def _take_over(self, config: Config) -> None:
        for section, key in _FIXED:
            before, after = (
                getattr(getattr(each, section), key) for each in (self._began_with, config)
            )
            if before != after:
                _log.warning(
                    "%s.%s stays %r until the worker is started anew: %r is not in force",
                    section,
                    key,
                    before,
                    after,
                )
        self._config = config
        self._log.form = config.worker.log
        if self._desk is not None:
            self._desk.max_message_octets = config.queue.max_message_octets
        _log.info("the new configuration is in force")

    # -- the end ----------------------------------------------------------------------------

    async def _end_when_empty(self, store: Store) -> None:
        while not await self._is_empty(store):
            failure = self._shifts[-1].scheduler.tally().failure
            if isinstance(failure, StoreDamagedError):
                self._damage = failure
            if self._damage is not None:
                # It does not pass, and what is left would be tried for ever.
                self._end()
                return
            await trio.sleep(_PAUSE)
        _log.info("nothing is left to do")
        self._end()

    async def _is_empty(self, store: Store) -> bool:
        with trio.move_on_after(_LOOK_SECONDS) as look:
            # It may be that of a shift that ends, and then never becomes empty.
            await self._shifts[-1].scheduler.wait_empty()
        if look.cancelled_caught:
            return False
        try:
            counts = await store.counts(now=self._manner.clock())
        except StoreDamagedError as error:
            self._damage = error
            return False
        except StoreError as error:
            _log.error("the store cannot be counted: %s", error)
            return False
        return not (counts.queued or counts.leased or counts.ended)


def _full_disk(store: Path) -> str | None:
    """Say that the store takes nothing in for lack of room, `None` where it does."""
    try:
        found = os.statvfs(store.parent)
    except OSError:
        return None
    free = found.f_bavail * found.f_frsize
    if free >= DEFAULT_RESERVE_OCTETS:
        return None
    return f"{free} octets are left on its disk; below {DEFAULT_RESERVE_OCTETS} nothing is taken in"


def _refuse(error: EngineError | OSError) -> None:
    _, text = explain_refusal(error)
    for line in text.splitlines():
        _log.error("the new configuration is not taken: %s", line)
    _log.error("the configuration stays as it was")


def _answering(store: Store) -> Callable[[], Awaitable[None]]:
    async def answer() -> None:
        try:
            await store.owners()
        except StoreError:
            # That is an answer; a new process would get no better one.
            return

    return answer
