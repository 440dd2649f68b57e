from __future__ import annotations

import pytest

from engine.showing import show, show_key, suggest


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "nothing"),
        (True, "true"),
        ('it\'s "so"', '"it\'s \\"so\\""'),
        ("\x1b[31m", '"\\x1b[31m"'),
        ("x" * 81, f'"{"x" * 80}…"'),
        ([1, "a"], '[1, "a"]'),
        ([1, 2, 3, 4, 5, 6], "[1, 2, 3, 4, 5, …]"),
        ({"a": 1}, "a table"),
        (10**30, "a very large number"),
    ],
)
def test_values_are_shown_short_and_on_one_line(value: object, shown: str):
    assert show(value) == shown


@pytest.mark.parametrize(
    ("key", "shown"), [("a_b-1", "a_b-1"), ("a b", '"a b"'), ("a\nb", '"a\\nb"'), ("", '""')]
)
def test_keys_are_quoted_where_toml_would(key: str, shown: str):
    assert show_key(key) == shown


def test_the_nearest_name_is_suggested_and_else_all_are_listed():
    known = ("port", "chunking")
    assert suggest("chunkin", known) == 'a known name; did you mean "chunking"?'
    assert suggest("defaults.port", known) == 'a known name; did you mean "port"?'
    assert suggest("zzz", known) == "one of port, chunking"
