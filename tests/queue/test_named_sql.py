from __future__ import annotations

import pytest

from engine.queue.named_sql import parse_statements


def test_statements_are_found_by_name_without_their_comments():
    text = """-- Of a file.

-- What it is for.
-- name: first
select 1,  -- one
    '--' || x  -- and x
from t;

-- Another.
-- name: second_one
delete from t
-- those that are old
where x < :y
"""

    assert parse_statements(text) == {
        "first": "select 1,\n    '--' || x\nfrom t",
        "second_one": "delete from t\nwhere x < :y",
    }


@pytest.mark.parametrize(
    "text", ["-- name: a\nselect 1\n-- name: a\nselect 2", "-- name: a\n-- nothing\n"]
)
def test_a_statement_is_there_once_and_not_empty(text):
    with pytest.raises(ValueError, match="'a' is empty or stands twice"):
        parse_statements(text)


def test_text_before_the_first_name_is_no_statement():
    assert parse_statements("select 1") == {}
