"""Listeners and a socket that does as it is told, for tests of one outgoing connection."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ScriptedSocket(socket.socket):
    """A real socket whose system calls are recorded, in order, and fail where a test says so.

    `fails` maps a call's name to an errno; `connect` and `sendto` fail at once, `later` when the
    connection's result is asked for.
    """

    calls: list[str]
    fails: dict[str, int]

    def _do(self, call: str, detail: object = "") -> None:
        self.calls.append(f"{call} {detail}".rstrip())
        if call in self.fails:
            number = self.fails[call]
            raise OSError(number, os.strerror(number))

    def setsockopt(self, *args):
        self._do("setsockopt", args)
        super().setsockopt(*args)

    def bind(self, address):
        self._do("bind", address)
        super().bind(address)

    def connect_ex(self, address):
        self.calls.append(f"connect {address}")
        if "later" in self.fails:
            return errno.EINPROGRESS  # an unconnected socket counts as writable at once
        return self.fails.get("connect", 0) or super().connect_ex(address)

    def sendto(self, data, flags, address):
        self._do("sendto", f"{address} {len(data)} octets")
        if "later" in self.fails:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        return super().sendto(data, flags, address)

    def getsockopt(self, *args):
        if args == (socket.SOL_SOCKET, socket.SO_ERROR) and "later" in self.fails:
            return self.fails["later"]
        return super().getsockopt(*args)

    def getsockname(self):
        self._do("getsockname")
        return super().getsockname()


@pytest.fixture
def scripted() -> Callable[..., tuple[Callable[[int, int], socket.socket], list[str]]]:
    """Make a socket factory that fails as told, and the list in which its calls show up."""

    def make(**fails: int):
        calls: list[str] = []

        def factory(family, kind):
            calls.append("socket")
            if "socket" in fails:
                raise OSError(fails["socket"], os.strerror(fails["socket"]))
            sock = ScriptedSocket(family, kind)
            sock.calls, sock.fails = calls, fails
            return sock

        return factory, calls

    return make


@pytest.fixture
def listen() -> Iterator[Callable[..., socket.socket]]:
    """Make listening sockets; `accept()` fails after five seconds instead of hanging."""
    with ExitStack() as stack:

        def make(address: str = "127.0.0.1", backlog: int = 8) -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = stack.enter_context(socket.socket(family))
            sock.bind((address, 0))
            sock.listen(backlog)
            sock.settimeout(5)
            return sock

        yield make


@pytest.fixture
def clogged_port(listen) -> Iterator[int]:
    """The port of a listener on 127.0.0.1 whose backlog is full: a SYN gets no answer."""
    listener = listen(backlog=0)
    with ExitStack() as stack:
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """Count this process's open file descriptors."""
    return lambda: len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# ---- a network of its own ------------------------------------------------------------------------

# From Linux' <sched.h>, <linux/sockios.h> and <linux/if.h>.
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

FAST_OPEN_SETTING = Path("/proc/sys/net/ipv4/tcp_fastopen")


def _call(function, *arguments: int) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _switch_fast_open_on() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    FAST_OPEN_SETTING.write_text("3")


def _unavailable(error: OSError) -> None:
    if os.environ.get("CI") == "true":
        raise error
    pytest.skip(f"a network of its own takes root (CAP_SYS_ADMIN): {error}")


@pytest.fixture
def fast_open_network() -> Iterator[Path]:
    """A network with nothing but loopback, where TCP Fast Open is on for clients and servers.

    This machine's own network and settings stay as they are, and no cookie is known in there.
    Yields the file that holds the setting.  Making a network takes root: elsewhere the test is
    skipped, and under CI it fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Of the thread: tests run in one thread, and what it makes lives in its network.
    with open("/proc/thread-self/ns/net", "rb") as home:  # noqa: PTH123 - for its descriptor
        try:
            _call(libc.unshare, CLONE_NEWNET)
        except OSError as error:
            _unavailable(error)
        try:
            _switch_fast_open_on()
        except OSError as error:
            _call(libc.setns, home.fileno(), CLONE_NEWNET)
            _unavailable(error)
        yield FAST_OPEN_SETTING
        _call(libc.setns, home.fileno(), CLONE_NEWNET)


@pytest.fixture
def fast_listen(fast_open_network: Path, listen: Callable[..., socket.socket]):
    """Make listening sockets that take Fast Open, as `listen` makes others."""

    def make(address: str = "127.0.0.1", backlog: int = 8) -> socket.socket:
        sock = listen(address, backlog)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 8)
        return sock

    return make
