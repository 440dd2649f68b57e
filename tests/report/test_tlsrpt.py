"""What is counted for TLS reports, for whom and on which day."""

from __future__ import annotations

from datetime import date

import pytest

from engine.outcome import Peer
from engine.report.tlsrpt import (
    MAX_DETAILS,
    MAX_POLICIES,
    MAX_RECEIVERS,
    DailyReport,
    FailureDetail,
    PolicyResult,
    TlsCounters,
    day_of,
)
from engine.security import ReportedPolicy

#: 2026-11-28 12:00:00 UTC, and its day.
NOON = 1_795_867_200.0
DAY = date(2026, 11, 28)
HOUR = 3600.0

STS = ReportedPolicy("sts", "a.test", ("version: STSv1",), ("mx.a.test",), receiver="a.test")
TLSA = ReportedPolicy("tlsa", "mx.a.test", ("3 1 1 ab",), receiver="a.test")
NONE = ReportedPolicy("no-policy-found", "b.test", receiver="b.test")
BROKEN = ReportedPolicy(
    "sts", "a.test", failure="sts-webpki-invalid", reason="expired", receiver="a.test"
)
PEER = Peer("mx.a.test", "192.0.2.1", 25, "198.51.100.1")


def all_of(counters):
    return [r for receiver in counters.receivers() for r in counters.reports(receiver)]


def results(counters, receiver="a.test"):
    (report,) = counters.reports(receiver)
    return [(r.policy.kind, r.successes, r.failures, dict(r.details)) for r in report.results]


def test_days_are_utc():
    assert day_of(NOON) == DAY
    assert day_of(NOON + 12 * HOUR - 1) == DAY
    assert day_of(NOON + 12 * HOUR) == date(2026, 11, 29)


def test_nothing_counted_is_no_report():
    assert all_of(TlsCounters()) == []
    assert TlsCounters().finished(NOON) == []


def test_sessions_are_counted_by_receiver_and_policy():
    counters = TlsCounters()
    for _ in range(3):
        counters.count(NOON, [STS])
    counters.count(NOON, [NONE])
    counters.count(NOON, [TLSA, STS])

    assert results(counters) == [("sts", 4, 0, {}), ("tlsa", 1, 0, {})]
    assert results(counters, "b.test") == [("no-policy-found", 1, 0, {})]


def test_failures_are_counted_by_what_they_have_in_common():
    counters = TlsCounters()
    for reason in ("expired", "expired", "x"):
        counters.count(NOON, [STS], failure="certificate-expired", reason=reason, peer=PEER)
    counters.count(NOON, [STS], failure="starttls-not-supported", peer=PEER)
    counters.count(NOON, [STS])

    ends = ("198.51.100.1", "mx.a.test", "192.0.2.1")
    assert results(counters) == [
        (
            "sts",
            1,
            4,
            {
                FailureDetail("certificate-expired", *ends, "expired"): 2,
                FailureDetail("certificate-expired", *ends, "x"): 1,
                FailureDetail("starttls-not-supported", *ends): 1,
            },
        )
    ]


def test_a_policy_that_is_wrong_fails_each_session_under_it_and_is_the_same_policy():
    counters = TlsCounters()
    counters.count(NOON, [BROKEN])

    assert results(counters) == [
        ("sts", 0, 1, {FailureDetail("sts-webpki-invalid", reason="expired"): 1})
    ]
    (report,) = counters.reports("a.test")
    assert report.results[0].policy == ReportedPolicy("sts", "a.test", receiver="a.test")


def test_a_session_may_fail_in_more_than_one_way_and_is_one_failure():
    """RFC 8460 §4: failure types are not exclusive."""
    counters = TlsCounters()
    counters.count(NOON, [BROKEN], failure="certificate-expired")

    ((_, successes, failures, details),) = results(counters)
    assert (successes, failures, sorted(details.values())) == (0, 1, [1, 1])


def test_what_a_policy_in_testing_would_have_refused_is_counted_under_it_alone():
    counters = TlsCounters()
    counters.count(NOON, [STS, TLSA], trial_failure="certificate-not-trusted", peer=PEER)

    assert [result[:3] for result in results(counters)] == [("sts", 0, 1), ("tlsa", 1, 0)]


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("x" * 300, "x" * 200), ("a\r\nb\x00", "a\\r\\nb\\x00"), ("caf\xe9", "caf\xe9")],
)
def test_a_reason_is_short_and_printable(reason, shown):
    counters = TlsCounters()
    counters.count(NOON, [STS], failure="validation-failure", reason=reason)

    ((*_, details),) = results(counters)
    assert [detail.reason for detail in details] == [shown]


def test_a_day_is_finished_when_it_is_over():
    counters = TlsCounters()
    counters.count(NOON, [STS])
    counters.count(NOON + 13 * HOUR, [STS])

    assert counters.finished(NOON + 11 * HOUR) == []
    assert counters.finished(NOON + 12 * HOUR) == [("a.test", DAY)]
    counters.drop("a.test", DAY)
    assert counters.finished(NOON + 12 * HOUR) == []
    assert len(counters.reports("a.test")) == 1
    counters.drop("a.test", date(2026, 11, 29))
    assert len(counters) == 0
    counters.drop("a.test", DAY)


def test_for_who_wants_no_reports_nothing_more_is_counted_until_tomorrow():
    counters = TlsCounters()
    counters.count(NOON, [STS])
    assert counters.fresh == {"a.test"}

    counters.ignore("a.test")
    counters.count(NOON + 1, [STS, NONE])
    assert counters.receivers() == ["b.test"]
    counters.count(NOON + 12 * HOUR, [STS])
    assert counters.receivers() == ["b.test", "a.test"]
    assert counters.fresh == {"a.test", "b.test"}


def test_who_wants_no_reports_today_gets_yesterdays():
    counters = TlsCounters()
    counters.count(NOON, [STS])
    counters.count(NOON + 12 * HOUR, [STS])
    counters.ignore("a.test")

    assert [report.day for report in counters.reports("a.test")] == [DAY]


def test_changes_are_known_to_who_saves():
    counters = TlsCounters()
    counters.count(NOON, [STS])
    assert counters.changed == {"a.test"}
    counters.changed.clear()
    counters.drop("a.test", DAY)
    assert counters.changed == {"a.test"}


def test_what_was_counted_before_a_restart_is_taken_back():
    before = TlsCounters()
    before.count(NOON, [STS], failure="certificate-expired", peer=PEER)
    (report,) = before.reports("a.test")
    counters = TlsCounters()
    counters.restore(report)
    counters.count(NOON, [STS])

    assert [result[:3] for result in results(counters)] == [("sts", 1, 1)]
    counters.restore(report)
    assert [result[:3] for result in results(counters)] == [("sts", 1, 1)]


def policy(number):
    return ReportedPolicy("tlsa", f"mx{number}.test", receiver="a.test")


def test_everything_is_bounded():
    counters = TlsCounters()
    for number in range(MAX_DETAILS + 10):
        counters.count(NOON, [STS], failure="validation-failure", reason=str(number))
    for number in range(MAX_POLICIES + 10):
        counters.count(NOON, [policy(number)])
    for number in range(MAX_RECEIVERS + 10):
        counters.count(NOON, [ReportedPolicy("sts", "x", receiver=f"d{number}.test")])

    (report,) = counters.reports("a.test")
    assert len(report.results) == MAX_POLICIES
    assert report.results[0].failures == MAX_DETAILS + 10
    assert len(report.results[0].details) == MAX_DETAILS
    assert len(counters) == MAX_RECEIVERS
    counters.restore(DailyReport("new.test", DAY, (PolicyResult(STS),)))
    assert len(counters) == MAX_RECEIVERS
