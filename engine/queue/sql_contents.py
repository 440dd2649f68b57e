"""Contents in a SQL store: small ones come whole, large ones in pieces while they are sent.

Called in the thread of the store, but for `StoredContent`, which whoever delivers reads.  Not here:
how contents get in (`engine.queue.sql_submit`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import apsw

from engine.content import MemoryContent
from engine.queue.errors import StoreDamagedError
from engine.queue.sql_rows import Envelope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from engine.message import Content
    from engine.queue.database import Database
    from engine.smtp.content import ContentFacts

#: Contents up to this size are stored whole, and come with a lease; what is larger is read in
#: pieces while it is sent, so that a lease of many large messages does not fill the memory.
INLINE_OCTETS: Final = 64 * 1024
#: Of a piece; what `Content.chunks` yields at most.
PIECE_OCTETS: Final = 64 * 1024
#: Above, hashing lets go of Python's interpreter lock: beside a busy Trio thread it takes longer to
#: get it back than to hash.
_HASH_OCTETS: Final = 2047
#: Pieces that are read or written at a time.
PIECES_AT_ONCE: Final = 4


def checksum(octets: bytes) -> str:
    """Return what tells damaged octets from those that were written."""
    digest = hashlib.sha256()
    for start in range(0, len(octets), _HASH_OCTETS):
        digest.update(octets[start : start + _HASH_OCTETS])
    return digest.hexdigest()


class ReadPieces(Protocol):
    """Reads pieces of the content of a message."""

    async def __call__(self, message: int, upload: int | None, first: int) -> bytes:
        """Return up to `PIECES_AT_ONCE` pieces from one on; nothing behind the last."""
        ...


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A content that is read from the store each time it is sent.

    Attributes:
        facts: What is known about it.
        message: The number of its message.
        upload: Where its pieces are, `None` where it is stored whole.
        sha256: What its octets must add up to.
    """

    facts: ContentFacts
    message: int
    upload: int | None
    sha256: str
    _read: ReadPieces = field(repr=False, compare=False)

    @classmethod
    def of(cls, envelope: Envelope, read: ReadPieces) -> StoredContent:
        """Return the content of a message."""
        return cls(envelope.facts, envelope.number, envelope.upload, envelope.sha256, read)

    @property
    def octets(self) -> None:
        """`None`: read `chunks`."""
        return

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the content in pieces of at most 64 KiB.

        The last of them is held back until all are known to be what was written: a content that
        is damaged can be begun, but it cannot be completed.

        Raises:
            StoreDamagedError: They are not.
            StoreError: They cannot be read.
        """
        digest, piece, octets = hashlib.sha256(), 0, 0
        held = b""
        while found := await self._read(self.message, self.upload, piece):
            digest.update(found)
            octets += len(found)
            piece += PIECES_AT_ONCE
            for start in range(0, len(found), PIECE_OCTETS):
                if held:
                    yield held
                held = found[start : start + PIECE_OCTETS]
        if octets != self.facts.octets or digest.hexdigest() != self.sha256:
            raise StoreDamagedError(f"content of message {self.message}: it is not what was stored")
        if held:
            yield held


def content_of(envelope: Envelope, octets: bytes | None, read: ReadPieces) -> Content:
    """Return the content of a message: in memory where its octets are known, else in the store."""
    if octets is None:
        return StoredContent.of(envelope, read)
    return MemoryContent(octets, envelope.facts)


# ---- in the thread of the store -----------------------------------------------------------------


def read_envelopes(db: Database, messages: Sequence[int]) -> dict[int, Envelope]:
    """Return the rows of messages by number."""
    found = db.rows("messages_of", messages=json.dumps(messages))
    return {row[0]: Envelope._make(row) for row in found}


def read_contents(db: Database, envelopes: Mapping[int, Envelope]) -> dict[int, bytes]:
    """Return the small contents of messages by number; those that are damaged are left out.

    Raises:
        apsw.CorruptError: One of them, or more, cannot be read at all.
    """
    numbers = [each.number for each in envelopes.values() if each.upload is None]
    if not numbers:
        return {}
    joined, index = db.row("contents_of", messages=json.dumps(numbers)) or (None, "[]")
    contents: dict[int, bytes] = {}
    start = 0
    for number, length in json.loads(index):
        octets = (joined or b"")[start : start + length]
        start += length
        if checksum(octets) == envelopes[number].sha256:
            contents[number] = octets
    return contents


def read_what_can_be_read(db: Database, envelopes: Mapping[int, Envelope]) -> dict[int, bytes]:
    """Do as `read_contents`, and leave out those that cannot be read as well.

    Only while nothing is written: a transaction that met a damaged page cannot be committed.
    """
    try:
        return read_contents(db, envelopes)
    except apsw.CorruptError:
        # It spoils the statement; one at a time it spoils its own message.
        contents: dict[int, bytes] = {}
        for number, envelope in envelopes.items():
            try:
                contents |= read_contents(db, {number: envelope})
            except apsw.CorruptError:
                continue
        return contents


def find_damaged(db: Database, messages: Sequence[int]) -> list[int]:
    """Return those of the messages whose small content cannot be used."""
    envelopes = read_envelopes(db, messages)
    contents = read_what_can_be_read(db, envelopes)
    return [
        number
        for number, envelope in envelopes.items()
        if envelope.upload is None and number not in contents
    ]


def read_pieces(db: Database, message: int, upload: int | None, first: int) -> bytes:
    """Return some pieces of a content, from one on; nothing behind the last."""
    if upload is not None:
        row = db.row("pieces_of", upload=upload, first=first, end=first + PIECES_AT_ONCE)
    elif first == 0:
        row = db.row("contents_of", messages=json.dumps([message]))
    else:
        row = None
    return (row[0] or b"") if row else b""


def measure(db: Database, message: int, upload: int | None) -> tuple[int, str]:
    """Return how many octets a content has, and their checksum."""
    digest, octets, piece = hashlib.sha256(), 0, 0
    while found := read_pieces(db, message, upload, piece):
        digest.update(found)
        octets += len(found)
        piece += PIECES_AT_ONCE
    return octets, digest.hexdigest()
