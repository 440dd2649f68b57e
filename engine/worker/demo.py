"""The command `demo`: a first look at the engine at work, on this machine alone.

Starts the shipped sink as a process of its own, sends personalised mail to it through everything a
real delivery goes through, a durable queue included, and shows progress and result.  Nothing leaves
the loopback interface, and the queue is gone afterwards.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import trio
from rich.text import Text

from engine.content import from_text
from engine.message import Message, Recipient
from engine.queue.decision import Policy
from engine.queue.retry import read_rules
from engine.queue.sqlite import open_store
from engine.settings import Settings
from engine.worker.exits import Exit
from engine.worker.output import open_output
from engine.worker.patient import PatientEngine
from engine.worker.run import Manner, run
from engine.worker.screen import print_to

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from engine.queue.store import Store
    from engine.worker.intake import Say, Source

_NAMES: Final = ("Ada", "Björn", "Chloé", "Dmitri", "Emeka", "Fatima", "Grace", "Hiro")

_TEMPLATE: Final = """\
From: The Gazette <news@gazette.example>
To: {name} <{address}>
Subject: =?utf-8?q?Issue_42?=
Message-ID: <42.{number}@gazette.example>
Date: Sun, 23 Aug 2026 09:00:00 +0000
List-Unsubscribe: <https://gazette.example/leave/{number}>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Dear {name},

this is copy number {number} of issue 42, made for you alone.

{filler}
-- {space}
To leave the list: https://gazette.example/leave/{number}
"""
_FILLER: Final = "All the news that fits into a letter of a few thousand octets. " * 2 + "\n"
_FILLER_LINES: Final = 20

#: Who among the recipients has trouble, by number modulo 1000: the sink knows these names.
_FAULTS: Final = {
    107: "reject",
    223: "defer",
    371: "reject",
    419: "full",
    557: "greylist",
    641: "data-reject",
    787: "reject",
    911: "close-after-dot",
}

#: Nobody wants to wait for a demonstration.
_POLICY: Final = Policy(rules=read_rules([{"match": "*", "steps": ["1s", "2s"]}])[0])

_NEXT: Final = """\
Each recipient has exactly one outcome, and the troubles above were asked for.
Next, send a message of yours to the sink, from a second terminal:

  {python} -m engine.testing.sink --port 2525
  echo 'Subject: hello' | {python} -m engine send \\
      --sender you@example.org --host 127.0.0.1:2525 --json friend@example.net

Without --host it would go to the mail hosts of example.net.
All options: {python} -m engine send --help
"""


def next_steps(python: str) -> str:
    """Say what to do when the demonstration is over, with the command that starts our Python."""
    return _NEXT.format(python=python)


def python_command() -> str:
    """Return how this Python is started from the current folder, as a shell takes it.

    It need not be the shell's own `python`: in an environment nobody has activated it is not.
    """
    program = Path(sys.executable)
    if shutil.which("python") == sys.executable:
        return "python"
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return shlex.quote(str(program))


class Gazette:
    """A newsletter: every message has its own text and its own return path."""

    is_exact = True

    def __init__(self, count: int) -> None:
        """Make a list of `count` recipients."""
        self._count = count

    def expected(self, submitted: int) -> int | None:  # noqa: ARG002 - it is known from the start
        """Return the number of recipients."""
        return self._count

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Yield the messages."""
        for number in range(1, self._count + 1):
            yield letter(number)


def letter(number: int) -> Message:
    """Make the message for one recipient of the list, numbered from 1."""
    name = _NAMES[number % len(_NAMES)]
    local_part = _FAULTS.get(number % 1000, "reader")
    address = f"{local_part}+{number}@example.net"
    text = _TEMPLATE.format(
        name=name, address=address, number=number, filler=_FILLER * _FILLER_LINES, space=""
    )
    # A return path of its own (VERP): a bounce that comes back names its recipient by itself.
    sender = f"bounces+{number}={local_part}=example.net@gazette.example"
    return Message(
        str(number), Message.parse_sender(sender), (Recipient.parse(address),), from_text(text)
    )


def demo(messages: int, connections: int) -> int:
    """Run the demonstration and return its exit status: 0, unless it was interrupted.

    Args:
        messages: How many to send.
        connections: How many connections to use at most.
    """
    return trio.run(_demo, messages, connections, Manner(log="off"))


async def _demo(messages: int, connections: int, manner: Manner) -> Exit:
    async with _sink() as port, _queue() as store:
        engine = PatientEngine(
            Settings(max_connections=connections), store, _POLICY, [("*", [f"127.0.0.1:{port}"])]
        )
        await _print(
            manner,
            f"Sending {messages:,} messages to 127.0.0.1:{port}, a mail sink on this machine,\n"
            "through a queue on disk; who is put off is tried again a little later.\n",
        )

        def open_source(say: Say, incidents: object) -> Source:  # noqa: ARG001 - all is well-formed
            return Gazette(messages)

        status = await run(engine, open_source, manner)
    if status is Exit.INTERRUPTED:
        return status
    await _print(manner, "\n" + next_steps(python_command()).rstrip())
    return Exit.DELIVERED


async def _print(manner: Manner, text: str) -> None:
    async with open_output(manner.stdout) as stdout:
        print_to(stdout.put, manner.stdout, Text(text, no_wrap=True, overflow="ignore"))


@asynccontextmanager
async def _queue() -> AsyncIterator[Store]:
    """Have a durable queue for the time of a block."""
    with TemporaryDirectory(prefix="engine-demo-") as folder:
        async with open_store(Path(folder, "spool.sqlite")) as store:
            yield store


@asynccontextmanager
async def _sink() -> AsyncIterator[int]:
    """Run the sink in a process of its own and give its port; it is ended with the block."""
    command = [sys.executable, "-m", "engine.testing.sink", "--port", "0", "--quiet"]
    process = await trio.lowlevel.open_process(
        command,
        stdout=subprocess.PIPE,
        # Ctrl-C goes to all of a group; the sink must last until the mail in flight is through.
        process_group=0,
    )
    try:
        yield await _port(process)
    finally:
        process.terminate()
        with trio.move_on_after(5, shield=True):
            await process.wait()
        process.kill()


async def _port(process: trio.Process) -> int:
    assert process.stdout is not None
    line = b""
    with trio.fail_after(30):
        while not line.endswith(b"\n"):
            octets = await process.stdout.receive_some()
            if not octets:
                raise RuntimeError("the sink did not start")
            line += octets
    return int(line.rpartition(b":")[2])
