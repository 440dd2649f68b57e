from __future__ import annotations

import json

import pytest

from tests.crash.account import Arrived, Told, judge
from tests.crash.load import SENDERS, Letter

A, B, R = "to0.m1@d1.crash.test", "to1.m1@d2.crash.test", "refused0.m2@d3.crash.test"
REPORT = f"sender.m2@{SENDERS}"
OFFERED = {"m1": Letter("m1", (A, B), 300), "m2": Letter("m2", (R,), 300)}
NOON = "2026-03-01T12:00:0{}.000Z"
#: Of `NOON`.
SECONDS = 1772366400.0


def line(recipient, status="delivered", *, second=0, final=True):
    record = {"time": NOON.format(second), "message": "m", "recipient": recipient}
    record |= {"status": status, "attempt": 1, "final": final, "next_attempt": None}
    return json.dumps(record) + "\n"


WELL = [line(A), line(B), line(R, "failed"), line(REPORT)]


def account(record=(A, B, REPORT), log=WELL, *, accepted=("m1", "m2"), kills=(), refused=(R,)):
    arrived, told = Arrived(), Told()
    arrived.read("".join(f"accepted {who}\n" for who in record))
    arrived.read("".join(f"refused {who}\n" for who in refused))
    told.read("".join(log))
    return judge(OFFERED, set(accepted), arrived, told, kills)


def violations(*arguments, **how):
    return [line.partition(":")[0] for line in account(*arguments, **how).violations]


def test_all_is_well_when_everybody_has_it_once_and_the_log_says_so():
    found = account()
    assert found.violations == []
    assert found.counts["recipients accepted"] == 3
    assert (found.counts["delivered"], found.counts["refused"]) == (2, 1)
    assert (found.counts["lost"], found.counts["twice or more"]) == (0, 0)


def test_who_was_accepted_and_has_nothing_is_lost():
    assert violations((A, REPORT), [line(A), *WELL[2:]]) == ["lost", "without a final line"]


def test_who_was_offered_and_not_accepted_may_have_it_or_not():
    assert violations((A, B), WELL[:2], accepted=["m1"], refused=()) == []
    assert violations((A, B, REPORT), accepted=["m1"]) == []
    assert violations(accepted=["m1"]) == []


def test_a_report_that_did_not_come_is_lost_too():
    assert violations((A, B), WELL[:3]) == ["reports lost", "without a final line"]


def test_who_has_it_twice_must_have_been_unknown():
    twice = (A, A, B, REPORT)
    assert violations(twice) == ["twice and not reported unknown"]
    unknown = line(A, "unknown", final=False)
    assert violations(twice, [unknown, *WELL]) == []
    assert violations((A, *twice), [unknown, *WELL]) == ["twice and not reported unknown"]


@pytest.mark.parametrize("bad", ["{\n", "[]\n", '{"time": "now"}\n', "null\n"])
def test_every_line_of_the_log_can_be_read(bad):
    assert violations(log=[bad, *WELL]) == ["log lines that cannot be read"]


def test_an_end_is_told_twice_only_if_something_was_killed_in_between():
    again = [*WELL, line(A, second=5)]
    assert violations(log=again) == ["told twice without a kill"]
    assert violations(log=again, kills=[SECONDS + 7]) == ["told twice without a kill"]
    assert violations(log=again, kills=[SECONDS + 3]) == []


def test_what_the_log_says_is_what_happened():
    wrong = [line(A, "failed"), *WELL[1:]]
    assert violations(log=wrong) == ["ended otherwise than the log says"]
    assert violations((A, REPORT), WELL) == ["lost", "ended otherwise than the log says"]


def test_contents_are_whole_and_nothing_comes_that_was_not_submitted():
    arrived, told = Arrived(), Told()
    arrived.read(f"accepted {A}\ndamaged {B}\naccepted {REPORT}\nrefused {R}\naccepted x@y.test\n")
    told.read("".join(WELL))
    found = judge(OFFERED, {"m1", "m2"}, arrived, told, ())
    assert [line.partition(":")[0] for line in found.violations] == [
        "damaged",
        "arrived and never submitted",
    ]
