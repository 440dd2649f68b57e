"""The values that come out of a store of queued mail and go back into it.  Knows no I/O.

Made and read by the scheduler and by the command line; `engine.queue.store` says what a store does
with them.  All times are wall-clock seconds since the epoch.  Not here: how mail comes in
(`engine.queue.submission`), and what is seen of it (`engine.queue.entries`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.message import Message

#: Characters of a reason that a person gives.
MAX_REASON: Final = 1000


class State(StrEnum):
    """Where a recipient is."""

    QUEUED = "queued"
    LEASED = "leased"
    HELD = "held"
    #: Done with, and somebody is yet to be told.
    ENDED = "ended"


class Result(StrEnum):
    """What settling a recipient does."""

    #: It leaves the queue: delivered, or taken for delivered.
    DELIVERED = "delivered"
    #: It leaves the queue: given up.
    FAILED = "failed"
    #: It waits for its next attempt.
    DEFERRED = "deferred"
    #: It waits for a person.
    HELD = "held"
    #: It is queued again, and the attempt does not count: it was not tried after all, or our own
    #: fault kept it from being delivered.
    RELEASED = "released"

    @property
    def is_final(self) -> bool:
        """Whether the recipient leaves the queue."""
        return self._value_ in _FINAL

    @property
    def is_queued(self) -> bool:
        """Whether the recipient is queued again."""
        return self._value_ in _QUEUED


# Asked of every recipient, several times; names of members are slow to look up.
_FINAL: Final = frozenset({Result.DELIVERED.value, Result.FAILED.value})
_QUEUED: Final = frozenset({Result.DEFERRED.value, Result.RELEASED.value})

#: Why a recipient is queued whose lease was lost.
CUT_SHORT: Final = "the worker was gone before its attempt had ended"


class Action(StrEnum):
    """What a person does to recipients."""

    #: Try at once; a back-off of its site ends.
    RETRY = "retry"
    #: Keep until released.
    HOLD = "hold"
    #: Back to the queue, due at once.
    RELEASE = "release"
    #: Give up; who is to be told is told.
    CANCEL = "cancel"
    #: Delete, and tell nobody.
    PURGE = "purge"

    @property
    def states(self) -> frozenset[State]:
        """The states of recipients it can be done to."""
        match self:
            case Action.RETRY:
                return frozenset({State.QUEUED})
            case Action.HOLD:
                return frozenset({State.QUEUED, State.LEASED})
            case Action.RELEASE:
                return frozenset({State.HELD})
            case Action.CANCEL:
                return frozenset({State.QUEUED, State.LEASED, State.HELD})
            case Action.PURGE:
                return frozenset(State)

    @property
    def reason(self) -> str:
        """What is noted as the reason when nobody gave one; empty leaves the one before."""
        match self:
            case Action.HOLD:
                return "held by hand"
            case Action.CANCEL:
                return "cancelled by hand"
            case Action.RELEASE:
                return "released by hand"
            case Action.RETRY:
                return "to be tried at once, by hand"
            case Action.PURGE:
                return ""


def check_reason(reason: str) -> None:
    """Refuse what cannot be kept as a reason.

    Raises:
        ValueError: It is too long, or no text; what is allowed is said.
    """
    if len(reason) > MAX_REASON:
        raise ValueError(f"found {len(reason)} characters; allowed are {MAX_REASON}")
    if not is_text(reason):
        raise ValueError(f"found {reason[:80]!a}; allowed is text that UTF-8 can encode")


def is_text(text: str) -> bool:
    """Whether UTF-8 can encode it: what comes from a command line or from JSON may be anything."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- coming out, and going back in --------------------------------------------------------------
# Named tuples where every recipient costs one: they are made three times as fast.


class LeasedRecipient(NamedTuple):
    """A recipient that the owner of a lease is answerable for.

    Attributes:
        number: Names it in this store.
        address: As in outcomes.
        site: The site it counts for.
        attempts: How often it was leased to be tried, this time included.
        first_attempt_at: When it was leased to be tried for the first time.
        wait: How long it last waited by its rule, in seconds and before jitter; 0.0 at first.
        reason: Why it last waited, in one line; empty at first.
    """

    number: int
    address: str
    site: str
    attempts: int
    first_attempt_at: float
    wait: float = 0.0
    reason: str = ""


class LeasedMessage(NamedTuple):
    """A message and those of its recipients that are leased.

    Attributes:
        message: The message with just these recipients, ready to be delivered.
        recipients: The same recipients, in the same order, as the store knows them.
        lease: The lease they are under.
        submitted_at: When it was submitted.
        deadline: When it is to be given up, `None` where nobody said.
        tenant: As submitted.
        job: As submitted.
        priority: As submitted.
    """

    message: Message
    recipients: tuple[LeasedRecipient, ...]
    lease: int
    submitted_at: float
    deadline: float | None = None
    tenant: str = ""
    job: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """How a site has been doing.

    Attributes:
        name: The site's.
        not_before: No recipient of it is leased before; 0.0 when nothing is wrong.
        failures: How often in a row it had to be backed off.
        reason: Why, in one line.
    """

    name: str
    not_before: float = 0.0
    failures: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a call of `lease` gives.

    Attributes:
        number: Names the lease; 0 when nothing was leased.
        messages: What to deliver.
        expired: What is past its deadline: leased as well, to be settled without a try.
        sites: Of the sites in `messages`, those that are not in good health.
        next_due: When there will be something to lease next, as far as is known; it may be past
            when not all of what is due has been looked at.  `None`: never, as things are.
        is_clogged: Whether something is due but its sites have as many recipients out as they may.
    """

    number: int = 0
    messages: tuple[LeasedMessage, ...] = ()
    expired: tuple[LeasedMessage, ...] = ()
    sites: Mapping[str, SiteState] = field(default_factory=dict)
    next_due: float | None = None
    is_clogged: bool = False


class Settlement(NamedTuple):
    """What becomes of one leased recipient.

    Attributes:
        lease: The lease it is under.
        recipient: Its number.
        result: What to do.
        due: When to try next; for `DEFERRED` and `RELEASED`.
        wait: What to remember as its wait, in seconds; `None` leaves the one before.
        reason: One line that says why, for `queue show`; empty leaves the one before.
        last: Its last outcome, as JSON text; `None` leaves the one before.
        report: Whether somebody is to be told how it ended: it then stays as `ENDED` until
            `forget`.  For final results.
    """

    lease: int
    recipient: int
    result: Result
    due: float = 0.0
    wait: float | None = None
    reason: str = ""
    last: str | None = None
    report: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of leases whose owners are gone.

    Attributes:
        released: How many recipients were provably not delivered; they are queued again, due when
            their lease said.
        doubtful: Those who were marked: they may have the message.  They are under a lease of the
            caller now, who has to settle them.
    """

    released: int = 0
    doubtful: tuple[LeasedMessage, ...] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody who holds leases.

    Attributes:
        name: As the leases say.
        deadline: Until when the last of them holds.
        recipients: How many recipients are under them.
    """

    name: str
    deadline: float
    recipients: int


class Removal(NamedTuple):
    """A recipient whom a person took out of the queue before it had ended.

    Attributes:
        number: Names the removal in this store.
        message: Its message's id.
        recipient: Its address.
        attempts: How often it had been tried.
        action: `CANCEL` or `PURGE`.
        reason: Why, in one line, as far as anybody said; of who was purged, why it had last waited.
        at: When it left.
    """

    number: int
    message: str
    recipient: str
    attempts: int
    action: Action
    reason: str
    at: float


# ---- looking and steering -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which recipients; those that satisfy all that is given, everybody when nothing is.

    Attributes:
        states: In one of these states.
        message: Of the message with this id.
        recipient: With this address, written just so.
        domain: Of this routing domain; with a leading `*.` of its subdomains.
        sender: Of messages with this reverse-path; `""` is the null path.
        tenant: Of this tenant.
        job: Of this job.
    """

    states: frozenset[State] = frozenset()
    message: str | None = None
    recipient: str | None = None
    domain: str | None = None
    sender: str | None = None
    tenant: str | None = None
    job: str | None = None


#: Every recipient.
EVERYBODY: Final = Selection()


# ---- numbers -------------------------------------------------------------------------------------


def to_milliseconds(seconds: float) -> int:
    """Return a time as stores keep it: exact in JSON, in SQLite and in other databases."""
    return round(seconds * 1000)


def check_weight(weight: float) -> None:
    """Refuse what is no weight.

    Raises:
        ValueError: It is not above 0, or not finite.
    """
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"weight {weight}; allowed are finite numbers above 0")
