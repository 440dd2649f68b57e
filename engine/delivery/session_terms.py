"""What a session is told, and how it says that it is over.  Knows no I/O.

Held by `engine.delivery.session`; whoever judges endings needs no session for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from engine.smtp.command import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.outcome import Cause
    from engine.smtp.command import Command
    from engine.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for each kind of reply, and for a block to be written."""

    greeting: float = 300.0
    command: float = 300.0
    data: float = 300.0
    final: float = 600.0
    quit: float = 1.0

    def of_kinds(self) -> Mapping[Kind, float]:
        """Return the timeout of the reply to each kind of command."""
        table = dict.fromkeys(Kind, self.command)
        table[Kind.CONNECT] = self.greeting
        table[Kind.CONTENT] = table[Kind.BDAT_LAST] = self.final
        table[Kind.QUIT] = self.quit
        return table


class Scribe(Protocol):
    """Keeps the dialogue, where somebody wants it."""

    def sent(self, line: str) -> None:
        """Note a command that is being written."""

    def received(self, reply: Reply) -> None:
        """Note a reply."""

    def sent_content(self, octets: int, *, is_chunked: bool, is_last: bool) -> None:
        """Note octets of a content that are being written."""

    def note(self, text: str) -> None:
        """Note why the session is given up."""

    def lost(self, how: Literal["close", "stall"]) -> None:
        """Note that the peer ended it: it closed, or it fell silent."""


class SessionLost(Exception):  # noqa: N818 - an ending, not an error of ours
    """The session is over and the reply that was waited for will not come.

    Attributes:
        cause: `timeout`, `closed`, `malformed-reply`, or `reply` for an unsolicited 421.
        command: The oldest command without a reply, `None` when nothing was owed.
        detail: More for a person: the operating system's words, or what was no reply.
        reply: The unsolicited 421.
        alert: What the peer said in TLS in place of going on (RFC 8446 §6.2), in OpenSSL's words;
            empty where it said nothing of the kind.
    """

    def __init__(
        self, cause: Cause, command: Command | None, detail: str = "", reply: Reply | None = None
    ) -> None:
        super().__init__(cause, command, detail)
        self.cause = cause
        self.command = command
        self.detail = detail
        self.reply = reply
        self.alert = ""

    def add_remark(self, remark: str) -> None:
        """Add to the detail what else a person should know."""
        self.detail = "; ".join(filter(None, (self.detail, remark)))
