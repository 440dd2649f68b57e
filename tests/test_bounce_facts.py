from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine.bounce_facts import event_of, fate_of, progress_of, waited_since
from engine.outcome import Status
from engine.queue.decision import expired, record_of
from engine.queue.entries import Entry, StoredMessage
from engine.queue.retry import RetryRules, read_rules
from engine.queue.values import LeasedMessage, LeasedRecipient, Result, State
from engine.report.bounce_rules import Fate, due_reports
from tests.queue.mail import START, mail, outcome

HOUR = 3600.0


def stored(*, last=None, result=None, not_before=None, deadline=None, reason="", **how):
    message = mail("a@one.test", id="x", **how).message
    entry = Entry(
        number=7,
        message="x",
        sender="me@example.org",
        recipient="a@one.test",
        state=State.QUEUED if result is None else State.ENDED,
        attempts=2,
        next_attempt=None,
        submitted_at=START,
        deadline=deadline,
        tenant="t",
        job="j",
        result=result,
        reason=reason,
        last=last,
    )
    return StoredMessage(3, message, (entry,), not_before=not_before)


def progress(found, rules=None):
    (each,) = progress_of(found, rules)
    return each


@pytest.mark.parametrize(
    ("result", "fate"),
    [
        (None, Fate.WAITING),
        (Result.DEFERRED, Fate.WAITING),
        (Result.HELD, Fate.WAITING),
        (Result.DELIVERED, Fate.DONE),
        (Result.FAILED, Fate.GIVEN_UP),
    ],
)
def test_results_are_fates(result, fate):
    assert fate_of(result) is fate


def test_the_last_outcome_comes_back_with_its_time():
    failed = outcome(Status.FAILED, message="x", code=550, text="5.1.1 no such user")

    found = progress(stored(last=record_of(failed, START + 60), result=Result.FAILED, reason="r"))

    assert found.outcome == failed
    assert (found.tried_at, found.fate, found.reason) == (START + 60, Fate.GIVEN_UP, "r")
    assert found.retry_until is None


def test_what_expired_while_it_waited_was_not_tried_just_then():
    recipient = LeasedRecipient(
        number=7, address="a@one.test", site="one.test", attempts=0, first_attempt_at=START
    )
    message = mail("a@one.test", id="x").message
    gone = expired(
        LeasedMessage(message=message, recipients=(recipient,), lease=1, submitted_at=START), 0
    )

    found = progress(stored(last=record_of(gone, START + 60), result=Result.FAILED))

    assert (found.outcome, found.tried_at) == (gone, None)


@pytest.mark.parametrize("last", [None, "", "{}", "[]", '"x"', "7", '{"status": "failed"}'])
def test_a_record_that_says_nothing_is_none(last):
    found = progress(stored(last=last, result=Result.FAILED))

    assert (found.outcome, found.tried_at) == (None, None)


@pytest.mark.parametrize("time", [None, "yesterday", 7, []])
def test_a_record_of_an_earlier_release_does_not_say_when_it_was(time):
    record = json.loads(record_of(outcome(message="x"), START)) | {"time": time}
    if time is None:
        del record["time"]

    found = progress(stored(last=json.dumps(record)))

    assert found.outcome is not None
    assert found.tried_at in (None, 7)


def test_who_waits_is_tried_until_its_rule_ends():
    rules, _ = read_rules([{"match": "*", "steps": ["5m", "1h until 2d"]}])
    late = record_of(outcome(message="x", code=450), START)

    assert progress(stored(last=late), rules).retry_until == START + 48 * HOUR
    assert progress(stored(last=late), RetryRules()).retry_until == START + 96 * HOUR
    later = stored(last=late, not_before=START + HOUR)
    assert progress(later, rules).retry_until == START + 49 * HOUR
    assert progress(stored(last=late, deadline=START + 9), rules).retry_until == START + 9
    # Nobody knows: no rules, no outcome yet, or a rule without an end.
    assert progress(stored(last=late)).retry_until is None
    assert progress(stored(), rules).retry_until is None
    single, _ = read_rules([{"match": "*", "steps": ["5m"]}])
    assert progress(stored(last=late), single).retry_until is None
    assert progress(stored(last=late, deadline=START + 9)).retry_until == START + 9


def test_a_message_is_waited_for_once_it_may_be_tried():
    assert waited_since(stored()) == START
    assert waited_since(stored(not_before=START + 5)) == START + 5
    assert waited_since(stored(not_before=START - 5)) == START


def test_a_report_is_a_record_of_json():
    failed = outcome(Status.FAILED, message="x", code=550, text="5.1.1 no such user")
    found = stored(last=record_of(failed, START + 60), result=Result.FAILED, reason="permanent")
    (report,) = due_reports(found.message, progress_of(found), arrived_at=START, at=START + 61.5)

    assert json.loads(json.dumps(event_of(report, found))) == {
        "time": "2023-11-14T22:14:21.500Z",
        "event": "report",
        "report": report.id,
        "message": "x",
        "sender": "me@example.org",
        "envid": None,
        "tenant": "t",
        "job": "j",
        "submitted_at": "2023-11-14T22:13:20.000Z",
        "recipients": [
            {
                "recipient": "a@one.test",
                "orcpt": None,
                "kind": "failed",
                "action": "failed",
                "enhanced": "5.1.1",
                "reply": {"code": 550, "enhanced": "5.1.1", "lines": ["5.1.1 no such user"]},
                "text": "5.1.1 no such user",
                "host": "mx.one.test",
                "reason": "permanent",
                "last_attempt": "2023-11-14T22:14:20.000Z",
                "retry_until": None,
            }
        ],
    }


def test_a_record_of_who_was_never_tried_has_nothing_to_tell_of_hosts():
    found = stored(result=Result.FAILED, reason="cancelled by hand")
    found = replace(found, entries=(replace(found.entries[0], last=None),))
    (report,) = due_reports(found.message, progress_of(found), arrived_at=START, at=START)

    (recipient,) = event_of(report, found)["recipients"]

    assert recipient["reply"] is recipient["text"] is recipient["host"] is None
    assert (recipient["enhanced"], recipient["reason"]) == ("5.0.0", "cancelled by hand")
