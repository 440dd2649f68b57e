"""Messages a second to one sink: smtplib, aiosmtplib, Postfix's smtp-source, and this engine.

Every sender is a process of its own and sends the same messages to the same sink, in turn, several
rounds; the medians count.  All use 50 connections but smtplib, which has 10 threads.  The sink has
a processor of its own, and so has each sender.

This engine runs in three manners: with DATA and the next envelope not yet behind the dot, as the
peers do it; with the next envelope behind the dot; and with CHUNKING, eight messages in flight.

Every sender in Python has the garbage collector look every 50,000 objects, as the engine's own
command line does; by default it looks every 700, which costs a tenth.

Beside them goes as little as a Trio program can do in each of these manners: what is lost to it is
what the engine's own work costs, and what it does not reach is out of reach for us.

Postfix's smtp-sink, which is slower than smtp-source, has no CHUNKING; the sink in C has, and costs
next to nothing.  So DATA is compared at the one and CHUNKING at the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.bench.sinks import KINDS, PROCESSORS, best_kind, find_tool, pin, running

SENDERS = Path(__file__).parent / "senders"
OURS, BEHIND, CHUNKS = "this engine", "… envelope behind dot", "… CHUNKING, depth 8"
PYTHON_SENDERS = {
    "smtplib, 10 threads": ["smtplib_threads.py"],
    "aiosmtplib": ["aiosmtplib_connections.py"],
    OURS: ["this_engine.py", "chunking=false", "stream_depth=1"],
    BEHIND: ["this_engine.py", "chunking=false", "stream_depth=2"],
    CHUNKS: ["this_engine.py", "chunking=true", "stream_depth=8"],
}
SOURCE = "smtp-source"
#: What the engine is built on, and nothing else: by manner of ours.
BARE = {OURS: "bare Trio", BEHIND: "bare, behind dot", CHUNKS: "bare, CHUNKING"}
PYTHON_SENDERS |= {
    BARE[OURS]: ["bare_trio.py", "data"],
    BARE[BEHIND]: ["bare_trio.py", "behind"],
    BARE[CHUNKS]: ["bare_trio.py", "chunks"],
}
#: How many times the rate of a peer each manner of ours is to have, with messages of 4 KB.
GOALS = [
    (OURS, "aiosmtplib", 5.0),
    (OURS, "smtplib, 10 threads", 2.0),
    (OURS, SOURCE, 0.45),
    (BEHIND, SOURCE, 0.7),
    (CHUNKS, SOURCE, 1.5),
]
#: Peers are slower; a share of the messages measures them as well in less time.
SHARES = {"aiosmtplib": 0.25, "smtplib, 10 threads": 0.5}


def add_arguments(parser):
    parser.add_argument("--messages", type=int, default=20_000, help="messages of 4 KB a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="4,50", help="content sizes in KB")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument(
        "--sink",
        action="append",
        choices=KINDS,
        help="who receives; repeatable (default: smtp-sink, then one in C, where they are there)",
    )


def run(arguments):
    for sink in arguments.sink or dict.fromkeys((data_sink(), best_kind())):
        with running(sink) as port:
            for size in map(int, arguments.sizes.split(",")):
                count = max(500, arguments.messages * 4 // max(4, size // 3))
                rounds = f"medians of {arguments.rounds} rounds"
                print(f"\n{count} messages of {size} KB to {sink}, {rounds}")
                results = measure(arguments, sink, port, size, count)
                print_table(results)
                if size == 4:
                    print_goals(results)
    return 0


def data_sink():
    """Return the sink at which DATA is compared."""
    return "smtp-sink" if find_tool("smtp-sink") else best_kind()


def measure(arguments, sink, port, size, count):
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder, "content.eml")
        content.write_bytes(make_content(size * 1024))
        results = {}
        for _ in range(arguments.rounds):
            for name, script in PYTHON_SENDERS.items():
                if name in (CHUNKS, BARE[CHUNKS]) and sink == "smtp-sink":
                    continue
                share = max(200, int(count * SHARES.get(name, 1)))
                command = [sys.executable, str(SENDERS / script[0]), str(port), str(share)]
                command += [str(arguments.connections), str(content), *script[1:]]
                results.setdefault(name, []).append(timed(command, dict(os.environ), share))
            if tool := find_tool("smtp-source"):
                command = [tool[0], "-d", "-s", str(arguments.connections), "-l", str(size * 1024)]
                command += ["-m", str(count), "-f", "from@bench.test", "-t", "to@bench.test"]
                command += [f"127.0.0.1:{port}"]
                results.setdefault(SOURCE, []).append(timed(command, tool[1], count))
    return results


def make_content(octets):
    head = (
        b"From: Sender <from@bench.test>\r\nTo: Recipient <to@bench.test>\r\n"
        b"Subject: benchmark\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
        b"Message-ID: <bench@bench.test>\r\n\r\n"
    )
    line = b"The quick brown fox jumps over the lazy dog. 0123456789 abcdefghij\r\n"
    return (head + line * (octets // len(line) + 1))[: octets - 2] + b"\r\n"


def timed(command, environment, count):
    """Run a sender; it may report a shorter time than its process had, for start-up is not sending."""
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        pin(process, PROCESSORS[0])
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    seconds = time.perf_counter() - started
    cpu = usage.ru_utime + usage.ru_stime
    if output:
        told = json.loads(output)
        assert told["delivered"] == count, told
        seconds, cpu = told["seconds"], told["cpu"]
    return count / seconds, cpu / count * 1000, usage.ru_maxrss / 1024


def print_table(results):
    ours = median(rate for rate, _, _ in results[OURS])
    print(f"{'sender':<24}{'messages/s':>12}{'CPU s/1000':>12}{'peak MB':>9}{'ours is':>10}")
    for name, rounds in results.items():
        rate, cpu, memory = (median(column) for column in zip(*rounds, strict=True))
        ratio = "" if name == OURS else f"{ours / rate:.2f} x"
        print(f"{name:<24}{rate:>12,.0f}{cpu:>12.3f}{memory:>9.0f}{ratio:>10}")


def print_goals(results):
    print()
    for ours, peer, goal in GOALS:
        if ours in results and peer in results:
            # Within a round, for the machine is not the same in each.
            pairs = zip(results[ours], results[peer], strict=True)
            ratio = median(one[0] / other[0] for one, other in pairs)
            pairs = zip(results[BARE[ours]], results[peer], strict=True)
            ceiling = median(one[0] / other[0] for one, other in pairs)
            print(f"{ours:<24} is {ratio:5.2f} x {peer} (goal: {goal}; bare Trio: {ceiling:.2f})")
