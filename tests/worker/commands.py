"""Run commands on a queue inside a test, with files for their output, and a worker where one is wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryFile

import trio

from engine.__main__ import main
from engine.queue.errors import StoreError
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

    @classmethod
    def of(cls, process):
        return cls(process.returncode, process.stdout.decode(), process.stderr.decode())

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
    return Done.of(done)


async def run_engine(*arguments, **how):
    return await trio.to_thread.run_sync(lambda: engine(*arguments, **how))


async def run_command(*arguments):
    """Run a command as `run_engine` does, in a thread of this process: that is quicker.

    For commands that heed no signals and read no standard input.
    """
    return await trio.to_thread.run_sync(_command, list(map(str, arguments)))


def _command(arguments):
    with TemporaryFile() as out, TemporaryFile() as err, _in_place(1, out), _in_place(2, err):
        with (
            TextIOWrapper(out, write_through=True) as text_out,
            TextIOWrapper(err, write_through=True) as text_err,
            redirect_stdout(text_out),
            redirect_stderr(text_err),
        ):
            sys.argv[1:], before = arguments, sys.argv[1:]
            try:
                main()
            except SystemExit as done:
                status = int(done.code or 0)
            finally:
                sys.argv[1:] = before
            out.seek(0)
            err.seek(0)
            return Done.of(subprocess.CompletedProcess(arguments, status, out.read(), err.read()))


@contextmanager
def _in_place(descriptor, file):
    """Let a descriptor of the process be that of a file."""
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


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
        then = time.time()
        async with open_store(self.file) as store:
            lease = await take(store, now, seats=1000)
            last = json.dumps(outcome(code=450, text="4.7.1 come back later").as_dict())
            facts = {"due": then + 600, "wait": 600.0, "reason": reason, "last": last} | how
            sites = [
                SiteState(name="one.test", not_before=then + 300, failures=3, reason="refused")
            ]
            await store.settle(settlements(lease, Result.DEFERRED, **facts), now=now, sites=sites)

    async def entries(self):
        async with open_store(self.file) as store:
            return (await store.entries(limit=1000)).entries

    async def is_there(self):
        """Whether anything is in the queue, which somebody may be making just now."""
        if not self.file.exists():
            return False
        try:
            return bool(await self.entries())
        except StoreError:
            return False

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
