"""Connect, STARTTLS, EHLO, QUIT with aiosmtplib and one TLS context for all; it resumes nothing."""

import asyncio  # noqa: TID251 - a peer lives on it
import gc
import json
import ssl
import sys
import time

import aiosmtplib

gc.set_threshold(50_000)  # as the engine's command line does; the same in every sender here
port, count, connections = map(int, sys.argv[1:4])
CONTEXT = ssl.create_default_context(cafile=sys.argv[5])
# The name is in the certificate; the address we connect to is not.
CONTEXT.check_hostname = False


async def hello():
    client = aiosmtplib.SMTP(
        hostname="127.0.0.1",
        port=port,
        start_tls=True,
        tls_context=CONTEXT,
        local_hostname="client.bench.test",
    )
    async with client:
        await client.ehlo()


async def many(share):
    for _ in range(share):
        await hello()


async def main():
    await hello()
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[many(count // connections) for _ in range(connections)])
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    done = count // connections * connections
    print(json.dumps({"delivered": done, "seconds": seconds, "cpu": cpu}))


asyncio.run(main())
