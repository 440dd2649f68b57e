"""What the tests of bounces share: a message, and recipients with stories."""

from __future__ import annotations

from engine.content import MemoryContent
from engine.message import Message, Recipient
from engine.outcome import Cause, Features, Outcome, Peer, Status
from engine.report.bounce_rules import Entry, Fate, Kind, Progress, Report
from engine.smtp.content import scan
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

ARRIVED = 1_795_840_000.0  # 2026-11-28T04:26:40Z
NOW = ARRIVED + 20_000.0
PEER = Peer("mx.b.test", "192.0.2.1", 25)

ORIGINAL = (
    b"From: Alice <alice@a.test>\r\n"
    b"To: bob@b.test\r\n"
    b"Subject: Hello\r\n"
    b"Date: Sat, 28 Nov 2026 04:26:39 +0000\r\n"
    b"Message-ID: <1@a.test>\r\n"
    b"\r\n"
    b"Dear Bob,\r\n"
    b"\r\n"
    b"--\r\n"
    b"Alice\r\n"
)
HEADER = ORIGINAL[: ORIGINAL.index(b"\r\n\r\n") + 2]

REPLIES = {
    Status.DELIVERED: Reply(250, (b"2.6.0 queued as 9F",)),
    Status.DEFERRED: Reply(452, (b"4.2.2 mailbox full",)),
    Status.FAILED: Reply(550, (b"5.1.1 no such user",)),
}


def make_message(sender="alice@a.test", original=ORIGINAL, recipients=("bob@b.test",), **facts):
    return Message(
        "order-17",
        Message.parse_sender(sender),
        tuple(Recipient.parse(address) for address in recipients),
        MemoryContent(original, scan(original)),
        **facts,
    )


def make_outcome(status, *, reply=None, lmtp=False, **facts):
    """An outcome with a reply as a server would give it; `reply=False`: with none."""
    found = REPLIES.get(status) if reply is None else reply or None
    given = {
        "message": "order-17",
        "recipient": "bob@b.test",
        "stage": Stage.RCPT if status is Status.FAILED else Stage.FINAL,
        "cause": Cause.REPLY if found else Cause.TIMEOUT,
        "text": "SMTP error from mx.b.test [192.0.2.1]:25" if found else "no answer came",
        "enhanced": found.enhanced if found else EnhancedStatusCode(4, 4, 2),
        "peer": PEER,
        "features": Features(lmtp=lmtp),
    }
    return Outcome(status=status, reply=found, **{**given, **facts})


def make_progress(
    fate, status=None, address="bob@b.test", notify=(), orcpt=None, outcome=None, **facts
):
    if status is not None:
        outcome = make_outcome(status)
    return Progress(Recipient.parse(address, notify, orcpt), fate, outcome, **facts)


FAILED = make_progress(Fate.GIVEN_UP, Status.FAILED, tried_at=NOW - 5)
EXPIRED = make_progress(
    Fate.GIVEN_UP,
    Status.DEFERRED,
    "carol@b.test",
    tried_at=NOW - 5,
    reason="given up: quota at attempt 30, 4d after the first",
)
DELAYED = make_progress(
    Fate.WAITING, Status.DEFERRED, "dave@b.test", tried_at=NOW - 5, retry_until=NOW + 300_000.0
)
RELAYED = make_progress(Fate.DONE, Status.DELIVERED, "erin@b.test", {"success"}, tried_at=NOW - 5)
DELIVERED = make_progress(
    Fate.DONE,
    address="frank@b.test",
    notify={"success"},
    outcome=make_outcome(Status.DELIVERED, lmtp=True),
    tried_at=NOW - 5,
)
STORIES = {
    Kind.FAILED: FAILED,
    Kind.EXPIRED: EXPIRED,
    Kind.DELAYED: DELAYED,
    Kind.RELAYED: RELAYED,
    Kind.DELIVERED: DELIVERED,
}


def make_report(*entries, message=None, at=NOW):
    """A report on progress of given kinds: `(kind, progress)`, or a kind with its usual story."""
    pairs = [each if isinstance(each, tuple) else (each, STORIES[each]) for each in entries]
    return Report(
        "report-1",
        message or make_message(),
        tuple(Entry(kind, progress) for kind, progress in pairs),
        ARRIVED,
        at,
    )
