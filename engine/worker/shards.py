"""The queues of a configuration: for each process its running worker, or its file where none runs.

Used by all commands that submit, look or steer.  A worker that starts, ends or dies in between is
no matter: what was asked is asked again, of the worker or of the file, and to submit again is
harmless.  Not here: what a queue can be asked (`engine.worker.desk`).
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar
from zlib import crc32

import trio

from engine.nursery import tasks_beside
from engine.queue.errors import StoreUnusableError
from engine.queue.submission import Accepted
from engine.queue.values import EVERYBODY
from engine.worker.control_client import ControlClient, ControlLostError, open_control
from engine.worker.desk import Asked, Desk, Refused
from engine.worker.lock import lock_file
from engine.worker.outcome_log import OutcomeLog
from engine.worker.removal_log import RemovalLog, lock_of
from engine.worker.sections import shard_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from engine.queue.entries import Counts, Entry, Page
    from engine.queue.store import Store
    from engine.queue.submission import Submission
    from engine.queue.values import Action, Selection
    from engine.worker.config import Config
    from engine.worker.desk import Answer, Status

#: What files are opened for where no worker runs: `submit` makes those that are not there.
Purpose: TypeAlias = Literal["submit", "look", "steer"]

#: How often what a worker left unanswered is asked again.
_ATTEMPTS: Final = 5
#: Before that, in seconds: a worker that is told to end lets go of its socket first.
_PAUSE: Final = 0.2
#: Entries of one page.
_PAGE: Final = 500

_R = TypeVar("_R")


def shard_of(domain: str, processes: int) -> int:
    """Return the process that delivers to a routing domain, from 1."""
    return crc32(domain.lower().encode()) % processes + 1


def divide(submission: Submission, processes: int) -> dict[int, Submission]:
    """Divide a submission among processes: each gets the recipients that are its own."""
    if processes == 1:
        return {1: submission}
    message = submission.message
    parts: dict[int, list[int]] = {}
    for index, recipient in enumerate(message.recipients):
        number = shard_of(recipient.mailbox.routing_domain, processes)
        parts.setdefault(number, []).append(index)
    if len(parts) == 1:
        return dict.fromkeys(parts, submission)
    return {
        number: replace(
            submission,
            message=replace(
                message, recipients=tuple(message.recipients[index] for index in indexes)
            ),
        )
        for number, indexes in parts.items()
    }


class Shard(Asked):
    """The queue of one process; methods are described in `Asked`.

    Attributes:
        number: The process, from 1.
        file: Its store.
        socket: Where its worker listens.
    """

    def __init__(
        self,
        number: int,
        file: Path,
        socket: Path,
        *,
        purpose: Purpose,
        outcomes: OutcomeLog,
        max_message_octets: int,
        nursery: trio.Nursery,
    ) -> None:
        self.number = number
        self.file = file
        self.socket = socket
        self._purpose = purpose
        self._outcomes = outcomes
        self._max_message_octets = max_message_octets
        # Tasks that keep what was opened open.
        self._nursery = nursery
        self._opening = trio.Lock()
        self._asked: Asked | None = None
        self._lost: trio.Event | None = None

    async def is_running(self) -> bool:
        """Whether its worker runs."""
        return isinstance(await self._open(), ControlClient)

    async def submit(self, submissions: Sequence[Submission]) -> tuple[Answer, ...]:
        """Take messages."""
        return await self._ask(lambda asked: asked.submit(submissions))

    async def entries(
        self, selection: Selection = EVERYBODY, *, after: int = 0, limit: int = 100
    ) -> Page:
        """List recipients."""
        return await self._ask(lambda asked: asked.entries(selection, after=after, limit=limit))

    async def apply(self, action: Action, selection: Selection, reason: str = "") -> int:
        """Do something to all that is selected; asked again, those done before do not count."""
        return await self._ask(lambda asked: asked.apply(action, selection, reason))

    async def set_weight(self, tenant: str, weight: float, job: str | None = None) -> None:
        """Say how large a share a tenant, or a job of its, gets."""
        await self._ask(lambda asked: asked.set_weight(tenant, weight, job))

    async def counts(self) -> Counts:
        """Count what is there."""
        return await self._ask(lambda asked: asked.counts())

    async def status(self) -> Status:
        """Say how the queue is doing."""
        return await self._ask(lambda asked: asked.status())

    async def _ask(self, ask: Callable[[Asked], Awaitable[_R]]) -> _R:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await ask(await self._open())
            except ControlLostError:
                await trio.sleep(_PAUSE)
        return await ask(await self._open())

    # -- what is open -----------------------------------------------------------------------

    async def _open(self) -> Asked:
        async with self._opening:
            if self._asked is None or (self._lost is not None and self._lost.is_set()):
                self._asked = await self._nursery.start(self._keep)
            return self._asked

    async def _keep(self, task_status: trio.TaskStatus[Asked]) -> None:
        """Keep the worker's desk, or one of our own, for as long as it can be asked."""
        try:
            async with open_control(self.socket) as client:
                self._lost = client.lost
                task_status.started(client)
                await client.lost.wait()
        except (FileNotFoundError, ConnectionRefusedError):
            # Nobody runs: there is only the file.
            self._lost = None
            async with self._open_file() as desk:
                task_status.started(desk)
                await trio.sleep_forever()
        except OSError as error:
            raise StoreUnusableError(
                f"{self.socket}: {error.strerror or error}; "
                "allowed are the user of the worker, and root"
            ) from None

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[Desk]:
        if self._purpose != "submit" and not await trio.Path(self.file).exists():
            # Nothing was ever submitted.
            from engine.queue.memory import MemoryStore

            yield Desk(MemoryStore())
            return
        if self._purpose == "submit":
            await trio.to_thread.run_sync(_give_to_owner, self.file, self.file.parent, 0o600)
        async with AsyncExitStack() as stack:
            store = await self._open_store(stack)
            lock = lock_of(self.file)
            removals = RemovalLog(store, self._outcomes, lock)

            async def log_removals() -> None:
                for file, mode in ((self._outcomes.path, 0o640), (lock_file(lock), 0o600)):
                    await trio.to_thread.run_sync(_give_to_owner, file, self.file, mode)
                await removals.flush()
                await self._outcomes.close()

            yield Desk(store, on_removed=log_removals, max_message_octets=self._max_message_octets)

    async def _open_store(self, stack: AsyncExitStack) -> Store:
        from engine.queue.sqlite import open_store

        return await stack.enter_async_context(
            open_store(self.file, is_read_only=self._purpose == "look")
        )


def _give_to_owner(file: Path, of: Path, mode: int) -> None:
    """Make a file that is not there for the owner of another, where root is here first.

    Else the worker, which runs as somebody else, could not open it.  SQLite gives what it makes
    beside a file the file's owner.

    Args:
        file: The file.
        of: Whose owner gets it; for a store that of its folder.
        mode: What is permitted.
    """
    if os.geteuid() != 0:
        return
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError:
        # It is there, or whoever opens it says what is wrong.
        return
    try:
        owner = of.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)


class Shards:
    """The queues of all processes of a configuration; made by `open_shards`."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)

    async def submit(self, submissions: Sequence[Submission]) -> tuple[Answer, ...]:
        """Take messages, each where its recipients are delivered; as `Asked.submit`.

        A message of several processes is accepted when all have it; it is harmless to submit it
        again when only some have.
        """
        if len(self.shards) == 1:
            return await self.shards[0].submit(submissions)
        parts: dict[int, list[tuple[int, Submission]]] = {}
        for index, submission in enumerate(submissions):
            for number, part in divide(submission, len(self.shards)).items():
                parts.setdefault(number, []).append((index, part))
        answers: list[list[Answer]] = [[] for _ in submissions]
        errors: list[Exception] = []

        async def ask(number: int) -> None:
            mine = parts[number]
            try:
                found = await self.shards[number - 1].submit([part for _, part in mine])
            except Exception as error:  # noqa: BLE001 - raised below, without a group around it
                errors.append(error)
                return
            for (index, _), answer in zip(mine, found, strict=True):
                answers[index].append(answer)

        async with trio.open_nursery() as nursery:
            for number in parts:
                nursery.start_soon(ask, number)
        if errors:
            raise errors[0]
        return tuple(map(_together, answers))

    async def entries(self, selection: Selection = EVERYBODY) -> AsyncGenerator[Entry, None]:
        """Yield recipients, process by process; read it within `contextlib.aclosing`."""
        for shard in self.shards:
            after: int | None = 0
            while after is not None:
                page = await shard.entries(selection, after=after, limit=_PAGE)
                for entry in page.entries:
                    yield entry
                after = page.next

    async def apply(self, action: Action, selection: Selection, reason: str = "") -> int:
        """Do something to all that is selected; return to how many recipients it was done."""
        return sum([await shard.apply(action, selection, reason) for shard in self.shards])

    async def set_weight(self, tenant: str, weight: float, job: str | None = None) -> None:
        """Say how large a share a tenant, or a job of its, gets."""
        for shard in self.shards:
            await shard.set_weight(tenant, weight, job)


def _together(answers: Sequence[Answer]) -> Answer:
    for answer in answers:
        if isinstance(answer, Refused):
            return answer
    is_new = any(isinstance(answer, Accepted) and answer.is_new for answer in answers)
    return Accepted(answers[0].id, is_new)


@asynccontextmanager
async def open_shards(config: Config, purpose: Purpose) -> AsyncIterator[Shards]:
    """Talk to the queues of a configuration, for one `async with` block.

    Nothing is opened before it is asked something.

    Args:
        config: Says where they are, and how many.
        purpose: What files are opened for, where no worker runs.
    """
    worker = config.worker
    outcomes = OutcomeLog(config.folder / worker.outcomes, has_transcripts=worker.transcripts)
    async with tasks_beside() as nursery:
        yield Shards(
            [
                Shard(
                    number,
                    shard_file(config.folder, config.queue.path, number),
                    shard_file(config.folder, worker.socket, number),
                    purpose=purpose,
                    outcomes=outcomes,
                    max_message_octets=config.queue.max_message_octets,
                    nursery=nursery,
                )
                for number in range(1, worker.processes + 1)
            ]
        )
