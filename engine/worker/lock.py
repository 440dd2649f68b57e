"""The lock that says which process is *the* worker at a store: a file beside it, locked by the kernel.

Held by a running worker; it is free as soon as its process is gone, however that ended, so a file
that was left behind means nothing.  Everything here blocks, for microseconds.
Not here: what other programs may do to a store meanwhile; SQLite sees to that.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Whoever waits for a lock looks so often, in seconds.
_LOOK_SECONDS: Final = 0.05
_MAX_DIGITS: Final = 20


class LockedError(EngineError):
    """Somebody else holds the lock.

    Attributes:
        pid: Which process, as far as it has said so yet.
    """

    def __init__(self, store: Path, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(f"{store}: {who} is the worker at it; stop that one first")
        self.pid = pid


def lock_file(store: Path) -> Path:
    """Return the file whose lock stands for a store."""
    return store.with_name(f"{store.name}.lock")


@contextmanager
def hold_lock(store: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Be the one worker at a store for the time of a block.

    The file stays when the block ends: one that was deleted while another process waits for it
    would be two locks.  Children do not inherit it.

    Args:
        store: The file of the store; it need not be there yet, its folder must.
        patience: Seconds to wait for another process to go; it blocks meanwhile.

    Raises:
        LockedError: Another process holds it.
        OSError: The file cannot be made, or its file system has no locks.
    """
    path = lock_file(store)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        _lock(descriptor, store, time.monotonic() + patience)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, store: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockedError(store, _read_pid(descriptor)) from None
        else:
            return
        time.sleep(_LOOK_SECONDS)


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, _MAX_DIGITS, 0).strip()
    return int(text) if text.isdigit() else None
