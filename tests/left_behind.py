"""For tests outside Trio: what they may leave behind, and how they wait and see."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from engine.outcome import Outcome


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
