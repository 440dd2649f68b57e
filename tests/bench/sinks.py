"""The receiving end of a benchmark: one sink for all senders, in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

SERVERS = Path(os.environ.get("ENGINE_TEST_SERVERS", "/opt/engine-test-servers"))


def find_tool(name):
    """Return the command and the environment for one of Postfix's test tools, or `None`."""
    environment = dict(os.environ)
    unpacked = SERVERS / "usr" / "sbin" / name
    if unpacked.exists():
        environment["LD_LIBRARY_PATH"] = str(SERVERS / "usr" / "lib" / "postfix")
        return str(unpacked), environment
    installed = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return (installed, environment) if installed else None


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


#: With two processors each side has one of its own: a sink that is woken on the sender's takes its
#: time away, and how often that happens is chance.
PROCESSORS = sorted(os.sched_getaffinity(0))


def pin(process, processor):
    """Keep a process that has just started on this processor."""
    if len(PROCESSORS) > 1:
        os.sched_setaffinity(process.pid, {processor})


#: Every sink of a benchmark, the best first: the one in C takes CHUNKING, and costs least.
KINDS = ("c-sink", "smtp-sink", "shipped")
SOURCE = Path(__file__).with_name("sink.c")


def best_kind():
    """Return the best sink that this machine can run."""
    if shutil.which("cc"):
        return "c-sink"
    return "smtp-sink" if find_tool("smtp-sink") else "shipped"


@contextmanager
def running(kind):
    """Run a sink, one of `KINDS`, and yield its port."""
    with tempfile.TemporaryDirectory() as folder:
        with _running(kind, Path(folder)) as port:
            yield port


@contextmanager
def _running(kind, folder):
    port = free_port()
    if kind == "c-sink":
        environment = dict(os.environ)
        program = folder / "sink"
        subprocess.run(["cc", "-O2", "-o", program, SOURCE], check=True)
        command = [program, str(port)]
    elif kind == "smtp-sink":
        tool, environment = find_tool("smtp-sink")
        command = [tool, f"127.0.0.1:{port}", "1000"]
        if os.geteuid() == 0:
            command[1:1] = ["-u", "nobody"]
    else:
        environment = dict(os.environ)
        command = [sys.executable, "-m", "engine.testing.sink", "--port", str(port), "--quiet"]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pin(process, PROCESSORS[-1])
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port):
    """Return when somebody accepts connections at a port of this machine."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
