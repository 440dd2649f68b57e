"""What an engine is given, looked at where it is given; `tests/test_engine.py` has it as a whole."""

import math
from pathlib import Path

import pytest

from engine.arguments import check_count, check_resolver, check_seconds, check_store, no_message
from engine.queue.memory import MemoryStore
from engine.queue.sqlite import open_store
from engine.routing.resolver import NoResolver


@pytest.mark.parametrize("seconds", [0, 0.0, 0.5, 10, 1e9])
def test_a_time_is_a_number_of_seconds(seconds):
    check_seconds("grace", seconds)


@pytest.mark.parametrize("seconds", ["10s", "10", None, True, [10], 1j])
def test_a_time_is_nothing_else(seconds):
    said = f"grace is a {type(seconds).__name__}; allowed is a number of seconds"
    with pytest.raises(TypeError, match=said):
        check_seconds("grace", seconds)


@pytest.mark.parametrize("seconds", [-1, -0.001, math.inf, -math.inf, math.nan])
def test_a_time_has_an_end_that_is_still_to_come(seconds):
    with pytest.raises(
        ValueError, match=f"grace is {seconds}; allowed is a number of seconds, 0 or"
    ):
        check_seconds("grace", seconds)


@pytest.mark.parametrize("count", [1, 1000])
def test_a_count_is_a_whole_number(count):
    check_count("max_in_flight", count)


@pytest.mark.parametrize("count", ["10", None, True, 1.0, math.inf])
def test_a_count_is_nothing_else(count):
    said = f"max_in_flight is a {type(count).__name__}; allowed is a whole number, at least 1"
    with pytest.raises(TypeError, match=said):
        check_count("max_in_flight", count)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_begins_with_one(count):
    with pytest.raises(ValueError, match=f"max_in_flight is {count}; at least 1 is needed"):
        check_count("max_in_flight", count)


def test_a_resolver_answers_questions():
    check_resolver(None)
    check_resolver(NoResolver())
    with pytest.raises(
        TypeError, match=r"resolver is a str; allowed is a Resolver; .* name_servers"
    ):
        check_resolver("8.8.8.8")


def test_a_store_keeps_mail_open_or_not(tmp_path):
    check_store(None)
    check_store(MemoryStore())
    check_store(open_store(tmp_path / "spool.sqlite"))


@pytest.mark.parametrize("path", ["spool.sqlite", Path("spool.sqlite")])
def test_the_path_of_a_store_is_none(path):
    said = r"allowed is what open_store returns, as in open_store\('spool\.sqlite'\)"
    with pytest.raises(TypeError, match=said):
        check_store(path)


@pytest.mark.parametrize("store", [7, b"spool.sqlite", {}])
def test_anything_else_is_no_store(store):
    with pytest.raises(TypeError, match=r"store is a .*; allowed is what open_store returns$"):
        check_store(store)


def test_what_is_no_message_is_named():
    error = no_message("hello")
    assert isinstance(error, TypeError)
    assert str(error) == "message is a str; allowed is a Message"
