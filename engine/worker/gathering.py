"""A bounded line of things to do that gives out what has gathered, in groups.

Between whoever reads input and whoever submits it: a group costs little more than one message, so
what came while others were under way goes together, and nothing that could go waits for more.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

_T = TypeVar("_T")


class Gathering(Generic[_T]):
    """Holds things until they are taken; bounded by their number and by their octets."""

    def __init__(self, *, most: int, octets: int) -> None:
        """Make an empty line.

        Args:
            most: Things it holds.
            octets: Octets they have together, unless it is one thing alone; what was taken counts
                until it is `done`.
        """
        self._most = most
        self._limit = octets
        self._waiting: deque[tuple[_T, int]] = deque()
        self._octets = 0
        self._is_closed = False
        self._takers = trio.lowlevel.ParkingLot()
        self._less = trio.Event()

    async def put(self, thing: _T, octets: int) -> None:
        """Add a thing, waiting for room; no checkpoint where there is some."""
        while len(self._waiting) >= self._most or (
            self._octets and self._octets + octets > self._limit
        ):
            await self._less.wait()
        self._waiting.append((thing, octets))
        self._octets += octets
        self._takers.unpark()

    async def take(self, most: int, octets: int) -> list[tuple[_T, int]]:
        """Return what is there, in order, with its octets; nothing once it is closed and empty.

        Args:
            most: Things at most.
            octets: Octets together at most, unless the first has more.
        """
        while not self._waiting and not self._is_closed:
            await self._takers.park()
        taken: list[tuple[_T, int]] = []
        while self._waiting and len(taken) < most:
            size = self._waiting[0][1]
            if taken and size > octets:
                break
            octets -= size
            taken.append(self._waiting.popleft())
        self._wake()
        return taken

    def done(self, octets: int) -> None:
        """Note that so many octets of what was taken are held no more."""
        self._octets -= octets
        self._wake()

    def close(self) -> None:
        """Say that nothing more comes; what is there can still be taken."""
        self._is_closed = True
        self._takers.unpark_all()

    def _wake(self) -> None:
        self._less.set()
        self._less = trio.Event()
