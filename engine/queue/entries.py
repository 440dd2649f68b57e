"""What is seen of a store of queued mail: its recipients, its messages, its numbers.  Knows no I/O.

Made by stores; read by the command line, by the control socket and by whoever makes bounces.  All
times are wall-clock seconds since the epoch.  Not here: which recipients to look at
(`engine.queue.values.Selection`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.units import timestamp

if TYPE_CHECKING:
    from engine.message import Message
    from engine.queue.values import Result, SiteState, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One recipient as the command line shows it.

    Attributes:
        number: Its number; entries are listed in this order.
        message: Its message's id.
        sender: The reverse-path, `""` for the null path.
        recipient: Its address.
        state: Where it is.
        attempts: How often it was tried.
        next_attempt: When it is due; while it is leased, when it will be should the worker die;
            `None` when it is held or has ended.
        submitted_at: When its message was submitted.
        deadline: When it is given up at the latest, if somebody said.
        tenant: As submitted.
        job: As submitted.
        priority: As submitted.
        site: The site it counts for, as far as is known.
        result: How it ended, if it did.
        reason: Why it is where it is, in one line; empty before the first attempt.
        last: Its last outcome as JSON text, or `None`.
        left_alone_until: Until when its site is backed off; 0.0 where it is not, or was not known
            when the entry was read.
        left_alone_for: Why, in one line.
    """

    number: int
    message: str
    sender: str
    recipient: str
    state: State
    attempts: int
    next_attempt: float | None
    submitted_at: float
    deadline: float | None = None
    tenant: str = ""
    job: str = ""
    priority: int = 0
    site: str = ""
    result: Result | None = None
    reason: str = ""
    last: str | None = None
    left_alone_until: float = 0.0
    left_alone_for: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as `queue list --json` prints it; times as RFC 3339 §5.6 has them."""
        return {
            "message": self.message,
            "recipient": self.recipient,
            "state": self.state.value,
            "attempts": self.attempts,
            "next_attempt": _moment(self.next_attempt),
            "last": None if self.last is None else json.loads(self.last),
            "reason": self.reason,
            "sender": self.sender,
            "submitted_at": _moment(self.submitted_at),
            "deadline": _moment(self.deadline),
            "tenant": self.tenant,
            "job": self.job,
            "priority": self.priority,
            "site": self.site,
            "result": self.result and self.result.value,
            "left_alone_until": _moment(self.left_alone_until or None),
            "left_alone_for": self.left_alone_for,
        }


def _moment(at: float | None) -> str | None:
    return None if at is None else timestamp(at)


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, in the order of their numbers.

    Attributes:
        entries: They; there may be none although more follow.
        next: What to pass as `after` for what follows; `None` at the end.
    """

    entries: tuple[Entry, ...]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much is in the store.

    Attributes:
        queued: Recipients that wait.
        due: Of these, those that could be tried now.
        leased: Recipients that a worker is at.
        held: Recipients that wait for a person.
        ended: Recipients that somebody is to be told about.
        messages: Messages with any of these.
        oldest: When the first of these messages was submitted, `None` without any.
        next_due: When the next recipient is due, `None` without any.
    """

    queued: int = 0
    due: int = 0
    leased: int = 0
    held: int = 0
    ended: int = 0
    messages: int = 0
    oldest: float | None = None
    next_due: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How much waits for one site.

    Attributes:
        site: How it has been doing.
        queued: Recipients that wait.
        due: Of these, those that could be tried now if the site had room for them.
        leased: Recipients that a worker is at.
        next_due: When the first of those that wait is due, `None` without any.
    """

    site: SiteState
    queued: int = 0
    due: int = 0
    leased: int = 0
    next_due: float | None = None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it lies in the store, with those of its recipients that are still there.

    Attributes:
        number: Its number; messages are returned in this order.
        message: It, with these recipients; its content can be read while it is in the store.
        entries: The same recipients, in the same order.
        is_damaged: Whether its content is not what was written; a large content that is damaged
            says so when it is read.
        not_before: As submitted.
        is_at_work: For messages of `ended`: whether a worker is at others of its recipients.
    """

    number: int
    message: Message
    entries: tuple[Entry, ...]
    is_damaged: bool = False
    not_before: float | None = None
    is_at_work: bool = False


@dataclass(frozen=True, slots=True)
class Delayed:
    """Some messages that are late, each with its recipients that are.

    Attributes:
        messages: They; there may be none although more follow.
        next: What to pass as `after` for what follows; `None` at the end.
    """

    messages: tuple[StoredMessage, ...]
    next: int | None
