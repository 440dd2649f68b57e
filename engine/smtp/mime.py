"""Make an 8-bit content 7-bit, for a host that does not offer 8BITMIME (RFC 6152 §3).  Knows no I/O.

Called with a whole normalised content, where a host leaves no other way.  Only what holds 8-bit
octets is encoded, part by part; the rest keeps every octet, but for a Content-Transfer-Encoding
that would promise too much.  A content that must stay as it is, or whose parts cannot be told
apart beyond doubt, is refused: readers who take it apart in another way would get rubbish.
Not here: header fields in UTF-8, which nothing but SMTPUTF8 carries (RFC 6531 §3.2), long lines of
what is 7-bit already, and whether to convert at all.

The effort grows with the size only, whatever the content: a level of nesting looks at each octet a
few times, and the levels are bounded.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.smtp.errors import NotConvertibleError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Multiparts and messages inside each other.  Sendmail stops at 20, Postfix at 100.
MAX_DEPTH: Final = 50

_CRLF: Final = b"\r\n"
_MIME_VERSION: Final = b"mime-version"
_TYPE: Final = b"content-type"
_ENCODING: Final = b"content-transfer-encoding"

_FIELD_NAME: Final = re.compile(rb"([!-9;-~]+)[ \t]*:")
_FIELD_END: Final = re.compile(rb"\r\n(?![ \t])")
_TOKEN: Final = rb"[!#-'*+\-.0-9A-Z^-~]+"  # RFC 2045 §5.1
_MEDIA_TYPE: Final = re.compile(rb"\s*(%b/%b)\s*" % (_TOKEN, _TOKEN))
# Values without quotes hold "=" and more in practice; an empty parameter is a semicolon too many.
_PARAMETER: Final = re.compile(
    rb';\s*(?:(%b)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))\s*)?' % _TOKEN, re.DOTALL
)
_COMMENT: Final = re.compile(rb"\([^()]*\)")
_TOO_MUCH: Final = re.compile(
    rb"((?:\A|\r\n)content-transfer-encoding[ \t]*:[ \t]*)(?:8bit|binary)[ \t]*(?=\r\n(?![ \t])|\Z)",
    re.IGNORECASE,
)
_LONG_LINES: Final = tuple(
    (re.compile(rb"%b\r\n(?<=[^\r\n]{77}\r\n)" % blank), blank) for blank in (b"=20", b"=09")
)
_FROM_LINE: Final = re.compile(rb"\nFrom ([^\r\n]*)")

#: Signatures over the body, which a conversion would break (RFC 6376 §5.3, RFC 8617 §4.1.2).
_SIGNATURES: Final = {
    b"dkim-signature": "DKIM",
    b"arc-message-signature": "ARC",
    b"arc-seal": "ARC",
}
#: RFC 6532 §3.7: these may be encoded, unlike all other messages (RFC 2045 §6.4).
_ENCODABLE_MESSAGES: Final = b"message/global"


def to_seven_bit(octets: bytes, *, is_binary: bool = False) -> bytes:
    """Return a content in 7-bit MIME that says the same; a 7-bit one comes back as it is.

    Text becomes quoted-printable, all else base64.  What says no type gets one (RFC 1428 §3).  The
    size changes, so that the facts of the content have to be found anew.

    Args:
        octets: A whole content; its lines end in CRLF, where it has lines.
        is_binary: Whether parts of it may not be made of lines; they become base64.

    Raises:
        NotConvertibleError: It is signed or encrypted, a header section is 8-bit, or its structure
            leaves doubts; the text says which.
    """
    if octets.isascii() and not is_binary:
        return octets
    if not (is_binary or _is_lines(octets)):
        raise NotConvertibleError("a NUL, or a line that does not end in CRLF")
    conversion = _Conversion(octets)
    conversion.add_entity(0, len(octets), b"text/plain", depth=0, is_message=True)
    return b"".join(conversion.pieces)


class _Conversion:
    """A content on its way: places in it come in, the octets of the result come out in order."""

    def __init__(self, octets: bytes) -> None:
        self.pieces: list[bytes] = []
        self._octets = octets

    def add_entity(
        self, start: int, end: int, default: bytes, *, depth: int, is_message: bool
    ) -> None:
        """Add a message, or a part of a multipart: a header section and a body."""
        piece = self._octets[start:end]
        if _is_plain(piece):
            # A message inside may be signed: it is let alone altogether.
            self.pieces.append(piece if is_message else _relabel(piece))
            return
        if depth > MAX_DEPTH:
            raise NotConvertibleError(f"parts nested more than {MAX_DEPTH} deep")
        header, body = _read_header(self._octets, start, end)
        if depth == 0:
            _check_signatures(header)
        value = header.find(_TYPE)
        media = _MediaType(default) if value is None else _read_type(value)
        label = _read_encoding(header)
        kind, subtype = media.name.split(b"/")
        if label not in {b"7bit", b"8bit", b"binary"}:
            raise NotConvertibleError("8-bit octets in a part that says it is encoded")
        if is_message and header.find(_MIME_VERSION) is None:
            header.set(b"MIME-Version", b"1.0")
        if kind == b"multipart":
            if subtype in {b"signed", b"encrypted"}:
                # RFC 1847 §2.1: from its signing on it must not change.
                raise NotConvertibleError(f"8-bit octets in a multipart/{subtype.decode()}")
            self._add_header(header, None if label == b"7bit" else b"7bit")
            inner = b"message/rfc822" if subtype == b"digest" else b"text/plain"  # RFC 2046 §5.1.5
            self._add_parts(body, end, media.boundary, inner, depth + 1)
        elif media.name == b"message/rfc822":
            self._add_header(header, None if label == b"7bit" else b"7bit")
            self.add_entity(body, end, b"text/plain", depth=depth + 1, is_message=True)
        elif kind == b"message" and not media.name.startswith(_ENCODABLE_MESSAGES):
            raise NotConvertibleError("8-bit octets in a message that may not be encoded")
        else:
            if value is None:
                header.set(b"Content-Type", b"text/plain; charset=" + _guess(piece))
            self._add_leaf(header, body, end, is_text=kind in {b"text", b"message"})

    def _add_leaf(self, header: _Header, start: int, end: int, *, is_text: bool) -> None:
        octets = self._octets[start:end]
        if is_text and _is_lines(octets):
            self._add_header(header, b"quoted-printable")
            self.pieces.append(_quoted_printable(octets))
            return
        self._add_header(header, b"base64")
        self.pieces.append(_base64(octets))
        if end == len(self._octets):
            self.pieces.append(_CRLF)

    def _add_parts(self, start: int, end: int, boundary: bytes, default: bytes, depth: int) -> None:
        kept, part = start, None  # what is added so far, and where the part under way began
        # A delimiter may stand right at the start: the CRLF that belongs to it ends the header.
        for at, after, is_last in _find_delimiters(self._octets, start - 2, end, boundary):
            if part is not None and part <= at:
                self._keep(kept, part)
                self.add_entity(part, at, default, depth=depth, is_message=False)
                kept = at
            part = None if is_last else after
        if part is not None:  # the last delimiter is missing
            self._keep(kept, part)
            self.add_entity(part, end, default, depth=depth, is_message=False)
            kept = end
        self._keep(kept, end)

    def _keep(self, start: int, end: int) -> None:
        octets = self._octets[start:end]
        if not _is_plain(octets):
            raise NotConvertibleError("8-bit octets in a multipart outside its parts")
        self.pieces.append(octets)

    def _add_header(self, header: _Header, encoding: bytes | None) -> None:
        if encoding is not None:
            header.set(b"Content-Transfer-Encoding", encoding)
        self.pieces += [field + _CRLF for field in header.fields]
        self.pieces.append(_CRLF)


class _Header:
    """A header section, field by field, as it is written."""

    def __init__(self, fields: list[bytes], names: list[bytes]) -> None:
        self.fields = fields
        self._names = names

    def find(self, name: bytes) -> bytes | None:
        """Return the value of a field that may stand there once."""
        if (count := self._names.count(name)) > 1:
            raise NotConvertibleError(f"{count} fields of the name {name.decode()}")
        return None if not count else self.fields[self._names.index(name)].partition(b":")[2]

    def has(self, name: bytes) -> bool:
        return name in self._names

    def set(self, name: bytes, value: bytes) -> None:
        field = name + b": " + value
        if name.lower() in self._names:
            self.fields[self._names.index(name.lower())] = field
        else:
            self.fields.append(field)
            self._names.append(name.lower())


def _read_header(octets: bytes, start: int, end: int) -> tuple[_Header, int]:
    """Return a header section, and where the body behind it starts."""
    if octets.startswith(_CRLF, start):
        return _Header([], []), start + 2
    at = octets.find(b"\r\n\r\n", start, end)
    section = octets[start : at if at >= 0 else end]
    if not section.isascii():
        raise NotConvertibleError("8-bit octets in a header section")
    fields = _FIELD_END.split(section)
    names = [match[1].lower() for field in fields if (match := _FIELD_NAME.match(field))]
    if len(names) < len(fields):
        raise NotConvertibleError("a line in a header section that is no field")
    return _Header(fields, names), at + 4


def _check_signatures(header: _Header) -> None:
    for name, system in _SIGNATURES.items():
        if header.has(name):
            raise NotConvertibleError(f"the message is signed by {system}")


class _MediaType(NamedTuple):
    name: bytes
    boundary: bytes = b""


def _read_type(value: bytes) -> _MediaType:
    match = _MEDIA_TYPE.match(value)
    if match is None:
        raise NotConvertibleError("a Content-Type that cannot be read")
    name, boundary = match[1].lower(), b""
    if name.startswith(b"multipart/"):
        boundary = _read_boundary(value, match.end())
    return _MediaType(name, boundary)


def _read_boundary(value: bytes, place: int) -> bytes:
    while parameter := _PARAMETER.match(value, place):
        name, quoted, plain = parameter.groups()
        if name is not None and name.lower() == b"boundary":
            found = plain or re.sub(rb"\\(.)", rb"\1", quoted.replace(_CRLF, b""))
            if boundary := found.rstrip():
                return boundary
            break
        place = parameter.end()
    raise NotConvertibleError("a multipart without a boundary that can be read")


def _read_encoding(header: _Header) -> bytes:
    value = header.find(_ENCODING)
    return b"7bit" if value is None else _COMMENT.sub(b"", value).strip().lower()


def _find_delimiters(
    octets: bytes, start: int, end: int, boundary: bytes
) -> Iterator[tuple[int, int, bool]]:
    """Yield where each delimiter starts, where what follows starts, and whether it is the last."""
    mark, found = b"\r\n--" + boundary, False
    at = octets.find(mark, start, end)
    while at >= 0:
        line_end = octets.find(_CRLF, at + len(mark), end)
        line_end = end if line_end < 0 else line_end
        # RFC 2046 §5.1.1: blanks may follow; any other octet makes it another boundary.
        rest = octets[at + len(mark) : line_end].rstrip(b" \t")
        if rest in {b"", b"--"}:
            found = True
            yield at, min(line_end + 2, end), rest == b"--"
            if rest:
                return
        at = octets.find(mark, line_end, end)
    if not found:
        raise NotConvertibleError("a multipart without its delimiters")


def _relabel(piece: bytes) -> bytes:
    """Have a part without 8-bit octets say so (RFC 2045 §6.4), where it said otherwise."""
    at = 0 if piece.startswith(_CRLF) else piece.find(b"\r\n\r\n")
    section = piece[: at if at >= 0 else len(piece)]
    return _TOO_MUCH.sub(rb"\g<1>7bit", section, count=1) + piece[len(section) :]


def _is_lines(octets: bytes) -> bool:
    """Whether nothing in it is out of place in lines; a part may lack its last line end."""
    ends = octets.count(_CRLF)
    return ends == octets.count(b"\r") == octets.count(b"\n") and b"\0" not in octets


def _is_plain(octets: bytes) -> bool:
    """Whether there is nothing to encode in it."""
    return octets.isascii() and _is_lines(octets)


def _guess(octets: bytes) -> bytes:
    # Other encodings hardly ever pass for UTF-8.  RFC 1428 §3 has a name for knowing nothing.
    try:
        octets.decode()
    except UnicodeDecodeError:
        return b"unknown-8bit"
    return b"utf-8"


def _quoted_printable(octets: bytes) -> bytes:
    """Encode lines as RFC 2045 §6.7 has it, and so that they survive old mail systems."""
    # With a line end to go by, the library protects blanks at the very end and breaks by CRLF.
    encoded = binascii.b2a_qp(octets + _CRLF)
    # It encodes a lone dot, but not one that it separates from its line itself, and a blank at the
    # end of a line, but does not look how long the line becomes.
    encoded = encoded.replace(b"\n.\r\n", b"\n=2E\r\n")
    for long_line, blank in _LONG_LINES:
        encoded = long_line.sub(b"=\r\n" + blank + _CRLF, encoded)
    # RFC 2049 §3: "From " at the start of a line becomes ">From " in mailbox files.
    return _FROM_LINE.sub(_protect, b"\n" + encoded)[1:-2]


def _protect(match: re.Match[bytes]) -> bytes:
    fits = len(match[1]) <= 69  # 76 octets with "=46rom "
    return (b"\n=46rom " if fits else b"\n=46rom=\r\n ") + match[1]


def _base64(octets: bytes) -> bytes:
    text = binascii.b2a_base64(octets, newline=False)
    return _CRLF.join([text[place : place + 76] for place in range(0, len(text), 76)])
