"""Which reports are due: RFC 3461 §5.2 as a table, and delays on a clock that is a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Status
from engine.report.bounce_rules import MAX_RECIPIENTS, Fate, Kind, due_kind, due_reports
from engine.smtp.status import EnhancedStatusCode
from tests.report.bounces import (
    ARRIVED,
    DELAYED,
    FAILED,
    NOW,
    STORIES,
    make_message,
    make_outcome,
    make_progress,
)

HOUR = 3600.0
NOBODY_ASKED = ()
SUCCESS, FAILURE, DELAY, NEVER = {"success"}, {"failure"}, {"delay"}, {"never"}
ALL = {"success", "failure", "delay"}


def due(message, progress, **facts):
    """What is due, as pairs of kind and address."""
    given = {"arrived_at": ARRIVED, "at": NOW, "warn_after": (HOUR,), **facts}
    return [
        [(entry.kind, entry.progress.recipient.address) for entry in report.entries]
        for report in due_reports(message, progress, **given)
    ]


# ---- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "status", "lmtp", "is_passed_on", "notify", "kind"),
    [
        # RFC 3461 §5.2.6, §5.2.2 (c) and (f): failure.
        (Fate.GIVEN_UP, Status.FAILED, False, False, NOBODY_ASKED, Kind.FAILED),
        (Fate.GIVEN_UP, Status.FAILED, False, False, FAILURE, Kind.FAILED),
        (Fate.GIVEN_UP, Status.FAILED, False, False, ALL, Kind.FAILED),
        (Fate.GIVEN_UP, Status.FAILED, True, False, NOBODY_ASKED, Kind.FAILED),
        (Fate.GIVEN_UP, Status.FAILED, False, False, SUCCESS, None),
        (Fate.GIVEN_UP, Status.FAILED, False, False, DELAY, None),
        (Fate.GIVEN_UP, Status.FAILED, False, False, {"success", "delay"}, None),
        (Fate.GIVEN_UP, Status.FAILED, False, False, NEVER, None),
        # A host that refuses has taken over nothing, whatever it understands.
        (Fate.GIVEN_UP, Status.FAILED, False, True, NOBODY_ASKED, Kind.FAILED),
        (Fate.GIVEN_UP, Status.DEFERRED, False, False, NOBODY_ASKED, Kind.EXPIRED),
        (Fate.GIVEN_UP, Status.DEFERRED, False, False, FAILURE, Kind.EXPIRED),
        (Fate.GIVEN_UP, Status.DEFERRED, False, False, DELAY, None),
        (Fate.GIVEN_UP, Status.DEFERRED, False, False, NEVER, None),
        (Fate.GIVEN_UP, Status.UNKNOWN, False, False, NOBODY_ASKED, Kind.EXPIRED),
        # RFC 3461 §5.2.1 to §5.2.3: success.
        (Fate.DONE, Status.DELIVERED, False, False, SUCCESS, Kind.RELAYED),
        (Fate.DONE, Status.DELIVERED, False, False, ALL, Kind.RELAYED),
        (Fate.DONE, Status.DELIVERED, True, False, SUCCESS, Kind.DELIVERED),
        (Fate.DONE, Status.DELIVERED, False, True, SUCCESS, None),
        (Fate.DONE, Status.DELIVERED, True, True, SUCCESS, None),
        (Fate.DONE, Status.DELIVERED, False, False, NOBODY_ASKED, None),
        (Fate.DONE, Status.DELIVERED, True, False, NOBODY_ASKED, None),
        (Fate.DONE, Status.DELIVERED, False, False, FAILURE, None),
        (Fate.DONE, Status.DELIVERED, True, False, {"failure", "delay"}, None),
        (Fate.DONE, Status.DELIVERED, False, False, NEVER, None),
        # Taken for delivered is not delivered.
        (Fate.DONE, Status.UNKNOWN, False, False, SUCCESS, None),
        (Fate.DONE, Status.UNKNOWN, True, False, ALL, None),
        # RFC 3461 §5.2.5: delay.
        (Fate.WAITING, Status.DEFERRED, False, False, NOBODY_ASKED, Kind.DELAYED),
        (Fate.WAITING, Status.DEFERRED, False, False, DELAY, Kind.DELAYED),
        (Fate.WAITING, Status.DEFERRED, False, False, ALL, Kind.DELAYED),
        (Fate.WAITING, Status.UNKNOWN, False, False, NOBODY_ASKED, Kind.DELAYED),
        (Fate.WAITING, Status.DEFERRED, False, False, FAILURE, None),
        (Fate.WAITING, Status.DEFERRED, False, False, {"success", "failure"}, None),
        (Fate.WAITING, Status.DEFERRED, False, False, NEVER, None),
    ],
)
def test_what_is_due_depends_on_how_it_stands_and_on_what_was_asked_for(
    fate, status, lmtp, is_passed_on, notify, kind
):
    outcome = make_outcome(status, lmtp=lmtp)
    progress = make_progress(fate, notify=notify, outcome=outcome, is_passed_on=is_passed_on)

    assert due_kind(make_message(), progress) is kind
    assert due(make_message(), [progress]) == ([[(kind, "bob@b.test")]] if kind else [])


@pytest.mark.parametrize("fate", Fate)
@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("notify", [NOBODY_ASKED, ALL])
def test_nothing_is_ever_due_to_the_null_path(fate, status, notify):
    """RFC 3461 §5.2: not even if the header names a sender; else bounces would bounce for ever."""
    progress = make_progress(fate, status, notify=notify)

    assert due_kind(make_message(sender="<>"), progress) is None
    assert due(make_message(sender="<>"), [progress]) == []


@pytest.mark.parametrize("fate", Fate)
@pytest.mark.parametrize("status", Status)
def test_nothing_is_ever_due_with_notify_never(fate, status):
    assert due(make_message(), [make_progress(fate, status, notify=NEVER)]) == []


def test_a_deadline_that_passed_is_no_refusal():
    """Whoever gives up for want of time says so with a status of its own: 4.4.7."""
    expired = EnhancedStatusCode(4, 4, 7)
    outcome = make_outcome(Status.FAILED, reply=False, enhanced=expired)

    assert due_kind(make_message(), make_progress(Fate.GIVEN_UP, outcome=outcome)) is Kind.EXPIRED


@pytest.mark.parametrize(
    ("fate", "kind"),
    [(Fate.GIVEN_UP, Kind.FAILED), (Fate.WAITING, Kind.DELAYED), (Fate.DONE, None)],
)
def test_who_was_never_tried_is_reported_on_too(fate, kind):
    progress = make_progress(fate, reason="cancelled", notify=ALL)

    assert due_kind(make_message(), progress) is kind


# ---- sharing ------------------------------------------------------------------------------------


def test_recipients_share_a_report_and_the_worst_come_first():
    progress = [STORIES[kind] for kind in reversed(Kind)]

    assert due(make_message(), progress) == [
        [
            (Kind.FAILED, "bob@b.test"),
            (Kind.EXPIRED, "carol@b.test"),
            (Kind.DELAYED, "dave@b.test"),
            (Kind.RELAYED, "erin@b.test"),
            (Kind.DELIVERED, "frank@b.test"),
        ]
    ]


def test_a_report_leaves_out_whom_nothing_is_due_for():
    """RFC 3461 §5.2.8."""
    silent = make_progress(Fate.GIVEN_UP, Status.FAILED, "mallory@b.test", NEVER)

    assert due(make_message(), [silent, FAILED]) == [[(Kind.FAILED, "bob@b.test")]]


def test_recipients_of_one_kind_keep_their_order():
    progress = [
        make_progress(Fate.GIVEN_UP, Status.FAILED, f"{name}@b.test") for name in ("z", "a", "m")
    ]

    assert [address for _, address in due(make_message(), progress)[0]] == [
        "z@b.test",
        "a@b.test",
        "m@b.test",
    ]


def test_a_report_is_bounded_and_nobody_is_left_out():
    addresses = [f"r{number}@b.test" for number in range(2 * MAX_RECIPIENTS + 1)]
    progress = [make_progress(Fate.GIVEN_UP, Status.FAILED, each) for each in addresses]

    reports = due_reports(make_message(), progress, arrived_at=ARRIVED, at=NOW)

    assert [len(report.entries) for report in reports] == [MAX_RECIPIENTS, MAX_RECIPIENTS, 1]
    entries = [entry for report in reports for entry in report.entries]
    assert [entry.progress.recipient.address for entry in entries] == addresses
    assert len({report.id for report in reports}) == 3


def test_a_report_has_the_facts():
    message = make_message()

    (report,) = due_reports(message, [FAILED], arrived_at=ARRIVED, at=NOW)

    assert (report.message, report.arrived_at, report.at) == (message, ARRIVED, NOW)
    assert report.entries[0].progress is FAILED


@pytest.mark.parametrize("kind", Kind)
def test_only_failures_may_return_the_content(kind):
    (report,) = due_reports(
        make_message(), [STORIES[kind]], arrived_at=ARRIVED, at=NOW, warn_after=(HOUR,)
    )

    assert report.has_failures is kind.is_failure
    assert kind.is_failure is (kind in (Kind.FAILED, Kind.EXPIRED))


def test_nobody_gives_no_report():
    assert due(make_message(), []) == []


# ---- delays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warn_after", "waited", "warned_after", "is_due"),
    [
        ((), 1e6, None, False),
        ((4 * HOUR,), 4 * HOUR - 1, None, False),
        ((4 * HOUR,), 4 * HOUR, None, True),
        ((4 * HOUR,), 40 * HOUR, None, True),
        ((4 * HOUR,), 5 * HOUR, 4 * HOUR, False),
        ((4 * HOUR,), 90 * HOUR, 4 * HOUR + 1, False),
        # Each time has its warning.
        ((4 * HOUR, 24 * HOUR), 23 * HOUR, 4.5 * HOUR, False),
        ((4 * HOUR, 24 * HOUR), 24 * HOUR, 4.5 * HOUR, True),
        ((4 * HOUR, 24 * HOUR), 30 * HOUR, 24.5 * HOUR, False),
        ((24 * HOUR, 4 * HOUR), 30 * HOUR, 4.5 * HOUR, True),
        # After an idle day one warning makes up for two.
        ((4 * HOUR, 24 * HOUR), 30 * HOUR, None, True),
        ((4 * HOUR, 24 * HOUR), 31 * HOUR, 30 * HOUR, False),
    ],
)
def test_a_sender_is_warned_once_for_each_time(warn_after, waited, warned_after, is_due):
    warned_at = None if warned_after is None else ARRIVED + warned_after
    progress = make_progress(Fate.WAITING, Status.DEFERRED, warned_at=warned_at)

    found = due(make_message(), [progress], at=ARRIVED + waited, warn_after=warn_after)

    assert found == ([[(Kind.DELAYED, "bob@b.test")]] if is_due else [])


@pytest.mark.parametrize(
    ("is_automatic", "notify", "is_due"),
    [
        (False, NOBODY_ASKED, True),
        (True, NOBODY_ASKED, False),
        (True, DELAY, True),
        (True, ALL, True),
        (True, FAILURE, False),
    ],
)
def test_machines_are_warned_only_if_they_asked_for_it(is_automatic, notify, is_due):
    progress = make_progress(Fate.WAITING, Status.DEFERRED, notify=notify)

    found = due(make_message(), [progress], is_automatic=is_automatic)

    assert bool(found) is is_due


def test_machines_are_told_of_failures_as_everybody_is():
    assert due(make_message(), [FAILED], is_automatic=True) == [[(Kind.FAILED, "bob@b.test")]]


@given(
    st.lists(st.floats(1, 1e6), max_size=4),
    st.lists(st.floats(0, 2e6), max_size=8),
)
def test_there_are_never_more_warnings_than_times(warn_after, looks):
    warned_at, count = None, 0
    for waited in sorted(looks):
        progress = make_progress(Fate.WAITING, Status.DEFERRED, warned_at=warned_at)
        at = ARRIVED + waited
        if due(make_message(), [progress], at=at, warn_after=warn_after):
            warned_at, count = at, count + 1

    assert count <= len(warn_after)
    passed = [wait for wait in warn_after if looks and ARRIVED + wait <= ARRIVED + max(looks)]
    assert (count > 0) is bool(passed)


# ---- names --------------------------------------------------------------------------------------


def name_of(message, *progress, at=NOW, warn_after=(HOUR,), arrived_at=ARRIVED):
    (report,) = due_reports(message, progress, arrived_at=arrived_at, at=at, warn_after=warn_after)
    return report.id


def test_a_report_that_is_made_again_has_the_same_name():
    assert name_of(make_message(), FAILED) == name_of(make_message(), FAILED, at=NOW + 60)
    assert name_of(make_message(), DELAYED) == name_of(make_message(), DELAYED, at=NOW + 60)
    assert len(name_of(make_message(), FAILED)) < 64


def test_reports_on_something_else_have_other_names():
    other = replace(make_message(), id="order-18")
    names = [
        name_of(make_message(), FAILED),
        name_of(other, FAILED),
        name_of(make_message(), make_progress(Fate.GIVEN_UP, Status.FAILED, "eve@b.test")),
        name_of(make_message(), make_progress(Fate.GIVEN_UP, Status.DEFERRED)),
        name_of(make_message(), make_progress(Fate.WAITING, Status.DEFERRED)),
        name_of(
            make_message(), make_progress(Fate.WAITING, Status.DEFERRED), warn_after=(2 * HOUR,)
        ),
        name_of(make_message(), FAILED, DELAYED),
        # An id that was forgotten, and used again.
        name_of(make_message(), FAILED, arrived_at=ARRIVED + 0.001),
    ]

    assert len(set(names)) == len(names)


def test_any_name_of_a_message_will_do():
    assert name_of(replace(make_message(), id="\ud800\0\n"), FAILED).isascii()


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        (Kind.FAILED, "failed"),
        (Kind.EXPIRED, "failed"),
        (Kind.DELAYED, "delayed"),
        (Kind.RELAYED, "relayed"),
        (Kind.DELIVERED, "delivered"),
    ],
)
def test_kinds_are_actions_of_the_rfc(kind, action):
    """RFC 3464 §2.3.3 knows five, of which we never do the fifth, "expanded"."""
    assert kind.action == action
