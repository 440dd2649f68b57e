from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest
import trio

from engine.content import from_file, from_octets, from_text
from engine.message import Message, Recipient
from engine.queue.errors import (
    StoreClosedError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
)
from engine.queue.export import Damage, export_messages
from engine.queue.sql_submit import Intake, pack
from engine.queue.sqlite import _SUBMIT, open_store
from engine.queue.submission import Submission
from engine.queue.values import Action, Result, Selection, Settlement, SiteState, State
from engine.smtp.errors import ContentError
from tests.queue.mail import START, addresses_in, leased_in, mail, settlements, take
from tests.queue.store_conformance import CHECKS, entries_of, states_of

LARGE = from_octets(b"".join(b"line %d\r\n" % number for number in range(60_000)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.sqlite"


@pytest.fixture
async def store(path):
    async with open_store(path) as store:
        yield store


async def problems_of(store):
    return [problem async for problem in store.check()]


def rows_of(store, table):
    return store._committer._db._connection.execute(f"select count(*) from {table}").get


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_store_in_a_file_behaves(check, path):
    async with open_store(path) as store:
        await check(store)
        assert await problems_of(store) == []


# -- what is on disk ----------------------------------------------------------------------------


async def test_everything_is_there_when_the_file_is_opened_again(path):
    async with open_store(path) as store:
        await store.submit([mail("a@one.test", "b@two.test", id="x"), mail(id="y", content=LARGE)])
        await store.submit([mail("c@three.test", id="held", is_held=True)])
        lease = await take(store, seats=2, owner="w1")
        await store.mark(lease.number, [leased_in(lease)[0][1].number])
        await store.settle([], now=START, sites=[SiteState(name="two.test", not_before=START + 9)])
        await store.set_weight("t", 3)
        before = await entries_of(store)

    async with open_store(path) as store:
        assert await entries_of(store) == before
        found = await store.recover(owner="w2", now=START, deadline=START + 60, dead=["w1"])
        assert (found.released, len(found.doubtful)) == (1, 1)
        assert [state.name for state in await store.sites()] == ["two.test"]
        assert not (await store.submit([mail("a@one.test", "b@two.test", id="x")]))[0].is_new
        (message,) = [m for m in await store.messages() if m.message.id == "y"]
        pieces = [piece async for piece in message.message.content.chunks()]
        assert b"".join(pieces) == LARGE.octets
        assert await problems_of(store) == []


async def test_contents_leave_the_disk_with_their_last_recipient(store):
    await store.submit([mail("a@one.test", "b@two.test"), mail("c@one.test", content=LARGE)])
    assert rows_of(store, "contents") == 1
    assert rows_of(store, "pieces") > 5
    lease = await take(store)
    everyone = settlements(lease)

    await store.settle(everyone[:1], now=START)
    assert rows_of(store, "contents") + rows_of(store, "pieces") > 1
    await store.settle(everyone[1:], now=START)

    assert rows_of(store, "contents") == rows_of(store, "pieces") == 0
    assert rows_of(store, "recipients") == rows_of(store, "outcomes") == 0
    assert rows_of(store, "messages") == 2  # their ids are known


async def test_nothing_is_left_when_everything_is_done_with_and_swept(store):
    await store.submit([mail(f"u{n}@d{n}.test", job=f"j{n}") for n in range(50)])
    lease = await take(store)
    await store.settle(
        settlements(lease, Result.DEFERRED, due=START, last="{}"),
        now=START,
        routes={f"d{n}.test": "mx.test" for n in range(20)},
    )
    await store.settle(settlements(await take(store)), now=START)
    await store.extend("w1", deadline=START)

    for _ in range(3):
        await store.sweep(now=START + 10, remember=5)

    tables = ("messages", "contents", "recipients", "outcomes", "lanes", "sites", "domains")
    assert {table: rows_of(store, table) for table in tables} == dict.fromkeys(tables, 0)
    assert rows_of(store, "shares") <= 1
    assert rows_of(store, "leases") == rows_of(store, "marks") == 0


async def test_room_that_is_free_goes_back_to_the_disk(path, store):
    content = from_octets(b"x" * 60_000 + b"\r\n")
    await store.submit([mail(f"u{n}@one.test", content=content) for n in range(100)])
    await store.settle(settlements(await take(store, seats=1000, site_seats=1000)), now=START)
    while (lease := await take(store, seats=1000, site_seats=1000)).messages:
        await store.settle(settlements(lease), now=START)

    def pages():
        return store._committer._db._connection.execute("pragma page_count").get

    full = pages()
    for _ in range(20):
        await store.sweep(now=START, remember=60)

    assert pages() < full / 2


# -- contents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2, 65_534, 65_536, 65_538, 262_144, 300_000])
async def test_contents_of_every_size_come_out_as_they_went_in(store, size):
    octets = (b"x" * 76 + b"\r\n") * (size // 78 + 1)
    octets = octets[: max(size - 2, 0)] + b"\r\n" * (size > 0)
    content = from_octets(octets)

    await store.submit([mail(content=content)])
    lease = await take(store)

    found = lease.messages[0].message.content
    assert (found.octets is None) == (len(content.octets) > 64 * 1024)
    assert b"".join([piece async for piece in found.chunks()]) == content.octets
    assert found.facts == content.facts


async def test_a_content_in_a_file_is_streamed(store, tmp_path):
    file = tmp_path / "message.eml"
    file.write_bytes(LARGE.octets.replace(b"\r\n", b"\n"))
    content = await from_file(file)
    assert content.octets is None

    await store.submit([mail(content=content)])
    file.unlink()
    lease = await take(store)

    found = lease.messages[0].message.content
    assert b"".join([piece async for piece in found.chunks()]) == LARGE.octets


class Streamed:
    """A content that comes in chunks, as one likes."""

    octets = None

    def __init__(self, chunks, facts=None, error=None):
        self._chunks = chunks
        self.facts = facts or from_octets(b"".join(chunks)).facts
        self.error = error

    async def chunks(self):
        for chunk in self._chunks:
            await trio.lowlevel.checkpoint()
            yield chunk
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("size", [7, 1000, 65_536, 400_000])
async def test_a_content_may_come_in_chunks_of_any_size(store, size):
    octets = LARGE.octets[: LARGE.octets.index(b"\n", 300_000) + 1]
    chunks = [octets[start : start + size] for start in range(0, len(octets), size)]

    await store.submit([mail(content=Streamed(chunks))])
    lease = await take(store)

    found = lease.messages[0].message.content
    pieces = [piece async for piece in found.chunks()]
    assert b"".join(pieces) == b"".join(chunks)
    assert max(map(len, pieces)) <= 64 * 1024


@pytest.mark.parametrize("content", [from_text("short"), LARGE])
async def test_a_content_of_another_size_than_was_said_is_refused(store, content):
    liar = Streamed([content.octets, b"more\r\n"], content.facts)

    with pytest.raises(ContentError, match="was said to have"):
        await store.submit([mail(content=liar)])

    assert await entries_of(store) == []
    assert rows_of(store, "pieces") == rows_of(store, "uploads") == 0


async def test_a_content_that_breaks_off_leaves_nothing(store):
    broken = Streamed([LARGE.octets], error=ContentError("changed since it was submitted"))

    with pytest.raises(ContentError, match="changed"):
        await store.submit([mail(id="good", content=LARGE), mail(content=broken)])

    assert await entries_of(store) == []
    assert rows_of(store, "pieces") == rows_of(store, "uploads") == 0


async def test_a_second_copy_of_a_large_content_is_not_kept(store):
    await store.submit([mail(id="x", content=LARGE)])
    pieces = rows_of(store, "pieces")

    (again,) = await store.submit([mail(id="x", content=LARGE)])

    assert not again.is_new
    assert rows_of(store, "pieces") == pieces
    assert rows_of(store, "uploads") == 0


async def test_a_submitter_that_is_cancelled_in_the_middle_leaves_nothing(store):
    content = Streamed([LARGE.octets[:400_000]], LARGE.facts)

    async def never():
        yield LARGE.octets[:400_000]
        await trio.sleep_forever()

    content.chunks = never
    with trio.move_on_after(0.2) as scope:
        await store.submit([mail(content=content)])

    assert scope.cancelled_caught
    assert rows_of(store, "pieces") == rows_of(store, "uploads") == 0


async def test_pieces_that_nobody_comes_for_are_swept(path):
    now = START
    async with open_store(path, clock=lambda: now) as store:
        upload = await store._add(0, 0, b"x" * 1000)
        await store.sweep(now=START + 3599, remember=60)
        assert rows_of(store, "pieces") == 1
        await store.sweep(now=START + 3601, remember=60)
        assert rows_of(store, "pieces") == rows_of(store, "uploads") == 0

        # Whoever was that slow is told, and nothing is taken.
        content = from_octets(b"x" * 998 + b"\r\n")
        parcel = pack(mail(content=content), None, "", upload)
        with pytest.raises(StoreError, match="took so long"):
            await store._committer.do(_SUBMIT, Intake((parcel,), (), 0, 0, 0))
        assert await entries_of(store) == []


# -- damage -------------------------------------------------------------------------------------


def damage(path, octets, replacement=None):
    """Change octets in a file as a bad disk would."""
    data = path.read_bytes()
    assert data.count(octets) == 1
    path.write_bytes(data.replace(octets, replacement or bytes(len(octets))))


async def test_a_damaged_content_is_held_for_a_person_and_stops_nobody(path):
    bad = from_octets(b"Subject: one\r\n\r\n" + b"precious words\r\n" * 4)
    async with open_store(path) as store:
        await store.submit([mail(f"u{n}@one.test", id=f"good{n}") for n in range(5)])
        await store.submit([mail("a@one.test", "b@two.test", id="bad", content=bad)])
    damage(path, b"Subject: one", b"Subject: 0ne")

    async with open_store(path) as store:
        lease = await take(store)
        assert sorted(addresses_in(lease)) == [f"u{n}@one.test" for n in range(5)]
        held = await entries_of(store, states=frozenset({State.HELD}))
        assert [entry.recipient for entry in held] == ["a@one.test", "b@two.test"]
        assert "not what was written" in held[0].reason
        size = len(bad.octets)
        text = f"message 'bad': {size} octets of content are not the {size} that were stored"
        assert await problems_of(store) == [text]
        messages = {each.message.id: each.is_damaged for each in await store.messages()}
        assert messages == dict.fromkeys((f"good{n}" for n in range(5)), False) | {"bad": True}


async def test_a_damaged_content_that_nobody_needs_any_more_is_no_matter(path):
    bad = from_octets(b"Subject: one\r\n\r\nprecious words\r\n")
    async with open_store(path) as store:
        await store.submit([mail("a@one.test", content=bad, deadline=START + 5)])
        await store.submit([mail("b@one.test", content=from_text("Subject: two\n"), id="two")])
    damage(path, b"Subject: one", b"Subject: 0ne")
    damage(path, b"Subject: two", b"Subject: tw0")

    async with open_store(path) as store:
        lease = await take(store, START + 5)
        assert [len(message.recipients) for message in lease.expired] == [1]
        await store.settle(settlements(lease, Result.FAILED), now=START + 5)
        (held,) = await entries_of(store)
        assert (held.message, held.state) == ("two", State.HELD)
        assert (await take(store)).number == 0


async def test_an_envelope_that_is_damaged_is_held_for_a_person_and_stops_nobody(path, caplog):
    async with open_store(path) as store:
        await store.submit([mail(f"u{n}@one.test", id=f"m{n}") for n in range(3)])
        await store.submit([mail("a@two.test", "b@one.test", id="bad")])
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("update recipients set address = 'no mailbox' where domain = 'two.test'")

    async with open_store(path) as store:
        lease = await take(store)
        assert sorted(addresses_in(lease)) == [f"u{n}@one.test" for n in range(3)]
        held = await entries_of(store, states=frozenset({State.HELD}))
        assert {entry.message for entry in held} == {"bad"}
        assert {entry.recipient for entry in held} == {"no mailbox", "b@one.test"}
        assert {entry.attempts for entry in held} == {0}
        assert (
            "envelope on disk is not what was written: address 'no mailbox': no" in held[0].reason
        )
        assert "2 recipients cannot be read and are held" in caplog.text
        await store.settle(settlements(lease), now=START)
        assert (await take(store)).next_due is None
        await store.apply(Action.CANCEL, Selection(message="bad"), now=START)
        assert await store.ended() == ()
        (held, _) = await entries_of(store, states=frozenset({State.HELD}))
        assert held.reason.startswith(
            "it has ended, and nobody can be told of that (see `queue purge"
        )
        found = [each async for each in export_messages(store)]
        assert [each.text for each in found] == [
            "message 'bad': address 'no mailbox': no \"@\"; allowed is local-part@domain"
        ]


async def test_who_ended_and_cannot_be_read_is_held_and_others_are_told(path, caplog):
    async with open_store(path) as store:
        await store.submit([mail("a@two.test", id="bad"), mail("b@two.test", id="worse")])
        await store.submit([mail("c@one.test", id="good")])
        lease = await take(store)
        await store.settle(settlements(lease, Result.FAILED, report=True, reason="550"), now=START)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("update recipients set address = '@' where domain = 'two.test'")

    async with open_store(path) as store:
        # Though all on the first page cannot be read, that is not the end.
        assert [each.message.id for each in await store.ended(limit=2)] == ["good"]
        held = await entries_of(store, states=frozenset({State.HELD}))
        assert [(each.message, each.attempts) for each in held] == [("bad", 1), ("worse", 1)]
        assert "not what was written: address '@'" in held[0].reason
        assert "2 recipients have ended, cannot be read and are held" in caplog.text
        # The log of outcomes has their last lines already.
        assert await store.apply(Action.CANCEL, Selection(message="bad"), now=START) == 1
        assert await store.apply(Action.PURGE, Selection(), now=START) == 3
        assert await store.removals() == ()
        assert await problems_of(store) == []


@pytest.mark.parametrize("column", ["address", "reason", "tenant", "reverse_path"])
async def test_a_text_that_is_no_utf8_any_more_keeps_nobody_else_back(path, column):
    table = "messages" if column in ("tenant", "reverse_path") else "recipients"
    async with open_store(path) as store:
        await store.submit([mail(f"u{n}@one.test", id=f"m{n}") for n in range(3)])
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(
            f"update {table} set {column} = cast(x'75ff40782e7465' as text) where number = 2"
        )

    async with open_store(path) as store:
        entries = await entries_of(store)
        assert [entry.message for entry in entries] == ["m0", "m1", "m2"]
        lease = await take(store)
        is_address = column in ("address", "reverse_path")
        expected = [0, 2] if is_address else [0, 1, 2]
        assert sorted(addresses_in(lease)) == [f"u{n}@one.test" for n in expected]
        held = await entries_of(store, states=frozenset({State.HELD}))
        assert [entry.message for entry in held] == ["m1"] * is_address
        await store.settle(settlements(lease, Result.FAILED, report=True), now=START)
        assert len(await store.ended()) == len(expected)
        assert await store.apply(Action.PURGE, Selection(), now=START) == 3


async def test_who_may_have_been_delivered_and_cannot_be_read_is_held(path):
    async with open_store(path) as store:
        await store.submit([mail("a@one.test", id="good"), mail("b@two.test", id="bad")])
        lease = await take(store, owner="dead")
        for message in lease.messages:
            await store.mark(lease.number, [each.number for each in message.recipients])
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("update recipients set address = '@' where domain = 'two.test'")

    async with open_store(path) as store:
        recovered = await store.recover(owner="new", now=START, deadline=START + 60, dead=["dead"])
        assert [each.message.id for each in recovered.doubtful] == ["good"]
        (held,) = await entries_of(store, states=frozenset({State.HELD}))
        assert (held.message, held.attempts) == ("bad", 1)


async def test_who_is_past_the_deadline_and_cannot_be_read_is_held(path):
    async with open_store(path) as store:
        await store.submit([mail("b@two.test", id="bad", deadline=START + 5)])
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("update recipients set address = '@'")

    async with open_store(path) as store:
        assert (await take(store, START + 5)).expired == ()
        (held,) = await entries_of(store, states=frozenset({State.HELD}))
        assert (held.message, held.attempts) == ("bad", 0)


async def test_a_large_content_that_is_damaged_cannot_be_completed(path):
    async with open_store(path) as store:
        await store.submit([mail(id="bad", content=LARGE)])
    damage(path, b"line 59990\r\n", b"line 5999O\r\n")

    async with open_store(path) as store:
        lease = await take(store)
        got = b""
        with pytest.raises(StoreDamagedError, match="not what was stored"):
            async for piece in lease.messages[0].message.content.chunks():
                got += piece
        assert len(got) < len(LARGE.octets)
        assert len(await problems_of(store)) == 1


async def test_pages_that_are_damaged_cost_what_was_on_them_and_no_more(path):
    content = from_octets(b"x" * 30_000 + b"\r\n")
    async with open_store(path) as store:
        await store.submit([mail(f"u{n}@one.test", id=f"m{n}", content=content) for n in range(60)])
        (page,) = store._committer._db._connection.execute(
            "select pageno from dbstat where name = 'contents' and pagetype = 'leaf' limit 1 offset 1"
        ).fetchall()[0]
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(data)

    async with open_store(path) as store:
        assert await problems_of(store)
        # What can be delivered still is.
        lease = await take(store, seats=200, site_seats=200)
        out = set(addresses_in(lease))
        held = {
            entry.recipient for entry in await entries_of(store, states=frozenset({State.HELD}))
        }
        assert held
        assert len(out) > 40
        assert not out & held
        found = [each async for each in export_messages(store)]
        assert len([each for each in found if not isinstance(each, Damage)]) == 60
        assert sum(each.is_damaged for each in found) == len(held)
        await store.settle(settlements(lease), now=START)


async def test_a_table_that_is_damaged_is_told_and_the_rest_is_exported(path):
    async with open_store(path) as store:
        await store.submit([mail(f"u{n}@one.test", id=f"m{n}") for n in range(600)])
        (page,) = store._committer._db._connection.execute(
            "select pageno from dbstat where name = 'messages' and pagetype = 'leaf' limit 1 offset 3"
        ).fetchall()[0]
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(data)

    async with open_store(path, is_read_only=True) as store:
        with pytest.raises(StoreDamagedError, match="it is damaged"):
            await store.messages(limit=600)
        found = [each async for each in export_messages(store)]
        lost = [each for each in found if isinstance(each, Damage)]
        assert len(lost) == 1
        missing = lost[0].last - lost[0].first + 1
        assert 1 < missing < 50
        assert len(found) == 600 - missing + 1


@pytest.mark.parametrize("table", ["messages", "recipients"])
async def test_checking_says_which_table_cannot_be_read(path, table):
    async with open_store(path) as store:
        await store.submit([mail(f"u{n}@one.test", id=f"m{n}") for n in range(9)])
        (page,) = store._committer._db._connection.execute(
            f"select pageno from dbstat where name = '{table}' limit 1"
        ).fetchall()[0]
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(data)

    async with open_store(path, is_read_only=True) as store:
        found = await problems_of(store)

    assert found[0].startswith("the file is damaged")
    assert any("cannot be looked at" in problem for problem in found[1:])


# -- disks --------------------------------------------------------------------------------------


async def test_nothing_is_taken_below_the_reserve_and_the_rest_goes_on(path, monkeypatch):
    async with open_store(path, reserve_octets=1000) as store:
        await store.submit([mail("a@one.test")])
        monkeypatch.setattr(store._committer._db, "free_octets", lambda: 999)

        for content in (from_text("x"), LARGE):
            with pytest.raises(StoreFullError, match=r"999 octets are left .* nothing more"):
                await store.submit([mail("b@one.test", content=content)])

        lease = await take(store)
        await store.settle(settlements(lease, Result.DEFERRED, due=START, last="{}"), now=START)
        await store.settle(settlements(await take(store)), now=START)
        assert await states_of(store) == []
        monkeypatch.setattr(store._committer._db, "free_octets", lambda: 1000)
        await store.submit([mail("b@one.test")])


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


async def test_a_disk_that_is_read_only_is_called_so(tmp_path):
    with small_disk(tmp_path / "disk", "50m") as disk:
        async with open_store(disk / "spool.sqlite") as store:
            await store.submit([mail("a@one.test")])
        await trio.run_process(["mount", "-o", "remount,ro", str(disk)])
        with pytest.raises(StoreReadOnlyError, match="a read-only disk"):
            async with open_store(disk / "spool.sqlite"):
                pass
        async with open_store(disk / "spool.sqlite", is_read_only=True) as store:
            assert await states_of(store) == [("a@one.test", "queued")]


async def test_a_disk_that_is_full_loses_nothing_that_was_accepted(tmp_path):
    with small_disk(tmp_path / "disk", "2m") as disk:
        accepted, filler = [], disk / "filler"
        async with open_store(disk / "spool.sqlite", reserve_octets=0) as store:
            with pytest.raises(StoreFullError):
                for number in range(10_000):
                    content = LARGE if number % 9 == 8 else from_text("small")
                    await store.submit([mail(id=f"m{number}", content=content)])
                    accepted.append(f"m{number}")
            assert len(accepted) > 3
            # The disk is full for everybody: what is there can be read all the same.
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
                while True:
                    file.write(b"x" * 4096)
            assert sorted(e.message for e in await entries_of(store)) == sorted(accepted)
            with pytest.raises(StoreFullError):
                await store.submit([mail(content=LARGE)])
            filler.unlink()
            lease = await take(store, seats=4)
            await store.settle(settlements(lease), now=START)
        async with open_store(disk / "spool.sqlite", reserve_octets=0) as store:
            left = [entry.message for entry in await entries_of(store)]
            assert len(left) == len(accepted) - len(leased_in(lease))
            assert await problems_of(store) == []


async def test_a_store_that_is_read_only_can_be_looked_at(path):
    async with open_store(path) as store:
        await store.submit([mail("a@one.test", id="x"), mail(id="y", content=LARGE)])

        async with open_store(path, is_read_only=True) as reader:
            assert len(await entries_of(reader)) == 2
            assert (await reader.counts(now=START)).queued == 2
            assert len([each async for each in export_messages(reader)]) == 2
            assert await problems_of(reader) == []
            for change in (
                reader.submit([mail()]),
                take(reader),
                reader.apply(Action.PURGE, Selection(), now=START),
                reader.sweep(now=START, remember=1),
            ):
                with pytest.raises(StoreReadOnlyError):
                    await change
            # What is committed meanwhile is seen.
            await store.submit([mail()])
            assert (await reader.counts(now=START)).queued == 3


# -- several at one file ------------------------------------------------------------------------


async def test_two_stores_on_one_file_share_it_without_overlap(path):
    async with open_store(path) as one, open_store(path) as two:
        await one.submit([mail(f"u{n}@d{n}.test", id=f"m{n}") for n in range(40)])
        assert not (await two.submit([mail("u0@d0.test", id="m0")]))[0].is_new
        taken = []

        async def work(store, owner):
            while (lease := await take(store, seats=3, owner=owner)).messages:
                taken.extend(addresses_in(lease))
                await store.settle(settlements(lease), now=START)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, one, "w1")
            nursery.start_soon(work, two, "w2")

        assert sorted(taken) == sorted(f"u{n}@d{n}.test" for n in range(40))
        assert await states_of(two) == []


async def test_another_process_can_submit_and_steer_while_we_work(path):
    script = textwrap.dedent(
        """
        import sys, trio
        from engine.queue.sqlite import open_store
        from engine.queue.values import Action, Selection
        from tests.queue.mail import START, mail

        async def main():
            async with open_store(sys.argv[1]) as store:
                for number in range(100):
                    await store.submit([mail(f"u{number}@other.test", id=f"other{number}")])
                await store.apply(Action.HOLD, Selection(domain="held.test"), now=START)
                print(len((await store.entries(limit=1000)).entries))

        trio.run(main)
        """
    )
    async with open_store(path) as store:
        await store.submit([mail("a@held.test", id="h")])
        done = trio.Event()

        async def other():
            command = [sys.executable, "-c", script, str(path)]
            await trio.run_process(command, capture_stdout=True)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            number = 0
            while not done.is_set():
                await store.submit([mail(f"v{number}@ours.test", id=f"ours{number}")])
                number += 1

        states = await entries_of(store)
        assert {e.state for e in states if e.recipient == "a@held.test"} == {State.HELD}
        assert sum(e.recipient.endswith("@other.test") for e in states) == 100
        assert sum(e.recipient.endswith("@ours.test") for e in states) == number
        assert await problems_of(store) == []


# -- ends ---------------------------------------------------------------------------------------


async def test_a_store_that_is_closed_says_so(path):
    async with open_store(path) as store:
        pass

    with pytest.raises(StoreClosedError):
        await store.submit([mail()])
    assert not path.with_name("spool.sqlite-wal").exists()


async def test_stores_leave_no_descriptor_behind(path):
    async def once():
        async with open_store(path) as store:
            await store.submit([mail()])
            await problems_of(store)

    await once()

    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(5):
        await once()

    assert descriptors() <= before


async def test_a_message_with_many_recipients_is_taken_in_good_time(store):
    recipients = tuple(Recipient.parse(f"u{n}@d{n % 50}.test") for n in range(5000))
    message = Message("x", None, recipients, from_text("hello"))
    with trio.fail_after(20):
        await store.submit([Submission(message=message, submitted_at=START)])
        counts = await store.counts(now=START)

    assert (counts.queued, counts.messages) == (5000, 1)
    lease = await take(store, seats=1000)
    assert len(lease.messages) == 1
    assert 900 <= len(leased_in(lease)) <= 1000


# -- cancelled anywhere -------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the step with some number of the task that entered it."""

    def __init__(self):
        self.step, self.scope, self.task = math.inf, None, None

    def before_task_step(self, task):
        if task is self.task:
            self.step -= 1
            if self.step == 0:
                self.scope.cancel()


async def test_wherever_it_is_cancelled_an_operation_has_happened_or_not(path):
    """What was returned has happened; what was not returned has not, but for marks and submits.

    Those may have happened when they were cancelled in the middle: both can be done twice.
    """
    instrument = CancelAtStep()
    trio.lowlevel.add_instrument(instrument)
    instrument.task = trio.lowlevel.current_task()
    async with open_store(path) as store:
        step = 0
        while True:
            step += 1
            seen = []
            content = LARGE if step % 2 else from_text("x")
            with trio.CancelScope() as scope:
                instrument.scope, instrument.step = scope, step
                await store.submit([mail("a@one.test", id=f"m{step}", content=content)])
                seen.append("submitted")
                lease = await take(store)
                seen.append(lease)
                for number, recipient in leased_in(lease):
                    await store.mark(number, [recipient.number])
                await store.settle(settlements(lease, Result.DEFERRED, due=START + 99), now=START)
                seen.append("settled")
            instrument.step = math.inf
            entries = await entries_of(store)
            if "submitted" in seen:
                assert [entry.message for entry in entries] == [f"m{step}"]
            leases = [each for each in seen if not isinstance(each, str)]
            leased = [entry for entry in entries if entry.state is State.LEASED]
            if "settled" in seen:
                assert [entry.next_attempt for entry in entries] == [START + 99]
            elif not leases:
                assert leased == []
            await store.recover(owner="next", now=START, deadline=START, dead=["w1"])
            await store.apply(Action.PURGE, Selection(), now=START)
            doubtful = await store.recover(owner="x", now=START, deadline=START, dead=["next"])
            for message in doubtful.doubtful:
                for recipient in message.recipients:
                    await store.settle(settlements_of(message, recipient), now=START)
            assert await entries_of(store) == []
            if "settled" in seen and not scope.cancel_called:
                break
        assert step > 5
        assert rows_of(store, "pieces") == rows_of(store, "uploads") == 0
    trio.lowlevel.remove_instrument(instrument)


def settlements_of(message, recipient):
    return [Settlement(lease=message.lease, recipient=recipient.number, result=Result.DELIVERED)]
