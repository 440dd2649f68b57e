from __future__ import annotations

import errno
import os
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
import trio

from engine.worker import output as output_module
from engine.worker.output import MAX_PENDING_OCTETS, open_output

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[bytes]]:
    with closing((tmp_path / "out").open("w+b")) as opened:
        yield opened


def written(file: IO[bytes]) -> bytes:
    return Path(file.name).read_bytes()


async def test_what_is_put_is_written_in_order(file: IO[bytes]):
    async with open_output(file.fileno()) as output:
        for number in range(1000):
            output.put(f"{number}\n")
        output.put("")
    assert written(file) == b"".join(b"%d\n" % number for number in range(1000))


async def test_text_that_utf8_cannot_encode_is_escaped(file: IO[bytes]):
    async with open_output(file.fileno()) as output:
        output.put("\ud800ü")
    assert written(file) == b"\\ud800\xc3\xbc"


async def test_flush_waits_until_all_is_there(file: IO[bytes]):
    async with open_output(file.fileno()) as output:
        output.put("hello")
        await output.flush()
        assert written(file) == b"hello"


async def test_who_produces_waits_for_a_slow_reader(pipe: tuple[int, int]):
    reader, writer = pipe
    async with open_output(writer) as output:
        output.put("x" * (MAX_PENDING_OCTETS + 100_000))
        with trio.move_on_after(0.05) as scope:
            await output.room()
        assert scope.cancelled_caught
        left = MAX_PENDING_OCTETS + 100_000
        while left:
            left -= len(await trio.to_thread.run_sync(os.read, reader, 1 << 20))
        await output.room()


async def test_a_reader_that_went_away_breaks_the_output(pipe: tuple[int, int]):
    reader, writer = pipe
    os.close(reader)
    async with open_output(writer) as output:
        output.put("lost" * MAX_PENDING_OCTETS)
        await output.broken.wait()
        assert isinstance(output.error, BrokenPipeError)
        output.put("thrown away" * MAX_PENDING_OCTETS)
        await output.room()
        await output.flush()


async def test_a_full_disk_breaks_the_output():
    full = os.open("/dev/full", os.O_WRONLY)
    async with open_output(full) as output:
        output.put("lost")
        await output.broken.wait()
    os.close(full)
    assert output.error is not None
    assert output.error.errno == errno.ENOSPC


async def test_a_descriptor_that_is_not_blocking_is_waited_for(pipe: tuple[int, int]):
    reader, writer = pipe
    os.set_blocking(writer, False)
    size = 1 << 20
    async with open_output(writer) as output:
        output.put("x" * size)
        while size:
            size -= len(await trio.to_thread.run_sync(os.read, reader, 1 << 16))


async def test_a_run_that_fails_still_writes_its_last_words(file: IO[bytes]):
    with pytest.raises(ValueError, match="bug"):
        async with open_output(file.fileno()) as output:
            output.put("why")
            raise ValueError("bug")
    assert written(file) == b"why"


async def test_a_run_that_fails_does_not_wait_for_a_reader_who_stopped(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(output_module, "_LAST_WORDS", 0.02)
    with pytest.raises(ValueError, match="bug"):
        async with open_output(pipe[1]) as output:
            output.put("x" * 1_000_000)
            raise ValueError("bug")
    # The thread that was left behind ends with its pipe.
    os.set_blocking(pipe[0], False)
    os.close(pipe[0])
