from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.status import EnhancedStatusCode, read_enhanced

CODES = st.builds(
    EnhancedStatusCode, st.sampled_from([2, 4, 5]), st.integers(0, 999), st.integers(0, 999)
)


@given(CODES)
def test_a_code_reads_back_from_its_text(code):
    assert EnhancedStatusCode.parse(str(code)) == code


@given(CODES)
def test_a_code_is_found_at_the_start_of_a_reply_of_its_class(code):
    assert read_enhanced(code.severity * 100 + 50, f"{code} text".encode()) == code


@pytest.mark.parametrize("line", [b"5.1.1", b"5.1.1 no such user", b"5.1.1\tno such user"])
def test_a_code_ends_at_white_space_or_the_end(line):
    assert read_enhanced(550, line) == EnhancedStatusCode(5, 1, 1)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (550, b""),
        (550, b"no such user 5.1.1"),
        (550, b" 5.1.1 no such user"),
        (550, b"5.1.1: no such user"),
        (550, b"5.1.1.1 no such user"),
        (550, b"5.1 no such user"),
        (550, b"5.01.1 no such user"),
        (550, b"5.1000.1 no such user"),
        (550, b"5.1.1000 no such user"),
        (550, "5.\u0661.1 no such user".encode()),
        (550, b"4.7.1 try later"),
        (450, b"5.1.1 no such user"),
        (250, b"5.1.1 ok"),
        (354, b"3.0.0 go ahead"),
        (550, b"550 5.1.1 no such user"),
    ],
)
def test_a_code_that_is_malformed_or_contradicts_its_reply_is_not_used(code, line):
    assert read_enhanced(code, line) is None


@pytest.mark.parametrize(
    "text",
    ["", "5", "5.1", "5.1.1 ", " 5.1.1", "5.1.1\n", "3.1.1", "5.1.01", "5.1.1.1", "5.\u0663.1"],
)
def test_text_that_is_not_one_whole_code_is_refused(text):
    with pytest.raises(ValueError, match="not an enhanced status code such as"):
        EnhancedStatusCode.parse(text)


def test_codes_are_ordered_by_class_then_subject_then_detail():
    texts = ["2.0.0", "4.2.10", "4.10.1", "5.1.1"]
    assert list(map(str, sorted(map(EnhancedStatusCode.parse, reversed(texts))))) == texts
