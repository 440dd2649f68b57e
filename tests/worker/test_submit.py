from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import trio

from engine.queue.errors import StoreFullError
from engine.queue.sqlite import SqliteStore
from engine.queue.values import State
from engine.worker import submit as module
from engine.worker.batch import Wishes
from engine.worker.config import load_config
from engine.worker.shards import shard_of
from engine.worker.submit import SubmitOptions, new_id, put_in
from tests.queue.mail import START
from tests.worker.commands import ROOT, Done, engine, run_engine

ENGINE = [sys.executable, "-m", "engine"]
CONTENT = "Subject: hello\n\nHello.\n"


def line(**changes):
    record = {"sender": "me@x.test", "recipients": ["a@one.test"], "content": CONTENT} | changes
    return json.dumps({key: value for key, value in record.items() if value is not ...}) + "\n"


@pytest.fixture
def submit(place, files):
    """Run `submit` inside the test."""

    async def run(*recipients, lines=None, **options):
        if lines is not None:
            (place.folder / "batch.jsonl").write_text("".join(lines))
            options["batch"] = str(place.folder / "batch.jsonl")
        elif "message" not in options:
            (place.folder / "a.eml").write_text(CONTENT)
            options["message"] = str(place.folder / "a.eml")
        config = load_config(place.config)
        out, err = (os.open(path, os.O_WRONLY | os.O_TRUNC) for path in (files.out, files.err))
        try:
            made = SubmitOptions(
                config=str(place.config), recipients=recipients, stdout=out, stderr=err, **options
            )
            status = await put_in(made, config, clock=lambda: START)
        finally:
            os.close(out)
            os.close(err)
        return Done(status, files.out.read_text(), files.err.read_text())

    return run


# ---- one message --------------------------------------------------------------------------------


async def test_a_message_is_on_disk_and_its_id_is_said(submit, place):
    done = await submit("a@one.test", "<b@two.test>", sender="me@x.test")

    assert (done.status, done.err) == (0, "")
    (message,) = await place.messages()
    assert done.out == f"accepted {message.message.id}\n"
    assert [each.address for each in message.message.recipients] == ["a@one.test", "<b@two.test>"]
    assert str(message.message.reverse_path) == "me@x.test"
    assert message.message.content.octets == CONTENT.replace("\n", "\r\n").encode()
    assert message.entries[0].submitted_at == START


async def test_wishes_are_kept(submit, place):
    wishes = Wishes(
        tenant="t", job="j", priority=3, not_before="1h", deadline=START + 9000, hold=True
    )
    await submit("a@one.test", sender="<>", id="x", wishes=wishes)

    (entry,) = await place.entries()
    assert (entry.message, entry.sender, entry.tenant, entry.job) == ("x", "", "t", "j")
    assert (entry.priority, entry.deadline, entry.state) == (3, START + 9000, State.HELD)


async def test_the_same_id_again_is_accepted_without_a_second_copy(submit, place):
    first = await submit("a@one.test", sender="me@x.test", id="x", as_json=True)
    again = await submit("a@one.test", sender="me@x.test", id="x", as_json=True)
    said = await submit("a@one.test", sender="me@x.test", id="x")

    assert first.records == again.records == [{"message": "x", "accepted": True}]
    assert said.out == "accepted x (it was known already)\n"
    assert (first.status, again.status) == (0, 0)
    assert len(await place.entries()) == 1


async def test_an_id_that_stands_for_another_message_is_refused(submit, place):
    await submit("a@one.test", sender="me@x.test", id="x")
    done = await submit("b@one.test", sender="me@x.test", id="x", as_json=True)

    assert done.status == 65
    assert done.err.startswith("message x: message id 'x' is known already")
    (record,) = done.records
    assert (record["message"], record["accepted"]) == ("x", False)
    assert "known already" in record["error"]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"sender": "me"}, 65, '--sender me: no "@"'),
        ({"message": "/none.eml"}, 66, "/none.eml: No such file or directory"),
        ({"wishes": Wishes(deadline="1m", not_before="2m")}, 65, "deadline: found one before"),
        ({"id": "x" * 256}, 65, "id of 256 characters; allowed are 1 to 255"),
        ({"wishes": Wishes(job="j" * 256)}, 65, "job of 256 characters"),
    ],
)
async def test_what_cannot_be_taken_is_said(options, status, said, submit, place):
    done = await submit("a@one.test", **{"sender": "me@x.test"} | options)

    assert done.status == status
    assert said in done.err
    assert not place.file.exists()


async def test_a_malformed_recipient_does_not_hold_up_the_others(submit, place):
    done = await submit("a@one.test", "nobody", sender="me@x.test")

    assert done.status == 65
    assert 'RECIPIENT nobody: no "@"' in done.err
    assert [entry.recipient for entry in await place.entries()] == ["a@one.test"]


async def test_a_message_that_is_too_large_is_refused(submit, place):
    place.config.write_text('[queue]\nmax_message_octets = "1 KiB"\n')
    (place.folder / "big.eml").write_bytes(b"x\r\n" * 400)
    done = await submit("a@one.test", sender="me@x.test", message=str(place.folder / "big.eml"))

    assert done.status == 65
    assert "a content of 1,200 octets; allowed are 1,024 (max_message_octets)" in done.err
    assert await place.entries() == ()


async def test_recipients_may_stand_in_the_header_section(submit, place):
    (place.folder / "t.eml").write_text("To: a@one.test\nBcc: b@two.test, c d\n\nhello\n")
    done = await submit(
        "e@three.test",
        sender="me@x.test",
        message=str(place.folder / "t.eml"),
        from_header=True,
        id="x",
    )

    assert done.status == 65
    assert "Bcc: found 'c d'; allowed are addresses" in done.err
    (stored,) = await place.messages()
    assert [entry.recipient for entry in stored.entries] == [
        "e@three.test",
        "a@one.test",
        "b@two.test",
    ]
    text = stored.message.content.octets.decode()
    assert "Bcc" not in text
    assert "\r\nMessage-ID: <x@" in text


# ---- a batch ------------------------------------------------------------------------------------


async def test_a_batch_goes_in_and_bad_lines_are_said_with_their_numbers(submit, place):
    lines = [
        line(id="a"),
        "no json\n",
        line(id="b", recipients=["x"]),
        line(id="a", content="another"),
        line(id="c", colour="red"),
        line(id="d", recipients=["ok@one.test", "bad"]),
        line(id="e", priority=10, deadline="soon"),
    ]
    done = await submit(lines=lines, as_json=True)

    assert done.status == 65
    accepted = {record["message"]: record["accepted"] for record in done.records}
    assert set(accepted) == {"a", "d"}
    assert sorted(entry.message for entry in await place.entries()) == ["a", "d"]
    name = place.folder / "batch.jsonl"
    for number, said in (
        (2, "found no JSON"),
        (3, "recipients[0]: "),
        (4, "message id 'a' is known already"),
        (5, "colour: found an unknown key"),
        (6, "recipients[1]: "),
        (7, "priority: found 10; allowed a whole number from -9 to 9"),
        (7, 'deadline: found "soon"; allowed a time with its zone'),
    ):
        assert f"{name} line {number}: {said}" in done.err


async def test_what_a_line_says_wins_over_the_options(submit, place):
    lines = [
        line(id="own", tenant="own", hold=False, priority=0, not_before="2023-11-14T23:13:20Z"),
        line(id="none"),
        line(id="null", tenant=None, job=None),
    ]
    await submit(lines=lines, wishes=Wishes(tenant="t", job="j", priority=5, hold=True))

    entries = {entry.message: entry for entry in await place.entries()}
    own, none = entries["own"], entries["none"]
    assert (own.tenant, own.job, own.priority, own.state) == ("own", "j", 0, State.QUEUED)
    assert own.next_attempt == START + 3600
    assert (none.tenant, none.job, none.priority, none.state) == ("t", "j", 5, State.HELD)
    assert entries["null"].tenant == "t"


async def test_messages_without_an_id_get_one_of_their_own_which_is_said(submit, place):
    done = await submit(lines=[line(), line(), line(id="mine")])

    names = [entry.message for entry in await place.entries()]
    assert len(set(names)) == 3
    said = done.out.splitlines()
    assert sorted(said[:2]) == sorted(f"accepted {name}" for name in names if name != "mine")
    assert said[2].startswith("3 messages accepted · ")


async def test_a_batch_can_be_repeated(submit, place):
    lines = [line(id=f"m{n}", recipients=[f"a@d{n}.test"]) for n in range(1500)]
    await submit(lines=lines[:700])
    done = await submit(lines=lines)
    assert done.status == 0
    assert done.out.startswith("1,500 messages accepted · 700 of them known already · ")
    assert len({entry.message for entry in await place.entries()}) == 1000  # a page of them


async def test_contents_may_be_files_and_large(submit, place):
    (place.folder / "big.eml").write_bytes(b"Subject: x\n\n" + b"hello\n" * 200_000)
    done = await submit(lines=[line(id="x", content=..., message="big.eml"), line(id="y")])

    assert done.status == 0
    stored = {each.message.id: each.message.content for each in await place.messages()}
    assert stored["x"].facts.octets == 14 + 7 * 200_000


async def test_a_file_that_is_missing_costs_its_line_alone(submit, place):
    done = await submit(lines=[line(content=..., message="none.eml"), line(id="y")])
    assert done.status == 66
    assert "none.eml: No such file" in done.err
    assert [entry.message for entry in await place.entries()] == ["y"]


async def test_processes_share_a_batch(submit, place):
    place.config.write_text("[worker]\nprocesses = 2\n")
    done = await submit(lines=[line(id=f"m{n}", recipients=[f"a@d{n}.test"]) for n in range(40)])
    assert done.out.startswith("40 messages accepted")
    own = [entry.message for entry in await place.entries()]
    assert sorted(own) == sorted(f"m{n}" for n in range(40) if shard_of(f"d{n}.test", 2) == 1)


# ---- trouble ------------------------------------------------------------------------------------


async def test_a_disk_that_is_full_ends_the_batch_and_says_what_was_not_taken(
    submit, place, monkeypatch
):
    real, count = SqliteStore.submit, []

    async def fill(store, submissions, **how):
        count.append(len(submissions))
        if sum(count) > 40:
            raise StoreFullError("spool.sqlite: the disk is full")
        return await real(store, submissions, **how)

    monkeypatch.setattr(SqliteStore, "submit", fill)
    monkeypatch.setattr(module, "_GROUP_MESSAGES", 10)
    monkeypatch.setattr(module, "_GROUPS", 1)
    done = await submit(lines=[line(id=f"m{n}") for n in range(100)], as_json=True)

    assert done.status == 75
    assert "the disk is full\n" in done.err
    taken = [record["message"] for record in done.records if record["accepted"]]
    assert sorted(taken) == sorted(f"m{n}" for n in range(40))
    assert len(await place.entries()) == 40
    left = [record for record in done.records if not record["accepted"]]
    assert all(record["error"] == "spool.sqlite: the disk is full" for record in left)


@pytest.mark.parametrize(
    ("config", "status"),
    [('[queue]\npath = "no/such/folder/spool"\n', 74), ("[queue]\npath = ''\n", 78)],
)
async def test_a_queue_that_cannot_be_opened_is_told(config, status, place):
    place.config.write_text(config)
    done = await run_engine(
        *("submit", "--config", place.config, "--sender", "me@x.test", "a@one.test"),
        stdin=CONTENT.encode(),
    )
    assert done.status == status
    assert "Traceback" not in done.err
    assert str(place.folder) in done.err


async def test_nobody_who_reads_results_ends_the_reading(place):
    batch = place.folder / "b.jsonl"
    batch.write_text("".join(line(id=f"m{n}") for n in range(20_000)))
    reader, writer = os.pipe()
    os.close(reader)

    def run():
        return subprocess.run(
            [*ENGINE, "submit", "--config", str(place.config), "--batch", str(batch), "--json"],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
            timeout=60,
        )

    done = await trio.to_thread.run_sync(run)
    os.close(writer)
    assert done.returncode == 75
    assert b"Traceback" not in done.stderr


# ---- as a program -------------------------------------------------------------------------------


async def test_it_works_with_a_worker_and_without(place):
    arguments = ("submit", "--config", place.config, "--batch", "-", "--json")
    lines = "".join(line(id=f"m{n}", recipients=[f"a@d{n}.test"]) for n in range(300)).encode()

    async with place.worker() as store:
        before = store.changes
        with_worker = await run_engine(*arguments, stdin=lines)
        assert store.changes > before
        assert (await store.counts(now=START + 1e9)).queued == 300
    without = await run_engine(*arguments, stdin=lines + line(id="new").encode())

    for done, count in ((with_worker, 300), (without, 301)):
        assert (done.status, done.err) == (0, "")
        assert [record["accepted"] for record in done.records] == [True] * count
    async with place.worker() as store:
        assert (await store.counts(now=START)).messages == 301


async def test_many_may_make_the_queue_at_the_same_time(place):
    statuses = []

    async def submit_one(number):
        done = await run_engine(
            *("submit", "--config", place.config, "--sender", "me@x.test", "a@one.test"),
            stdin=f"Subject: {number}\n\n".encode(),
        )
        statuses.append((done.status, done.err))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(submit_one, number)
    assert statuses == [(0, "")] * 6
    assert len(await place.entries()) == 6


async def test_a_worker_that_ends_half_way_loses_nothing(place, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["submit", "--config", str(place.config), "--batch", "-", "--json"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [*ENGINE, *arguments],
                stdin=subprocess.PIPE,
                capture_stdout=True,
            )
        )
        async with place.worker() as store:
            await process.stdin.send_all("".join(line(id=f"a{n}") for n in range(50)).encode())
            with trio.fail_after(30):
                while (await store.counts(now=START)).messages < 50:  # noqa: ASYNC110
                    await trio.sleep(0.02)
        await process.stdin.send_all("".join(line(id=f"b{n}") for n in range(50)).encode())
        await process.stdin.aclose()
    assert process.returncode == 0
    assert len(await place.entries()) == 100


async def test_an_interrupt_ends_the_reading_and_keeps_what_was_read(place):
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [*ENGINE, "submit", "--config", str(place.config), "--batch", "-"],
                stdin=subprocess.PIPE,
                capture_stdout=True,
                check=False,
                cwd=ROOT,
            )
        )
        await process.stdin.send_all(line(id="x").encode())
        with trio.fail_after(30):
            while not await place.is_there():  # noqa: ASYNC110
                await trio.sleep(0.05)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert [entry.message for entry in await place.entries()] == ["x"]


def test_ids_that_are_made_differ_and_sort_by_time():
    names = [new_id() for _ in range(1000)]
    assert len(set(names)) == 1000
    assert {len(name) for name in names} == {20}
    assert names[0][:7] <= names[-1][:7]


def test_the_help_fits_the_terminal_and_has_every_exit_status():
    text = engine("submit", "--help").out
    for status in ("0", "64", "65", "66", "74", "75", "78", "130"):
        assert f"\n    {status} " in text
    assert max(map(len, text.splitlines())) <= 80
