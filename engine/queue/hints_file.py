"""The SQLite file behind hints: one connection, used by one thread at a time.

Called by `engine.queue.hints` in threads.  It writes, reads what others wrote, sweeps, and notices
when the file was deleted, is another program's or is damaged.  Not here: what is in memory.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

MAX_KIND: Final = 64
MAX_KEY: Final = 512
#: Octets of one value; a policy of MTA-STS, the largest kind of hint, has no more (RFC 8461 §3.3).
MAX_VALUE: Final = 65_536

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
ROWS_AT_ONCE: Final = 500
#: How long the thread waits for another process's transaction, which takes milliseconds.
BUSY_SECONDS: Final = 1.0
#: How long others can learn that a hint was forgotten.
FORGOTTEN_SECONDS: Final = 3600.0


class Row(NamedTuple):
    """A hint as the file has it; a value of `None` says that it was forgotten.

    `expires` is in seconds since the epoch.
    """

    kind: str
    key: str
    value: bytes | None
    expires: float


class HintsFile:
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

    def exchange(self, changes: Sequence[Row]) -> tuple[list[Row], bool]:
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
        rows = connection.execute(_READ, (self._last_read, ROWS_AT_ONCE)).fetchall()
        if rows:
            self._last_read = rows[-1][0]
        return list(_rows_in(rows)), len(rows) == ROWS_AT_ONCE

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
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
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


def _rows_in(rows: Iterable[tuple[object, ...]]) -> Iterable[Row]:
    """Yield the rows that can be ours; SQLite's columns may hold values of any type."""
    for _, kind, key, value, expires in rows:
        if (
            isinstance(kind, str)
            and isinstance(key, str)
            and (value is None or isinstance(value, bytes))
            and isinstance(expires, float)
        ):
            yield Row(kind, key, value, expires)
