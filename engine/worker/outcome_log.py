"""The log of outcomes: one JSON object a line for every outcome of every attempt.

Lines are with the kernel before the store is told (`Scheduler`'s `on_settled`): a worker that is
killed in between writes a line twice, never none.  They are not forced to the disk: what power that
fails takes along is lines, and no mail.

Several processes append to one file, each whole lines at a time under a lock of the file, and it may
be moved away at any moment: the next lines go to a new one.  A line that a killed process, or a full
disk, left unfinished was told to nobody; whoever writes next takes it back.
Not here: what an outcome makes of its recipient (`engine.queue.decision`), and who has a last line
without an attempt (`engine.worker.removal_log`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final

import trio
from pydantic_core import PydanticSerializationError, to_json

from engine.units import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from engine.queue.decision import Settled

#: What our lines begin with.
_HEAD: Final = b'{"time"'
#: An unfinished line is looked for this far from the end.
_TAIL_OCTETS: Final = 1024 * 1024
# For what is not ASCII: no reader can stumble over what a server or a submitter wrote.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))

_log = logging.getLogger("engine.worker")


def outcome_record(settled: Settled, *, at: str, has_transcript: bool = False) -> dict[str, Any]:
    """Return what is logged of an outcome; times are RFC 3339 §5.6.

    Args:
        settled: The outcome, and what it makes of its recipient.
        at: When.
        has_transcript: Whether there is always a `transcript`, `null` where nothing was said.
    """
    record = {"time": at, **settled.as_dict()}
    if settled.next_attempt is not None:
        record["next_attempt"] = timestamp(settled.next_attempt)
    if has_transcript:
        record.setdefault("transcript", None)
    return record


def _line(record: Mapping[str, Any]) -> bytes:
    # Five times as fast as the standard library, which a worker under load can tell.
    try:
        line = to_json(record)
    except PydanticSerializationError:  # lone surrogates, which have no UTF-8
        line = b"\xff"
    if not line.isascii():
        line = _ENCODER.encode(record).encode()
    return line + b"\n"


class OutcomeLog:
    """The file of a log of outcomes; may be used by several tasks at a time.

    Attributes:
        path: It.
        has_transcripts: Whether outcomes have their dialogues in it.
    """

    def __init__(
        self,
        path: Path,
        *,
        has_transcripts: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Say where it is; `open` opens it.

        Args:
            path: The file; it is made where there is none, but not its folder.
            has_transcripts: Whether outcomes have their dialogues in it.
            clock: Wall clock, seconds since the epoch.
        """
        self.path = path
        self.has_transcripts = has_transcripts
        self._clock = clock
        self._file = _File(path)
        self._lock = trio.Lock()

    async def open(self) -> None:
        """Open the file, or open it anew if it was moved away.

        Raises:
            OSError: It cannot be opened for writing.
        """
        await self._write(b"")

    async def close(self) -> None:
        """Close the file until something is written; closing twice is no harm."""
        async with self._lock:
            self._file.close()

    async def note(self, settled: Sequence[Settled]) -> None:
        """Write outcomes; when this returns a crash of this process cannot lose them.

        Cancelled, or with an error, they may be there or not.

        Raises:
            OSError: They cannot be written now; none of them is there.
        """
        at = timestamp(self._clock())
        await self.write(
            outcome_record(each, at=at, has_transcript=self.has_transcripts) for each in settled
        )

    async def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records of other kinds; as `note`, with `time` first."""
        await self._write(b"".join([_line(record) for record in records]))

    async def _write(self, octets: bytes) -> None:
        async with self._lock:
            await trio.to_thread.run_sync(self._file.append, octets)


class _File:
    """What the thread does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def append(self, octets: bytes) -> None:
        """Write all of it at the end, or nothing."""
        if self._descriptor is not None and self._was_moved(self._descriptor):
            self.close()
        if self._descriptor is None:
            self._descriptor = _open(self._path)
        if octets:
            _append(self._descriptor, octets)

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _was_moved(self, descriptor: int) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        ours = os.fstat(descriptor)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def _open(path: Path) -> int:
    # It says who gets mail from whom.  Without O_NONBLOCK a FIFO would wait here for a reader.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o640)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "allowed is a file, or a device such as /dev/null", str(path))
    return descriptor


def _append(descriptor: int, octets: bytes) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.write(descriptor, octets)
        return
    # Other processes of ours hold it for microseconds.
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        kept, octets = _mend(descriptor, end, octets)
        try:
            _write_whole(descriptor, octets)
        except OSError:
            os.ftruncate(descriptor, kept)
            raise
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write_whole(descriptor: int, octets: bytes) -> None:
    written = os.write(descriptor, octets)
    if written < len(octets):
        # Behind the part for which there was room the error shows.
        written += os.write(descriptor, octets[written:])
    if written < len(octets):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _mend(descriptor: int, end: int, octets: bytes) -> tuple[int, bytes]:
    """See to it that new lines begin a line; return the end of the file, and them."""
    if not end or os.pread(descriptor, 1, end - 1) == b"\n":
        return end, octets
    start = max(end - _TAIL_OCTETS, 0)
    tail = os.pread(descriptor, end - start, start)
    head = tail.rfind(b"\n") + 1
    if (head or not start) and tail[head:].startswith(_HEAD[: len(tail) - head]):
        _log.warning("a line of the log of outcomes was left unfinished, and is taken back")
        os.ftruncate(descriptor, start + head)
        return start + head, octets
    # Not ours to take back.
    return end, b"\n" + octets
