from __future__ import annotations

import re
import subprocess
import sys
import time

import trio

from engine.queue.values import Action, Result, Selection
from tests.queue.mail import mail, settlements, take
from tests.worker.commands import ROOT, run_command

NOW = time.time()


async def queue(place, *arguments):
    return await run_command("queue", *arguments[:1], "--config", place.config, *arguments[1:])


async def fill(place):
    await place.fill(
        mail("a@one.test", "b@two.test", id="x", at=NOW, tenant="t", job="j", sender="<>"),
        mail("c@sub.one.test", id="y", at=NOW),
    )


async def test_each_recipient_still_there_is_an_object(place):
    await fill(place)
    await place.defer(NOW + 1)
    async with place.worker() as store:
        await store.apply(Action.HOLD, Selection(recipient="b@two.test"), now=NOW)
        done = await queue(place, "list", "--json")

    assert (done.status, done.err) == (0, "")
    first, second, third = done.records
    assert list(first)[:6] == ["message", "recipient", "state", "attempts", "next_attempt", "last"]
    assert (first["message"], first["recipient"], first["state"]) == ("x", "a@one.test", "queued")
    assert first["attempts"] == 1
    assert first["next_attempt"].endswith("Z")
    assert first["last"]["reply"]["code"] == 450
    assert (second["state"], second["next_attempt"]) == ("held", None)
    assert third["recipient"] == "c@sub.one.test"


async def test_filters_select_and_all_of_them_must_be_met(place):
    await fill(place)
    for arguments, found in {
        (): ["a@one.test", "b@two.test", "c@sub.one.test"],
        ("--message", "y"): ["c@sub.one.test"],
        ("--recipient", "a@one.test"): ["a@one.test"],
        ("--domain", "ONE.test"): ["a@one.test"],
        ("--domain", "*.one.test"): ["c@sub.one.test"],
        ("--sender", "<>"): ["a@one.test", "b@two.test"],
        ("--tenant", "t", "--domain", "two.test"): ["b@two.test"],
        ("--job", "j", "--message", "y"): [],
        ("--state", "held", "--state", "leased"): [],
        ("--limit", "2"): ["a@one.test", "b@two.test"],
    }.items():
        done = await queue(place, "list", "--json", *arguments)
        assert [record["recipient"] for record in done.records] == found, arguments


async def test_people_get_a_table_with_why(place):
    await fill(place)
    await place.defer(NOW + 1, reason="greylisted by mx.one.test")
    done = await queue(place, "list", "--limit", "2")

    assert re.search(r"a@one\.test queued 1 in \d+ m greylisted by mx\.one\.test x", done.words)
    assert "and more; --limit shows more than 2" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert not any(line.endswith(" ") for line in done.out.splitlines())


async def test_an_empty_queue_is_no_error(place):
    assert (await queue(place, "list")).out == "The queue is empty.\n"
    assert (await queue(place, "list", "--json")).out == ""
    done = await queue(place, "list", "--job", "j")
    assert (done.status, done.out) == (0, "The queue has nobody like that.\n")


async def test_who_ended_and_is_yet_to_be_reported_is_not_listed(place):
    await fill(place)
    async with place.worker() as store:
        lease = await take(store, NOW + 1)
        await store.settle(settlements(lease, Result.FAILED, report=True), now=NOW)
        assert (await queue(place, "list", "--json")).records == []


async def test_a_message_is_shown_with_all_of_its_recipients(place):
    await fill(place)
    await place.defer(NOW + 1, reason="greylisted: 450 4.7.1 come back later")
    done = await queue(place, "show", "x")

    assert done.status == 0
    assert "message x sender <> submitted" in done.words
    assert "tenant t job j" in done.words
    wanted = r"a@one\.test queued 1 in \d+ m greylisted: 450 4\.7\.1 come back later"
    assert re.search(wanted, done.words)
    assert "b@two.test queued 1" in done.words
    assert "c@sub.one.test" not in done.out


async def test_a_message_is_one_object(place):
    await fill(place)
    (record,) = (await queue(place, "show", "x", "--json")).records
    assert (record["message"], record["sender"], record["job"]) == ("x", "", "j")
    assert [each["recipient"] for each in record["recipients"]] == ["a@one.test", "b@two.test"]
    assert "job" not in record["recipients"][0]


async def test_a_message_that_is_not_there_is_told(place):
    done = await queue(place, "show", "none\x1b")
    assert (done.status, done.out) == (66, "")
    assert done.err == "no message none\\x1b is in the queue\n"
    assert (await queue(place, "show", "\udcff")).status == 66


async def test_lists_may_be_cut_by_who_reads_them(place):
    await place.fill(*(mail(id=f"m{n}", at=NOW) for n in range(3000)))

    def run():
        command = f"{sys.executable} -m engine queue list --json --config {place.config} | head -1"
        return subprocess.run(
            command, shell=True, capture_output=True, cwd=ROOT, check=False, timeout=60
        )

    done = await trio.to_thread.run_sync(run)
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""
