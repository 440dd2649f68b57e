from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Cause, Status
from engine.routing.mta_sts import (
    MAX_POLICY_OCTETS,
    StsFinding,
    StsPolicy,
    StsPolicyError,
    judge,
    read_policy,
    read_record,
)
from engine.routing.opinion import NOTHING
from engine.security import HostRefused, TlsDemand, TlsLevel

GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mail.example.test\r\nmx: *.example.net\r\nmax_age: 604800\r\n"
POLICY = StsPolicy("enforce", 604800, ("mail.example.test", "*.example.net"))


class TestRecord:
    """RFC 8461 §3.1."""

    @pytest.mark.parametrize(
        ("texts", "identity"),
        [
            (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
            (["v=STSv1;id=a"], "a"),
            (["v=STSv1 ; id=a ; "], "a"),
            (["v=STSv1;\tid=a\t;\t"], "a"),
            (["v=STSv1; id=" + "x" * 32], "x" * 32),
            (["v=STSv1; new-field.1=some:thing; id=a"], "a"),
            (["v=STSv1; id=first; id=second"], "first"),
            (["other text", "v=STSv1; id=a", "v=spf1 -all"], "a"),
            (["v=STSv2; id=b", "v=STSv1; id=a"], "a"),
            (["V=STSv1; id=b", "v=STSv1; id=a"], "a"),
        ],
    )
    def test_one_valid_record_announces_a_policy(self, texts, identity):
        assert read_record(texts) == identity

    @pytest.mark.parametrize(
        "texts",
        [
            [],
            ["v=spf1 -all"],
            ["v=STSv1"],
            ["v=STSv1;"],
            ["v=STSv1; id="],
            ["v=STSv1; id=a-b"],
            ["v=STSv1; id=" + "x" * 33],
            ["v=STSv1; ID=a"],
            ["v=STSv1 id=a"],
            [" v=STSv1; id=a"],
            ["id=a; v=STSv1"],
            ["v=STSv1; id=a; junk"],
            ["v=STSv1;; id=a"],
            ["v=STSv1; id=a;;"],
            ["v=STSv1; id=a; x=y=z"],
            ["v=STSv1; id=a; x=b c"],
            ["v=STSv1; id=\\xe9"],
            ["v=STSv1; id=a\n"],
            ["v=STSv1; id=a; -x=1"],
            ["v=STSv1; id=a", "v=STSv1; id=b"],
            ["v=STSv1; id=a", "v=STSv1; id=a"],
            ["v=STSv1; id=a", "v=STSv1; junk"],
        ],
    )
    def test_anything_else_announces_none(self, texts):
        assert read_record(texts) is None

    @given(st.lists(st.text(max_size=60), max_size=4))
    def test_any_records_are_read(self, texts):
        identity = read_record(texts)
        assert identity is None or identity.isalnum()


class TestReadPolicy:
    """RFC 8461 §3.2."""

    @pytest.mark.parametrize(
        ("octets", "policy"),
        [
            pytest.param(GOOD, POLICY, id="CRLF"),
            pytest.param(GOOD.replace(b"\r\n", b"\n"), POLICY, id="LF"),
            pytest.param(GOOD.removesuffix(b"\r\n"), POLICY, id="without the last line end"),
            pytest.param(GOOD + b"\r\n\n \n", POLICY, id="empty lines behind it"),
            pytest.param(GOOD.replace(b": ", b":"), POLICY, id="no blanks"),
            pytest.param(GOOD.replace(b": ", b":\t  "), POLICY, id="many blanks"),
            pytest.param(GOOD.replace(b"\r\n", b" \t\r\n"), POLICY, id="trailing blanks"),
            pytest.param(GOOD + b"new-field.1: caf\xc3\xa9 au: lait\n", POLICY, id="unknown field"),
            pytest.param(GOOD + b"mode: none\nmax_age: 1\nversion: x\n", POLICY, id="repeated"),
            pytest.param(GOOD + b"mx: MAIL.Example.Test\n", POLICY, id="the same host again"),
            pytest.param(
                b"max_age: 0\nmode: none\nversion: STSv1", StsPolicy("none", 0), id="none"
            ),
            pytest.param(
                b"version: STSv1\nmode: testing\nmax_age: 31557600\nmx: xn--bcher-kva.example",
                StsPolicy("testing", 31557600, ("xn--bcher-kva.example",)),
                id="testing",
            ),
        ],
    )
    def test_a_policy_is_read(self, octets, policy):
        assert read_policy(octets) == policy

    @pytest.mark.parametrize(
        ("octets", "reason"),
        [
            (b"", "without version and mode and max_age"),
            (b"version: STSv1\nmode: none", "without max_age"),
            (GOOD.replace(b"STSv1", b"STSv2"), "version is 'STSv2', not 'STSv1'"),
            (GOOD.replace(b"STSv1", b"stsv1"), "version is 'stsv1'"),
            (GOOD.replace(b"mode", b"Mode"), "without mode"),
            (GOOD.replace(b"enforce", b"Enforce"), "mode is 'Enforce', none of enforce"),
            (GOOD.replace(b"604800", b"31557601"), "max_age is '31557601', not 0 to 31557600"),
            (GOOD.replace(b"604800", b"-1"), "max_age is '-1'"),
            (GOOD.replace(b"604800", b"1e3"), "max_age is '1e3'"),
            (GOOD.replace(b"604800", "٣".encode()), "max_age is '٣'"),
            (GOOD.replace(b"604800", b"00000000001"), "max_age is '00000000001'"),
            (GOOD.replace(b"604800", b""), "max_age is ''"),
            (b"version: STSv1\nmode: enforce\nmax_age: 1", "without mx"),
            (b"version: STSv1\nmode: testing\nmax_age: 1", "without mx"),
            (GOOD + b"mx: *\n", "line 6: mx is no host name"),
            (GOOD + b"mx:\n", "line 6: mx is no host name: ''"),
            (GOOD + b"mx: a.*.test\n", "line 6: mx is no host name"),
            (GOOD + b"mx: *a.test\n", "line 6: mx is no host name"),
            (GOOD + b"mx: a..test\n", "line 6: mx is no host name"),
            (GOOD + b"mx: -a.test\n", "line 6: mx is no host name"),
            (GOOD + b"mx: a.test, b.test\n", "line 6: mx is no host name"),
            (GOOD + b"mx: " + b"a." * 127 + b"test\n", "line 6: mx is no host name"),
            (GOOD + b"mx: " + "bücher.test".encode() + b"\n", "line 6: mx is no host name"),
            (GOOD + b"junk\n", "line 6 is no field: 'junk'"),
            (GOOD + b" mode: none\n", "line 6 is no field"),
            (GOOD + b": x\n", "line 6 is no field"),
            (GOOD + b"<html>:\n", "line 6 is no field"),
            (GOOD.replace(b"\r\n", b"\r"), "without mode and max_age"),
            (GOOD + b"x: \xff", "not UTF-8"),
            (b"\xef\xbb\xbf" + GOOD, "line 1 is no field"),
            (GOOD + b"x: " + b"y" * MAX_POLICY_OCTETS, "longer than 65536 octets"),
        ],
    )
    def test_what_cannot_be_followed_is_refused_with_the_reason(self, octets, reason):
        with pytest.raises(StsPolicyError, match=reason):
            read_policy(octets)

    def test_a_policy_of_64_kib_is_read(self):
        assert read_policy(GOOD + b"x: ".ljust(MAX_POLICY_OCTETS - len(GOOD), b"y")) == POLICY

    @given(st.binary(max_size=300))
    def test_any_octets_are_a_policy_or_refused(self, octets):
        try:
            policy = read_policy(octets)
        except StsPolicyError as error:
            text = str(error)
        else:
            text = "".join(policy.lines)
        assert text.isprintable()

    @given(
        st.builds(
            StsPolicy,
            st.sampled_from(["enforce", "testing"]),
            st.integers(0, 31557600),
            st.lists(
                st.from_regex(r"(\*\.)?[a-z0-9]{1,9}(\.[a-z0-9]{1,9}){0,2}", fullmatch=True),
                min_size=1,
                unique=True,
            ).map(tuple),
        )
    )
    def test_the_lines_of_a_policy_are_the_policy(self, policy):
        assert read_policy("\r\n".join(policy.lines).encode()) == policy


class TestCovers:
    """RFC 8461 §4.1."""

    @pytest.mark.parametrize(
        ("pattern", "host", "is_covered"),
        [
            ("mail.example.test", "mail.example.test", True),
            ("mail.example.test", "MAIL.example.TEST", True),
            ("mail.example.test", "mail.example.test.", True),
            ("mail.example.test", "mail2.example.test", False),
            ("mail.example.test", "a.mail.example.test", False),
            ("*.example.com", "mail.example.com", True),
            ("*.example.com", "example.com", False),
            ("*.example.com", "foo.bar.example.com", False),
            ("*.example.com", "mail.example.com.evil.test", False),
            ("*.example.com", "mailexample.com", False),
            ("*.example.com", "*.example.com", True),
            ("example", "example", True),
            ("*.example", "example", False),
        ],
    )
    def test_a_pattern_covers_hosts(self, pattern, host, is_covered):
        assert StsPolicy("enforce", 60, ("other.test", pattern)).covers(host) is is_covered


TESTING = StsPolicy("testing", 604800, POLICY.mx)


class TestJudge:
    """RFC 8461 §4 and §5."""

    @pytest.mark.parametrize("host", ["mail.example.test", "a.example.net"])
    def test_an_enforced_policy_demands_that_the_certificate_is_the_hosts(self, host):
        opinion = judge("example.test", StsFinding(POLICY, seconds=60), host)

        assert opinion.verdict == TlsDemand(TlsLevel.VERIFY, "mta-sts", (host,), host)
        assert (opinion.is_certain, opinion.seconds) == (True, 60)
        (policy,) = opinion.verdict.reported
        assert (policy.kind, policy.domain, policy.failure) == ("sts", "example.test", None)
        assert policy.strings == (
            "version: STSv1",
            "mode: enforce",
            "mx: mail.example.test",
            "mx: *.example.net",
            "max_age: 604800",
        )
        assert policy.mx_hosts == POLICY.mx

    def test_an_enforced_policy_refuses_other_hosts_for_now(self):
        refusal = judge("example.test", StsFinding(POLICY, seconds=60), "evil.test").verdict

        assert isinstance(refusal, HostRefused)
        assert (refusal.status, refusal.cause) == (Status.DEFERRED, Cause.POLICY)
        assert str(refusal.enhanced) == "4.7.1"
        assert "evil.test" in refusal.text
        assert refusal.reported[0].failure == "validation-failure"

    def test_a_policy_in_testing_demands_nothing_and_its_owner_is_told(self):
        opinion = judge("example.test", StsFinding(TESTING), "mail.example.test")

        assert opinion.verdict == NOTHING
        assert opinion.verdict.trial_names == ("mail.example.test",)
        assert opinion.verdict.reported[0].failure is None
        assert opinion.is_certain

    def test_a_host_that_a_policy_in_testing_does_not_allow_is_used_and_reported(self):
        opinion = judge("example.test", StsFinding(TESTING), "evil.test")

        assert opinion.verdict == NOTHING
        assert opinion.verdict.trial_names == ()
        assert opinion.verdict.reported[0].failure == "validation-failure"
        assert not opinion.is_certain

    def test_a_policy_of_none_is_none(self):
        finding = StsFinding(StsPolicy("none", 60), "sts-policy-fetch-error", "gone")

        opinion = judge("example.test", finding, "evil.test")

        assert opinion.verdict == NOTHING
        assert opinion.verdict.reported == ()
        assert not opinion.is_certain

    def test_no_policy_demands_nothing(self):
        opinion = judge("example.test", StsFinding(seconds=7), "mx.test")

        assert (opinion.verdict, opinion.seconds) == (NOTHING, 7)
        assert (opinion.verdict.reported, opinion.is_unknown) == ((), False)

    def test_a_policy_that_cannot_be_had_is_none_and_its_owner_is_told(self):
        finding = StsFinding(None, "sts-webpki-invalid", "expired")

        opinion = judge("example.test", finding, "mx.test")

        assert opinion.verdict == NOTHING
        (policy,) = opinion.verdict.reported
        assert (policy.kind, policy.failure, policy.reason) == (
            "sts",
            "sts-webpki-invalid",
            "expired",
        )

    def test_a_policy_that_could_not_be_renewed_holds_and_its_owner_is_told(self):
        finding = StsFinding(POLICY, "sts-policy-fetch-error", "no answer")

        verdict = judge("example.test", finding, "mail.example.test").verdict

        assert verdict.level is TlsLevel.VERIFY
        assert [policy.failure for policy in verdict.reported] == [None, "sts-policy-fetch-error"]

    def test_who_could_not_be_asked_may_have_a_policy(self):
        assert judge("example.test", StsFinding(is_unknown=True), "mx.test").is_unknown
