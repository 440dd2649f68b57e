from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.queue import hints as module
from engine.queue import hints_file as file_module
from engine.queue.hints import MAX_SECONDS, MAX_VALUE, MemoryHints, open_hints
from engine.testing.clock import FakeClock
from tests.queue.conformance import CHECKS, MAX_ENTRIES


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hints.sqlite"


@contextmanager
def other_connection(path):
    """Open the file as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def rows_of(path):
    with other_connection(path) as connection:
        return connection.execute("select kind, key, value from hints order by number").fetchall()


async def until(is_true):
    """Wait for what a thread does; no clock of a test can hurry it."""
    with trio.fail_after(5):
        while not is_true():  # noqa: ASYNC110 - nothing would tell us
            await trio.sleep(0.001)


async def settle(hints):
    """Bring memory and file together, and let the task in the background come to rest."""
    # The first leaves the way to the file to the task, which is woken by now, the second waits.
    await hints.sync()
    await hints.sync()


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- every store --------------------------------------------------------------------------------


@asynccontextmanager
async def memory(path, clock):
    yield MemoryHints(max_entries=MAX_ENTRIES, clock=clock)


@asynccontextmanager
async def file(path, clock):
    async with open_hints(path, max_entries=MAX_ENTRIES, clock=clock, pause=0) as hints:
        yield hints


@asynccontextmanager
async def unusable_file(path, clock):
    async with open_hints(path / "no" / "such", max_entries=MAX_ENTRIES, clock=clock) as hints:
        yield hints


@asynccontextmanager
async def closed_file(path, clock):
    async with open_hints(path, max_entries=MAX_ENTRIES, clock=clock) as hints:
        pass
    yield hints


@pytest.mark.parametrize("store", [memory, file, unusable_file, closed_file])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_every_store_of_hints_behaves(store, check, path):
    clock = FakeClock()
    async with store(path, clock) as hints:
        check(hints, clock)


# -- memory -------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
VALUES = st.binary(max_size=40)


@given(st.lists(st.tuples(NAMES, st.one_of(st.none(), VALUES)), max_size=60))
def test_memory_stays_within_its_bounds_and_has_the_last_value_or_none(steps):
    hints = MemoryHints(max_entries=3, max_octets=60, clock=FakeClock())
    last = {}
    for key, value in steps:
        if value is None:
            hints.forget("k", key)
        else:
            hints.put("k", key, value, seconds=60)
            assert hints.get("k", key) == value
        last[key] = value

    kept = {key: hints.get("k", key) for key in last}
    assert all(value in (None, last[key]) for key, value in kept.items())
    there = [(key, value) for key, value in kept.items() if value is not None]
    assert len(hints) == len(there) <= 3
    assert sum(2 + len(value) for _, value in there) <= 60


def test_octets_make_room_too():
    hints = MemoryHints(max_octets=3 * MAX_VALUE, clock=FakeClock())
    for number in range(3):
        hints.put("policy", f"{number}.test", b"v" * MAX_VALUE, seconds=60)

    assert hints.get("policy", "0.test") is None
    assert hints.get("policy", "1.test") is not None
    assert hints.get("policy", "2.test") is not None


def test_what_expired_gives_its_room_back_unasked():
    clock = FakeClock()
    hints = MemoryHints(clock=clock)
    for number in range(100):
        hints.put("ehlo", f"mx{number}.test", b"1", seconds=60)
    clock.advance(60)
    hints.put("ehlo", "new.test", b"1", seconds=60)

    assert len(hints) == 1


def test_a_look_at_an_entry_is_no_use_of_it():
    clock = FakeClock()
    hints = MemoryHints(max_entries=2, clock=clock)
    hints.put("ehlo", "a.test", b"1", seconds=60)
    hints.put("ehlo", "b.test", b"2", seconds=60)

    assert hints.entry("ehlo", "a.test") == (b"1", clock() + 60)
    hints.put("ehlo", "c.test", b"3", seconds=60)
    assert hints.entry("ehlo", "a.test") is None
    clock.advance(60)
    assert hints.entry("ehlo", "b.test") is None


def test_no_room_at_all_is_refused():
    with pytest.raises(ValueError, match="max_entries 0"):
        MemoryHints(max_entries=0)


# -- the file -----------------------------------------------------------------------------------


async def test_hints_outlive_the_run(path):
    clock = FakeClock()
    async with open_hints(path, clock=clock) as hints:
        hints.put("ehlo", "mx.test", b"\x00\xff", seconds=60)
        hints.put("tls", "mx.test", b"broken", seconds=600)
        hints.put("tls", "gone.test", b"1", seconds=600)
        hints.forget("tls", "gone.test")

    clock.advance(60)
    async with open_hints(path, clock=clock) as hints:
        assert hints.get("tls", "mx.test") == b"broken"
        assert hints.get("ehlo", "mx.test") is None
        assert hints.get("tls", "gone.test") is None


async def test_only_its_owner_may_read_the_file(path):
    async with open_hints(path) as hints:
        hints.put("session", "mx.test", b"secret", seconds=60)
        await hints.sync()

        modes = [oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()]
    # The file, the log of writes and its index.
    assert modes == ["0o600"] * 3


async def test_what_is_put_is_written_in_the_background(path):
    async with open_hints(path, pause=0) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
        await until(lambda: rows_of(path))

        assert rows_of(path) == [("ehlo", "mx.test", b"1")]


async def test_a_get_looks_at_the_file_for_the_next_time(path):
    async with open_hints(path, pause=0) as ours, open_hints(path) as theirs:
        theirs.put("ehlo", "mx.test", b"1", seconds=60)
        await theirs.sync()
        await until(lambda: ours.get("ehlo", "mx.test") == b"1")


async def test_many_changes_of_one_hint_are_written_once(path):
    async with open_hints(path) as hints:
        for number in range(1000):
            hints.put("ehlo", "mx.test", b"%d" % number, seconds=60)
        await hints.sync()

        assert rows_of(path) == [("ehlo", "mx.test", b"999")]
        with other_connection(path) as connection:
            assert connection.execute("select number from hints").fetchone()[0] <= 2


async def test_more_than_a_batch_is_written_and_read(path):
    count = 2 * file_module.ROWS_AT_ONCE + 1
    async with open_hints(path) as hints:
        for number in range(count):
            hints.put("ehlo", f"{number}.test", b"1", seconds=60)

    async with open_hints(path) as hints:
        assert all(hints.get("ehlo", f"{number}.test") for number in range(count))


async def test_too_many_changes_lose_the_oldest(path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_UNWRITTEN", 2)
    async with open_hints(path) as hints:
        for name in ("a", "b", "c", "b"):
            hints.put("ehlo", name, b"1", seconds=60)

        assert hints.get("ehlo", "a") == b"1"
    assert [key for _, key, _ in rows_of(path)] == ["b", "c"]


async def test_who_wrote_last_is_right_for_all(path):
    async with open_hints(path) as a, open_hints(path) as b:
        a.put("ehlo", "mx.test", b"a", seconds=60)
        await a.sync()
        b.put("ehlo", "mx.test", b"b", seconds=60)
        await b.sync()
        await a.sync()

        assert a.get("ehlo", "mx.test") == b.get("ehlo", "mx.test") == b"b"


async def test_who_wrote_at_once_agree_in_the_end(path):
    async with open_hints(path, pause=0) as a, open_hints(path, pause=0) as b:
        for number in range(20):
            a.put("ehlo", "mx.test", b"a%d" % number, seconds=60)
            b.put("ehlo", "mx.test", b"b%d" % number, seconds=60)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.sync)
                nursery.start_soon(b.sync)
        await settle(a)
        await settle(b)
        await settle(a)

        ((_, _, value),) = rows_of(path)
        assert a.get("ehlo", "mx.test") == b.get("ehlo", "mx.test") == value


async def test_what_one_forgets_the_other_forgets(path):
    async with open_hints(path) as a, open_hints(path) as b:
        a.put("tls", "mx.test", b"broken", seconds=60)
        await a.sync()
        await b.sync()
        assert b.get("tls", "mx.test") == b"broken"
        b.forget("tls", "mx.test")
        await b.sync()
        await a.sync()

        assert a.get("tls", "mx.test") is None


async def test_a_change_while_the_file_is_written_is_written_next(path, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    exchange = file_module.HintsFile.exchange

    def slow_exchange(self, changes):
        if changes and not started.is_set():
            started.set()
            go_on.wait(5)
        return exchange(self, changes)

    monkeypatch.setattr(file_module.HintsFile, "exchange", slow_exchange)
    async with open_hints(path) as hints, trio.open_nursery() as nursery:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
        nursery.start_soon(hints.sync)
        await trio.to_thread.run_sync(started.wait, 5)
        hints.put("ehlo", "mx.test", b"2", seconds=60)
        go_on.set()

    assert rows_of(path) == [("ehlo", "mx.test", b"2")]


async def test_the_file_keeps_what_was_written_last_within_its_bound(path):
    async with open_hints(path) as hints:
        for number in range(20):
            hints.put("ehlo", f"{number}.test", b"1", seconds=60)
    async with open_hints(path, max_entries=5) as hints:
        assert hints.get("ehlo", "14.test") is None
        assert hints.get("ehlo", "15.test") == b"1"

    assert [key for _, key, _ in rows_of(path)] == [f"{number}.test" for number in range(15, 20)]


async def test_the_file_is_bounded_in_octets(path):
    async with open_hints(path) as hints:
        for number in range(5):
            hints.put("policy", f"{number}.test", b"v" * MAX_VALUE, seconds=60)
            await hints.sync()
    async with open_hints(path, max_octets=2 * MAX_VALUE):
        pass

    assert [key for _, key, _ in rows_of(path)] == ["3.test", "4.test"]


async def test_what_expired_is_swept_from_the_file(path):
    clock = FakeClock()
    async with open_hints(path, clock=clock) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
        hints.forget("ehlo", "forgotten.test")
        hints.put("tls", "mx.test", b"1", seconds=86_400)
        await hints.sync()
        assert len(rows_of(path)) == 3
        clock.advance(3600)
        await hints.sync()

        assert rows_of(path) == [("tls", "mx.test", b"1")]


async def test_so_many_writes_sweep_the_file(path, monkeypatch):
    monkeypatch.setattr(file_module, "_SWEEP_ROWS", 10)
    async with open_hints(path, max_entries=5) as hints:
        for number in range(100):
            hints.put("ehlo", f"{number}.test", b"1", seconds=60)
            await hints.sync()

    assert len(rows_of(path)) <= 15


async def test_a_wrong_clock_of_another_run_makes_nothing_immortal(path):
    clock = FakeClock()
    async with open_hints(path, clock=clock) as hints:
        clock.advance(10 * MAX_SECONDS)
        hints.put("ehlo", "mx.test", b"1", seconds=60)
    clock.advance(-10 * MAX_SECONDS)
    async with open_hints(path, clock=clock) as hints:
        clock.advance(MAX_SECONDS)

        assert hints.get("ehlo", "mx.test") is None


async def test_what_another_hand_wrote_is_read_with_care(path):
    async with open_hints(path) as hints:
        hints.put("ehlo", "good.test", b"1", seconds=60)
    with other_connection(path) as connection:
        connection.executemany(
            "insert into hints (kind, key, value, expires) values (?, ?, ?, ?)",
            [
                ("ehlo", "text.test", "text", 9e9),
                ("ehlo", "huge.test", b"v" * (MAX_VALUE + 1), 9e9),
                ("ehlo", "k" * 513, b"1", 9e9),
                (b"ehlo", "octets.test", b"1", 9e9),
                ("ehlo", "never.test", b"1", "soon"),
                ("ehlo", "infinite.test", b"1", float("inf")),
                ("ehlo", "fine.test", b"1", 9e9),
            ],
        )

    async with open_hints(path) as hints:
        assert hints.get("ehlo", "good.test") == hints.get("ehlo", "fine.test") == b"1"
        assert hints.get("ehlo", "infinite.test") == b"1"
        assert len(hints._memory) == 3


# -- files that cannot be used ------------------------------------------------------------------


def make_garbage(path):
    path.write_bytes(b"no database at all\n" * 500)
    return "not a database"


def make_short_garbage(path):
    path.write_bytes(b"garbage")
    return "not a database"


def make_foreign(path):
    with other_connection(path) as connection:
        connection.execute("create table hints (number, kind, key, value, expires)")
    return "another program"


def make_later_release(path):
    with other_connection(path) as connection:
        connection.execute(f"pragma application_id = {file_module._APPLICATION_ID}")
        connection.execute(f"pragma user_version = {len(file_module._SCHEMA) + 1}")
    return "later release"


def make_directory(path):
    path.mkdir()
    return "unable to open"


def make_fifo(path):
    os.mkfifo(path)
    return "I/O error"


@pytest.mark.parametrize(
    "make",
    [
        make_garbage,
        make_short_garbage,
        make_foreign,
        make_later_release,
        make_directory,
        make_fifo,
    ],
)
async def test_a_file_that_is_not_ours_costs_one_warning_and_stays_as_it_is(path, make, caplog):
    reason = make(path)
    before = path.read_bytes() if path.is_file() else None

    for _ in range(2):
        caplog.clear()
        async with open_hints(path, pause=0) as hints:
            hints.put("ehlo", "mx.test", b"1", seconds=60)
            await hints.sync()
            assert hints.get("ehlo", "mx.test") == b"1"

        (warning,) = warnings_in(caplog)
        assert str(path) in warning
        assert reason in warning
        assert "memory only" in warning
    assert (path.read_bytes() if path.is_file() else None) == before


async def test_a_file_that_breaks_under_us_costs_one_warning(path, caplog):
    async with open_hints(path, pause=0) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
        await hints.sync()
        with other_connection(path) as connection:
            connection.execute("drop table hints")
        for number in range(3):
            hints.put("ehlo", f"{number}.test", b"1", seconds=60)
            await hints.sync()

        assert hints.get("ehlo", "2.test") == b"1"
    assert len(warnings_in(caplog)) == 1


async def test_a_damaged_file_costs_one_warning(path, caplog):
    async with open_hints(path) as hints:
        for number in range(400):
            hints.put("ehlo", f"{number}.test", b"v" * 100, seconds=60)
    with path.open("r+b") as damaged:
        damaged.seek(4096)  # The first page says what it is and stays.
        damaged.write(b"\xa5" * (path.stat().st_size - 4096))

    async with open_hints(path) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
        assert hints.get("ehlo", "mx.test") == b"1"
    (warning,) = warnings_in(caplog)
    assert "malformed" in warning


@pytest.fixture
def read_only_directory():
    """A directory that this process may not write to, be it run by root or not."""
    directory = Path(tempfile.mkdtemp())
    user = os.geteuid()
    directory.chmod(0o755)
    yield directory
    os.seteuid(user)
    directory.chmod(0o755)
    shutil.rmtree(directory)


def lose_the_right_to_write(directory):
    for file in directory.iterdir():
        file.chmod(0o444)
    directory.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)


async def test_a_directory_that_is_read_only_costs_one_warning(read_only_directory, caplog):
    lose_the_right_to_write(read_only_directory)
    async with open_hints(read_only_directory / "hints.sqlite") as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)

        assert hints.get("ehlo", "mx.test") == b"1"
    (warning,) = warnings_in(caplog)
    assert "Permission denied" in warning


async def test_a_file_that_is_read_only_costs_one_warning(read_only_directory, caplog):
    path = read_only_directory / "hints.sqlite"
    async with open_hints(path) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
    lose_the_right_to_write(read_only_directory)
    async with open_hints(path) as hints:
        hints.put("ehlo", "mx.test", b"2", seconds=60)

        assert hints.get("ehlo", "mx.test") == b"2"
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("is_all", [True, False], ids=["all of it", "its main file"])
async def test_a_file_that_is_deleted_while_open_is_made_anew(path, is_all, caplog):
    async with open_hints(path) as hints:
        hints.put("ehlo", "old.test", b"1", seconds=60)
        await settle(hints)
        for file in path.parent.iterdir():
            if is_all or file == path:
                file.unlink()
        hints.put("ehlo", "new.test", b"2", seconds=60)
        await hints.sync()

        assert hints.get("ehlo", "old.test") == b"1"
    assert rows_of(path) == [("ehlo", "new.test", b"2")]
    assert warnings_in(caplog) == []


async def test_a_file_made_anew_is_read_from_its_start(path):
    async with open_hints(path) as ours:
        for number in range(10):
            ours.put("ehlo", f"{number}.test", b"1", seconds=60)
        await settle(ours)
        for file in path.parent.iterdir():
            file.unlink()
        async with open_hints(path) as theirs:
            theirs.put("ehlo", "mx.test", b"1", seconds=60)
        await ours.sync()

        assert ours.get("ehlo", "mx.test") == b"1"


async def test_a_directory_that_is_deleted_costs_one_warning(tmp_path, caplog):
    directory = tmp_path / "state"
    directory.mkdir()
    async with open_hints(directory / "hints.sqlite") as hints:
        shutil.rmtree(directory)
        hints.put("ehlo", "mx.test", b"1", seconds=60)

    assert len(warnings_in(caplog)) == 1


# -- several processes --------------------------------------------------------------------------

CHILD = """
import sys, trio
from engine.queue.hints import open_hints

async def main(path, rounds, width):
    async with open_hints(path, pause=0) as hints:
        print("parent:", hints.get("ehlo", "parent"), flush=True)
        for number in range(rounds):
            for place in range(width):
                hints.put("ehlo", f"{number}-{place}", b"v" * 1000, seconds=3600)
            await hints.sync()
            print(number, flush=True)

trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


def child(path, rounds, width):
    return [sys.executable, "-c", CHILD, str(path), str(rounds), str(width)]


async def test_two_processes_share_one_file(path):
    async with open_hints(path) as hints:
        hints.put("ehlo", "parent", b"from above", seconds=60)
        await hints.sync()
        done = await trio.run_process(child(path, 3, 2), capture_stdout=True)
        await hints.sync()

        assert b"parent: b'from above'" in done.stdout
        assert hints.get("ehlo", "2-1") == b"v" * 1000


async def test_processes_that_write_at_once_lose_nothing(path):
    async with open_hints(path, pause=0) as hints, trio.open_nursery() as nursery:
        run = partial(trio.run_process, child(path, 20, 3), capture_stdout=True)
        nursery.start_soon(run)
        for number in range(60):
            hints.put("tls", str(number), b"1", seconds=60)
            await trio.sleep(0.005)

    names = {(kind, key) for kind, key, _ in rows_of(path)}
    assert {("tls", str(number)) for number in range(60)} <= names
    assert {("ehlo", f"{number}-{place}") for number in range(20) for place in range(3)} <= names


def test_a_process_killed_while_it_writes_leaves_the_file_readable(path, caplog):
    written = []
    with subprocess.Popen(child(path, 1_000_000, 200), stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout.readline() == "parent: None\n"
        for line in killed.stdout:
            written.append(int(line))
            if len(written) == 5:
                killed.kill()

    async def read():
        async with open_hints(path) as hints:
            return [hints.get("ehlo", f"{number}-199") for number in written]

    assert trio.run(read) == [b"v" * 1000] * len(written)
    assert killed.returncode == -9
    assert warnings_in(caplog) == []


# -- locks, cancellation and the end ------------------------------------------------------------


async def test_a_locked_file_is_tried_again(path, monkeypatch, caplog):
    monkeypatch.setattr(file_module, "BUSY_SECONDS", 0.01)
    async with open_hints(path) as hints:
        with other_connection(path) as connection:
            connection.execute("begin immediate")
            hints.put("ehlo", "mx.test", b"1", seconds=60)
            await hints.sync()
            assert hints.get("ehlo", "mx.test") == b"1"
            assert rows_of(path) == []
            connection.execute("rollback")
        await hints.sync()

        assert rows_of(path) == [("ehlo", "mx.test", b"1")]
    assert warnings_in(caplog) == []


async def test_a_file_locked_at_the_start_is_read_later(path, monkeypatch, caplog):
    monkeypatch.setattr(file_module, "BUSY_SECONDS", 0.01)
    async with open_hints(path) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
    with other_connection(path) as connection:
        connection.execute("begin immediate")
        async with open_hints(path, pause=0) as hints:
            assert hints.get("ehlo", "mx.test") is None
            connection.execute("rollback")
            await hints.sync()

            assert hints.get("ehlo", "mx.test") == b"1"
    assert warnings_in(caplog) == []


async def test_a_file_locked_at_the_end_is_waited_for_so_long(path, monkeypatch):
    monkeypatch.setattr(file_module, "BUSY_SECONDS", 0.01)
    with other_connection(path) as connection, trio.fail_after(5):
        async with open_hints(path, close_seconds=0.05) as hints:
            hints.put("ehlo", "early.test", b"1", seconds=60)
            await hints.sync()
            connection.execute("begin immediate")
            hints.put("ehlo", "late.test", b"1", seconds=60)
        connection.execute("rollback")

    assert rows_of(path) == [("ehlo", "early.test", b"1")]


async def test_cancelled_it_still_writes_what_waits(path):
    with trio.CancelScope() as scope:
        async with open_hints(path) as hints:
            hints.put("ehlo", "mx.test", b"1", seconds=60)
            scope.cancel()
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert rows_of(path) == [("ehlo", "mx.test", b"1")]


async def test_cancelled_with_no_time_left_it_loses_nothing_that_was_written(path):
    with trio.CancelScope() as scope:
        async with open_hints(path, close_seconds=0) as hints:
            hints.put("ehlo", "early.test", b"1", seconds=60)
            await hints.sync()
            hints.put("ehlo", "late.test", b"1", seconds=60)
            scope.cancel()

    async with open_hints(path) as hints:
        assert hints.get("ehlo", "early.test") == b"1"
        assert hints.get("ehlo", "late.test") is None


async def test_a_cancelled_sync_loses_nothing(path):
    async with open_hints(path) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)
        with trio.CancelScope() as scope:
            scope.cancel()
            await hints.sync()

        assert scope.cancelled_caught
    assert rows_of(path) == [("ehlo", "mx.test", b"1")]


async def test_cancelled_before_it_is_read_it_lets_go_of_the_file(path):
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_hints(path):
            pytest.fail("the block was entered")

    assert scope.cancelled_caught
    assert not path.exists()


async def test_an_error_of_the_block_comes_out_as_it_is(path):
    with pytest.raises(KeyError):
        async with open_hints(path) as hints:
            hints.put("ehlo", "mx.test", b"1", seconds=60)
            raise KeyError

    assert rows_of(path) == [("ehlo", "mx.test", b"1")]


async def test_nothing_is_left_open_at_the_end(path):
    async with open_hints(path) as hints:
        hints.put("ehlo", "mx.test", b"1", seconds=60)

    # The last connection that is closed takes these away.
    assert list(path.parent.iterdir()) == [path]
