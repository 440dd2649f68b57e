"""A window on its way to the peer: what of its contents has left.  Knows no I/O.

The writer of `engine.delivery.session` keeps one for each window that the kernel did not take whole.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from engine.smtp.command import Command, Kind

Window = tuple[Command, ...]

# Every message asks for these; in Python 3.11 a member of an enum is found ten times as slowly as a name.
_CONTENT, _BDAT_LAST = Kind.CONTENT, Kind.BDAT_LAST
CONTENT_KINDS: Final = frozenset({Kind.CONTENT, Kind.BDAT, Kind.BDAT_LAST})


def ends_content(command: Command) -> bool:
    """Whether a content ends with it."""
    kind = command.kind
    return command.is_last and (kind is _CONTENT or kind is _BDAT_LAST)


class Parcel:
    """A window as it goes on the wire, and how far it has gone.

    Attributes:
        octets: All of it.
        sent: How many octets have left, or may be about to.
        has_content: Whether there is any content in it.
        ends: Where contents end that have not left.
    """

    __slots__ = ("_window", "ends", "has_content", "octets", "sent")

    def __init__(self, window: Window, octets: bytes) -> None:
        self._window = window
        self.octets = octets
        self.sent = 0
        self.ends: deque[int] = deque()
        self.has_content = False
        position = 0
        for command in window:
            position += len(command.octets)
            if command.kind in CONTENT_KINDS:
                self.has_content = True
                if ends_content(command):
                    self.ends.append(position)

    @property
    def next_end(self) -> int:
        """Where the next content ends; one octet behind it all where there is none."""
        return self.ends[0] if self.ends else len(self.octets) + 1

    def content_within(self, start: int, stop: int) -> int:
        """Count the octets of content from one position to another."""
        count = position = 0
        for command in self._window:
            end = position + len(command.octets)
            if command.kind in CONTENT_KINDS:
                count += max(0, min(stop, end) - max(start, position + command.head))
            position = end
        return count

    def has_unwritten(self, command: Command) -> bool:
        """Whether this content is in it and has not left to its end."""
        position = 0
        for each in self._window:
            position += len(each.octets)
            if each is command:
                return position > self.sent and ends_content(command)
        return False
