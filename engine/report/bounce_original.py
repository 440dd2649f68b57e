"""The part of a bounce that returns the message it is about, whole or its header section.

Called by `engine.report.bounce` with the first octets of a content, or all of them.  What it takes
from them for the report's own header and text is escaped and cut.  Knows no I/O.  Not here: how much
may be returned.
"""

from __future__ import annotations

import re
from email.errors import HeaderParseError
from email.header import decode_header
from typing import TYPE_CHECKING, Final

from engine.report.bounce_status import shorten
from engine.report.report_mail import MAX_LINE_OCTETS, Field, Part, quoted_printable
from engine.smtp.reply import show

if TYPE_CHECKING:
    from collections.abc import Callable

_CRLF: Final = b"\r\n"
# The body of a field may be folded.
_BODY: Final = rb"[ \t]*:((?:[^\r\n]|\r\n[ \t])*)"
_MESSAGE_ID: Final = re.compile(r"<[!-;=?-~]{1,250}@[!-;=?-~]{1,250}>")


# ---- what is read from it -----------------------------------------------------------------------


def header_of(octets: bytes, most: int) -> bytes:
    """Return the header section of a content, without the empty line at its end.

    Args:
        octets: The content, or its beginning.
        most: Octets at most; it is cut at the end of a line.
    """
    if octets.startswith(_CRLF):
        return b""
    end = octets.find(b"\r\n\r\n", 0, most)
    if end < 0:
        # It is longer, or there is no body.
        end = octets.rfind(_CRLF, 0, most)
    return octets[: end + 2] if end >= 0 else b""


def fields_of(header: bytes, name: bytes) -> list[bytes]:
    """Return the bodies of all fields of a name, unfolded."""
    pattern = re.compile(rb"^" + re.escape(name) + _BODY, re.IGNORECASE | re.MULTILINE)
    return [body.replace(_CRLF, b"").strip(b" \t") for body in pattern.findall(header)]


def message_id(header: bytes) -> str | None:
    """Return the Message-ID, where there is one and it can be repeated as it is."""
    bodies = fields_of(header, b"message-id")
    text = bodies[0].decode("utf-8", "replace") if len(bodies) == 1 else ""
    return text if _MESSAGE_ID.fullmatch(text) else None


def shown_field(header: bytes, name: bytes) -> str:
    """Return a field for a person, encoded words decoded (RFC 2047 §2); empty where there is none."""
    bodies = fields_of(header, name)
    if not bodies:
        return ""
    octets = bodies[0][:1000]
    return shorten(_decode(octets) if b"=?" in octets else show(octets), most=200)


def is_automatic(octets: bytes) -> bool:
    """Whether a content is a machine's or a list's, so that nobody waits for news of its delays.

    Told as Exim does: by fields of mailing lists (RFC 2369 §3, RFC 2919 §3), `Precedence`, and
    `Auto-Submitted` (RFC 3834 §5).

    Args:
        octets: The content, or its beginning.
    """
    header = header_of(octets, len(octets))
    return any(test(body.lower()) for name, test in _AUTOMATIC for body in fields_of(header, name))


_AUTOMATIC: Final[tuple[tuple[bytes, Callable[[bytes], bool]], ...]] = (
    (b"list-id", bool),
    (b"list-post", bool),
    (b"list-subscribe", bool),
    (b"list-unsubscribe", bool),
    (b"precedence", lambda body: body in {b"bulk", b"list", b"junk"}),
    (b"auto-submitted", lambda body: not body.startswith(b"no")),
)


#: Not every codec of Python's is a character set, and some warn.
_CHARSET: Final = re.compile(
    r"(utf|us-ascii|iso|windows|cp\d|koi8|gb|hz|big5|euc|shift|ks_|tis)", re.IGNORECASE
)


def _decode(octets: bytes) -> str:
    text = octets.decode("utf-8", "backslashreplace")
    try:
        return "".join(
            piece if isinstance(piece, str) else _decode_piece(piece, charset)
            for piece, charset in decode_header(text)
        )
    except (HeaderParseError, LookupError, ValueError):
        # Rubbish, or a character set nobody has heard of: as it is written.
        return text


def _decode_piece(octets: bytes, charset: str | None) -> str:
    if charset is not None and not _CHARSET.match(charset):
        raise LookupError(charset)
    return octets.decode(charset or "latin-1", "replace")


# ---- how it is returned -------------------------------------------------------------------------


def whole_part(octets: bytes, *, utf8: bool) -> Part | None:
    """Return a whole content as a part; `None` where it cannot be returned octet for octet.

    RFC 2046 §5.2.1: a message/rfc822 must not be encoded, so lines that are too long for SMTP, and
    8-bit header sections, stay out of it.

    Args:
        octets: The content.
        utf8: Whether message/global may be used (RFC 6532 §3.7).
    """
    if not _is_clean(octets):
        return None
    if octets.isascii():
        return _part("message/rfc822", "7bit", octets)
    header = header_of(octets, len(octets))
    if header.isascii():
        return _part("message/rfc822", "8bit", octets)
    return _part("message/global", "8bit", octets) if utf8 and _is_utf8(header) else None


def header_part(header: bytes, *, utf8: bool) -> Part:
    """Return a header section as a part, encoded where that cannot be helped (RFC 6522 §4).

    Args:
        header: The header section.
        utf8: Whether message/global-headers may be used (RFC 6533 §4.3).
    """
    if _is_clean(header):
        if header.isascii():
            return _part("text/rfc822-headers", "7bit", header)
        if utf8 and _is_utf8(header):
            return _part("message/global-headers", "8bit", header)
    return _part("text/rfc822-headers", "quoted-printable", quoted_printable(header))


def _part(kind: str, encoding: str, octets: bytes) -> Part:
    return Part((Field("Content-Type", kind), Field("Content-Transfer-Encoding", encoding)), octets)


def _is_clean(octets: bytes) -> bool:
    """Whether octets can go into a mail as they are: lines with CRLF, not too long, without NUL."""
    ends = octets.count(_CRLF)
    return (
        ends == octets.count(b"\r") == octets.count(b"\n")
        and b"\0" not in octets
        and max(map(len, octets.split(_CRLF))) <= MAX_LINE_OCTETS
    )


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True
