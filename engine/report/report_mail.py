"""Reports as mails: the octets of a multipart/report (RFC 6522 §3).  Knows no I/O.

Written by `engine.report.bounce` and `engine.report.tlsrpt_form`.  By hand, because a message that
is returned must keep every octet, and the library's generator would parse it and write it anew.
Not here: what the parts say.
"""

from __future__ import annotations

import re
from binascii import b2a_qp
from email.quoprimime import body_encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: RFC 5322 §2.1.1: what lines should have at most, and what they must, without CRLF.
LINE_OCTETS: Final = 78
MAX_LINE_OCTETS: Final = 998

_CRLF: Final = b"\r\n"
_ENCODING: Final = "Content-Transfer-Encoding"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Field(NamedTuple):
    """A header field."""

    name: str
    value: str


class Part(NamedTuple):
    """A part of a report.

    Attributes:
        fields: Its header fields.
        octets: Its body, encoded as they say, with CRLF line ends.
    """

    fields: tuple[Field, ...]
    octets: bytes


def text_part(text: str) -> Part:
    """Make a part of text for a person; it is 7-bit whatever the text holds.

    Args:
        text: Lines of up to 998 octets, with LF line ends.
    """
    is_ascii = text.isascii()
    fields = (
        Field("Content-Type", f"text/plain; charset={'us-ascii' if is_ascii else 'utf-8'}"),
        Field(_ENCODING, "7bit" if is_ascii else "8bit"),
    )
    return in_seven_bit(Part(fields, text.replace("\n", "\r\n").encode()))


def in_seven_bit(part: Part) -> Part:
    """Return a part with an 8-bit body in quoted-printable; for types that may be encoded."""
    if part.octets.isascii():
        return part
    kept = [field for field in part.fields if field.name != _ENCODING]
    fields = (*kept, Field(_ENCODING, "quoted-printable"))
    return Part(fields, quoted_printable(part.octets))


def quoted_printable(octets: bytes) -> bytes:
    """Encode lines with CRLF line ends so that any octets are 7-bit (RFC 2045 §6.7)."""
    return _CRLF.join(map(_quote_line, octets.split(_CRLF)))


def _quote_line(line: bytes) -> bytes:
    if b"\r" in line or b"\n" in line:
        # Alone they are octets like any other, and not the end of a line.
        return b2a_qp(line, istext=False).replace(b"\n", _CRLF)
    return body_encode(line.decode("latin-1"), eol="\r\n").encode("ascii")


def write_fields(fields: Iterable[Field]) -> bytes:
    """Return header fields as octets, folded at blanks where they are long.

    Raises:
        ValueError: A control character in a value, which could start another field.
    """
    return b"".join([_fold(field) for field in fields])


def write_multipart(report_type: str, parts: Sequence[Part], seed: str) -> bytes:
    """Return a report from its MIME-Version field to its end; other fields go before.

    Args:
        report_type: The subtype of the part for machines.
        parts: For a person, for machines, and perhaps what the report is about.
        seed: Equal reports with equal seeds are equal octets.
    """
    boundary = _boundary(parts, seed)
    kind = f'multipart/report; report-type={report_type}; boundary="{boundary}"'
    fields = [Field("MIME-Version", "1.0"), Field("Content-Type", kind)]
    if not all(part.octets.isascii() for part in parts):
        # RFC 2045 §6.4: a multipart says what the most demanding of its parts needs.
        fields.append(Field(_ENCODING, "8bit"))
    delimiter = f"--{boundary}".encode()
    pieces = [write_fields(fields), _CRLF]
    for part in parts:
        pieces += [delimiter, _CRLF, write_fields(part.fields), _CRLF, part.octets, _CRLF]
    pieces += [delimiter, b"--", _CRLF]
    return b"".join(pieces)


def _boundary(parts: Sequence[Part], seed: str) -> str:
    # Who writes a message could guess the boundary it will be returned in.
    while True:
        seed = sha256(seed.encode()).hexdigest()
        boundary = f"=_{seed[:40]}"
        if not any(boundary.encode() in part.octets for part in parts):
            return boundary


def _fold(field: Field) -> bytes:
    if _CONTROL.search(field.value):
        raise ValueError(f"{field.name}: a control character in {field.value[:80]!r}")
    # Only at single blanks, so that unfolding gives the same value again.
    first, *words = re.split(r"(?<! ) (?! )", field.value)
    lines = [f"{field.name}: {first}".encode()]
    for word in words:
        octets = b" " + word.encode()
        if len(lines[-1]) + len(octets) > LINE_OCTETS:
            lines.append(octets)
        else:
            lines[-1] += octets
    return _CRLF.join([*lines, b""])
