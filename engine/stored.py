"""An engine with a store: what is submitted is on disk first, and tried until it is done with.

    submit → store → scheduler → engine → outcomes → scheduler → store → whoever reads them

Who was delivered is settled before anybody reads of it: a reader that hangs holds up what would be
leased next, and leaves nobody in doubt.  Made by `Engine(store=…)`.  Not here: what the scheduler
decides, and how the engine delivers.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from engine.errors import EngineClosedError
from engine.outcomes import CLOSED, Outcomes
from engine.queue.decision import Policy
from engine.queue.scheduler import DEFAULT_REMEMBER, DEFAULT_SITE_SEATS, Scheduler
from engine.queue.submission import Submission
from engine.queue.unopened import UnopenedStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from engine.message import Message
    from engine.queue.decision import Settled
    from engine.queue.scheduler import Outcomes as OutcomesLike
    from engine.queue.store import Store


def unique_name() -> str:
    """Return a name that no other run of anything will ever have; it says where and who for a person."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """How an engine deals with its store.

    Attributes:
        policy: When to try again, and what becomes of who may have been delivered.
        on_settled: Told of outcomes and what they make of their recipients, before the store is,
            in place of whoever reads the engine's outcomes.  An `OSError` is taken for a lack that
            passes, and the same is told again later.
        owner: Names this run of this program at the store; no other run may ever bear its name.
        dead: Owners that are known to be gone although their leases still hold.  What owners
            without a name here have left is taken over when their leases run out.
        site_seats: Recipients of one site that may be in work at a time.
        remember: For how long ids are known after their messages are done with, in seconds.
        only_final: Whether the engine's outcomes are only those with which recipients leave the queue.
    """

    policy: Policy = field(default_factory=Policy)
    on_settled: Callable[[Sequence[Settled]], Awaitable[None]] | None = None
    owner: str = field(default_factory=unique_name)
    dead: Sequence[str] = ()
    site_seats: int = DEFAULT_SITE_SEATS
    remember: float = DEFAULT_REMEMBER
    only_final: bool = False


class _Unread:
    """How many outcomes wait to be read; with too many nothing more is leased."""

    def __init__(self, limit: int, on_room: Callable[[], None]) -> None:
        self._limit = limit
        self._on_room = on_room
        self._count = 0

    def is_full(self) -> bool:
        return self._count >= self._limit

    def add(self, count: int) -> None:
        self._count += count

    def give_back(self, count: int = 1) -> None:
        was_full = self.is_full()
        self._count -= count
        if was_full and not self.is_full():
            self._on_room()


class Stored:
    """The store's side of an engine; see the head of the module.

    Attributes:
        scheduler: Leases, hands over and settles.
        outcomes: What became of each attempt, where `QueueOptions.on_settled` is not told.
    """

    def __init__(
        self,
        store: Store,
        options: QueueOptions,
        *,
        seats: int,
        clock: Callable[[], float] = time.time,
        rng: Random | None = None,
    ) -> None:
        """Make it; its block is around the engine's.

        Args:
            store: Where the queue is.
            options: How it is dealt with.
            seats: Recipients in work at a time; with as many outcomes that wait to be read nothing
                more is leased.
            clock: Wall clock, seconds since the epoch.
            rng: For the jitter of pauses of sites.
        """
        self._store = store
        self._options = options
        self._clock = clock
        self._unread = _Unread(seats, self._look_again)
        self.outcomes = Outcomes(self._unread)
        self._is_draining = False
        self._is_over = trio.Event()
        self.scheduler = Scheduler(
            store,
            owner=options.owner,
            policy=options.policy,
            seats=seats,
            site_seats=options.site_seats,
            on_settled=options.on_settled,
            on_kept=self._put if options.on_settled is None else None,
            is_full=self._unread.is_full,
            remember=options.remember,
            clock=clock,
            rng=rng,
        )

    def opened(self) -> AbstractAsyncContextManager[object]:
        """Return the block around all the others: it opens a store that is still to be opened.

        What is a store already is left to whoever opened it.

        Raises:
            RuntimeError: From the block: somebody else has entered it.
            StoreError: From the block: the store cannot be opened.
        """
        return self._store if isinstance(self._store, UnopenedStore) else nullcontext()

    async def submit(self, message: Message) -> str:
        """Put a message in the store; it is on disk when this returns.

        Cancelled, it may be there all the same; submitting it again under its id is harmless.

        Returns:
            The message's id, a new one where it has none.

        Raises:
            EngineClosedError: The engine is draining or closed.
            SubmitError: It cannot be kept; the text says why.
            StoreError: It was not taken.
        """
        if self._is_draining:
            raise EngineClosedError(CLOSED)
        if not message.id:
            message = message.with_id(uuid.uuid4().hex)
        await self._store.submit([Submission(message=message, submitted_at=self._clock())])
        return message.id

    async def recover(self) -> None:
        """Take over what earlier runs have left.

        Raises:
            StoreError: It did not happen.
        """
        await self.scheduler.recover(dead=self._options.dead)

    async def run(
        self, deliver: Callable[[Message], Awaitable[object]], outcomes: OutcomesLike
    ) -> None:
        """Deliver what is due until drained; the engine's task."""
        try:
            await self.scheduler.run(deliver, outcomes)
        finally:
            self._is_over.set()

    async def drain(self) -> None:
        """Take nothing more and begin nothing more; wait until all that was begun is settled."""
        self._is_draining = True
        self.scheduler.drain()
        await self._is_over.wait()

    def close(self) -> None:
        """The engine has ended, and takes nothing more."""
        self._is_draining = True

    def _put(self, batch: Sequence[Settled]) -> None:
        told = [each for each in batch if each.is_final or not self._options.only_final]
        self._unread.add(len(told))
        for settled in told:
            self.outcomes.put(settled.outcome)

    def _look_again(self) -> None:
        self.scheduler.look_again()
