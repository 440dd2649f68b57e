"""The SQLite file of a store: one connection, its schema and its statements.

Called by the thread of `engine.queue.sqlite`, a method at a time; everything here blocks.  Through
`apsw`, which brings its own SQLite: several connections to one file, as the worker and the command
line have, can damage it with versions before 3.51.3 (the WAL-reset defect), and systems have those.
Not here: what the statements mean.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import apsw
from pydantic_core import from_json

from engine.queue.errors import (
    StoreBusyError,
    StoreClosedError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnusableError,
    StoreVersionError,
)
from engine.queue.named_sql import parse_statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_R = TypeVar("_R")


#: Marks a SQLite file as a queue of ours, so that no option mistyped makes us write to another's.
_APPLICATION_ID: Final = 0x44457175
#: How long we wait for another process's transaction, which takes milliseconds.
DEFAULT_BUSY_SECONDS: Final = 10.0
#: Of pages, the rest is the system's cache; a million recipients need no more.
_CACHE_KIB: Final = 32 * 1024
#: Pages in the log before they are moved into the file: a page that is written often in between,
#: as most are, is then moved once.  16 MiB.
_CHECKPOINT_PAGES: Final = 4000
#: Between two looks at a file that somebody else has just made, in seconds.
_BUSY_PAUSE: Final = 0.01
#: Below this an unexplained I/O error is a full disk.
_FULL_OCTETS: Final = 1024 * 1024

#: What octets that are no UTF-8 are decoded as.
_SPOILED: Final = re.compile("[\udc80-\udcff]")

_MIGRATION: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

#: The files with statements.
_STATEMENT_FILES: Final = ("submit.sql", "lease.sql", "settle.sql", "entries.sql", "upkeep.sql")


@cache
def statements() -> Mapping[str, str]:
    """Return all named statements."""
    found: dict[str, str] = {}
    for name in _STATEMENT_FILES:
        parsed = parse_statements(_resource(name))
        if twice := found.keys() & parsed.keys():
            raise ValueError(f"{name}: {', '.join(sorted(twice))} stand in another file as well")
        found |= parsed
    return found


@cache
def migrations() -> tuple[str, ...]:
    """Return the scripts that make a schema; number n makes schema n of schema n - 1."""
    names = sorted(
        entry.name
        for entry in files("engine.queue").joinpath("sql").iterdir()
        if _is_migration(entry.name)
    )
    numbers = [int(name[:4]) for name in names]
    if numbers != list(range(1, len(names) + 1)):
        raise ValueError(f"migrations are numbered {numbers}; allowed are 1, 2, 3 and so on")
    return tuple(_resource(name) for name in names)


def _is_migration(name: str) -> bool:
    return _MIGRATION.fullmatch(name) is not None


def _resource(name: str) -> str:
    return files("engine.queue").joinpath("sql", name).read_text("utf-8")


class Database:
    """An open file; made by `open_database`.

    Results of several rows come as one JSON array.  SQLite lets go of Python's interpreter lock
    for every row, and beside a busy Trio thread it takes a tenth of a millisecond and more to get it
    back: so one statement that answers for a hundred recipients is worth more than a quick one.
    """

    def __init__(self, connection: apsw.Connection, path: Path, *, is_read_only: bool) -> None:
        self.path = path
        self.is_read_only = is_read_only
        self._connection = connection
        self._statements = statements()

    # -- statements -------------------------------------------------------------------------

    def run(self, name: str, /, **bindings: Any) -> None:
        """Run a statement that returns nothing."""
        self._connection.execute(self._statements[name], bindings)

    def rows(self, name: str, /, **bindings: Any) -> list[Any]:
        """Run a statement that returns one JSON array, and return its items."""
        try:
            for (text,) in self._connection.execute(self._statements[name], bindings):
                found: list[Any] = from_json(text, cache_strings="none")
                return found
        except UnicodeDecodeError:
            return self._rows_with_spoiled_text(name, bindings)
        return []

    def _rows_with_spoiled_text(self, name: str, bindings: Mapping[str, Any]) -> list[Any]:
        """Return rows of which some text is no UTF-8: one of them must not hide all others."""
        statement = f"select cast(({self._statements[name]}) as blob)"
        for (octets,) in self._connection.execute(statement, bindings):
            text = octets.decode("utf-8", "surrogateescape")
            # No address may hold that, so nothing is delivered to what is left of one.
            found: list[Any] = json.loads(_SPOILED.sub("\x7f", text))
            return found
        return []

    def row(self, name: str, /, **bindings: Any) -> tuple[Any, ...] | None:
        """Run a statement that returns one row or none."""
        found = self._connection.execute(self._statements[name], bindings).fetchall()
        return found[0] if found else None

    def changed(self) -> int:
        """Return how many rows the last statement changed."""
        return self._connection.changes()

    def last_number(self) -> int:
        """Return the number of the row that was inserted last."""
        return self._connection.last_insert_rowid()

    def insert_many(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run an insert that ends in `values` for rows that hold octets, several at a time."""
        start = 0
        for size in _SIZES:
            while len(rows) - start >= size:
                chunk = rows[start : start + size]
                places = f"({', '.join('?' * len(chunk[0]))})"
                statement = f"{self._statements[name]} {', '.join([places] * size)}"
                self._connection.execute(statement, [value for row in chunk for value in row])
                start += size

    # -- transactions -----------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one state of the file in all statements of the block."""
        # Ends in a rollback: after a damaged page SQLite refuses to commit, even nothing.
        with self._transaction("begin", "rollback"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Do all statements of the block or none; what is done is on disk when the block ends."""
        with self._transaction("begin immediate", "commit"):
            yield

    @contextmanager
    def _transaction(self, begin: str, end: str) -> Iterator[None]:
        connection = self._connection
        connection.execute(begin)
        try:
            yield
            connection.execute(end)
        except BaseException:
            # After some errors SQLite has rolled back already.
            if connection.in_transaction:
                connection.execute("rollback")
            raise

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within a transaction: undo the block alone when it fails.

        Raises:
            StoreError: The whole transaction is lost, not only this part of it.
        """
        connection = self._connection
        connection.execute("savepoint part")
        try:
            yield
            connection.execute("release part")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback to part")
                connection.execute("release part")
            raise

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open; some errors end it."""
        return self._connection.in_transaction

    # -- the file ---------------------------------------------------------------------------

    def plan(self, name: str, /, **bindings: Any) -> list[str]:
        """Return how SQLite would run a statement, one line a step."""
        statement = f"explain query plan {self._statements[name]}"
        return [row[3] for row in self._connection.execute(statement, bindings)]

    def pragma(self, text: str) -> Iterator[Any]:
        """Run a pragma and yield the first column of its rows."""
        for row in self._connection.execute(f"pragma {text}"):
            yield row[0] if row else None

    def free_octets(self) -> int:
        """Return how much room the disk has for us."""
        return _free_octets(self.path)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


#: Rows of one insert; each size is a statement that is prepared once.
_SIZES: Final = (64, 16, 4, 1)


def open_database(
    path: str | os.PathLike[str],
    *,
    is_read_only: bool = False,
    busy_seconds: float = DEFAULT_BUSY_SECONDS,
    cache_kib: int = _CACHE_KIB,
) -> Database:
    """Open the file of a store, and make it or bring its schema up to date unless read only.

    Args:
        path: The file; its folder must be there.
        is_read_only: Whether nothing may be changed, not even the schema.
        busy_seconds: How long to wait for other processes.
        cache_kib: Memory for pages of the file.

    Raises:
        StoreError: It cannot be opened; what is not ours is left as it was.
    """
    # Absolute, so that SQLite's special names are names of files as well.
    path = Path(path).absolute()
    try:
        if not is_read_only:
            _make(path)
        elif not path.is_file():
            what = "it is a folder" if path.is_dir() else "there is no such file"
            raise StoreUnusableError(f"{path}: {what}")
        connect = partial(_connect, path, is_read_only=is_read_only)
        connection = _patiently(connect, busy_seconds)
    except OSError as error:
        raise _unusable(path, error) from None
    except apsw.Error as error:
        raise translate(error, path) from error
    try:
        connection.set_busy_timeout(round(busy_seconds * 1000))
        prepare = partial(_prepare, connection, path, is_read_only=is_read_only)
        _patiently(prepare, busy_seconds)
        connection.execute(f"pragma cache_size = -{cache_kib}")
        connection.execute("pragma temp_store = memory")
    except apsw.Error as error:
        connection.close()
        raise translate(error, path) from error
    except BaseException:
        connection.close()
        raise
    return Database(connection, path, is_read_only=is_read_only)


def open_in_memory() -> Database:
    """Open a database that lives as long as the object; for tests."""
    connection = apsw.Connection(":memory:")
    _migrate(connection, 0)
    return Database(connection, Path(":memory:"), is_read_only=False)


def _make(path: Path) -> None:
    # SQLite would let everyone read it; mail is private.  Its companions get the same mode.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _connect(path: Path, *, is_read_only: bool) -> apsw.Connection:
    if not is_read_only:
        return _open_and_look(str(path), apsw.SQLITE_OPEN_READWRITE)
    try:
        return _open_and_look(str(path), apsw.SQLITE_OPEN_READONLY)
    except apsw.CantOpenError:
        # A log needs a companion file even to be read.  Where that cannot be made, on a disk that
        # is read only, nobody else writes either; without a log the file alone is all there is.
        wal = path.with_name(f"{path.name}-wal")
        if wal.exists() and wal.stat().st_size:
            raise
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        return _open_and_look(f"{path.as_uri()}?immutable=1", flags)


def _open_and_look(name: str, flags: int) -> apsw.Connection:
    connection = apsw.Connection(name, flags=flags, statementcachesize=200)
    try:
        connection.execute("select count(*) from sqlite_master").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _patiently(do: Callable[[], _R], seconds: float) -> _R:
    """Do something until nobody else holds the file; SQLite waits for most of that, not for all."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return do()
        except apsw.BusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BUSY_PAUSE)


def _prepare(connection: apsw.Connection, path: Path, *, is_read_only: bool) -> None:
    version = _check_ours(connection, path)
    newest = len(migrations())
    if is_read_only:
        if version != newest:
            raise StoreVersionError(
                f"{path}: its schema is {version or 'none'}; to be read only it must be {newest}: "
                "the worker brings it up to date when it starts, and so does what changes the queue"
            )
        return
    if version == 0:
        # Before there is a table: so that room can be given back to the disk, a bit at a time.
        connection.execute("pragma auto_vacuum = incremental")
    (mode,) = connection.execute("pragma journal_mode = wal").fetchall()[0]
    if mode != "wal":
        raise StoreUnusableError(
            f"{path}: its file system cannot keep a write-ahead log; use one that is local"
        )
    # With a group of operations in each commit this costs little, and without it power that fails
    # takes accepted mail along.
    connection.execute("pragma synchronous = full")
    connection.execute(f"pragma wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    if version < newest:
        connection.execute("begin immediate")
        try:
            # Another process may have been quicker.
            _migrate(connection, _check_ours(connection, path))
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise


def _check_ours(connection: apsw.Connection, path: Path) -> int:
    """Return the number of the schema, 0 for an empty file; refuse what is not ours."""
    with _one_view(connection):
        owner, version, tables = (
            int(str(connection.execute(statement).fetchall()[0][0]))
            for statement in (
                "pragma application_id",
                "pragma user_version",
                "select count(*) from sqlite_master",
            )
        )
    if owner != _APPLICATION_ID and (owner, version, tables) != (0, 0, 0):
        raise StoreUnusableError(f"{path}: it is the database of another program")
    newest = len(migrations())
    if version > newest:
        raise StoreVersionError(
            f"{path}: its schema {version} is of a later release; allowed are 1 to {newest}"
        )
    return version


@contextmanager
def _one_view(connection: apsw.Connection) -> Iterator[None]:
    """See one state of the file: another process may be making it meanwhile."""
    if connection.in_transaction:
        yield
        return
    connection.execute("begin")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("rollback")


def _migrate(connection: apsw.Connection, version: int) -> None:
    for script in migrations()[version:]:
        connection.execute(script)
    connection.execute(f"pragma application_id = {_APPLICATION_ID}")
    connection.execute(f"pragma user_version = {len(migrations())}")


# ---- errors -------------------------------------------------------------------------------------


def translate(error: Exception, path: Path) -> Exception:
    """Return what an error of SQLite means to whoever uses the store; others are what they are."""
    if not isinstance(error, apsw.Error | UnicodeDecodeError):
        return error
    text = f"{path}: {error}"
    if isinstance(error, apsw.FullError):
        return StoreFullError(f"{path}: the disk is full")
    if isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError):
        return StoreReadOnlyError(f"{path}: it must not be written to ({error})")
    if isinstance(error, apsw.NotADBError):
        return StoreDamagedError(f"{path}: it is no store, or its beginning is damaged")
    if isinstance(error, apsw.CorruptError | apsw.FormatError | UnicodeDecodeError):
        return StoreDamagedError(f"{path}: it is damaged ({error})")
    # ProtocolError: behind a crash SQLite itself has waited for ten seconds.
    if isinstance(error, apsw.BusyError | apsw.LockedError | apsw.ProtocolError):
        return StoreBusyError(f"{path}: another process holds it for too long")
    if isinstance(error, apsw.CantOpenError):
        if _is_read_only(path):
            return StoreReadOnlyError(f"{path}: it must not be written to (a read-only disk)")
        return StoreUnusableError(f"{path}: it cannot be opened ({_why_not(path)})")
    if isinstance(error, apsw.IOError):
        if _free_octets(path) < _FULL_OCTETS:
            return StoreFullError(f"{path}: the disk is full ({error})")
        return StoreError(text)
    if isinstance(error, apsw.ConnectionClosedError | apsw.CursorClosedError):
        return StoreClosedError(f"{path}: it is closed")
    return StoreError(text)


def _unusable(path: Path, error: OSError) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreUnusableError(f"{path}: there is no folder {path.parent}")
    return StoreUnusableError(f"{path}: {error.strerror or error}")


def _why_not(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    if not os.access(path, os.R_OK | os.W_OK):
        return "there is no permission to read and write it"
    if not os.access(path.parent, os.W_OK):
        return "its folder must be writable for the log beside it"
    return "the system refused"


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _free_octets(path: Path) -> int:
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
