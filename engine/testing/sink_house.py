"""What the sessions of one sink share, and the values that tests get to see of it.

`engine.testing.sink` makes one `House` for each server, every `engine.testing.sink_session` of that
server counts in it and keeps its messages there.  Knows no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import deque

#: Largest content where SIZE names none: 50 MiB.
MAX_CONTENT_OCTETS: Final = 52_428_800

_GREYLIST_ENTRIES: Final = 100_000  # addresses remembered; one more, and all are forgotten


@dataclass(frozen=True, slots=True)
class Received:
    """One message that was accepted.

    Attributes:
        reverse_path: From MAIL, without angle brackets; empty for the null path.
        recipients: The forward-paths that were accepted, in order, without angle brackets.
        content: Header section and body, without dot-stuffing and final dot.
        connection: Which connection of the sink it came over, from 1.
        transaction: Which mail transaction of that connection it was, from 1.
    """

    reverse_path: str
    recipients: tuple[str, ...]
    content: bytes
    connection: int
    transaction: int


@dataclass(frozen=True, slots=True)
class SinkStatistics:
    """What a sink has seen so far.

    Attributes:
        connections: Connections accepted.
        open: Connections open now.
        messages: Messages accepted.
        recipients: Recipients of those.
        octets: Octets of their contents as sent, with dot-stuffing, without the final dot.
        refused: Replies that began with 4 or 5.
    """

    connections: int
    open: int
    messages: int
    recipients: int
    octets: int
    refused: int


@dataclass(slots=True)
class House:
    """What the sessions of one sink share.

    Attributes:
        greeting: The whole line a connection begins with.
        extensions: What EHLO announces, in upper case; the number behind SIZE is the limit.
        lmtp: Whether LMTP is spoken in place of SMTP.
        has_tls: Whether STARTTLS is offered.
        is_curious: Whether anybody wants to see the contents.
        hands_over: Whether they are handed over one by one, before they are acknowledged.
        kept: The messages accepted last; bounded by whoever makes it.
        max_octets: The largest content that is accepted.
        messages: Messages accepted.
        recipients: Recipients of those.
        octets: Octets of their contents as sent.
        refused: Replies that began with 4 or 5.
        greylisted: The addresses that were greylisted once.
    """

    greeting: bytes
    extensions: tuple[bytes, ...]
    lmtp: bool
    has_tls: bool
    is_curious: bool
    hands_over: bool
    kept: deque[Received]
    max_octets: int = MAX_CONTENT_OCTETS
    messages: int = 0
    recipients: int = 0
    octets: int = 0
    refused: int = 0
    greylisted: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        for extension in self.extensions:
            keyword, _, limit = extension.partition(b" ")
            if keyword == b"SIZE" and limit.isdigit():
                self.max_octets = int(limit) or MAX_CONTENT_OCTETS

    def hello(self, *, is_secure: bool) -> bytes:
        """Return the reply to EHLO or LHLO; STARTTLS is not offered twice (RFC 3207 §4.2)."""
        lines = [b"sink.test", *self.extensions]
        if self.has_tls and not is_secure:
            lines.append(b"STARTTLS")
        return b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]

    def is_new(self, address: bytes) -> bool:
        """Return whether an address asks for the first time, and remember it."""
        if address in self.greylisted:
            return False
        if len(self.greylisted) >= _GREYLIST_ENTRIES:
            self.greylisted.clear()
        self.greylisted.add(address)
        return True
