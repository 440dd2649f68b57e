"""A bounded record of one SMTP dialogue in the script notation of the test server.  Knows no I/O.

A session writes into it; outcomes carry parts of it.  Played by the test server it reproduces the
case, but for what is masked or was cut.  Secrets are masked before they come here.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from engine.smtp.reply import show

if TYPE_CHECKING:
    from engine.smtp.reply import Reply

DEFAULT_LIMIT: Final = 2000
#: A line is for reading; 512 octets are what SMTP gave a command or a reply (RFC 5321 §4.5.3.1.4).
MAX_LINE: Final = 512


class Transcript:
    """The newest lines of a dialogue, and apart from them its session set-up.

    The set-up is everything before the first `mark`.  It is kept however long the session lasts,
    because no transaction can be understood without it.
    """

    __slots__ = ("_count", "_lines", "_setup")

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        """Start empty.

        Args:
            limit: How many lines are kept of the set-up, and again of what follows it.

        Raises:
            ValueError: The limit is less than 1.
        """
        if limit < 1:
            raise ValueError(f"limit {limit}: a transcript keeps at least 1 line")
        self._lines: deque[str] = deque(maxlen=limit)
        self._count = 0  # lines since the set-up, with those the ring has lost
        self._setup: tuple[str, ...] | None = None

    def sent(self, line: str) -> None:
        """Add a command we sent, in its showable form: `C: MAIL FROM:<a@b.test>`."""
        self._add(f"C: {line}")

    def received(self, reply: Reply) -> None:
        """Add every line of a reply we got: `S: 250-PIPELINING`."""
        last = len(reply.lines) - 1
        for index, line in enumerate(reply.lines):
            separator = " " if index == last else "-"
            self._add(f"S: {reply.code}{separator}{show(line)}".rstrip())

    def sent_content(self, octets: int, *, is_chunked: bool, is_last: bool) -> None:
        """Add that content was sent, never the content: `C= 18342 octets`, a chunk `C# 18342`.

        What goes out in several pieces is expected where its last one is.
        """
        if is_chunked:
            self._add(f"C# {octets}")
        else:
            self._add(f"C= {octets} octets" if is_last else f"# {octets} octets of content")

    def note(self, text: str) -> None:
        """Add a comment line, for what is no dialogue."""
        self._add(f"# {text}")

    def lost(self, how: Literal["close", "stall"]) -> None:
        """Add how the peer ended the dialogue: it closed, or it fell silent."""
        self._add(f"! {how}")

    def mark(self) -> int:
        """Return the place where the dialogue stands, for `since`; the first one ends the set-up."""
        if self._setup is None:
            self._setup = tuple(self._kept(0))
            self._lines.clear()
            self._count = 0
        return self._count

    def since(self, mark: int) -> tuple[str, ...]:
        """Return the set-up and every line since `mark`; before any mark, all lines.

        Where lines were lost to the limit, a comment in their place says how many.
        """
        return (*(self._setup or ()), *self._kept(mark))

    def _kept(self, mark: int) -> list[str]:
        oldest = self._count - len(self._lines)
        lines = list(islice(self._lines, max(0, mark - oldest), None))
        missing = oldest - mark
        return [f"# {missing} lines missing", *lines] if missing > 0 else lines

    def _add(self, line: str) -> None:
        if len(line) > MAX_LINE:
            line = line[: MAX_LINE - 1] + "…"
        # A control character must not reach a terminal, nor a line break forge a line.
        if not line.isprintable():
            line = show(line.encode("utf-8", "backslashreplace"))[:MAX_LINE]
        self._lines.append(line)
        self._count += 1
