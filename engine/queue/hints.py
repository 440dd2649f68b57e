"""Hints: what past runs learned, and what may be lost at any time at the cost of speed only.

Whoever learns something about a host or a domain puts it here (its EHLO, a TLS session, a policy) and
asks before doing the work again.  `MemoryHints` lasts as long as the process; `open_hints` gives
hints that live in a SQLite file as well, which several processes may share and anyone may delete.
Not here: what a hint means, and anything whose loss would matter.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import OrderedDict
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from engine.hints import Hints
from engine.queue.hints_file import (
    FORGOTTEN_SECONDS,
    MAX_KEY,
    MAX_KIND,
    MAX_VALUE,
    ROWS_AT_ONCE,
    HintsFile,
    Row,
)

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable

    #: Kind and key.
    _Name = tuple[str, str]

#: Nothing is believed for longer than the longest-lived kind, a policy (RFC 8461 §3.2).
MAX_SECONDS: Final = 31_557_600.0

DEFAULT_MAX_ENTRIES: Final = 100_000
#: Entries alone would bound nothing: so many values of the greatest size are gigabytes.
DEFAULT_MAX_OCTETS: Final = 64 * 1024 * 1024

_log = logging.getLogger("engine.queue")


class MemoryHints(Hints):
    """Hints of this process; when full, the one that was not used for the longest makes room.

    Each call takes the same time however many hints there are.
    """

    def __init__(
        self,
        *,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        max_octets: int = DEFAULT_MAX_OCTETS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make an empty memory.

        Args:
            max_entries: How many hints are kept, at least 1.
            max_octets: Of how many octets together, keys included; at least one hint always fits.
            clock: Wall clock, seconds since the epoch: expiry outlives the process.

        Raises:
            ValueError: There is no room for even one entry.
        """
        if max_entries < 1:
            raise ValueError(f"max_entries {max_entries}: hints are kept from 1 entry on")
        self._max_entries = max_entries
        self._max_octets = max_octets
        self._clock = clock
        self._octets = 0
        # The least recently used stands first.  A plain dict would find it ever more slowly: it
        # steps over all that were deleted before it.
        self._entries: OrderedDict[_Name, tuple[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, kind: str, key: str) -> bytes | None:
        """Return the value, or `None` when there is none or it expired."""
        name = (kind, key)
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry[1] <= self._clock():
            self._drop(name)
            return None
        self._entries.move_to_end(name)
        return entry[0]

    def put(self, kind: str, key: str, value: bytes, *, seconds: float) -> None:
        """Keep a value for some seconds."""
        self.put_until(kind, key, value, self._clock() + seconds)

    def put_until(self, kind: str, key: str, value: bytes, expires: float) -> None:
        """Keep a value until a time, in seconds since the epoch; else like `put`."""
        name = (kind, key)
        self._drop(name)
        now = self._clock()
        # Written so that NaN is refused, too.
        if not expires > now or not _is_keepable(kind, key, value):
            return
        self._entries[name] = (value, min(expires, now + MAX_SECONDS))
        self._octets += _octets(name, value)
        self._make_room(now)

    def forget(self, kind: str, key: str) -> None:
        """Drop the value; no error where there is none."""
        self._drop((kind, key))

    def entry(self, kind: str, key: str) -> tuple[bytes, float] | None:
        """Return a value and when it expires, in seconds since the epoch; this is no use of it."""
        entry = self._entries.get((kind, key))
        return entry if entry and entry[1] > self._clock() else None

    def now(self) -> float:
        """Return the time of its clock, in seconds since the epoch."""
        return self._clock()

    def _drop(self, name: _Name) -> None:
        entry = self._entries.pop(name, None)
        if entry:
            self._octets -= _octets(name, entry[0])

    def _make_room(self, now: float) -> None:
        """Drop from the oldest end what is too much, and what has expired there.

        Nobody asks for most of what expired, so it drifts to that end: no scan is needed.
        """
        while len(self._entries) > 1:
            name, (_, expires) = next(iter(self._entries.items()))
            is_full = len(self._entries) > self._max_entries or self._octets > self._max_octets
            if not is_full and expires > now:
                return
            self._drop(name)


def _octets(name: _Name, value: bytes) -> int:
    return len(name[0]) + len(name[1]) + len(value)


def _is_keepable(kind: str, key: str, value: bytes) -> bool:
    if len(kind) > MAX_KIND or len(key) > MAX_KEY or len(value) > MAX_VALUE:
        return False
    try:
        # Half a surrogate pair has no UTF-8, so no place in a file either.
        f"{kind}{key}".encode()
    except UnicodeEncodeError:
        return False
    return True


DEFAULT_PAUSE: Final = 2.0
DEFAULT_CLOSE_SECONDS: Final = 3.0
#: Names whose news are not in the file yet.
_MAX_UNWRITTEN: Final = 10_000


class SqliteHints(Hints):
    """Hints that are kept in a file as well; made by `open_hints`.

    Every answer comes from memory.  A task writes and reads the file in the background, a pause
    apart, while someone asks or tells; so a process learns within seconds what another one wrote.
    A file that cannot be used costs one warning in the log; from then on memory serves alone.
    """

    def __init__(self, memory: MemoryHints, file: HintsFile) -> None:
        self._memory = memory
        self._file = file
        self._is_working = True
        # What changed since it was written, the oldest first, each with the number of its change.
        # The values stand in memory; what memory let go meanwhile is forgotten in the file, too.
        self._unwritten: OrderedDict[_Name, int] = OrderedDict()
        self._changes = 0
        self._asked = trio.Event()
        self._lock = trio.Lock()
        # Of its own: the threads of others may all be waiting for something.
        self._limiter = trio.CapacityLimiter(1)

    def get(self, kind: str, key: str) -> bytes | None:
        """Return the value that memory has; the file is looked at soon, for the next time."""
        self._asked.set()
        return self._memory.get(kind, key)

    def put(self, kind: str, key: str, value: bytes, *, seconds: float) -> None:
        """Keep a value; it is written soon, or not at all when too many wait for that."""
        self._memory.put(kind, key, value, seconds=seconds)
        self._note(kind, key)

    def forget(self, kind: str, key: str) -> None:
        """Drop the value, soon for all who share the file."""
        self._memory.forget(kind, key)
        self._note(kind, key)

    async def sync(self) -> None:
        """Write what waits, and read what other processes have written.

        Returns early when the file is locked for long; what waits then waits for the next time.
        Cancelled, it loses nothing: what was not written still waits.
        """
        async with self._lock:
            while self._is_working and await self._exchange():
                pass

    def _note(self, kind: str, key: str) -> None:
        if not self._is_working or not _is_keepable(kind, key, b""):
            return
        name = (kind, key)
        if name not in self._unwritten and len(self._unwritten) >= _MAX_UNWRITTEN:
            self._unwritten.popitem(last=False)
        self._changes += 1
        self._unwritten[name] = self._changes
        self._asked.set()

    async def _exchange(self) -> bool:
        """Write and read one batch; return whether there is more to do."""
        batch = dict(islice(self._unwritten.items(), ROWS_AT_ONCE))
        rows = [self._row(name) for name in batch]
        try:
            # Not abandoned when cancelled: nobody would wait for a thread that has the connection.
            # It comes back after `BUSY_SECONDS` and a batch at the latest.
            news, is_more = await trio.to_thread.run_sync(
                self._file.exchange, rows, limiter=self._limiter
            )
        except (sqlite3.Error, OSError, ValueError) as error:
            if not _is_busy(error):
                self._give_up(error)
            return False
        for name, change in batch.items():
            if self._unwritten.get(name) == change:
                del self._unwritten[name]
        for row in news:
            self._learn(row)
        return is_more or bool(self._unwritten)

    def _row(self, name: _Name) -> Row:
        entry = self._memory.entry(*name)
        if entry is None:
            return Row(*name, None, self._memory.now() + FORGOTTEN_SECONDS)
        return Row(*name, *entry)

    def _learn(self, row: Row) -> None:
        if (row.kind, row.key) in self._unwritten:
            return  # Ours is newer, and will be written.
        if row.value is None:
            self._memory.forget(row.kind, row.key)
        else:
            self._memory.put_until(row.kind, row.key, row.value, row.expires)

    def _give_up(self, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        _log.warning(
            "hints file %r: %s; hints are kept in memory only", str(self._file.path), reason
        )
        self._is_working = False
        self._unwritten.clear()

    async def _keep_up(self, pause: float) -> None:
        """Exchange whenever there was a reason to; runs until it is cancelled or the file fails."""
        while self._is_working:
            if not self._unwritten:
                await self._asked.wait()
            self._asked = trio.Event()
            await self.sync()
            # Gathers what is to be written, and spares the file from those who only ask.
            await trio.sleep(pause)

    async def _close(self, seconds: float) -> None:
        """Write what waits and close the file, at most for some seconds each."""
        with trio.move_on_after(seconds, shield=True):
            while self._unwritten:
                await self.sync()
        self._is_working = False
        self._unwritten.clear()
        with trio.move_on_after(seconds, shield=True), suppress(sqlite3.Error):
            async with self._lock:
                await trio.to_thread.run_sync(self._file.close, limiter=self._limiter)


def _is_busy(error: Exception) -> bool:
    """Whether only another process is at the file: that passes."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


@asynccontextmanager
async def open_hints(
    path: str | os.PathLike[str],
    *,
    max_entries: int = DEFAULT_MAX_ENTRIES,
    max_octets: int = DEFAULT_MAX_OCTETS,
    clock: Callable[[], float] = time.time,
    pause: float = DEFAULT_PAUSE,
    close_seconds: float = DEFAULT_CLOSE_SECONDS,
) -> AsyncIterator[SqliteHints]:
    """Open hints that live in a file, for one `async with` block.

    The file is read before the block begins, and what waits is written when it ends, however it
    ends.  Cancelled, it still takes `close_seconds` for that and a second for a locked file, at
    most; what was written before stays in any case.  After the block the hints work from memory.
    A virtual clock of Trio does not wait for the thread: with one, take `MemoryHints`.

    Args:
        path: The SQLite file; it is made where there is none, but not its directory.  Others may
            use it at the same time, or delete it.
        max_entries: How many hints are kept, in memory and in the file, at least 1.
        max_octets: Of how many octets together.
        clock: Wall clock, seconds since the epoch; also called from a thread.
        pause: Seconds between two looks at the file.
        close_seconds: How long writing what waits may take at the end.

    Raises:
        ValueError: There is no room for even one entry.
    """
    memory = MemoryHints(max_entries=max_entries, max_octets=max_octets, clock=clock)
    hints = SqliteHints(memory, HintsFile(path, max_entries, max_octets, clock))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            await hints.sync()
            nursery.start_soon(hints._keep_up, pause, name="hints")  # noqa: SLF001
            yield hints
        except Exception as error:  # noqa: BLE001 - raised below, not as a group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
            await hints._close(close_seconds)  # noqa: SLF001
    if failure is not None:
        raise failure
