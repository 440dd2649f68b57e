"""Send one message and see what became of it.

Run `python examples/send_one.py [HOST:PORT]`; without a server it starts the shipped sink, which
takes everything, in this process.
"""

from __future__ import annotations

import sys

import trio

from engine import Engine, Message, Outcome, Recipient, from_text
from engine.testing.sink import open_sink

TEXT = """\
From: Ada <ada@example.org>
To: Bob <bob@example.net>
Subject: One message
Message-ID: <one.1@example.org>
Date: Sun, 23 Aug 2026 09:00:00 +0000

Hello Bob.
"""


async def deliver(host: str) -> Outcome:
    """Deliver the message to a host, and return the outcome of its only recipient."""
    message = Message(
        id="one",
        reverse_path=Message.parse_sender("ada@example.org"),
        recipients=(Recipient.parse("bob@example.net"),),
        content=from_text(TEXT),
    )
    # Without routes the recipient's domain would be routed by its MX records.
    async with Engine(routes=[("*", [host])]) as engine:
        await engine.submit(message)
        return await engine.outcomes.receive()


async def main(hosts: list[str]) -> None:
    """Deliver to the host that was named, else to a sink."""
    if hosts:
        outcome = await deliver(hosts[0])
    else:
        async with open_sink() as sink:
            outcome = await deliver(f"{sink.host}:{sink.port}")
    print(f"{outcome.recipient}: {outcome.status} after {outcome.timings.total:.3f} s")
    print(outcome.text)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
