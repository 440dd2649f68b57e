"""Count how TLS with receivers went, a day each, for the reports they ask for (RFC 8460 §4).

Whoever connects tells `TlsCounters` of each session and each host a policy refused; frozen
`DailyReport`s come out.  Knows no I/O.  Not here: what a report looks like
(`engine.report.tlsrpt_form`), where counters outlive the process (`tlsrpt_store`), and who sends
reports (`tlsrpt_send`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.outcome import Peer
    from engine.security import ReportedPolicy, TlsFailure

#: Bounds of what is remembered: receivers a day, those who want no reports, policies of a receiver,
#: kinds of failure under a policy.
MAX_RECEIVERS: Final = 10_000
MAX_UNWANTED: Final = 200_000
MAX_POLICIES: Final = 50
MAX_DETAILS: Final = 50
_MAX_REASON: Final = 200


class FailureDetail(NamedTuple):
    """What failed sessions have in common (RFC 8460 §4.4).

    Attributes:
        result_type: What failed.
        sending_ip: Our IP address; `None` where no connection was made, as for the next two.
        mx_host: The receiver's host.
        receiving_ip: Its IP address.
        reason: More for a person: an error code or text.
    """

    result_type: TlsFailure
    sending_ip: str | None = None
    mx_host: str | None = None
    receiving_ip: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """How sessions under one policy went.

    Attributes:
        policy: The policy; what may be wrong with it is among the details.
        successes: Sessions that complied with it.
        failures: Sessions that did not.
        details: What failed, and how often; one session may have failed in more than one way.
    """

    policy: ReportedPolicy
    successes: int = 0
    failures: int = 0
    details: tuple[tuple[FailureDetail, int], ...] = ()


@dataclass(frozen=True, slots=True)
class DailyReport:
    """How TLS with one receiver went on one day, in UTC.

    Attributes:
        receiver: Whose `_smtp._tls` record says where the report goes.
        day: The day.
        results: For each policy how it went.
    """

    receiver: str
    day: date
    results: tuple[PolicyResult, ...]


def day_of(at: float) -> date:
    """Return the day, in UTC, of a time in seconds since the epoch (RFC 8460 §4.1)."""
    return datetime.fromtimestamp(at, UTC).date()


class _Tally:
    """What is counted under one policy."""

    def __init__(self, result: PolicyResult) -> None:
        self.policy = result.policy
        self.successes = result.successes
        self.failures = result.failures
        self.details: Counter[FailureDetail] = Counter(dict(result.details))

    def add(self, details: Iterable[FailureDetail]) -> None:
        is_failure = False
        for detail in details:
            is_failure = True
            # Beyond the bound a failure is counted and not described.
            if detail in self.details or len(self.details) < MAX_DETAILS:
                self.details[detail] += 1
        if is_failure:
            self.failures += 1
        else:
            self.successes += 1

    def result(self) -> PolicyResult:
        details = tuple(sorted(self.details.items(), key=repr))
        return PolicyResult(self.policy, self.successes, self.failures, details)


class TlsCounters:
    """Counts sessions for each receiver and day; bounded, so what is too much is not counted.

    Attributes:
        changed: Receivers whose counts changed; who saves them empties it.
        fresh: Receivers of whom it is not known yet whether they want reports; who finds out empties
            it, and tells by `ignore`.
    """

    def __init__(self) -> None:
        self.changed: set[str] = set()
        self.fresh: set[str] = set()
        self._unwanted: set[str] = set()
        self._today: date | None = None
        self._days: dict[str, dict[date, dict[ReportedPolicy, _Tally]]] = {}

    def __len__(self) -> int:
        return len(self._days)

    def count(
        self,
        at: float,
        reported: Iterable[ReportedPolicy],
        *,
        failure: TlsFailure | None = None,
        trial_failure: TlsFailure | None = None,
        reason: str = "",
        peer: Peer | None = None,
    ) -> None:
        """Count a session, or a host that was refused before there was one.

        Args:
            at: When, in seconds since the epoch.
            reported: Under which policies: `reported` of a `TlsDemand` or a `HostRefused`.
            failure: How it failed; `None` where TLS was what it had to be.
            trial_failure: How it would have failed if a policy in testing had been enforced.
            reason: More about the failure.
            peer: Both ends.
        """
        day = day_of(at)
        if day != self._today:
            # Another day, another wish.
            self._unwanted.clear()
            self._today = day
        for policy in reported:
            if policy.receiver in self._unwanted:
                continue
            kinds = [(policy.failure, policy.reason), (failure, reason)]
            if policy.kind == "sts":
                kinds.append((trial_failure, reason))
            details = {_detail(kind, text, peer): None for kind, text in kinds if kind is not None}
            tally = self._tally(day, policy)
            if tally is not None:
                tally.add(details)
                self.changed.add(policy.receiver)

    def _tally(self, day: date, policy: ReportedPolicy) -> _Tally | None:
        days = self._days.get(policy.receiver)
        if days is None:
            if len(self._days) >= MAX_RECEIVERS:
                return None
            days = self._days[policy.receiver] = {}
        if day not in days:
            days[day] = {}
            self.fresh.add(policy.receiver)
        # What is wrong with a policy does not make it another one.
        policy = replace(policy, failure=None, reason="")
        tally = days[day].get(policy)
        if tally is None and len(days[day]) < MAX_POLICIES:
            tally = days[day][policy] = _Tally(PolicyResult(policy))
        return tally

    def receivers(self) -> list[str]:
        """Return for whom there are counts."""
        return list(self._days)

    def reports(self, receiver: str) -> list[DailyReport]:
        """Return what was counted for a receiver so far, a report a day."""
        return [
            DailyReport(receiver, day, tuple(tally.result() for tally in tallies.values()))
            for day, tallies in self._days.get(receiver, {}).items()
        ]

    def finished(self, at: float) -> list[tuple[str, date]]:
        """Return the receivers and days of the reports to which nothing will be added."""
        today = day_of(at)
        return [
            (receiver, day) for receiver, days in self._days.items() for day in days if day < today
        ]

    def drop(self, receiver: str, day: date) -> None:
        """Forget a report: it was sent, or nobody wants it."""
        days = self._days.get(receiver, {})
        if days.pop(day, None) is not None:
            self.changed.add(receiver)
            if not days:
                del self._days[receiver]

    def ignore(self, receiver: str) -> None:
        """Count no more today for a receiver who wants no reports."""
        if self._today is not None:
            self.drop(receiver, self._today)
        if len(self._unwanted) < MAX_UNWANTED:
            self._unwanted.add(receiver)

    def restore(self, report: DailyReport) -> None:
        """Take back what was counted before a restart; what was counted since then stays."""
        if report.receiver in self._days or len(self._days) < MAX_RECEIVERS:
            tallies = {result.policy: _Tally(result) for result in report.results[:MAX_POLICIES]}
            self._days.setdefault(report.receiver, {}).setdefault(report.day, tallies)


def _detail(kind: TlsFailure, reason: str, peer: Peer | None) -> FailureDetail:
    text = reason if reason.isprintable() else ascii(reason)[1:-1]
    if peer is None:
        return FailureDetail(kind, reason=text[:_MAX_REASON])
    return FailureDetail(kind, peer.local_address, peer.host, peer.address, text[:_MAX_REASON])
