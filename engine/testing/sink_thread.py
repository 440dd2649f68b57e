"""The sink of `engine.testing.sink` for tests that are not in Trio: it runs in a thread of its own.

Not here: what the sink does, and the thread (`engine.testing.in_thread`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine.testing.in_thread import in_thread
from engine.testing.sink import open_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.testing.sink import Sink


@contextmanager
def sink_in_thread(**options: Any) -> Iterator[Sink]:
    """Run a sink for the time of a block; when it is left, open connections are broken off.

    Of what it yields, `messages` and `statistics()` may be read in any thread.

    Args:
        **options: As for `open_sink`; its errors are raised here, and what `on_message` raises on
            leaving the block.
    """
    with in_thread(open_sink, **options) as sink:
        yield sink
