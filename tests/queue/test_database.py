from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import apsw
import pytest

from engine.queue import database as module
from engine.queue.database import migrations, open_database, open_in_memory, statements, translate
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
from engine.queue.sql_entries import read_stored


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.sqlite"


def make(path):
    with closing(open_database(path)):
        pass


def other_connection(path):
    """Open the file as another program would."""
    return closing(sqlite3.connect(path, isolation_level=None))


def submit_one(db, name="x"):
    row = [name, "", None, None, 0, 0, "", "", 0, 0, None, 0, 0, 0, 0, "", None, None, 0, 0, ""]
    db.run("insert_messages", rows=json.dumps([row]))


# -- opening ------------------------------------------------------------------------------------


def test_a_new_file_is_nobody_elses_to_read(path):
    before = os.umask(0)
    try:
        with closing(open_database(path)) as db:
            with db.writing():
                submit_one(db)
            files = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)

    assert files == {
        "spool.sqlite": 0o600,
        "spool.sqlite-wal": 0o600,
        "spool.sqlite-shm": 0o600,
    }


def test_an_empty_file_becomes_a_store(path):
    path.touch()

    make(path)

    with closing(open_database(path, is_read_only=True)) as db:
        assert db.rows("clocks") == []


def test_special_names_are_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    make(":memory:")

    assert (tmp_path / ":memory:").is_file()


def test_what_is_committed_is_durable(path):
    with closing(open_database(path)) as db:
        assert next(db.pragma("journal_mode")) == "wal"
        assert next(db.pragma("synchronous")) == 2
        assert next(db.pragma("auto_vacuum")) == 2


def test_the_database_of_another_program_is_left_alone(path):
    with other_connection(path) as connection:
        connection.execute("create table theirs (x)")
    before = path.read_bytes()

    for is_read_only in (False, True):
        with pytest.raises(StoreUnusableError, match="of another program"):
            open_database(path, is_read_only=is_read_only)

    assert path.read_bytes() == before


def test_the_store_of_a_later_release_is_left_alone(path):
    make(path)
    with other_connection(path) as connection:
        connection.execute("pragma user_version = 99")
    before = path.read_bytes()

    with pytest.raises(StoreVersionError, match=r"its schema 99 .* allowed are 1 to \d"):
        open_database(path)

    assert path.read_bytes() == before


def test_what_is_no_database_is_left_alone(path):
    path.write_bytes(b"Return-Path: <me@example.org>\n" * 1000)
    before = path.read_bytes()

    with pytest.raises(StoreDamagedError, match="no store, or its beginning is damaged"):
        open_database(path)

    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreUnusableError, match=r"there is no folder .*/no$"):
        open_database(tmp_path / "no" / "spool.sqlite")


def test_a_folder_is_no_store(tmp_path):
    with pytest.raises(StoreUnusableError, match="it is a folder"):
        open_database(tmp_path, is_read_only=True)
    with pytest.raises(StoreUnusableError, match="folder"):
        open_database(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
def test_a_folder_that_must_not_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreUnusableError, match=r"[Pp]ermission"):
        open_database(tmp_path / "spool.sqlite")


def test_reading_makes_no_file(path):
    with pytest.raises(StoreUnusableError, match="there is no such file"):
        open_database(path, is_read_only=True)

    assert not path.exists()


def test_who_reads_beside_a_writer_sees_what_is_committed(path):
    with closing(open_database(path)) as writer:
        with writer.writing():
            submit_one(writer)
        with closing(open_database(path, is_read_only=True)) as reader:
            assert len(reader.rows("known_messages", ids='["x"]')) == 1
            with pytest.raises(apsw.ReadOnlyError):
                submit_one(reader, "y")


def test_a_file_alone_can_be_read_where_nothing_can_be_written(path, monkeypatch):
    """As from a copy on a disk that is read only: no companion can be made beside it."""
    with closing(open_database(path)) as db, db.writing():
        submit_one(db)
    real = module._open_and_look

    def refuse(name, flags):
        if "immutable" not in name:
            raise apsw.CantOpenError("unable to open database file")
        return real(name, flags)

    monkeypatch.setattr(module, "_open_and_look", refuse)

    with closing(open_database(path, is_read_only=True)) as db:
        assert len(db.rows("known_messages", ids='["x"]')) == 1


def test_a_file_whose_log_cannot_be_read_is_not_read_without_it(path, monkeypatch):
    make(path)
    path.with_name("spool.sqlite-wal").write_bytes(b"x" * 100)

    def refuse(name, flags):
        raise apsw.CantOpenError("unable to open database file")

    monkeypatch.setattr(module, "_open_and_look", refuse)

    with pytest.raises(StoreUnusableError):
        open_database(path, is_read_only=True)


def test_those_who_make_one_file_at_the_same_time_wait_for_each_other(tmp_path):
    def make(path):
        with closing(open_database(path)) as db:
            return next(db.pragma("user_version"))

    with ThreadPoolExecutor(8) as threads:
        for number in range(10):
            path = tmp_path / f"{number}.sqlite"
            assert set(threads.map(make, [path] * 8)) == {len(migrations())}


def test_a_file_that_is_made_while_it_is_looked_at_is_no_stranger_s(path):
    path.touch()
    maker = threading.Thread(target=lambda: open_database(path).close())

    class Slow:
        """A connection whose user takes his time behind the first thing he sees."""

        def __init__(self):
            self._connection = apsw.Connection(str(path))

        def __getattr__(self, name):
            return getattr(self._connection, name)

        def execute(self, statement):
            found = list(self._connection.execute(statement))
            if statement == "pragma application_id":
                maker.start()
                maker.join(0.3)
            return SimpleNamespace(fetchall=lambda: found)

    with closing(Slow()) as connection:
        assert module._check_ours(connection, path) == 0
    maker.join(10)
    with closing(open_database(path)) as db:
        assert next(db.pragma("user_version")) == len(migrations())


# -- migrations ---------------------------------------------------------------------------------


@pytest.fixture
def next_migration(monkeypatch):
    """Let there be a later schema; assign to `script` what makes it."""
    scripts = [*migrations(), "create table later (x)"]

    class Later:
        def set(self, script):
            scripts[-1] = script

    monkeypatch.setattr(module, "migrations", lambda: tuple(scripts))
    return Later()


def test_a_store_of_an_earlier_release_is_brought_up_to_date(path, request):
    with closing(open_database(path)) as db, db.writing():
        submit_one(db)
    request.getfixturevalue("next_migration")

    with pytest.raises(
        StoreVersionError, match=f"to be read only it must be {len(migrations()) + 1}"
    ):
        open_database(path, is_read_only=True)
    with closing(open_database(path)) as db:
        assert len(db.rows("known_messages", ids='["x"]')) == 1
        assert next(db.pragma("user_version")) == len(migrations()) + 1
        assert list(db.pragma("table_info(later)"))


def test_mail_of_the_first_schema_comes_through(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "migrations", lambda: migrations()[:1])
        make(path)
    row = ["x", "me@example.org", 0, 0, "", "", 0, 1000, 0, 0, 0, 0, "", ""]
    with other_connection(path) as connection:
        connection.execute(
            "insert into messages (id, reverse_path, require_tls, smtputf8, tenant, job, priority,"
            " submitted_at, octets, is_8bit, longest_line, has_utf8_header, sha256, fingerprint)"
            f" values ({', '.join('?' * len(row))})",
            row,
        )
        connection.execute(
            "insert into recipients (message, address, domain, notify, state, due)"
            " values (1, 'a@one.test', 'one.test', '', 'held', 1000)"
        )

    with closing(open_database(path)) as db:
        (message,) = read_stored(db, 0, 9, None)
    assert (message.message.id, message.not_before) == ("x", None)
    assert [entry.recipient for entry in message.entries] == ["a@one.test"]


def test_a_migration_that_fails_leaves_the_store_as_it_was(path, request):
    make(path)
    request.getfixturevalue("next_migration").set("create table later (x); nonsense")

    with pytest.raises(StoreError, match="syntax error"):
        open_database(path)

    with other_connection(path) as connection:
        assert connection.execute("pragma user_version").fetchone() == (len(migrations()),)
        tables = connection.execute("select name from sqlite_master").fetchall()
        assert ("later",) not in tables


def test_a_text_that_is_no_utf8_is_damage(path):
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        found = translate(error, path)
    assert isinstance(found, StoreDamagedError)
    assert str(found).startswith(f"{path}: it is damaged ('utf-8' codec can't decode byte 0xff")


def test_migrations_are_numbered_without_gaps():
    assert len(migrations()) >= 1
    assert all("create table" in script for script in migrations()[:1])


# -- statements ---------------------------------------------------------------------------------


def test_every_statement_is_one_that_the_schema_knows():
    db = open_in_memory()
    for name in statements():
        if name in ("insert_contents", "insert_pieces"):
            continue  # their rows are bound
        db.plan(name, **_bindings(name))


def _bindings(name):
    """Bind every parameter; that a statement can be prepared is what counts."""
    import re

    return dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", statements()[name]))


def test_many_rows_with_octets_go_in_whatever_their_number():
    db = open_in_memory()
    octets = [bytes([number % 256]) * number for number in range(150)]

    with db.writing():
        db.insert_many("insert_contents", list(enumerate(octets)))
        db.insert_many("insert_contents", [])

    joined, index = db.row("contents_of", messages=json.dumps(list(range(150))))
    assert joined == b"".join(octets)
    assert json.loads(index) == [[n, len(each)] for n, each in enumerate(octets)]


def test_a_transaction_is_all_or_nothing():
    db = open_in_memory()

    with pytest.raises(ZeroDivisionError), db.writing():
        submit_one(db)
        raise ZeroDivisionError

    assert db.rows("known_messages", ids='["x"]') == []


def test_a_part_that_fails_is_undone_alone():
    db = open_in_memory()

    with db.writing():
        submit_one(db, "x")
        with pytest.raises(apsw.ConstraintError), db.apart():
            submit_one(db, "y")
            submit_one(db, "x")
        submit_one(db, "z")

    ids = '["x", "y", "z"]'
    assert sorted(row[0] for row in db.rows("known_messages", ids=ids)) == ["x", "z"]


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (apsw.FullError("database or disk is full"), StoreFullError),
        (apsw.ReadOnlyError("attempt to write"), StoreReadOnlyError),
        (apsw.CorruptError("malformed"), StoreDamagedError),
        (apsw.NotADBError("not a database"), StoreDamagedError),
        (apsw.BusyError("locked"), StoreBusyError),
        (apsw.LockedError("locked"), StoreBusyError),
        (apsw.ProtocolError("locking protocol"), StoreBusyError),
        (apsw.ConnectionClosedError("closed"), StoreClosedError),
        (apsw.IOError("disk I/O error"), StoreError),
        (apsw.ConstraintError("unique"), StoreError),
    ],
)
def test_errors_of_sqlite_say_what_they_mean_and_where(error, kind, path):
    found = translate(error, path)

    assert type(found) is kind
    assert str(path) in str(found)


def test_an_io_error_without_room_is_a_full_disk(path, monkeypatch):
    monkeypatch.setattr(module, "_free_octets", lambda _: 0)

    assert isinstance(translate(apsw.IOError("disk I/O error"), path), StoreFullError)


def test_other_errors_stay_what_they_are(path):
    error = ValueError("x")

    assert translate(error, path) is error


def test_a_file_that_another_process_holds_is_waited_for_and_no_longer(path):
    make(path)
    # Not through sqlite3: to POSIX, both libraries in one process are one holder of locks.
    other = apsw.Connection(str(path))
    with closing(other), closing(open_database(path, busy_seconds=0.05)) as db:
        other.execute("begin immediate")
        with pytest.raises(apsw.BusyError), db.writing():
            pass
        other.execute("rollback")
        with db.writing():
            submit_one(db)


#: Holds a lock of SQLite's format for a while, as another process does.
HOLDING = """
import fcntl, sys, time
with open(sys.argv[1], "a+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, int(sys.argv[3]), int(sys.argv[2]))
    print("locked", flush=True)
    time.sleep(0.4)
"""


@pytest.mark.parametrize("is_read_only", [False, True])
@pytest.mark.parametrize(
    ("suffix", "start", "count"),
    [
        # Reads the log anew behind a crash: the write, the checkpoint and the recovery lock.
        ("-shm", 120, 3),
        # Is the last to close the file, and moves the log into it: the whole shared range.
        ("", 0x40000002, 510),
    ],
)
def test_who_opens_or_closes_a_file_is_waited_for(path, suffix, start, count, is_read_only):
    make(path)
    command = [sys.executable, "-c", HOLDING, f"{path}{suffix}", str(start), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        began = time.monotonic()
        with closing(open_database(path, is_read_only=is_read_only)):
            assert time.monotonic() - began > 0.2


def test_making_a_file_is_waited_for_and_no_longer(path):
    with closing(apsw.Connection(str(path))) as other:
        # As before it has a log: nobody else may read it, even.
        other.execute("begin exclusive")
        began = time.monotonic()
        with pytest.raises(StoreBusyError):
            open_database(path, busy_seconds=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        other.execute("rollback")
    make(path)


MAKING = """
import sys
from engine.queue.database import open_database
sys.stdin.read()
for number in range(20):
    open_database(f"{sys.argv[1]}{number}").close()
"""


def test_several_who_make_a_file_wait_for_each_other(path):
    """As `run` and the first `submit` do."""
    command = [sys.executable, "-c", MAKING, str(path)]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    for maker in makers:
        # They wait for it, so that all begin at once.
        maker.stdin.close()
    assert [maker.wait() for maker in makers] == [0, 0, 0, 0]


def test_free_octets_are_those_of_the_disk(path):
    make(path)
    with closing(open_database(path)) as db:
        assert db.free_octets() > 0
