from __future__ import annotations

import pytest

from engine.outcome import Cause, Status
from engine.route import Candidate, Route
from engine.routing.opinion import NOTHING, Opinion
from engine.routing.sender_rules import judge_message, judge_settings, message_tls, policy_domain
from engine.security import HostRefused, MessageTls, TlsDemand, TlsLevel
from engine.settings import Settings

HOST = Candidate("mx.test", "192.0.2.1")
ADDRESS = Candidate("192.0.2.1", "192.0.2.1")
SECURE = Route("mx.test", (HOST,), is_secure=True)
INSECURE = Route("mx.test", (HOST,))


@pytest.mark.parametrize(
    ("require_tls", "has_null_path", "is_optional", "expected"),
    [
        (False, False, False, MessageTls.BY_POLICY),
        (False, True, False, MessageTls.BY_POLICY),
        (False, False, True, MessageTls.OPTIONAL),
        (False, True, True, MessageTls.OPTIONAL),
        (True, False, False, MessageTls.REQUIRED),
        (True, False, True, MessageTls.REQUIRED),
        (True, True, False, MessageTls.BY_POLICY),
        (True, True, True, MessageTls.BY_POLICY),
    ],
)
def test_what_a_message_asks_for(require_tls, has_null_path, is_optional, expected):
    """RFC 8689 §4.1 and §4.2.1."""
    asked = message_tls(
        require_tls=require_tls, has_null_path=has_null_path, is_optional=is_optional
    )
    assert asked is expected


@pytest.mark.parametrize(
    ("domain", "candidate", "is_static", "owner"),
    [
        ("example.test", HOST, False, "example.test"),
        ("example.test", HOST, True, "mx.test"),
        ("example.test", ADDRESS, True, None),
        ("example.test", Candidate("2001:db8::1", "2001:db8::1"), True, None),
        ("[192.0.2.1]", ADDRESS, False, None),
        ("[192.0.2.1]", HOST, True, "mx.test"),
    ],
)
def test_whose_policies_count(domain, candidate, is_static, owner):
    """RFC 8461 §3.4."""
    route = Route("mx.test", (candidate,), is_static=is_static)

    assert policy_domain(domain, route, candidate) == owner


@pytest.mark.parametrize(
    ("candidate", "settings", "demand"),
    [
        (HOST, Settings(tls="off"), NOTHING),
        (HOST, Settings(), TlsDemand(TlsLevel.OPPORTUNISTIC, "opportunistic", (), "mx.test")),
        (
            HOST,
            Settings(protocol="smtps"),
            TlsDemand(TlsLevel.REQUIRE, "required", (), "mx.test"),
        ),
        (HOST, Settings(tls="require"), TlsDemand(TlsLevel.REQUIRE, "required", (), "mx.test")),
        (
            HOST,
            Settings(tls="verify"),
            TlsDemand(TlsLevel.VERIFY, "required", ("mx.test",), "mx.test"),
        ),
        (
            HOST,
            Settings(tls="verify", tls_sni="other.test"),
            TlsDemand(TlsLevel.VERIFY, "required", ("mx.test", "other.test"), "other.test"),
        ),
        (
            HOST,
            Settings(tls_sni="other.test"),
            TlsDemand(TlsLevel.OPPORTUNISTIC, "opportunistic", (), "other.test"),
        ),
        (ADDRESS, Settings(), TlsDemand(TlsLevel.OPPORTUNISTIC, "opportunistic", (), None)),
        (
            ADDRESS,
            Settings(tls="verify"),
            TlsDemand(TlsLevel.VERIFY, "required", ("192.0.2.1",), None),
        ),
        (
            ADDRESS,
            Settings(tls="verify", tls_sni="mx.test"),
            TlsDemand(TlsLevel.VERIFY, "required", ("192.0.2.1", "mx.test"), "mx.test"),
        ),
    ],
)
def test_what_the_settings_ask_for(candidate, settings, demand):
    opinion = judge_settings(candidate, settings)

    assert opinion.verdict == demand
    assert not opinion.is_certain


class TestMessage:
    @pytest.mark.parametrize("message", [MessageTls.BY_POLICY, MessageTls.OPTIONAL])
    @pytest.mark.parametrize("tls", ["off", "verify"])
    def test_most_messages_ask_for_nothing(self, message, tls):
        opinion = judge_message(message, INSECURE, HOST, Settings(tls=tls))

        assert opinion.verdict == NOTHING

    @pytest.mark.parametrize(
        ("route", "opinions"),
        [
            pytest.param(SECURE, [], id="signed MX records"),
            pytest.param(INSECURE, [Opinion(NOTHING), Opinion(NOTHING, True)], id="MTA-STS"),
        ],
    )
    def test_requiretls_asks_the_right_host_for_its_certificate(self, route, opinions):
        opinion = judge_message(MessageTls.REQUIRED, route, HOST, Settings(), opinions)

        assert opinion.verdict == TlsDemand(TlsLevel.VERIFY, "required", ("mx.test",), "mx.test")
        assert opinion.settles_it

    def test_requiretls_refuses_a_host_that_nobody_vouches_for(self):
        """RFC 8689 §4.2.1, and the sender is told at once."""
        opinions = [Opinion(TlsDemand(TlsLevel.VERIFY, "dane")), Opinion(NOTHING)]

        refusal = judge_message(MessageTls.REQUIRED, INSECURE, HOST, Settings(), opinions).verdict

        assert isinstance(refusal, HostRefused)
        assert (refusal.status, refusal.cause) == (Status.FAILED, Cause.POLICY)
        assert str(refusal.enhanced) == "5.7.30"

    def test_requiretls_waits_where_nobody_could_be_asked(self):
        opinions = [Opinion(NOTHING, is_unknown=True)]

        refusal = judge_message(MessageTls.REQUIRED, INSECURE, HOST, Settings(), opinions).verdict

        assert (refusal.status, refusal.cause) == (Status.DEFERRED, Cause.DNS)

    def test_requiretls_fails_where_tls_is_switched_off(self):
        refusal = judge_message(MessageTls.REQUIRED, SECURE, HOST, Settings(tls="off")).verdict

        assert refusal.status is Status.FAILED
        assert str(refusal.enhanced) == "5.7.10"
