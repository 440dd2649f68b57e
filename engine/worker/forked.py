"""Children that are forked before there is an event loop: they cost no import, and share memory.

The parent of several has imported what its children need when it forks them, and Trio does not run
yet: so nothing is copied that belongs to a task or a thread.  Each waits at its pipe until the
supervisor lets it begin.  One that is to replace it later is a program of its own: a process with an
event loop is not forked.
Not here: what they do (`engine.worker.start`), and watching them (`engine.worker.supervisor`).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

_STDIN: Final = 0
_STDOUT: Final = 1
_READ_OCTETS: Final = 65536
#: One that does not hear what it is to know is of no use.
_BEGIN_SECONDS: Final = 5.0


class Forked:
    """A child, for its parent: as `trio.Process` as far as a supervisor needs it.

    Attributes:
        pid: Its number.
        returncode: How it ended, as `subprocess` tells; `None` as long as nobody has waited for it.
        stdin: Our end of its pipe, once it was let begin.
    """

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: trio.lowlevel.FdStream | None = None
        self._pipe = pipe
        self._handle = os.pidfd_open(pid)

    async def begin(self, environment: Mapping[str, str]) -> None:
        """Let it begin, in this environment; not cancelled in between, for it takes a moment."""
        self.stdin = trio.lowlevel.FdStream(self._pipe)
        with trio.move_on_after(_BEGIN_SECONDS, shield=True) as scope:
            with suppress(trio.BrokenResourceError):  # it is gone: `wait` tells how
                await self.stdin.send_all(json.dumps(dict(environment)).encode() + b"\n")
        if scope.cancelled_caught:
            self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not been waited for."""
        if self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Wait until it has ended, and return how; one task at a time."""
        while self.returncode is None:
            await trio.lowlevel.wait_readable(self._handle)
            self._reap(os.WNOHANG)
        return self.returncode

    def dismiss(self) -> None:
        """End it before it was let begin."""
        os.close(self._pipe)
        self._reap(0)

    def leave(self) -> None:
        """Let go of it, in a brother of its."""
        os.close(self._pipe)
        os.close(self._handle)

    def _reap(self, options: int) -> None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)
            os.close(self._handle)


def fork(count: int) -> tuple[int, dict[int, Forked]]:
    """Fork children; call it before Trio runs, and with no other thread.

    Returns:
        In the parent 0, and the children by their numbers, from 1: all, or as many as could be had.
        In a child, once it may begin, its number and nothing; it stands in a process group of its
        own, its standard input is its pipe, and its standard output is discarded.
    """
    children: dict[int, Forked] = {}
    if not hasattr(os, "pidfd_open"):
        return 0, children
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # else both would write what waits there
    gc.freeze()  # what is there already is left where it is, so that its pages stay shared
    for number in range(1, count + 1):
        try:
            ours, theirs, pid = _fork_with_pipe()
        except OSError:
            break  # if there is no room for it later either, the supervisor says so
        if pid == 0:
            os.close(theirs)
            for brother in children.values():
                brother.leave()  # it ends when its parent does, whoever else lives
            _wait_to_begin(ours)
            return number, {}
        os.close(ours)
        children[number] = Forked(pid, theirs)
    return 0, children


def name_process(name: str) -> None:
    """Have this process shown under a name where commands are, as `ps -o comm` and `top` do.

    On Linux, in its first 15 octets; elsewhere nothing happens.
    """
    with suppress(OSError), Path("/proc/self/comm").open("w", encoding="utf-8") as file:
        file.write(name)


def _fork_with_pipe() -> tuple[int, int, int]:
    reading, writing = os.pipe()
    try:
        return reading, writing, os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise


def _wait_to_begin(pipe: int) -> None:
    os.setpgid(0, 0)
    os.dup2(pipe, _STDIN)
    os.close(pipe)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, _STDOUT)
    os.close(null)
    line = b""
    while not line.endswith(b"\n"):
        octets = os.read(_STDIN, _READ_OCTETS)
        if not octets:
            os._exit(0)  # it was not needed
        line += octets
    os.environ.clear()
    os.environ.update(json.loads(line))
