from __future__ import annotations

import math

import pytest

from engine.content import from_text
from engine.errors import SubmitError
from engine.message import Message, Recipient
from engine.queue.submission import MAX_RECIPIENTS, Submission
from tests.queue.mail import START, mail


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"id": "x" * 256}, "id of 256 characters; allowed are 1 to 255"),
        ({"id": "a\0b"}, "without NUL"),
        ({"id": "a\ud800"}, r"'a\\ud800': allowed is text that UTF-8 can encode"),
        ({"tenant": "t" * 256}, "tenant of 256 characters"),
        ({"job": "\udfff"}, "job"),
        ({"priority": 10}, "priority 10; allowed are -9 to 9"),
        ({"priority": -10}, "priority -10"),
        ({"at": -1.0}, "submitted_at -1.0; allowed are seconds since the epoch"),
        ({"at": 1.7e12}, "submitted_at"),  # milliseconds
        ({"not_before": math.nan}, "not_before nan"),
        ({"deadline": math.inf}, "deadline inf"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_what_is_allowed(facts, said):
    with pytest.raises(SubmitError, match=said):
        mail(**facts)


def test_a_message_needs_an_id():
    message = Message("", None, (Recipient.parse("a@one.test"),), from_text(""))

    with pytest.raises(SubmitError, match="id of 0 characters"):
        Submission(message=message, submitted_at=START)


def test_an_original_recipient_that_cannot_be_kept_is_refused():
    recipient = Recipient.parse("a@one.test", (), "rfc822;\ud800@x.test")
    message = Message("x", None, (recipient,), from_text(""))

    with pytest.raises(SubmitError, match="orcpt"):
        Submission(message=message, submitted_at=START)


def test_a_message_with_too_many_recipients_is_refused():
    recipients = (Recipient.parse("a@one.test"),) * (MAX_RECIPIENTS + 1)
    message = Message("x", None, recipients, from_text(""))

    with pytest.raises(SubmitError, match="'x' has 100001 recipients; allowed are 100000"):
        Submission(message=message, submitted_at=START)


def test_limits_are_allowed():
    mail(id="x" * 255, tenant="t" * 255, priority=9, not_before=0.0, deadline=START)
    mail(priority=-9, job="\n")
