from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.worker import control
from engine.worker.control import (
    VERSION,
    HeadBuffer,
    WireError,
    check_greeting,
    frame,
    greeting,
)

HEADS = [b"{}", b'{"n": 1}', b"x" * 300]


def cut(octets, size):
    return [octets[start : start + size] for start in range(0, len(octets), size)]


def heads_in(pieces):
    buffer, found = HeadBuffer(), []
    for piece in pieces:
        buffer.feed(piece)
        while (head := buffer.next_head()) is not None:
            found.append(head)
    return found, buffer.is_empty


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_heads_come_out_as_they_went_in_however_they_are_cut(size):
    octets = b"".join(map(frame, HEADS))
    assert heads_in(cut(octets, size)) == (HEADS, True)


def test_a_head_that_is_not_complete_is_waited_for():
    octets = frame(b"{}")
    for end in range(len(octets)):
        found, is_empty = heads_in([octets[:end]])
        assert (found, is_empty) == ([], end == 0)


def test_contents_stand_between_heads_and_are_taken_as_they_come():
    buffer = HeadBuffer()
    buffer.feed(frame(b"{}") + b"content" + frame(b"[]"))
    assert buffer.next_head() == b"{}"
    assert buffer.take(3) + buffer.take(4) == b"content"
    assert buffer.next_head() == b"[]"
    assert buffer.take(10) == b""


@pytest.mark.parametrize("length", [0, control.MAX_HEAD_OCTETS + 1, 2**32 - 1])
def test_a_head_without_octets_or_with_too_many_is_refused_before_it_is_held(length):
    buffer = HeadBuffer()
    buffer.feed(length.to_bytes(4))
    with pytest.raises(WireError, match=f"a head of {length} octets; allowed are 1 to"):
        buffer.next_head()


def test_a_head_that_is_too_large_is_not_sent(monkeypatch):
    monkeypatch.setattr(control, "MAX_HEAD_OCTETS", 10)
    assert frame(b"x" * 10)
    with pytest.raises(WireError, match="11 octets"):
        frame(b"x" * 11)


@given(st.lists(st.binary(max_size=40)))
def test_any_octets_give_heads_or_an_error_or_wait_for_more(pieces):
    buffer = HeadBuffer(limit=64)
    try:
        for piece in pieces:
            buffer.feed(piece)
            while (head := buffer.next_head()) is not None:
                assert 0 < len(head) <= 64
    except WireError as error:
        assert "allowed are 1 to 64" in str(error)  # noqa: PT017 - either may come


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 60))
def test_any_heads_survive_any_cut(heads, size):
    assert heads_in(cut(b"".join(map(frame, heads)), size)) == (heads, True)


def test_a_greeting_is_understood():
    buffer = HeadBuffer()
    buffer.feed(greeting())
    check_greeting(buffer.next_head())


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (json.dumps({"control": VERSION + 1}).encode(), "version 2 .*; allowed is 1"),
        (b'{"control": "1"}', "no worker"),
        (b"{}", "no worker"),
        (b"[1]", "no worker"),
        (b"220 mx.test ESMTP", "no worker"),
        (b"\xff", "no worker"),
        (b"[" * 4000, "no worker"),
    ],
)
def test_who_greets_otherwise_is_refused(head, said):
    with pytest.raises(WireError, match=said):
        check_greeting(head)
