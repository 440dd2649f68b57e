"""A sink for tests that are not in Trio, and what they may leave behind: nothing."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from engine.testing.sink import open_sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.outcome import Outcome
    from engine.testing.sink import Sink


@contextmanager
def sink_in_thread(**options: object) -> Iterator[Sink]:
    """Run a sink in a thread of its own for the time of a block."""
    found: list[Sink] = []
    ready, over = threading.Event(), trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        async with open_sink(**options) as sink:
            found.append(sink)
            tokens.append(trio.lowlevel.current_trio_token())
            ready.set()
            await over.wait()

    thread = threading.Thread(target=trio.run, args=(serve,), name="sink")
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        tokens[0].run_sync_soon(over.set)
        thread.join(10)
        assert not thread.is_alive()


def threads() -> set[threading.Thread]:
    """The threads there are, but for those that Trio keeps for the next who needs one."""
    return {each for each in threading.enumerate() if not each.name.startswith("Trio thread")}


def descriptors() -> dict[str, str]:
    """The open files and sockets of this process, by number."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this listing
            found[link.name] = str(link.readlink())
    return found


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Check that a block leaves neither threads nor descriptors."""
    before = threads(), descriptors()
    yield
    assert threads() == before[0]
    assert descriptors() == before[1]


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something is so that nothing tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def fates(outcomes: Iterable[Outcome]) -> list[str]:
    """Put outcomes as `recipient status cause`, sorted: where it happened is a matter of time."""
    return sorted(f"{each.recipient} {each.status} {each.cause}" for each in outcomes)
