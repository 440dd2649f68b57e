"""Write to standard output and standard error without ever holding up the delivery of mail.

Whoever has something to write puts it here and goes on; one task hands what has gathered to a
thread, in large pieces.  Who produces without limit waits for `room` first, so that a reader who
is slow, or a terminal that was stopped, slows the input down and not the replies to servers.
"""

from __future__ import annotations

import os
import select
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from engine.nursery import tasks_beside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: `room` waits while more than this has not been written yet.
MAX_PENDING_OCTETS: Final = 256 * 1024
#: Seconds in which a run that fails may still write its last words.
_LAST_WORDS: Final = 1.0


class Output:
    """One descriptor; made by `open_output`.

    Attributes:
        broken: Set once nobody reads any more; from then on all that is put is thrown away.
        error: Why it broke.
    """

    def __init__(self, descriptor: int) -> None:
        self.broken = trio.Event()
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._pending: list[bytes] = []
        self._octets = 0
        self._more = trio.Event()
        self._less = trio.Event()

    def put(self, text: str) -> None:
        """Add text to what is to be written; never waits."""
        if not text or self.broken.is_set():
            return
        octets = text.encode("utf-8", "backslashreplace")
        self._pending.append(octets)
        self._octets += len(octets)
        self._more.set()

    @property
    def complaint(self) -> str | None:
        """What to say of why it broke, if anything: who has read enough hears nothing."""
        if self.error is None or isinstance(self.error, BrokenPipeError):
            return None
        return f"standard output: {self.error.strerror}"

    @property
    def waiting(self) -> int:
        """How many octets have not been written yet."""
        return self._octets

    async def room(self) -> None:
        """Wait until little enough is waiting to be written; no checkpoint when it is."""
        while self._octets > MAX_PENDING_OCTETS:
            await self._less.wait()

    async def flush(self) -> None:
        """Wait until everything is written, or nobody reads any more."""
        while self._octets:
            await self._less.wait()

    async def run(self) -> None:
        """Write what comes, until cancelled; what is being written then may stay unfinished."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            octets = b"".join(self._pending)
            self._pending.clear()
            try:
                # Abandoned when cancelled: a reader that has stopped must not keep us from ending.
                await trio.to_thread.run_sync(
                    _write_all, self._descriptor, octets, abandon_on_cancel=True
                )
            except OSError as error:
                self._give_up(error)
            else:
                self._octets -= len(octets)
            self._wake()

    def _give_up(self, error: OSError) -> None:
        self.error = error
        self.broken.set()
        self._pending.clear()
        self._octets = 0

    def _wake(self) -> None:
        self._less.set()
        self._less = trio.Event()


@asynccontextmanager
async def open_output(descriptor: int) -> AsyncIterator[Output]:
    """Write to a descriptor, which stays open, for the time of a block.

    Leaving the block normally writes everything.  An error leaves it one second for that.
    """
    output = Output(descriptor)
    async with tasks_beside() as nursery:
        nursery.start_soon(output.run)
        try:
            yield output
            await output.flush()
        except Exception:
            with trio.move_on_after(_LAST_WORDS):
                await output.flush()
            raise


def _write_all(descriptor: int, octets: bytes) -> None:
    rest = memoryview(octets)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # Whoever shares the descriptor with us has made it non-blocking.
            select.select([], [descriptor], [])
