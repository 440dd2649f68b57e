"""Where the messages of a run come from: the command line, or a batch file read as a stream.

Reading happens in threads, a piece at a time and only when the engine has room, so that neither a
slow pipe nor a file of any length holds anything up.  What is wrong with the input is said on
standard error and noted for the exit status; the rest is sent.
Not here: what a batch line may be (`engine.worker.batch`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

import trio

from engine.content import from_file, from_octets
from engine.message import Message, Recipient
from engine.showing import show
from engine.smtp.errors import ContentError
from engine.worker.batch import TOO_LONG, LineSplitter, read_entry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from engine.message import Content
    from engine.smtp.address import Mailbox
    from engine.worker.batch import Entry
    from engine.worker.exits import Incidents

#: Says a line to a person, on standard error.
Say: TypeAlias = Callable[[str], None]

_T = TypeVar("_T")

STDIN: Final = "-"
_STDIN_DESCRIPTOR: Final = 0
#: The read-ahead: large enough that a visit to a thread costs little for each line.
_PIECE_OCTETS: Final = 128 * 1024
#: A longer line is read in a thread: its JSON alone takes longer than others should wait.
_LONG_LINE_OCTETS: Final = 256 * 1024
_BOM: Final = b"\xef\xbb\xbf"


class Source(Protocol):
    """Gives the messages of a run, once."""

    def messages(self) -> AsyncGenerator[Message, None]:
        """Yield messages, each with an id; read it within `contextlib.aclosing`."""
        ...

    def expected(self, submitted: int) -> int | None:
        """Guess how many recipients there will be in all; `None` where nobody knows.

        Args:
            submitted: How many there were so far.
        """
        ...

    @property
    def is_exact(self) -> bool:
        """Whether `expected` is no guess."""
        ...


class CommandLine:
    """One message, whose envelope is on the command line."""

    def __init__(
        self, sender: str, recipients: Sequence[str], file: str, say: Say, incidents: Incidents
    ) -> None:
        """Note what was given; nothing is looked at before `messages`.

        Args:
            sender: The reverse-path.
            recipients: Forward-paths.
            file: The content's file, or `-`.
            say: Told what is wrong.
            incidents: Notes what was wrong.
        """
        self._sender = sender
        self._recipients = recipients
        self._file = file
        self._say = say
        self._incidents = incidents
        self.is_exact = True

    def expected(self, submitted: int) -> int | None:
        """Return the number of recipients."""
        return submitted or len(self._recipients)

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Yield the message, if sender, content and one recipient at least can be used."""
        sender = self._parse(f"--sender {_plain(self._sender)}", self._sender, _read_sender)
        parsed = [
            self._parse(f"RECIPIENT {_plain(text)}", text, Recipient.parse)
            for text in self._recipients
        ]
        recipients = tuple(recipient for recipient in parsed if recipient is not None)
        if sender is not None and recipients:
            content = await self._content()
            if content is not None:
                yield Message("1", sender[0], recipients, content)

    def _parse(self, place: str, text: str, read: Callable[[str], _T]) -> _T | None:
        try:
            return read(text)
        except ValueError as error:
            self._incidents.has_bad_data = True
            # The address is in the place already.
            self._say(f"{place}: {str(error).removeprefix(f'address {text!r}: ')}")
            return None

    async def _content(self) -> Content | None:
        name = _name(self._file)
        if self._file == STDIN and os.isatty(_STDIN_DESCRIPTOR):
            self._say(
                "reading the message from the terminal; Ctrl-D at the start of a line ends it"
            )
        try:
            return await _read_content(self._file)
        except ContentError as error:
            self._incidents.has_bad_data = True
            self._say(f"{name}: {str(error).removeprefix(f'{self._file}: ')}")
        except OSError as error:
            self._incidents.has_unreadable_file = True
            self._say(f"{name}: {error.strerror}")
        return None


@dataclass(frozen=True, slots=True)
class Item:
    """A message of a batch.

    Attributes:
        message: It, with its id, or its position where it has none.
        entry: What its line says.
        line: The number of its line, from 1.
    """

    message: Message
    entry: Entry
    line: int


class Batch:
    """The messages of a JSON Lines file, or of standard input, read as a stream."""

    def __init__(
        self, file: str, say: Say, incidents: Incidents, *, is_for_queue: bool = False
    ) -> None:
        """Note what was given; nothing is opened before `messages`.

        Args:
            file: The file, or `-`.  Paths in it are relative to where it is.
            say: Told what is wrong, as `FILE line N: ...`.
            incidents: Notes what was wrong.
            is_for_queue: Whether lines may say how their message is queued.
        """
        self._is_for_queue = is_for_queue
        self._file = file
        self._folder = Path() if file == STDIN else Path(file).parent
        self._say = say
        self._incidents = incidents
        self._position = 0
        self._octets: int | None = None  # of the whole file; `None` for what is no regular file
        self._octets_done = 0
        self.is_exact = False

    def expected(self, submitted: int) -> int | None:
        """Guess from how much of the file was read; `None` for a pipe that is still open."""
        if self.is_exact:
            return submitted
        if not self._octets or not self._octets_done:
            return None
        return max(submitted, round(submitted * self._octets / self._octets_done))

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Yield the messages of the lines that can be used.

        The default id is the line's position, blank lines not counted.  Closed early, what was
        read ahead is forgotten.
        """
        async with aclosing(self.items()) as items:
            async for item in items:
                yield item.message

    async def items(self) -> AsyncGenerator[Item, None]:
        """Yield the messages as `messages`, with what else their lines say."""
        try:
            async with aclosing(self._lines()) as lines:
                async for number, line in lines:
                    item = await self._item(number, line)
                    if item is not None:
                        yield item
        except OSError as error:
            self._incidents.has_unreadable_file = True
            self._say(f"{_name(self._file)}: {error.strerror}")
        finally:
            self.is_exact = True

    async def _lines(self) -> AsyncGenerator[tuple[int, bytes | None], None]:
        splitter = LineSplitter()
        descriptor = await _open(self._file)
        try:
            self._octets = _regular_size(descriptor)
            while octets := await _read(descriptor):
                for number, line in splitter.feed(octets):
                    self._octets_done += len(line or b"") + 1
                    yield number, line
            for last in splitter.finish():
                yield last
        finally:
            _close(descriptor)

    async def _item(self, number: int, line: bytes | None) -> Item | None:
        if line is None:
            self._position += 1
            self.refuse(number, TOO_LONG)
            return None
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.strip():
            return None
        self._position += 1
        position = self._position
        if len(line) <= _LONG_LINE_OCTETS:
            entry, problems = self._read(line)
        else:
            entry, problems = await trio.to_thread.run_sync(self._read, line)
        for problem in problems:
            self.refuse(number, problem)
        content = None if entry is None else await self._content(number, entry)
        if entry is None or content is None:
            return None
        message = Message(
            entry.id or str(position),
            entry.sender,
            entry.recipients,
            content,
            entry.envid,
            entry.ret,
            entry.require_tls,
            entry.smtputf8,
        )
        return Item(message, entry, number)

    def _read(self, line: bytes) -> tuple[Entry | None, tuple[str, ...]]:
        return read_entry(line, is_for_queue=self._is_for_queue)

    async def _content(self, number: int, entry: Entry) -> Content | None:
        if not isinstance(entry.content, Path):
            return entry.content
        path = self._folder / entry.content
        try:
            return await from_file(path)
        except ContentError as error:
            self.refuse(number, f"message: {error}")
        except OSError as error:
            self._incidents.has_unreadable_file = True
            self._say(f"{self._place(number)}: message: {_plain(str(path))}: {error.strerror}")
        return None

    def refuse(self, number: int, problem: str) -> None:
        """Say that something is wrong with a line, by its number, and note it."""
        self._incidents.has_bad_data = True
        self._say(f"{self._place(number)}: {problem}")

    def _place(self, number: int) -> str:
        return f"{_name(self._file)} line {number}"


# ---- reading ------------------------------------------------------------------------------------


async def _read_content(file: str) -> Content:
    """Read a content from a file, or to its end from a pipe or standard input."""
    if file != STDIN and await trio.to_thread.run_sync(_is_regular, file):
        return await from_file(file)
    descriptor = await _open(file)
    pieces = []
    try:
        while octets := await _read(descriptor):
            pieces.append(octets)
    finally:
        _close(descriptor)
    return await trio.to_thread.run_sync(from_octets, b"".join(pieces))


def _is_regular(file: str) -> bool:
    return stat.S_ISREG(Path(file).stat().st_mode)


def _regular_size(descriptor: int) -> int | None:
    found = os.fstat(descriptor)
    return found.st_size if stat.S_ISREG(found.st_mode) else None


# Opening a FIFO waits for its writer, and reading a pipe for what is written.  Cancelled, the thread
# is left behind with its system call and ends with the process.


async def _open(file: str) -> int:
    if file == STDIN:
        return _STDIN_DESCRIPTOR
    return await trio.to_thread.run_sync(os.open, file, os.O_RDONLY, abandon_on_cancel=True)


async def _read(descriptor: int) -> bytes:
    return await trio.to_thread.run_sync(os.read, descriptor, _PIECE_OCTETS, abandon_on_cancel=True)


def _close(descriptor: int) -> None:
    if descriptor != _STDIN_DESCRIPTOR:
        os.close(descriptor)


# ---- names --------------------------------------------------------------------------------------


def _read_sender(text: str) -> tuple[Mailbox | None]:
    # In a tuple, for the null path is none that is missing.
    return (Message.parse_sender(text),)


def _name(file: str) -> str:
    return "<stdin>" if file == STDIN else _plain(file)


def _plain(text: str) -> str:
    return text if text.isprintable() and text else show(text)
