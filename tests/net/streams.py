"""Byte streams in memory: two ends, with a buffer between them that takes only so much."""

from __future__ import annotations

import math

import trio

from engine.net.stream import RECEIVE_OCTETS


class MemoryStream:
    """One end, a `ByteStream`; `room` is how many octets the buffer to the other end holds.

    It hands out at most `at_once` octets a read, as a network that cuts everything into pieces.
    """

    def __init__(self, room: float = math.inf, at_once: int = RECEIVE_OCTETS) -> None:
        self.room = room
        self.at_once = at_once
        self.other: MemoryStream
        self.arrived = bytearray()
        self.sent: list[bytes] = []
        self.has_ended = False
        self.is_closed = False
        self._changed = trio.Event()

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _check(self) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError
        if self.other.is_closed:
            raise trio.BrokenResourceError("connection broken: Broken pipe")

    def send_nowait(self, data) -> int:
        self._check()
        taken = bytes(data[: int(min(len(data), max(self.room - len(self.other.arrived), 0)))])
        if taken:
            self.sent.append(taken)
            self.other.arrived += taken
            self.other.wake()
        return len(taken)

    async def send_all(self, data) -> None:
        data = bytes(data)
        while data:
            data = data[self.send_nowait(data) :]
            if data:
                await self._changed.wait()

    async def receive_some(self, max_octets: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while (octets := self.receive_nowait(max_octets)) is None:
            await self._changed.wait()
        return octets

    def receive_nowait(self, max_octets: int | None = None) -> bytes | None:
        if self.is_closed:
            raise trio.ClosedResourceError
        if not (self.arrived or self.has_ended):
            return None
        size = min(max_octets or self.at_once, self.at_once)
        octets = bytes(self.arrived[:size])
        del self.arrived[:size]
        self.other.wake()
        return octets

    async def send_eof(self) -> None:
        self.other.has_ended = True
        self.other.wake()

    def close(self) -> None:
        self.is_closed = True
        self.other.has_ended = True
        self.wake()
        self.other.wake()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


def memory_pair(
    room: float = math.inf, at_once: int = RECEIVE_OCTETS
) -> tuple[MemoryStream, MemoryStream]:
    """Two ends; what is said of one holds for the other."""
    left, right = MemoryStream(room, at_once), MemoryStream(room, at_once)
    left.other, right.other = right, left
    return left, right
