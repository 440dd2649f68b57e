"""Connect, STARTTLS, EHLO, QUIT with this engine's connector and TLS; full or resumed."""

import gc
import json
import sys
import time

import trio

from engine.net.connector import Connector
from engine.net.options import ConnectOptions
from engine.net.tls import TlsClient
from engine.net.tls_material import TlsMaterial
from engine.outcome import Peer
from engine.route import Candidate
from engine.security import TlsDemand, TlsLevel

gc.set_threshold(50_000)  # as the engine's command line does; the same in every sender here
port, count, connections = map(int, sys.argv[1:4])
resumes, ca_file = sys.argv[4] == "resumed", sys.argv[5]
HOST = "mx.bench.test"
CANDIDATE, PEER = Candidate(HOST, "127.0.0.1", port), Peer(HOST, "127.0.0.1", port)
MATERIAL = TlsMaterial(ca_file=ca_file)
DEMAND = TlsDemand(TlsLevel.VERIFY, "required", (HOST,), HOST)
resumed = 0


async def ask(stream, command, code):
    if command:
        await stream.send_all(command)
    assert (await stream.receive_some()).startswith(code)


async def hello(client):
    global resumed  # noqa: PLW0603 - a script's counter
    connection = await Connector().connect(CANDIDATE, ConnectOptions())
    await ask(connection.stream, b"", b"220")
    await ask(connection.stream, b"EHLO client.bench.test\r\n", b"250")
    await ask(connection.stream, b"STARTTLS\r\n", b"220")
    tls = await client.start(
        connection.stream, DEMAND, MATERIAL, peer=PEER, seconds=60, resumes=resumes
    )
    assert tls.facts.verified == "pkix"
    resumed += tls.peer.is_resumed
    await ask(tls.stream, b"EHLO client.bench.test\r\n", b"250")
    await ask(tls.stream, b"QUIT\r\n", b"221")
    await tls.stream.aclose()


async def many(client, share):
    for _ in range(share):
        await hello(client)


async def main():
    client = TlsClient()
    await hello(client)
    started, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(many, client, count // connections)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    done = count // connections * connections
    assert resumed == (done if resumes else 0), resumed
    print(json.dumps({"delivered": done, "seconds": seconds, "cpu": cpu}))


trio.run(main)
