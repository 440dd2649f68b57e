from __future__ import annotations

import json
import time

import pytest

from engine.worker.status import worker_lines
from tests.queue.mail import mail
from tests.worker.commands import run_command

NOW = time.time()


async def status(place, *arguments):
    return await run_command("status", "--config", place.config, *arguments)


async def test_a_worker_that_runs_is_well(place):
    facts = {"pid": 7, "seconds": 7300.0, "state": "working", "healthy": True, "in_flight": 3}
    async with place.worker(lambda: facts | {"delivered": 1234}) as store:
        await store.submit([mail("a@one.test", "b@two.test", at=NOW)])
        done = await status(place)
        as_json = await status(place, "--json")

    assert (done.status, done.err) == (0, "")
    assert "Process 1: running" in done.out
    assert "pid 7 · up 2.0 h · working · 3 in flight" in done.out
    assert "so far 1,234 delivered" in done.out
    assert "1 message · 2 queued · 2 due now · oldest" in done.out
    assert "one.test 1 1 0 -" in done.words
    record = json.loads(as_json.out)
    assert record["healthy"] is True
    (process,) = record["processes"]
    assert (process["process"], process["running"], process["counts"]["queued"]) == (1, True, 2)
    assert process["counts"]["oldest"].endswith("Z")
    assert process["worker"]["delivered"] == 1234
    assert process["backlog"][0] | {"next_due": ""} == {
        "site": "one.test",
        "queued": 1,
        "due": 1,
        "leased": 0,
        "next_due": "",
        "not_before": None,
        "failures": 0,
        "reason": "",
    }


async def test_without_a_worker_the_file_is_looked_at(place):
    await place.fill(mail("a@one.test", at=NOW))
    await place.defer(NOW + 1)
    done = await status(place)

    assert done.status == 69
    assert "Process 1: not running" in done.out
    assert "one.test 1 0 0 for" in done.words
    assert "refused" in done.out
    record = json.loads((await status(place, "--json")).out)
    assert (record["healthy"], record["processes"][0]["worker"]) == (False, None)
    assert record["processes"][0]["backlog"][0]["reason"] == "refused"


async def test_a_worker_that_is_not_well_says_so(place):
    async with place.worker(lambda: {"pid": 7, "healthy": False}):
        done = await status(place)
    assert done.status == 75
    assert "its store fails at the moment" in done.out
    async with place.worker(lambda: {"healthy": False, "problem": "the disk is full"}):
        assert "the disk is full" in (await status(place)).out


async def test_one_process_that_does_not_run_is_as_bad_as_all(place):
    place.config.write_text("[worker]\nprocesses = 2\n")
    async with place.worker():
        done = await status(place)
    assert done.status == 69
    assert "Process 1: running" in done.out
    assert "Process 2: not running" in done.out


async def test_nothing_is_made_by_looking(place):
    assert (await status(place)).status == 69
    assert [path.name for path in place.folder.iterdir()] == ["engine.toml"]


@pytest.mark.parametrize(
    ("worker", "lines"),
    [
        ({}, ("", "")),
        ({"pid": "7", "seconds": None, "state": 5, "in_flight": True}, ("", "")),
        ({"state": "ending\x1b"}, ("ending\\x1b", "")),
        (
            {"delivered": 0, "failed": 12_000, "unknown": 1},
            ("", "so far 12,000 failed · 1 unknown"),
        ),
    ],
)
def test_what_a_worker_says_is_taken_as_far_as_it_is_understood(worker, lines):
    assert worker_lines(worker) == lines
