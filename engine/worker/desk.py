"""What can be asked of the queue of one store.

The running worker serves a `Desk` on its socket (`engine.worker.control_server`); where none runs
the command line makes one on the file itself.  `Asked` is what both, and the other end of the
socket (`engine.worker.control_client`), have in common.  Not here: how any of it is shown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from engine.errors import SubmitError
from engine.queue.submission import Accepted
from engine.queue.values import EVERYBODY, Action
from engine.smtp.errors import ContentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.queue.entries import Backlog, Counts, Page
    from engine.queue.store import Store
    from engine.queue.submission import Submission
    from engine.queue.values import Selection

#: Contents up to this size are taken unless somebody says otherwise.
DEFAULT_MESSAGE_OCTETS: Final = 50 * 1024 * 1024
#: Sites that a status shows.
_SITES: Final = 20


@dataclass(frozen=True, slots=True)
class Refused:
    """A message was not taken, and will not be however often it is submitted.

    Attributes:
        id: Its id.
        text: Why: what was found and what is allowed.
    """

    id: str
    text: str


#: What became of one message of a submission.
Answer: TypeAlias = Accepted | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a queue is doing.

    Attributes:
        counts: How much is there.
        backlog: The sites most recipients wait for, the largest first; whether and why each is
            left alone is in it.
        worker: What the worker says of itself; `None` where none runs.
    """

    counts: Counts
    backlog: tuple[Backlog, ...] = ()
    worker: Mapping[str, object] | None = None


class Asked(Protocol):
    """The queue of one store, near or at the other end of a socket.

    Every method may raise `StoreError`, and then has not happened.
    """

    async def submit(self, submissions: Sequence[Submission]) -> tuple[Answer, ...]:
        """Take messages; those that are accepted are on disk when this returns.

        Each is taken or refused for itself.  After a `StoreError` some may have been taken: to
        submit them all again is harmless.
        """
        ...

    async def entries(
        self, selection: Selection = EVERYBODY, *, after: int = 0, limit: int = 100
    ) -> Page:
        """List recipients; as `Store.entries`."""
        ...

    async def apply(self, action: Action, selection: Selection, reason: str = "") -> int:
        """Do something to all that is selected; return to how many recipients it was done."""
        ...

    async def set_weight(self, tenant: str, weight: float, job: str | None = None) -> None:
        """Say how large a share a tenant, or a job of its, gets; as `Store.set_weight`.

        Raises:
            ValueError: The weight is not above 0, or not finite.
        """
        ...

    async def counts(self) -> Counts:
        """Count what is there."""
        ...

    async def status(self) -> Status:
        """Say how the queue is doing."""
        ...


class Desk(Asked):
    """What can be asked of one open store; methods are described in `Asked`."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
        status: Callable[[], Mapping[str, object]] | None = None,
        on_removed: Callable[[], Awaitable[None]] | None = None,
        max_message_octets: int = DEFAULT_MESSAGE_OCTETS,
    ) -> None:
        """Stand before a store; whoever opened it keeps it open.

        Args:
            store: The store.
            clock: Wall clock, seconds since the epoch.
            status: Says what the worker has to say of itself, in values of JSON; `None` where
                there is no worker.
            on_removed: Told when recipients were cancelled or purged, perhaps none; whoever asked
                for that waits for it.
            max_message_octets: Larger contents are refused.
        """
        self.max_message_octets = max_message_octets
        self._store = store
        self._clock = clock
        self._status = status
        self._on_removed = on_removed

    async def submit(self, submissions: Sequence[Submission]) -> tuple[Answer, ...]:
        """Take messages, together where nothing is wrong with any."""
        answers: dict[int, Answer] = {}
        good: list[int] = []
        for index, submission in enumerate(submissions):
            if (refused := self._too_large(submission)) is not None:
                answers[index] = refused
            else:
                good.append(index)
        if good:
            taken = await self._take([submissions[index] for index in good])
            answers.update(zip(good, taken, strict=True))
        return tuple(answers[index] for index in range(len(submissions)))

    async def entries(
        self, selection: Selection = EVERYBODY, *, after: int = 0, limit: int = 100
    ) -> Page:
        """List recipients."""
        return await self._store.entries(selection, after=after, limit=limit)

    async def apply(self, action: Action, selection: Selection, reason: str = "") -> int:
        """Do something to all that is selected."""
        count = await self._store.apply(action, selection, now=self._clock(), reason=reason)
        if self._on_removed is not None and action in (Action.CANCEL, Action.PURGE):
            await self._on_removed()
        return count

    async def set_weight(self, tenant: str, weight: float, job: str | None = None) -> None:
        """Say how large a share a tenant, or a job of its, gets."""
        await self._store.set_weight(tenant, weight, job=job)

    async def counts(self) -> Counts:
        """Count what is there."""
        return await self._store.counts(now=self._clock())

    async def status(self) -> Status:
        """Say how the queue is doing."""
        now = self._clock()
        return Status(
            counts=await self._store.counts(now=now),
            backlog=await self._store.backlog(now=now, limit=_SITES),
            worker=None if self._status is None else self._status(),
        )

    def _too_large(self, submission: Submission) -> Refused | None:
        octets = submission.message.content.facts.octets
        if octets <= self.max_message_octets:
            return None
        return Refused(submission.message.id, too_large(octets, self.max_message_octets))

    async def _take(self, submissions: Sequence[Submission]) -> Sequence[Answer]:
        try:
            return await self._store.submit(submissions)
        except (SubmitError, ContentError, OSError) as error:
            if len(submissions) == 1:
                return [Refused(submissions[0].message.id, _reason(error))]
        # A store takes all or none, and one that is bad is no reason to refuse its neighbours.
        half = len(submissions) // 2
        return [*await self._take(submissions[:half]), *await self._take(submissions[half:])]


def too_large(octets: int, allowed: int) -> str:
    """Say that a content is too large."""
    return f"a content of {octets:,} octets; allowed are {allowed:,} (max_message_octets)"


def _reason(error: Exception) -> str:
    # The content's file may have gone since it was looked at.
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
