"""Who is told what became of a message, and when (RFC 3461 §5.2).  Knows no I/O.

Asked by whoever keeps mail, when recipients are done with and while they wait.  A `Report` says who
is in it; `engine.report.bounce` makes a message of it.  Not here: when mail is tried again or given
up, and whether reports are made at all.

    how it stands  outcome               NOTIFY             next hop           what is due
    -------------  --------------------  -----------------  -----------------  -----------
    given up       failed                FAILURE, or none   any                failed
    given up       deferred, unknown     FAILURE, or none   any                expired
    done           delivered             SUCCESS            SMTP, without DSN  relayed
    done           delivered             SUCCESS            LMTP, without DSN  delivered
    done           delivered             SUCCESS            with DSN           nothing
    done           unknown               any                any                nothing
    waiting        any                   DELAY, or none     any                delayed

Nothing is ever due to the null reverse-path, or with NOTIFY=NEVER.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from engine.outcome import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.message import Message, Notify, Recipient
    from engine.outcome import Outcome

#: Recipients in one report; with more there are several.
MAX_RECIPIENTS: Final = 500


class Fate(StrEnum):
    """How things stand with a recipient."""

    #: Nothing more will be done: it was delivered, or is taken for delivered.
    DONE = "done"
    #: Nothing more will be done: it was not delivered.
    GIVEN_UP = "given-up"
    #: It will be tried again.
    WAITING = "waiting"


class Kind(StrEnum):
    """What a recipient's entry in a report says, the worst first."""

    #: Refused for good.
    FAILED = "failed"
    #: Given up after it had been tried for as long as mail is.
    EXPIRED = "expired"
    #: Not delivered yet.
    DELAYED = "delayed"
    #: Handed to a host that will not report on it.
    RELAYED = "relayed"
    #: Put into the mailbox, as far as LMTP knows.
    DELIVERED = "delivered"

    @property
    def is_failure(self) -> bool:
        """Whether the message did not reach the recipient and never will."""
        return self in (Kind.FAILED, Kind.EXPIRED)

    @property
    def action(self) -> str:
        """The value of the Action field (RFC 3464 §2.3.3)."""
        return "failed" if self is Kind.EXPIRED else self.value


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a message has come with one recipient; times are seconds since the epoch.

    Attributes:
        recipient: The recipient.
        fate: How things stand.
        outcome: Of its last attempt; `None` if it was never tried.
        tried_at: When that was.
        reason: Why it is where it is, in one line; told where no outcome says so.
        retry_until: When it will be given up, for who waits; `None` if nobody knows.
        warned_at: When the sender was last told of the delay.
        is_passed_on: Whether the host that took it understands DSN and so was told what reports
            are wanted: making them is its duty from then on (RFC 3461 §5.2.1).
    """

    recipient: Recipient
    fate: Fate
    outcome: Outcome | None
    tried_at: float | None = None
    reason: str = ""
    retry_until: float | None = None
    warned_at: float | None = None
    is_passed_on: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What a report says about one recipient.

    Attributes:
        kind: What it is told of.
        progress: The facts.
    """

    kind: Kind
    progress: Progress


@dataclass(frozen=True, slots=True)
class Report:
    """A report that is due.

    Attributes:
        id: Names it; the same whenever the same recipients of a message are reported on, so that
            a report that is made again after a crash is known for the same.
        message: The message it is about; its reverse-path is not null.
        entries: At least one, the worst first.
        arrived_at: When the message came, in seconds since the epoch.
        at: When the report became due.
    """

    id: str
    message: Message
    entries: tuple[Entry, ...]
    arrived_at: float
    at: float

    @property
    def has_failures(self) -> bool:
        """Whether it tells of a failure, and so may return the content (RFC 3461 §4.3)."""
        return any(entry.kind.is_failure for entry in self.entries)


def due_reports(
    message: Message,
    progress: Iterable[Progress],
    *,
    arrived_at: float,
    at: float,
    warn_after: Sequence[float] = (),
    is_automatic: bool = False,
) -> tuple[Report, ...]:
    """Return the reports that are due for recipients of one message: mostly one or none.

    Those who are done with are to be passed once, those who wait whenever it pleases.

    Args:
        message: The message.
        progress: How far it has come with some of its recipients.
        arrived_at: When it came, in seconds since the epoch.
        at: Now.
        warn_after: After how many seconds of waiting the sender is warned, each time once.
        is_automatic: Whether the message is a machine's or a list's; their senders are warned of
            delays only where they asked for that.
    """
    warned_since = _last_threshold(arrived_at, at, warn_after)
    found = []
    for each in progress:
        kind = due_kind(message, each)
        if kind is Kind.DELAYED and (
            (is_automatic and not each.recipient.notify) or not _is_warning_due(each, warned_since)
        ):
            continue
        if kind is not None:
            found.append(Entry(kind, each))
    order = list(Kind)
    found.sort(key=lambda entry: order.index(entry.kind))
    parts = [
        found[start : start + MAX_RECIPIENTS] for start in range(0, len(found), MAX_RECIPIENTS)
    ]
    return tuple(
        Report(_name(message, part, arrived_at, warned_since), message, tuple(part), arrived_at, at)
        for part in parts
    )


def due_kind(message: Message, progress: Progress) -> Kind | None:
    """Return what a sender is to be told of a recipient, `None`: nothing.

    For who waits: what it is told once the time for that has come.
    """
    # RFC 3461 §5.2: never to the null path, whatever the header says.
    if message.reverse_path is None:
        return None
    kind = _kind(progress)
    if kind is None:
        return None
    return kind if _WISHES[kind] in (progress.recipient.notify or _DEFAULT) else None


#: RFC 3461 §4.1: what no NOTIFY may be taken for.
_DEFAULT: Final[frozenset[Notify]] = frozenset({"failure", "delay"})
_WISHES: Final[dict[Kind, Notify]] = {
    Kind.FAILED: "failure",
    Kind.EXPIRED: "failure",
    Kind.DELAYED: "delay",
    Kind.RELAYED: "success",
    Kind.DELIVERED: "success",
}


def _kind(progress: Progress) -> Kind | None:
    outcome = progress.outcome
    if progress.fate is Fate.WAITING:
        return Kind.DELAYED
    if progress.fate is Fate.GIVEN_UP:
        if outcome is None:
            return Kind.FAILED
        # RFC 3464 §2.3.3: a temporary failure stays one when nobody tries any longer.
        was_temporary = outcome.enhanced is not None and outcome.enhanced.severity == 4
        is_refusal = outcome.status is Status.FAILED and not was_temporary
        return Kind.FAILED if is_refusal else Kind.EXPIRED
    # What may have been delivered, or may not, is not said to be.
    if outcome is None or outcome.status is not Status.DELIVERED or progress.is_passed_on:
        return None
    # RFC 2033 §1: LMTP is for those who keep no queue, so what they take is delivered.
    return Kind.DELIVERED if outcome.features.lmtp else Kind.RELAYED


def _last_threshold(arrived_at: float, at: float, warn_after: Sequence[float]) -> float | None:
    """Return when the last warning became due; `None`: none has yet."""
    return max((arrived_at + wait for wait in warn_after if arrived_at + wait <= at), default=None)


def _is_warning_due(progress: Progress, since: float | None) -> bool:
    # After an idle week one warning makes up for all that were missed.
    return since is not None and (progress.warned_at is None or progress.warned_at < since)


def _name(
    message: Message, entries: Sequence[Entry], arrived_at: float, warned_since: float | None
) -> str:
    # Ids of messages may be used again, once they are forgotten.
    facts = [message.id, f"{arrived_at:.3f}"]
    for entry in entries:
        moment = warned_since if entry.kind is Kind.DELAYED else None
        facts.append(f"{entry.kind} {moment} {entry.progress.recipient.address}")
    digest = sha256("\0".join(facts).encode("utf-8", "backslashreplace"))
    return f"report-{digest.hexdigest()[:40]}"
