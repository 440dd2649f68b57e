"""The log of a link: one record for each TCP segment that came to it, whatever became of it.

`engine.testing.forwarder` writes records, `engine.testing.link` reads them back; tests and
`engine.testing.wire` get `Passage` values.  Knows no I/O.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.testing.impairments import Direction, Fate
from engine.testing.segment import parse_segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.testing.segment import Segment

_HEAD: Final = struct.Struct("=ddBBH")
_DIRECTIONS: Final = tuple(Direction)
_FATES: Final = tuple(Fate)
#: The largest record: that of the largest IP packet.
LARGEST_RECORD: Final = _HEAD.size + 65_535


@dataclass(frozen=True, slots=True)
class Passage:
    """One TCP segment that came to the link.

    Attributes:
        entered: When the link got it, in seconds of `time.monotonic`.
        left: When the link gave it to the other end; `None` if it was lost.
        direction: Which way it went.
        fate: What became of it.
        segment: The segment as it entered, so with the data that was stripped.
    """

    entered: float
    left: float | None
    direction: Direction
    fate: Fate
    segment: Segment

    @property
    def payload(self) -> bytes:
        """The octets that arrived at the other end."""
        return self.segment.payload if self.fate is Fate.PASS else b""

    def __str__(self) -> str:
        """Show it on one line, beginning with the time it entered."""
        became = "" if self.fate is Fate.PASS else f" ({self.fate})"
        return f"{self.entered:.6f} {self.direction:<4} {self.segment}{became}"


def write_record(
    entered: float, left: float | None, direction: Direction, fate: Fate, packet: bytes
) -> bytes:
    """Return the record of an IP packet; arguments are as the attributes of `Passage`."""
    head = _HEAD.pack(
        entered,
        math.nan if left is None else left,
        _DIRECTIONS.index(direction),
        _FATES.index(fate),
        len(packet),
    )
    return head + packet


def read_records(octets: bytes) -> Iterator[Passage]:
    """Read records back, in the order they were written.

    One that is not there to its end is being written, and ends the log.
    """
    at = 0
    while at + _HEAD.size <= len(octets):
        entered, left, direction, fate, size = _HEAD.unpack_from(octets, at)
        at += _HEAD.size
        if at + size > len(octets):
            return
        segment = parse_segment(octets[at : at + size])
        at += size
        if segment is not None:
            yield Passage(
                entered,
                None if math.isnan(left) else left,
                _DIRECTIONS[direction],
                _FATES[fate],
                segment,
            )
