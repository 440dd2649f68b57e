from __future__ import annotations

from random import Random

import pytest

from engine.outcome import Cause, Scope, Status, Tried
from engine.queue.backoff import BackOff, is_sign_of_life, is_trouble
from engine.queue.values import SiteState
from engine.smtp.stages import Stage
from tests.queue.mail import START, outcome

WELL = SiteState(name="mx.test")
BUSY = outcome(code=421, text="4.3.2 too many connections", scope=Scope.HOST, stage=Stage.MAIL)
REFUSED = outcome(stage=Stage.CONNECT, cause=Cause.REFUSED, scope=Scope.HOST)
DELIVERED = outcome(Status.DELIVERED, stage=Stage.FINAL, code=250)
EXACT = BackOff(jitter=0.0)


@pytest.mark.parametrize(
    ("found", "trouble", "life"),
    [
        (BUSY, True, False),
        (REFUSED, True, False),
        (outcome(stage=Stage.CONNECT, cause=Cause.TIMEOUT, scope=Scope.HOST), True, False),
        (outcome(stage=Stage.GREETING, code=554, scope=Scope.HOST), True, False),
        (outcome(stage=Stage.GREETING, cause=Cause.CLOSED, scope=Scope.HOST), True, False),
        (outcome(stage=Stage.HELLO, code=421, scope=Scope.HOST), True, False),
        (DELIVERED, False, True),
        (outcome(code=450), False, True),
        (outcome(Status.FAILED, code=550), False, True),
        (outcome(stage=Stage.MAIL, cause=Cause.TIMEOUT, scope=Scope.MESSAGE), False, False),
        (outcome(stage=Stage.RCPT, cause=Cause.CLOSED, scope=Scope.HOST), False, False),
        (outcome(stage=Stage.CONNECT, cause=Cause.CONFIG, scope=Scope.SOURCE), False, False),
        (outcome(stage=Stage.CONNECT, cause=Cause.UNREACHABLE, scope=Scope.SOURCE), False, False),
        (outcome(stage=Stage.ROUTE, cause=Cause.DNS, scope=Scope.DOMAIN), False, False),
        (outcome(stage=Stage.STARTTLS, code=454, scope=Scope.HOST), False, False),
    ],
)
def test_only_what_speaks_of_the_host_is_held_against_the_site(found, trouble, life):
    assert is_trouble(found) is trouble
    assert is_sign_of_life(found) is life


@pytest.mark.parametrize(
    ("stage", "code", "trouble"),
    [
        (Stage.RCPT, 451, False),
        (Stage.FINAL, 452, False),
        (Stage.RCPT, 421, True),
        (Stage.GREETING, 554, True),
        (Stage.CONNECT, None, True),
    ],
)
def test_a_host_that_is_down_says_nothing_of_a_site_whose_other_host_works(stage, code, trouble):
    cause = Cause.REPLY if code else Cause.TIMEOUT
    before = Tried("mx1.test", "192.0.2.1", 25, stage, cause, "it", code)

    assert is_trouble(REFUSED._replace(attempts=(before,))) is trouble


def test_a_site_is_left_alone_longer_with_each_failure_in_a_row():
    state, now, pauses = WELL, START, []
    for _ in range(7):
        state = EXACT.judge(state, REFUSED, now, Random(1))
        pauses.append(state.not_before - now)
        now = state.not_before

    assert pauses == [60, 120, 240, 480, 900, 900, 900]
    assert state.failures == 7
    assert EXACT.judge(SiteState(name="x", failures=10**6), REFUSED, now, Random(1)) is not None


def test_those_who_were_under_way_say_nothing_new():
    state = EXACT.judge(WELL, BUSY, START, Random(1))

    assert EXACT.judge(state, BUSY, START + 59, Random(1)) is None
    assert EXACT.judge(state, BUSY, START + 60, Random(1)).failures == 2


def test_a_sign_of_life_ends_the_row_but_not_the_pause():
    state = EXACT.judge(WELL, BUSY, START, Random(1))

    found = EXACT.judge(state, DELIVERED, START + 1, Random(1))

    assert (found.failures, found.not_before) == (0, state.not_before)
    assert EXACT.judge(found, DELIVERED, START + 2, Random(1)) is None
    assert EXACT.judge(WELL, DELIVERED, START, Random(1)) is None
    assert EXACT.judge(state, DELIVERED, START + 60, Random(1)) == WELL


def test_a_back_off_says_why():
    state = EXACT.judge(WELL, BUSY, START, Random(1))
    again = EXACT.judge(state, BUSY, START + 60, Random(1))

    assert state.reason.startswith("backed off for 1m after 1 failure: 4.3.2 too many")
    assert again.reason.startswith("backed off for 2m after 2 failures in a row: 4.3.2 too many")
    long = outcome(code=421, text="4.3.2 " + "x" * 5000, scope=Scope.HOST)
    assert len(EXACT.judge(WELL, long, START, Random(1)).reason) <= 200


def test_pauses_have_jitter():
    pauses = {BackOff().judge(WELL, BUSY, START, Random(n)).not_before - START for n in range(50)}

    assert min(pauses) >= 48
    assert max(pauses) <= 72
    assert len(pauses) > 40
