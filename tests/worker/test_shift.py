from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace

import pytest
import trio

from engine.errors import ConfigError
from engine.queue.memory import MemoryStore
from engine.worker.config import load_config
from engine.worker.output import open_output
from engine.worker.process_log import ProcessLog
from engine.worker.shift import Shift, bounce_settings, site_seats
from tests.queue.mail import mail
from tests.worker.worker_process import a_place, until


@pytest.fixture
async def log():
    descriptor = os.open("/dev/null", os.O_WRONLY)
    async with open_output(descriptor) as output:
        yield ProcessLog(output)
    os.close(descriptor)


@pytest.fixture
async def place(tmp_path):
    async with a_place(tmp_path) as made:
        yield made


def a_shift(place, store, log, **how):
    return Shift(load_config(place.config), store, None, log, **how)


async def put(store, *addresses):
    await store.submit([mail(each, sender="", at=time.time()) for each in addresses])


async def states(store):
    return {entry.recipient: entry.state for entry in (await store.entries()).entries}


# ---- its life -------------------------------------------------------------------------------------


async def test_a_shift_works_until_it_is_told_to_end(place, log, nursery):
    store = MemoryStore()
    await put(store, "a@x.test")
    shift = a_shift(place, store, log)
    with trio.fail_after(10):
        await nursery.start(shift.run)
        await until(lambda: len(place.outcomes()) == 1)
        assert not shift.is_over.is_set()
        shift.end()
        await shift.is_over.wait()
    assert await states(store) == {}


async def test_two_shifts_can_be_at_one_store_and_nobody_gets_his_mail_twice(place, log, nursery):
    store = MemoryStore()
    names = [f"slow-0.05+{number}@x.test" for number in range(100)]
    await put(store, *names)
    first, second = a_shift(place, store, log), a_shift(place, store, log)
    with trio.fail_after(20):
        await nursery.start(first.run)
        await until(lambda: len(place.outcomes()) > 10)
        first.end()
        await nursery.start(second.run)
        await until(lambda: len(place.outcomes()) == 100)
        second.end()
        for shift in (first, second):
            await shift.is_over.wait()
    assert sorted(record["recipient"] for record in place.outcomes()) == sorted(names)
    assert place.sink.statistics().recipients == 100


async def test_what_dead_owners_left_is_taken_over_at_once(place, log, nursery):
    store = MemoryStore()
    await put(store, "a@x.test")
    now = time.time()
    await store.lease(
        owner="dead", now=now, seats=1, deadline=now + 1000, retry_at=now, site_seats=1
    )
    shift = a_shift(place, store, log, dead=["dead"])
    with trio.fail_after(10):
        await nursery.start(shift.run)
        await until(lambda: len(place.outcomes()) == 1)
        shift.stop()
        await shift.is_over.wait()


async def test_one_that_cannot_log_outcomes_does_not_begin_and_is_over(place, log, nursery):
    place.configure(worker='outcomes = "nowhere/log"')
    shift = a_shift(place, MemoryStore(), log)
    with pytest.raises(FileNotFoundError):
        await nursery.start(shift.run)
    assert shift.is_over.is_set()


async def test_a_route_that_cannot_be_is_a_bad_configuration(place, log):
    config = replace(load_config(place.config), routes=(("*", ("no host",)),))
    with pytest.raises(ConfigError):
        Shift(config, MemoryStore(), None, log)


async def test_its_numbers_are_values_of_json(place, log, nursery):
    store = MemoryStore()
    await put(store, "a@x.test", "defer@x.test")
    shift = a_shift(place, store, log)
    with trio.fail_after(10):
        await nursery.start(shift.run)
        await until(lambda: shift.report()["settled"] == 2)
        numbers = json.loads(json.dumps(shift.report()))
        shift.end()
        await shift.is_over.wait()
    expected = {"healthy": True, "delivered": 1, "deferred": 1, "failed": 0, "in_flight": 0}
    assert {key: numbers[key] for key in expected} == expected
    assert numbers["connections_opened"] >= 1


# ---- who reports ----------------------------------------------------------------------------------


def settings_of(tmp_path, text):
    (tmp_path / "engine.toml").write_text(text)
    return bounce_settings(load_config(tmp_path / "engine.toml"))


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ('[queue]\nbounce_name = "b.test"', "b.test", "MAILER-DAEMON@b.test"),
        ('[defaults]\nhelo_name = "h.test"', "h.test", "MAILER-DAEMON@h.test"),
        ('[queue]\nbounce_name = "b.test"\n[defaults]\nhelo_name = "h.test"', "b.test", None),
        (
            '[queue]\nbounce_from = "us@c.test"\n[defaults]\nhelo_name = "h.test"',
            "h.test",
            "us@c.test",
        ),
    ],
)
def test_who_reports_is_configured(tmp_path, text, name, address):
    found = settings_of(tmp_path, text)
    assert found.name == name
    assert address in (None, found.address)


@pytest.mark.parametrize(
    ("host", "name"), [("mx.me.test", "mx.me.test"), ("my host", "localhost"), ("", "localhost")]
)
def test_else_it_is_this_host_if_its_name_can_be_one(tmp_path, monkeypatch, host, name):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert settings_of(tmp_path, "").name == name


def test_how_it_reports_is_configured(tmp_path):
    text = '[queue]\nreturn_octets = 1000\nwarn_after = ["1h", "2h"]\nbounce_name = "b.test"'
    found = settings_of(tmp_path, text)
    assert (found.max_content_octets, found.warn_after) == (1000, (3600.0, 7200.0))


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seats"),
    [
        ("", 960),
        ("[defaults]\nmax_connections = 2\n", 200),
        ("[defaults]\nmax_connections = 50\n", 1000),
        ("[defaults]\nmax_connections = 500\n[worker]\nseats = 5000\n", 5000),
        ('[[paths]]\nmatch = "x.test"\nmax_connections = 60\n[worker]\nseats = 4000\n', 2880),
    ],
)
def test_a_site_has_work_for_all_the_connections_it_may_have(tmp_path, text, seats):
    (tmp_path / "engine.toml").write_text(text)
    assert site_seats(load_config(tmp_path / "engine.toml")) == seats
