"""Send personalised mail from a stream of any length: how a program embeds the engine.

Run `python examples/bulk_send.py [HOST:PORT]`; without a server it starts the shipped sink in this
process, which has trouble with the FAULTS.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING

import trio

from engine import Engine, Message, Recipient, Settings, Status, from_text
from engine.testing.sink import open_sink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

COUNT = 500
FAULTS = {100: "reject", 200: "defer", 300: "data-reject", 400: "close-after-dot"}
TEXT = """\
From: The Gazette <news@example.org>
Subject: Issue 42
Message-ID: <42.{number}@example.org>
Date: Sun, 23 Aug 2026 09:00:00 +0000

Dear reader {number}, this copy is for you alone.
"""


async def letters() -> AsyncGenerator[Message, None]:
    """Yield the messages; a real one would read a database or a file here."""
    for number in range(1, COUNT + 1):
        address = f"{FAULTS.get(number, 'reader')}+{number}@example.net"
        yield Message(
            id=str(number),
            # A return path of its own (VERP): a bounce that comes back names its recipient.
            reverse_path=Message.parse_sender(f"bounces+{number}@example.org"),
            recipients=(Recipient.parse(address),),
            content=from_text(TEXT.format(number=number)),
        )


async def collect(engine: Engine, counts: Counter[Status]) -> None:
    """Count outcomes as they come, to the end."""
    async for outcome in engine.outcomes:
        counts[outcome.status] += 1
        if outcome.status is not Status.DELIVERED:
            print(f"{outcome.message}: {outcome.recipient} {outcome.status}: {outcome.text}")


async def deliver(host: str) -> None:
    """Send everything over ten connections at a time, and print what it came to."""
    counts: Counter[Status] = Counter()
    engine = Engine(Settings(max_connections=10), routes=[("*", [host])], max_in_flight=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, engine, counts)
        async with engine, aclosing(letters()) as messages:
            async for message in messages:
                await engine.submit(message)  # waits while 100 recipients have no outcome
            await engine.drain(timeout=60)  # then the rest is deferred or unknown
    told = (f"{number} {status}" for status, number in counts.most_common())
    print(f"{counts.total()} of {COUNT}:", ", ".join(told))
    print(f"{engine.statistics().connections_opened} connections")


async def main(hosts: list[str]) -> None:
    """Deliver to the host that was named, else to a sink."""
    if hosts:
        await deliver(hosts[0])
    else:
        async with open_sink() as sink:
            await deliver(f"{sink.host}:{sink.port}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
