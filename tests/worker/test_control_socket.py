from __future__ import annotations

import os
import socket
import stat
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from engine.worker import control_socket
from engine.worker.control_socket import (
    SocketInUseError,
    connect,
    identity,
    is_welcome,
    listen,
    peer_user,
    remove,
)


async def test_both_ends_meet_and_know_each_other(tmp_path):
    path = tmp_path / "a.sock"
    async with listen(path) as listener, await connect(path) as near:
        async with await listener.accept() as far:
            assert peer_user(far) == peer_user(near) == os.geteuid()
            await near.send_all(b"hello")
            assert await far.receive_some() == b"hello"


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
async def test_nobody_else_may_connect_whatever_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        async with listen(tmp_path / "a.sock"):
            mode = stat.S_IMODE((tmp_path / "a.sock").lstat().st_mode)
            assert mode & 0o177 == 0
    finally:
        os.umask(before)


def test_root_and_who_runs_this_are_welcome(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert is_welcome(0)
    assert is_welcome(1000)
    assert not is_welcome(1001)


async def test_a_backlog_that_is_full_is_somebody_s(tmp_path, monkeypatch):
    monkeypatch.setattr(control_socket, "_BACKLOG", 0)
    monkeypatch.setattr(control_socket, "_CONNECT_SECONDS", 0.2)
    path = tmp_path / "a.sock"
    async with listen(path), AsyncExitStack() as stack:
        with pytest.raises(TimeoutError, match="nobody takes the connection"):
            for _ in range(10):
                await stack.enter_async_context(await connect(path))
        with pytest.raises(SocketInUseError, match="another process listens"):
            listen(path)


def test_a_name_that_is_too_long_is_refused_with_what_is_allowed(tmp_path):
    path = tmp_path / ("x" * 100)
    with pytest.raises(OSError, match="too long for a socket; allowed are 80 octets") as caught:
        listen(path)
    assert caught.value.filename == str(path)


async def test_only_what_is_ours_is_removed(tmp_path):
    path = tmp_path / "a.sock"
    assert identity(path) is None
    path.write_text("a")
    mine = identity(path)
    (tmp_path / "b").write_text("b")
    (tmp_path / "b").rename(path)
    remove(path, mine)
    remove(path, None)
    assert path.read_text() == "b"
    remove(path, identity(path))
    assert not path.exists()
    remove(path, mine)


async def test_what_cannot_be_connected_to_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    for name, error in (("none", FileNotFoundError), ("no/such/folder", FileNotFoundError)):
        with pytest.raises(error):
            await connect(tmp_path / name)
    with pytest.raises(ConnectionRefusedError):
        await connect(tmp_path / "file")
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()
    with pytest.raises(ConnectionRefusedError):
        await connect(tmp_path / "left")


async def test_descriptors_are_given_back(tmp_path):
    def count():
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    for _ in range(5):
        with pytest.raises(FileNotFoundError):
            await connect(tmp_path / "none")
        async with listen(tmp_path / "a.sock"):
            pass
        await trio.lowlevel.checkpoint()
    assert count() <= before + 1
