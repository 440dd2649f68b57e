"""The command as a process: what only a process can show.  All else is in tests/worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trio

import engine
from engine import __main__ as main_module
from engine.testing.dns import serve_dns
from engine.testing.sink import open_sink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONTENT = "Subject: hello\n\nworld\n"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "engine", *arguments]


def line(*recipients: str) -> bytes:
    record = {"sender": "", "recipients": recipients, "content": CONTENT}
    return json.dumps(record).encode() + b"\n"


async def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        command(*arguments), stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
    )


# ---- starting -------------------------------------------------------------------------------------


async def test_help_imports_nothing_that_is_slow():
    code = (
        "import sys; sys.argv[1:] = ['--help']; import engine.__main__\n"
        "try: engine.__main__.main()\n"
        "finally: print(sorted({'trio', 'rich', 'pydantic', 'dns', 'idna'} & set(sys.modules)))"
    )
    found = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert b"Commands:" in found.stdout
    assert found.stdout.splitlines()[-1] == b"[]"


async def test_the_garbage_collector_does_not_look_at_every_few_messages():
    code = (
        "import gc, sys; sys.argv[1:] = ['--version']; import engine.__main__\n"
        "try: engine.__main__.main()\n"
        "finally: print(gc.get_threshold()[0])"
    )
    found = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert int(found.stdout.splitlines()[-1]) == 50_000


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["send", "--help"], 0),
        ([], 64),
        (["sned"], 64),
        (["send"], 64),
        (["explain"], 64),
    ],
)
def test_the_status_of_what_click_answers(
    arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["engine", *arguments])
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    assert ended.value.code == status
    out, err = capsys.readouterr()
    assert bool(out) == (status == 0)
    assert bool(err) == (status != 0)


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()])])],
)
def test_an_interrupt_before_anything_ran_is_quiet(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys
):
    def interrupt(**_: object) -> None:
        raise error

    monkeypatch.setattr(main_module.cli, "main", interrupt)
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_a_bug_is_not_taken_for_an_interrupt(monkeypatch: pytest.MonkeyPatch):
    group = BaseExceptionGroup("", [KeyboardInterrupt(), ValueError("bug")])

    def fail(**_: object) -> None:
        raise group

    monkeypatch.setattr(main_module.cli, "main", fail)
    with pytest.raises(BaseExceptionGroup) as caught:
        main_module.main()
    assert caught.value is group


# ---- the public names -----------------------------------------------------------------------------


def test_every_public_name_is_there():
    for name in engine.__all__:
        assert getattr(engine, name) is not None
    assert set(engine.__all__) <= set(dir(engine))
    assert engine.Engine.__module__ == "engine.engine"
    assert engine.errors.EngineError.__module__ == "engine.errors"
    assert engine.events.ConnectionOpened.__module__ == "engine.report.events"
    assert all(getattr(engine.errors, name) for name in engine.errors.__all__)


def test_the_public_names_are_those_that_type_checkers_see():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(engine))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modules = {name: home.rpartition(".")[0] for name, home in engine._MODULES.items()}
    assert seen == {**engine._HOMES, **modules}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = engine.nonsense


# ---- sending --------------------------------------------------------------------------------------


async def test_a_message_comes_from_standard_input():
    async with open_sink(keep=True) as sink:
        host = f"127.0.0.1:{sink.port}"
        arguments = ("send", "--sender", "a@x.test", "--host", host, "--json", "b@y.test")
        found = await run(*arguments, stdin=CONTENT.encode())
        (received,) = sink.messages
    assert found.returncode == 0
    assert json.loads(found.stdout)["status"] == "delivered"
    assert found.stderr.count(b"\n") == 1  # its log line
    assert received.content == CONTENT.replace("\n", "\r\n").encode()


async def test_a_malformed_message_on_standard_input_is_named():
    found = await run("send", "--sender", "", "b@y.test", stdin=b"a\rb")
    assert (found.returncode, found.stdout) == (65, b"No message was sent.\n")
    assert found.stderr == b"<stdin>: bare CR in line 1: lines end with CRLF or LF\n"


class Process:
    """A `send --batch -` whose input is written as the test goes on."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._seen = b""

    async def write(self, octets: bytes) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(octets)

    async def record(self) -> dict[str, object]:
        assert self.process.stdout is not None
        while b"\n" not in self._seen:
            octets = await self.process.stdout.receive_some()
            assert octets, "the process ended"
            self._seen += octets
        found, _, self._seen = self._seen.partition(b"\n")
        return json.loads(found)


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    async with open_sink() as sink:
        arguments = ("send", "--batch", "-", "--host", f"127.0.0.1:{sink.port}", "--json")
        opened = await trio.lowlevel.open_process(
            command(*arguments, "--log", "off"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            with trio.fail_after(20):
                yield Process(opened)
        finally:
            opened.kill()
            await opened.wait()


async def test_a_batch_is_a_stream_in_both_directions(process: Process):
    for number in range(1, 4):
        await process.write(line(f"b+{number}@y.test"))
        assert (await process.record())["message"] == str(number)
    await process.process.stdin.aclose()
    assert await process.process.wait() == 0


async def test_an_interrupt_while_input_is_awaited_ends_the_process(process: Process):
    await process.write(b"nonsense\n" + line("reject@y.test"))
    assert (await process.record())["status"] == "failed"
    process.process.send_signal(signal.SIGINT)
    assert await process.process.wait() == 130
    said = await process.process.stderr.receive_some()
    assert said.splitlines()[0].startswith(b"<stdin> line 1: found no JSON")
    assert b"Traceback" not in said


async def test_a_reader_that_went_away_ends_the_process_quietly(process: Process):
    await process.write(line("b+1@y.test"))
    await process.record()
    await process.process.stdout.aclose()
    await process.write(line("b+2@y.test"))
    # Standard input stays open: the end of the readers alone must end it.
    assert await process.process.wait() == 75
    assert await process.process.stderr.receive_some() == b""


async def test_an_address_is_explained_with_real_lookups(tmp_path: Path, nursery: trio.Nursery):
    zone = {"x.test": {"MX": ["10 mx.x.test"]}, "mx.x.test": {"A": ["192.0.2.1"]}}
    server = await nursery.start(serve_dns, zone)
    config = tmp_path / "engine.toml"
    config.write_text(f'[dns]\nservers = ["{server}"]\n')
    found = await run("explain", "--config", str(config), "b@x.test", "nowhere.test")
    assert (found.returncode, found.stderr) == (69, b"")
    lines = found.stdout.decode().splitlines()
    assert lines[:2] == ["b@x.test  tried", " Mail        would be tried at 1 address"]
    assert ["1", "10", "mx.x.test", "192.0.2.1:25"] in map(str.split, lines)


async def test_the_demonstration_runs():
    found = await run("demo", "--messages", "300", "--connections", "5")
    assert found.returncode == 0
    assert b"300 recipients in " in found.stdout
    assert found.stderr == b""


async def test_a_batch_can_be_a_fifo(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with open_sink() as sink, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, fifo.write_bytes, line("b@y.test") * 50)
        host = f"127.0.0.1:{sink.port}"
        found = await run("send", "--batch", str(fifo), "--host", host, "--json", "--log", "off")
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.count(b'"delivered"') == 50


def test_the_version_is_there_at_once():
    started = time.perf_counter()
    found = subprocess.run(command("--version"), capture_output=True, check=True)
    assert found.stdout.startswith(b"delivery-engine ")
    # Loose: the promise is a quarter of a second on a machine that does nothing else.
    assert time.perf_counter() - started < 2
