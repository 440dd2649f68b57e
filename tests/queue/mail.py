"""Mail for tests of the queue: submissions, outcomes, and settlements of what was leased."""

from __future__ import annotations

from itertools import count

from engine.content import from_text
from engine.message import Message, Recipient
from engine.outcome import Cause, Outcome, Peer, Scope, Status
from engine.queue.submission import Submission
from engine.queue.values import Result, Settlement
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage

#: A moment to begin at, in seconds since the epoch.
START = 1_700_000_000.0
CONTENT = from_text("Subject: hello\n\nHello.\n")
_numbers = count(1)


def mail(
    *addresses,
    id=None,  # noqa: A002 - the field's word
    sender="me@example.org",
    content=CONTENT,
    at=START,
    **how,
):
    """Make a submission of a message to these addresses; without an id it gets one of its own."""
    message = Message(
        id=id or f"m{next(_numbers)}",
        reverse_path=Message.parse_sender(sender),
        recipients=tuple(Recipient.parse(address) for address in addresses or ("a@one.test",)),
        content=content,
    )
    return Submission(message=message, submitted_at=at, **how)


async def take(store, now=START, seats=100, *, owner="w1", site_seats=100, **how):
    """Lease as a worker would."""
    how = {"deadline": now + 60, "retry_at": now + 300} | how
    return await store.lease(owner=owner, now=now, seats=seats, site_seats=site_seats, **how)


def leased_in(lease):
    """Return the recipients of a lease in order, each with its lease's number."""
    return [
        (message.lease, recipient)
        for message in (*lease.messages, *lease.expired)
        for recipient in message.recipients
    ]


def addresses_in(lease):
    return [recipient.address for _, recipient in leased_in(lease)]


def settlements(lease, result=Result.DELIVERED, **how):
    """Make the same settlement for all that a lease has."""
    return [
        Settlement(lease=number, recipient=recipient.number, result=result, **how)
        for number, recipient in leased_in(lease)
    ]


def outcome(
    status=Status.DEFERRED,
    *,
    message="m",
    recipient="a@one.test",
    stage=Stage.RCPT,
    cause=Cause.REPLY,
    scope=Scope.RECIPIENT,
    code=None,
    text="",
    host="mx.one.test",
    address="192.0.2.1",
):
    """Make an outcome; with a code, one that a reply decided."""
    reply = None if code is None else Reply(code, (text.encode() or b"4.7.1 later",))
    return Outcome(
        message=message,
        recipient=recipient,
        status=status,
        scope=None if status is Status.DELIVERED else scope,
        stage=stage,
        cause=cause,
        reply=reply,
        enhanced=reply and reply.enhanced,
        text=text or f"{cause} at {stage}",
        peer=Peer(host, address, 25),
    )
