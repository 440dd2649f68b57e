"""What an outcome makes of a leased recipient: its settlement.  Knows no I/O.

Called by the scheduler for each outcome, and for what it has to settle without one.  Not here: the
retry rules (`engine.queue.retry`), and what the sender is told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, assert_never

from engine.outcome import Cause, Outcome, Scope, Status
from engine.queue.retry import GiveUp, History, RetryAt, RetryRules, decide
from engine.queue.values import Action, Result, Settlement
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode
from engine.units import timestamp

if TYPE_CHECKING:
    from engine.message import Message, Recipient
    from engine.queue.values import LeasedMessage, LeasedRecipient, Removal

#: Characters of a last outcome in the store; a hostile server may answer with much more.
_MAX_RECORD: Final = 8192
_MAX_TEXT: Final = 500
#: RFC 3463 §3.5: delivery time expired.  What kept it from being delivered before was temporary.
_EXPIRED: Final = EnhancedStatusCode(4, 4, 7)


class Unknown(StrEnum):
    """What becomes of a recipient who may have the message, or may not."""

    #: Try again: rather twice than not at all.
    RETRY = "retry"
    #: Take it for delivered: rather not at all than twice.
    ASSUME_DELIVERED = "assume-delivered"
    #: Keep it for a person.
    HOLD = "hold"


class WantsReport(Protocol):
    """Says whether somebody is to be told that a recipient left the queue."""

    def __call__(
        self, message: Message, recipient: Recipient, outcome: Outcome, result: Result, /
    ) -> bool:
        """Return it; called once for each recipient that leaves, and must not wait.

        Args:
            message: The message as it was leased.
            recipient: The recipient.
            outcome: Of its last attempt.
            result: `DELIVERED` or `FAILED`: what an outcome `unknown` is taken for.
        """
        ...


def never(message: Message, recipient: Recipient, outcome: Outcome, result: Result) -> bool:  # noqa: ARG001
    """Tell nobody; see `Policy.wants_report`."""
    return False


@dataclass(frozen=True, slots=True)
class Policy:
    """How outcomes are dealt with.

    Attributes:
        rules: When to try again.
        unknown: What becomes of who may have been delivered.
        wants_report: Whether somebody is to be told that a recipient left the queue; the store
            then keeps it until that is done.
    """

    rules: RetryRules = field(default_factory=RetryRules)
    unknown: Unknown = Unknown.RETRY
    wants_report: WantsReport = never


class Settled(NamedTuple):
    """An outcome, and what it makes of its recipient.

    Attributes:
        outcome: It.
        message: The message as it was leased.
        recipient: The recipient as it was leased.
        settlement: What the store is told.
        next_attempt: When it is due again, `None` when it is not.
        text: Why, in one line.
    """

    outcome: Outcome
    message: LeasedMessage
    recipient: LeasedRecipient
    settlement: Settlement
    next_attempt: float | None
    text: str

    @property
    def is_final(self) -> bool:
        """Whether the recipient leaves the queue."""
        return self.settlement.result.is_final

    def as_dict(self) -> dict[str, Any]:
        """Return the record of the outcome log, but for its time."""
        record = self.outcome.as_dict()
        record["attempt"] = self.recipient.attempts
        record["final"] = self.is_final
        record["next_attempt"] = self.next_attempt
        record["decision"] = self.text
        return record


def settle(
    policy: Policy,
    message: LeasedMessage,
    index: int,
    outcome: Outcome,
    now: float,
) -> Settled:
    """Say what an outcome makes of a recipient.

    Recipients of one message who are deferred together come back together, whatever the jitter: one
    transaction serves them again.

    Args:
        policy: How outcomes are dealt with.
        message: The message as it was leased.
        index: The place of the recipient in it.
        outcome: What became of the recipient.
        now: Wall clock, seconds since the epoch.
    """
    match outcome.status:
        case Status.DELIVERED:
            return _final(policy, message, index, outcome, now, Result.DELIVERED, "delivered")
        case Status.UNKNOWN:
            if policy.unknown is Unknown.ASSUME_DELIVERED:
                text = "it may have been delivered, and is taken for it"
                return _final(policy, message, index, outcome, now, Result.DELIVERED, text)
            if policy.unknown is Unknown.HOLD:
                text = "it may have been delivered, and waits for a person"
                return _settled(message, index, outcome, now, Result.HELD, text)
        case Status.FAILED if is_expiry(outcome):
            text = "given up: its deadline has passed"
            return _final(policy, message, index, outcome, now, Result.FAILED, text)
        case _:
            pass
    recipient = message.recipients[index]
    domain = message.message.recipients[index].mailbox.routing_domain
    history = History(
        recipient.attempts, recipient.first_attempt_at, recipient.wait, message.deadline
    )
    rng = Random(f"{recipient.attempts} {message.message.id}")  # noqa: S311 - spreads load
    decision = decide(policy.rules.find(domain, outcome), history, outcome, now, rng)
    match decision:
        case GiveUp(text):
            return _final(policy, message, index, outcome, now, Result.FAILED, text)
        case RetryAt(at, wait, text, is_counted):
            result = Result.DEFERRED if is_counted else Result.RELEASED
            return _settled(message, index, outcome, now, result, text, due=at, wait=wait)
        case _:
            assert_never(decision)


def release(message: LeasedMessage, index: int, due: float) -> Settlement:
    """Return the settlement of a recipient that was leased and never tried."""
    return Settlement(
        lease=message.lease,
        recipient=message.recipients[index].number,
        result=Result.RELEASED,
        due=due,
    )


def expired(message: LeasedMessage, index: int) -> Outcome:
    """Return the outcome of a recipient whose deadline passed while it waited."""
    recipient = message.recipients[index]
    before = f"; before that: {recipient.reason}" if recipient.reason else ", before it was tried"
    return Outcome(
        message=message.message.id,
        recipient=recipient.address,
        status=Status.FAILED,
        scope=Scope.MESSAGE,
        stage=Stage.POLICY,
        cause=Cause.POLICY,
        enhanced=_EXPIRED,
        text=f"{_EXPIRED} the deadline of the message has passed{before}",
    )


def is_expiry(outcome: Outcome) -> bool:
    """Whether an outcome is one of `expired`: no attempt made it."""
    return outcome.stage is Stage.POLICY and outcome.enhanced == _EXPIRED


def doubtful(message: LeasedMessage, index: int) -> Outcome:
    """Return the outcome of a recipient whose worker died behind the end of the content."""
    return Outcome(
        message=message.message.id,
        recipient=message.recipients[index].address,
        status=Status.UNKNOWN,
        scope=Scope.MESSAGE,
        stage=Stage.FINAL,
        cause=Cause.INTERNAL,
        text="the worker stopped when the content had gone out, or was about to, and no reply to "
        "it had come: it may have been delivered",
    )


def removed(removal: Removal) -> Outcome:
    """Return the outcome of a recipient whom a person took out of the queue: no attempt made it."""
    if removal.action is Action.PURGE:
        text = "deleted by hand, and nobody is told"
    elif removal.reason in ("", Action.CANCEL.reason):
        text = Action.CANCEL.reason
    else:
        text = f"{Action.CANCEL.reason}: {removal.reason}"
    return Outcome(
        message=removal.message,
        recipient=removal.recipient,
        status=Status.FAILED,
        scope=Scope.LOCAL,
        stage=Stage.POLICY,
        cause=Cause.CANCELLED,
        text=text,
    )


def undelivered(message: LeasedMessage, index: int, text: str) -> Outcome:
    """Return the outcome of a recipient that could not be handed to the engine: a bug of ours."""
    return Outcome(
        message=message.message.id,
        recipient=message.recipients[index].address,
        status=Status.DEFERRED,
        scope=Scope.LOCAL,
        stage=Stage.ROUTE,
        cause=Cause.INTERNAL,
        text=text,
    )


def _final(
    policy: Policy,
    message: LeasedMessage,
    index: int,
    outcome: Outcome,
    now: float,
    result: Result,
    text: str,
) -> Settled:
    recipient = message.message.recipients[index]
    is_wanted = policy.wants_report(message.message, recipient, outcome, result)
    return _settled(message, index, outcome, now, result, text, report=is_wanted)


def _settled(
    message: LeasedMessage,
    index: int,
    outcome: Outcome,
    now: float,
    result: Result,
    text: str,
    *,
    due: float = 0.0,
    wait: float | None = None,
    report: bool = False,
) -> Settled:
    recipient = message.recipients[index]
    is_kept = report or not result.is_final
    last = record_of(outcome, now) if is_kept else None
    settlement = Settlement(message.lease, recipient.number, result, due, wait, text, last, report)
    next_attempt = due if result.is_queued else None
    return Settled(outcome, message, recipient, settlement, next_attempt, text)


def record_of(outcome: Outcome, at: float) -> str:
    """Return an outcome as the JSON text that stores keep: without its transcript, and bounded.

    Args:
        outcome: It.
        at: When it was, in seconds since the epoch: `time` in the record, as in the outcome log.
    """
    record = {"time": timestamp(at), **outcome.as_dict()}
    record.pop("transcript", None)
    text = json.dumps(record)
    if len(text) > _MAX_RECORD:
        record["text"] = record["text"][:_MAX_TEXT]
        record["attempts"] = [
            {**tried, "text": tried["text"][:_MAX_TEXT]} for tried in record["attempts"][-3:]
        ]
        if record["reply"]:
            lines = [line[:_MAX_TEXT] for line in record["reply"]["lines"][:3]]
            record["reply"] = {**record["reply"], "lines": lines}
        text = json.dumps(record)
    return text
