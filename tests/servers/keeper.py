"""Runs one server with everything it forks, and ends the lot when its own standard input closes.

Started by `tests.servers.process`, one for each server. The pipe behind standard input closes when
the tests close it, and when they die of anything at all, so no server outlives its tests. Servers
fork, change user and start sessions of their own; this process is their *subreaper*: whoever loses
a parent becomes its child, so that killing children until there are none reaches everyone.

    keeper.py FOLDER COMMAND [ARGUMENT...]

FOLDER, the server's throw-away home, is removed when standard input closes; it stays when the
server ends by itself, for its logs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(folder: str, command: list[str]) -> int:
    """Run `command` until it ends or standard input closes; returns an exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(server.pid)
    # Orphans that end by themselves (every delivery of some servers) leave nothing to collect. Set
    # after the server was started: it would inherit this, and miss its own children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    readable, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
    if ended not in readable:
        server.terminate()
        select.select([ended], [], [], 2.0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_children()
    if ended in readable:
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def end_children() -> None:
    """Kill children, and the orphans they leave to us, until none is left."""
    while True:
        for pid in children():
            # Gone already, when it shares a parent with one killed a moment ago.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """The ids of our own children, those who already ended included."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended while we looked
            # The name, in parentheses, may hold blanks: the parent is the second word after it.
            fields = status.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.append(int(status.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
