from __future__ import annotations

import json
import re
import time
from contextlib import nullcontext

import pytest
import trio

from engine.queue.values import State
from tests.queue.mail import mail, take
from tests.worker.commands import run_command, run_engine

NOW = time.time()


async def queue(place, name, *arguments):
    return await run_command("queue", name, "--config", place.config, *arguments)


async def states(place):
    return {entry.recipient: entry.state for entry in await place.entries()}


async def test_recipients_are_held_and_released(place):
    await place.fill(mail("a@one.test", "b@two.test", id="x"), mail("c@one.test", id="y"))

    held = await queue(place, "hold", "--domain", "one.test", "--reason", "wrong link")
    assert (held.status, held.out) == (0, "2 recipients held\n")
    assert await states(place) == {
        "a@one.test": State.HELD,
        "b@two.test": State.QUEUED,
        "c@one.test": State.HELD,
    }
    assert {entry.reason for entry in await place.entries()} == {"wrong link", ""}

    released = await queue(place, "release", "--message", "y", "--json")
    assert json.loads(released.out) == {"action": "release", "recipients": 1}
    assert (await states(place))["c@one.test"] is State.QUEUED


async def test_recipients_are_tried_at_once(place):
    await place.fill(mail("a@one.test", id="x", at=NOW))
    await place.defer(NOW + 1)
    assert (await queue(place, "retry", "--all")).out == "1 recipient due now\n"
    (entry,) = await place.entries()
    assert entry.next_attempt <= time.time()


async def test_what_is_purged_is_gone_and_what_is_cancelled_has_failed(place):
    await place.fill(mail("a@one.test", id="x"), mail("b@two.test", id="y"))
    assert (await queue(place, "purge", "--message", "x")).out == "1 recipient deleted\n"
    assert list(await states(place)) == ["b@two.test"]
    assert (await queue(place, "cancel", "--all")).out == "1 recipient cancelled\n"
    assert (await states(place))["b@two.test"] is State.ENDED


async def test_who_is_taken_out_has_one_last_line_in_the_log_of_outcomes(place):
    await place.fill(mail("a@one.test", "b@two.test", id="x"), mail("c@one.test", id="y"))
    await queue(place, "cancel", "--domain", "one.test", "--reason", "wrong link")
    await queue(place, "purge", "--all")  # who is cancelled already is among these
    lines = (place.folder / "outcomes.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(each["message"], each["recipient"], each["text"]) for each in records] == [
        ("x", "a@one.test", "cancelled by hand: wrong link"),
        ("y", "c@one.test", "cancelled by hand: wrong link"),
        ("x", "b@two.test", "deleted by hand, and nobody is told"),
    ]
    assert {(each["status"], each["final"], each["attempt"]) for each in records} == {
        ("failed", True, 0)
    }


async def test_commands_side_by_side_write_no_line_twice(place):
    names = [f"j{n}" for n in range(6)]
    for name in names:
        await place.fill(*(mail(f"u{n}@one.test", id=f"{name}-{n}", job=name) for n in range(300)))
    async with trio.open_nursery() as nursery:
        for name in names:
            how = ("queue", "cancel", "--config", place.config, "--job", name)
            nursery.start_soon(lambda how=how: run_engine(*how))
    lines = (place.folder / "outcomes.jsonl").read_text().splitlines()
    found = [json.loads(line)["message"] for line in lines]
    assert len(found) == len(set(found)) == 1800


async def test_where_they_cannot_be_logged_that_is_said_and_it_is_done_all_the_same(place):
    place.config.write_text('[worker]\noutcomes = "nowhere/log"\n')
    await place.fill(mail("a@one.test", id="x"))
    done = await run_engine("queue", "purge", "--config", place.config, "--all")
    assert (done.status, done.out) == (0, "1 recipient deleted\n")
    why = f"[Errno 2] No such file or directory: '{place.folder}/nowhere/log'"
    assert done.err.splitlines() == [
        f"who was cancelled or purged cannot be noted in the log of outcomes yet: {why}"
    ]


async def test_a_worker_that_runs_is_asked(place):
    async with place.worker() as store:
        await store.submit([mail("a@one.test", at=NOW)])
        await take(store, NOW + 1)
        before = store.changes
        done = await queue(place, "hold", "--all")
        assert done.out == "1 recipient held\n"  # once its attempt is settled
        assert store.changes > before


@pytest.mark.parametrize("name", ["retry", "hold", "release", "cancel", "purge"])
async def test_nothing_is_done_to_everybody_by_mistake(name, place):
    await place.fill(mail("a@one.test", id="x"))
    for arguments in ((), ("--all", "--message", "x"), ("--domain", "a b")):
        done = await queue(place, name, *arguments)
        assert done.status == 64
        assert "Error: " in done.err
    assert await states(place) == {"a@one.test": State.QUEUED}


@pytest.mark.parametrize("name", ["retry", "hold", "release", "cancel", "purge"])
@pytest.mark.parametrize("with_worker", [False, True])
async def test_a_message_that_is_not_there_is_said_to_be_missing(name, with_worker, place):
    await place.fill(mail("a@one.test", id="x"))
    async with place.worker() if with_worker else nullcontext():
        missing = await queue(place, name, "--message", "y\n7", "--json")
        assert (missing.status, missing.out) == (66, "")
        assert missing.err == "no message y\\n7 is in the queue\n"
        # Where it is there, and only not in a state for that, nothing is missing.
        idle = await queue(place, name, "--message", "x", "--recipient", "b@one.test")
        assert (idle.status, idle.err) == (0, "")
        assert re.fullmatch(r"0 recipients [a-z ]+; message x has 1 queued\n", idle.out)


@pytest.mark.parametrize("with_worker", [False, True])
async def test_a_reason_is_one_line_that_can_be_kept(with_worker, place):
    await place.fill(mail("a@one.test", id="x"))
    async with place.worker() if with_worker else nullcontext():
        for reason, text in [("\udcff", "UTF-8 can encode"), ("r" * 1001, "allowed are 1000")]:
            bad = await queue(place, "hold", "--all", "--reason", reason)
            assert bad.status == 64
            assert f"Error: --reason: found {reason[:80]!a};" in bad.err or "1001 char" in bad.err
            assert text in bad.err
        done = await queue(place, "hold", "--all", "--reason", " wrong\n  link ")
        assert done.out == "1 recipient held\n"
    assert [entry.reason for entry in await place.entries()] == ["wrong link"]


async def test_in_an_empty_queue_there_is_nothing_to_do(place):
    done = await queue(place, "retry", "--all")
    assert (done.status, done.out) == (0, "0 recipients due now\n")
    assert not place.file.exists()


async def test_weights_are_given_to_tenants_and_jobs(place):
    assert (await queue(place, "weight", "--tenant", "t", "2.5")).out == "tenant has weight 2.5\n"
    done = await queue(place, "weight", "--tenant", "t", "--job", "j", "3")
    assert (done.status, done.out) == (0, "job has weight 3\n")
    bad = await queue(place, "weight", "--tenant", "t", "0")
    assert (bad.status, bad.err) == (64, "weight 0.0; allowed are finite numbers above 0\n")
