"""A process at a store that is killed at random moments, again and again; nothing may be lost.

    python -m tests.queue.crash --kills 200

The child submits, leases, marks and settles from several tasks, and says on its standard output
what it is about to do and what was done.  After each kill the store is opened, as the next run of a
worker would, and compared with what the child said.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio

from engine.content import from_octets
from engine.queue.sqlite import open_store
from engine.queue.values import Action, Result, Selection, Settlement, State
from tests.queue.mail import CONTENT, START, leased_in, mail, settlements, take

LARGE = from_octets(b"large\r\n" * 30_000)


def content_of(name):
    """Return the content of a message: now and then a large one."""
    return LARGE if name.endswith("7") else CONTENT


# ---- the child ----------------------------------------------------------------------------------


async def work(path, run):
    """Work at a store until killed."""
    rng = random.Random(run)

    def say(*words):
        print(*words, flush=True)

    async def submit(store, task):
        for number in range(1_000_000):
            name = f"r{run}t{task}n{number}"
            addresses = [f"{name}.{k}@d{rng.randrange(9)}.test" for k in range(rng.randint(1, 3))]
            await store.submit([mail(*addresses, id=name, content=content_of(name))])
            say("submitted", name, *addresses)

    async def deliver(store, task):
        while True:
            lease = await take(
                store,
                seats=rng.randint(1, 20),
                owner=f"run{run}",
                deadline=START + 10**6,
                retry_at=START,
            )
            if not lease.messages:
                await trio.sleep(0.005)
            for message in lease.messages:
                numbers = [recipient.number for recipient in message.recipients]
                # Of an attempt: what is said of one may come behind what is said of the next.
                said = [f"{message.lease}/{each.address}" for each in message.recipients]
                if rng.random() < 0.8:
                    say("marking", *said)
                    await store.mark(message.lease, numbers)
                    say("marked", *said)
                result = rng.choice([Result.DELIVERED] * 3 + [Result.DEFERRED, Result.HELD])
                say("settling", result, *said)
                await store.settle(
                    [
                        Settlement(lease=message.lease, recipient=number, result=result, due=START)
                        for number in numbers
                    ],
                    now=START,
                )
                say("settled", result, *said)

    async with open_store(path) as store, trio.open_nursery() as nursery:
        say("open")
        for task in range(6):
            nursery.start_soon(submit, store, task)
        for task in range(4):
            nursery.start_soon(deliver, store, task)


# ---- the parent ---------------------------------------------------------------------------------


@dataclass
class Ledger:
    """What all children so far have said."""

    #: Recipients of accepted messages, by address: the message's id.
    accepted: dict[str, str] = field(default_factory=dict)
    #: Who was said to be settled as delivered, and who may have been.
    delivered: set[str] = field(default_factory=set)
    perhaps: set[str] = field(default_factory=set)
    #: Attempts, `LEASE/ADDRESS`, that may be marked and those that are, and are not settled.
    marking: set[str] = field(default_factory=set)
    marked: set[str] = field(default_factory=set)

    def begin(self):
        self.marking.clear()
        self.marked.clear()

    def hear(self, line):
        what, *rest = line.split()
        match what:
            case "submitted":
                name, *addresses = rest
                self.accepted |= dict.fromkeys(addresses, name)
            case "marking":
                self.marking.update(rest)
            case "marked":
                self.marked.update(rest)
            case "settling":
                result, *attempts = rest
                self.marked.difference_update(attempts)
                if result == Result.DELIVERED:
                    self.perhaps |= addresses_of(attempts)
            case "settled":
                result, *attempts = rest
                self.marking.difference_update(attempts)
                if result == Result.DELIVERED:
                    self.delivered |= addresses_of(attempts)


def addresses_of(attempts):
    return {attempt.partition("/")[2] for attempt in attempts}


def run_and_kill(path, run, seconds):
    """Let a child work for a while and kill it; return what it said."""
    command = [sys.executable, "-m", "tests.queue.crash", "--child", str(path), "--run", str(run)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout.readline() == "open\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        said = child.stdout.read()
    # What was cut in the middle of a line was not said.
    return said[: said.rfind("\n") + 1].splitlines()


async def look(path, run, ledger, counts):
    """Open the store as the next run of a worker would, and compare."""
    async with open_store(path) as store:
        assert [problem async for problem in store.check()] == []
        owners = [owner.name for owner in await store.owners()]
        found = await store.recover(
            owner=f"look{run}", now=START, deadline=START + 10**6, dead=owners
        )
        doubtful = {r.address for message in found.doubtful for r in message.recipients}
        # Those in doubt were about to be marked, at least; who was marked and nothing more, is.
        marking, marked = addresses_of(ledger.marking), addresses_of(ledger.marked)
        assert doubtful <= marking, doubtful - marking
        assert marked <= doubtful, marked - doubtful
        counts["doubtful"] += len(doubtful)
        counts["released"] += found.released
        for message in found.doubtful:
            await store.settle(
                [
                    Settlement(
                        lease=message.lease,
                        recipient=recipient.number,
                        result=Result.DEFERRED,
                        due=START,
                    )
                    for recipient in message.recipients
                ],
                now=START,
            )
        there, after = {}, 0
        while after is not None:
            page = await store.entries(after=after, limit=1000)
            there |= {entry.recipient: entry.state for entry in page.entries}
            after = page.next
        assert State.LEASED not in there.values()
        lost = set(ledger.accepted) - set(there) - ledger.perhaps
        assert not lost, lost
        again = ledger.delivered & set(there)
        assert not again, again
        counts["lost"] += len(lost)
        # Whoever submits once more is told that it is there, or was.
        for address in list(ledger.accepted)[-20:]:
            name = ledger.accepted[address]
            addresses = [a for a, other in ledger.accepted.items() if other == name]
            submission = mail(*addresses, id=name, content=content_of(name))
            (accepted,) = await store.submit([submission])
            assert not accepted.is_new


async def finish(path, ledger):
    """Deliver what is left; everybody accepted is then accounted for."""
    async with open_store(path) as store:
        await store.apply(Action.RELEASE, Selection(), now=START)
        while (lease := await take(store, seats=500, site_seats=500, owner="end")).messages:
            ledger.delivered.update(recipient.address for _, recipient in leased_in(lease))
            await store.settle(settlements(lease), now=START)
        counts = await store.counts(now=START)
        assert counts.queued + counts.leased + counts.held == 0
    return set(ledger.accepted) - ledger.delivered - ledger.perhaps


def crash(kills, *, seed=0, longest=0.5, folder=None):
    """Kill so many children; return the counts."""
    rng, ledger, counts = random.Random(seed), Ledger(), Counter()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "spool.sqlite"
        for run in range(kills):
            ledger.begin()
            for line in run_and_kill(path, run, rng.uniform(0.02, longest)):
                ledger.hear(line)
            trio.run(look, path, run, ledger, counts)
        counts["lost"] += len(trio.run(finish, path, ledger))
        counts["accepted"] = len(ledger.accepted)
        counts["delivered"] = len(ledger.delivered)
        counts["kills"] = kills
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        trio.run(work, options.child, options.run)
        return
    print(f"seed {options.seed}")
    for name, count in sorted(crash(options.kills, seed=options.seed).items()):
        print(f"{name:10} {count}")


if __name__ == "__main__":
    main()
