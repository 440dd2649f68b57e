from __future__ import annotations

import json
import os
import threading
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from engine.worker import intake
from engine.worker.batch import LineSplitter
from engine.worker.exits import Incidents
from engine.worker.intake import Batch, CommandLine

if TYPE_CHECKING:
    from engine.message import Message
    from engine.worker.intake import Source

CONTENT = "Subject: hello\n\nworld\n"


class Ear:
    """Hears what a source says is wrong."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.incidents = Incidents()

    def batch(self, file: Path | str) -> Batch:
        return Batch(str(file), self.said.append, self.incidents)

    def command_line(self, sender: str, recipients: list[str], file: Path | str) -> CommandLine:
        return CommandLine(sender, recipients, str(file), self.said.append, self.incidents)

    @property
    def noted(self) -> tuple[bool, bool]:
        return self.incidents.has_bad_data, self.incidents.has_unreadable_file


@pytest.fixture
def ear() -> Ear:
    return Ear()


async def read(source: Source) -> list[Message]:
    async with aclosing(source.messages()) as messages:
        return [message async for message in messages]


def line(**changes: object) -> str:
    record = {"sender": "a@x.test", "recipients": ["b@y.test"], "content": CONTENT} | changes
    return json.dumps({key: value for key, value in record.items() if value is not ...}) + "\n"


# ---- the command line -----------------------------------------------------------------------------


async def test_a_command_line_is_one_message(ear: Ear, tmp_path: Path):
    (tmp_path / "a.eml").write_text(CONTENT)
    source = ear.command_line("<>", ["a@x.test", "<b@y.test>"], tmp_path / "a.eml")

    (message,) = await read(source)

    assert (message.id, message.reverse_path) == ("1", None)
    assert [to.address for to in message.recipients] == ["a@x.test", "<b@y.test>"]
    assert message.content.octets == CONTENT.replace("\n", "\r\n").encode()
    assert (source.expected(2), source.is_exact) == (2, True)
    assert (ear.said, ear.noted) == ([], (False, False))


async def test_a_malformed_recipient_does_not_hold_up_the_others(ear: Ear, tmp_path: Path):
    (tmp_path / "a.eml").write_text(CONTENT)
    (message,) = await read(ear.command_line("a@x.test", ["b", "c@y.test"], tmp_path / "a.eml"))

    assert [to.address for to in message.recipients] == ["c@y.test"]
    assert ear.said == ['RECIPIENT b: no "@"; allowed is local-part@domain']
    assert ear.noted == (True, False)


async def test_a_malformed_sender_sends_nothing(ear: Ear):
    assert await read(ear.command_line("a\n", ["b@y.test"], "/nonexistent")) == []
    assert ear.said == ['--sender "a\\n": no "@"; allowed is local-part@domain']
    assert ear.noted == (True, False)


async def test_a_message_file_that_is_missing_is_named(ear: Ear, tmp_path: Path):
    missing = tmp_path / "missing.eml"
    assert await read(ear.command_line("", ["b@y.test"], missing)) == []
    assert ear.said == [f"{missing}: No such file or directory"]
    assert ear.noted == (False, True)


async def test_a_message_that_is_a_directory_cannot_be_read(ear: Ear, tmp_path: Path):
    assert await read(ear.command_line("", ["b@y.test"], tmp_path)) == []
    assert (ear.said, ear.noted) == ([f"{tmp_path}: Is a directory"], (False, True))


@pytest.mark.parametrize(
    ("text", "what"), [("a\rb", "bare CR in line 1"), ("\n\0", "NUL in line 2")]
)
async def test_content_that_cannot_be_sent_is_bad_data(
    ear: Ear, tmp_path: Path, text: str, what: str
):
    file = tmp_path / "a.eml"
    file.write_bytes(text.encode())
    assert await read(ear.command_line("", ["b@y.test"], file)) == []
    assert len(ear.said) == 1
    assert ear.said[0].startswith(f"{file}: {what}: ")
    assert ear.noted == (True, False)


async def test_a_message_can_come_from_a_pipe(ear: Ear, tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=(CONTENT,))
    writer.start()
    (message,) = await read(ear.command_line("", ["b@y.test"], fifo))
    writer.join()
    assert message.content.facts.octets == len(CONTENT) + 3


async def test_who_types_a_message_is_told_how_to_end_it(ear: Ear, monkeypatch: pytest.MonkeyPatch):
    ours, theirs = os.openpty()
    monkeypatch.setattr(intake, "_STDIN_DESCRIPTOR", theirs)
    os.write(ours, b"Subject: hello\n\nworld\n\x04")
    (message,) = await read(ear.command_line("", ["b@y.test"], "-"))
    os.close(ours)
    os.close(theirs)
    assert message.content.octets == b"Subject: hello\r\n\r\nworld\r\n"
    assert len(ear.said) == 1
    assert "Ctrl-D" in ear.said[0]


# ---- a batch --------------------------------------------------------------------------------------


async def test_the_default_id_is_the_position_without_blank_lines(ear: Ear, tmp_path: Path):
    file = tmp_path / "batch"
    file.write_text("\n" + line() + " \r\n" + line(id="x") + "bad\n" + line())

    assert [message.id for message in await read(ear.batch(file))] == ["1", "x", "4"]
    assert ear.said == [
        f"{file} line 5: found no JSON: expecting value at position 1; allowed JSON"
    ]


async def test_a_byte_order_mark_crlf_and_a_missing_line_end_do_no_harm(ear: Ear, tmp_path: Path):
    file = tmp_path / "batch"
    text = "\ufeff" + line() + line()
    file.write_bytes(text.replace("\n", "\r\n").encode().removesuffix(b"\r\n"))
    assert [message.id for message in await read(ear.batch(file))] == ["1", "2"]
    assert ear.noted == (False, False)


async def test_all_facts_of_a_line_are_in_the_message(ear: Ear, tmp_path: Path):
    file = tmp_path / "batch"
    file.write_text(line(envid="e", ret="full", require_tls=True, smtputf8=True))
    (message,) = await read(ear.batch(file))
    assert (message.envid, message.ret) == ("e", "full")
    assert (message.require_tls, message.smtputf8) == (True, True)


async def test_paths_are_relative_to_the_batch_file(ear: Ear, tmp_path: Path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "1.eml").write_text(CONTENT)
    (tmp_path / "batch").write_text(line(content=..., message="letters/1.eml"))
    (message,) = await read(ear.batch(tmp_path / "batch"))
    assert message.content.facts.octets == len(CONTENT) + 3


async def test_a_file_that_a_line_names_and_is_missing_costs_that_line_only(
    ear: Ear, tmp_path: Path
):
    file = tmp_path / "batch"
    file.write_text(line(content=..., message="no.eml") + line())
    assert [message.id for message in await read(ear.batch(file))] == ["2"]
    assert ear.said == [f"{file} line 1: message: {tmp_path}/no.eml: No such file or directory"]
    assert ear.noted == (False, True)


async def test_a_file_that_a_line_names_and_is_bad_costs_that_line_only(ear: Ear, tmp_path: Path):
    file = tmp_path / "batch"
    (tmp_path / "bad.eml").write_bytes(b"a\rb")
    file.write_text(line(content=..., message="bad.eml") + line())
    assert [message.id for message in await read(ear.batch(file))] == ["2"]
    assert ear.said == [
        f"{file} line 1: message: {tmp_path}/bad.eml: bare CR in line 1: lines end with CRLF or LF"
    ]
    assert ear.noted == (True, False)


@pytest.mark.parametrize("kind", ["missing", "directory"])
async def test_a_batch_that_cannot_be_read_is_named(ear: Ear, tmp_path: Path, kind: str):
    file = tmp_path if kind == "directory" else tmp_path / "missing"
    assert await read(ear.batch(file)) == []
    assert len(ear.said) == 1
    assert ear.said[0].startswith(f"{file}: ")
    assert ear.noted == (False, True)


async def test_a_line_of_any_length_is_read_or_refused(
    ear: Ear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(intake, "LineSplitter", lambda: LineSplitter(1_000_000))
    file = tmp_path / "batch"
    file.write_text(line(content="x" * 2_000_000) + line(content="x" * 500_000) + line())
    messages = await read(ear.batch(file))
    assert [message.id for message in messages] == ["2", "3"]
    assert ear.said == [f"{file} line 1: {intake.TOO_LONG}"]


async def test_a_line_from_a_pipe_is_given_before_the_next_is_written(ear: Ear, tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = ear.batch(fifo)
    writer = os.open(fifo, os.O_RDWR)
    try:
        async with aclosing(source.messages()) as messages:
            for number in range(1, 4):
                os.write(writer, line().encode())
                message = await anext(messages)
                assert message.id == str(number)
                assert source.expected(number) is None
            # Nothing more comes: waiting for it can be given up at once.
            with trio.move_on_after(0.01):
                await anext(messages)
    finally:
        os.close(writer)
    assert (source.expected(3), source.is_exact) == (3, True)


async def test_the_number_of_recipients_is_guessed_from_what_was_read(ear: Ear, tmp_path: Path):
    file = tmp_path / "batch"
    file.write_text(line() * 100)
    source = ear.batch(file)
    assert (source.expected(0), source.is_exact) == (None, False)
    async with aclosing(source.messages()) as messages:
        await anext(messages)
        assert source.expected(1) == 100
        assert not source.is_exact
        submitted = 1 + len([message async for message in messages])
    assert (source.expected(submitted), source.is_exact) == (100, True)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_batch_that_is_left_early_closes_its_file(ear: Ear, tmp_path: Path):
    file = tmp_path / "batch"
    file.write_text(line() * 10)
    before = open_files()
    async with aclosing(ear.batch(file).messages()) as messages:
        await anext(messages)
    assert open_files() == before


# ---- for the queue --------------------------------------------------------------------------------


async def test_a_batch_for_the_queue_says_what_else_its_lines_say(ear: Ear, tmp_path: Path):
    (tmp_path / "b.jsonl").write_text("\n" + line(id="x", job="j") + line(hold=True))
    batch = Batch(str(tmp_path / "b.jsonl"), ear.said.append, ear.incidents, is_for_queue=True)

    async with aclosing(batch.items()) as items:
        first, second = [item async for item in items]

    assert (first.line, first.message.id, first.entry.id) == (2, "x", "x")
    assert (second.line, second.message.id, second.entry.id) == (3, "2", None)
    assert (first.entry.wishes.job, second.entry.wishes.hold) == ("j", True)
    assert ear.said == []


async def test_a_batch_that_is_sent_now_has_no_wishes(ear: Ear, tmp_path: Path):
    (tmp_path / "b.jsonl").write_text(line(job="j"))
    assert await read(ear.batch(tmp_path / "b.jsonl")) == []
    assert ear.noted == (True, False)
