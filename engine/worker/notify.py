"""Say to a service manager how we are: the datagrams of sd_notify(3), without its library.

A worker says them to systemd, and to a supervisor (`engine.worker.supervisor`), which listens as
systemd does and says its own to systemd.  Where nobody listens nothing is said.
Not here: when one is ready, and what proves that one is alive.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, MutableMapping

_SOCKET: Final = "NOTIFY_SOCKET"
_USEC: Final = "WATCHDOG_USEC"
_PID: Final = "WATCHDOG_PID"
#: Pings in the time in which one is needed: one that comes late is not the end.
_PINGS: Final = 3

_MAX_OCTETS: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")

_log = logging.getLogger("engine.worker")


class Notifier:
    """Says how we are to whoever started us.

    Attributes:
        watchdog_seconds: We are killed without a ping for so long; `None`: nobody waits for pings.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        """Decide who is told.

        Args:
            address: The path of a Unix socket, or `@` and a name of the abstract namespace; `None`:
                nobody is.
            watchdog_seconds: How often somebody wants a ping at least.
        """
        self.watchdog_seconds = watchdog_seconds if address else None
        self._address = address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take who is to be told from the environment, and out of it: it is not for our children."""
        address = environ.pop(_SOCKET, "")
        microseconds, pid = environ.pop(_USEC, ""), environ.pop(_PID, "")
        if address[:1] not in ("/", "@"):
            return cls()
        is_ours = pid in ("", str(os.getpid()))
        seconds = int(microseconds) / 1e6 if is_ours and microseconds.isdecimal() else 0.0
        return cls(address, seconds or None)

    def ready(self, status: str) -> None:
        """Say that we work, for the first time or after a reload, and at what."""
        self._say(READY="1", STATUS=status)

    def reloading(self) -> None:
        """Say that we read the configuration again; `ready` follows."""
        # systemd tells by this which of two reloads is meant.
        self._say(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    def stopping(self, status: str) -> None:
        """Say that we are about to end."""
        self._say(STOPPING="1", STATUS=status)

    def ping(self) -> None:
        """Say that we are alive."""
        self._say(WATCHDOG="1")

    async def keep_alive(self, answer: Callable[[], Awaitable[object]]) -> None:
        """Ping until cancelled, if somebody wants that.

        Args:
            answer: Returns when what has to work for us to be alive has worked once more.
        """
        while self.watchdog_seconds is not None:
            await answer()
            self.ping()
            await trio.sleep(self.watchdog_seconds / _PINGS)

    def _say(self, **fields: str) -> None:
        if self._address is None:
            return
        address = self._address
        where = "\0" + address[1:] if address[0] == "@" else address
        octets = "\n".join(f"{name}={value}" for name, value in fields.items()).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(octets, where)
        except OSError as error:
            # What was not heard is said again, or is of no importance.
            _log.warning("%s cannot be told %s: %s", address, next(iter(fields)), error)


class Word(NamedTuple):
    """One datagram of a process.

    Attributes:
        pid: Which, as the kernel says.
        fields: What it says: `READY`, `RELOADING`, `STOPPING`, `WATCHDOG`, `STATUS`.
    """

    pid: int
    fields: dict[str, str]


class Listener:
    """Hears what processes on this machine say; made by `listen`.

    Attributes:
        address: What `NOTIFY_SOCKET` is to be for them.
    """

    def __init__(self, sock: socket.socket) -> None:
        name = sock.getsockname()
        self.address = "@" + name[1:].decode()
        self._socket = trio.socket.from_stdlib_socket(sock)

    def environment(self, watchdog_seconds: float | None) -> dict[str, str]:
        """Return what a child needs in its environment to be heard.

        Args:
            watchdog_seconds: How often it is to ping at least; `None`: it need not.
        """
        found = {_SOCKET: self.address}
        if watchdog_seconds is not None:
            found[_USEC] = str(round(watchdog_seconds * 1e6))
        return found

    async def hear(self) -> Word:
        """Wait for the next datagram; anybody may send one, so look at `pid`."""
        while True:
            octets, ancillary, flags, _ = await self._socket.recvmsg(
                _MAX_OCTETS, socket.CMSG_SPACE(_CREDENTIALS.size)
            )
            pid = _pid_of(ancillary)
            if pid and not flags & socket.MSG_TRUNC:
                lines = octets.decode("utf-8", "replace").splitlines()
                pairs = (line.partition("=") for line in lines)
                return Word(pid, {name: value for name, equals, value in pairs if equals})


@contextmanager
def listen() -> Iterator[Listener]:
    """Listen for the time of a block, under a name of the abstract namespace that the kernel chose.

    Raises:
        OSError: The system has no such sockets.
    """
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.bind("")
        if not sock.getsockname():
            raise OSError(errno.EADDRNOTAVAIL, "no abstract socket can be had")
        yield Listener(sock)


def _pid_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, octets in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _CREDENTIALS.unpack_from(octets)[0]
            return pid
    return 0
