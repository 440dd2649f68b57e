"""Contents made of octets, text and files; they satisfy `engine.message.Content`.

Made by whoever submits, read by the delivery.  Normalised and scanned once, here; what is small
stays in memory, what is large stays in its file.  Does not look into MIME or sign anything.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from engine.smtp.content import ContentFacts, Normaliser, Scanner, prepare, prepare_binary
from engine.smtp.errors import ContentError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from io import BufferedReader

#: Files up to this size are held in memory: most mail is smaller.
MAX_MEMORY_OCTETS: Final = 256 * 1024
#: The largest piece `chunks` yields.
PIECE_OCTETS: Final = 64 * 1024
#: One visit to a thread reads this much.
_READ_OCTETS: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class MemoryContent:
    """A content held in memory.

    Attributes:
        octets: All of it, with CRLF line ends.
        facts: What is known about it.
    """

    octets: bytes
    facts: ContentFacts

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the content in pieces of at most 64 KiB, with a checkpoint before each."""
        for start in range(0, len(self.octets), PIECE_OCTETS):
            await trio.lowlevel.checkpoint()
            yield self.octets[start : start + PIECE_OCTETS]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """How a file is known to be the one that was scanned.

    Attributes:
        octets: Its size.
        modified_ns: When it was last written, in nanoseconds of wall time.
    """

    octets: int
    modified_ns: int

    @classmethod
    def of(cls, file: BufferedReader) -> FileStamp:
        """Look at an open file."""
        found = os.fstat(file.fileno())
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class FileContent:
    """A content too large for memory, read from its file each time it is sent.

    Attributes:
        path: The file, with any line ends.
        facts: What is known about it once its line ends are CRLF.
        stamp: The file as it was scanned.
    """

    path: Path
    facts: ContentFacts
    stamp: FileStamp

    @property
    def octets(self) -> None:
        """`None`: read `chunks`."""
        return

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the content in pieces of at most 64 KiB, read in a thread.

        Who may leave it early reads it within `contextlib.aclosing`.  The file is closed on every
        way out; cancellation takes effect once the read that is under way is done.

        Raises:
            ContentError: The file is no longer the one that was scanned; what was given out
                before still was, but the content must not be completed.
            OSError: It cannot be opened or read.
        """
        file = await trio.to_thread.run_sync(self._open)
        try:
            normaliser = Normaliser()
            while (
                octets := await trio.to_thread.run_sync(self._read, file, normaliser)
            ) is not None:
                for start in range(0, len(octets), PIECE_OCTETS):
                    yield octets[start : start + PIECE_OCTETS]
            if end := normaliser.finish():
                yield end
        finally:
            # Not in a thread: that would need a shield, and closing what was only read is quick.
            file.close()

    def _open(self) -> BufferedReader:
        return self.path.open("rb")

    def _read(self, file: BufferedReader, normaliser: Normaliser) -> bytes | None:
        found = file.read(_READ_OCTETS)
        # After the read, not before: so what was read is what was scanned.
        if FileStamp.of(file) != self.stamp:
            raise ContentError(f"{self.path}: changed since it was submitted")
        return normaliser.feed(found) if found else None


def from_octets(data: bytes) -> MemoryContent:
    """Make a content of octets with LF or CRLF line ends.

    Raises:
        ContentError: A NUL or a bare CR; the text names the line.
        TypeError: Not octets.
    """
    return MemoryContent(*prepare(_octets(data)))


def from_binary(data: bytes) -> MemoryContent:
    """Make a content of octets that stay as they are, whatever they hold.

    What is not made of lines goes as BINARYMIME (RFC 3030 §3) to hosts that offer it; for others its
    parts are encoded, where that can be.

    Raises:
        ContentError: The header section is not made of lines that end in CRLF.
        TypeError: Not octets.
    """
    return MemoryContent(*prepare_binary(_octets(data)))


def from_text(text: str) -> MemoryContent:
    """Make a content of text, encoded as UTF-8.

    Raises:
        ContentError: A NUL, a bare CR or a surrogate; the text names the place.
        TypeError: Not text.
    """
    if not isinstance(text, str):
        kind = type(text).__name__
        raise TypeError(f"found a {kind}; allowed is text; for octets there is from_octets")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise ContentError(f"surrogate in line {line}: allowed is text UTF-8 can encode") from None
    return from_octets(data)


def _octets(data: object) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):
        kind = type(data).__name__
        raise TypeError(f"found a {kind}; allowed are octets; for text there is from_text")
    return bytes(data)  # a copy of what can be changed, and no copy of what cannot


async def from_file(path: str | os.PathLike[str]) -> MemoryContent | FileContent:
    """Make a content of a file with LF or CRLF line ends; up to 256 KiB are held in memory.

    A larger file is read once here and again by each `FileContent.chunks`; it must stay as it is
    until then.  Cancellation takes effect after the piece that is being read and leaves nothing.

    Raises:
        ContentError: A NUL or a bare CR, not a regular file, or a file that changed while it was
            read; the text names the file, and the line where there is one.
        OSError: It cannot be opened or read.
    """
    return await trio.to_thread.run_sync(_load, Path(path))


def _load(path: Path) -> MemoryContent | FileContent:
    # Before it is opened: opening a FIFO waits for a writer, and the thread with it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ContentError(f"{path}: not a regular file; allowed is what can be read twice")
    with path.open("rb") as file:
        stamp = FileStamp.of(file)
        content: MemoryContent | FileContent
        try:
            if stamp.octets <= MAX_MEMORY_OCTETS:
                content = from_octets(file.read(MAX_MEMORY_OCTETS))
            else:
                content = FileContent(path, _scan_file(file), stamp)
        except ContentError as error:
            raise ContentError(f"{path}: {error}") from None
        if FileStamp.of(file) != stamp:
            raise ContentError(f"{path}: changed while it was read")
    return content


def _scan_file(file: BufferedReader) -> ContentFacts:
    normaliser, scanner = Normaliser(), Scanner()
    while piece := file.read(PIECE_OCTETS):
        # A large file takes seconds, and this thread is waited for.
        trio.from_thread.check_cancelled()
        scanner.feed(normaliser.feed(piece))
    scanner.feed(normaliser.finish())
    return scanner.facts()
