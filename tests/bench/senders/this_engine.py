"""Send with this engine, from `Engine.submit` to the outcome: verdicts, events and statistics on.

usage: this_engine.py PORT COUNT CONNECTIONS CONTENT [SETTING=VALUE ...]
"""

import gc
import json
import sys
import time
from pathlib import Path

import trio

from engine.content import from_octets
from engine.engine import Engine
from engine.message import Message, Recipient
from engine.outcome import Status
from engine.report.events import RecipientSettled
from engine.settings import Settings

gc.set_threshold(50_000)  # as the engine's command line does; the same in every sender here
port, count, connections = map(int, sys.argv[1:4])
content = Path(sys.argv[4]).read_bytes()
more = {
    name: json.loads(value) for name, _, value in (each.partition("=") for each in sys.argv[5:])
}


async def submit(engine):
    for _ in range(count):
        # As a sender of personal messages would: each content is new to the engine.
        message = Message(
            "",
            Message.parse_sender("from@bench.test"),
            (Recipient.parse("to@bench.test"),),
            from_octets(content),
        )
        await engine.submit(message)


async def main():
    settled = []
    delivered = 0
    settings = Settings(
        helo_name="client.bench.test",
        max_connections=connections,
        max_messages_per_connection=0,
        **more,
    )
    async with Engine(settings, routes=[("*", [f"127.0.0.1:{port}"])]) as engine:
        engine.events.watch(lambda _: settled.append(1), RecipientSettled)
        # The first message pays for what is imported when it is first needed.
        await engine.submit(
            Message("", None, (Recipient.parse("to@bench.test"),), from_octets(b"\r\nwarm-up\r\n"))
        )
        await engine.outcomes.receive()
        started, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, engine)
            for _ in range(count):
                outcome = await engine.outcomes.receive()
                delivered += outcome.status is Status.DELIVERED
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        assert engine.statistics().delivered == delivered + 1 == len(settled)
    print(json.dumps({"delivered": delivered, "seconds": seconds, "cpu": cpu}))


trio.run(main)
