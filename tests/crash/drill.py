"""The crash test itself: the receiver, the load, the killing, the end, and the account of it all.

Called by `python -m tests.crash` and by its short form among the tests.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.crash.account import Arrived, Told, judge
from tests.crash.disk import Filler, small_disk
from tests.crash.load import Books, Submitter
from tests.crash.worker import Worker, write_config

#: Recipients that may be under way before more are submitted.
AHEAD = 1500
#: How often everything is made due at once: waits after a crash are for the benefit of others.
RETRY_SECONDS = 2.0
#: How long the rest may take when nothing is killed any more.
TRACEBACK = "Traceback (most recent call last)"
END_SECONDS = 180.0
#: Where the log of outcomes is moved away: a writer may hold the old file for this long.
GRACE = 2.0
#: A killed child is started again after a second, the second time after two, …
MOST_CHILDREN = 2


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        kills: How often the worker, or a process of it, is killed.
        processes: How many it has.
        seconds: For how long it lives at most, once it is ready.
        is_disk_full: Whether its disk is a small one that fills up.
        seed: Of everything that chance decides here.
    """

    kills: int = 200
    processes: int = 1
    seconds: float = 1.5
    is_disk_full: bool = False
    seed: int = 0


@dataclass
class Report:
    """What came of it.

    Attributes:
        counts: Numbers, by what they count.
        violations: What must not be.
        log: The last lines of the worker's log, where something must not be.
    """

    counts: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    log: str = ""


def run(plan: Plan, *, folder: Path | None = None, say=lambda text: None) -> Report:
    """Do it.

    Args:
        plan: What is to be done.
        folder: Where; `None`: in a temporary folder.
        say: Told now and then how it goes.

    Raises:
        NoDiskError: There is no small disk to be had.
    """
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-", dir=folder)))
        home = base / "worker"
        if plan.is_disk_full:
            stack.enter_context(small_disk(home))
        else:
            home.mkdir()
        return trio.run(Drill(plan, base, home, say).run)


class Drill:
    """One run of it."""

    def __init__(self, plan, base, home, say):
        self.plan, self.base, self.home, self.say = plan, base, home, say
        self.rng = random.Random(plan.seed)
        self.config = home / "engine.toml"
        self.outcomes = home / "outcomes.jsonl"
        self.record = base / "record"
        self.books, self.arrived, self.told = Books(), Arrived(), Told()
        self.worker = Worker(self.config, base / "worker.log")
        self.filler = Filler(home, plan.seed)
        self.victims = dict.fromkeys(("worker", "parent", "child"), 0)
        self.rotations = 0
        self._read = 0
        self._moved = []
        self._is_over, self._all_submitted = trio.Event(), trio.Event()

    async def run(self):
        report = Report()
        async with self.receiving() as port:
            write_config(
                self.config,
                processes=self.plan.processes,
                port=port,
                outcomes=self.outcomes.name,
            )
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.submit)
                    nursery.start_soon(self.follow)
                    nursery.start_soon(self.retry)
                    async with trio.open_nursery() as trouble:
                        if self.plan.is_disk_full:
                            trouble.start_soon(self.filler.run)
                            trouble.start_soon(self.rotate)
                        await self.kill()
                        trouble.cancel_scope.cancel()
                    self._is_over.set()
                    await self.end(report)
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await self.worker.close()
        self.read_record()
        self.read_log()
        self.account(report)
        return report

    @asynccontextmanager
    async def receiving(self):
        """Run the receiver, and have its port."""
        command = [sys.executable, "-m", "tests.crash.receiver", "--record", str(self.record)]
        process = await trio.lowlevel.open_process(
            [*command, "--seed", str(self.plan.seed)], stdout=subprocess.PIPE
        )
        try:
            yield int(await process.stdout.receive_some())
            assert process.poll() is None, "the receiver is gone"
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdout.aclose()

    # ---- what goes on all the time

    async def submit(self):
        submitter = Submitter(self.worker.command, self.base, self.books, self.plan.seed)
        while not self._is_over.is_set():
            if self.books.recipients - len(self.arrived.accepted) > AHEAD:
                await trio.sleep(0.05)
            else:
                await submitter.one_batch()
        self._all_submitted.set()

    async def retry(self):
        """Make everything due, as a person would who does not want to wait."""
        while True:
            await trio.sleep(RETRY_SECONDS)
            await self.ask("queue", "retry", words=["--all"])

    async def follow(self):
        while True:
            await trio.sleep(0.1)
            self.read_record()

    async def rotate(self):
        """Move the log away now and then: the disk is small."""
        while True:
            await trio.sleep(GRACE)
            self.read_moved()
            if self.outcomes.exists():
                self.rotations += 1
                moved = self.home / f"outcomes.{self.rotations}"
                self.outcomes.rename(moved)
                self._moved.append(moved)

    def read_record(self):
        if self.record.exists():
            with self.record.open("rb") as file:
                file.seek(self._read)
                octets = file.read()
            whole = octets[: octets.rfind(b"\n") + 1]
            self._read += len(whole)
            self.arrived.read(whole.decode())

    def read_moved(self):
        for moved in self._moved:
            text = moved.read_text()
            # A line that was cut short by a kill was told to nobody; had the file stayed, whoever
            # writes next would have taken it back.
            self.told.read(text[: text.rfind("\n") + 1])
            moved.unlink()
        self._moved.clear()

    def read_log(self):
        self.read_moved()
        if self.outcomes.exists():
            self.told.read(self.outcomes.read_text())

    def log(self):
        return (self.base / "worker.log").read_text(errors="replace")

    async def ask(self, *command, words=()):
        """Run a command of ours to its end; return its status and what it said."""
        done = await trio.run_process(
            [*self.worker.command(*command), *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        return done.returncode, done.stdout.decode()

    # ---- killing

    async def kill(self):
        """Start it, and kill it at a random moment, as often as was asked for."""
        worker, rng = self.worker, self.rng
        done = 0
        while done < self.plan.kills:
            if not worker.runs:
                await worker.start()
            if worker.is_ready or rng.random() < 0.85:
                if not await worker.wait_ready():
                    await self.ended_itself()
                    continue
                await trio.sleep(rng.uniform(0.02, self.plan.seconds))
            else:
                # While it opens its store, or takes over what the one before has left.
                await trio.sleep(rng.uniform(0, 0.7))
            victim = "worker"
            if self.plan.processes > 1:
                kinds = ["worker", "parent"]
                if worker.is_ready and worker.children_killed < MOST_CHILDREN:
                    kinds += ["child", "child"]
                victim = rng.choice(kinds)
            if not worker.runs:
                await self.ended_itself()
                continue
            await worker.kill(victim)
            self.victims[victim] += 1
            done += 1
            if done % 10 == 0:
                self.say(
                    f"{done} kills, {self.books.recipients} recipients accepted, "
                    f"{len(self.arrived.accepted)} arrived"
                )

    async def ended_itself(self):
        status = await self.worker.process.wait()
        await self.worker.process.stdout.aclose()
        # 73 and 75: there is no room.
        expected = (73, 75) if self.plan.is_disk_full else ()
        text = f"the worker ended by itself, with status {status}"
        assert status in expected, f"{text}\n{self.log()[-4000:]}"
        await trio.sleep(0.2)

    # ---- the end

    async def end(self, report):
        """Let the rest be delivered, and look whether nothing is left."""
        began = time.monotonic()
        with trio.move_on_after(END_SECONDS) as scope:
            if not self.worker.runs:
                await self.worker.start()
            await self.worker.wait_ready()
            await self._all_submitted.wait()
            self.worker.process.terminate()
            status = await self.worker.process.wait()
            await self.worker.process.stdout.aclose()
            if status:
                report.violations.append(f"told to end, it ended with status {status}")
            await self.worker.start("--until-empty")
            status = await self.worker.process.wait()
            await self.worker.process.stdout.aclose()
            if status:
                report.violations.append(f"until empty, it ended with status {status}")
        if scope.cancelled_caught:
            report.violations.append(f"nothing was empty within {END_SECONDS:g} s")
            return
        report.counts["seconds to the end"] = round(time.monotonic() - began)
        status, listed = await self.ask("queue", "list", words=["--json"])
        if status or listed:
            left = len(listed.splitlines())
            report.violations.append(f"{left} recipients are left in the queue: {listed[:500]}")
        status, said = await self.ask("queue", "check")
        if status:
            report.violations.append(f"the queue is damaged: {said[:500]}")
        if left := self.worker.left():
            report.violations.append(f"processes are left: {left}")

    def account(self, report):
        books = self.books
        found = judge(books.offered, books.accepted, self.arrived, self.told, self.worker.killed_at)
        text = self.log()
        bugs = text.count(TRACEBACK)
        report.counts = {
            "kills": sum(self.victims.values()),
            **{f"of them {name}": count for name, count in self.victims.items() if count},
            "submit killed": books.kills,
            "batches": books.batches,
            "batches repeated": books.repeated,
            "batches left after a kill": books.abandoned,
            **{f"submit refused with {code}": n for code, n in books.refused.items()},
            **({"disk full": self.filler.times} if self.plan.is_disk_full else {}),
            **({"log moved away": self.rotations} if self.plan.is_disk_full else {}),
            **found.counts,
            "tracebacks in the worker's log": bugs,
            **report.counts,
        }
        report.violations += found.violations
        if bugs:
            report.violations.append(f"{bugs} tracebacks in the worker's log")
        if report.violations:
            first = max(text.find(TRACEBACK) - 1000, 0) if bugs else -4000
            report.log = text[first:][:4000]
