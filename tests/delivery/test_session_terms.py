from __future__ import annotations

import pytest

from engine.delivery.session_terms import SessionLost, Timeouts
from engine.outcome import Cause
from engine.smtp.command import Kind

TIMEOUTS = Timeouts(greeting=1.0, command=2.0, data=3.0, final=4.0, quit=5.0)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        (Kind.CONNECT, 1.0),
        (Kind.EHLO, 2.0),
        (Kind.DATA, 2.0),
        (Kind.BDAT, 2.0),
        (Kind.CONTENT, 4.0),
        (Kind.BDAT_LAST, 4.0),
        (Kind.QUIT, 5.0),
    ],
)
def test_each_kind_of_command_has_its_time(kind, seconds):
    assert TIMEOUTS.of_kinds()[kind] == seconds


def test_no_kind_of_command_is_without_one():
    assert TIMEOUTS.of_kinds().keys() == set(Kind)


def test_remarks_are_added_to_what_is_known():
    ending = SessionLost(Cause.CLOSED, None)
    ending.add_remark("one thing")
    ending.add_remark("another")
    ending.add_remark("")

    assert ending.detail == "one thing; another"
