"""The last lines of recipients that a person took out of the queue, for the log of outcomes.

No attempt ends who is cancelled or purged, so the store keeps in mind who was, until that is logged:
by the worker, or by the command where none runs; by one process at a time, for commands may run side
by side.  Lines are written before the store forgets them: a crash in between is a line twice, never
none.
Not here: what taking out does (`engine.queue.store`), and how lines are written
(`engine.worker.outcome_log`).
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import trio

from engine.queue.decision import removed
from engine.queue.errors import StoreBusyError, StoreError
from engine.units import timestamp
from engine.worker.lock import LockedError, hold_lock

if TYPE_CHECKING:
    from pathlib import Path

    from engine.queue.store import Store
    from engine.queue.values import Removal
    from engine.worker.outcome_log import OutcomeLog

#: Lines at a time.
_AT_ONCE: Final = 500
#: Who was at work when he was cancelled leaves when his attempt is settled: looked for so often, in
#: seconds.
_LOOK_SECONDS: Final = 10.0
#: How long to wait for another process that does the same, in seconds.
_PATIENCE: Final = 5.0

_log = logging.getLogger("engine.worker")


def lock_of(store: Path) -> Path:
    """Return what to lock for the removals of a store, as `engine.worker.lock` has it."""
    return store.with_name(f"{store.name}.removals")


def removal_record(removal: Removal, *, has_transcript: bool = False) -> dict[str, Any]:
    """Return what is logged of a removal; arguments as in `outcome_log.outcome_record`."""
    outcome = removed(removal)
    record = {
        "time": timestamp(removal.at),
        **outcome.as_dict(),
        "attempt": removal.attempts,
        "final": True,
        "next_attempt": None,
        "decision": outcome.text,
    }
    if has_transcript:
        record["transcript"] = None
    return record


class RemovalLog:
    """Moves removals from one store to the log; may be asked by several tasks at a time.

    Attributes:
        outcomes: The log; it can be replaced at any time.
    """

    def __init__(self, store: Store, outcomes: OutcomeLog, file: Path) -> None:
        """Take a store and the log; whoever opened them closes them.

        Args:
            store: Has the removals.
            outcomes: The log.
            file: What processes at one store lock, see `lock_of`.
        """
        self.outcomes = outcomes
        self._store = store
        self._file = file
        self._lock = trio.Lock()

    async def flush(self) -> None:
        """Log all that there are; what goes wrong is said in the worker's log, and tried again later."""
        async with self._lock:
            try:
                if await self._store.removals(limit=1):
                    await self._move()
            except (StoreError, OSError) as error:
                _log.error(
                    "who was cancelled or purged cannot be noted in the log of outcomes yet: %s",
                    error,
                )

    async def _move(self) -> None:
        with ExitStack() as stack:
            lock = hold_lock(self._file, patience=_PATIENCE)
            try:
                await trio.to_thread.run_sync(stack.enter_context, lock)
            except LockedError:
                text = f"another process has been at that for {_PATIENCE:g} s"
                raise StoreBusyError(text) from None
            while removals := await self._store.removals(limit=_AT_ONCE):
                outcomes = self.outcomes
                await outcomes.write(
                    removal_record(each, has_transcript=outcomes.has_transcripts)
                    for each in removals
                )
                await self._store.forget_removals([each.number for each in removals])

    async def run(self) -> None:
        """Log what comes, until cancelled."""
        while True:
            await self.flush()
            await trio.sleep(_LOOK_SECONDS)
