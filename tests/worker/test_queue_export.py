from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from engine.content import from_octets
from engine.message import Message, Recipient
from engine.queue.submission import Submission
from engine.queue.values import Action, Result, Selection, State
from engine.worker.shards import shard_of
from tests.queue.mail import mail, settlements, take
from tests.worker.commands import run_command, run_engine

if TYPE_CHECKING:
    from pathlib import Path

NOW = time.time()
LARGE = from_octets(b"Subject: large\r\n\r\n" + b"hello, world\r\n" * 30_000)


async def export(place, name="out", config=None):
    return await run_command(
        "queue", "export", "--config", config or place.config, place.folder / name
    )


def lines_in(folder: Path, name="messages.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


async def test_what_is_exported_can_be_submitted_again_and_is_the_same(place, tmp_path_factory):
    recipient = Recipient.parse("d@four.test", ("failure", "delay"), "rfc822;d@x.test")
    sender = Message.parse_sender("<>")
    message = Message("full", sender, (recipient,), LARGE, "env", "hdrs", True, True)
    await place.fill(
        mail("a@one.test", "b@two.test", id="x", at=NOW, tenant="t", job="j", priority=-2),
        mail("c@three.test", id="later", at=NOW, not_before=NOW + 5000, deadline=NOW + 9000),
        Submission(message=message, submitted_at=NOW, is_held=True),
    )

    done = await export(place)

    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"3 saved in {place.folder / 'out'}, 0 damaged\n")
    assert [path.stat().st_mode & 0o777 for path in (place.folder / "out").iterdir()] == [0o600] * 4
    other = type(place)(tmp_path_factory.mktemp("other"))
    again = await run_engine(
        *("submit", "--config", other.config, "--batch", place.folder / "out/messages.jsonl")
    )
    assert again.status == 0
    before, after = await place.messages(), await other.messages()
    for old, new in zip(before, after, strict=True):
        assert new.message.id == old.message.id
        assert new.message.recipients == old.message.recipients
        assert new.message.reverse_path == old.message.reverse_path
        octets = [
            b"".join([chunk async for chunk in each.message.content.chunks()])
            for each in (old, new)
            if each.message.content.octets is not None
        ]
        assert len(set(octets)) <= 1
        for name in ("state", "tenant", "job", "priority"):
            assert getattr(new.entries[0], name) == getattr(old.entries[0], name), name
    assert after[1].entries[0].next_attempt == pytest.approx(NOW + 5000, abs=0.01)
    assert after[1].entries[0].deadline == pytest.approx(NOW + 9000, abs=0.01)
    assert (after[2].message.envid, after[2].message.ret) == ("env", "hdrs")
    assert (after[2].message.require_tls, after[2].message.smtputf8) == (True, True)


async def test_who_is_held_among_others_gets_a_line_of_its_own(place):
    await place.fill(mail("a@one.test", "b@two.test", "c@three.test", id="x", at=NOW))
    async with place.worker() as store:
        await store.apply(Action.HOLD, Selection(recipient="b@two.test"), now=NOW)
        lease = await take(store, NOW + 1, seats=1)
        await store.settle(settlements(lease, Result.FAILED, report=True), now=NOW)
        ended = next(e.recipient for e in (await store.entries()).entries if e.state is State.ENDED)
        done = await export(place)  # beside a worker that runs

    assert done.status == 0
    first, second = lines_in(place.folder / "out")
    waiting = [each for each in ("a@one.test", "c@three.test") if each != ended]
    assert (first["id"], first["recipients"]) == ("x", waiting)
    assert (second["id"], second["recipients"], second["hold"]) == ("x-held", ["b@two.test"], True)


async def test_messages_of_several_processes_go_into_one(place, tmp_path_factory):
    place.config.write_text("[worker]\nprocesses = 2\n")
    domains = [f"d{n}.test" for n in range(20)]
    batch = place.folder / "b.jsonl"
    batch.write_text(
        json.dumps(
            {
                "id": "x",
                "sender": "me@x.test",
                "recipients": [f"a@{domain}" for domain in domains],
                "content": "Subject: a\n\nb\n",
            }
        )
    )
    await run_engine("submit", "--config", place.config, "--batch", batch)
    # Of a process that is there no more the mail is saved as well.
    place.config.write_text("")

    done = await export(place)

    assert done.out.startswith("2 saved in ")
    lines = lines_in(place.folder / "out")
    assert [line["id"] for line in lines] == ["x", "x-2"]
    assert {len(line["recipients"]) for line in lines} == {
        sum(shard_of(domain, 2) == 1 for domain in domains),
        sum(shard_of(domain, 2) == 2 for domain in domains),
    }
    other = type(place)(tmp_path_factory.mktemp("other"))
    again = await run_engine(
        *("submit", "--config", other.config, "--batch", place.folder / "out/messages.jsonl")
    )
    assert again.status == 0
    assert len(await other.entries()) == 20


async def test_a_file_that_is_damaged_gives_what_can_be_read(place):
    await place.fill(*(mail(id=f"m{n:03}", at=NOW, content=_content(n)) for n in range(200)))
    octets = bytearray(place.file.read_bytes())
    mark = octets.find(b"body 77 ")
    octets[mark : mark + 4] = b"BODY"
    page = octets.find(b"body 150 ") // 4096 * 4096
    octets[page : page + 4096] = b"\xff" * 4096
    place.file.write_bytes(octets)

    done = await export(place)

    assert done.status == 74
    assert "Traceback" not in done.err
    assert "message m077: its content is not what was stored" in done.err
    saved = {line["id"] for line in lines_in(place.folder / "out")}
    assert 150 <= len(saved) < 199
    assert "m077" not in saved
    assert "m077" in {line["message"] for line in lines_in(place.folder / "out", "damaged.jsonl")}
    for line in lines_in(place.folder / "out"):
        number = int(line["id"][1:])
        content = (place.folder / "out" / line["message"]).read_bytes()
        assert content == _content(number).octets

    check = await run_command("queue", "check", "--config", place.config)
    assert check.status == 74
    assert str(place.file) in check.out + check.err
    assert "Traceback" not in check.err


def _content(number):
    return from_octets(f"Subject: {number}\r\n\r\nbody {number} ".encode() + b"x" * 900 + b"\r\n")


async def test_a_folder_with_something_in_it_is_left_alone(place):
    await place.fill(mail())
    (place.folder / "out").mkdir()
    (place.folder / "out/mine").write_text("mine")
    done = await export(place)
    assert done.status == 64
    assert "found a folder that is not empty" in done.err
    assert [path.name for path in (place.folder / "out").iterdir()] == ["mine"]


async def test_a_folder_that_cannot_be_made_is_told(place):
    await place.fill(mail())
    (place.folder / "file").write_text("")
    done = await export(place, "file/out")
    assert done.status == 74
    assert "Not a directory" in done.err


async def test_what_is_no_queue_is_told(place):
    done = await export(place)
    assert done.status == 74
    assert "there is no such file" in done.err
    place.file.write_bytes(b"not a database, but a letter" * 1000)
    done = await export(place, "other")
    assert done.status == 74
    assert "it is no store, or its beginning is damaged" in done.err


async def test_a_queue_in_good_order_is_said_to_be(place):
    await place.fill(mail(), mail(content=LARGE))
    done = await run_command("queue", "check", "--config", place.config)
    assert (done.status, done.out) == (0, f"{place.file}: in good order\n")
