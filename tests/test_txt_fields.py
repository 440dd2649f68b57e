from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.txt_fields import read_fields

WORD = re.compile(r"[a-z ]+")


@pytest.mark.parametrize(
    ("texts", "fields"),
    [
        (["v=X1;a=b"], {"a": "b"}),
        (["v=X1 \t; \ta=b c \t;\td.e-f_9=g; "], {"a": "b c", "d.e-f_9": "g"}),
        (["v=X1;a=b;a=c"], {"a": "b"}),
        (["v=X1;" + "a" * 32 + "=b"], {"a" * 32: "b"}),
        (["v=spf1 -all", "v=X1;a=b", "v=X12;a=c", "v=x1;a=d", " v=X1;a=e"], {"a": "b"}),
    ],
)
def test_the_one_record_of_a_version_has_fields(texts, fields):
    assert read_fields(texts, "v=X1", WORD) == fields


@pytest.mark.parametrize(
    "text",
    [
        "v=X1",
        "v=X1;",
        "v=X1;;",
        "v=X1; ;a=b",
        "v=X1;a=b;;",
        "v=X1;a",
        "v=X1;a=",
        "v=X1;=b",
        "v=X1;a=B",
        "v=X1;a=b=c",
        "v=X1;a b=c",
        "v=X1;-a=b",
        "v=X1;" + "a" * 33 + "=b",
        "v=X1;a=b\n",
        "v=X1;\na=b",
    ],
)
def test_a_record_with_what_is_no_field_is_none(text):
    assert read_fields([text], "v=X1", WORD) is None


@pytest.mark.parametrize(
    "texts", [[], ["v=X2;a=b"], ["v=X1;a=b", "v=X1;a=b"], ["v=X1;a=b", "v=X1;"]]
)
def test_none_and_two_are_not_one(texts):
    assert read_fields(texts, "v=X1", WORD) is None


def test_the_version_is_no_pattern():
    assert read_fields(["v=X1;a=b"], "v=X.", WORD) is None


@given(st.lists(st.text(max_size=60).map("v=X1;".__add__), max_size=2))
def test_any_records_are_read(texts):
    fields = read_fields(texts, "v=X1", WORD)
    assert fields is None or all(map(WORD.fullmatch, fields.values()))
