"""Bounces: reports to a message's sender on what became of it (RFC 3464 §2).  Knows no I/O.

    reports = due_reports(message, progress, arrived_at=…, at=…, warn_after=settings.warn_after)
    for report in reports:
        original = …  # the first `octets_needed(report, settings)` octets of its content
        bounce = to_message(report, settings, original)

Called by whoever keeps mail; a bounce is then submitted like any other message.  Which reports are
due is `engine.report.bounce_rules`' matter; the three parts of one are made by `bounce_text`,
`bounce_status` and `bounce_original`.  Not here: reading contents, and signing.

A bounce cannot make another one: its reverse-path is null, and its recipient has NOTIFY=NEVER
(RFC 3461 §6.1); `Auto-Submitted` keeps vacation programs from answering (RFC 3834 §3.1.7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.content import MemoryContent
from engine.message import Message, Recipient
from engine.report.bounce_original import header_of, header_part, message_id, whole_part
from engine.report.bounce_status import date, status_part
from engine.report.bounce_text import SUBJECTS, Returned, explain
from engine.report.report_mail import (
    Field,
    Part,
    in_seven_bit,
    text_part,
    write_fields,
    write_multipart,
)
from engine.smtp.address import parse_mailbox
from engine.smtp.content import scan
from engine.smtp.errors import AddressSyntaxError, NotConvertibleError
from engine.smtp.mime import to_seven_bit
from engine.smtp.tls_required import says_tls_optional
from engine.units import HOURS

if TYPE_CHECKING:
    from engine.report.bounce_rules import Report
    from engine.smtp.address import Mailbox

#: Of a header section that is returned without its body.
MAX_HEADER_OCTETS: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class BounceSettings:
    """Who reports, and how.

    Attributes:
        name: The name of our host that it gives in EHLO: a domain name or an address literal.
        mailbox: From whom reports are; empty: `MAILER-DAEMON@` and the name, as in Sendmail, Exim
            and Postfix.  RFC 3464 §2: somebody who looks after the mail system should read it.
        max_content_octets: Contents up to this size are returned whole.  Postfix 50000, Exim 100K.
        warn_after: After how many seconds of waiting the sender is warned, each time once; empty:
            never.  Sendmail 4h, Exim 24h, Postfix never.
        utf8: Whether the forms of RFC 6533 §4 are used where an address or a header section is not
            US-ASCII.  Without them addresses are encoded, and such messages are returned without
            their body.

    Raises:
        ValueError: A name or a mailbox that is none, or a number out of range; the text says which.
    """

    name: str
    mailbox: str = ""
    max_content_octets: int = 50 * 1024
    warn_after: tuple[float, ...] = (4 * HOURS,)
    utf8: bool = True

    def __post_init__(self) -> None:
        if not _is_mailbox(f"postmaster@{self.name}"):
            raise ValueError(
                f"name {self.name[:80]!r}: allowed are a domain name and an address literal, "
                "in US-ASCII"
            )
        if not _is_mailbox(self.address):
            raise ValueError(f"mailbox {self.address[:80]!r}: allowed is a mailbox in US-ASCII")
        if self.max_content_octets < 0:
            raise ValueError(f"max_content_octets {self.max_content_octets}: allowed is 0 or more")
        if not all(wait > 0 and math.isfinite(wait) for wait in self.warn_after):
            raise ValueError(f"warn_after {self.warn_after}: allowed are times above 0")

    @property
    def address(self) -> str:
        """The mailbox in the From field."""
        return self.mailbox or f"MAILER-DAEMON@{self.name}"


def _is_mailbox(text: str) -> bool:
    try:
        parse_mailbox(text)
    except AddressSyntaxError:
        return False
    return text.isascii()


def octets_needed(report: Report, settings: BounceSettings) -> int:
    """Return how many octets of its content, from the start, `to_message` wants to see."""
    size = report.message.content.facts.octets
    return size if _returned(report, settings) == "whole" else min(size, MAX_HEADER_OCTETS)


def to_message(report: Report, settings: BounceSettings, original: bytes) -> Message:
    """Make a report into a message to be submitted; the same report gives the same octets.

    It is 8-bit only where the original needs that, and then so that it can be converted: no host
    has to refuse it for that.  It needs SMTPUTF8 only where the sender's own address does.

    Args:
        report: What to report.
        settings: Who reports, and how.
        original: The first `octets_needed` octets of its content.
    """
    message, header = report.message, header_of(original, MAX_HEADER_OCTETS)
    sender = message.reverse_path
    assert sender is not None  # no report is due to the null path
    body = _body(report, settings, original, header)
    octets = write_fields(_fields(report, settings, sender, header)) + body
    facts = scan(octets)
    return Message(
        id=report.id,
        reverse_path=None,
        recipients=(Recipient(str(sender), sender, frozenset({"never"})),),
        content=MemoryContent(octets, facts),
        # RFC 8689 §5: protected like the message; where that is not to be had it goes all the same.
        require_tls=message.require_tls,
        smtputf8=facts.has_utf8_header,
    )


def _returned(report: Report, settings: BounceSettings) -> Returned:
    """Say how much of the message goes back."""
    message = report.message
    if message.require_tls:
        # RFC 8689 §5: as with RET=HDRS, whatever else was asked for.
        return "protected"
    # RFC 3461 §6.2: with no failure to report, only the header.
    if message.ret == "hdrs" or not report.has_failures:
        return "header"
    is_small = message.content.facts.octets <= settings.max_content_octets
    return "whole" if is_small else "too-large"


def _fields(
    report: Report, settings: BounceSettings, sender: Mailbox, header: bytes
) -> list[Field]:
    # RFC 6531 §3.2: A-labels spare a host SMTPUTF8 where only the domain is not US-ASCII.
    path = sender.ascii_octets()
    fields = [
        Field("From", f"Mail Delivery System <{settings.address}>"),
        Field("To", f"<{sender if path is None else path.decode('ascii')}>"),
        Field("Subject", SUBJECTS[report.entries[0].kind]),
        Field("Date", date(report.at)),
        Field("Message-ID", f"<{report.id}@{settings.name}>"),
    ]
    if identity := message_id(header):
        # RFC 3834 §3.1.6.
        fields += [Field("In-Reply-To", identity), Field("References", identity)]
    fields.append(Field("Auto-Submitted", "auto-replied"))
    if says_tls_optional(header) and not report.message.require_tls:
        # RFC 8689 §6: what comes of a message asks for what the message asked for.
        fields.append(Field("TLS-Required", "No"))
    return fields


def _body(report: Report, settings: BounceSettings, original: bytes, header: bytes) -> bytes:
    """Return the report from its MIME-Version field on."""
    returned = _returned(report, settings)
    if returned == "whole":
        is_all = len(original) == report.message.content.facts.octets
        part = whole_part(original, utf8=settings.utf8) if is_all else None
        body = b"" if part is None else _write(report, settings, header, "whole", part)
        if body and _is_convertible(body):
            return body
        returned = "too-large"
    return _write(report, settings, header, returned, header_part(header, utf8=settings.utf8))


def _write(
    report: Report, settings: BounceSettings, header: bytes, returned: Returned, last: Part
) -> bytes:
    parts = [status_part(report, settings.name, utf8=settings.utf8), last]
    sender = report.message.reverse_path
    if sender is None or sender.ascii_octets() is not None:
        # RFC 6533 §4.5: the way back may be without SMTPUTF8, and then its types are in 7 bits.
        parts = [in_seven_bit(part) if _is_global(part) else part for part in parts]
    text = text_part(explain(report, settings.name, header, returned))
    # RFC 6533 §4.4: its types are equivalent, so readers look for this report-type all the same.
    return write_multipart("delivery-status", (text, *parts), report.id)


def _is_global(part: Part) -> bool:
    return part.fields[0].value.startswith("message/global")


def _is_convertible(body: bytes) -> bool:
    """Whether a host without 8BITMIME could be given it (RFC 6522 §3)."""
    try:
        to_seven_bit(body)
    except NotConvertibleError:
        return False
    return True
