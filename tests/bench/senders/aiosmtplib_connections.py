"""Send with aiosmtplib: as many connections as asked for, a coroutine each."""

import asyncio  # noqa: TID251 - a peer lives on it
import gc
import json
import sys
import time
from pathlib import Path

import aiosmtplib

gc.set_threshold(50_000)  # as the engine's command line does; the same in every sender here
port, count, connections = map(int, sys.argv[1:4])
content = Path(sys.argv[4]).read_bytes()


async def send(share):
    client = aiosmtplib.SMTP(
        hostname="127.0.0.1",
        port=port,
        use_tls=False,
        start_tls=False,
        local_hostname="client.bench.test",
    )
    async with client:
        for _ in range(share):
            await client.sendmail("from@bench.test", ["to@bench.test"], content)
    return share


async def main():
    shares = [count // connections + (index < count % connections) for index in range(connections)]
    started, cpu = time.perf_counter(), time.process_time()
    delivered = sum(await asyncio.gather(*map(send, filter(None, shares))))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"delivered": delivered, "seconds": seconds, "cpu": cpu}))


asyncio.run(main())
