"""The part of a bounce for machines: message/delivery-status (RFC 3464 §2).  Knows no I/O.

Called by `engine.report.bounce`.  Fields are US-ASCII, or UTF-8 where an address needs it and the
forms of RFC 6533 §4 may be used.  Whatever peers and submitters say is escaped and cut, so that it
stays within its field and its line.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from engine.report.bounce_rules import Kind
from engine.report.report_mail import Field, Part
from engine.smtp.reply import show
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from engine.outcome import Outcome
    from engine.report.bounce_rules import Entry, Report
    from engine.smtp.reply import Reply

#: Octets of what somebody else says in one line, and lines of one reply.
MAX_SHOWN: Final = 500
MAX_REPLY_LINES: Final = 20

# RFC 6533 §3: what an address in the form for US-ASCII fields holds as it is.
_NOT_QCHAR: Final = re.compile(r"[^!-*,-<>-\[\]-~]")
_NOT_ASCII: Final = re.compile(r"[^ -~]")
_EMBEDDED: Final = re.compile(r"\\x\{([0-9A-F]{2,6})\}")


def status_part(report: Report, name: str, *, utf8: bool) -> Part:
    """Make the part.

    Args:
        report: What is told.
        name: Our host's name, or an address literal.
        utf8: Whether it may be message/global-delivery-status, where there is a reason.
    """
    is_global = utf8 and any(map(_needs_utf8, report.entries))
    lines = _message_fields(report, name)
    for entry in report.entries:
        lines += ["", *_recipient_fields(entry, utf8=is_global)]
    octets = "\r\n".join([*lines, ""]).encode()
    kind = "message/global-delivery-status" if is_global else "message/delivery-status"
    encoding = "7bit" if octets.isascii() else "8bit"
    fields = (Field("Content-Type", kind), Field("Content-Transfer-Encoding", encoding))
    return Part(fields, octets)


def status_of(entry: Entry) -> EnhancedStatusCode:
    """Return the value of the Status field (RFC 3464 §2.3.4): the peer's, where it makes sense."""
    severities, default = _STATUSES[entry.kind]
    outcome = entry.progress.outcome
    found = None if outcome is None else outcome.enhanced
    return found if found is not None and found.severity in severities else default


# RFC 3461 §6.3: x.0.0 where nothing better is known.  RFC 3463 §3.5: x.4.7 is mail that expired.
_STATUSES: Final = {
    Kind.FAILED: ((5,), EnhancedStatusCode(5, 0, 0)),
    Kind.EXPIRED: ((4,), EnhancedStatusCode(4, 4, 7)),
    Kind.DELAYED: ((4,), EnhancedStatusCode(4, 0, 0)),
    Kind.RELAYED: ((2,), EnhancedStatusCode(2, 0, 0)),
    Kind.DELIVERED: ((2,), EnhancedStatusCode(2, 0, 0)),
}


def shorten(text: str, *, utf8: bool = True, most: int = MAX_SHOWN) -> str:
    """Return what somebody else said on one line, fit to be shown.

    Args:
        text: It.
        utf8: Whether characters beyond US-ASCII stay.
        most: Octets at most.
    """
    # Escapes only make it longer.
    text = show(text[: most + 1].encode("utf-8", "backslashreplace"))
    octets = text.encode("utf-8" if utf8 else "ascii", "backslashreplace")
    if len(octets) <= most:
        return octets.decode()
    return octets[: most - 3].decode("utf-8", "ignore") + "..."


def reply_lines(reply: Reply, *, utf8: bool = True) -> list[str]:
    """Return a reply as lines with its code (RFC 3461 §9.2), fit to be shown."""
    # Cut first: a peer may have sent a great deal.
    texts = [line[: MAX_SHOWN + 1].decode("utf-8", "backslashreplace") for line in reply.lines]
    shown = [shorten(text, utf8=utf8) for text in texts[:MAX_REPLY_LINES]]
    if len(texts) > MAX_REPLY_LINES:
        shown[-1] = "..."
    last = len(shown) - 1
    return [
        f"{reply.code}{' ' if place == last else '-'}{text}".rstrip()
        for place, text in enumerate(shown)
    ]


def date(at: float) -> str:
    """Return seconds since the epoch as a date-time with a numeric zone (RFC 5322 §3.3)."""
    return format_datetime(datetime.fromtimestamp(at, UTC))


def _needs_utf8(entry: Entry) -> bool:
    recipient = entry.progress.recipient
    return not f"{recipient.mailbox}{recipient.orcpt}".isascii()


def _message_fields(report: Report, name: str) -> list[str]:
    lines = []
    if report.message.envid is not None:
        # RFC 3461 §6.3: without the xtext it travels in.
        lines.append(f"Original-Envelope-Id: {report.message.envid}")
    # RFC 3461 §6.3: "dns" is for names the DNS can know, and for address literals (§9.3).
    kind = "dns" if "." in name or name.startswith("[") else "x-local-hostname"
    lines.append(f"Reporting-MTA: {kind}; {name}")
    lines.append(f"Arrival-Date: {date(report.arrived_at)}")
    lines.append(f"X-Delivery-Engine-Id: {shorten(report.message.id, utf8=False)}")
    return lines


def _recipient_fields(entry: Entry, *, utf8: bool) -> list[str]:
    progress, outcome = entry.progress, entry.progress.outcome
    recipient = progress.recipient
    lines = []
    if recipient.orcpt is not None:
        lines.append(f"Original-Recipient: {_original(recipient.orcpt, utf8=utf8)}")
    lines.append(f"Final-Recipient: {_typed(str(recipient.mailbox), utf8=utf8)}")
    lines.append(f"Action: {entry.kind.action}")
    lines.append(f"Status: {status_of(entry)}")
    if outcome is not None:
        lines += _diagnosis(outcome, utf8=utf8)
    if progress.tried_at is not None:
        lines.append(f"Last-Attempt-Date: {date(progress.tried_at)}")
    # RFC 3464 §2.3.9: in reports on delays, and in no others.
    if entry.kind is Kind.DELAYED and progress.retry_until is not None:
        lines.append(f"Will-Retry-Until: {date(progress.retry_until)}")
    return lines


def _diagnosis(outcome: Outcome, *, utf8: bool) -> list[str]:
    if outcome.reply is None:
        # Not from an SMTP server: of a type of our own, and RFC 3464 §2.3.6 wants no Remote-MTA.
        return [f"Diagnostic-Code: x-delivery-engine; {shorten(outcome.text, utf8=utf8)}"]
    lines = []
    if outcome.peer is not None:
        lines.append(f"Remote-MTA: dns; {_host(outcome.peer.host)}")
    first, *others = reply_lines(outcome.reply, utf8=utf8)
    # RFC 3461 §9.2: a blank before each line after the first.
    return [*lines, f"Diagnostic-Code: smtp; {first}", *(f" {line}" for line in others)]


def _host(name: str) -> str:
    # RFC 3461 §9.3: an IP address stands as an address literal.
    try:
        address = ip_address(name)
    except ValueError:
        return shorten(name, utf8=False)
    return f"[{address}]" if address.version == 4 else f"[IPv6:{address}]"


def _typed(address: str, *, utf8: bool) -> str:
    """Return a mailbox as RFC 3461 §9.1 or RFC 6533 §3 has it."""
    if address.isascii():
        return f"rfc822; {address}"
    if utf8 and _is_plain(address):
        return f"utf-8; {address}"
    return f"utf-8; {_embed(address, _NOT_QCHAR, utf8=utf8)}"


def _original(orcpt: str, *, utf8: bool) -> str:
    """Return the original recipient with its type, spelt as it was where that can be."""
    kind, _, address = orcpt.partition(";")
    if kind.lower() == "utf-8":
        plain = _EMBEDDED.sub(_character, address)
        if utf8 and _is_plain(plain):
            # RFC 6533 §4.1: what was encoded for US-ASCII is decoded.
            address = plain
        elif not utf8 and not address.isascii():
            address = _embed(plain, _NOT_QCHAR, utf8=False)
    address = _embed(address, _NOT_ASCII, utf8=utf8)
    # What came by SMTP fits (RFC 3461 §4.2).
    return shorten(f"{kind}; {address}", utf8=utf8, most=900)


def _is_plain(address: str) -> bool:
    # With a backslash nobody could tell whether it is encoded.
    return address.isprintable() and "\\" not in address


def _embed(text: str, pattern: re.Pattern[str], *, utf8: bool) -> str:
    def embed(match: re.Match[str]) -> str:
        character = match[0]
        if utf8 and not character.isascii() and character.isprintable():
            return character
        return f"\\x{{{ord(character):02X}}}"

    return pattern.sub(embed, text)


def _character(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    is_one = number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF
    return chr(number) if is_one else match[0]
