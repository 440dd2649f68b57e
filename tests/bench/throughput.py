"""Messages a second to one sink: smtplib, aiosmtplib, Postfix's smtp-source, and this engine.

Every sender is a process of its own and sends the same messages to the same sink, in turn, several
rounds; the medians count.  All use 50 connections but smtplib, which has 10 threads.  The sink has
a processor of its own, and so has each sender.
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

from tests.bench.sinks import PROCESSORS, find_tool, pin, running

SENDERS = Path(__file__).parent / "senders"
PYTHON_SENDERS = {
    "smtplib, 10 threads": "smtplib_threads.py",
    "aiosmtplib": "aiosmtplib_connections.py",
    "this engine": "this_engine.py",
}
#: Peers are slower; a share of the messages measures them as well in less time.
SHARES = {"aiosmtplib": 0.25, "smtplib, 10 threads": 0.5}
OURS = "this engine"


def add_arguments(parser):
    parser.add_argument("--messages", type=int, default=20_000, help="messages of 4 KB a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="4,50", help="content sizes in KB")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument(
        "--sink",
        choices=["smtp-sink", "shipped"],
        default="smtp-sink" if find_tool("smtp-sink") else "shipped",
        help="who receives (default: Postfix's smtp-sink where it is there)",
    )


def run(arguments):
    with running(arguments.sink) as port:
        for size in map(int, arguments.sizes.split(",")):
            count = max(500, arguments.messages * 4 // max(4, size // 3))
            print(
                f"\n{count} messages of {size} KB to {arguments.sink}, medians of {arguments.rounds} rounds"
            )
            results = measure(arguments, port, size, count)
            print_table(results)
    return 0


def measure(arguments, port, size, count):
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder, "content.eml")
        content.write_bytes(make_content(size * 1024))
        results = {}
        for _ in range(arguments.rounds):
            for name, script in PYTHON_SENDERS.items():
                share = max(200, int(count * SHARES.get(name, 1)))
                command = [sys.executable, str(SENDERS / script), str(port), str(share)]
                command += [str(arguments.connections), str(content)]
                results.setdefault(name, []).append(timed(command, dict(os.environ), share))
            if tool := find_tool("smtp-source"):
                command = [tool[0], "-d", "-s", str(arguments.connections), "-l", str(size * 1024)]
                command += ["-m", str(count), "-f", "from@bench.test", "-t", "to@bench.test"]
                command += [f"127.0.0.1:{port}"]
                results.setdefault("smtp-source", []).append(timed(command, tool[1], count))
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
    print(f"{'sender':<22}{'messages/s':>12}{'CPU s/1000':>12}{'peak MB':>9}{'ours is':>10}")
    for name, rounds in results.items():
        rate, cpu, memory = (median(column) for column in zip(*rounds, strict=True))
        ratio = "" if name == OURS else f"{ours / rate:.2f} x"
        print(f"{name:<22}{rate:>12,.0f}{cpu:>12.3f}{memory:>9.0f}{ratio:>10}")
