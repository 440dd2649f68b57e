from __future__ import annotations

import json
import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from engine.engine import Engine
from engine.outcome import Cause
from engine.report.events import ConnectionFailed, HostDeferred, MessageSubmitted
from engine.smtp.stages import Stage
from engine.worker import process_log
from engine.worker.output import open_output
from engine.worker.process_log import ProcessLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_log = logging.getLogger("engine.queue")


@asynccontextmanager
async def a_log(path, form="text") -> AsyncIterator[ProcessLog]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        async with open_output(descriptor) as output:
            log = ProcessLog(output, form)
            with log.hear_modules():
                yield log
    finally:
        os.close(descriptor)


def say_things():
    _log.warning("nothing can be leased: %s", "the disk\nis full\x1b[2J")
    _log.debug("not worth a line")
    _log.info("recovered")
    try:
        raise ValueError("told you\nso")
    except ValueError:
        _log.exception("it failed")


async def test_modules_have_a_line_each_as_text(tmp_path):
    async with a_log(tmp_path / "log"):
        say_things()
    lines = (tmp_path / "log").read_text().splitlines()
    time, rest = lines[0].split(" ", 1)
    assert (len(time), time[-1]) == (len("2026-08-23T10:11:12.345Z"), "Z")
    assert rest == (
        r"level=warning logger=engine.queue "
        r"(nothing can be leased: the disk\nis full\x1b[2J)"
    )
    assert lines[1].endswith(" level=info logger=engine.queue (recovered)")
    assert lines[2].endswith(" level=error logger=engine.queue (it failed)")
    assert lines[3] == "    Traceback (most recent call last):"
    assert lines[-2:] == ["    ValueError: told you", "    so"]


async def test_modules_have_a_line_each_as_json(tmp_path):
    async with a_log(tmp_path / "log", "json"):
        say_things()
    first, second, third = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "event": "log",
        "level": "warning",
        "logger": "engine.queue",
        "text": "nothing can be leased: the disk\nis full\x1b[2J",
    }
    assert second["level"] == "info"
    assert third["text"] == "it failed"
    assert third["traceback"].startswith("Traceback (most")
    assert third["traceback"].endswith("ValueError: told you\nso")


async def test_behind_the_block_modules_are_not_heard_any_more(tmp_path):
    root = logging.getLogger("engine")
    before = root.level, list(root.handlers)
    async with a_log(tmp_path / "log"):
        pass
    _log.warning("nobody listens any more")
    assert (root.level, root.handlers) == before
    assert (tmp_path / "log").read_text() == ""


async def test_an_engine_has_lines_for_what_it_complains_of_and_no_others(tmp_path):
    async with a_log(tmp_path / "log", "json") as log:
        engine = Engine()
        log.watch(engine)
        assert len(engine.events.wanted) == 3
        engine.events.publish(MessageSubmitted(0.0, "m", 1, 10))
        engine.events.publish(
            ConnectionFailed(
                0.0, "x.test", "mx.x.test", "192.0.2.1", 25, Stage.CONNECT, Cause.REFUSED, "no"
            )
        )
    (record,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (record["event"], record["host"]) == ("connection.failed", "mx.x.test")
    assert HostDeferred in engine.events.wanted


async def test_who_takes_no_lines_holds_nobody_up_and_hears_how_many_he_missed(
    monkeypatch, nursery
):
    monkeypatch.setattr(process_log, "MAX_WAITING_OCTETS", 100_000)
    reader, writer = os.pipe()
    async with open_output(writer) as output:
        log = ProcessLog(output)
        with log.hear_modules():
            for number in range(5000):
                log.write(f"{number} {'x' * 95}\n")
            assert output.waiting < 110_000
            stream = trio.lowlevel.FdStream(reader)
            octets = b""
            with trio.fail_after(10):
                while output.waiting:
                    octets += await stream.receive_some(65536)
                    await trio.sleep(0.001)
            log.write("at last\n")
            await output.flush()
            octets += await stream.receive_some(65536)
            await stream.aclose()
    os.close(writer)
    lines = octets.decode().splitlines()
    assert lines[-1] == "at last"
    left_out = 5000 - (len(lines) - 2)
    assert left_out > 1000
    assert f"({left_out} log lines were left out: nobody took them)" in lines[-2]


async def test_the_form_may_change_for_all_lines(tmp_path):
    async with a_log(tmp_path / "log") as log:
        engine = Engine()
        log.watch(engine)
        for form in ("text", "json"):
            log.form = form
            _log.info("said")
            engine.events.publish(
                ConnectionFailed(0.0, "x.test", "mx", None, 25, Stage.CONNECT, Cause.REFUSED, "no")
            )
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.startswith("{") for line in lines] == [False, False, True, True]
