from __future__ import annotations

import json
from dataclasses import replace

from engine.queue.entries import Entry
from engine.queue.values import Result, State
from tests.queue.mail import START

NEW = Entry(
    number=7,
    message="m1",
    sender="",
    recipient="a@one.test",
    state=State.QUEUED,
    attempts=0,
    next_attempt=START,
    submitted_at=START,
)


def test_an_entry_shows_what_is_not_known_as_nothing():
    assert NEW.as_dict() == {
        "message": "m1",
        "recipient": "a@one.test",
        "state": "queued",
        "attempts": 0,
        "next_attempt": "2023-11-14T22:13:20.000Z",
        "last": None,
        "reason": "",
        "sender": "",
        "submitted_at": "2023-11-14T22:13:20.000Z",
        "deadline": None,
        "tenant": "",
        "job": "",
        "priority": 0,
        "site": "",
        "result": None,
        "left_alone_until": None,
        "left_alone_for": "",
    }


def test_an_entry_shows_how_it_ended_and_its_last_outcome_as_it_was_written():
    ended = replace(
        NEW,
        state=State.ENDED,
        next_attempt=None,
        attempts=3,
        deadline=START + 0.25,
        result=Result.FAILED,
        last='{"status": "bounced"}',
    )
    shown = ended.as_dict()
    assert shown["next_attempt"] is None
    assert shown["deadline"] == "2023-11-14T22:13:20.250Z"
    assert (shown["state"], shown["result"]) == ("ended", "failed")
    assert shown["last"] == {"status": "bounced"}
    # Words, so that it can be written as JSON without anything of ours.
    assert type(shown["state"]) is type(shown["result"]) is str
    assert json.loads(json.dumps(shown)) == shown


def test_an_entry_shows_until_when_its_site_is_left_alone_and_why():
    shown = replace(NEW, left_alone_until=START + 60, left_alone_for="timed out").as_dict()
    assert shown["left_alone_until"] == "2023-11-14T22:14:20.000Z"
    assert shown["left_alone_for"] == "timed out"
