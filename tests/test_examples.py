"""Every example, and the code in the README, runs as it stands and says what it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from engine.testing.sink import open_sink
from engine.worker.config import load_config

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README = ROOT / "README.md"


async def run(*arguments: str | Path) -> str:
    """Run a Python program in a process of its own, and return what it printed."""
    with trio.fail_after(60):
        done = await trio.run_process(
            [sys.executable, "-W", "error", *map(str, arguments)],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode()


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language in the README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


async def test_send_one_prints_the_outcome():
    assert "bob@example.net: delivered after " in await run(EXAMPLES / "send_one.py")


@pytest.mark.parametrize(("name", "recipient"), [("send_one", "bob"), ("watch_events", "ada")])
async def test_an_example_sends_to_the_server_it_is_given(name: str, recipient: str):
    async with open_sink(keep=True) as sink:
        await run(EXAMPLES / f"{name}.py", f"{sink.host}:{sink.port}")
        (message,) = sink.messages
    assert message.recipients == (f"{recipient}@example.net",)


async def test_the_durable_queue_goes_on_until_all_are_done_with_and_knows_them_again(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    *lines, last = (await run(EXAMPLES / "durable_queue.py")).splitlines(keepends=True)
    assert sorted(line.rsplit(":", 1)[0] for line in lines) == [
        "ada@example.net: delivered",
        "grace@example.net: delivered",
        "greylist@example.net: deferred",
        "greylist@example.net: delivered",
        "reject@example.net: failed",
    ]
    assert last.startswith("done; ")
    assert await run(EXAMPLES / "durable_queue.py") == last


async def test_the_durable_queue_sends_mail_with_a_body(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with open_sink(keep=True) as sink:
        await run(EXAMPLES / "durable_queue.py", f"{sink.host}:{sink.port}")
        kept = {message.recipients[0]: message.content for message in sink.messages}
    assert kept["ada@example.net"] == b"Subject: Issue 42\r\n\r\nDear ada,\r\n\r\nthe news.\r\n"


async def test_the_queue_of_a_plain_program_tells_of_each_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert sorted((await run(EXAMPLES / "plain_queue.py")).splitlines()) == [
        "ada@example.net: delivered",
        "greylist@example.net: delivered",
        "reject@example.net: failed",
    ]
    async with open_sink(keep=True) as sink:
        await run(EXAMPLES / "plain_queue.py", f"{sink.host}:{sink.port}")
        sent = {message.reverse_path: message.content for message in sink.messages}
    assert b"To: Ada <ada@example.net>\r\n" in sent["bounces+ada@example.org"]


def test_the_configuration_of_the_worker_can_be_used():
    config = load_config(EXAMPLES / "worker" / "engine.toml")
    assert len(config.retry.rules) == 2
    assert config.table.defaults.max_connections == 20


async def test_bulk_send_has_one_outcome_for_each_message():
    *troubles, total, connections = (await run(EXAMPLES / "bulk_send.py")).splitlines()
    assert total == "500 of 500: 496 delivered, 2 failed, 1 deferred, 1 unknown"
    assert {line.split(":")[0] for line in troubles} == {"100", "200", "300", "400"}
    # Ten at a time, and one more in place of the one that was lost.
    assert 1 < int(connections.split()[0]) <= 11


async def test_bulk_send_gives_each_message_its_own_text_and_return_path():
    async with open_sink(keep=True) as sink:
        await run(EXAMPLES / "bulk_send.py", f"{sink.host}:{sink.port}")
        received = sink.messages
    assert len({message.reverse_path for message in received}) == 496
    for message in received:
        number = message.reverse_path.removeprefix("bounces+").removesuffix("@example.org")
        assert message.recipients == (f"reader+{number}@example.net",)
        assert f"Dear reader {number},".encode() in message.content


async def test_custom_routing_sends_each_domain_its_own_way():
    outcomes = dict(
        line.split(": ", 1) for line in (await run(EXAMPLES / "custom_routing.py")).splitlines()
    )
    assert outcomes["ada@partner.example"].startswith("delivered: accepted by smart.example.org ")
    assert outcomes["bob@example.net"].startswith("delivered: accepted by mx.example.net ")
    assert outcomes["eve@closed.example"] == "failed: closed.example takes no mail (null MX)"


async def test_watch_events_prints_log_lines_and_numbers():
    printed = await run(EXAMPLES / "watch_events.py")
    for recipient, status in (("ada", "delivered"), ("reject", "failed"), ("defer", "deferred")):
        assert re.search(rf" to=<{recipient}@example\.net> .* status={status} ", printed)
    for event in ("message.submitted", "connection.opened", "connection.closed", "site.closed"):
        assert f"event={event} " in printed
    assert re.search(
        r"^now: Statistics\(messages=1, submitted=3, in_flight=0, ", printed, re.MULTILINE
    )
    assert re.search(r"^end: .* connections_open=0, .* sites=\(\)\)$", printed, re.MULTILINE)
    assert "3 recipient.settled" in printed


async def test_django_sends_from_many_threads_over_few_connections():
    sent, silent, refusal, connections = (await run(EXAMPLES / "django_backend.py")).splitlines()
    assert (sent, silent) == ("100 sent", "0 sent")
    assert refusal.endswith("RCPT TO:<reject@example.net>: 550 5.1.1 no such user")
    assert int(connections.split()[0]) < 20


async def test_a_fastapi_endpoint_answers_with_outcomes():
    known, later, wrong, late = (await run(EXAMPLES / "fastapi_endpoint.py")).splitlines()
    status, _, record = known.partition(" ")
    outcomes = ast.literal_eval(record)
    assert status == "200"
    assert {each["recipient"]: each["status"] for each in outcomes} == {
        "ada@x.test": "delivered",
        "reject@x.test": "failed",
    }
    assert later == "202 []"
    assert wrong.startswith("422 {'detail': 'address")
    assert late == "late: slow-2@x.test delivered"


async def test_a_celery_job_tries_again_for_those_who_are_left():
    printed = (await run(EXAMPLES / "celery_style_job.py")).splitlines()
    deferred = [line for line in printed if line.startswith("deferred: ")]
    final: dict[str, str] = {}
    for line in printed:
        if line not in deferred:
            final |= ast.literal_eval(line)
    assert deferred == ["deferred: greylist@example.net"] + 10 * ["deferred: defer@example.net"]
    assert final == {
        "ada@example.net": "delivered",
        "reject@example.net": "failed",
        "greylist@example.net": "delivered",
        "close-after-dot@example.net": "unknown",
        "defer@example.net": "given up",
    }


def test_every_example_is_tested_and_short():
    source = Path(__file__).read_text()
    examples = sorted(EXAMPLES.glob("*.py"))
    assert examples
    for path in examples:
        assert f'"{path.name}"' in source, f"{path.name} is run by no test"
        assert len(path.read_text().splitlines()) <= 80, path.name


async def test_the_embedding_in_the_readme_works_when_pasted(tmp_path: Path):
    (code,) = blocks("python")
    assert "127.0.0.1:2525" in code
    async with open_sink(keep=True) as sink:
        program = tmp_path / "pasted.py"
        program.write_text(code.replace("127.0.0.1:2525", f"127.0.0.1:{sink.port}"))
        printed = await run(program)
        (message,) = sink.messages
    assert message.recipients == ("you@example.net",)
    assert printed.startswith("you@example.net delivered ")


async def test_the_send_command_in_the_readme_works_as_it_is_written():
    (line,) = [line for line in "".join(blocks("sh")).splitlines() if " engine send " in line]
    async with open_sink(keep=True) as sink:
        command = line.replace(".venv/bin/python", sys.executable)
        assert " --host 127.0.0.1:2525 " in command
        done = await trio.run_process(
            command.replace(":2525", f":{sink.port}"),
            shell=True,
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        assert [message.recipients for message in sink.messages] == [("you@example.net",)]
    assert b'"status": "delivered"' in done.stdout


def test_every_file_the_readme_points_to_exists():
    named = set(re.findall(r"\]\(([^)#:]+)\)", README.read_text()))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
