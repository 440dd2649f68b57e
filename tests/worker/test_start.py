"""The command `run` as a process; what can be seen inside one is in `test_service`."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from engine.queue.sqlite import open_store
from engine.worker.lock import hold_lock
from engine.worker.start import RunOptions, run_worker
from tests.queue.mail import mail
from tests.worker.worker_process import a_place, damage, damage_index, make_newer, until

TERM, HUP, KILL, USR1 = signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGUSR1


@pytest.fixture
async def place(tmp_path):
    async with a_place(tmp_path) as made:
        yield made


# ---- one process ----------------------------------------------------------------------------------


async def test_what_is_in_the_store_is_delivered_and_the_log_of_outcomes_says_so(place):
    place.configure(worker='log = "json"')
    await place.submit("a@x.test", "reject@x.test", "defer@x.test")
    async with place.run() as worker:
        line = await worker.ready()
        await until(lambda: len(place.outcomes()) == 3)
        async with place.run() as second:
            assert await second.ended() == 75
            assert await second.rest() == ""
        worker.signal(TERM)
        assert await worker.ended() == 0
        assert await worker.rest() == line
    assert re.fullmatch(
        rf"ready: pid {worker.pid}, store {place.folder}/spool\.sqlite, "
        rf"socket {place.folder}/engine\.sock\n",
        line,
    )
    by_name = {record["recipient"]: record for record in place.outcomes()}
    delivered, deferred = by_name["a@x.test"], by_name["defer@x.test"]
    assert (delivered["status"], delivered["attempt"], delivered["final"]) == ("delivered", 1, True)
    assert delivered["next_attempt"] is None
    assert (deferred["status"], deferred["final"]) == ("deferred", False)
    for moment in (delivered["time"], deferred["next_attempt"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    assert deferred["next_attempt"] > deferred["time"]
    assert by_name["reject@x.test"]["final"] is True
    assert ("defer@x.test", "queued") in await place.left()
    assert not (place.folder / "engine.sock").exists()
    (refusal,) = map(json.loads, second.log.splitlines())
    assert refusal["text"] == (
        f"{place.folder}/spool.sqlite: process {worker.pid} is the worker at it; stop that one first"
    )
    texts = [json.loads(text)["text"] for text in worker.log.splitlines()]
    assert texts[-2].startswith("ending: finishing 0 in flight")
    assert texts[-1] == "ended"


async def test_what_a_killed_worker_had_in_hand_is_taken_over_by_the_next(place):
    place.configure(defaults="max_messages_per_connection = 1\nmax_connections = 3")
    await place.submit(*(f"slow-0.3+{number}@x.test" for number in range(60)))
    async with place.run() as worker:
        await worker.ready()
        await until(lambda: len(place.outcomes()) > 5)
        worker.signal(KILL)
        await worker.ended()
    assert any(state == "leased" for _, state in await place.left())
    async with place.run() as worker:
        await worker.ready()
        await worker.says("recovered from a worker that is gone")
        worker.signal(TERM)
        assert await worker.ended() == 0
    outcomes = place.outcomes()
    delivered = {each["recipient"] for each in outcomes if each["status"] == "delivered"}
    unknown = {each["recipient"] for each in outcomes if each["status"] == "unknown"}
    left = {recipient for recipient, _ in await place.left()}
    # Nobody is lost, and the policy is to try again whoever is in doubt.
    assert len(delivered | left) == 60
    assert unknown <= left | delivered
    assert "leased" not in {state for _, state in await place.left()}
    taken = {recipient for each in place.sink.messages for recipient in each.recipients}
    assert taken <= delivered | unknown | left


async def test_signals_and_the_service_manager_of_a_process(place):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{place.folder}")
        heard = []

        async def listen():
            while True:
                await trio.lowlevel.wait_readable(manager)
                heard.append(manager.recv(4096).decode().split("\n")[0])

        def said(*words):
            return [word for word in heard if word != "WATCHDOG=1"] == list(words)

        env = {"NOTIFY_SOCKET": f"@{place.folder}", "WATCHDOG_USEC": "600000"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            async with place.run(env=env) as worker:
                await until(lambda: said("READY=1"))
                await until(lambda: heard.count("WATCHDOG=1") >= 3)
                worker.signal(HUP)
                await worker.says("the new configuration is in force")
                place.configure(worker="processes = 0")
                worker.signal(HUP)
                await worker.says("the configuration stays as it was")
                assert re.search(r"level=error .*engine\.toml:\d+: worker\.processes: ", worker.log)
                worker.signal(TERM)
                assert await worker.ended() == 0
                reload = ("RELOADING=1", "READY=1")
                await until(lambda: said("READY=1", *reload, *reload, "STOPPING=1"))
            nursery.cancel_scope.cancel()


async def test_asked_how_it_goes_a_process_lives_on_and_says_so(place):
    async with place.run() as worker:
        await worker.ready()
        worker.signal(USR1)
        await worker.says("so far 0 delivered, 0 deferred, 0 failed, 0 unknown")
        worker.signal(TERM)
        assert await worker.ended() == 0


# ---- several processes ----------------------------------------------------------------------------


def child_of(place, shard):
    # Between its making and its writing the file is empty.
    return int((place.folder / f"{place.store(shard).name}.lock").read_text() or 0)


def name_of(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def test_several_processes_share_the_work_and_one_that_dies_is_replaced(place):
    place.configure(worker="processes = 2")
    async with place.run() as worker:
        assert (await worker.ready()).startswith("ready: 2 processes, store ")
        first, second = child_of(place, 1), child_of(place, 2)
        assert len({first, second, worker.pid}) == 3
        async with place.run() as other:
            assert await other.ended() == 75
            assert f"process {worker.pid} is the worker at it" in other.log
        os.kill(second, KILL)
        await worker.says(f"process 2 (pid {second}) was killed by SIGKILL; another one starts")
        await until(lambda: child_of(place, 2) not in (0, second))
        assert child_of(place, 1) == first
        await place.submit("a@x.test", shard=1)
        await place.submit("b@x.test", shard=2)
        worker.signal(TERM)
        assert await worker.ended() == 0
    for shard in (1, 2):
        with hold_lock(place.store(shard)):
            pass
    async with place.run("--until-empty") as worker:
        assert await worker.ended() == 0
        assert (await worker.rest()).count("\n") == 1
    assert {("a@x.test", "delivered"), ("b@x.test", "delivered")} == set(place.statuses())


async def test_several_processes_can_be_told_apart_and_asked_how_it_goes(place):
    place.configure(worker="processes = 2")
    async with place.run() as worker:
        await worker.ready()
        for shard in (1, 2):
            assert name_of(child_of(place, shard)) == f"engine {shard}/2"
        worker.signal(USR1)
        await worker.says("so far 0 delivered", times=2)
        assert "2 of 2 processes are at work" in worker.log
        # One that takes the place of another is named, too.
        before = child_of(place, 1)
        os.kill(before, KILL)
        await until(lambda: child_of(place, 1) not in (0, before))
        assert name_of(child_of(place, 1)) == "engine 1/2"
        worker.signal(TERM)
        assert await worker.ended() == 0


async def test_children_do_not_outlive_a_parent_that_is_killed(place):
    place.configure(worker="processes = 2")
    async with place.run() as worker:
        await worker.ready()
        worker.signal(KILL)
        await worker.ended()
        # The next one waits for them to leave.
        async with place.run() as other:
            await other.ready()
            other.signal(TERM)
            assert await other.ended() == 0
    assert "the parent is gone" in worker.log


async def test_what_keeps_one_process_from_beginning_keeps_all(place):
    place.configure(worker="processes = 2")
    damage(place.store(2))
    async with place.run() as worker:
        assert await worker.ended() == 66
        assert await worker.rest() == ""
    assert "spool-2.sqlite" in worker.log


@pytest.mark.parametrize("index", ["lanes_line", "recipients_waiting"])
async def test_with_an_index_that_is_damaged_work_that_has_an_end_ends(place, index):
    await place.submit("a@x.test")
    damage_index(place.store(), index)
    async with place.run("--until-empty") as worker:
        assert await worker.ended() == 66
    last = [line for line in worker.log.splitlines() if "level=error" in line][-2:]
    assert f"{place.store()}: it is damaged" in last[0]
    assert "what can still be read can be saved: queue export" in last[1]
    assert "Traceback" not in worker.log


async def test_of_several_processes_the_one_with_damage_ends_and_the_others_finish(place):
    place.configure(worker="processes = 2")
    await place.submit(*(f"slow-0.5+{number}@x.test" for number in range(3)), shard=1)
    await place.submit("b@x.test", shard=2)
    damage_index(place.store(2))
    async with place.run("--until-empty") as worker:
        await worker.ready()
        assert await worker.ended() == 66
    assert "process 2" in worker.log
    assert len(place.outcomes()) == 3


# ---- not beginning --------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "engine.toml"


def refusal(config: Path, capfd: pytest.CaptureFixture[str]):
    """Run a worker that must not begin; return its status and what it said."""
    status = run_worker(RunOptions(str(config)))
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return status, err


def make_store(path: Path, count: int = 0) -> None:
    async def fill() -> None:
        async with open_store(path) as store:
            await store.submit([mail() for _ in range(count)])

    trio.run(fill)


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ('[queue]\npath = "nowhere/spool"', 73, "nowhere/spool.lock: No such file or directory"),
        ('[worker]\noutcomes = "nowhere/log"', 73, "nowhere/log: No such file or directory"),
        ('[worker]\noutcomes = "."', 73, "Is a directory"),
        ("[worker]\nprocesses = 0", 78, "engine.toml:2: worker.processes: found 0"),
        ('[defaults]\ntls_ca_file = "/nowhere.pem"', 78, "nowhere.pem"),
        ("[worker", 78, "engine.toml:1"),
    ],
)
def test_what_keeps_it_from_beginning_is_said(config, capfd, text, status, said):
    config.write_text(text)
    found, err = refusal(config, capfd)
    assert found == status
    assert said in err


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [(damage, 66, "damaged"), (make_newer, 78, "of a later release")],
)
def test_a_store_that_cannot_be_used_is_said_and_left_alone(config, capfd, spoil, status, said):
    config.touch()
    store = config.with_name("spool.sqlite")
    make_store(store)
    spoil(store)
    before = store.read_bytes()
    found, err = refusal(config, capfd)
    assert found == status
    assert re.search(rf"level=error .*{re.escape(str(store))}: .*{said}", err)
    assert ("queue export" in err) == (spoil is damage)
    assert len(err.splitlines()) == (2 if spoil is damage else 1)
    assert store.read_bytes() == before


def test_without_a_configuration_it_does_not_begin(config, capfd):
    assert refusal(config, capfd) == (66, f"{config}: No such file or directory\n")


def test_mail_that_nobody_would_be_at_is_not_forgotten(config, capfd):
    config.touch()
    make_store(config.with_name("spool-2.sqlite"), 3)
    status, err = refusal(config, capfd)
    assert status == 78
    assert "spool-2.sqlite: 3 recipients are here, and nobody is at them" in err


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_needs_no_standard_streams(config, processes):
    config.write_text(f"[worker]\nprocesses = {processes}\n")
    begin = shlex.join(
        [sys.executable, "-m", "engine", "run", "--config", str(config), "--until-empty"]
    )
    assert subprocess.run(["sh", "-c", f"{begin} <&- >&- 2>&-"], check=False).returncode == 0
