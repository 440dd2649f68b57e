"""Listeners and a socket that does as it is told, for tests of one outgoing connection."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ScriptedSocket(socket.socket):
    """A real socket whose system calls are recorded, in order, and fail where a test says so.

    `fails` maps a call's name to an errno; `connect` fails at once, `later` when the connection's
    result is asked for.
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
