"""What a store in a file can do in a second, with everything on disk.

    python -m tests.queue.rates [--folder FOLDER]

Contents have 4 KB.  One line each: operations a second, how long one takes, processor time each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import trio

from engine.content import from_octets
from engine.queue.sqlite import open_store
from engine.queue.values import Result, Settlement
from tests.queue.mail import START, leased_in, mail, settlements, take

CONTENT = from_octets(b"Subject: hello\r\n\r\n" + (b"x" * 76 + b"\r\n") * 52)


async def measure(name, tasks, total, do):
    """Let tasks share operations, and print how that went."""
    numbers, seconds = iter(range(total)), []

    async def work():
        for number in numbers:
            begun = time.perf_counter()
            await do(number)
            seconds.append(time.perf_counter() - begun)

    begun, processor = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(work)
    wall, processor = time.perf_counter() - begun, time.process_time() - processor
    seconds.sort()
    print(
        f"{name:28} {tasks:4} tasks {total / wall:9,.0f} a second"
        f"   p50 {seconds[total // 2] * 1e3:6.1f} ms   p99 {seconds[total * 99 // 100] * 1e3:6.1f} ms"
        f"   {processor / total * 1e6:6.0f} us of CPU"
    )


async def run(path, scale):
    async with open_store(path) as store:

        async def submit(number):
            await store.submit([mail(f"u{number}@d{number % 1000}.test", content=CONTENT)])

        for tasks, total in ((1, 300), (50, 5000), (500, 10_000)):
            await measure("submits", tasks, total * scale, submit)

        leases = []

        async def lease(number):
            leases.append(await take(store, seats=250, site_seats=10**6))

        begun, processor = time.perf_counter(), time.process_time()
        await lease(0)
        while leases[-1].messages:
            await lease(0)
        leases.pop()
        out = [pair for each in leases for pair in leased_in(each)]
        wall, processor = time.perf_counter() - begun, time.process_time() - processor
        print(
            f"{'leases of 250, recipients':28} {1:4} task  {len(out) / wall:9,.0f} a second"
            f"   {processor / len(out) * 1e6:6.0f} us of CPU"
        )

        for tasks, total in ((1, 300), (50, 5000), (500, 5000)):
            pairs = out[:total]

            async def mark(number, pairs=pairs):
                held, recipient = pairs[number]
                await store.mark(held, [recipient.number])

            await measure("marks", tasks, len(pairs), mark)

        half = len(leases) // 2
        for name, some, how in (
            ("settlements, delivered", leases[:half], {"result": Result.DELIVERED}),
            (
                "settlements, deferred",
                leases[half:],
                {"result": Result.DEFERRED, "due": START + 300, "last": '"x"' * 300},
            ),
        ):
            lists = [settlements(each, **how) for each in some]
            begun, processor = time.perf_counter(), time.process_time()
            for each in lists:
                await store.settle(each, now=START)
            wall, processor = time.perf_counter() - begun, time.process_time() - processor
            total = sum(map(len, lists))
            print(
                f"{name:28} {1:4} task  {total / wall:9,.0f} a second"
                f"   {processor / total * 1e6:6.0f} us of CPU"
            )
        singles = [
            Settlement(lease=held, recipient=recipient.number, result=Result.DELIVERED)
            for held, recipient in out
        ]

        async def settle(number):
            await store.settle([singles[number]], now=START)

        await measure("settlements, done already", 500, 5000, settle)
        print(f"{store.path.stat().st_size / 2**20:.0f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the file is made; the disk is what is measured")
    parser.add_argument("--scale", type=int, default=1, help="how many times as many operations")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        trio.run(run, Path(place) / "spool.sqlite", options.scale)


if __name__ == "__main__":
    main()
