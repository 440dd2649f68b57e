"""A shift: one engine at work on a store, under one configuration, until it is told to end.

The service has one, and for a moment two while the configuration changes.  Not here: the store, which
outlives it, and when it begins and ends (`engine.worker.service`).
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, Final

import trio

from engine.nursery import tasks_beside
from engine.queue.decision import Policy
from engine.queue.scheduler import DEFAULT_SITE_SEATS
from engine.report.bounce import BounceSettings
from engine.stored import QueueOptions
from engine.worker.outcome_log import OutcomeLog
from engine.worker.setup import make_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.hints import Hints
    from engine.queue.scheduler import Scheduler
    from engine.queue.store import Store
    from engine.worker.config import Config
    from engine.worker.process_log import ProcessLog

_CLOSE_SECONDS: Final = 1.0
#: Sixteen of them on their way over it at most, as many waiting for that, and as many being settled:
#: else connections would go idle whenever the store is at work.
_FOR_EACH_CONNECTION: Final = 48


class Shift:
    """See the head of the module.

    Attributes:
        engine: Delivers what is in the store.
        outcomes: Where outcomes are logged.
        is_over: Set when all it had begun is settled.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        hints: Hints | None,
        log: ProcessLog,
        *,
        dead: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare a shift; nothing happens before `run`.

        Args:
            config: What holds for it, limits divided among processes already.
            store: Where mail is.
            hints: What is known of hosts.
            log: Where the engine's complaints go.
            dead: Owners of leases that are known to be gone.
            clock: Wall clock, seconds since the epoch.

        Raises:
            ConfigError: It cannot be used.
        """
        from engine.bounces import Bouncer

        self._drain_timeout = config.worker.drain_timeout
        self._told_to_end = trio.Event()
        self.is_over = trio.Event()
        self.outcomes = OutcomeLog(
            config.folder / config.worker.outcomes,
            has_transcripts=config.worker.transcripts,
            clock=clock,
        )
        self._bouncer = Bouncer(
            store,
            bounce_settings(config),
            bounce=config.queue.bounce,
            on_event=self._note_report,
            rules=config.retry,
            clock=clock,
        )
        policy = Policy(
            rules=config.retry,
            unknown=config.queue.unknown_policy,
            wants_report=self._bouncer.wants_report,
        )
        queue = QueueOptions(
            policy=policy,
            on_settled=self.outcomes.note,
            dead=dead,
            site_seats=site_seats(config),
            remember=config.queue.remember,
        )
        self.engine = make_engine(
            config,
            config.routes,
            hints,
            transcripts=config.worker.transcripts,
            store=store,
            queue=queue,
        )
        log.watch(self.engine)

    @property
    def scheduler(self) -> Scheduler:
        """What works the store."""
        assert self.engine.scheduler is not None
        return self.engine.scheduler

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until told to end, then finish what was begun.

        Cancelled, it stops at once; what it had leased is settled all the same.

        Args:
            task_status: Started when it delivers.

        Raises:
            ConfigError: A file that the settings name cannot be used.
            OSError: Outcomes cannot be logged.
            StoreError: What earlier runs left could not be taken over.
        """
        try:
            await self.outcomes.open()
            async with self.engine:
                # Reports wait for the next shift from its end on: two would send them twice.
                async with tasks_beside() as beside:
                    beside.start_soon(self._bouncer.run, name="bounces")
                    task_status.started()
                    await self._told_to_end.wait()
                await self.engine.drain(self._drain_timeout)
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self.outcomes.close()
            self.is_over.set()

    def end(self) -> None:
        """Begin nothing more, and end when what is in flight is done, or its time is over."""
        self._told_to_end.set()

    def stop(self) -> None:
        """End at once."""
        self._told_to_end.set()
        self.engine.cancel()

    async def _note_report(self, record: Mapping[str, Any]) -> None:
        await self.outcomes.write([record])

    def report(self) -> Mapping[str, object]:
        """Return its numbers of this moment, as JSON has them."""
        tally, numbers = self.scheduler.tally(), self.engine.statistics()
        return {
            "healthy": tally.failure is None,
            "problem": None if tally.failure is None else str(tally.failure),
            "in_flight": tally.out,
            "unsettled": tally.unsettled,
            "leased": tally.leased,
            "settled": tally.settled,
            "lost": tally.lost,
            "delivered": numbers.delivered,
            "deferred": numbers.deferred,
            "failed": numbers.failed,
            "unknown": numbers.unknown,
            "connections": numbers.connections_open,
            "connections_opened": numbers.connections_opened,
            "connections_failed": numbers.connections_failed,
            "sites": len(numbers.sites),
        }


def site_seats(config: Config) -> int:
    """Return how many recipients of one site may be in work: some for each connection it may have."""
    table = config.table
    paths = [(), *((index,) for index in range(len(table.rules)))]
    most = max(table.settings(path).max_connections for path in paths)
    return max(DEFAULT_SITE_SEATS, min(most * _FOR_EACH_CONNECTION, config.worker.seats))


def bounce_settings(config: Config) -> BounceSettings:
    """Return who reports to senders, and how."""
    queue = config.queue
    for name in (queue.bounce_name, config.table.defaults.helo_name, socket.gethostname()):
        try:
            return BounceSettings(
                name or "",
                queue.bounce_from or "",
                max_content_octets=queue.return_octets,
                warn_after=queue.warn_after,
            )
        except ValueError:
            # The host's own name may be anything.
            continue
    return BounceSettings(
        "localhost",
        queue.bounce_from or "",
        max_content_octets=queue.return_octets,
        warn_after=queue.warn_after,
    )
