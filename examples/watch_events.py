"""Watch an engine at work: events as log lines, and its numbers.

Run `python examples/watch_events.py [HOST:PORT]`; without a server it starts the shipped sink in
this process.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import trio

from engine import Engine, LogWriter, Message, Recipient, from_text
from engine.testing.sink import open_sink

if TYPE_CHECKING:
    from engine.report.stream import Subscription

RECIPIENTS = ("ada@example.net", "reject@example.net", "defer@example.net")


async def watch(subscription: Subscription, counts: Counter[str]) -> None:
    """Print a line for each event, and count the kinds of events."""
    # Level "info" has one line for each outcome, and a warning for each host in trouble.
    write = LogWriter(sys.stdout.write, level="debug")
    async with subscription as events:
        async for event in events:
            write(event)
            counts[event.name] += 1


async def deliver(host: str) -> None:
    """Send a message with somebody watching; print events, then numbers."""
    counts: Counter[str] = Counter()
    engine = Engine(routes=[("*", [host])])
    async with trio.open_nursery() as nursery:
        # It hears what happens from now on.  If more than 1000 events wait, further ones are
        # dropped and counted: who watches never holds up mail.
        nursery.start_soon(watch, engine.events.subscribe(capacity=1000), counts)
        async with engine:
            message = Message(
                id="watched",
                reverse_path=None,
                recipients=tuple(Recipient.parse(address) for address in RECIPIENTS),
                content=from_text("Subject: Watched\n\nHello.\n"),
            )
            await engine.submit(message)
            for _ in RECIPIENTS:
                await engine.outcomes.receive()
            print("now:", engine.statistics())
    print("end:", engine.statistics())
    print("events:", ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))


async def main(hosts: list[str]) -> None:
    """Deliver to the host that was named, else to a sink."""
    if hosts:
        await deliver(hosts[0])
    else:
        async with open_sink() as sink:
            await deliver(f"{sink.host}:{sink.port}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
