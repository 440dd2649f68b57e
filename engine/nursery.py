"""Tasks beside a block: how a resource that needs tasks is opened and closed.

Used by every `async with` of ours that runs something in the background.  Not here: a nursery whose
tasks are waited for; that is Trio's own.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def tasks_beside() -> AsyncIterator[trio.Nursery]:
    """Run tasks for the time of a block: they are cancelled with its end, and waited for.

    An exception of the block comes out as it is, for whoever opened a resource expects its own
    errors and no group; one of a task comes out in Trio's group, and cancels the block.

    Raises:
        RuntimeError: Trio does not run here.
    """
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError(
            "this needs Trio, which does not run here; for asyncio there is engine.aio.Engine, and "
            "for plain code engine.blocking.Engine"
        )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # noqa: BLE001 - raised below, without a group around it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
