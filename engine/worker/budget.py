"""Bound the octets of large contents that are inside the engine.

The engine bounds recipients, which is enough for mail of the usual size.  A thousand messages of
20 MB each would still be 20 GB; so whoever submits waits here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from engine.message import Message
    from engine.outcome import Outcome

#: Contents up to this size are not counted: the engine's own bound is enough for them.
SMALL_OCTETS: Final = 64 * 1024
#: What all other contents may hold together; a larger one goes alone.
MAX_OCTETS: Final = 64 * 1024 * 1024


class Budget:
    """Counts the octets of contents held in memory, from submission to the last outcome."""

    def __init__(self, octets: int = MAX_OCTETS) -> None:
        self._limit = octets
        self._used = 0
        #: Recipients without outcome and octets, by the message's id; two of one id are one here.
        self._large: dict[str, tuple[int, int]] = {}
        self._less = trio.Event()

    async def take(self, message: Message) -> None:
        """Wait until there is room for a message's content, and count it.

        The message needs an id.  Cancelled, nothing is counted.
        """
        octets = len(message.content.octets or b"")
        if octets <= SMALL_OCTETS:
            return
        while self._used and self._used + octets > self._limit:
            await self._less.wait()
        self._used += octets
        recipients, known = self._large.get(message.id, (0, 0))
        self._large[message.id] = (recipients + len(message.recipients), known + octets)

    def settle(self, outcome: Outcome) -> None:
        """Count an outcome; the last one of a message frees its octets."""
        found = self._large.get(outcome.message)
        if found is None:
            return
        recipients, octets = found
        if recipients > 1:
            self._large[outcome.message] = (recipients - 1, octets)
            return
        del self._large[outcome.message]
        self._used -= octets
        self._less.set()
        self._less = trio.Event()
