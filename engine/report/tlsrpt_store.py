"""Keep the counts of TLS reports in the hints, so that a restart does not lose a day's.

Called by `engine.report.tlsrpt_send`.  What the hints lose is missing in a report, and nothing else
depends on it.  Knows no I/O beyond the hints.
"""

from __future__ import annotations

import json
import logging
from datetime import date
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from engine.report.tlsrpt import DailyReport, FailureDetail, PolicyResult
from engine.security import ReportedPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from engine.hints import Hints
    from engine.report.tlsrpt import TlsCounters

HINT_KIND: Final = "tlsrpt"

#: Hints cannot be listed, so receivers share values; what changes rewrites one of them.
_SHARDS: Final = 64
_MAX_OCTETS: Final = 64 * 1024
#: Reports are sent for a day after theirs (RFC 8460 §5.5).
_SECONDS: Final = 4 * 86_400.0

_log = logging.getLogger("engine.report")


class TlsrptStore:
    """Saves and restores counts.

    Args:
        hints: Where they are kept.
        name: Tells apart the engines that share the hints: each keeps its own counts.
    """

    def __init__(self, hints: Hints, name: str = "1") -> None:
        self._hints = hints
        self._name = name

    def load(self, counters: TlsCounters) -> None:
        """Restore what was saved; what cannot be read is as good as lost."""
        for shard in range(_SHARDS):
            octets = self._hints.get(HINT_KIND, self._key(shard))
            for report in _read(octets) if octets else ():
                counters.restore(report)

    def save(self, counters: TlsCounters) -> Iterator[None]:
        """Save what changed since the last time, a piece with each step: there may be much of it."""
        shards = {_shard(receiver) for receiver in counters.changed}
        counters.changed.clear()
        held: dict[int, list[str]] = {shard: [] for shard in shards}
        for receiver in counters.receivers():
            if (shard := _shard(receiver)) in shards:
                held[shard].append(receiver)
        for shard, receivers in held.items():
            reports = [report for receiver in receivers for report in counters.reports(receiver)]
            if reports:
                octets = _write(reports)
                self._hints.put(HINT_KIND, self._key(shard), octets, seconds=_SECONDS)
            else:
                self._hints.forget(HINT_KIND, self._key(shard))
            yield

    def _key(self, shard: int) -> str:
        return f"{self._name}/{shard}"


def _shard(receiver: str) -> int:
    return crc32(receiver.encode()) % _SHARDS


def _write(reports: Iterable[DailyReport]) -> bytes:
    """Return reports as octets; the smallest are left out of what would be too much."""
    texts = [json.dumps(_to_record(report), separators=(",", ":")) for report in reports]
    texts.sort(key=len, reverse=True)
    size, kept = 2, []
    for text in texts:
        size += len(text) + 1
        if size > _MAX_OCTETS:
            _log.warning("TLS reports: no room to keep all counts over a restart")
            break
        kept.append(text)
    return f"[{','.join(kept)}]".encode()


def _read(octets: bytes) -> list[DailyReport]:
    try:
        return [_from_record(record) for record in json.loads(octets)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _to_record(report: DailyReport) -> list[Any]:
    results = [
        [
            [r.policy.kind, r.policy.domain, r.policy.strings, r.policy.mx_hosts],
            r.successes,
            r.failures,
            [[*detail, count] for detail, count in r.details],
        ]
        for r in report.results
    ]
    return [report.receiver, report.day.isoformat(), results]


def _from_record(record: list[Any]) -> DailyReport:
    receiver, day, results = record
    return DailyReport(
        str(receiver),
        date.fromisoformat(day),
        tuple(_from_result(str(receiver), *result) for result in results),
    )


def _from_result(
    receiver: str, policy: list[Any], successes: int, failures: int, details: list[list[Any]]
) -> PolicyResult:
    kind, domain, strings, mx_hosts = policy
    return PolicyResult(
        ReportedPolicy(kind, str(domain), tuple(strings), tuple(mx_hosts), receiver=receiver),
        int(successes),
        int(failures),
        tuple((FailureDetail(*facts), int(count)) for *facts, count in details),
    )
