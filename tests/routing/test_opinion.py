from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Cause, Status
from engine.routing.opinion import NOTHING, Opinion, combine, forbidden, unknown
from engine.security import HostRefused, ReportedPolicy, TlsDemand, TlsLevel
from engine.smtp.stages import Stage

SEEN = ReportedPolicy("sts", "example.test")
OTHER = ReportedPolicy("tlsa", "mx.example.test")

DANE = TlsDemand(TlsLevel.VERIFY, "dane", ("mx.test",), "mx.test")
STS = TlsDemand(TlsLevel.VERIFY, "mta-sts", ("mx.test",), "mx.test")
VERIFY = TlsDemand(TlsLevel.VERIFY, "required", ("mx.test",), "mx.test")
REQUIRE = TlsDemand(TlsLevel.REQUIRE, "required")
UNUSABLE = TlsDemand(TlsLevel.REQUIRE, "dane", sni="mx.test")
MAY = TlsDemand(TlsLevel.OPPORTUNISTIC, "opportunistic", sni="mx.test")


def certain(verdict):
    return Opinion(verdict, is_certain=True)


@pytest.mark.parametrize(
    ("opinions", "verdict"),
    [
        pytest.param([Opinion(NOTHING), Opinion(MAY)], MAY, id="nobody asks for more"),
        pytest.param([Opinion(NOTHING), Opinion(NOTHING)], NOTHING, id="off"),
        pytest.param([Opinion(UNUSABLE), Opinion(REQUIRE)], UNUSABLE, id="the first of equals"),
        pytest.param([Opinion(UNUSABLE), Opinion(VERIFY)], VERIFY, id="more is asked for later"),
        pytest.param([certain(UNUSABLE), Opinion(VERIFY)], VERIFY, id="more beats certain"),
        pytest.param([Opinion(DANE), certain(STS)], STS, id="certain beats first"),
        pytest.param([certain(DANE), certain(STS)], DANE, id="settled"),
        pytest.param([Opinion(NOTHING), certain(STS), Opinion(VERIFY)], STS, id="MTA-STS"),
    ],
)
def test_who_asks_for_most_counts(opinions, verdict):
    assert combine(opinions) == verdict


def test_a_refusal_refuses_whatever_else_is_asked():
    refusal = forbidden("no", OTHER)

    assert combine([Opinion(MAY), Opinion(refusal), Opinion(VERIFY)]) == refusal
    assert combine([Opinion(refusal), certain(DANE)]) == refusal


def test_behind_what_settles_it_nobody_has_a_say():
    """RFC 8461 §2: DANE that holds is not judged by MTA-STS."""
    assert combine([certain(DANE), Opinion(forbidden("no"))]) == DANE


def test_what_does_not_settle_it_can_be_refused():
    assert isinstance(combine([Opinion(DANE), Opinion(forbidden("no"))]), HostRefused)
    assert isinstance(combine([certain(UNUSABLE), Opinion(forbidden("no"))]), HostRefused)


def test_of_two_refusals_the_first_is_told():
    first, second = unknown("first", SEEN), forbidden("second", OTHER)

    verdict = combine([Opinion(first), Opinion(second)])

    assert verdict == first
    assert verdict.reported == (SEEN,)


def test_what_was_heard_is_reported():
    one = TlsDemand(TlsLevel.OFF, reported=(SEEN,))
    two = TlsDemand(TlsLevel.REQUIRE, "dane", reported=(OTHER,))

    assert combine([Opinion(one), Opinion(two), Opinion(MAY)]).reported == (SEEN, OTHER)
    refused = combine([Opinion(one), Opinion(forbidden("no", OTHER))])
    assert refused.reported == (SEEN, OTHER)


def test_the_names_of_a_trial_are_kept_whoever_asks_for_most():
    trial = TlsDemand(TlsLevel.OFF, trial_names=("mx.test",))

    verdict = combine([Opinion(NOTHING), Opinion(trial), Opinion(MAY)])

    assert verdict == MAY
    assert verdict.trial_names == ("mx.test",)


def test_trials_and_reports_do_not_split_connections():
    assert TlsDemand(trial_names=("mx.test",), reported=(SEEN,)) == TlsDemand()
    assert hash(TlsDemand(reported=(SEEN,))) == hash(TlsDemand())


LEVELS = st.sampled_from([NOTHING, MAY, REQUIRE, UNUSABLE, VERIFY, DANE, STS])
OPINIONS = st.builds(Opinion, st.one_of(LEVELS, st.just(forbidden("no"))), st.booleans())


@given(st.lists(OPINIONS, min_size=1, max_size=5))
def test_no_opinion_lowers_what_the_others_ask_for(opinions):
    verdict = combine(opinions)

    if isinstance(verdict, TlsDemand):
        heard = []
        for opinion in opinions:
            heard.append(opinion.verdict)
            if opinion.settles_it:
                break
        assert verdict.level == max(demand.level for demand in heard)


@given(st.lists(OPINIONS, min_size=1, max_size=4))
def test_the_order_never_makes_mail_less_safe_than_any_demand_that_is_heard(opinions):
    """Only what settles it may silence a refusal; the level is the same in each order."""
    if any(opinion.settles_it for opinion in opinions):
        return
    verdicts = [combine(order) for order in permutations(opinions)]
    assert len({isinstance(verdict, HostRefused) for verdict in verdicts}) == 1
    assert len({getattr(verdict, "level", None) for verdict in verdicts}) == 1


def test_refusals_defer():
    for refusal, cause, enhanced in (
        (forbidden("a", SEEN), Cause.POLICY, "4.7.1"),
        (unknown("b", SEEN), Cause.DNS, "4.4.3"),
    ):
        assert (refusal.status, refusal.cause, refusal.stage) == (
            Status.DEFERRED,
            cause,
            Stage.POLICY,
        )
        assert str(refusal.enhanced) == enhanced
        assert refusal.reported == (SEEN,)


def test_an_opinion_holds_for_ever_and_is_certain_of_nothing_unless_it_says_so():
    opinion = Opinion(MAY)

    assert (opinion.seconds, opinion.is_certain, opinion.settles_it) == (math.inf, False, False)
