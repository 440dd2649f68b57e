from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from engine.smtp.address import parse_mailbox
from engine.worker import demo as demo_module
from engine.worker.demo import _FAULTS, Gazette, letter, next_steps, python_command
from engine.worker.exits import Exit
from engine.worker.run import Manner


async def read(count: int) -> list:
    return [message async for message in Gazette(count).messages()]


async def test_every_letter_is_somebodys_own():
    letters = await read(50)
    assert [each.id for each in letters] == [str(number) for number in range(1, 51)]
    assert len({each.content.octets for each in letters}) == 50
    assert len({each.reverse_path for each in letters}) == 50
    assert Gazette(50).expected(7) == 50


def test_a_letter_has_a_return_path_that_names_its_recipient():
    each = letter(7)
    assert each.recipients[0].address == "reader+7@example.net"
    assert each.reverse_path == parse_mailbox("bounces+7=reader=example.net@gazette.example")
    assert b"This" not in each.content.octets
    assert b"copy number 7 of" in each.content.octets
    # The names are not ASCII, so they stand in the body as they are and in the header encoded.
    assert not each.content.facts.has_utf8_header


@pytest.mark.parametrize(("number", "fault"), _FAULTS.items())
def test_some_recipients_have_trouble(number: int, fault: str):
    assert letter(number).recipients[0].address == f"{fault}+{number}@example.net"
    assert letter(number + 3000).recipients[0].address.startswith(f"{fault}+")


async def test_the_demonstration_ends_well_whatever_the_sink_refuses(monkeypatch, files):
    monkeypatch.setattr(demo_module, "_FAULTS", {3: "reject", 5: "defer"})
    with files.open(Manner(log="off")) as manner:
        status = await demo_module._demo(25, 3, manner)

    text = files.out.read_text()
    assert status is Exit.DELIVERED
    assert "Sending 25 messages to 127.0.0.1:" in text
    assert " delivered  23  92.0 %" in text
    assert "550 5.1.1 no such user" in text
    assert f"{python_command()} -m engine send" in text
    assert max(map(len, text.splitlines())) <= 80
    assert files.err.read_text() == ""


@pytest.mark.parametrize(
    ("folder", "program", "on_path", "command"),
    [
        ("/home/ada", "/home/ada/.venv/bin/python", None, ".venv/bin/python"),
        ("/home/ada", "/home/ada/.venv/bin/python", "/usr/bin/python", ".venv/bin/python"),
        ("/home/ada", "/home/ada/.venv/bin/python", "/home/ada/.venv/bin/python", "python"),
        ("/tmp", "/home/ada/.venv/bin/python", None, "/home/ada/.venv/bin/python"),
        ("/tmp", "/home/ada b/python", None, "'/home/ada b/python'"),
    ],
)
def test_the_commands_to_go_on_with_start_the_python_that_runs(
    monkeypatch, folder, program, on_path, command
):
    monkeypatch.setattr(demo_module.Path, "cwd", lambda: Path(folder))
    monkeypatch.setattr(demo_module.sys, "executable", program)
    monkeypatch.setattr(demo_module.shutil, "which", {"python": on_path}.get)

    assert python_command() == command
    assert next_steps(python_command()).count(f"{command} -m engine") == 3


async def test_the_sink_outlives_an_interrupt_and_ends_with_its_block(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    opened = []
    open_process = trio.lowlevel.open_process

    async def spy(*arguments: object, **options: object) -> trio.Process:
        process = await open_process(*arguments, **options)
        opened.append(process)
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", spy)
    async with demo_module._sink() as port:
        # A terminal's interrupt goes to our process group, and the sink is not in it.
        assert os.getpgid(opened[0].pid) == opened[0].pid
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        assert (await stream.receive_some()).startswith(b"220 ")
        await stream.aclose()
    assert opened[0].returncode == 0
    assert capfd.readouterr() == ("", "")
