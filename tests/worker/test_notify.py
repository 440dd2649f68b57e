from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from engine.worker.notify import Notifier, listen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """What systemd is to us: a socket that gets datagrams."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(5)

    def hear(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = "@" if request.param == "abstract" else ""
    made = Manager(f"{name}{tmp_path}/notify")
    with made.socket:
        yield made


# ---- saying ---------------------------------------------------------------------------------------


def test_what_is_said(manager: Manager):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
    notifier.ready("2 processes")
    assert manager.hear() == ["READY=1", "STATUS=2 processes"]
    notifier.ping()
    assert manager.hear() == ["WATCHDOG=1"]
    notifier.stopping("12 in flight")
    assert manager.hear() == ["STOPPING=1", "STATUS=12 in flight"]
    notifier.reloading()
    reloading, when = manager.hear()
    assert reloading == "RELOADING=1"
    assert when.startswith("MONOTONIC_USEC=")
    assert int(when.partition("=")[2]) > 0


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1234"])
def test_without_a_socket_we_understand_nobody_is_told(address: str | None):
    environ = {"WATCHDOG_USEC": "1000"} | ({} if address is None else {"NOTIFY_SOCKET": address})
    notifier = Notifier.from_environment(environ)
    notifier.ready("all")
    notifier.ping()
    assert notifier.watchdog_seconds is None


def test_what_was_taken_from_the_environment_is_not_for_our_children():
    environ = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "1500000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = Notifier.from_environment(environ)
    assert environ == {"HOME": "/"}
    assert notifier.watchdog_seconds == 1.5


@pytest.mark.parametrize(
    "watchdog",
    [
        {"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
        {},
    ],
)
def test_a_watchdog_that_is_not_for_us_gets_no_pings(watchdog: dict[str, str]):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/run/notify"} | watchdog)
    assert notifier.watchdog_seconds is None


def test_a_manager_that_is_gone_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    Notifier(f"{tmp_path}/nowhere").ready("all")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/nowhere cannot be told READY: [Errno 2] No such file or directory"
    ]


def test_a_manager_that_does_not_read_does_not_hold_us_up(
    manager: Manager, caplog: pytest.LogCaptureFixture
):
    notifier = Notifier(manager.address)
    for _ in range(10_000):
        notifier.ping()
        if caplog.records:
            return
    pytest.fail("the socket took everything")


async def test_pings_come_as_long_as_there_are_answers(
    manager: Manager, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
):
    answers = 3

    async def answer() -> None:
        nonlocal answers
        answers -= 1
        if answers < 0:
            await trio.sleep_forever()

    nursery.start_soon(Notifier(manager.address, 30).keep_alive, answer)
    await trio.sleep(100)
    manager.socket.setblocking(False)
    for _ in range(3):
        assert manager.hear() == ["WATCHDOG=1"]
    with pytest.raises(BlockingIOError):
        manager.hear()
    nursery.cancel_scope.cancel()


async def test_pings_come_three_times_as_often_as_needed(
    manager: Manager, autojump_clock: trio.testing.MockClock
):
    with trio.move_on_after(95):
        await Notifier(manager.address, 30).keep_alive(trio.lowlevel.checkpoint)
    manager.socket.setblocking(False)
    for _ in range(10):
        assert manager.hear() == ["WATCHDOG=1"]
    with pytest.raises(BlockingIOError):
        manager.hear()


async def test_without_a_watchdog_nobody_has_to_answer():
    async def answer() -> None:
        pytest.fail("asked")

    await Notifier("/run/notify", None).keep_alive(answer)


# ---- hearing --------------------------------------------------------------------------------------


async def test_a_child_is_heard_and_the_kernel_says_who_it_is():
    code = (
        "from engine.worker.notify import Notifier\n"
        "notifier = Notifier.from_environment()\n"
        "notifier.ready(f'every {notifier.watchdog_seconds:g} s')\n"
    )
    with listen() as listener, trio.fail_after(20):
        assert listener.address.startswith("@")
        child = await trio.lowlevel.open_process(
            [sys.executable, "-c", code], env=os.environ | listener.environment(2.5)
        )
        word = await listener.hear()
        await child.wait()
    assert word.pid == child.pid
    assert word.fields == {"READY": "1", "STATUS": "every 2.5 s"}


async def test_octets_that_make_no_sense_are_no_error():
    with listen() as listener, trio.fail_after(5):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            where = "\0" + listener.address[1:]
            sock.sendto(b"x" * 5000, where)
            sock.sendto(b"\xff\xfe\nREADY\nA=b=c\n=", where)
        word = await listener.hear()
    assert word.fields == {"A": "b=c", "": ""}
    assert word.pid == os.getpid()


def test_a_child_need_not_ping_unless_told():
    with listen() as listener:
        assert listener.environment(None) == {"NOTIFY_SOCKET": listener.address}
