from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.outcome import Cause, Scope, Status
from engine.queue.retry import (
    DEFAULT_RULE,
    DEFAULT_STEPS,
    GiveUp,
    History,
    RetryAt,
    RetryRules,
    decide,
    read_rules,
)
from engine.smtp.stages import Stage
from tests.queue.mail import START, outcome

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
REFUSED = outcome(stage=Stage.CONNECT, cause=Cause.REFUSED, scope=Scope.HOST)
GREYLISTED = outcome(code=450, text="4.7.1 greylisted")


def rules(*tables):
    found, problems = read_rules(tables)
    assert problems == ()
    return found


def rule(*steps, **how):
    return rules({"match": "*", "steps": list(steps)} | how).rules[0]


def live(rule, *, outcome=GREYLISTED, rng=None, deadline=None, most=500):
    """Let a recipient fail until it is given up; return its tries since the first, and the end."""
    now, tries, wait = START, [0.0], 0.0
    for attempt in range(1, most):
        history = History(attempt, START, wait, deadline)
        decision = decide(rule, history, outcome, now, rng or Random(attempt))
        if isinstance(decision, GiveUp):
            return tries, decision
        now, wait = decision.at, decision.wait
        tries.append(now - START)
    return tries, None


def waits_of(tries):
    return [later - earlier for earlier, later in pairwise(tries)]


# -- waits --------------------------------------------------------------------------------------


def test_single_waits_are_used_one_after_the_other_and_then_it_ends():
    tries, end = live(rule("5m", "10m", "20m"))

    assert waits_of(tries) == [5 * MINUTE, 10 * MINUTE, 20 * MINUTE]
    assert "given up" in end.text
    assert 'rule 1 ("*") has no step left' in end.text


def test_the_rule_of_the_documentation_is_kept_to():
    tries, end = live(rule("5m", "10m", "20m", "1h x1.5 until 16h", "4h ~20% until 4d"))

    waits = waits_of(tries)
    assert waits[:7] == [
        5 * MINUTE,
        10 * MINUTE,
        20 * MINUTE,
        HOUR,
        1.5 * HOUR,
        2.25 * HOUR,
        3.375 * HOUR,
    ]
    # The step is chosen by the age at the failure, so one wait may lead beyond its end.
    assert waits[7] == 5.0625 * HOUR
    assert tries[7] < 16 * HOUR
    late = waits[9:]
    assert late
    assert all(4 * HOUR * 0.8 <= wait <= 4 * HOUR * 1.2 for wait in late)
    assert len(set(late)) == len(late)
    assert tries[-2] < 4 * DAY <= tries[-1]
    assert end is not None


def test_the_default_rule_tries_for_four_days_and_no_longer_than_needed():
    tries, end = live(DEFAULT_RULE)

    waits = waits_of(tries)
    expected = [5, 10, 20, 40, 60, 120, 240]
    assert waits[0] == 5 * MINUTE  # servers that greylist ask for 300 s
    assert all(
        0.8 * minutes <= wait / MINUTE <= 1.2 * minutes
        for wait, minutes in zip(waits, expected, strict=False)
    )
    assert max(waits) <= 4.8 * HOUR
    assert 4 * DAY <= tries[-1] < 4 * DAY + 4.8 * HOUR
    assert end is not None
    assert len(DEFAULT_STEPS) == 7


def test_no_steps_give_up_after_one_try():
    tries, end = live(rule())

    assert tries == [0.0]
    assert end is not None


def test_nothing_is_given_up_before_it_was_tried_however_old_it_is():
    """An age is counted from the first try: a worker that was down used up nobody's time."""
    decision = decide(rule("5m until 4d"), History(1, START), GREYLISTED, START + 1, Random(1))

    assert isinstance(decision, RetryAt)


def test_waits_that_grow_go_on_from_a_longer_wait_of_another_rule():
    decision = decide(
        rule("1h x2 until 4d"), History(9, START, wait=3 * HOUR), REFUSED, START + DAY, Random(1)
    )

    assert decision.wait == 6 * HOUR


def test_a_wall_clock_that_was_set_back_does_no_harm():
    decision = decide(
        rule("5m until 4d"), History(3, START, wait=300.0), GREYLISTED, START - DAY, Random(1)
    )

    assert decision.at == START - DAY + 5 * MINUTE


@given(st.integers(1, 10_000), st.floats(0, 1e9), st.floats(0, 1e6), st.integers())
def test_every_history_has_a_decision_that_lies_ahead(attempts, age, wait, seed):
    now = START + age
    for steps in ([], ["5m"], ["1h x100 ~90% until 99d"], list(DEFAULT_STEPS)):
        decision = decide(
            rule(*steps), History(attempts, START, wait), GREYLISTED, now, Random(seed)
        )
        if isinstance(decision, RetryAt):
            assert now < decision.at <= now + 2 * DAY
            assert decision.is_counted


# -- what is never a bounce ---------------------------------------------------------------------


def test_a_permanent_failure_is_final():
    decision = decide(
        DEFAULT_RULE, History(1, START), outcome(Status.FAILED, code=550), START, Random(1)
    )

    assert isinstance(decision, GiveUp)


@pytest.mark.parametrize("scope", [Scope.LOCAL, Scope.SOURCE])
@pytest.mark.parametrize("status", [Status.DEFERRED, Status.FAILED])
def test_a_fault_of_ours_never_gives_up_and_never_counts(scope, status):
    ours = outcome(status, cause=Cause.CONFIG, stage=Stage.CONNECT, scope=scope)
    now, wait, waits = START, 0.0, []
    for _ in range(30):
        decision = decide(rule("5m"), History(1, START, wait), ours, now, Random(1))
        assert isinstance(decision, RetryAt)
        assert not decision.is_counted
        now, wait = decision.at + 365 * DAY, decision.wait
        waits.append(wait)

    assert waits[:4] == [MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE]
    assert max(waits) == 30 * MINUTE


def test_what_was_stopped_before_it_was_tried_is_due_at_once_and_does_not_count():
    stopped = outcome(cause=Cause.CANCELLED, stage=Stage.CONNECT, scope=Scope.LOCAL)

    decision = decide(rule(), History(9, START, 3600.0), stopped, START + 99 * DAY, Random(1))

    assert decision == RetryAt(START + 99 * DAY, 3600.0, decision.text, is_counted=False)


def test_what_a_program_vetoed_waits_and_does_not_count():
    vetoed = outcome(cause=Cause.EVENT, stage=Stage.CONNECT, scope=Scope.HOST)

    decision = decide(rule(), History(1, START), vetoed, START + 99 * DAY, Random(1))

    assert isinstance(decision, RetryAt)
    assert not decision.is_counted


# -- deadlines ----------------------------------------------------------------------------------


def test_there_is_one_last_try_before_a_deadline():
    tries, end = live(rule("5m", "10m", "20m", "40m"), deadline=START + 30 * MINUTE)

    assert tries == [0.0, 5 * MINUTE, 15 * MINUTE, 29 * MINUTE]
    assert "deadline" in end.text


def test_a_last_try_too_soon_after_the_one_before_is_none():
    tries, end = live(rule("5m", "10m", "20m"), deadline=START + 18 * MINUTE)

    assert tries == [0.0, 5 * MINUTE, 15 * MINUTE]
    assert "deadline" in end.text


def test_a_deadline_that_has_passed_ends_it_even_for_a_fault_of_ours():
    ours = outcome(cause=Cause.INTERNAL, scope=Scope.LOCAL)

    decision = decide(DEFAULT_RULE, History(1, START, 0.0, START), ours, START + 1, Random(1))

    assert isinstance(decision, GiveUp)


# -- which rule ---------------------------------------------------------------------------------


def test_the_first_rule_that_matches_counts():
    found = rules(
        {"match": "two.test", "steps": ["2m"]},
        {"match": "*.one.test", "steps": ["3m"]},
        {"match": "*", "error": "refused", "steps": ["4m"]},
        {"match": "*", "error": ["rcpt_45x", "quota"], "steps": ["5m"]},
        {"match": "192.0.2.0/24", "steps": ["6m"]},
    )

    def wait(domain, found_outcome):
        return found.find(domain, found_outcome).step(1, 0.0).wait / MINUTE

    plain = {"host": "mx.other.test", "address": "198.51.100.1"}
    assert wait("two.test", outcome(code=450, **plain)) == 2
    assert wait("x.two.test", outcome(code=450, **plain)) == 5
    # A rule speaks of hosts as well: whose mail goes there follows it.
    assert wait("other.test", outcome(code=421, host="mx.one.test")) == 3
    assert wait("one.test", outcome(code=421, **plain)) == 5 * 1  # the default rule
    assert wait("a.test", outcome(cause=Cause.REFUSED, stage=Stage.CONNECT, **plain)) == 4
    assert wait("a.test", outcome(code=452, **plain)) == 5
    assert wait("a.test", outcome(code=421, text="4.2.2 full", **plain)) == 5
    assert wait("a.test", outcome(code=421, host="mx.b.test", address="192.0.2.77")) == 6
    assert found.find("a.test", outcome(code=421, **plain)) is DEFAULT_RULE


def test_an_address_of_a_host_can_be_named():
    found = rules({"match": "192.0.2.1", "steps": []})

    assert found.find("a.test", GREYLISTED).text == 'rule 1 ("192.0.2.1")'
    assert RetryRules().find("a.test", GREYLISTED) is DEFAULT_RULE


def test_an_outcome_without_a_peer_has_its_domain_only():
    found = rules({"match": "192.0.2.0/24", "steps": []}, {"match": "*.test", "steps": ["9m"]})
    lost = outcome(stage=Stage.ROUTE, cause=Cause.DNS, scope=Scope.DOMAIN, host="mx.net")

    assert found.find("a.test", lost).text == 'rule 1 ("192.0.2.0/24")'
    assert found.find("a.test", lost._replace(peer=None)).text == 'rule 2 ("*.test")'


def test_every_decision_says_why_in_one_line():
    one = decide(DEFAULT_RULE, History(1, START), GREYLISTED, START + 2, Random(1))
    three = decide(
        rule("5m", "10m", "20m"), History(3, START, 600.0), REFUSED, START + 960, Random(1)
    )

    assert one.text == 'rcpt_450 at attempt 1; the default rule, step "5m": next in 5m'
    assert three.text == (
        'refused at attempt 3, 16m after the first; rule 1 ("*"), step "20m": next in 20m'
    )


# -- reading ------------------------------------------------------------------------------------


def test_rules_that_cannot_be_used_are_refused_with_place_and_what_is_allowed():
    found, problems = read_rules(
        [
            {"match": "*", "steps": ["5m", "soon", "1h until 2h", "10m", "1h until 90m"]},
            {"match": "*.", "error": "busy", "steps": "5m", "step": []},
            {"steps": ["5m"], "error": []},
            {"match": "*", "error": ["any", 5], "steps": ["5m"]},
            {"match": "ok.test", "steps": ["5m"]},
        ]
    )

    assert [rule.text for rule in found.rules] == ['rule 5 ("ok.test")']
    assert [problem.key for problem in problems] == [
        "retry[0].steps[1]",
        "retry[0].steps[3]",
        "retry[0].steps[4]",
        "retry[1].step",
        "retry[1].match",
        "retry[1].error",
        "retry[1].steps",
        "retry[2].match",
        "retry[2].error",
        "retry[3].error[1]",
    ]
    texts = [str(problem) for problem in problems]
    assert texts[0].startswith('retry[0].steps[1]: found "soon"; allowed a wait as in "5m"')
    assert "single waits come first" in texts[1]
    assert "above 2h" in texts[2]
    assert 'did you mean "steps"?' in texts[3]
    assert "rcpt_4xx" in texts[5]


def test_rules_in_python_are_those_of_the_file_and_what_is_wrong_is_raised():
    table = {"match": "*.example.net", "steps": ["5m", "1h x1.5 until 16h"]}
    assert RetryRules.read(table, table).rules == read_rules([table, table])[0].rules
    with pytest.raises(ConfigError) as info:
        RetryRules.read({"match": "*", "steps": ["5 m"]}, {"mach": "*", "steps": []}, "5m")
    assert [problem.split(":")[0] for problem in info.value.problems] == [
        "rules[0].steps[0]",
        "rules[1].mach",
        "rules[1].match",
        "rules[2]",
    ]
