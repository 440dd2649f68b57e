"""An engine with a store that is done when its queue is empty, not when everybody was tried once.

Used by the demonstration, whose mail goes through a durable queue.  Not here: the queue.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Self

import trio

from engine.engine import Engine
from engine.nursery import tasks_beside
from engine.stored import QueueOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from engine.message import Message
    from engine.outcome import Outcome
    from engine.queue.decision import Policy
    from engine.queue.store import Store
    from engine.report.statistics import Statistics
    from engine.report.stream import EventStream
    from engine.settings import Settings

#: Submissions under way at a time: those that come together are written together.
_AT_ONCE: Final = 100


class PatientEngine:
    """An engine whose block ends, unless there is an error, when nobody is left in its queue.

    Attributes:
        outcomes: The last outcome of each recipient.
        events: What happens inside.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        policy: Policy,
        routes: Sequence[tuple[str, Sequence[str]]] = (),
    ) -> None:
        """Make an engine.

        Args:
            settings: Settings for all hosts.
            store: The queue.
            policy: How outcomes are dealt with.
            routes: Static routes.
        """
        options = QueueOptions(policy=policy, only_final=True)
        self._engine = Engine(settings, routes=routes, store=store, queue=options)
        self.outcomes: trio.abc.ReceiveChannel[Outcome] = self._engine.outcomes
        self.events: EventStream = self._engine.events
        self._running: AbstractAsyncContextManager[None] | None = None
        self._limit = trio.CapacityLimiter(_AT_ONCE)
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._running is not None
        return await self._running.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        async with self._engine:
            async with tasks_beside() as self._nursery:
                yield
                for number in range(_AT_ONCE):  # when all places are free, all is in the store
                    await self._limit.acquire_on_behalf_of(number)
            await self._engine.wait_empty()

    async def submit(self, message: Message) -> None:
        """Take a message; it is in the store before the block ends.

        Waits while many are being written.
        """
        assert self._nursery is not None
        await self._limit.acquire_on_behalf_of(message)
        self._nursery.start_soon(self._submit, message)

    async def _submit(self, message: Message) -> None:
        try:
            await self._engine.submit(message)
        finally:
            self._limit.release_on_behalf_of(message)

    def statistics(self) -> Statistics:
        """Return the numbers of this moment; attempts count, and not recipients."""
        return self._engine.statistics()

    def cancel(self) -> None:
        """Stop at once; what was not delivered stays in the store."""
        self._engine.cancel()
