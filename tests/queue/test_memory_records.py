from __future__ import annotations

import pytest

from engine.queue.memory_records import (
    KeptMessage,
    KeptRecipient,
    entry_of,
    fingerprint,
    gather,
    is_selected,
)
from engine.queue.values import Selection, State
from tests.queue.mail import CONTENT, START, mail


def kept(submission, *, first=1, **how):
    """Make what a store keeps of a submission's recipients."""
    message = KeptMessage(1, submission.message, submission, "", [])
    return [
        KeptRecipient(first + place, message, recipient, int(START * 1000), **how)
        for place, recipient in enumerate(submission.message.recipients)
    ]


@pytest.mark.parametrize(
    ("selection", "is_it"),
    [
        ({}, True),
        ({"domain": "sub.one.test"}, True),
        ({"domain": "*.one.test"}, True),
        ({"domain": "one.test"}, False),
        ({"domain": "*.sub.one.test"}, False),
        ({"states": frozenset({State.HELD})}, True),
        ({"states": frozenset({State.QUEUED})}, False),
        ({"sender": "me@example.org", "message": "x"}, True),
        ({"sender": ""}, False),
        ({"message": "x", "tenant": "t", "job": "j", "recipient": "a@sub.one.test"}, True),
        ({"message": "x", "job": ""}, False),
    ],
)
def test_a_recipient_is_selected_when_all_that_is_given_holds(selection, is_it):
    submission = mail("a@sub.one.test", id="x", tenant="t", job="j")
    (each,) = kept(submission, state=State.HELD)

    assert is_selected(Selection(**selection), each) is is_it


def test_leased_recipients_are_gathered_by_message():
    one = kept(mail("a@one.test", "b@one.test", id="x"), site="mx.test", attempts=2, wait=5000)
    other = kept(mail("c@one.test", id="y"), first=9)
    other[0].message.number = 2

    first, second = gather([one[1], other[0], one[0]], 7)

    assert [r.number for r in first.recipients] == [2, 1]
    assert [r.address for r in first.message.recipients] == ["b@one.test", "a@one.test"]
    assert (first.lease, first.recipients[0].site, first.recipients[0].wait) == (7, "mx.test", 5)
    assert second.message.id == "y"


def test_an_entry_says_when_only_while_it_is_going_to_be_tried():
    (each,) = kept(mail())

    assert entry_of(each, "mx.test").next_attempt == START
    each.state = State.HELD
    assert entry_of(each, "mx.test").next_attempt is None


def test_a_fingerprint_tells_messages_apart():
    same, octets = mail(id="x"), CONTENT.octets

    assert fingerprint(same, octets) == fingerprint(mail(id="y", at=START + 1), octets)
    assert fingerprint(same, octets) != fingerprint(same, b"")
    assert fingerprint(same, octets) != fingerprint(mail("b@one.test"), octets)
