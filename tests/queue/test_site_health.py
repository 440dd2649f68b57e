from __future__ import annotations

from random import Random

import pytest

from engine.outcome import Cause, Scope, Status
from engine.queue import site_health
from engine.queue.backoff import BackOff
from engine.queue.flight import outs_of
from engine.queue.site_health import SiteHealth
from engine.queue.values import LeasedMessage, LeasedRecipient, SiteState
from engine.smtp.stages import Stage
from tests.queue.mail import START, mail, outcome

REFUSED = outcome(stage=Stage.CONNECT, cause=Cause.REFUSED, scope=Scope.HOST)
DELIVERED = outcome(Status.DELIVERED, stage=Stage.FINAL, code=250)


@pytest.fixture
def health() -> SiteHealth:
    return SiteHealth(BackOff(jitter=0.0), Random(1))


def out_to(domain, site=None):
    recipient = LeasedRecipient(
        number=1,
        address=f"a@{domain}",
        site=site or domain,
        attempts=1,
        first_attempt_at=START,
    )
    message = mail(f"a@{domain}").message
    (out,) = outs_of(LeasedMessage(message, (recipient,), lease=1, submitted_at=START))
    return out


def test_sites_that_are_well_stay_it(health):
    assert health.judge(out_to("one.test"), DELIVERED, START, {}) is None


def test_trouble_is_held_against_the_site_of_whom_it_came_to(health):
    news = health.judge(out_to("one.test", "mx.test"), REFUSED, START, {})
    assert (news.name, news.failures, news.not_before) == ("mx.test", 1, START + 60)


def test_failures_are_counted_while_others_are_out_to_their_site(health):
    out = out_to("one.test")
    assert health.judge(out, REFUSED, START, {"one.test": 1}).failures == 1
    assert health.judge(out, REFUSED, START + 60, {"one.test": 1}).failures == 2


def test_a_site_that_nobody_is_out_to_is_the_stores_to_remember(health):
    out = out_to("one.test")
    assert health.judge(out, REFUSED, START, {}).failures == 1
    assert health.judge(out, REFUSED, START + 60, {}).failures == 1


def test_a_lease_brings_the_state_of_a_site_along(health):
    health.note([SiteState(name="one.test", not_before=START - 1, failures=3, reason="refused")])
    assert health.judge(out_to("one.test"), REFUSED, START, {}).failures == 4


def test_a_site_that_lives_is_well_again(health):
    health.note([SiteState(name="one.test", not_before=START - 1, failures=3, reason="refused")])
    assert health.judge(out_to("one.test"), DELIVERED, START, {}) == SiteState(name="one.test")


def test_trouble_counts_for_where_the_domain_is_routed(health):
    assert health.learn_route("one.test", "mx.big.test")
    assert health.judge(out_to("one.test"), REFUSED, START, {}).name == "mx.big.test"
    assert health.judge(out_to("two.test"), REFUSED, START, {}).name == "two.test"


def test_a_site_takes_over_what_was_known_of_the_domain_before_it_was_routed(health):
    before = SiteState(name="one.test", not_before=START - 1, failures=3, reason="refused")
    health.note([before])
    health.learn_route("one.test", "mx.big.test")
    news = health.judge(out_to("one.test"), REFUSED, START, {})
    assert (news.name, news.failures) == ("mx.big.test", 4)


def test_what_is_known_of_a_site_counts_before_what_is_known_of_its_domain(health):
    health.note([SiteState(name="one.test", failures=3), SiteState(name="mx.big.test", failures=1)])
    health.learn_route("one.test", "mx.big.test")
    assert health.judge(out_to("one.test"), REFUSED, START, {}).failures == 2


def test_a_site_is_kept_while_others_are_out_to_it_under_its_own_name(health):
    health.learn_route("one.test", "mx.big.test")
    still_out = {"mx.big.test": 1}
    assert health.judge(out_to("one.test"), REFUSED, START, still_out).failures == 1
    assert health.judge(out_to("one.test"), REFUSED, START + 60, still_out).failures == 2


def test_only_what_is_new_of_a_route_is_news(health):
    assert not health.learn_route("one.test", "")
    assert health.learn_route("one.test", "mx.test")
    assert not health.learn_route("one.test", "mx.test")
    assert health.learn_route("one.test", "mx2.test")


def test_routes_are_bounded_and_told_again_once_forgotten(health, monkeypatch):
    monkeypatch.setattr(site_health, "_MAX_ROUTES", 2)
    for domain in ("one.test", "two.test", "three.test"):
        assert health.learn_route(domain, "mx.test")
    assert not health.learn_route("three.test", "mx.test")
    assert health.learn_route("one.test", "mx.test")
