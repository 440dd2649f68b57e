from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.delivery.parcel import Parcel, ends_content
from engine.smtp.command import DATA, Answers, bdat, content, mail, rcpt

ENVELOPE = (mail(b"s@me.test", []), rcpt(b"a@x.test"))
CHUNK = bdat(b"first\r\n", False, Answers.ONCE)
LAST = bdat(b"second\r\n", True, Answers.ONCE)
BODY = content(b"body\r\n.\r\n", Answers.ONCE)


def parcel(*window):
    return Parcel(window, b"".join(command.octets for command in window))


def position(*window):
    return sum(len(command.octets) for command in window)


@pytest.mark.parametrize(
    ("command", "ends"), [(DATA, False), (CHUNK, False), (LAST, True), (BODY, True)]
)
def test_contents_end_with_their_last_piece(command, ends):
    assert ends_content(command) is ends


def test_a_window_without_content_has_no_end():
    found = parcel(*ENVELOPE, DATA)

    assert not found.has_content
    assert not found.ends
    assert found.next_end > len(found.octets)
    assert found.content_within(0, len(found.octets)) == 0


def test_contents_end_where_their_last_octets_are():
    found = parcel(BODY, *ENVELOPE, CHUNK, LAST)

    assert found.has_content
    assert list(found.ends) == [position(BODY), len(found.octets)]
    assert found.next_end == position(BODY)


def test_a_content_is_unwritten_until_its_last_octet_has_left():
    found = parcel(BODY, *ENVELOPE, LAST)

    for sent in range(len(found.octets) + 1):
        found.sent = sent
        assert found.has_unwritten(BODY) is (sent < position(BODY))
        assert found.has_unwritten(LAST) is (sent < len(found.octets))
        assert not found.has_unwritten(ENVELOPE[0])
        assert not found.has_unwritten(CHUNK)  # is in another window


@given(st.lists(st.integers(0, position(BODY, *ENVELOPE, CHUNK, LAST)), max_size=5))
def test_octets_of_content_are_counted_once_however_they_leave(cuts):
    found = parcel(BODY, *ENVELOPE, CHUNK, LAST)
    places = [0, *sorted(cuts), len(found.octets)]

    counted = sum(found.content_within(start, stop) for start, stop in pairwise(places))

    assert counted == len(BODY.octets) + len(b"first\r\nsecond\r\n")
