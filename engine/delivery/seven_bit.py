"""Contents for hosts that take seven bits only.

Small ones are converted on the spot, larger ones in a thread.  Not here: how it is done
(`engine.smtp.mime`), and for whom (`engine.delivery.carrier`).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio

from engine.content import MemoryContent
from engine.smtp.content import scan
from engine.smtp.errors import NotConvertibleError
from engine.smtp.mime import to_seven_bit

if TYPE_CHECKING:
    from engine.message import Content

#: Contents up to this size are converted on the spot: about a millisecond.
_QUICK_OCTETS: Final = 32 * 1024
#: Larger ones are not converted: they would have to be held in memory.
_MOST_CONVERTED: Final = 64 * 1024 * 1024


async def in_seven_bit(content: Content) -> Content:
    """Convert a content for a host without 8BITMIME (RFC 6152 §3).

    Raises:
        NotConvertibleError: It must stay as it is, or is too large.
        ContentError: It changed since it was submitted.
        OSError: It cannot be read.
    """
    octets = content.octets
    if octets is None:
        if content.facts.octets > _MOST_CONVERTED:
            raise NotConvertibleError(f"more than {_MOST_CONVERTED} octets")
        async with aclosing(content.chunks()) as chunks:
            octets = b"".join([chunk async for chunk in chunks])
    is_binary = content.facts.is_binary
    if len(octets) <= _QUICK_OCTETS:
        return _convert(octets, is_binary)
    return await trio.to_thread.run_sync(_convert, octets, is_binary)


def _convert(octets: bytes, is_binary: bool) -> MemoryContent:
    converted = to_seven_bit(octets, is_binary=is_binary)
    return MemoryContent(converted, scan(converted))
