from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
import trio

import engine.content
from engine.content import (
    FileContent,
    MemoryContent,
    from_binary,
    from_file,
    from_octets,
    from_text,
)
from engine.smtp.content import scan
from engine.smtp.errors import ContentError

if TYPE_CHECKING:
    from engine.message import Content

KIB = 1024
HEADER = b"Subject: x\n\n"
#: Line ends fall on every place of a piece or a read, as 13 divides neither.
LARGE = HEADER + b"twelve chars\n" * 50_000
LARGE_CRLF = LARGE.replace(b"\n", b"\r\n")


async def read(content: Content) -> list[bytes]:
    return [chunk async for chunk in content.chunks()]


@pytest.fixture
def large_file(tmp_path):
    path = tmp_path / "large.eml"
    path.write_bytes(LARGE)
    return path


@pytest.fixture
def opened(monkeypatch):
    """Every file that a FileContent opens."""
    files, original = [], FileContent._open
    monkeypatch.setattr(
        FileContent, "_open", lambda self: files.append(original(self)) or files[-1]
    )
    return files


def test_octets_are_normalised_and_scanned():
    content = from_octets(b"a: b\n\n\xc3\xa9")
    assert content.octets == b"a: b\r\n\r\n\xc3\xa9\r\n"
    assert content.facts == scan(content.octets)


def test_binary_octets_stay_as_they_are():
    content = from_binary(b"a: b\r\n\r\n\0\n\xff")
    assert content.octets == b"a: b\r\n\r\n\0\n\xff"
    assert content.facts.is_binary


def test_clean_octets_are_not_copied():
    octets = b"a: b\r\n\r\nc\r\n"
    assert from_octets(octets).octets is octets


def test_bad_octets_are_refused_with_their_line():
    with pytest.raises(ContentError, match="bare CR in line 2"):
        from_octets(b"a\n\rb")


def test_text_is_encoded_as_utf8():
    assert from_text("é\n").octets == b"\xc3\xa9\r\n"


def test_text_that_utf8_cannot_encode_is_refused_with_its_line():
    with pytest.raises(ContentError, match="surrogate in line 2"):
        from_text("a\nb\ud800")


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 64 * KIB + 1, 200 * KIB])
async def test_memory_content_comes_in_pieces_of_at_most_64_kib(size):
    content = MemoryContent(b"x" * size, scan(b""))
    pieces = await read(content)
    assert b"".join(pieces) == content.octets
    assert all(0 < len(piece) <= 64 * KIB for piece in pieces)
    assert len(pieces) == -(-size // (64 * KIB))


async def test_a_file_up_to_256_kib_is_held_in_memory(tmp_path):
    path = tmp_path / "small.eml"
    path.write_bytes(b"x\n" * (128 * KIB))
    content = await from_file(str(path))
    assert content == from_octets(b"x\n" * (128 * KIB))


async def test_an_empty_file_is_an_empty_content(tmp_path):
    path = tmp_path / "empty.eml"
    path.touch()
    assert (await from_file(path)).octets == b""


async def test_a_larger_file_stays_in_its_file(large_file, opened):
    content = await from_file(large_file)
    assert isinstance(content, FileContent)
    assert content.octets is None
    assert content.facts == scan(LARGE_CRLF)
    for _ in range(2):
        pieces = await read(content)
        assert b"".join(pieces) == LARGE_CRLF
        assert max(map(len, pieces)) == 64 * KIB
    assert len(opened) == 2
    assert all(file.closed for file in opened)


async def test_a_cr_that_ends_a_read_is_kept_with_its_lf(tmp_path):
    octets = b"x" * (256 * KIB - 1) + b"\r\n.y"
    path = tmp_path / "cut.eml"
    path.write_bytes(octets)
    content = await from_file(path)
    assert b"".join(await read(content)) == octets + b"\r\n"
    assert content.facts == scan(octets + b"\r\n")


@pytest.mark.parametrize("filler", [b"", b"x\n" * (200 * KIB)], ids=["small", "large"])
async def test_bad_octets_in_a_file_name_file_and_line(tmp_path, filler):
    path = tmp_path / "bad.eml"
    path.write_bytes(filler + b"a\0")
    line = filler.count(b"\n") + 1
    with pytest.raises(ContentError, match=rf"bad\.eml: NUL in line {line}:"):
        await from_file(path)


async def test_a_file_that_cannot_be_opened_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        await from_file(tmp_path / "missing")


async def test_what_is_not_a_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(ContentError, match="not a regular file"):
            await from_file(tmp_path / name)


def grow(path):
    with path.open("ab") as file:
        file.write(b"more\n")


def touch(path):
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [grow, touch])
async def test_a_file_changed_since_it_was_made_is_not_read(large_file, opened, change):
    content = await from_file(large_file)
    change(large_file)
    with pytest.raises(ContentError, match=r"large\.eml: changed since"):
        await read(content)
    assert opened[0].closed


async def test_a_file_changed_while_it_is_sent_never_ends_well(large_file, opened):
    content = await from_file(large_file)
    received = b""
    with pytest.raises(ContentError, match="changed since"):
        async for chunk in content.chunks():
            received += chunk
            touch(large_file)
    assert LARGE_CRLF.startswith(received)
    assert len(received) < len(LARGE_CRLF)
    assert opened[0].closed


@pytest.mark.parametrize("keep", [10, 10_000], ids=["small", "large"])
async def test_a_file_changed_while_it_is_scanned_is_refused(tmp_path, monkeypatch, keep):
    path = tmp_path / "busy.eml"
    path.write_bytes(b"a line\n" * keep * 10)
    monkeypatch.setattr(engine.content, "from_octets", lambda _: grow(path))
    monkeypatch.setattr(engine.content, "_scan_file", lambda _: grow(path))
    with pytest.raises(ContentError, match=r"busy\.eml: changed while it was read"):
        await from_file(path)


async def test_a_vanished_file_is_an_oserror(large_file):
    content = await from_file(large_file)
    large_file.unlink()
    with pytest.raises(FileNotFoundError):
        await read(content)


async def test_a_reader_that_leaves_early_leaves_no_open_file(large_file, opened):
    content = await from_file(large_file)
    async with aclosing(content.chunks()) as chunks:
        async for _ in chunks:
            break
    assert [file.closed for file in opened] == [True]


async def test_a_cancelled_reader_leaves_no_open_file(large_file, opened):
    content = await from_file(large_file)
    with trio.CancelScope() as scope:
        async with aclosing(content.chunks()) as chunks:
            async for _ in chunks:
                scope.cancel()
    assert scope.cancelled_caught
    assert [file.closed for file in opened] == [True]


async def test_a_scan_is_cancelled_between_two_pieces(large_file, monkeypatch):
    scanned = []

    class CancellingScanner(engine.content.Scanner):
        def feed(self, chunk):
            scanned.append(chunk)
            trio.from_thread.run_sync(scope.cancel)

    monkeypatch.setattr(engine.content, "Scanner", CancellingScanner)
    with trio.CancelScope() as scope:
        await from_file(large_file)
    assert scope.cancelled_caught
    assert len(scanned) == 1


@pytest.mark.parametrize(
    ("make", "given"), [(from_text, b"x"), (from_octets, "x"), (from_binary, "x")]
)
def test_text_and_octets_are_not_mixed_up(make, given):
    with pytest.raises(TypeError, match=r"allowed (is text|are octets); for .* there is from_"):
        make(given)


@pytest.mark.parametrize("make", [bytearray, memoryview])
@pytest.mark.parametrize("read", [from_octets, from_binary])
def test_octets_that_can_be_changed_are_copied(make, read):
    given = bytearray(b"Subject: x\r\n\r\nhello\r\n")
    content = read(make(given))
    given[0:7] = b"XXXXXXX"
    assert content.octets == b"Subject: x\r\n\r\nhello\r\n"
    assert type(content.octets) is bytes
