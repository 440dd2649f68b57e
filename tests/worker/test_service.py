from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio

from engine.errors import ConfigError
from engine.queue.errors import StoreDamagedError, StoreFullError, StoreVersionError
from engine.queue.sqlite import SqliteStore, open_store
from engine.queue.values import EVERYBODY, Action, Recovered
from engine.testing.clock import FakeClock
from engine.worker import service as module
from engine.worker.config import load_config
from engine.worker.control_client import open_control
from engine.worker.lock import LockedError, hold_lock
from engine.worker.notify import Notifier
from engine.worker.output import open_output
from engine.worker.process_log import ProcessLog
from engine.worker.service import Manner, Service
from engine.worker.share import Share
from tests.queue.mail import mail
from tests.worker.worker_process import a_place, damage, make_newer, until

FOREVER = 'drain_timeout = "10m"'
#: What goes wrong at RCPT goes wrong before the content.
LOCKSTEP = "chunking = false\nstream_depth = 1\n"


@pytest.fixture
async def place(tmp_path):
    async with a_place(tmp_path) as made:
        yield made


class Running:
    """A service that runs in the test."""

    def __init__(self, place, service):
        self.place = place
        self.service = service
        self.said = []
        self.is_ready = trio.Event()
        self.is_over = trio.Event()

    def hear(self, line):
        self.said.append(line)
        self.is_ready.set()

    async def run(self):
        await self.service.run()
        self.is_over.set()

    async def end(self):
        self.service.drain()
        await self.is_over.wait()


def a_service(place, hear, *, log, notifier=None, **manner):
    config = load_config(place.config)
    made = Manner(read_config=partial(load_config, place.config), **manner)
    return Service(config, made, log, notifier or Notifier(), hear)


@asynccontextmanager
async def a_log(form="text"):
    descriptor = os.open("/dev/null", os.O_WRONLY)
    try:
        async with open_output(descriptor) as output:
            log = ProcessLog(output, form)
            with log.hear_modules():
                yield log
    finally:
        os.close(descriptor)


@asynccontextmanager
async def serving(place, **manner):
    with trio.fail_after(30):
        async with a_log() as log, trio.open_nursery() as nursery:
            running = Running(place, None)
            running.service = a_service(place, running.hear, log=log, **manner)
            nursery.start_soon(running.run)
            await running.is_ready.wait()
            yield running
            if not running.is_over.is_set():
                running.service.stop()


async def run_in_vain(place, **manner):
    async with a_log() as log:
        await a_service(place, pytest.fail, log=log, **manner).run()


# ---- from the beginning to the end ----------------------------------------------------------------


async def test_it_works_says_so_once_and_leaves_nothing_but_its_files(place):
    await place.submit("a@x.test", "reject@x.test")
    async with serving(place) as running:
        await until(lambda: len(place.outcomes()) == 2)
        assert (place.folder / "engine.sock").is_socket()
        await running.end()
    assert place.statuses() == [("a@x.test", "delivered"), ("reject@x.test", "failed")]
    assert running.said == [
        f"pid {os.getpid()}, store {place.folder}/spool.sqlite, socket {place.folder}/engine.sock"
    ]
    assert sorted(path.name for path in place.folder.iterdir()) == [
        "engine.toml",
        "outcomes.jsonl",
        "spool.sqlite",
        "spool.sqlite.lock",
        "state.sqlite",
    ]


async def test_until_empty_ends_when_nothing_is_left_and_what_is_held_does_not_count(place, caplog):
    await place.submit("a@x.test", "greylist@x.test")
    await place.submit("held@x.test", is_held=True)
    place.configure(more='[[retry]]\nmatch = "*"\nsteps = ["500ms", "2s"]')
    async with serving(place, until_empty=True) as running:
        await running.is_over.wait()
    assert place.statuses() == [
        ("a@x.test", "delivered"),
        ("greylist@x.test", "deferred"),
        ("greylist@x.test", "delivered"),
    ]
    assert [each["attempt"] for each in place.outcomes()] == [1, 1, 2]
    assert await place.left() == [("held@x.test", "held")]
    assert caplog.messages[-2:] == ["nothing is left to do", "ended"]


async def test_dialogues_are_logged_where_they_are_wanted(place):
    place.configure(worker="transcripts = true")
    await place.submit("a@x.test")
    async with serving(place, until_empty=True) as running:
        await running.is_over.wait()
    (record,) = place.outcomes()
    assert record["transcript"][0].startswith("S: 220 ")


async def test_what_is_done_is_not_begun_again_by_the_next(place):
    await place.submit("a@x.test")
    for _ in range(2):
        async with serving(place, until_empty=True) as running:
            await running.is_over.wait()
    assert len(place.outcomes()) == 1


@pytest.mark.parametrize("bounce", ["report", "event", "both"])
async def test_senders_are_told_what_failed_and_that_is_delivered_too(place, bounce):
    place.configure(queue=f'bounce = "{bounce}"\nbounce_name = "me.test"')
    await place.submit("reject@x.test", sender="who@y.test")
    async with serving(place, until_empty=True) as running:
        await running.is_over.wait()
    records = place.outcomes()
    events = [record for record in records if record.get("event") == "report"]
    assert len(events) == (bounce != "report")
    told = [record for record in records if record.get("recipient") == "who@y.test"]
    assert [record["status"] for record in told] == ["delivered"] * (bounce != "event")
    assert place.sink.statistics().messages == len(told)
    assert await place.left() == []


# ---- ending ---------------------------------------------------------------------------------------


async def test_draining_finishes_what_is_in_flight_and_begins_no_more(place):
    place.configure(worker="seats = 10")
    await place.submit(*(f"slow-0.3+{number}@x.test" for number in range(30)))
    async with serving(place) as running:
        await until(lambda: place.sink.statistics().open > 0)
        await running.end()
    left = await place.left()
    assert {state for _, state in left} == {"queued"}
    assert len(place.outcomes()) + len(left) == 30
    assert place.sink.statistics().recipients == len(place.outcomes()) > 0
    assert {status for _, status in place.statuses()} == {"delivered"}


@pytest.mark.parametrize("is_stopped", [True, False])
async def test_what_does_not_end_is_cut_short_and_stays_in_the_store(place, is_stopped):
    place.configure(worker=FOREVER if is_stopped else 'drain_timeout = "200ms"', defaults=LOCKSTEP)
    await place.submit("stall@x.test")
    async with serving(place) as running:
        await until(lambda: place.sink.statistics().open > 0)
        running.service.drain()
        if is_stopped:
            running.service.stop()
        await running.is_over.wait()
    assert await place.left() == [("stall@x.test", "queued")]
    assert place.sink.statistics().recipients == 0


async def test_who_is_cancelled_stops_at_once(place):
    place.configure(worker=FOREVER, defaults=LOCKSTEP)
    await place.submit("stall@x.test")
    with trio.CancelScope() as scope:
        async with serving(place):
            await until(lambda: place.sink.statistics().open > 0)
            scope.cancel()
    assert await place.left() == [("stall@x.test", "queued")]


# ---- a new configuration --------------------------------------------------------------------------


def count_of(caplog, text):
    return sum(text in message for message in caplog.messages)


IN_FORCE = "the new configuration is in force"
AS_IT_WAS = "the configuration stays as it was"


async def test_a_new_configuration_comes_into_force(place, caplog):
    place.configure(defaults='helo_name = "old.test"', worker="transcripts = true")
    async with serving(place) as running:
        await submit_over(place, "a@x.test")
        await until(lambda: len(place.outcomes()) == 1)
        place.configure(
            worker='transcripts = true\nlog = "json"\nprocesses = 3',
            queue='path = "other.sqlite"',
            defaults='helo_name = "new.test"',
        )
        running.service.reload()
        await until(lambda: count_of(caplog, IN_FORCE))
        await submit_over(place, "b@x.test")
        await until(lambda: len(place.outcomes()) == 2)
        assert running.service._log.form == "json"
        await running.end()
    hellos = [each["transcript"][1] for each in place.outcomes()]
    assert hellos == ["C: EHLO old.test", "C: EHLO new.test"]
    for key, before, after in [
        ("queue.path", "'spool.sqlite'", "'other.sqlite'"),
        ("worker.processes", "1", "3"),
    ]:
        text = f"{key} stays {before} until the worker is started anew: {after} is not in force"
        assert count_of(caplog, text) == 1
    assert len(running.said) == 1


async def test_what_cannot_change_is_told_by_what_the_worker_began_with(place, caplog):
    place.configure()
    async with serving(place) as running:
        for path in ("other.sqlite", "other.sqlite", "spool.sqlite"):
            caplog.clear()
            place.configure(queue=f'path = "{path}"')
            running.service.reload()
            await until(lambda: count_of(caplog, IN_FORCE))
            assert count_of(caplog, "queue.path stays") == (path == "other.sqlite")
        await running.end()


async def test_a_worker_that_takes_nothing_in_for_lack_of_room_says_so(place, monkeypatch):
    async with serving(place) as running:
        assert running.service.status()["healthy"] is True
        monkeypatch.setattr("engine.worker.service.DEFAULT_RESERVE_OCTETS", 1 << 62)
        status = running.service.status()
        assert status["healthy"] is False
        assert "nothing is taken in" in status["problem"]
        await running.end()


async def test_a_new_limit_of_octets_holds_from_then_on(place, caplog):
    place.configure()
    async with serving(place) as running:
        place.configure(queue="max_message_octets = 10")
        running.service.reload()
        await until(lambda: count_of(caplog, IN_FORCE))
        async with open_control(place.folder / "engine.sock") as control:
            (answer,) = await control.submit([mail("a@x.test", sender="", at=time.time())])
        assert "allowed are 10 (max_message_octets)" in answer.text
        await running.end()


async def submit_over(place, address):
    """Submit as the command line does, so that the worker hears of it."""
    async with open_control(place.folder / "engine.sock") as control:
        await control.submit([mail(address, sender="", at=time.time())])


async def steer_over(place, action):
    async with open_control(place.folder / "engine.sock") as control:
        await control.apply(action, EVERYBODY)


async def test_a_bad_configuration_is_not_taken_and_the_log_says_why(place, caplog):
    async with serving(place) as running:
        place.configure(worker="processes = 0", defaults="max_connection = 3")
        running.service.reload()
        await until(lambda: count_of(caplog, AS_IT_WAS))
        for key in ("worker.processes", "defaults.max_connection"):
            assert count_of(caplog, f": {key}: found ") == 1
        assert all(
            text.startswith("the new configuration is not taken: ")
            for text in caplog.messages
            if ": found " in text
        )
        place.config.unlink()
        running.service.reload()
        await until(lambda: count_of(caplog, AS_IT_WAS) == 2)
        assert count_of(caplog, f"not taken: {place.config}: No such file or directory") == 1
        place.configure()
        await submit_over(place, "a@x.test")
        await until(lambda: len(place.outcomes()) == 1)
        running.service.reload()
        await until(lambda: count_of(caplog, IN_FORCE))
        await running.end()


async def test_a_configuration_that_fails_at_the_last_moment_brings_the_old_one_back(place, caplog):
    async with serving(place) as running:
        place.configure(worker='outcomes = "nowhere/log"')
        running.service.reload()
        await until(lambda: count_of(caplog, AS_IT_WAS))
        assert count_of(caplog, "not taken: ") == 1
        await submit_over(place, "a@x.test")
        await until(lambda: len(place.outcomes()) == 1)
        await running.end()


async def test_a_store_in_trouble_is_no_reason_to_refuse_a_configuration(
    place, caplog, monkeypatch
):
    failures = 3

    async def recover(self, **how):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise StoreFullError("the disk is full")
        return Recovered()

    async with serving(place) as running:
        monkeypatch.setattr(SqliteStore, "recover", recover)
        place.configure(worker='log = "json"')
        running.service.reload()
        await until(lambda: count_of(caplog, IN_FORCE))
        await submit_over(place, "a@x.test")
        await until(lambda: len(place.outcomes()) == 1)
        await running.end()
    pauses = [text for text in caplog.messages if text.startswith("nothing can be delivered")]
    assert [text.rpartition(" in ")[2] for text in pauses] == ["0.1 s", "0.2 s", "0.4 s"]


async def test_told_to_end_while_nothing_can_be_delivered_it_ends(place, caplog, monkeypatch):
    async def recover(self, **how):
        raise StoreFullError("the disk is full")

    async with serving(place) as running:
        monkeypatch.setattr(SqliteStore, "recover", recover)
        running.service.reload()
        await until(lambda: count_of(caplog, "nothing can be delivered"))
        await running.end()


async def test_a_reload_loses_no_mail_and_sends_none_twice(place, caplog):
    place.configure(defaults="max_messages_per_connection = 3\nmax_connections = 5")
    await place.submit(*(f"slow-0.02+{number}@x.test" for number in range(300)))
    async with serving(place, until_empty=True) as running:
        for count in (1, 2, 3):
            await until(lambda count=count: len(place.outcomes()) >= 30 * count)
            running.service.reload()
            await until(lambda count=count: count_of(caplog, IN_FORCE) == count)
        await running.is_over.wait()
    assert place.sink.statistics().recipients == 300
    assert len(set(place.statuses())) == len(place.statuses()) == 300
    assert await place.left() == []


async def test_one_slow_host_does_not_stop_mail_to_others(place, caplog, monkeypatch):
    monkeypatch.setattr(module, "HANDOVER_SECONDS", 0.2)
    place.configure(worker=FOREVER, defaults=LOCKSTEP)
    await place.submit("stall@x.test")
    async with serving(place) as running:
        await until(lambda: place.sink.statistics().open > 0)
        running.service.reload()
        await until(lambda: count_of(caplog, IN_FORCE))
        assert running.service.status()["stragglers"] == 1
        await submit_over(place, "a@y.test")
        await until(lambda: place.statuses() == [("a@y.test", "delivered")])
        running.service.stop()
        await running.is_over.wait()
    assert await place.left() == [("stall@x.test", "queued")]


async def test_told_to_end_in_the_middle_of_a_reload_it_ends(place, caplog, monkeypatch):
    monkeypatch.setattr(module, "HANDOVER_SECONDS", 0.2)
    place.configure(worker='drain_timeout = "400ms"', defaults=LOCKSTEP)
    await place.submit("stall@x.test")
    async with serving(place) as running:
        await until(lambda: place.sink.statistics().open > 0)
        running.service.reload()
        running.service.drain()
        await running.is_over.wait()
    assert not count_of(caplog, IN_FORCE)
    assert await place.left() == [("stall@x.test", "queued")]


async def test_a_log_of_outcomes_that_was_moved_away_is_begun_anew(place, caplog):
    async with serving(place) as running:
        path = place.folder / "outcomes.jsonl"
        for name in ("a", "b"):
            await submit_over(place, f"{name}@x.test")
            await until(lambda name=name: name in str(place.outcomes()))
            path.rename(place.folder / name)
        running.service.reload()
        await until(lambda: count_of(caplog, IN_FORCE))
        assert path.exists()
        await running.end()
    for name in ("a", "b"):
        (line,) = (place.folder / name).read_text().splitlines()
        assert json.loads(line)["recipient"] == f"{name}@x.test"


async def test_who_is_taken_out_has_one_final_line_whether_or_not_he_was_at_work(place, caplog):
    place.configure(worker='drain_timeout = "100ms"', defaults=LOCKSTEP)
    await place.submit("held@y.test", is_held=True)
    await place.submit("stall@x.test")
    async with serving(place) as running:
        await until(lambda: place.sink.statistics().open > 0)
        async with open_control(place.folder / "engine.sock") as control:
            assert await control.apply(Action.CANCEL, EVERYBODY, "stop") == 2
        assert place.statuses() == [("held@y.test", "failed")]  # when the command returns
        place.configure(worker='drain_timeout = "100ms"\noutcomes = "new.jsonl"')
        running.service.reload()
        await until(lambda: count_of(caplog, IN_FORCE))
        await submit_over(place, "b@x.test")
        await until(lambda: "b@x.test" in (place.folder / "new.jsonl").read_text())
        await running.end()
    old = [(each["recipient"], each["status"], each["final"]) for each in place.outcomes()]
    assert old[0] == ("held@y.test", "failed", True)
    lines = (place.folder / "new.jsonl").read_text().splitlines()
    new = [(each["recipient"], each["status"], each["final"]) for each in map(json.loads, lines)]
    assert new.count(("stall@x.test", "failed", True)) == 1
    assert [name for name, _, is_final in old + new if is_final].count("held@y.test") == 1
    assert await place.left() == []


async def test_what_a_crash_kept_from_being_logged_is_logged_by_the_next(place):
    await place.submit("a@x.test", is_held=True)
    async with open_store(place.store()) as store:
        await store.apply(Action.CANCEL, EVERYBODY, now=time.time())
    async with serving(place) as running:
        await until(lambda: place.statuses() == [("a@x.test", "failed")])
        await running.end()
    async with open_store(place.store()) as store:
        assert await store.removals() == ()


# ---- how it is ------------------------------------------------------------------------------------


async def test_its_status_says_how_it_is(place):
    clock = FakeClock(time.time())
    async with serving(place, clock=clock, share=Share(1, 2)) as running:
        await submit_over(place, "a@x.test")
        await until(lambda: len(place.outcomes()) == 1)
        clock.advance(90)
        await until(lambda: running.service.status()["settled"] == 1)
        status = running.service.status()
        running.service.drain()
        assert running.service.status()["state"] == "ending"
        await running.is_over.wait()
    assert json.loads(json.dumps(status)) == status
    expected = {
        "pid": os.getpid(),
        "process": "1/2",
        "state": "working",
        "seconds": 90.0,
        "store": f"{place.folder}/spool.sqlite",
        "outcomes": f"{place.folder}/outcomes.jsonl",
        "healthy": True,
        "delivered": 1,
        "in_flight": 0,
        "stragglers": 0,
        "lost": 0,
    }
    assert {key: status[key] for key in expected} == expected
    # Those of Trio itself and of this test are among them.
    assert 10 < status["tasks"] < 60


async def test_asked_how_it_goes_it_says_so_in_the_log(place, caplog, monkeypatch):
    async def counts(self, **how):
        raise StoreDamagedError("spoiled")

    await place.submit("held@x.test", is_held=True)
    async with serving(place) as running:
        await submit_over(place, "a@x.test")
        await submit_over(place, "reject@x.test")
        await until(lambda: running.service.status()["settled"] == 2)
        running.service.tell()
        await until(lambda: count_of(caplog, "so far"))
        monkeypatch.setattr(SqliteStore, "counts", counts)
        running.service.tell()
        await until(lambda: count_of(caplog, "so far") == 2)
        await running.end()
    first, second = [text for text in caplog.messages if "so far" in text]
    assert re.fullmatch(
        r"working: 0 queued \(0 due\), 0 leased, 1 held, 0 to be reported on; \d connections; "
        "so far 1 delivered, 0 deferred, 1 failed, 0 unknown",
        first,
    )
    assert second.startswith("working: the store cannot be counted: spoiled; ")


async def test_a_service_manager_is_told(place, caplog):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{place.folder}")

        async def hear(but="WATCHDOG=1"):
            while True:
                await trio.lowlevel.wait_readable(manager)
                word = manager.recv(4096).decode().split("\n")[0]
                if word != but:
                    return word

        notifier = Notifier(f"@{place.folder}", 0.3)
        async with serving(place, notifier=notifier) as running:
            assert await hear() == "READY=1"
            assert await hear(but="") == "WATCHDOG=1"
            running.service.reload()
            assert [await hear(), await hear()] == ["RELOADING=1", "READY=1"]
            assert count_of(caplog, IN_FORCE) == 1
            place.config.unlink()
            running.service.reload()
            assert [await hear(), await hear()] == ["RELOADING=1", "READY=1"]
            assert count_of(caplog, AS_IT_WAS) == 1
            await running.end()
            assert await hear() == "STOPPING=1"


# ---- what keeps it from beginning -----------------------------------------------------------------


async def test_a_second_one_at_a_store_is_refused(place):
    async with serving(place) as running:
        with pytest.raises(LockedError) as refused:
            await run_in_vain(place)
        assert refused.value.pid == os.getpid()
        await running.end()
    with hold_lock(place.store()):
        pass


@pytest.mark.parametrize(
    ("spoil", "error"), [(damage, StoreDamagedError), (make_newer, StoreVersionError)]
)
async def test_a_store_that_cannot_be_used_is_left_alone(place, spoil, error):
    async with open_store(place.store()):
        pass
    spoil(place.store())
    before = place.store().read_bytes()
    with pytest.raises(error, match=r"spool\.sqlite"):
        await run_in_vain(place)
    assert place.store().read_bytes() == before


@pytest.mark.parametrize(
    ("sections", "error", "text"),
    [
        ({"queue": 'path = "nowhere/spool"'}, FileNotFoundError, r"nowhere/spool\.lock"),
        ({"worker": 'outcomes = "nowhere/log"'}, FileNotFoundError, "nowhere/log"),
        ({"worker": 'outcomes = "."'}, IsADirectoryError, "directory"),
    ],
)
async def test_what_keeps_it_from_beginning_is_raised_as_it_is(place, sections, error, text):
    place.configure(**sections)
    with pytest.raises(error, match=text):
        await run_in_vain(place)


async def test_files_of_settings_that_went_bad_are_a_bad_configuration(place):
    ca = place.folder / "ca.pem"
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", ca)
    place.configure(defaults=f'tls_ca_file = "{ca}"')
    async with a_log() as log:
        service = a_service(place, pytest.fail, log=log)
        ca.write_text("nonsense")
        with pytest.raises(ConfigError, match=r"ca\.pem"):
            await service.run()


# ---- trouble with disks ---------------------------------------------------------------------------


@contextmanager
def small_disk(folder, size):
    """Mount a disk of this size; only root can."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def fill(path):
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 4096)


async def test_a_full_disk_stops_the_intake_and_keeps_what_is_there_until_there_is_room(
    tmp_path, caplog
):
    with small_disk(tmp_path / "disk", "48m") as disk:
        async with a_place(disk) as place:
            await place.submit(*(f"slow-1+{number}@x.test" for number in range(20)))
            async with serving(place) as running:
                await until(lambda: place.sink.statistics().open > 0)
                fill(disk / "filler")
                with pytest.raises(StoreFullError):
                    await submit_over(place, "late@x.test")
                assert "octets are left on its disk" in running.service.status()["problem"]
                await until(lambda: count_of(caplog, "outcomes cannot be kept: "))
                assert not running.service.status()["healthy"]
                assert not place.outcomes()
                (disk / "filler").unlink()
                await until(lambda: running.service.status()["healthy"])
                await submit_over(place, "late@x.test")
                # Whom the full disk kept from being delivered waits for his next attempt.
                while await place.left():
                    await steer_over(place, Action.RETRY)
                    await trio.sleep(0.2)
                await running.end()
            assert place.sink.statistics().recipients == 21
            delivered = [name for name, status in place.statuses() if status == "delivered"]
            assert len(delivered) == len(set(delivered)) == 21


async def test_a_log_of_outcomes_that_cannot_be_written_keeps_outcomes_until_it_can(place, caplog):
    folder = place.folder / "logs"
    folder.mkdir()
    place.configure(worker='outcomes = "logs/log"')
    async with serving(place) as running:
        folder.rename(place.folder / "elsewhere")
        await submit_over(place, "a@x.test")
        await until(lambda: count_of(caplog, "outcomes cannot be kept"))
        assert [state for _, state in await place.left()] == ["leased"]
        folder.mkdir()
        await until(lambda: running.service.status()["healthy"])
        await running.end()
    (line,) = (folder / "log").read_text().splitlines()
    assert json.loads(line)["status"] == "delivered"
    assert await place.left() == []


async def test_a_wall_clock_that_jumps_does_no_harm(place):
    clock = FakeClock(time.time())
    async with serving(place, clock=clock) as running:
        for jump in (86_400, -2 * 86_400, 3600):
            clock.advance(jump)
            await place.submit(f"{abs(jump)}@x.test")
            await submit_over(place, f"over{abs(jump)}@x.test")
        await until(lambda: len(place.outcomes()) == 6)
        await running.end()
    assert {status for _, status in place.statuses()} == {"delivered"}
    assert await place.left() == []
