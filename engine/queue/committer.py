"""Group commit: one thread that does the work of many tasks, and writes to the disk once for all.

Used by `engine.queue.sqlite`.  A task hands in an operation and waits; the thread takes all that
have gathered, does them in one transaction, and wakes their tasks when it is on disk.  While the
disk is busy with one group the next one gathers, so there is nothing to tune.  Operations of one
kind are done by one call, because what takes a statement for each takes one for all.  Those that
connections stand still for go before the others of their group.

An operation that fails takes nobody along: the group is done again then, each in a savepoint.
"""

from __future__ import annotations

import queue
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio

from engine.nursery import tasks_beside
from engine.queue.database import translate
from engine.queue.errors import StoreClosedError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractContextManager

    from engine.queue.database import Database

#: Tasks whose operations are in the queue or under way; the others wait for them first.
DEFAULT_MAX_WAITING: Final = 2000

_A = TypeVar("_A")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Kind(Generic[_A, _R]):
    """A kind of operation.

    Attributes:
        name: For whoever looks.
        apply: Does all operations of this kind in a group: takes their arguments, and returns for
            each what it is to return, or an exception it is to raise.
        is_read: Whether it changes nothing.
        is_urgent: Whether it is quick, and connections stand still for it: it goes to the disk
            before the rest of its group.
    """

    name: str
    apply: Callable[[Database, Sequence[_A]], Sequence[_R | Exception]]
    is_read: bool = False
    is_urgent: bool = False


def one_by_one(
    name: str, do: Callable[[Database, _A], _R], *, is_read: bool = False
) -> Kind[_A, _R]:
    """Make a kind of operation of which a group gains nothing."""

    def apply(db: Database, arguments: Sequence[_A]) -> list[_R | Exception]:
        return [do(db, argument) for argument in arguments]

    return Kind(name, apply, is_read)


class _Operation:
    """An operation on its way.

    Attributes:
        claim: Taken once: by the thread that does it, or by its task that gave up waiting.
    """

    __slots__ = ("_result", "argument", "claim", "kind", "task")

    def __init__(self, kind: Kind[Any, Any], argument: Any) -> None:
        self.kind = kind
        self.argument = argument
        self.task = trio.lowlevel.current_task()
        self.claim = threading.Lock()
        self._result: Any = StoreError("it was not come to")

    def note(self, result: Any) -> None:
        """Take what it returns, or the exception that it raises."""
        self._result = result

    def finish(self) -> Any:
        """Return or raise that."""
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def withdraw(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        """Give up, if the thread has not begun."""
        is_mine = self.claim.acquire(blocking=False)
        return trio.lowlevel.Abort.SUCCEEDED if is_mine else trio.lowlevel.Abort.FAILED


class Committer:
    """The tasks' side of the thread; made by `open_committer`.

    Attributes:
        path: The file.
        commits: How many transactions there were.
        operations: How many operations they held.
    """

    def __init__(self, open_database: Callable[[], Database], *, max_waiting: int) -> None:
        self.path = Path()
        self.commits = 0
        self.operations = 0
        self._open = open_database
        self._waiting: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._room = trio.Semaphore(max_waiting)
        self._is_closed = False
        self._is_open = trio.Event()
        self._failure: Exception | None = None

    async def do(self, kind: Kind[_A, _R], argument: _A) -> _R:
        """Do an operation; when this returns, what it changed is on disk.

        Cancelled before the thread has begun with it, it does not happen.  From then on it is
        waited for, as long as the disk takes, and its result is returned.

        Raises:
            StoreError: It did not happen.
            Exception: What the operation raises; it did not happen either.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        try:
            if self._is_closed:
                raise StoreClosedError(f"{self.path}: it is closed")
            operation = _Operation(kind, argument)
            self._waiting.put(operation)
            await trio.lowlevel.wait_task_rescheduled(operation.withdraw)
        finally:
            self._room.release()
        result: _R = operation.finish()
        return result

    # -- the thread -------------------------------------------------------------------------

    async def _run(self) -> None:
        token = trio.lowlevel.current_trio_token()
        # Not abandoned when cancelled: `_close` is what ends it, after all that has begun.
        await trio.to_thread.run_sync(self._work, token, limiter=trio.CapacityLimiter(1))

    async def _wait_open(self) -> None:
        await self._is_open.wait()
        if self._failure is not None:
            raise self._failure

    def _close(self) -> None:
        self._is_closed = True
        self._waiting.put(None)

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        try:
            self._db = self._open()
        except Exception as error:  # noqa: BLE001 - handed to whoever opens
            self._failure = error
            return
        else:
            self.path = self._db.path
        finally:
            token.run_sync_soon(self._is_open.set)
        try:
            while (group := self._take()) is not None:
                self._do(group, token)
        finally:
            self._db.close()

    def _take(self) -> list[_Operation] | None:
        """Wait for operations and take all there are; `None`: there will be none any more."""
        taken: list[_Operation] = []
        waiting = self._waiting.get()
        while waiting is not None:
            if waiting.claim.acquire(blocking=False):
                taken.append(waiting)
            try:
                waiting = self._waiting.get_nowait()
            except queue.Empty:
                return taken
        self._waiting.put(None)  # for the next time
        return taken or None

    def _do(self, group: list[_Operation], token: trio.lowlevel.TrioToken) -> None:
        urgent: list[_Operation] = []
        writes: list[_Operation] = []
        reads: list[_Operation] = []
        for each in group:
            kind = each.kind
            (urgent if kind.is_urgent else reads if kind.is_read else writes).append(each)
        # Reading apart: it works on a disk that is full or read only.
        for part, is_read in ((urgent, False), (writes, False), (reads, True)):
            if part:
                try:
                    self._do_together(part, is_read=is_read)
                finally:
                    # Counted before anybody wakes who may look at the count.
                    self.commits += 1
                    self.operations += len(part)
                    token.run_sync_soon(_wake, part)

    def _do_together(self, group: list[_Operation], *, is_read: bool) -> None:
        by_kind: dict[str, list[_Operation]] = {}
        for each in group:
            by_kind.setdefault(each.kind.name, []).append(each)
        has_begun = False
        try:
            with self._transaction(is_read=is_read):
                has_begun = True
                for operations in by_kind.values():
                    arguments = [each.argument for each in operations]
                    results = operations[0].kind.apply(self._db, arguments)
                    for each, result in zip(operations, results, strict=True):
                        each.note(result)
        except Exception as error:  # noqa: BLE001 - handed to whoever asked
            if len(group) == 1 or not has_begun:
                self._fail(group, error)
            else:
                self._do_apart(group, is_read=is_read)

    def _do_apart(self, group: list[_Operation], *, is_read: bool) -> None:
        """Do each operation in a savepoint, so that one that fails is undone alone."""
        try:
            with self._transaction(is_read=is_read):
                for each in group:
                    try:
                        with self._db.apart():
                            (result,) = each.kind.apply(self._db, [each.argument])
                        each.note(result)
                    except Exception as error:
                        self._fail([each], error)
                        if not self._db.in_transaction:
                            raise
        except Exception:  # noqa: BLE001 - the transaction is lost, and with it what was done
            # A disk may have room for the small ones among them still.
            for each in group:
                self._do_together([each], is_read=is_read)

    def _transaction(self, *, is_read: bool) -> AbstractContextManager[None]:
        return self._db.reading() if is_read else self._db.writing()

    def _fail(self, group: Sequence[_Operation], error: Exception) -> None:
        for each in group:
            each.note(translate(error, self._db.path))


def _wake(group: Sequence[_Operation]) -> None:
    for each in group:
        trio.lowlevel.reschedule(each.task)


@asynccontextmanager
async def open_committer(
    open_database: Callable[[], Database], *, max_waiting: int = DEFAULT_MAX_WAITING
) -> AsyncIterator[Committer]:
    """Run a committer beside a block; all that has begun is finished when the block ends.

    Args:
        open_database: Opens the file; called in the thread.
        max_waiting: Operations in the queue or under way; more wait outside.

    Raises:
        StoreError: The file cannot be opened.
    """
    committer = Committer(open_database, max_waiting=max_waiting)
    async with tasks_beside() as nursery:
        try:
            nursery.start_soon(committer._run, name="store")  # noqa: SLF001
            await committer._wait_open()  # noqa: SLF001
            yield committer
        finally:
            committer._close()  # noqa: SLF001
