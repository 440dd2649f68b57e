"""Send with as little as a Trio program can: the ceiling for anything built on it.

No envelope is built, no reply is looked at beyond its code, no verdict is given, nothing is counted
but messages.  One task a connection writes octets that were made before and counts the replies.

usage: bare_trio.py PORT COUNT CONNECTIONS CONTENT data|behind|chunks
"""

import gc
import json
import sys
import time
from pathlib import Path

import trio

gc.set_threshold(50_000)  # as the engine's command line does; the same in every sender here
port, count, connections = map(int, sys.argv[1:4])
content, manner = Path(sys.argv[4]).read_bytes(), sys.argv[5]
DEPTH = 8
ENVELOPE = b"MAIL FROM:<from@bench.test>\r\nRCPT TO:<to@bench.test>\r\n"
DATA = ENVELOPE + b"DATA\r\n"
CHUNK = ENVELOPE + b"BDAT %d LAST\r\n" % len(content) + content
DOT = content + b".\r\n"  # no line of the benchmark's content begins with a dot


class Client:
    """A connection, and replies that have not been asked for yet."""

    def __init__(self, stream):
        self.stream = stream
        self.rest = b""
        self.codes = []

    async def hear(self, expected):
        """Wait for replies with these codes."""
        while len(self.codes) < len(expected):
            octets = await self.stream.receive_some(65536)
            assert octets, "the sink hung up"
            *lines, self.rest = (self.rest + octets).split(b"\r\n")
            self.codes += [line[:3] for line in lines if line[3:4] != b"-"]
        heard, self.codes = self.codes[: len(expected)], self.codes[len(expected) :]
        assert heard == expected, heard


async def send_data(client, share):
    for _ in range(share):
        await client.stream.send_all(DATA)
        await client.hear([b"250", b"250", b"354"])
        await client.stream.send_all(DOT)
        await client.hear([b"250"])


async def send_behind(client, share):
    await client.stream.send_all(DATA)
    await client.hear([b"250", b"250", b"354"])
    for _ in range(share - 1):
        await client.stream.send_all(DOT + DATA)
        await client.hear([b"250", b"250", b"250", b"354"])
    await client.stream.send_all(DOT)
    await client.hear([b"250"])


async def send_chunks(client, share):
    begun = ended = 0
    while ended < share:
        # As many as there is room for go in one write.
        if room := min(share, ended + DEPTH) - begun:
            await client.stream.send_all(CHUNK * room)
            begun += room
        await client.hear([b"250"] * 3)
        ended += 1
        while len(client.codes) >= 3:
            await client.hear([b"250"] * 3)
            ended += 1


SEND = {"data": send_data, "behind": send_behind, "chunks": send_chunks}[manner]


async def serve(share, done):
    if not share:
        return
    client = Client(await trio.open_tcp_stream("127.0.0.1", port))
    async with client.stream:
        await client.hear([b"220"])
        await client.stream.send_all(b"EHLO client.bench.test\r\n")
        await client.hear([b"250"])
        await SEND(client, share)
        await client.stream.send_all(b"QUIT\r\n")
    done.append(share)


async def main():
    done = []
    started, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for place in range(connections):
            share = count // connections + (place < count % connections)
            nursery.start_soon(serve, share, done)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"delivered": sum(done), "seconds": seconds, "cpu": cpu}))


trio.run(main)
