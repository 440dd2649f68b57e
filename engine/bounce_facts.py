"""What a store knows of recipients, as reports take it; and a report as a record for programs.

Used by `engine.bounces`, between the queue and the reports, which do not know each other.  Knows no
I/O.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from engine.queue.decision import is_expiry
from engine.queue.values import Result
from engine.report.bounce_rules import Fate, Progress
from engine.report.bounce_status import status_of
from engine.report.outcome_record import read_record
from engine.units import parse_moment, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.outcome import Outcome
    from engine.queue.entries import Entry, StoredMessage
    from engine.queue.retry import RetryRules
    from engine.report.bounce_rules import Entry as ReportEntry
    from engine.report.bounce_rules import Report


def fate_of(result: Result | None) -> Fate:
    """Return how things stand with a recipient that was settled so; `None`: it was not."""
    if result is None or not result.is_final:
        return Fate.WAITING
    return Fate.DONE if result is Result.DELIVERED else Fate.GIVEN_UP


def waited_since(stored: StoredMessage) -> float:
    """Return since when the delivery of a message is waited for."""
    return max(stored.entries[0].submitted_at, stored.not_before or 0.0)


def progress_of(stored: StoredMessage, rules: RetryRules | None = None) -> Iterator[Progress]:
    """Yield how far a message has come with each of its recipients that are there.

    Whether a host reports on successes itself is not known any more: a recipient that was passed on
    to such a one, nobody is kept to be told of (`engine.bounces.Bouncer.wants_report`).

    Args:
        stored: The message, from its store.
        rules: By which it is tried again, to say until when; `None` where nobody knows.
    """
    for recipient, entry in zip(stored.message.recipients, stored.entries, strict=True):
        outcome, tried_at = _read(entry)
        fate = fate_of(entry.result)
        until = None
        if fate is Fate.WAITING:
            domain = recipient.mailbox.routing_domain
            until = _retry_until(stored, domain, outcome, rules)
        yield Progress(recipient, fate, outcome, tried_at, entry.reason, until)


def _read(entry: Entry) -> tuple[Outcome | None, float | None]:
    """Return the last outcome, and when the attempt was that had it."""
    if entry.last is None:
        return None, None
    try:
        record = json.loads(entry.last)
        outcome = read_record(record)
    except (ValueError, AttributeError):
        # Of a later release, perhaps; a report without it is better than none.
        return None, None
    if is_expiry(outcome):
        # When it was last tried is not known any more, if it ever was.
        return outcome, None
    try:
        return outcome, parse_moment(record.get("time"), 0.0)
    except ValueError:
        return outcome, None


def _retry_until(
    stored: StoredMessage, domain: str, outcome: Outcome | None, rules: RetryRules | None
) -> float | None:
    deadline = stored.entries[0].deadline
    age = None
    if rules is not None and outcome is not None:
        steps = rules.find(domain, outcome).steps
        age = steps[-1].until if steps else None
    if age is None:
        return deadline
    # The age of a rule counts from the first try, which was not before: this promises no more.
    end = waited_since(stored) + age
    return end if deadline is None else min(end, deadline)


def event_of(report: Report, stored: StoredMessage) -> dict[str, Any]:
    """Return a report as a record; its keys are described at `engine.bounces.Bouncer`."""
    message, first = report.message, stored.entries[0]
    return {
        "time": timestamp(report.at),
        "event": "report",
        "report": report.id,
        "message": message.id,
        "sender": str(message.reverse_path),
        "envid": message.envid,
        "tenant": first.tenant,
        "job": first.job,
        "submitted_at": timestamp(report.arrived_at),
        "recipients": [_recipient_of(entry) for entry in report.entries],
    }


def _recipient_of(entry: ReportEntry) -> dict[str, Any]:
    progress = entry.progress
    record = None if progress.outcome is None else progress.outcome.as_dict()
    return {
        "recipient": progress.recipient.address,
        "orcpt": progress.recipient.orcpt,
        "kind": entry.kind.value,
        "action": entry.kind.action,
        "enhanced": str(status_of(entry)),
        "reply": record and record["reply"],
        "text": record and record["text"],
        "host": record and record["host"],
        "reason": progress.reason,
        "last_attempt": _moment(progress.tried_at),
        "retry_until": _moment(progress.retry_until),
    }


def _moment(at: float | None) -> str | None:
    return None if at is None else timestamp(at)
