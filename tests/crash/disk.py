"""A small disk that fills up now and then."""

from __future__ import annotations

import os
import random
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Twice what the worker keeps free, so that something can be taken in.
SIZE = "64m"
_CHUNK = 256 * 1024


class NoDiskError(Exception):
    """There is no small disk to be had here."""


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mount a file system of its own for the time of a block.

    Raises:
        NoDiskError: That is not allowed here; the text says why.
    """
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "crash", str(place)]
    try:
        done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoDiskError(f"mount: {error}") from None
    if done.returncode:
        raise NoDiskError(done.stderr.strip() or f"mount: status {done.returncode}")
    try:
        yield place
    finally:
        # Lazily: a process that was killed just now may not have let go of its files.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class Filler:
    """Fills a disk, wholly or until little is left, and makes room again.

    Attributes:
        times: How often it was full.
    """

    def __init__(self, place: Path, seed):
        self.times = 0
        self._file = place / "filler"
        self._rng = random.Random(seed)

    async def run(self):
        """Do it again and again; cancelled, it leaves room."""
        rng = self._rng
        try:
            while True:
                await trio.sleep(rng.uniform(0.5, 2))
                # Sometimes there is no room for new mail alone, mostly for nothing at all.
                self._fill(rng.choice([0, 0, 4 << 20, 24 << 20]))
                self.times += 1
                await trio.sleep(rng.uniform(0.5, 2))
                self._file.unlink()
        finally:
            self._file.unlink(missing_ok=True)

    def _fill(self, left):
        with self._file.open("ab", buffering=0) as file, suppress(OSError):
            size = _CHUNK
            while size:
                free = os.statvfs(self._file).f_bavail * os.statvfs(self._file).f_frsize - left
                size = min(size, free)
                if size <= 0:
                    return
                file.write(bytes(size))
