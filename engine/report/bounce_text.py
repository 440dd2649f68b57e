"""The part of a bounce for a person who is no mail administrator.  Knows no I/O.

Called by `engine.report.bounce`.  Plain English: what happened, to whom, what the other mail system
said, what to do, and whether we go on.  What peers and submitters say is escaped and cut, and stands
indented.
"""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from engine.outcome import Status
from engine.report.bounce_original import shown_field
from engine.report.bounce_rules import Kind
from engine.report.bounce_status import date, reply_lines, shorten, status_of
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.outcome import Outcome
    from engine.report.bounce_rules import Entry, Report

#: How much of a message is returned: all; its header section, as is usual; the same, because the
#: rest is too much; the same, because the rest must not be seen.
Returned: TypeAlias = Literal["whole", "header", "too-large", "protected"]

_WIDTH: Final = 76

SUBJECTS: Final = {
    Kind.FAILED: "Your message was not delivered",
    Kind.EXPIRED: "Your message was not delivered",
    Kind.DELAYED: "Your message is delayed",
    Kind.RELAYED: "Your message was passed on",
    Kind.DELIVERED: "Your message was delivered",
}

_HEADINGS: Final = {
    Kind.FAILED: "NOT DELIVERED. Your message could not be delivered to:",
    Kind.EXPIRED: "NOT DELIVERED. In all that time your message could not be delivered to:",
    Kind.DELAYED: "DELAYED. Your message has not been delivered yet to:",
    Kind.RELAYED: "PASSED ON. Your message was handed over to the mail system of:",
    Kind.DELIVERED: "DELIVERED. Your message was delivered to:",
}

_ENDINGS: Final = {
    Kind.FAILED: "We will not try again.",
    Kind.EXPIRED: "We will not try again.",
    Kind.DELAYED: "You need not do anything; please do not send the message again. We go on "
    "trying{until}, and you will be told if it cannot be delivered.",
    Kind.RELAYED: "That mail system does not report what it delivers, so we cannot tell whether "
    "the message arrived. If it does not, that mail system should let you know.",
    Kind.DELIVERED: "That does not say that anybody has read it.",
}

#: What to do, by subject and detail of the status (RFC 3463 §3), or by the subject alone.
_ADVICE: Final[dict[tuple[int, int] | int, str]] = {
    (1, 2): "Check what stands behind the @: there is no such domain, or it takes no mail.",
    (1, 10): "This domain takes no mail at all. Reach the recipient in another way.",
    1: "Check the address for mistakes. If it is right, it may no longer exist: reach the recipient "
    "in another way.",
    (2, 2): "The mailbox is full. Try again later, or reach the recipient in another way.",
    (2, 3): "The message is too large for this recipient. Send less at a time.",
    2: "Something is wrong with the mailbox. Reach the recipient in another way.",
    (3, 4): "The message is too large for the other mail system. Send less at a time.",
    4: "The other mail system could not be reached, or did not work as it should. Try again later, "
    "or reach the recipient in another way.",
    (
        6,
        7,
    ): "The other mail system cannot handle addresses and subjects with letters beyond a to z. "
    "Ask the recipient for another address.",
    6: "The other mail system cannot handle the form of the message. Send it as plain text.",
    (7, 10): "The message was to travel over protected connections only, and none could be made.",
    (7, 30): "The message was to travel over protected connections only, and the other mail system "
    "does not promise to do so.",
    7: "The other mail system refuses the message by its own rules. Its answer is meant for "
    "administrators: show this report to yours.",
}
_ADVICE_ELSE: Final = "Show this report to the administrator of your mail system."

_WHEN: Final = {
    Stage.MAIL: "when it was told your address",
    Stage.RCPT: "when it was told the recipient's address",
    Stage.DATA: "when it was about to be given the message",
    Stage.CONTENT: "while it was being given the message",
    Stage.FINAL: "when it had been given the message",
}
_WHEN_ELSE: Final = "when we turned to it"

_RETURNED: Final[dict[Returned, str]] = {
    "whole": "Your message is attached.",
    "header": "The header of your message is attached.",
    "too-large": "The header of your message is attached, without the rest, which is too large or "
    "cannot be sent on as it is.",
    "protected": "The header of your message is attached, without the rest, which was to travel over "
    "protected connections only.",
}


def explain(report: Report, name: str, header: bytes, returned: Returned) -> str:
    """Return the text of a report, with LF line ends and lines of 998 octets at most.

    Args:
        report: What is told.
        name: Our host's name.
        header: The header section of the message.
        returned: How much of the message is attached.
    """
    sender = shorten(str(report.message.reverse_path))
    lines = [
        *_own(f"This is an automatic report from the mail system at {name}."),
        *_own("It is about a message that was sent from this address:"),
        *_theirs(f"<{sender}>"),
    ]
    facts = [(title, shown_field(header, title.lower().encode())) for title in ("Subject", "Date")]
    if any(value for _, value in facts):
        lines.append("")
    for title, value in facts:
        lines += _theirs(f"{title}: {value}") if value else []
    for kind in Kind:
        entries = [entry for entry in report.entries if entry.kind is kind]
        if entries:
            lines += _section(kind, entries)
    lines += _own(_RETURNED[returned])
    return "\n".join([*lines[1:], ""])


def _section(kind: Kind, entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what there is to say about recipients of one kind; equal stories are told once."""
    stories: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        stories.setdefault(tuple(_story(entry)), []).append(entry)
    yield from _own(_HEADINGS[kind])
    for story, group in stories.items():
        yield ""
        for entry in group:
            yield from _theirs(f"<{shorten(str(entry.progress.recipient.mailbox))}>")
        yield from story
    times = [entry.progress.retry_until for entry in entries]
    known = [at for at in times if at is not None]
    until = f" until {date(max(known))}" if known else ""
    yield from _own(_ENDINGS[kind].format(until=until))


def _story(entry: Entry) -> Iterator[str]:
    """Yield why a recipient fares so, and what to do about it."""
    outcome = entry.progress.outcome
    if outcome is not None:
        yield from _events(outcome)
    if outcome is None or entry.kind is Kind.EXPIRED:
        reason = shorten(entry.progress.reason)
        if reason:
            yield from _own("Why it ended:")
            yield from _theirs(reason)
    if entry.kind.is_failure:
        code = status_of(entry)
        advice = _ADVICE.get((code.subject, code.detail)) or _ADVICE.get(code.subject)
        yield from _own(f"What you can do: {advice or _ADVICE_ELSE}")


def _events(outcome: Outcome) -> Iterator[str]:
    if outcome.reply is None:
        yield from _own("What happened:")
        yield from _theirs(shorten(outcome.text))
    else:
        who = f" {shorten(_address(outcome), most=300)}" if outcome.peer is not None else ""
        yield from _own(f"The mail server{who} said {_WHEN.get(outcome.stage, _WHEN_ELSE)}:")
        for line in reply_lines(outcome.reply):
            yield from _theirs(line)
    if outcome.status is Status.UNKNOWN:
        yield from _own(
            "It may have arrived all the same: all of it was sent, but no answer to it came."
        )


def _address(outcome: Outcome) -> str:
    peer = outcome.peer
    assert peer is not None
    return peer.host if peer.address in (None, peer.host) else f"{peer.host} [{peer.address}]"


def _own(text: str) -> list[str]:
    """A paragraph of ours."""
    return ["", *_wrapped(text, "", "")]


def _theirs(text: str) -> list[str]:
    """A line of somebody else's."""
    return _wrapped(text, "    ", "      ")


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
