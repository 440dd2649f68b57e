"""Mail that survives: a queue on disk, tried again until it is delivered or given up.

Run `python examples/durable_queue.py [HOST:PORT]`; without a server it starts the shipped sink, which
puts one recipient off once.  Stop it half-way and run it again: it goes on where it was.  Once all is
sent, nothing is sent a second time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import gettempdir

import trio

from engine import (
    Engine,
    Message,
    Policy,
    QueueOptions,
    Recipient,
    RetryRules,
    from_text,
    open_store,
)
from engine.testing.sink import open_sink

SPOOL = Path(gettempdir(), "durable-queue-example.sqlite")
#: The notation of `[[retry]]` in a worker's configuration; without rules: for four days.
RULES = RetryRules.read({"match": "*", "steps": ["1s", "5m x1.5 until 2d"]})


def letter(name: str) -> Message:
    """Make a message; by its id the queue knows it again when it is submitted twice."""
    return Message(
        id=f"issue-42/{name}",
        reverse_path=Message.parse_sender("news@example.org"),
        recipients=(Recipient.parse(f"{name}@example.net"),),
        content=from_text(f"Subject: Issue 42\n\nDear {name},\n\nthe news.\n"),
    )


async def send(host: str, names: list[str]) -> None:
    """Queue a letter for each name, and tell of every attempt until all are done with."""
    options = QueueOptions(policy=Policy(rules=RULES))
    async with open_store(SPOOL) as store, trio.open_nursery() as readers:
        async with Engine(routes=[("*", [host])], store=store, queue=options) as engine:
            readers.start_soon(tell, engine)  # until the engine has ended
            async with trio.open_nursery() as submissions:
                for name in names:  # together, so that they are written together
                    submissions.start_soon(engine.submit, letter(name))
            # All are on disk now; the block alone would not wait for the next attempts.
            await engine.wait_empty()
    print(f"done; {SPOOL} knows these letters now")


async def tell(engine: Engine) -> None:
    """Print each outcome as it becomes known."""
    async for outcome in engine.outcomes:
        reason = outcome.reply.text if outcome.reply else outcome.text
        print(f"{outcome.recipient}: {outcome.status}: {reason}")


async def main(hosts: list[str]) -> None:
    """Deliver to the host that was named, else to a sink."""
    names = ["ada", "greylist", "grace", "reject"]
    if hosts:
        await send(hosts[0], names)
    else:
        async with open_sink() as sink:
            await send(f"{sink.host}:{sink.port}", names)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
