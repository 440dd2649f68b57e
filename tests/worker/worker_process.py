"""Start `python -m engine run` in a test, and see what it leaves: used by tests of the process."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import trio

from engine.queue.sqlite import open_store
from engine.testing.sink import open_sink
from engine.worker.config import load_config
from engine.worker.share import files_of
from tests.queue.mail import mail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from engine.testing.sink import Sink

#: What the tests need to be quick and to stay on this machine.
TEXT = """
[queue]
{queue}
[worker]
{worker}
[[routes]]
match = "*"
hosts = ["127.0.0.1:{port}"]
[defaults]
tls = "off"
{defaults}
{more}
"""


class Place:
    """A folder with a configuration, and the processes that were started on it."""

    def __init__(self, folder: Path, sink: Sink) -> None:
        self.folder = folder
        self.sink = sink
        self.config = folder / "engine.toml"
        self.configure()

    def configure(
        self, *, queue: str = "", worker: str = "", defaults: str = "", more: str = ""
    ) -> None:
        facts = {"queue": queue, "worker": worker, "defaults": defaults, "more": more}
        self.config.write_text(TEXT.format(port=self.sink.port, **facts))

    def store(self, shard: int = 1) -> Path:
        return files_of(load_config(self.config), shard).store

    async def submit(self, *addresses: str, shard: int = 1, sender: str = "", **how: Any) -> None:
        """Put a message for each address into the store, past any worker; nobody gets bounces."""
        mails = [mail(each, sender=sender, at=time.time(), **how) for each in addresses]
        async with open_store(self.store(shard)) as store:
            await store.submit(mails)

    async def left(self, shard: int = 1) -> list[tuple[str, str]]:
        """Who is in the store, and in which state."""
        async with open_store(self.store(shard), is_read_only=True) as store:
            return [
                (entry.recipient, entry.state.value) for entry in (await store.entries()).entries
            ]

    def outcomes(self) -> list[dict[str, Any]]:
        path = self.folder / "outcomes.jsonl"
        text = path.read_text() if path.exists() else ""
        # The last line may be on its way.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def statuses(self) -> list[tuple[str, str]]:
        return sorted((each["recipient"], each["status"]) for each in self.outcomes())

    @asynccontextmanager
    async def run(
        self, *arguments: str, env: dict[str, str] | None = None
    ) -> AsyncIterator[Worker]:
        """Start a worker, and kill it when the block is left."""
        err = self.folder / f"stderr-{time.monotonic_ns()}"
        with err.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                command(self.config, *arguments),
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | (env or {}),
            )
        worker = Worker(process, err)
        try:
            with trio.fail_after(40):
                yield worker
        finally:
            process.kill()
            with trio.move_on_after(5, shield=True):
                await process.wait()
            await process.stdout.aclose()  # type: ignore[union-attr]


class Worker:
    """A process that runs."""

    def __init__(self, process: trio.Process, err: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._err = err
        self._out = b""

    @property
    def log(self) -> str:
        return self._err.read_text()

    async def ready(self) -> str:
        """Wait for the line that says so."""
        while b"\n" not in self._out:
            octets = await self.process.stdout.receive_some()  # type: ignore[union-attr]
            assert octets, f"it ended: {self.log}"
            self._out += octets
        return self._out.decode()

    async def rest(self) -> str:
        """Wait for the end of standard output, and return all of it."""
        async for octets in self.process.stdout:  # type: ignore[union-attr]
            self._out += octets
        return self._out.decode()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        return await self.process.wait()

    async def says(self, text: str, times: int = 1) -> None:
        """Wait until something stands in its log."""
        await until(lambda: self.log.count(text) >= times)


def damage(path: Path) -> None:
    """Spoil a store."""
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 10_000)


def damage_index(path: Path, name: str = "lanes_line") -> None:
    """Spoil the first page of an index of a store that nobody has open."""
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("pragma page_size").fetchone()
        query = "select rootpage from sqlite_master where name = ?"
        (page,) = db.execute(query, [name]).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def make_newer(path: Path) -> None:
    """Let a store be of a later release."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma user_version = 9999")


def command(config: Path, *arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "engine", "run", "--config", str(config), *arguments]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so that nothing tells of."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


@asynccontextmanager
async def a_place(folder: Path, **sink: Any) -> AsyncIterator[Place]:
    """Make a place with a sink that takes its mail."""
    async with open_sink(**sink) as opened:
        yield Place(folder, opened)
