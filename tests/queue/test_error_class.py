from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Cause, Scope, Status
from engine.queue.error_class import CLASSES, classes_of, is_ours, parse_class
from engine.smtp.stages import Stage
from tests.queue.mail import outcome


@pytest.mark.parametrize(
    ("facts", "classes"),
    [
        ({"code": 450}, ("rcpt_450", "rcpt_45x", "rcpt_4xx", "any")),
        (
            {"code": 421, "stage": Stage.MAIL, "scope": Scope.HOST},
            ("mail_421", "mail_42x", "mail_4xx", "any"),
        ),
        (
            {"code": 452, "stage": Stage.FINAL, "scope": Scope.MESSAGE},
            ("data_452", "data_45x", "data_4xx", "any"),
        ),
        ({"code": 451, "stage": Stage.DATA}, ("data_451", "data_45x", "data_4xx", "any")),
        ({"code": 451, "stage": Stage.CONTENT}, ("data_451", "data_45x", "data_4xx", "any")),
        (
            {"code": 554, "stage": Stage.GREETING, "scope": Scope.HOST},
            ("setup_554", "setup_55x", "setup_5xx", "any"),
        ),
        (
            {"code": 452, "text": "4.2.2 full"},
            ("quota", "rcpt_452", "rcpt_45x", "rcpt_4xx", "any"),
        ),
        (
            {"stage": Stage.CONNECT, "cause": Cause.REFUSED, "scope": Scope.HOST},
            ("refused", "connect", "any"),
        ),
        (
            {"stage": Stage.CONNECT, "cause": Cause.TIMEOUT, "scope": Scope.HOST},
            ("connect_timeout", "timeout", "connect", "any"),
        ),
        ({"stage": Stage.MAIL, "cause": Cause.TIMEOUT}, ("timeout", "any")),
        ({"stage": Stage.RCPT, "cause": Cause.CLOSED}, ("lost", "any")),
        ({"stage": Stage.RCPT, "cause": Cause.MALFORMED_REPLY}, ("lost", "any")),
        (
            {"stage": Stage.ROUTE, "cause": Cause.DNS, "scope": Scope.DOMAIN},
            ("dns", "any"),
        ),
        ({"stage": Stage.TLS, "cause": Cause.TLS, "scope": Scope.HOST}, ("tls", "any")),
        (
            {"stage": Stage.STARTTLS, "code": 454, "scope": Scope.HOST},
            ("setup_454", "setup_45x", "setup_4xx", "tls", "any"),
        ),
        (
            {"stage": Stage.AUTH, "code": 535, "scope": Scope.SOURCE},
            ("ours", "setup_535", "setup_53x", "setup_5xx", "auth", "any"),
        ),
        (
            {"stage": Stage.CONNECT, "cause": Cause.UNREACHABLE, "scope": Scope.SOURCE},
            ("ours", "unreachable", "connect", "any"),
        ),
        (
            {"stage": Stage.ROUTE, "cause": Cause.INTERNAL, "scope": Scope.LOCAL},
            ("ours", "any"),
        ),
        (
            {"status": Status.UNKNOWN, "stage": Stage.FINAL, "cause": Cause.TIMEOUT},
            ("unknown", "timeout", "any"),
        ),
        (
            {"stage": Stage.POLICY, "cause": Cause.POLICY, "scope": Scope.DOMAIN},
            ("policy", "any"),
        ),
    ],
)
def test_outcomes_have_their_classes_the_most_telling_first(facts, classes):
    assert classes_of(outcome(**facts)) == classes


@given(
    st.sampled_from([Status.DEFERRED, Status.FAILED, Status.UNKNOWN]),
    st.sampled_from(Stage),
    st.sampled_from(Cause),
    st.sampled_from(Scope),
    st.one_of(st.none(), st.integers(400, 599)),
)
def test_every_outcome_has_classes_that_rules_can_name(status, stage, cause, scope, code):
    found = classes_of(outcome(status, stage=stage, cause=cause, scope=scope, code=code))

    assert found[-1] == "any"
    assert len(set(found)) == len(found)
    assert [parse_class(name) for name in found] == list(found)


@pytest.mark.parametrize("name", [*CLASSES, "rcpt_4xx", "mail_45x", "data_452", "setup_421"])
def test_names_of_classes_are_read(name):
    assert parse_class(name) == name


@pytest.mark.parametrize(
    "name", ["", "ANY", "rcpt", "rcpt_", "rcpt_3xx", "rcpt_4x5", "quit_4xx", "rcpt_4xxx", 4, None]
)
def test_other_names_are_refused_with_those_that_are_allowed(name):
    with pytest.raises(ValueError, match=r"connect_timeout.*rcpt_4xx"):
        parse_class(name)


@pytest.mark.parametrize("scope", Scope)
def test_what_is_ours_is_nobody_elses(scope):
    assert is_ours(outcome(scope=scope)) == (scope in (Scope.SOURCE, Scope.LOCAL))
