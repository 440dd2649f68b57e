"""A throw-away folder, free ports, and one server process that never outlives the tests.

Used by the modules that start servers.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.place import HOST, LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.servers.place import Place

START_SECONDS = 20.0
STOP_SECONDS = 10.0
# Clients are given ports from 32768 up (ip_local_port_range), so none of them can take one of these
# between the moment it was seen free and the moment its server listens.
PORTS = range(20000, 32000)


@contextmanager
def home(server: str) -> Iterator[Path]:
    """A new folder for one server, readable by the users it changes to; removed afterwards."""
    # Memory, where there is enough of it: servers flush every message to the disk before they
    # answer, which is most of the time a small message takes.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    with tempfile.TemporaryDirectory(
        prefix=f"engine-{server}-", dir=memory if roomy else None, ignore_cleanup_errors=True
    ) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def free_port() -> int:
    """A TCP and UDP port of the loopback interface on which nobody listens."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                stream.bind((HOST, port))
                datagram.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {HOST} in {PORTS}")


@dataclass(frozen=True, slots=True)
class Process:
    """One server under its keeper.

    Attributes:
        name: what to call it in messages.
        keeper: the process of `keeper.py`; it ends when the pipe to it closes.
        logs: the files it and its children write to.
    """

    name: str
    keeper: subprocess.Popen[bytes]
    logs: tuple[Path, ...]

    def tail(self) -> str:
        """The ends of its logs, for an error message."""
        return "\n".join(
            f"-- {log}\n{log.read_text(errors='replace')[-4000:]}"
            for log in self.logs
            if log.exists()
        )

    def wait_for_port(self, port: int, place: Place = LOOPBACK) -> None:
        """Return when somebody accepts connections at `port` of `place`.

        Raises:
            RuntimeError: the server ended, or did not listen within `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.keeper.poll() is not None:
                raise RuntimeError(f"{self.name} ended as soon as it was started\n{self.tail()}")
            with place.make_socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                if probe.connect_ex((place.address, port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(
            f"{self.name} did not listen on port {port} within {START_SECONDS} s\n{self.tail()}"
        )


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
    logs: Sequence[Path] = (),
) -> Iterator[Process]:
    """Run `command` in `folder` for the length of the block; its output goes to `folder/output`."""
    output = folder / "output"
    with output.open("wb") as sink:
        keeper = subprocess.Popen(
            [sys.executable, "-I", Path(__file__).with_name("keeper.py"), folder, *command],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            cwd=folder,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
            | (environment or {}),
            # Ctrl-C is for the tests; the server ends when they let go of it.
            start_new_session=True,
        )
    try:
        yield Process(name, keeper, (output, *logs))
    finally:
        stop(keeper)


def stop(keeper: subprocess.Popen[bytes]) -> None:
    """Let go of the keeper, and wait until it has ended its server."""
    if keeper.stdin is not None:
        keeper.stdin.close()
    keeper.wait(STOP_SECONDS)
