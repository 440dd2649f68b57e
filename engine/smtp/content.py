"""What stands between DATA and its reply: line ends, facts and dot-stuffing.  Knows no I/O.

`engine.content` normalises and scans once, when a content is made; the writer stuffs (or frames
for BDAT) each time one is sent.  Each job comes for a whole buffer and for a stream cut anywhere;
both give the same octets.  Nothing here reads MIME.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn

from engine.smtp.errors import ContentError
from engine.smtp.tls_required import says_tls_optional

_CRLF: Final = b"\r\n"
#: Finds out that there is nothing to stuff, the rule, in less time than it takes to replace nothing.
_find_dot: Final = re.compile(rb"\n\.").search
_FORBIDDEN: Final = re.compile(rb"\0|\r(?!\n)")
#: Above this a content is scanned in pieces, so that its lines are never all objects at once.
_PIECE_OCTETS: Final = 64 * 1024


class ContentFacts(NamedTuple):
    """What the envelope and the choice of a host depend on.

    Attributes:
        octets: Size with CRLF line ends, the last one included, before dot-stuffing: what SIZE
            means (RFC 1870 §5).
        is_8bit: Whether any octet is above 127, so that 8BITMIME is needed (RFC 6152 §3).
        longest_line: Octets of the longest line without its CRLF (RFC 5321 §4.5.3.1.6 allows 998).
        has_utf8_header: Whether an octet above 127 stands before the first empty line, so that
            SMTPUTF8 is needed (RFC 6531 §3.4).
        is_tls_optional: Whether it says `TLS-Required: No` (RFC 8689 §3).
        is_binary: Whether it is not made of lines, so that BINARYMIME is needed (RFC 3030 §3).
    """

    octets: int
    is_8bit: bool
    longest_line: int
    has_utf8_header: bool
    is_tls_optional: bool = False
    is_binary: bool = False


def normalise(octets: bytes) -> bytes:
    """Return a whole content with CRLF at the end of every line, the last one included.

    LF and CRLF count as line ends, mixed as they come; the same object comes back when nothing had
    to change.

    Raises:
        ContentError: A NUL (RFC 5322 §3.5), or a CR that no LF follows (RFC 5321 §2.3.8): hosts
            disagree on whether it ends a line, which lets a message smuggle in another.
    """
    octets = _to_crlf(octets, 1)
    return octets if not octets or octets.endswith(b"\n") else octets + _CRLF


class Normaliser:
    """`normalise` for a content that comes in pieces."""

    def __init__(self) -> None:
        self._line = 1
        self._held = b""  # a CR whose LF may come with the next piece
        self._at_line_start = True

    def feed(self, chunk: bytes) -> bytes:
        """Take the next octets, return those that are ready.

        Raises:
            ContentError: As `normalise`; the normaliser is of no use any more.
        """
        if not chunk:
            return b""
        octets = self._held + chunk
        self._held = b"\r" if octets.endswith(b"\r") else b""
        if self._held:
            octets = octets[:-1]
        if not octets:
            return b""
        result = _to_crlf(octets, self._line)
        self._line += octets.count(b"\n")
        self._at_line_start = result.endswith(b"\n")
        return result

    def finish(self) -> bytes:
        """Return what is missing at the end: a CRLF or nothing.

        Raises:
            ContentError: The last octet was a bare CR.
        """
        if self._held:
            _refuse(self._held, 0, self._line)
        return b"" if self._at_line_start else _CRLF


def prepare(octets: bytes) -> tuple[bytes, ContentFacts]:
    """Normalise and scan a whole content; in one go when it is as it should be.

    Raises:
        ContentError: As `normalise`.
    """
    if len(octets) <= _PIECE_OCTETS and octets.isascii() and b"\0" not in octets:
        lengths = list(map(len, octets.splitlines()))
        # bytes.splitlines() cuts at CR, LF and CRLF.  Only if each of its lines ended in two
        # octets, which only CRLF has, do the lengths add up.
        if lengths and sum(lengths) + 2 * len(lengths) == len(octets):
            is_optional = _is_tls_optional(octets)
            return octets, ContentFacts(len(octets), False, max(lengths), False, is_optional)
    octets = normalise(octets)
    return octets, scan(octets)


def prepare_binary(octets: bytes) -> tuple[bytes, ContentFacts]:
    """Scan a whole content that may be binary, and leave it as it is.

    One that is made of lines is like any other.

    Raises:
        ContentError: The header section is not made of lines that end in CRLF.
    """
    end = (_CRLF + octets).find(b"\r\n\r\n")
    header = octets if end < 0 else octets[:end]
    if b"\0" in header or not header.count(b"\r") == header.count(b"\n") == header.count(_CRLF):
        raise ContentError("a header section with lines that do not end in CRLF, or with a NUL")
    if is_lines(octets):
        return octets, scan(octets)
    return octets, scan(octets)._replace(is_8bit=True, is_binary=True)


def is_lines(octets: bytes) -> bool:
    """Whether octets are lines that each end in CRLF, and hold no NUL."""
    ends = octets.count(_CRLF)
    is_clean = ends == octets.count(b"\r") == octets.count(b"\n") and b"\0" not in octets
    return is_clean and (not octets or octets.endswith(_CRLF))


def scan(octets: bytes) -> ContentFacts:
    """Return the facts of a whole normalised content."""
    if len(octets) > _PIECE_OCTETS:
        scanner = Scanner()
        for start in range(0, len(octets), _PIECE_OCTETS):
            scanner.feed(octets[start : start + _PIECE_OCTETS])
        return scanner.facts()
    longest = max(map(len, octets.split(_CRLF)))
    is_optional = _is_tls_optional(octets)
    if octets.isascii():
        return ContentFacts(len(octets), False, longest, False, is_optional)
    # A content without header section starts with the empty line.
    end = (_CRLF + octets).find(b"\r\n\r\n")
    header = octets if end < 0 else octets[:end]
    return ContentFacts(len(octets), True, longest, not header.isascii(), is_optional)


def _is_tls_optional(octets: bytes) -> bool:
    # Hardly any message has the field, and looking for its name in the header section is cheap.
    end = octets.find(b"\r\n\r\n")
    header = octets if end < 0 else octets[: end + 2]
    return b"tls-required" in header.lower() and says_tls_optional(header)


class Scanner:
    """`scan` for a normalised content that comes in pieces."""

    def __init__(self) -> None:
        self._octets = 0
        self._is_8bit = False
        self._line = 0  # octets since the last LF
        self._longest = 0
        self._has_utf8_header = False
        self._header = bytearray()  # its first octets
        # The end of what came, while the header section lasts; as if a line had just ended.
        self._tail: bytes | None = _CRLF

    def feed(self, chunk: bytes) -> None:
        """Take the next octets."""
        self._octets += len(chunk)
        self._measure_lines(chunk)
        is_ascii = chunk.isascii()
        self._is_8bit |= not is_ascii
        if self._tail is not None:
            self._header += chunk[: _PIECE_OCTETS - len(self._header)]
            self._read_header(chunk, self._tail, is_ascii)

    def facts(self) -> ContentFacts:
        """Return the facts of all octets fed so far."""
        longest = max(self._longest, self._line)
        return ContentFacts(
            self._octets,
            self._is_8bit,
            longest,
            self._has_utf8_header,
            _is_tls_optional(bytes(self._header)),
        )

    def _measure_lines(self, chunk: bytes) -> None:
        # By LF alone: it cannot be cut in two, and in a normalised content its CR stands before it.
        first, *others = map(len, chunk.split(b"\n"))
        self._line += first
        if others:
            self._longest = max(self._longest, self._line - 1, max(others[:-1], default=0) - 1)
            self._line = others[-1]

    def _read_header(self, chunk: bytes, tail: bytes, is_ascii: bool) -> None:
        seen = tail + chunk
        end = seen.find(b"\r\n\r\n")
        if not is_ascii:
            header = seen if end < 0 else seen[:end]
            self._has_utf8_header |= not header.isascii()
        self._tail = seen[-3:] if end < 0 else None


def stuff(octets: bytes) -> bytes:
    """Return a whole content as it is written after DATA, with the final `.` line.

    Transparency (RFC 5321 §4.5.2): a line that starts with a dot gets another one.  A missing
    final CRLF is added, and b"" gives the final line alone.
    """
    end = b".\r\n" if not octets or octets.endswith(_CRLF) else b"\r\n.\r\n"
    start = b"." if octets.startswith(b".") else b""
    if _find_dot(octets):
        octets = octets.replace(b"\r\n.", b"\r\n..")
    return b"".join((start, octets, end))


class DotStuffer:
    """`stuff` for a content that comes in pieces."""

    def __init__(self) -> None:
        self._tail = _CRLF  # the last two octets; the first line starts like any other

    def feed(self, chunk: bytes) -> bytes:
        """Take the next octets, return them stuffed; the same object when there is nothing to do."""
        tail, start = self._tail, chunk[:2]
        stuffed = chunk.replace(b"\r\n.", b"\r\n..")
        # A line end in the tail, or cut in two by the border, hides from replace().
        if start[:1] == b"." and tail == _CRLF:
            stuffed = b"." + stuffed
        elif start == b"\n." and tail[-1:] == b"\r":
            stuffed = b"\n." + stuffed[1:]
        self._tail = (tail + chunk[-2:])[-2:]
        return stuffed

    def finish(self) -> bytes:
        """Return the final line, with a CRLF before it where the content had none."""
        return b".\r\n" if self._tail == _CRLF else b"\r\n.\r\n"


def _to_crlf(octets: bytes, first_line: int) -> bytes:
    # Counting is a fraction of the price of looking at lines.
    has_cr = b"\r" in octets
    crlf = octets.count(_CRLF) if has_cr else 0
    if (has_cr and octets.count(b"\r") != crlf) or b"\0" in octets:
        match = _FORBIDDEN.search(octets)
        assert match is not None
        _refuse(octets, match.start(), first_line)
    if has_cr:
        if octets.count(b"\n") == crlf:
            return octets
        octets = octets.replace(_CRLF, b"\n")
    return octets.replace(b"\n", _CRLF)


def _refuse(octets: bytes, index: int, first_line: int) -> NoReturn:
    line = first_line + octets.count(b"\n", 0, index)
    if octets[index]:
        raise ContentError(f"bare CR in line {line}: lines end with CRLF or LF")
    raise ContentError(f"NUL in line {line}: allowed are all octets but NUL (RFC 5322 §3.5)")
