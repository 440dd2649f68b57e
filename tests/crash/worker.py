"""The worker of the crash test: started, found in all its processes, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import trio

from tests.crash.load import DOMAINS
from tests.crash.receiver import ADDRESSES

CONFIG = """\
[queue]
bounce_name = "worker.crash.test"
[worker]
processes = {processes}
drain_timeout = "5s"
outcomes = "{outcomes}"
[[retry]]
match = "*"
steps = ["200ms", "500ms until 1d"]
{routes}
[[routes]]
match = "*"
hosts = ["{address}:{port}"]
[defaults]
helo_name = "client.crash.test"
tls = "off"
max_connections = 10
"""
#: How long a worker may take to say that it is ready: one that waits for the store of another first.
_READY_SECONDS = 30.0


def write_config(path, *, processes, port, outcomes):
    """Write a configuration: every domain at a place of the receiver, several at each."""
    routes = "".join(
        f'[[routes]]\nmatch = "{domain}"\nhosts = ["{ADDRESSES[n % len(ADDRESSES)]}:{port}"]\n'
        for n, domain in enumerate(DOMAINS)
    )
    facts = {"processes": processes, "port": port, "outcomes": outcomes, "routes": routes}
    path.write_text(CONFIG.format(address=ADDRESSES[0], **facts))


def children_of(pid):
    """Return the processes that a process has started and not buried."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_there(pid, began):
    """Whether a process is still the one that began then, and lives."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19] == began and fields[0] != "Z"
    return False


def began_of(pid):
    """Return what tells a process from others with its number later on."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


class Worker:
    """One after another of a worker.

    Attributes:
        process: The one that runs, or ran.
        is_ready: Whether it has said so.
        killed_at: When something of it was killed, in seconds since the epoch.
        children_killed: How many children were killed of the one that runs.
    """

    def __init__(self, config, log):
        self.process = None
        self.is_ready = False
        self.killed_at = []
        self.children_killed = 0
        self._config = config
        self._log = log
        self._known = set()

    def command(self, *words):
        """The command line of a command of ours."""
        return [sys.executable, "-m", "engine", *words, "--config", str(self._config)]

    @property
    def runs(self):
        return self.process is not None and self.process.poll() is None

    async def start(self, *arguments):
        """Start it; it is not ready yet."""
        self.is_ready, self.children_killed = False, 0
        with self._log.open("ab") as stderr:
            self.process = await trio.lowlevel.open_process(
                [*self.command("run"), *arguments], stdout=subprocess.PIPE, stderr=stderr
            )
        self.remember()

    def remember(self):
        """Note its processes, so that they can be looked for when it is gone."""
        for pid in (self.process.pid, *children_of(self.process.pid)):
            self._known.add((pid, began_of(pid)))

    def left(self):
        """Return the processes of all that ran, which still do."""
        self._known = {(pid, began) for pid, began in self._known if is_there(pid, began)}
        return [pid for pid, _ in self._known]

    async def wait_ready(self):
        """Wait until it says that it is ready; return `False` if it ended instead."""
        with trio.fail_after(_READY_SECONDS):
            if not self.is_ready:
                self.is_ready = bool(await self.process.stdout.receive_some())
        self.remember()
        return self.is_ready

    async def kill(self, victim):
        """Kill `worker` (its one process, or all), `parent` alone, or one `child`.

        The others are waited for by nobody: they are to see for themselves that the end has come.
        """
        self.remember()
        children = children_of(self.process.pid)
        pids = {
            "worker": [self.process.pid, *children],
            "parent": [self.process.pid],
            "child": children[-1:] if len(self.killed_at) % 2 else children[:1],
        }[victim]
        self.killed_at.append(time.time())
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim == "child":
            self.children_killed += 1
        else:
            await self.process.wait()
            await self.process.stdout.aclose()
        self.killed_at.append(time.time())

    async def close(self):
        """Kill all that is left."""
        if self.runs:
            await self.kill("worker")
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
