from __future__ import annotations

import json
import logging
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from engine.content import from_text
from engine.engine import Engine
from engine.message import Message, Recipient
from engine.settings import Settings
from engine.testing.sink import open_sink
from engine.worker.exits import Exit, Incidents
from engine.worker.run import Manner, run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from engine.worker.intake import Say
    from tests.worker.conftest import Files, Send

CONTENT = from_text("Subject: hello\n\nworld\n")


class Tap:
    """A source that gives messages as a test lets them through."""

    is_exact = False

    def __init__(self, capacity: float = 0) -> None:
        self._in, self._out = trio.open_memory_channel[str](capacity)
        self._count = 0

    async def let(self, *recipients: str) -> None:
        for recipient in recipients:
            await self._in.send(recipient)

    def end(self) -> None:
        self._in.close()

    def expected(self, submitted: int) -> int | None:
        return None

    async def messages(self) -> AsyncGenerator[Message, None]:
        async for recipient in self._out:
            self._count += 1
            yield Message(str(self._count), None, (Recipient.parse(recipient),), CONTENT)


class Runner:
    """A run in the background, and a look at its files while it goes on."""

    def __init__(self, files: Files, port: int, tap: Tap, **settings: object) -> None:
        self.files = files
        self.tap = tap
        self.status: Exit | None = None
        routes = [("*", [f"127.0.0.1:{port}"])]
        self.engine = Engine(Settings(**settings), routes=routes, grace=0.05)

    async def go(self, manner: Manner) -> None:
        def open_source(say: Say, incidents: Incidents) -> Tap:
            return self.tap

        with self.files.open(manner) as full:
            self.status = await run(self.engine, open_source, full)

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.files.out.read_text().splitlines()]

    @property
    def lines(self) -> list[str]:
        return self.files.err.read_text().splitlines()

    async def wait_for_records(self, count: int) -> None:
        await until(lambda: len(self.records) >= count)

    async def wait_for_lines(self, count: int) -> None:
        await until(lambda: len(self.lines) >= count)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait for what shows in a file or a number only, so that no event can tell of it."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


JSON = Manner(as_json=True, log="off")


# ---- results --------------------------------------------------------------------------------------


async def test_an_outcome_is_printed_as_soon_as_it_is_known(files: Files):
    async with open_sink() as sink, trio.open_nursery() as nursery:
        runner = Runner(files, sink.port, Tap())
        nursery.start_soon(runner.go, JSON)
        for count in range(1, 4):
            await runner.tap.let(f"b+{count}@y.test")
            await runner.wait_for_records(count)
        runner.tap.end()
    assert runner.status is Exit.DELIVERED
    assert [record["message"] for record in runner.records] == ["1", "2", "3"]


async def test_thirty_recipients_end_in_a_table(send: Send, tmp_path: Path):
    (tmp_path / "m").write_text("Subject: a\n\nb\n")
    names = [f"r+{n}@y.test" for n in range(27)] + [f"reject+{n}@y.test" for n in range(3)]
    async with open_sink() as sink:
        result = await send(
            *names, sender="", message=tmp_path / "m", port=sink.port, as_json=False
        )
    assert result.status == 69
    lines = result.out.splitlines()
    assert lines[:3] == [" delivered  27  90.0 %", " failed      3  10.0 %", ""]
    assert lines[5] == "     3   failed   127.0.0.1   550 5.1.1 no such user"
    assert lines[-1].startswith(" 30 recipients in ")
    assert lines[-1].endswith("/s · 1 connection")
    assert max(map(len, lines)) <= 80
    assert result.err == ""


async def test_a_reader_that_went_away_ends_the_intake_quietly(files: Files):
    reader, writer = os.pipe()
    os.close(reader)
    async with open_sink() as sink, trio.open_nursery() as nursery:
        runner = Runner(files, sink.port, Tap())
        source = runner.tap

        async def go() -> None:
            manner = Manner(as_json=True, log="off", stdout=writer, stderr=full.stderr)
            runner.status = await run(runner.engine, lambda say, incidents: source, manner)

        with files.open(JSON) as full:
            async with trio.open_nursery() as inner:
                inner.start_soon(go)
                # The second would wait for ever, were the intake not ended by the first.
                await source.let("b@y.test")
                await until(lambda: runner.status is not None)
        nursery.cancel_scope.cancel()
    os.close(writer)
    assert runner.status is Exit.DEFERRED
    assert runner.lines == []


async def test_a_full_disk_is_said(files: Files):
    async with open_sink() as sink, trio.open_nursery() as nursery:
        runner = Runner(files, sink.port, Tap(1))
        full = os.open("/dev/full", os.O_WRONLY)
        await runner.tap.let("b@y.test")
        runner.tap.end()
        with files.open(JSON) as manner:
            broken = Manner(as_json=True, log="off", stdout=full, stderr=manner.stderr)
            status = await run(runner.engine, lambda say, incidents: runner.tap, broken)
        nursery.cancel_scope.cancel()
    os.close(full)
    assert status is Exit.DEFERRED
    assert runner.lines == ["standard output: No space left on device"]


# ---- what else is said ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "start"), [(None, "20"), ("text", "20"), ("json", '{"time": "20'), ("off", None)]
)
async def test_log_lines_go_to_standard_error(
    send: Send, tmp_path: Path, log: str | None, start: str | None
):
    (tmp_path / "m").write_text("Subject: a\n\nb\n")
    async with open_sink() as sink:
        result = await send("b@y.test", sender="", message=tmp_path / "m", port=sink.port, log=log)
    if start is None:
        assert result.err == ""
    else:
        (line,) = result.err.splitlines()
        assert line.startswith(start)
        assert "b@y.test" in line
    assert len(result.records) == 1


async def test_warnings_of_the_engine_go_to_standard_error(files: Files):
    async with open_sink() as sink, trio.open_nursery() as nursery:
        runner = Runner(files, sink.port, Tap())
        nursery.start_soon(runner.go, JSON)
        await runner.tap.let("b@y.test")
        await runner.wait_for_records(1)
        logging.getLogger("engine.net").warning("a warning of %s", "mine")
        logging.getLogger("engine.net").info("not worth a line")
        runner.tap.end()
    assert runner.lines == ["WARNING engine.net: a warning of mine"]
    before = len(runner.lines)
    logging.getLogger("engine.net").warning("nobody listens any more")
    assert len(runner.lines) == before


async def test_a_long_run_without_a_terminal_says_how_it_goes(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.worker.run.LIVE_SECONDS", 0.01)
    monkeypatch.setattr("engine.worker.screen.PlainScreen.__init__.__defaults__", (0.05,))
    async with open_sink() as sink, trio.open_nursery() as nursery:
        runner = Runner(files, sink.port, Tap())
        nursery.start_soon(runner.go, Manner(log="off"))
        await runner.tap.let("b@y.test")
        await runner.wait_for_lines(2)
        runner.tap.end()
    assert runner.lines[-1].startswith("1 recipients settled; 1 delivered; ")


async def test_a_terminal_has_a_live_display_and_its_cursor_back(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    seen = b""

    async def watch() -> None:
        nonlocal seen
        while True:
            await trio.lowlevel.wait_readable(ours)
            seen += os.read(ours, 65536)

    async with open_sink() as sink, trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        runner = Runner(files, sink.port, Tap(2))
        await runner.tap.let("slow-0.5@y.test", "reject@y.test")
        runner.tap.end()
        with files.open(Manner()) as manner:
            live = Manner(stdout=manner.stdout, stderr=theirs)
            status = await run(runner.engine, lambda say, incidents: runner.tap, live)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    os.close(ours)
    os.close(theirs)

    assert status is Exit.FAILED
    assert b"1 connection" in seen
    assert seen.index(b"\x1b[?25l") < seen.rindex(b"\x1b[?25h")
    # No log lines beside the display, and the table is on standard output alone.
    assert b"msg=" not in seen
    assert b"Recipient" not in seen
    assert "reject@y.test" in files.out.read_text()


# ---- interrupts -----------------------------------------------------------------------------------


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """A signal that comes too early or too late must not end the tests."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_finishes_what_is_in_flight(files: Files, number: signal.Signals):
    with ignored(number):
        async with open_sink() as sink, trio.open_nursery() as nursery:
            runner = Runner(files, sink.port, Tap())
            nursery.start_soon(runner.go, JSON)
            await runner.tap.let("b@y.test", "slow-0.2@y.test")
            await runner.wait_for_records(1)
            os.kill(os.getpid(), number)
    assert runner.status is Exit.INTERRUPTED
    assert [record["status"] for record in runner.records] == ["delivered", "delivered"]
    assert runner.lines == [
        ("interrupted: finishing 1 in flight, taking no more; again: stop at once")
    ]


async def test_a_second_interrupt_stops_at_once(files: Files):
    with ignored(signal.SIGINT):
        async with open_sink() as sink, trio.open_nursery() as nursery:
            runner = Runner(files, sink.port, Tap(), chunking=False)
            nursery.start_soon(runner.go, JSON)
            await runner.tap.let("b@y.test")
            await runner.wait_for_records(1)
            await runner.tap.let("stall@y.test")
            await until(lambda: runner.engine.statistics().transactions == 2)
            os.kill(os.getpid(), signal.SIGINT)
            await runner.wait_for_lines(1)
            os.kill(os.getpid(), signal.SIGINT)
    assert runner.status is Exit.INTERRUPTED
    assert [(record["recipient"], record["status"]) for record in runner.records] == [
        ("b@y.test", "delivered"),
        ("stall@y.test", "deferred"),
    ]
    assert runner.records[1]["cause"] == "cancelled"
    assert runner.lines[-1] == "interrupted again: stopping at once"


async def test_everything_taken_before_an_interrupt_has_exactly_one_outcome(files: Files):
    with ignored(signal.SIGINT):
        async with open_sink() as sink, trio.open_nursery() as nursery:
            runner = Runner(files, sink.port, Tap(10_000), max_connections=2)
            await runner.tap.let(*(f"b+{n}@y.test" for n in range(5000)))
            nursery.start_soon(runner.go, JSON)
            await runner.wait_for_records(50)
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: runner.status is not None, 20)
            accepted = sink.statistics().messages
    numbers = sorted(int(str(record["message"])) for record in runner.records)
    assert numbers == list(range(1, len(numbers) + 1))
    assert 50 <= len(numbers) == accepted < 5000
