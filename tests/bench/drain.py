"""Draining a queue: Postfix, Exim, and this worker with one process and with two, into one sink.

Each has so many messages of 4 KB on disk when its clock starts, and has to get rid of them with 50
connections, everything durable.  Postfix is tuned (50 deliveries at a time, cached connections), and
so is this worker (sixteen messages in flight on each connection); Exim has twenty queue runners, and a
share of the messages, for it takes its time.

CPU is that of the sender, all its processes together.  The sink is in C and costs little.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.exim_client import CONFIGURATION as EXIM
from tests.bench.exim_client import make_folders
from tests.bench.sinks import find_tool, free_port, running, wait_for
from tests.bench.throughput import make_content
from tests.servers.mailbox import Maildir
from tests.servers.postfix import configure
from tests.servers.provision import root, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

OCTETS = 4096
CONNECTIONS = 50
DOMAINS = 64
PATIENCE = 600.0  # seconds for one queue
POSTFIX, EXIM_NAME, ONE, TWO = "Postfix", "Exim", "this worker", "… two processes"
#: (ours, peer, how many times its rate) and the same for messages a CPU second.
GOALS = [(ONE, POSTFIX, 3.0), (TWO, POSTFIX, 5.0), (ONE, EXIM_NAME, 10.0)]
CPU_GOALS = [(ONE, POSTFIX, 4.0)]
TICKS = os.sysconf("SC_CLK_TCK")

POSTFIX_MAIN = """
mydestination =
virtual_mailbox_domains =
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
relayhost = [127.0.0.1]:{port}
default_transport = smtp
disable_dns_lookups = yes
# Tuned: as many deliveries at a time as the others have connections, and these kept.
initial_destination_concurrency = 50
default_destination_concurrency_limit = 50
smtp_connection_cache_destinations = 127.0.0.1
smtp_connection_cache_on_demand = yes
smtp_connection_reuse_count_limit = 0
max_use = 1000000
# What is put off on a busy machine shall not be waited for.
minimal_backoff_time = 2s
queue_run_delay = 2s
"""
POSTFIX_MASTER = """\
smtp unix - - n - - smtp
scache unix - - n - 1 scache
"""
EXIM_RUNNERS = 20

WORKER = """\
[worker]
processes = {processes}
seats = 6000
[[routes]]
match = "*"
hosts = ["127.0.0.1:{port}"]
[defaults]
helo_name = "client.bench.test"
max_connections = {connections}
max_messages_per_connection = 0
# Tuned: the sink takes that, though nothing in its greeting says so.
stream_depth = 16
"""


@dataclass
class Drained:
    """What one run came to."""

    rate: float
    cpu: float
    injected: float = field(default=0.0)


def add_arguments(parser):
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exim-share", type=float, default=0.025)
    parser.add_argument("--only", action="append", choices=list(SENDERS), help="repeatable")


def run(arguments):
    names = arguments.only or list(SENDERS)
    results: dict[str, list[Drained]] = {}
    for _ in range(arguments.rounds):
        for name in names:
            count = arguments.messages
            if name == EXIM_NAME:
                count = max(200, int(count * arguments.exim_share))
            with tempfile.TemporaryDirectory(prefix="drain-") as folder, running("c-sink") as port:
                Path(folder).chmod(0o755)
                found = SENDERS[name](Path(folder), port, count)
            results.setdefault(name, []).append(found)
            print(f"{name}: {count} messages, {found.rate:,.0f}/s", file=sys.stderr)
    print_table(results)
    return 0


def print_table(results):
    print(f"{'sender':<20}{'messages/s':>12}{'CPU ms each':>13}{'injected/s':>12}")
    for name, rounds in results.items():
        rate = median(each.rate for each in rounds)
        cpu = median(each.cpu for each in rounds)
        injected = median(each.injected for each in rounds)
        print(f"{name:<20}{rate:>12,.0f}{cpu * 1000:>13.2f}{injected:>12,.0f}")
    print()
    for ours, peer, goal in GOALS:
        if ours in results and peer in results:
            pairs = zip(results[ours], results[peer], strict=True)
            ratio = median(one.rate / other.rate for one, other in pairs)
            print(f"{ours:<16} drains {ratio:5.2f} x as fast as {peer} (goal: {goal})")
    for ours, peer, goal in CPU_GOALS:
        if ours in results and peer in results:
            pairs = zip(results[ours], results[peer], strict=True)
            ratio = median(other.cpu / one.cpu for one, other in pairs)
            print(f"{ours:<16} drains {ratio:5.2f} x as much a CPU second as {peer} (goal: {goal})")


# ---- measuring -----------------------------------------------------------------------------------


@contextmanager
def count_at(port: int) -> Iterator[socket.SocketIO]:
    """Ask the sink how many contents it has taken, over one connection."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock, sock.makefile("rwb") as lines:
        lines.readline()

        def taken() -> int:
            lines.write(b"XCOUNT\r\n")
            lines.flush()
            return int(lines.readline().split()[1])

        yield taken


def cpu_of_session(leader: int) -> float:
    """Return the CPU seconds of all processes of a session, and of those they have waited for."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue
            fields = text[text.rindex(")") + 2 :].split()
            if int(fields[3]) == leader:
                ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


def drain(commands, port: int, count: int, environment=None, folder=None) -> Drained:
    """Run what drains a queue, and return how fast the sink got so many messages.

    The first command leads a session that the others join.
    """
    script = " & ".join(shlex.join(map(str, command)) for command in commands) + " & wait"
    os.sync()  # what those before have left for the disk is theirs
    started = time.perf_counter()
    with (
        count_at(port) as taken,
        (folder / "drain.log").open("wb") as log,
        subprocess.Popen(
            ["sh", "-c", script],
            env=dict(os.environ) | (environment or {}),
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        cpu = 0.0
        try:
            looks = 0
            while (got := taken()) < count:
                looks += 1
                if looks % 20 == 0:  # to look costs a little, too
                    cpu = max(cpu, cpu_of_session(process.pid))
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    if taken() >= count:
                        break
                    text = (folder / "drain.log").read_text(errors="replace")
                    raise SystemExit(f"only {got} of {count} came\n{text[-3000:]}")
                time.sleep(0.02)
            seconds = time.perf_counter() - started
            cpu = max(cpu, cpu_of_session(process.pid))
        finally:
            _end_session(process)
    return Drained(count / seconds, cpu / count)


def _end_session(process: subprocess.Popen) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        subprocess.run(["pkill", f"-{int(sign)}", "-s", str(process.pid)], check=False)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            continue
        if subprocess.run(
            ["pgrep", "-s", str(process.pid)], stdout=subprocess.DEVNULL, check=False
        ).returncode:
            return
        time.sleep(0.5)


# ---- the senders ---------------------------------------------------------------------------------


def drain_postfix(folder: Path, port: int, count: int) -> Drained:
    """Let Postfix take everything without its queue manager, then start it with one."""
    listening = free_port()
    configure(folder, listening, Maildir.create(folder, "nobody", "Delivered-To"), ())
    with (folder / "etc/main.cf").open("a") as file:
        file.write(POSTFIX_MAIN.format(port=port))
    master = folder / "etc/master.cf"
    lines = master.read_text() + POSTFIX_MASTER
    without = "".join(
        line for line in lines.splitlines(keepends=True) if not line.startswith("qmgr")
    )
    libraries = {"LD_LIBRARY_PATH": str(root() / "usr/lib/postfix")}
    command = [unpacked("usr/lib/postfix/sbin/master"), "-c", folder / "etc", "-d"]

    master.write_text(without)
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=dict(os.environ) | libraries, cwd=folder, start_new_session=True
    ) as process:
        wait_for(listening)
        tool, environment = find_tool("smtp-source")
        options = ["-s", "20", "-l", str(OCTETS), "-m", str(count), "-N"]
        options += ["-f", "from@bench.test", "-t", "to@bench.test", f"127.0.0.1:{listening}"]
        subprocess.run([tool, *options], env=environment, check=True)
        injected = count / (time.perf_counter() - started)
        _end_session(process)
    master.write_text(lines)
    found = drain([command], port, count, libraries, folder)
    found.injected = injected
    return found


def drain_exim(folder: Path, port: int, count: int) -> Drained:
    """Queue everything by batched SMTP, then start queue runners."""
    program = unpacked("usr/sbin/exim4")
    make_folders(folder)
    options = "hosts_try_fastopen =\n  connection_max_messages = 500"
    text = EXIM.format(program=program, home=folder, host="127.0.0.1", port=port, options=options)
    text = text.replace("queue_run_max = 1", f"queue_run_max = {EXIM_RUNNERS}")
    text = text.replace("remote_max_parallel = 1", "split_spool_directory\nremote_max_parallel = 1")
    configuration = folder / "exim.conf"
    configuration.write_text(text)
    content = make_content(OCTETS)
    batch = b"HELO client.bench.test\r\n" + b"".join(
        b"MAIL FROM:<from@bench.test>\r\nRCPT TO:<to%d@d%d.bench.test>\r\nDATA\r\n%s.\r\n"
        % (number, number % DOMAINS, content)
        for number in range(count)
    )
    started = time.perf_counter()
    subprocess.run(
        [program, "-C", configuration, "-odq", "-bS"], input=batch + b"QUIT\r\n", check=True
    )
    injected = count / (time.perf_counter() - started)
    runner = [program, "-C", configuration, "-q"]
    found = drain([runner] * EXIM_RUNNERS, port, count, None, folder)
    found.injected = injected
    return found


def drain_worker(folder: Path, port: int, count: int, processes: int = 1) -> Drained:
    """Submit everything to the files, then start the worker."""
    configuration = folder / "engine.toml"
    configuration.write_text(WORKER.format(processes=processes, port=port, connections=CONNECTIONS))
    batch = folder / "batch.jsonl"
    content = make_content(OCTETS).decode()
    with batch.open("w") as file:
        for number in range(count):
            line = {
                "id": str(number),
                "sender": "from@bench.test",
                "recipients": [f"to{number}@d{number % DOMAINS}.bench.test"],
                "content": content,
            }
            file.write(json.dumps(line) + "\n")
    command = [sys.executable, "-m", "engine"]
    with_config = ["--config", str(configuration)]
    source = Path(__file__).parents[2]
    here = {"PYTHONPATH": str(source)}
    # As it is where pip has put it: byte code is made when a package is installed.
    subprocess.run([sys.executable, "-m", "compileall", "-q", source / "engine"], check=True)
    started = time.perf_counter()
    subprocess.run(
        [*command, "submit", *with_config, "--batch", str(batch)],
        env=dict(os.environ) | here,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    injected = count / (time.perf_counter() - started)
    found = drain([[*command, "run", *with_config]], port, count, here, folder)
    found.injected = injected
    return found


def drain_two_workers(folder: Path, port: int, count: int) -> Drained:
    """The same with two processes."""
    return drain_worker(folder, port, count, processes=2)


SENDERS = {
    POSTFIX: drain_postfix,
    EXIM_NAME: drain_exim,
    ONE: drain_worker,
    TWO: drain_two_workers,
}
