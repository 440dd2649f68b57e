"""Rows of a SQL store made into values.  Knows no I/O.

Called by the modules that run statements.  Not here: contents that stay in the store until they are
read (`engine.queue.sql_contents`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from engine.message import Message, Recipient
from engine.queue.values import LeasedMessage, LeasedRecipient
from engine.smtp.content import ContentFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.message import Content, Notify


class Envelope(NamedTuple):
    """The row of a message, see `messages_of`."""

    number: int
    id: str
    reverse_path: str
    envid: str | None
    ret: str | None
    require_tls: int
    smtputf8: int
    tenant: str
    job: str
    priority: int
    submitted_at: int
    deadline: int | None
    octets: int
    is_8bit: int
    longest_line: int
    has_utf8_header: int
    sha256: str
    upload: int | None
    not_before: int | None
    is_tls_optional: int
    is_binary: int

    @property
    def facts(self) -> ContentFacts:
        """What is known about its content."""
        return ContentFacts(
            self.octets,
            bool(self.is_8bit),
            self.longest_line,
            bool(self.has_utf8_header),
            bool(self.is_tls_optional),
            bool(self.is_binary),
        )


class Taken(NamedTuple):
    """The row of a recipient that is leased, see `recipients_next`."""

    lane: int | None
    number: int
    message: int
    address: str
    domain: str
    notify: str
    orcpt: str | None
    attempts: int
    first_attempt_at: int | None
    wait: int
    reason: str


def make_recipient(address: str, notify: str, orcpt: str | None) -> Recipient:
    """Return the recipient a row stands for."""
    if not notify:
        return Recipient.parse(address, (), orcpt)
    return Recipient.parse(address, cast("list[Notify]", notify.split(",")), orcpt)


def make_message(
    envelope: Envelope, recipients: tuple[Recipient, ...], content: Content
) -> Message:
    """Return the message a row stands for, with some of its recipients."""
    return Message(
        envelope.id,
        Message.parse_sender(envelope.reverse_path),
        recipients,
        content,
        envelope.envid,
        cast("Any", envelope.ret),
        bool(envelope.require_tls),
        bool(envelope.smtputf8),
    )


def make_leased(
    envelope: Envelope,
    taken: Sequence[tuple[Taken, str]],
    content: Content,
    *,
    lease: int,
    now: int,
    counted: int,
) -> LeasedMessage:
    """Return a leased message.

    Args:
        envelope: The row of the message.
        taken: The rows of its recipients as they were before, each with its site.
        content: Its content.
        lease: The lease.
        now: The time, in milliseconds.
        counted: 1 where the lease counts as an attempt, else 0.
    """
    recipients, leased = [], []
    for row, site in taken:
        recipients.append(make_recipient(row.address, row.notify, row.orcpt))
        first_attempt_at = (row.first_attempt_at or now) / 1000
        attempts = row.attempts + counted
        leased.append(
            LeasedRecipient(
                row.number,
                row.address,
                site,
                attempts,
                first_attempt_at,
                row.wait / 1000,
                row.reason,
            )
        )
    return LeasedMessage(
        make_message(envelope, tuple(recipients), content),
        tuple(leased),
        lease,
        envelope.submitted_at / 1000,
        None if envelope.deadline is None else envelope.deadline / 1000,
        envelope.tenant,
        envelope.job,
        envelope.priority,
    )
