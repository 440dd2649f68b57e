"""The control socket itself: a Unix socket for one user, found by its path.

Called by both ends (`engine.worker.control_server`, `engine.worker.control_client`).  Not here: what
is said over it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Connections the system holds until they are accepted.
_BACKLOG: Final = 128
#: struct ucred: process, user, group.
_CREDENTIALS: Final = struct.Struct("3i")
#: sun_path of unix(7), without its last NUL, and what of it is left for a name.
_MAX_ADDRESS: Final = 107
_MAX_NAME: Final = 80
_CONNECT_SECONDS: Final = 10.0
_PAUSE: Final = 0.05


class SocketInUseError(OSError):
    """Somebody listens on the socket, or what stands in its place is no socket."""


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Name a file by a path of any length in the 107 octets that an address may have."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(short)) > _MAX_ADDRESS:
            text = f"a name too long for a socket; allowed are {_MAX_NAME} octets, in any folder"
            raise OSError(errno.ENAMETOOLONG, text, str(path))
        yield short
    finally:
        os.close(folder)


def listen(path: Path) -> trio.SocketListener:
    """Listen on a path, for the user of this process and root; what an ended worker left is replaced.

    Raises:
        SocketInUseError: A process listens there, or it is no socket.
        OSError: It cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before it has a name: it is made with this mode, so that nobody else can ever connect.
        os.fchmod(sock.fileno(), 0o600)
        with _short(path) as short:
            try:
                sock.bind(short)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_stale(path, short)
                sock.bind(short)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def _remove_stale(path: Path, short: str) -> None:
    if not stat.S_ISSOCK(os.lstat(short).st_mode):
        raise SocketInUseError(f"{path}: it is no socket; allowed is a name that is free")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            os.unlink(short)  # noqa: PTH108 - a name of the system's, not a path
            return
        except BlockingIOError:
            # Its backlog is full: somebody is there.
            pass
    raise SocketInUseError(f"{path}: another process listens on it")


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at a path from another that is put there later."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove(path: Path, mine: tuple[int, int] | None) -> None:
    """Remove a socket, unless it is another's by now."""
    if mine is not None and identity(path) == mine:
        path.unlink(missing_ok=True)


async def connect(path: Path) -> trio.SocketStream:
    """Connect to who listens on a path.

    Raises:
        FileNotFoundError: There is nothing.
        ConnectionRefusedError: Nobody listens any more.
        TimeoutError: Nobody takes the connection.
        OSError: It is not for this user, or no socket.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with trio.fail_after(_CONNECT_SECONDS), _short(path) as short:
            await _connect(sock, short)
    except trio.TooSlowError:
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, "nobody takes the connection", str(path)) from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def _connect(sock: socket.socket, short: str) -> None:
    # Not Trio's: a full backlog says EAGAIN, after which there is nothing to wait for, and a socket
    # that looks as if it were connected.
    while True:
        try:
            sock.connect(short)
        except BlockingIOError:
            await trio.sleep(_PAUSE)
        else:
            return


def peer_user(stream: trio.SocketStream) -> int:
    """Return the user id of the process at the other end."""
    found = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(found)[1]
    return user


def is_welcome(user: int) -> bool:
    """Whether a user may ask: who runs this process, and root."""
    return user in (0, os.geteuid())
