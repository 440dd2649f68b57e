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
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    #: Kind and key.
    _Name = tuple[str, str]

MAX_KIND: Final = 64
MAX_KEY: Final = 512
#: Octets of one value; a policy of MTA-STS, the largest kind of hint, has no more (RFC 8461 §3.3).
MAX_VALUE: Final = 65_536
#: Nothing is believed for longer than the longest-lived kind, a policy (RFC 8461 §3.2).
MAX_SECONDS: Final = 31_557_600.0

DEFAULT_MAX_ENTRIES: Final = 100_000
#: Entries alone would bound nothing: so many values of the greatest size are gigabytes.
DEFAULT_MAX_OCTETS: Final = 64 * 1024 * 1024

_log = logging.getLogger("engine.queue")


class Hints(Protocol):
    """A bounded, expiring memory of octets by kind and key.

    All methods are quick, belong to the thread that runs Trio and never raise because of where the
    hints are kept.
    """

    def get(self, kind: str, key: str) -> bytes | None:
        """Return the value, or `None` when there is none, it expired or it was lost."""
        ...

    def put(self, kind: str, key: str, value: bytes, *, seconds: float) -> None:
        """Keep a value in place of the one before, as long as there is room.

        What is too large to keep is not kept, and the value before it is forgotten: it is outdated.

        Args:
            kind: What sort of hint it is, of `MAX_KIND` characters or fewer.
            key: What it is about, of `MAX_KEY` characters or fewer.
            value: `MAX_VALUE` octets or fewer.
            seconds: For how long it holds, `MAX_SECONDS` at most; 0 or less is `forget`.
        """
        ...

    def forget(self, kind: str, key: str) -> None:
        """Drop the value; no error where there is none."""
        ...


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


# -- the file -----------------------------------------------------------------------------------

#: Marks a SQLite file as ours, so that no option mistyped makes us write to another program's.
_APPLICATION_ID: Final = 0x44456869
#: Statement n makes schema n out of schema n - 1.  What was released stays as it is: add new ones.
_SCHEMA: Final = (
    # `number` grows with every write and is never used again: whoever knows the last number it read
    # finds what is new.  A value of NULL says that the hint was forgotten.
    """create table hints (
        number integer primary key autoincrement,
        kind text not null,
        key text not null,
        value blob,
        expires real not null,
        unique (kind, key)
    )""",
)
_WRITE: Final = "insert or replace into hints (kind, key, value, expires) values (?, ?, ?, ?)"
#: Bounded before a value is read: another's hand may have been at the file.
_READ: Final = f"""select number, kind, key, value, expires from hints
    where number > ? and length(kind) <= {MAX_KIND} and length(key) <= {MAX_KEY}
    and (value is null or length(value) <= {MAX_VALUE})
    order by number limit ?"""  # noqa: S608 - our own numbers
#: What expired; then what was written longest ago beyond the bounds of entries and octets.
_SWEEP: Final = (
    "delete from hints where expires <= :now",
    """delete from hints where number <=
        (select number from hints order by number desc limit 1 offset :max_entries)""",
    """delete from hints where number <= (select max(number) from
        (select number, sum(length(value)) over (order by number desc) as octets from hints)
        where octets > :max_octets)""",
)
_SWEEP_SECONDS: Final = 600.0
#: The file has at most so many rows of each process beyond its bounds.
_SWEEP_ROWS: Final = 2000
#: Rows in one call to the thread: so much may have to be waited for, and be held twice.
_ROWS_AT_ONCE: Final = 500
#: How long the thread waits for another process's transaction, which takes milliseconds.
_BUSY_SECONDS: Final = 1.0
#: How long others can learn that a hint was forgotten.
_FORGOTTEN_SECONDS: Final = 3600.0


class _Row(NamedTuple):
    kind: str
    key: str
    value: bytes | None
    expires: float


class _File:
    """One connection to the file; every method blocks and may raise `sqlite3.Error` or `OSError`.

    The `sqlite3` of Python is enough.  Some of its versions can damage a file that several
    processes write to (the WAL-reset defect, mended in SQLite 3.51.3): a queue must not risk that,
    but hints that are lost cost speed only, and a damaged file is noticed and not used any more.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_entries: int,
        max_octets: int,
        clock: Callable[[], float],
    ) -> None:
        # Absolute, so that SQLite's special names are names of files as well.
        self.path = Path(path).absolute()
        self._max_entries = max_entries
        self._max_octets = max_octets
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._last_read = 0
        self._next_sweep = 0.0
        self._written = 0

    def exchange(self, changes: Sequence[_Row]) -> tuple[list[_Row], bool]:
        """Write our changes in one transaction, then read what was written since the last time.

        Our own rows come back among them: in the order of the file, so that all processes agree on
        who wrote last.

        Returns:
            What is new, the oldest first, and whether there may be more.
        """
        connection = self._open()
        now = self._clock()
        is_sweep_due = now >= self._next_sweep or self._written >= _SWEEP_ROWS
        if changes or is_sweep_due:
            with connection:
                connection.execute("begin immediate")
                connection.executemany(_WRITE, changes)
                if is_sweep_due:
                    self._sweep(connection, now)
            self._written += len(changes)
        rows = connection.execute(_READ, (self._last_read, _ROWS_AT_ONCE)).fetchall()
        if rows:
            self._last_read = rows[-1][0]
        return list(_rows_in(rows)), len(rows) == _ROWS_AT_ONCE

    def close(self) -> None:
        """Close the connection, if there is one; the next exchange opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        # A file that was deleted under us must not be used on: others would make a new one, and
        # SQLite finds its companions (-wal, -shm) by name.
        if self._connection is not None and _identity(self.path) == self._identity:
            return self._connection
        self.close()
        with suppress(FileExistsError):
            # SQLite would let everyone read it, and sessions of TLS are secrets.
            self.path.touch(mode=0o600, exist_ok=False)
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._identity = _identity(self.path)
        self._last_read = 0
        self._next_sweep = 0.0
        return connection

    def _sweep(self, connection: sqlite3.Connection, now: float) -> None:
        bounds = {"now": now, "max_entries": self._max_entries, "max_octets": self._max_octets}
        for statement in _SWEEP:
            connection.execute(statement, bounds)
        self._next_sweep = now + _SWEEP_SECONDS
        self._written = 0


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _prepare(connection: sqlite3.Connection) -> None:
    """Bring the file to our schema.

    Raises:
        sqlite3.Error: It cannot be used; what is not ours is left as it was.
    """
    with connection:
        # Also finds out whether we may write: SQLite opens what is read-only without a word.
        connection.execute("begin immediate")
        (owner,) = connection.execute("pragma application_id").fetchone()
        (version,) = connection.execute("pragma user_version").fetchone()
        (tables,) = connection.execute("select count(*) from sqlite_master").fetchone()
        if owner != _APPLICATION_ID and (owner, version, tables) != (0, 0, 0):
            raise sqlite3.DatabaseError("it is the database of another program")
        if version > len(_SCHEMA):
            raise sqlite3.DatabaseError(
                f"its schema {version} is of a later release; allowed are 1 to {len(_SCHEMA)}"
            )
        if version < len(_SCHEMA):
            for statement in _SCHEMA[version:]:
                connection.execute(statement)
            connection.execute(f"pragma application_id = {_APPLICATION_ID}")
            connection.execute(f"pragma user_version = {len(_SCHEMA)}")
    # Some file systems cannot, and another process may be reading just now: it is slower without.
    with suppress(sqlite3.OperationalError):
        connection.execute("pragma journal_mode = wal")
    # Power that fails may take the last hints along, not the file.
    connection.execute("pragma synchronous = normal")


def _rows_in(rows: Iterable[tuple[object, ...]]) -> Iterable[_Row]:
    """Yield the rows that can be ours; SQLite's columns may hold values of any type."""
    for _, kind, key, value, expires in rows:
        if (
            isinstance(kind, str)
            and isinstance(key, str)
            and (value is None or isinstance(value, bytes))
            and isinstance(expires, float)
        ):
            yield _Row(kind, key, value, expires)


# -- memory and file together -------------------------------------------------------------------

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

    def __init__(self, memory: MemoryHints, file: _File) -> None:
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
        batch = dict(islice(self._unwritten.items(), _ROWS_AT_ONCE))
        rows = [self._row(name) for name in batch]
        try:
            # Not abandoned when cancelled: nobody would wait for a thread that has the connection.
            # It comes back after `_BUSY_SECONDS` and a batch at the latest.
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

    def _row(self, name: _Name) -> _Row:
        entry = self._memory.entry(*name)
        if entry is None:
            return _Row(*name, None, self._memory.now() + _FORGOTTEN_SECONDS)
        return _Row(*name, *entry)

    def _learn(self, row: _Row) -> None:
        if (row.kind, row.key) in self._unwritten:
            return  # Ours is newer, and will be written.
        if row.value is None:
            self._memory.forget(row.kind, row.key)
        else:
            self._memory.put_until(row.kind, row.key, row.value, row.expires)

    def _give_up(self, error: Exception) -> None:
        _log.warning(
            "hints file %r: %s; hints are kept in memory only", str(self._file.path), error
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
    hints = SqliteHints(memory, _File(path, max_entries, max_octets, clock))
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
