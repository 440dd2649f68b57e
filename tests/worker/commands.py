"""Run commands on a queue inside a test, with files for their output, and a worker where one is wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from engine.queue.sqlite import open_store
from engine.queue.values import Result, SiteState
from engine.worker.control_server import serve_control
from engine.worker.desk import Desk
from tests.queue.mail import outcome, settlements, take

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def records(self):
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def words(self):
        """What was put out, without the spaces of tables."""
        return " ".join(self.out.split())


def engine(*arguments, stdin=b"", folder=None, environment=None):
    """Run `python -m engine` to its end."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **(environment or {})}
    done = subprocess.run(
        [sys.executable, "-m", "engine", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=folder,
        env=variables,
        check=False,
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


async def run_engine(*arguments, **how):
    return await trio.to_thread.run_sync(lambda: engine(*arguments, **how))


class Place:
    """A folder with a configuration and its queue."""

    def __init__(self, folder):
        self.folder = folder
        self.config = folder / "engine.toml"
        self.config.write_text("")
        self.file = folder / "spool.sqlite"
        self.socket = folder / "engine.sock"

    async def fill(self, *submissions):
        async with open_store(self.file) as store:
            await store.submit(submissions)

    async def defer(self, now, *, reason="greylisted", **how):
        """Try all that is due, in vain."""
        async with open_store(self.file) as store:
            lease = await take(store, now, seats=1000)
            last = json.dumps(outcome(code=450, text="4.7.1 come back later").as_dict())
            facts = {"due": now + 600, "wait": 600.0, "reason": reason, "last": last} | how
            sites = [SiteState(name="one.test", not_before=now + 300, failures=3, reason="refused")]
            await store.settle(settlements(lease, Result.DEFERRED, **facts), now=now, sites=sites)

    async def entries(self):
        async with open_store(self.file) as store:
            return (await store.entries(limit=1000)).entries

    async def messages(self):
        async with open_store(self.file) as store:
            return await store.messages(limit=1000)

    @asynccontextmanager
    async def worker(self, status=lambda: {"pid": 7, "healthy": True}):
        """Run as much of a worker as answers on the socket."""
        async with open_store(self.file) as store, trio.open_nursery() as nursery:
            desk = Desk(store, status=status)
            await nursery.start(serve_control, self.socket, desk)
            yield store
            nursery.cancel_scope.cancel()
