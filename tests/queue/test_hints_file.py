"""The file by itself; through `open_hints` it is tested in test_hints.py."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from engine.queue.hints_file import MAX_VALUE, HintsFile, Row
from engine.testing.clock import FakeClock


@pytest.fixture
def file(tmp_path):
    with closing(HintsFile(tmp_path / "hints.sqlite", 3, 10 * MAX_VALUE, FakeClock(1000.0))) as it:
        yield it


def test_what_was_written_comes_back_once_and_in_order(file):
    first, second = Row("ehlo", "a.test", b"1", 2000.0), Row("ehlo", "a.test", b"2", 2000.0)

    assert file.exchange([first]) == ([first], False)
    assert file.exchange([second]) == ([second], False)
    assert file.exchange([]) == ([], False)


def test_another_connection_finds_what_is_new_to_it(file):
    row = Row("ehlo", "a.test", b"1", 2000.0)
    file.exchange([row])

    with closing(HintsFile(file.path, 3, 10 * MAX_VALUE, FakeClock(1000.0))) as other:
        assert other.exchange([]) == ([row], False)


def test_what_was_forgotten_is_told_to_others(file):
    file.exchange([Row("ehlo", "a.test", b"1", 2000.0)])
    gone = Row("ehlo", "a.test", None, 2000.0)

    file.exchange([gone])

    with closing(HintsFile(file.path, 3, 10 * MAX_VALUE, FakeClock(1000.0))) as other:
        assert other.exchange([]) == ([gone], False)


def test_the_first_exchange_of_a_run_sweeps_what_is_too_much(file):
    file.exchange([Row("ehlo", f"{number}.test", b"1", 2000.0) for number in range(5)])

    with closing(HintsFile(file.path, 3, 10 * MAX_VALUE, FakeClock(1000.0))) as other:
        rows, _ = other.exchange([])

    assert [row.key for row in rows] == ["2.test", "3.test", "4.test"]


def test_another_programs_file_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "theirs.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table theirs (x)")
        connection.commit()
    before = path.read_bytes()

    with closing(HintsFile(path, 3, MAX_VALUE, FakeClock(0.0))) as file:
        with pytest.raises((sqlite3.Error, OSError)):
            file.exchange([])

    assert path.read_bytes() == before
