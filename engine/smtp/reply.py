"""Parse SMTP replies: octets in, `Reply` values out.  Knows no I/O.

Replies are bounded and read strictly (RFC 5321 §4.2): three ASCII digits of which the first is 2
to 5, then a space, a hyphen or the end of the line.  Text stays octets; servers answer in UTF-8,
Latin-1 and worse, and no reply may crash us.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from engine.smtp.errors import RemoteProtocolError
from engine.smtp.status import read_enhanced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from engine.smtp.status import EnhancedStatusCode

#: RFC 5321 §4.5.3.1.5 allows 512 octets with CRLF; deployed servers exceed it.
MAX_LINE_OCTETS: Final = 8 * 1024
#: Bound for one whole reply, so that a hostile server cannot grow our memory.
MAX_REPLY_OCTETS: Final = 64 * 1024
#: How many one-line replies a parser remembers, each up to so many octets.
_KNOWN_LINES: Final = 64
_KNOWN_OCTETS: Final = 80
#: So many octets of a secret's beginning are as telling as all of it: servers cut what they repeat.
_TELLING: Final = 8

_DIGITS: Final = frozenset(b"0123456789")
_ONE_LINE: Final = re.compile(rb"([2-5][0-9][0-9])(?: ([^\r\n]*))?")


class _Reply(NamedTuple):
    code: int
    lines: tuple[bytes, ...]
    enhanced: EnhancedStatusCode | None


class Reply(_Reply):
    """One complete server reply (RFC 5321 §4.2).

    Attributes:
        code: Three digits, 200 to 599.
        lines: The text of each line as octets, without code, separator and line end.
        enhanced: The enhanced status code that leads the text and agrees with the code, if any;
            read once, for every outcome shows it.
    """

    __slots__ = ()

    def __new__(cls, code: int, lines: tuple[bytes, ...] = (b"",)) -> Self:
        """Make a reply of its code and its lines, at least one."""
        return tuple.__new__(cls, (code, lines, read_enhanced(code, lines[0])))

    def __getnewargs__(self) -> tuple[int, tuple[bytes, ...]]:
        """Copy and unpickle it by what it is made of."""
        return self.code, self.lines

    def __repr__(self) -> str:
        return f"Reply(code={self.code!r}, lines={self.lines!r})"

    @property
    def severity(self) -> int:
        """The first digit: 2 success, 3 go on, 4 transient, 5 permanent (RFC 5321 §4.2.1)."""
        return self.code // 100

    @property
    def is_positive(self) -> bool:
        """Whether the reply says success."""
        return 200 <= self.code < 300

    @property
    def text(self) -> str:
        r"""The reply on one line for a person: code, then the text lines joined by a visible `\n`.

        Octets that are not UTF-8 and control characters show as escapes.
        """
        lines = self.lines
        text = show(lines[0]) if len(lines) == 1 else r"\n".join(map(show, lines))
        return f"{self.code} {text}".rstrip()

    def without(self, secrets: Sequence[bytes]) -> Reply:
        """Return the reply with stars where it repeats secrets (`conceal`).

        Some servers say a command that they refuse back to who sent it.
        """
        lines = self.lines
        for secret in secrets:
            lines = tuple(conceal(line, secret) for line in lines)
        return self if lines == self.lines else Reply(self.code, lines)

    def encode(self) -> bytes:
        """Return the reply as a server would send it."""
        code, last = b"%d" % self.code, len(self.lines) - 1
        return b"".join(
            code + (b" " if index == last else b"-") + line + b"\r\n"
            for index, line in enumerate(self.lines)
        )


def conceal(octets: bytes, secret: bytes) -> bytes:
    """Return octets of a peer with `****` where they have a secret, or its first 8 octets or more.

    The case of letters does not count.
    """
    wanted, found, start = secret.lower(), octets.lower(), 0
    head, pieces = wanted[:_TELLING], []
    while head and (at := found.find(head, start)) >= 0:
        pieces += [octets[start:at], b"****"]
        start = at + len(head)
        while (
            start < len(found) and found[start : start + 1] == wanted[start - at : start - at + 1]
        ):
            start += 1
    return b"".join((*pieces, octets[start:]))


def show(octets: bytes) -> str:
    """Decode octets from a peer so that they can be printed: nothing raw, nothing lost."""
    text = octets.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ReplyParser:
    """Cuts a stream of octets into replies: all of a read by `read_lines`, or one by one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # octets of _buffer known to hold no LF
        self._codes: list[int] = []  # of the reply being collected
        self._lines: list[bytes] = []
        self._octets = 0
        self._known: dict[bytes, Reply] = {}

    def read_lines(self, data: bytes) -> Sequence[Reply] | None:
        """Return the replies in received octets, where these are whole replies of one line each.

        So is nearly every read, and most of its lines came before.

        Returns:
            The replies; `None` where there is anything else, also from before: then nothing was
            taken, and `feed` has to.
        """
        if self._buffer or self._lines:
            return None
        lines = data.split(b"\r\n")
        if lines.pop():
            return None
        found = list(map(self._known.get, lines))
        if not all(found):
            for place, line in enumerate(lines):
                if found[place] is None:
                    reply = self._read_line(line)
                    if reply is None:
                        return None
                    found[place] = reply
        return cast("list[Reply]", found)

    def feed(self, data: bytes) -> None:
        """Add received octets."""
        self._buffer += data

    def _read_line(self, line: bytes) -> Reply | None:
        """Read a reply of one line; `None` where it is none, or has to be looked at closely."""
        match = _ONE_LINE.fullmatch(line)
        if match is None or len(line) > MAX_LINE_OCTETS - 2:
            return None
        reply = Reply(int(match[1]), ((match[2] or b"").rstrip(b" \t"),))
        if len(line) <= _KNOWN_OCTETS:
            if len(self._known) >= _KNOWN_LINES:
                self._known.clear()
            self._known[line] = reply
        return reply

    def next_reply(self) -> Reply | None:
        """Return the next complete reply, or `None` when more octets are needed.

        Raises:
            RemoteProtocolError: What came is no reply; the parser is of no use any more.
        """
        while (line := self._next_line()) is not None:
            code, is_last, text = _split_line(line)
            if self._codes and self._codes[0] // 100 != code // 100:
                # RFC 5321 §4.2.1 wants one code on every line.  Codes that differ within a class
                # do no harm (the last one counts); a change of class leaves no answer to trust.
                raise RemoteProtocolError("the lines of one reply disagree", line)
            self._codes.append(code)
            self._lines.append(text)
            if is_last:
                reply = Reply(code, tuple(self._lines))
                self._codes, self._lines, self._octets = [], [], 0
                return reply
        return None

    @property
    def unread(self) -> int:
        """How many octets came that no reply has been made of.

        Not zero when a TLS handshake is due means that someone spoke in clear behind the
        STARTTLS reply; they must not be believed (RFC 3207 §6).
        """
        return len(self._buffer) + self._octets

    def _next_line(self) -> bytes | None:
        # Resume the search where the last one stopped: O(n) over the whole reply.
        index = self._buffer.find(b"\n", self._searched)
        length = len(self._buffer) if index < 0 else index + 1
        if length > MAX_LINE_OCTETS or self._octets + length > MAX_REPLY_OCTETS:
            raise RemoteProtocolError("a reply longer than any server needs", bytes(self._buffer))
        if index < 0:
            self._searched = length
            return None
        line = bytes(self._buffer[:index])
        del self._buffer[: index + 1]
        self._searched = 0
        self._octets += length
        return line.rstrip(b"\r \t")


def _split_line(line: bytes) -> tuple[int, bool, bytes]:
    # Not int(line[:3]): int() also takes b" 25", b"+25" and b"2_5".
    if len(line) < 3 or not _DIGITS.issuperset(line[:3]) or line[0] not in b"2345":
        raise RemoteProtocolError("no reply code of 200 to 599 at the start of a reply", line)
    separator = line[3:4]
    if separator not in (b"", b" ", b"-", b"\t"):
        raise RemoteProtocolError("neither space nor hyphen behind a reply code", line)
    # RFC 5321 §4.2: clients accept a bare code with neither space nor text.
    return int(line[:3]), separator != b"-", line[4:]
