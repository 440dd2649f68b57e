"""`python -m tests.soak`: a worker at half of what it can do, for long; nothing may grow.

    python -m tests.soak --minutes 30
    python -m tests.soak --minutes 5 --rate 200 --processes 2

Mail comes in through one `submit` that is fed steadily, and goes to a sink that takes it; a few in a
hundred meet one that greylists, refuses, defers until the end, is slow or hangs up, so that retries and
reports are part of it.  Memory, descriptors and threads of the worker are the system's word (`/proc`);
tasks, and what waits, are its own (`status --json`).

Whatever grows with time is found by holding the end against the time behind the warm-up.  The exit
status is 1 if anything grew, or the worker did not keep up.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import trio

from engine.testing.sink import open_sink
from tests.bench.sinks import best_kind, running

#: Of the time; caches fill, and the allocator takes what it will need.
WARM_UP = 0.25
#: By how much memory may change behind it.
MEMORY_PART = 0.05
#: So much of its file the store of a process keeps in memory: until the file is as large, memory
#: follows it.
CACHE_OCTETS = 32 * 1024 * 1024
#: By how much counts may: connections come and go.
COUNT_PART, COUNT_SLACK = 0.1, 8
#: Seconds of mail that may wait more at the end.
BACKLOG_SECONDS = 5.0
#: How long the speed is measured.
MEASURE_SECONDS = 10.0
#: Lines written at a time.
_AT_ONCE = 500
DOMAINS = 32
#: One in so many goes where it has trouble, of each kind in turn.
ODD_EVERY = 40
#: No `421`: a site that says so is left alone, and its mail piles up.
ODD = ("greylist", "reject", "defer", "slow-0.5", "data-defer", "close-after-dot", "drop")

CONFIG = """\
[queue]
bounce_name = "worker.soak.test"
[worker]
processes = {processes}
[[retry]]
match = "*"
steps = ["1s", "5s until 20s"]
[[routes]]
match = "odd.soak.test"
hosts = ["127.0.0.1:{odd_port}"]
[[routes]]
match = "*"
hosts = ["127.0.0.1:{port}"]
[defaults]
helo_name = "client.soak.test"
tls = "off"
"""


@dataclass(frozen=True)
class Sample:
    """A moment.

    Attributes:
        at: Seconds since the beginning.
        memory: Resident octets of all processes of the worker.
        descriptors: How many they have open.
        threads: How many they have.
        tasks: How many they say they have.
        waiting: Recipients in the queue.
        done: Recipients that have left it so far.
        disk: Octets of the files of the queue, without their logs.
    """

    at: float
    memory: int
    descriptors: int
    threads: int
    tasks: int
    waiting: int
    done: int
    disk: int


def judge(samples, rate, processes=1):
    """Say what grew; return a line for each that did.

    Args:
        samples: In order of time, of the whole run.
        rate: Messages a second.
        processes: Of the worker.
    """
    steady = [sample for sample in samples if sample.at >= samples[-1].at * WARM_UP]
    third = len(steady) // 3
    if third < 2:
        return [f"{len(samples)} samples are too few"]
    first, last = steady[:third], steady[-third:]

    def ends(name):
        return (median(getattr(sample, name) for sample in part) for part in (first, last))

    problems = []
    cached = [min(octets, CACHE_OCTETS * processes) for octets in ends("disk")]
    before, after = ends("memory")
    change = after - before
    if change > before * MEMORY_PART + cached[1] - cached[0] or change < -before * MEMORY_PART:
        problems.append(f"memory went from {before / 1e6:.1f} MB to {after / 1e6:.1f} MB")
    for name in ("descriptors", "threads", "tasks"):
        before, after = ends(name)
        if after - before > before * COUNT_PART + COUNT_SLACK:
            problems.append(f"{name} went from {before:g} to {after:g}")
    before, after = ends("waiting")
    if after - before > rate * BACKLOG_SECONDS:
        problems.append(f"the queue went from {before:g} to {after:g} recipients")
    seconds = steady[-1].at - steady[0].at
    done = (steady[-1].done - steady[0].done) / seconds
    if done < rate * 0.9:
        problems.append(f"{rate:.0f} came a second, and {done:.0f} were done")
    return problems


# ---- the worker, and what it is given ---------------------------------------------------------------


class Soak:
    """A worker in a folder, and the program that submits to it."""

    def __init__(self, folder):
        self.folder = folder
        self.config = folder / "engine.toml"
        self.worker = None
        self.number = 0
        self._feed = None
        self._began = time.monotonic()

    def command(self, *words):
        return [sys.executable, "-m", "engine", *words, "--config", str(self.config)]

    @asynccontextmanager
    async def work(self):
        """Run the worker; told to end it has to end well."""
        with (self.folder / "worker.log").open("wb") as log:
            self.worker = await trio.lowlevel.open_process(
                self.command("run"), stdout=subprocess.PIPE, stderr=log
            )
        try:
            with trio.fail_after(30):
                assert await self.worker.stdout.receive_some(), "the worker does not start"
            yield
            self.worker.terminate()
            with trio.fail_after(90):
                assert await self.worker.wait() == 0
        finally:
            self.worker.kill()
            with trio.CancelScope(shield=True):
                await self.worker.wait()
                await self.worker.stdout.aclose()

    @asynccontextmanager
    async def submitting(self):
        """Run `submit`, which reads what `feed` writes."""
        with (self.folder / "submit.log").open("wb") as log:
            self._feed = await trio.lowlevel.open_process(
                [*self.command("submit"), "--batch", "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            yield
            await self._feed.stdin.aclose()
            with trio.fail_after(60):
                assert await self._feed.wait() == 0, (self.folder / "submit.log").read_text()
        finally:
            self._feed.kill()
            with trio.CancelScope(shield=True):
                await self._feed.wait()
                await self._feed.stdin.aclose()

    async def feed(self, rate, is_enough):
        """Give it so many messages a second until it is enough; all lines are whole ones."""
        began, given = trio.current_time(), 0
        while not is_enough.is_set():
            due = int((trio.current_time() - began) * rate) - given
            lines = [self._line() for _ in range(min(due, _AT_ONCE))]
            given += len(lines)
            await self._feed.stdin.send_all("".join(lines).encode())
            with trio.move_on_after(0.1 if due < _AT_ONCE else 0):
                await is_enough.wait()

    def _line(self):
        self.number += 1
        number = self.number
        recipient = f"to{number}@d{number % DOMAINS}.soak.test"
        if number % ODD_EVERY == 0:
            kind = ODD[number // ODD_EVERY % len(ODD)]
            recipient = f"{kind}+{number}@odd.soak.test"
        record = {
            "id": f"m{number}",
            "sender": f"from{number}@senders.soak.test",
            "recipients": [recipient],
            "content": f"Subject: {number}\n\n" + "a line of a content that says nothing\n" * 105,
        }
        return json.dumps(record) + "\n"

    async def status(self):
        """Ask it how it is."""
        done = await trio.run_process(
            [*self.command("status"), "--json"], capture_stdout=True, check=False
        )
        return json.loads(done.stdout)["processes"]

    async def sample(self):
        """Take a sample."""
        processes = await self.status()
        workers = [each["worker"] for each in processes]
        pids = {self.worker.pid, *(worker["pid"] for worker in workers)}
        facts = [_facts(pid) for pid in pids]
        final = ("delivered", "failed")
        return Sample(
            at=time.monotonic() - self._began,
            memory=sum(memory for memory, _, _ in facts),
            threads=sum(threads for _, threads, _ in facts),
            descriptors=sum(descriptors for _, _, descriptors in facts),
            tasks=sum(worker["tasks"] for worker in workers),
            waiting=sum(each["counts"]["queued"] + each["counts"]["leased"] for each in processes),
            done=sum(worker[name] for worker in workers for name in final),
            disk=sum(path.stat().st_size for path in self.folder.glob("spool*.sqlite")),
        )

    def begin(self):
        """Count the time from now on."""
        self._began = time.monotonic()


def _facts(pid):
    """Return the resident octets, the threads and the descriptors of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return (
        int(facts["VmRSS"].split()[0]) * 1024,
        int(facts["Threads"]),
        sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    )


# ---- the run --------------------------------------------------------------------------------------


async def measure(soak):
    """Return how many messages a second it can do, with as much to do as it wants."""
    before, is_enough = await soak.sample(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(soak.feed, 1e5, is_enough)
        await trio.sleep(MEASURE_SECONDS)
        after = await soak.sample()
        is_enough.set()
    return (after.done - before.done) / (after.at - before.at)


async def run(folder, *, minutes, rate, processes, show=print):
    """Do it; return the samples and the rate.

    Args:
        folder: Where.
        minutes: For how long.
        rate: Messages a second; `None`: half of what is measured.
        processes: Of the worker.
        show: Told how it goes.
    """
    soak, samples = Soak(folder), []
    with running(best_kind()) as port:
        async with open_sink() as odd:
            facts = {"processes": processes, "port": port, "odd_port": odd.port}
            soak.config.write_text(CONFIG.format(**facts))
            async with soak.work():
                if rate is None:
                    async with soak.submitting():
                        rate = await measure(soak) / 2
                    show(f"half of what it can do is {rate:.0f} messages a second")
                is_enough = trio.Event()
                async with soak.submitting(), trio.open_nursery() as nursery:
                    nursery.start_soon(soak.feed, rate, is_enough)
                    soak.begin()
                    show(f"{'s':>6}{'MB':>8}{'fds':>6}{'threads':>8}{'tasks':>7}"
                         f"{'waiting':>9}{'done':>10}{'disk MB':>9}")  # fmt: skip
                    async for sample in _samples(soak, minutes * 60):
                        samples.append(sample)
                        show(
                            f"{sample.at:6.0f}{sample.memory / 1e6:8.1f}{sample.descriptors:6}"
                            f"{sample.threads:8}{sample.tasks:7}{sample.waiting:9,}"
                            f"{sample.done:10,}{sample.disk / 1e6:9.1f}"
                        )
                    is_enough.set()
    return samples, rate


async def _samples(soak, seconds):
    """Yield some sixty samples, and at most one a second."""
    step = max(seconds / 60, 1.0)
    began = trio.current_time()
    for number in range(1, int(seconds / step) + 1):
        await trio.sleep_until(began + number * step)
        yield await soak.sample()


def main() -> int:
    """Run it, print samples and the verdict, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, help="messages a second; by default it is measured")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    # As Ctrl-C, which takes the workers along; also where a shell had that ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        samples, rate = trio.run(
            lambda: run(
                Path(folder),
                minutes=options.minutes,
                rate=options.rate,
                processes=options.processes,
                show=lambda text: print(text, flush=True),
            )
        )
    problems = judge(samples, rate, options.processes)
    for problem in problems:
        print(f"GREW {problem}")
    print("FAILED" if problems else "flat")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
