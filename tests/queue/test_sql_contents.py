from __future__ import annotations

import json

import pytest

from engine.queue.database import open_in_memory
from engine.queue.errors import StoreDamagedError
from engine.queue.sql_contents import (
    PIECE_OCTETS,
    PIECES_AT_ONCE,
    StoredContent,
    checksum,
    content_of,
    find_damaged,
    measure,
    read_pieces,
)
from engine.smtp.content import ContentFacts
from tests.queue.test_sql_rows import envelope


def stored(octets, *, size=None, sha256=None):
    """Make a content that is read from these octets, as a store would."""

    async def read(message, upload, first):
        start = first * PIECE_OCTETS
        return octets[start : start + PIECE_OCTETS * PIECES_AT_ONCE]

    facts = ContentFacts(len(octets) if size is None else size, False, 70, False)
    return StoredContent(facts, 1, 1, sha256 or checksum(octets), read)


async def all_of(content):
    return [piece async for piece in content.chunks()]


@pytest.mark.parametrize(
    "size", [0, 1, PIECE_OCTETS, PIECE_OCTETS * PIECES_AT_ONCE, PIECE_OCTETS * 9 + 1]
)
async def test_a_stored_content_is_read_in_pieces(size):
    octets = bytes(n % 251 for n in range(1000)) * (size // 1000 + 1)
    octets = octets[:size]

    pieces = await all_of(stored(octets))

    assert b"".join(pieces) == octets
    assert all(0 < len(piece) <= PIECE_OCTETS for piece in pieces)
    assert stored(octets).octets is None


@pytest.mark.parametrize("how", [{"size": 99}, {"sha256": "00"}])
async def test_a_content_that_is_not_what_was_stored_is_never_completed(how):
    octets = b"x" * (PIECE_OCTETS * 2)
    got = b""

    with pytest.raises(StoreDamagedError, match="not what was stored"):
        async for piece in stored(octets, **how).chunks():
            got += piece

    assert len(got) == PIECE_OCTETS


async def test_a_small_content_that_is_damaged_gives_nothing():
    with pytest.raises(StoreDamagedError):
        await all_of(stored(b"hello", sha256="00"))


def test_a_content_is_in_memory_where_its_octets_are_known():
    async def read(message, upload, first):
        return b""

    assert content_of(envelope(), b"hello\r\n", read).octets == b"hello\r\n"
    assert content_of(envelope(), None, read).octets is None
    assert content_of(envelope(upload=3), None, read).upload == 3


def test_small_contents_can_be_read_in_pieces_too():
    db = open_in_memory()
    db.insert_many("insert_contents", [(1, b"hello\r\n"), (2, b"")])

    assert read_pieces(db, 1, None, 0) == b"hello\r\n"
    assert read_pieces(db, 1, None, PIECES_AT_ONCE) == b""
    assert read_pieces(db, 2, None, 0) == b""
    assert read_pieces(db, 9, None, 0) == b""
    assert measure(db, 1, None) == (7, checksum(b"hello\r\n"))


def test_messages_without_their_content_are_damaged():
    db = open_in_memory()
    row = [
        "x",
        "",
        None,
        None,
        0,
        0,
        "",
        "",
        0,
        0,
        None,
        0,
        0,
        0,
        0,
        checksum(b""),
        None,
        None,
        0,
        0,
        "",
    ]
    rows = [row, ["y", *row[1:]], ["large", *row[1:16], 7, None, 0, 0, ""]]
    db.run("insert_messages", rows=json.dumps(rows))
    db.insert_many("insert_contents", [(1, b"")])

    assert find_damaged(db, [1, 2, 3, 99]) == [2]
