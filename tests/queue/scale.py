"""How a store with very many recipients starts: how soon there is a lease, in how much memory.

    python -m tests.queue.scale --recipients 1000000 --domains 100000

Makes the store in one process and opens it in another, as a worker that starts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import trio

from engine.content import from_text
from engine.queue.sqlite import open_store
from engine.queue.values import Result
from tests.queue.mail import START, leased_in, mail, settlements, take

_CONTENT = from_text("Subject: hello\n\n" + "Hello, and thank you for reading this.\n" * 8)


async def fill(path, recipients, domains, per_message):
    """Queue so many recipients over so many domains."""
    started = time.perf_counter()
    async with open_store(path) as store:
        numbers = iter(range(recipients))
        while batch := [
            mail(
                *(f"u{n}@d{n % domains}.test" for n in chunk),
                id=f"m{chunk[0]}",
                content=_CONTENT,
                job=f"j{chunk[0] % 3}",
            )
            for chunk in _chunks(numbers, per_message, 400)
        ]:
            await store.submit(batch)
    return time.perf_counter() - started


def _chunks(numbers, size, count):
    for _ in range(count):
        chunk = list(islice(numbers, size))
        if chunk:
            yield chunk


async def start(path, rounds=5):
    """Start on a store that is there; return what it took."""
    facts = {}
    started = time.perf_counter()
    async with open_store(path) as store:
        facts["open_seconds"] = time.perf_counter() - started
        lease = await take(store, seats=1000, site_seats=200)
        facts["first_lease_seconds"] = time.perf_counter() - started
        facts["leased"] = len(leased_in(lease))
        leasing = settling = 0.0
        total = 0
        for _ in range(rounds):
            begun = time.perf_counter()
            await store.settle(
                settlements(lease, Result.DEFERRED, due=START + 300, reason="later"), now=START
            )
            settling += time.perf_counter() - begun
            total += len(leased_in(lease))
            begun = time.perf_counter()
            lease = await take(store, seats=1000, site_seats=200)
            leasing += time.perf_counter() - begun
        facts["lease_seconds"] = leasing / rounds
        facts["settle_seconds"] = settling / rounds
        facts["rounds_recipients"] = total
        begun = time.perf_counter()
        counts = await store.counts(now=START)
        facts["counts_seconds"] = time.perf_counter() - begun
        facts["queued"] = counts.queued + counts.leased
        begun = time.perf_counter()
        await store.backlog(now=START)
        facts["backlog_seconds"] = time.perf_counter() - begun
        begun = time.perf_counter()
        await store.sweep(now=START, remember=3600)
        facts["sweep_seconds"] = time.perf_counter() - begun
    facts["peak_mib"] = _peak_kib() / 1024
    return facts


def _peak_kib():
    # Not getrusage: that remembers what the process was before it became this program.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[1])


def measure(recipients, domains, *, per_message=10, folder=None):
    """Make a store and start on it in a process of its own; return what it took."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "spool.sqlite"
        filling = trio.run(fill, path, recipients, domains, per_message)
        command = [sys.executable, "-m", "tests.queue.scale", "--start", str(path)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        facts = json.loads(done.stdout)
        facts["fill_seconds"] = filling
        facts["file_mib"] = path.stat().st_size / 2**20
    return facts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipients", type=int, default=1_000_000)
    parser.add_argument("--domains", type=int, default=100_000)
    parser.add_argument("--per-message", type=int, default=10)
    parser.add_argument("--start", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(trio.run(start, options.start)))
        return
    facts = measure(options.recipients, options.domains, per_message=options.per_message)
    for name, value in facts.items():
        print(f"{name:20} {value:12,.3f}")


if __name__ == "__main__":
    main()
