"""What the store in memory keeps, and how it shows that.  Knows no I/O.

Used by `engine.queue.memory` alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.queue.entries import Entry
from engine.queue.turns import Share
from engine.queue.values import LeasedMessage, LeasedRecipient, State
from engine.queue.values import to_milliseconds as ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.message import Message, Recipient
    from engine.queue.submission import Submission
    from engine.queue.values import Action, Result, Selection


@dataclass(slots=True)
class KeptMessage:
    """A message that is known; without `recipients` it is done with.

    Attributes:
        number: Messages are numbered as they come.
        message: It; its content goes with its last recipient.
        submission: How it was submitted.
        fingerprint: Tells it from another with its id.
        recipients: The numbers of those that are still there.
        finished_at: When the last of them went, in milliseconds.
    """

    number: int
    message: Message
    submission: Submission
    fingerprint: str
    recipients: list[int]
    finished_at: int | None = None

    @property
    def share(self) -> Share:
        """Whose share its recipients are part of."""
        return Share(self.submission.priority, self.submission.tenant, self.submission.job)


@dataclass(slots=True)
class KeptRecipient:
    """A recipient; attributes as in `engine.queue.entries.Entry`, times in milliseconds.

    Attributes:
        due: When it is due; while it is leased, when it will be should the lease be lost.
        lease: While it is leased, and after a lost lease until the next.
        site: The site it counts for, while it is leased.
        wish: What a person asked for while it was leased.
        warned_at: When its sender was last told of the delay.
    """

    number: int
    message: KeptMessage
    recipient: Recipient
    due: int
    state: State = State.QUEUED
    attempts: int = 0
    first_attempt_at: int | None = None
    wait: int = 0
    lease: int | None = None
    site: str = ""
    wish: Action | None = None
    result: Result | None = None
    reason: str = ""
    last: str | None = None
    warned_at: int | None = None

    @property
    def domain(self) -> str:
        """Its routing domain."""
        return self.recipient.mailbox.routing_domain


def _sender(message: Message) -> str:
    return "" if message.reverse_path is None else str(message.reverse_path)


def rounded(seconds: float | None) -> float | None:
    """Return a time as stores give it back."""
    return None if seconds is None else ms(seconds) / 1000


def fingerprint(submission: Submission, octets: bytes) -> str:
    """Return what two submissions have in common that stand for the same message."""
    message = submission.message
    parts = [_sender(message), *(each.address for each in message.recipients)]
    return hashlib.sha256("\n".join(parts).encode() + b"\n\n" + octets).hexdigest()


def is_selected(selection: Selection, each: KeptRecipient) -> bool:
    """Whether a recipient satisfies all that is given."""
    submission, message = each.message.submission, each.message.message
    domain = selection.domain
    if domain is not None and domain.startswith("*."):
        is_domain = each.domain.endswith(domain[1:])
    else:
        is_domain = domain in (None, each.domain)
    return (
        is_domain
        and (not selection.states or each.state in selection.states)
        and selection.message in (None, message.id)
        and selection.recipient in (None, each.recipient.address)
        and selection.sender in (None, _sender(message))
        and selection.tenant in (None, submission.tenant)
        and selection.job in (None, submission.job)
    )


def is_delayed(each: KeptRecipient, now: int, waits: Sequence[int]) -> bool:
    """Whether it waits, and its sender is to hear of that; times in milliseconds."""
    submission = each.message.submission
    since = max(ms(submission.submitted_at), ms(submission.not_before or 0))
    has_sender = each.message.message.reverse_path is not None
    return (has_sender and each.state in (State.QUEUED, State.LEASED)) and any(
        (each.warned_at or 0) < since + wait <= now for wait in waits
    )


def gather(taken: Sequence[KeptRecipient], lease: int) -> tuple[LeasedMessage, ...]:
    """Return leased recipients by message."""
    by_message: dict[int, list[KeptRecipient]] = {}
    for each in taken:
        by_message.setdefault(each.message.number, []).append(each)
    return tuple(_leased(everybody, lease) for everybody in by_message.values())


def _leased(everybody: Sequence[KeptRecipient], lease: int) -> LeasedMessage:
    message = everybody[0].message
    submission = message.submission
    return LeasedMessage(
        message=replace(message.message, recipients=tuple(each.recipient for each in everybody)),
        recipients=tuple(
            LeasedRecipient(
                number=each.number,
                address=each.recipient.address,
                site=each.site,
                attempts=each.attempts,
                first_attempt_at=(each.first_attempt_at or 0) / 1000,
                wait=each.wait / 1000,
                reason=each.reason,
            )
            for each in everybody
        ),
        lease=lease,
        submitted_at=ms(submission.submitted_at) / 1000,
        deadline=rounded(submission.deadline),
        tenant=submission.tenant,
        job=submission.job,
        priority=submission.priority,
    )


def entry_of(each: KeptRecipient, site: str) -> Entry:
    """Return a recipient as the command line shows it."""
    submission, message = each.message.submission, each.message.message
    is_due = each.state in (State.QUEUED, State.LEASED)
    return Entry(
        number=each.number,
        message=message.id,
        sender=_sender(message),
        recipient=each.recipient.address,
        state=each.state,
        attempts=each.attempts,
        next_attempt=each.due / 1000 if is_due else None,
        submitted_at=ms(submission.submitted_at) / 1000,
        deadline=rounded(submission.deadline),
        tenant=submission.tenant,
        job=submission.job,
        priority=submission.priority,
        site=site,
        result=each.result,
        reason=each.reason,
        last=each.last,
    )
