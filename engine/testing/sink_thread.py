"""The sink of `engine.testing.sink` for tests that are not in Trio: it runs in a thread of its own.

Not here: what the sink does.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from engine.testing.sink import open_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.testing.sink import Sink


@contextmanager
def sink_in_thread(**options: Any) -> Iterator[Sink]:
    """Run a sink for the time of a block; when it is left, open connections are broken off.

    Of what it yields, `messages` and `statistics()` may be read in any thread.

    Args:
        **options: As for `open_sink`; its errors are raised here.
    """
    over = trio.Event()
    started: Future[tuple[Sink, trio.lowlevel.TrioToken]] = Future()

    async def serve() -> None:
        async with open_sink(**options) as sink:
            started.set_result((sink, trio.lowlevel.current_trio_token()))
            await over.wait()

    def run() -> None:
        try:
            trio.run(serve)
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="sink", daemon=True)
    thread.start()
    sink, token = started.result()
    try:
        yield sink
    finally:
        token.run_sync_soon(over.set)
        thread.join()
