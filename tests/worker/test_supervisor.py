from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from engine.worker import supervisor as module
from engine.worker.notify import Notifier
from engine.worker.supervisor import Supervisor, describe_end, worst

#: A child that says what happens to it in a file; what it does is told by its own.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from engine.worker.notify import Notifier

folder, shard = Path(sys.argv[1]), sys.argv[2]
diary = open(folder / f"{shard}.diary", "a", buffering=1)
def note(word): print(json.dumps([os.getpid(), word]), file=diary)
notifier = Notifier.from_environment()
manners = json.loads((folder / "manners").read_text()).get(shard, [])
run = int((folder / f"{shard}.runs").read_text() or 0) if (folder / f"{shard}.runs").exists() else 0
(folder / f"{shard}.runs").write_text(str(run + 1))
manner = manners[run] if run < len(manners) else "work"
def term(*_): note("term"); manner == "deaf" or sys.exit(0)
def hup(*_): note("hup"); notifier.reloading(); notifier.ready("again")
signal.signal(signal.SIGTERM, term)
signal.signal(signal.SIGHUP, hup)
if manner != "slow": signal.signal(signal.SIGUSR1, lambda *_: note("usr1"))
note(f"watchdog {notifier.watchdog_seconds}")
if manner == "slow": time.sleep(60)
if manner.startswith("exit "):
    sys.exit(int(manner[5:]))
notifier.ready("x")
note("ready")
if manner.startswith("then exit "):
    sys.exit(int(manner[10:]))
while manner != "parent":
    if manner != "silent": notifier.ping()
    time.sleep(0.05)
sys.stdin.read()
note("parent gone")
"""


class Manager:
    """Listens as systemd does."""

    def __init__(self, folder):
        self.address = f"{folder}/notify"
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard = []

    async def listen(self, *, task_status=trio.TASK_STATUS_IGNORED):
        await self._socket.bind(self.address)
        with self._socket:
            task_status.started()
            while True:
                self.heard.append((await self._socket.recv(4096)).decode().split("\n")[0])


class Family:
    """A supervisor over children that keep diaries."""

    def __init__(self, folder, **how):
        self.folder = folder
        self.ready = trio.Event()
        (folder / "child.py").write_text(CHILD)
        self.supervisor = Supervisor(
            command=lambda shard: [sys.executable, f"{folder}/child.py", str(folder), str(shard)],
            on_ready=self.ready.set,
            **{"count": 2, "notifier": Notifier(), "drain_timeout": 5.0} | how,
        )
        self.status = None
        self.is_over = trio.Event()

    def diary(self, shard):
        path = self.folder / f"{shard}.diary"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def words(self, shard):
        return [word for _, word in self.diary(shard)]

    async def until(self, condition):
        while not condition():  # noqa: ASYNC110 - other processes tell by files alone
            await trio.sleep(0.01)

    async def until_noted(self, shard, word, times=1):
        await self.until(lambda: self.words(shard).count(word) >= times)

    async def until_ready(self):
        await self.ready.wait()
        for shard in range(1, self.supervisor.count + 1):
            await self.until_noted(shard, "ready")

    async def run(self):
        self.status = await self.supervisor.run()
        self.is_over.set()


@asynccontextmanager
async def family(folder, manners=None, **how):
    (folder / "manners").write_text(json.dumps(manners or {}))
    made = Family(folder, **how)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- working --------------------------------------------------------------------------------------


async def test_all_work_before_it_is_ready_and_end_when_told(tmp_path):
    async with family(tmp_path) as one:
        await one.until_ready()
        one.supervisor.drain()
        await one.is_over.wait()
        assert one.status == 0
    assert one.words(1) == one.words(2) == ["watchdog None", "ready", "term"]


async def test_a_child_that_is_killed_is_replaced_and_the_others_go_on(tmp_path, caplog):
    async with family(tmp_path) as one:
        await one.until_ready()
        (pid, _), *_ = one.diary(1)
        os.kill(pid, signal.SIGKILL)
        await one.until_noted(1, "ready", 2)
        one.supervisor.drain()
        await one.is_over.wait()
        assert one.status == 0
    assert one.words(2) == ["watchdog None", "ready", "term"]
    assert one.diary(1)[-1][0] != pid
    assert (
        f"process 1 (pid {pid}) was killed by SIGKILL; another one starts in 0.05 s"
        in caplog.messages
    )


async def test_pauses_grow_while_a_child_dies_again_and_again(tmp_path, caplog):
    async with family(tmp_path, {"1": ["then exit 1"] * 3}, count=1) as one:
        await one.until_noted(1, "ready", 4)
    pauses = [message.rpartition(" in ")[2] for message in caplog.messages]
    assert pauses == ["0.05 s", "0.1 s", "0.2 s"]


async def test_one_that_ends_without_having_been_told_is_replaced(tmp_path):
    async with family(tmp_path, {"1": ["then exit 0"]}, count=1) as one:
        await one.until_noted(1, "ready", 2)


async def test_where_work_has_an_end_all_end_with_it(tmp_path):
    manners = {"1": ["then exit 0"], "2": ["then exit 1", "then exit 0"]}
    async with family(tmp_path, manners, is_finite=True) as one:
        await one.is_over.wait()
        assert one.status == 0
    assert one.words(2).count("ready") == 2


async def test_a_child_that_refuses_to_begin_ends_all(tmp_path):
    async with family(tmp_path, {"2": ["exit 78"]}) as one:
        await one.is_over.wait()
        assert one.status == 78
    assert not one.ready.is_set()
    assert not any(is_alive(pid) for shard in (1, 2) for pid, _ in one.diary(shard))


async def test_one_that_refuses_later_is_tried_again(tmp_path):
    async with family(tmp_path, {"1": ["then exit 1", "exit 75"]}, count=1) as one:
        await one.until_noted(1, "ready", 2)


# ---- signals --------------------------------------------------------------------------------------


async def test_a_reload_is_passed_on_and_over_when_all_are_ready_again(tmp_path, nursery):
    manager = Manager(tmp_path)
    await nursery.start(manager.listen)
    async with family(tmp_path, notifier=Notifier(manager.address)) as one:
        await one.until_ready()
        await one.until(lambda: manager.heard == ["READY=1"])
        one.supervisor.reload()
        await one.until(lambda: len(manager.heard) >= 3)
        assert manager.heard == ["READY=1", "RELOADING=1", "READY=1"]
        assert one.words(1)[-1] == one.words(2)[-1] == "hup"
        one.supervisor.drain()
        await one.is_over.wait()
        await one.until(lambda: "STOPPING=1" in manager.heard)
    nursery.cancel_scope.cancel()


async def test_those_at_work_are_asked_how_it_goes(tmp_path, caplog):
    caplog.set_level("INFO", "engine.worker")
    async with family(tmp_path, {"2": ["slow"]}) as one:
        await one.until_noted(1, "ready")
        await one.until_noted(2, "watchdog None")
        pid = one.diary(1)[0][0]
        await one.until(lambda: one.supervisor._children[1].has_worked)
        one.supervisor.tell()
        await one.until_noted(1, "usr1")
        assert caplog.messages == [f"1 of 2 processes are at work: process 1 (pid {pid})"]
        # To one that begins it would be the end.
        assert is_alive(one.diary(2)[0][0])
        assert one.supervisor._children[2].process.returncode is None
        one.supervisor.drain()
        await one.is_over.wait()


async def test_children_that_end_slowly_are_told_twice_then_killed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    async with family(tmp_path, {"1": ["deaf"]}, drain_timeout=0.3) as one:
        await one.until_ready()
        one.supervisor.drain()
        await one.until_noted(1, "term")
        one.supervisor.stop()
        await one.until_noted(1, "term", 2)
        await one.is_over.wait()
        assert one.status == 128 + signal.SIGKILL
    assert any("does not end: it is killed" in message for message in caplog.messages)


async def test_told_to_end_in_a_pause_nobody_is_started_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 1000.0)
    async with family(tmp_path, {"1": ["then exit 1"]}, count=1) as one:
        await one.until_noted(1, "ready")
        await one.until(lambda: not one.supervisor._children)
        one.supervisor.drain()
        await one.is_over.wait()
        assert one.status == 0
    assert one.words(1) == ["watchdog None", "ready"]


async def test_children_do_not_hear_the_terminal(tmp_path):
    async with family(tmp_path, count=1) as one:
        await one.until_ready()
        (pid, _), *_ = one.diary(1)
        assert os.getpgid(pid) == pid != os.getpgid(0)


# ---- life and death -------------------------------------------------------------------------------


async def test_a_child_that_gives_no_sign_of_life_is_killed_and_replaced(tmp_path, caplog, nursery):
    manager = Manager(tmp_path)
    await nursery.start(manager.listen)
    notifier = Notifier(manager.address, 1.5)
    async with family(tmp_path, {"1": ["silent"]}, notifier=notifier) as one:
        await one.until_noted(1, "ready", 2)
        assert one.words(1)[0] == "watchdog 1.5"
        assert one.words(2).count("ready") == 1
        assert "WATCHDOG=1" in manager.heard
    assert any("no sign of life" in message for message in caplog.messages)
    nursery.cancel_scope.cancel()


async def test_cancelled_it_leaves_no_children(tmp_path):
    async with family(tmp_path, {"1": ["deaf"]}) as one:
        await one.until_ready()
        pids = [child.process.pid for child in one.supervisor._children.values()]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


async def test_children_hear_that_their_parent_was_killed(tmp_path):
    (tmp_path / "manners").write_text(json.dumps({"1": ["parent"]}))
    (tmp_path / "child.py").write_text(CHILD)
    code = (
        "import sys, trio\n"
        "from engine.worker.notify import Notifier\n"
        "from engine.worker.supervisor import Supervisor\n"
        "folder = sys.argv[1]\n"
        "trio.run(Supervisor(\n"
        "    lambda shard: [sys.executable, f'{folder}/child.py', folder, str(shard)],\n"
        "    1, Notifier(), lambda: print('ready', flush=True), 5.0).run)\n"
    )
    parent = await trio.lowlevel.open_process(
        [sys.executable, "-c", code, str(tmp_path)], stdout=-1
    )
    with trio.fail_after(20):
        assert (await parent.stdout.receive_some()).startswith(b"ready")
        parent.kill()
        await parent.wait()
        while "parent gone" not in (tmp_path / "1.diary").read_text():  # noqa: ASYNC110
            await trio.sleep(0.01)


# ---- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with status 0"),
        (78, "ended with status 78"),
        (-9, "was killed by SIGKILL"),
        (-35, "was killed by signal 35"),
    ],
)
def test_how_a_process_ended(code, text):
    assert describe_end(code) == text


@pytest.mark.parametrize(
    ("codes", "status"), [([], 0), ([0, 0], 0), ([0, 75, 78], 75), ([0, -9], 137)]
)
def test_the_status_for_several(codes, status):
    assert worst(codes) == status
