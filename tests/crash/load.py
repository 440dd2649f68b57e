"""What is submitted in the crash test, and the submitting: by the command line, as users do it.

Batches go in one after the other.  Now and then `submit` is killed; then its batch is repeated, as
whoever lost it would do, or left as it is: what it had said to be accepted counts all the same.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pathlib import Path

DOMAINS = [f"d{number}.crash.test" for number in range(24)]
#: Where reports go.
SENDERS = "senders.crash.test"
#: A batch, and how often `submit` is killed.
MESSAGES = 120
KILLED = 0.25
KILLED_WITHIN = 1.2
#: `submit` that is refused for lack of room, or of a worker, is repeated so many seconds later.
PAUSE = 0.3


@dataclass(frozen=True)
class Letter:
    """A message: how it is called, and to whom it goes."""

    id: str
    recipients: tuple[str, ...]
    size: int

    @property
    def sender(self):
        return f"sender.{self.id}@{SENDERS}"

    def record(self):
        """The line of a batch."""
        body = text_of(self.size)
        digest = hashlib.sha256(body.replace("\n", "\r\n").encode()).hexdigest()
        head = f"Subject: crash\nX-For: {self.id}\nX-Digest: {digest}\n"
        return {
            "id": self.id,
            "sender": self.sender,
            "recipients": list(self.recipients),
            "content": f"{head}\n{body}",
        }


def text_of(size):
    """A text of about so many octets, with dots where they matter."""
    line = ".a line that begins with a dot, and says nothing much to anybody else but this\n"
    return line * (size // len(line)) + ".\n"


def make_letter(name, rng):
    """Make a message to one to three recipients; of some, one will be refused."""
    count = rng.choice([1, 1, 2, 3])
    words = ["to"] * count
    if rng.random() < 0.05:
        words[0] = "refused"
    recipients = [f"{word}{n}.{name}@{rng.choice(DOMAINS)}" for n, word in enumerate(words)]
    size = rng.choices([300, 30_000, 300_000], [95, 4, 1])[0]
    return Letter(name, tuple(recipients), size)


@dataclass
class Books:
    """What was submitted.

    Attributes:
        offered: Every message that `submit` was ever given, by its id.
        accepted: The ids of those it said are accepted.
        batches: How many batches there were.
        kills: How often `submit` was killed.
        repeated: How often a batch was submitted again.
        abandoned: How many batches were left as they were.
        refused: How often `submit` ended with some status, other than 0.
    """

    offered: dict[str, Letter] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    batches: int = 0
    kills: int = 0
    repeated: int = 0
    abandoned: int = 0
    refused: dict[int, int] = field(default_factory=dict)

    @property
    def recipients(self):
        """How many recipients the accepted messages have."""
        return sum(len(self.offered[id_].recipients) for id_ in self.accepted)


class Submitter:
    """Submits batch after batch."""

    def __init__(self, command, folder: Path, books: Books, seed):
        self._command = command
        self._folder = folder
        self._books = books
        self._rng = random.Random(seed)

    async def one_batch(self):
        """Submit a new batch until all of it is accepted, or it is given up after a kill."""
        books, rng = self._books, self._rng
        books.batches += 1
        letters = [make_letter(f"b{books.batches}m{n}", rng) for n in range(MESSAGES)]
        books.offered |= {letter.id: letter for letter in letters}
        path = self._folder / f"batch-{books.batches}.jsonl"
        path.write_text("".join(json.dumps(letter.record()) + "\n" for letter in letters))
        try:
            while True:
                is_killed = rng.random() < KILLED
                within = rng.uniform(0.1, KILLED_WITHIN) if is_killed else None
                status = await self._submit(path, within)
                if status == 0:
                    # It said so with its exit status, too: all of it is on disk.
                    missing = {letter.id for letter in letters} - books.accepted
                    assert not missing, f"submit ended with 0 and did not accept {missing}"
                    return
                if status == -9 and rng.random() < 0.5:
                    books.abandoned += 1
                    return
                if status > 0:
                    books.refused[status] = books.refused.get(status, 0) + 1
                    await trio.sleep(PAUSE)
                books.repeated += 1
        finally:
            path.unlink()

    async def _submit(self, path, within):
        """Run `submit`, kill it after so many seconds if they are given; return its status."""
        process = await trio.lowlevel.open_process(
            [*self._command("submit"), "--batch", str(path), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        said = bytearray()
        try:
            async with process.stdout:
                with trio.move_on_after(within if within is not None else 60) as scope:
                    async for octets in process.stdout:
                        said += octets
                    await process.wait()
                if scope.cancelled_caught:
                    assert within is not None, "submit does not end"
                    self._books.kills += 1
                    process.kill()
                    async for octets in process.stdout:
                        said += octets
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        # What was cut in the middle of a line was not said.
        for line in said[: said.rfind(b"\n") + 1].splitlines():
            record = json.loads(line)
            if record["accepted"]:
                self._books.accepted.add(record["message"])
        return process.returncode
