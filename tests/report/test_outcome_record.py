"""Outcomes that come back from their records, and records that are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Cause, Features, Outcome, Peer, Scope, Status
from engine.report.outcome_record import read_record
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

LEAST = {"message": "1", "recipient": "a@b.test", "status": "failed"}

TEXT = st.text(max_size=20)
OUTCOMES = st.builds(
    Outcome,
    message=TEXT,
    recipient=TEXT,
    status=st.sampled_from(Status),
    stage=st.sampled_from(Stage),
    cause=st.sampled_from(Cause),
    text=TEXT,
    scope=st.none() | st.sampled_from(Scope),
    reply=st.none()
    | st.builds(
        Reply, st.integers(200, 599), st.lists(TEXT.map(str.encode), min_size=1).map(tuple)
    ),
    enhanced=st.none()
    | st.builds(EnhancedStatusCode, st.sampled_from([2, 4, 5]), *[st.integers(0, 999)] * 2),
    peer=st.none()
    | st.builds(
        Peer,
        TEXT,
        st.none() | TEXT,
        st.none() | st.integers(1, 65535),
        st.none() | TEXT,
        st.none() | st.integers(1),
    ),
    source=st.none() | TEXT,
    transaction=st.none() | st.integers(1),
    features=st.builds(
        Features, *[st.booleans()] * 5, proxy=st.none() | TEXT, auth=st.none() | TEXT
    ),
)


@given(OUTCOMES)
def test_an_outcome_comes_back_from_its_record(outcome):
    assert read_record(json.loads(json.dumps(outcome.as_dict()))) == outcome


def test_octets_that_are_no_text_come_back_as_escapes():
    outcome = Outcome(
        message="1",
        recipient="a@b.test",
        status=Status.FAILED,
        stage=Stage.RCPT,
        cause=Cause.REPLY,
        text="",
        reply=Reply(550, (b"\xfcber \xf0",)),
    )

    assert read_record(outcome.as_dict()).reply == Reply(550, (rb"\xfcber \xf0",))


def test_a_record_may_be_short():
    assert read_record(LEAST) == Outcome(
        message="1",
        recipient="a@b.test",
        status=Status.FAILED,
        stage=Stage.ROUTE,
        cause=Cause.INTERNAL,
        text="",
    )


@pytest.mark.parametrize(
    "facts",
    [
        {"stage": "moon", "cause": 7, "scope": []},
        {"reply": "550 no"},
        {"reply": {"code": 99, "lines": ["no"]}},
        {"reply": {"code": True, "lines": ["no"]}},
        {"reply": {"code": 550, "lines": "no"}},
        {"enhanced": "5.1"},
        {"enhanced": "5.1.1\ud800"},
        {"enhanced": 5},
        {"host": None, "address": "192.0.2.1"},
        {"features": [], "transaction": "1", "source": 1},
        {"features": {"lmtp": "yes", "proxy": 5}},
        {"of": "another release"},
    ],
)
def test_what_cannot_be_read_is_left_out(facts):
    assert read_record({**LEAST, **facts}) == read_record(LEAST)


def test_lines_that_are_none_are_left_out():
    reply = {"code": 550, "lines": [None, "no", 5]}

    assert read_record({**LEAST, "reply": reply}).reply == Reply(550, (b"no",))
    assert read_record({**LEAST, "reply": {**reply, "lines": []}}).reply == Reply(550, (b"",))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {**LEAST, "status": "lost"},
        {**LEAST, "status": None},
        {**LEAST, "message": 1},
        {**LEAST, "recipient": None},
    ],
)
def test_a_record_names_a_message_a_recipient_and_a_status(record):
    with pytest.raises(ValueError, match="one of delivered, deferred, failed, unknown"):
        read_record(record)
