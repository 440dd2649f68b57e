"""What the command line costs: memory for a long batch, time to start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.bench.sinks import best_kind, running

MEMORY_GOAL_MB = 150
STARTUP_GOAL_SECONDS = 0.25


def add_arguments(parser):
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=50)


def run_memory(arguments):
    """Send a batch of many lines and print the peak memory of the sending process."""
    with tempfile.TemporaryDirectory() as folder, running(best_kind()) as port:
        batch = Path(folder, "batch.jsonl")
        with batch.open("w") as file:
            for number in range(arguments.messages):
                file.write(
                    f'{{"id": "{number}", "sender": "from@bench.test", "recipients": '
                    f'["to{number}@bench.test"], "content": "Subject: {number}\\n\\nhello\\n"}}\n'
                )
        command = [sys.executable, "-m", "engine", "send", "--batch", str(batch), "--json"]
        command += ["--host", f"127.0.0.1:{port}", "--log", "off"]
        command += ["--set", f"max_connections={arguments.connections}"]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            lines = sum(
                chunk.count(b"\n") for chunk in iter(lambda: process.stdout.read1(1 << 20), b"")
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
    peak = usage.ru_maxrss / 1024
    print(
        f"{lines:,} outcomes in {seconds:.0f} s ({lines / seconds:,.0f}/s), exit {process.returncode}"
    )
    print(f"peak memory {peak:.0f} MB (goal: under {MEMORY_GOAL_MB})")
    return int(peak > MEMORY_GOAL_MB or lines != arguments.messages or process.returncode != 0)


def run_startup(runs=11):
    """Print how long `python -m engine --help` takes, beside the bare interpreter."""
    ours = median(_seconds([sys.executable, "-m", "engine", "--help"]) for _ in range(runs))
    bare = median(_seconds([sys.executable, "-c", "pass"]) for _ in range(runs))
    print(
        f"python -m engine --help: {ours:.3f} s (goal: under {STARTUP_GOAL_SECONDS}), bare interpreter {bare:.3f} s"
    )
    return int(ours > STARTUP_GOAL_SECONDS)


def _seconds(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
