from __future__ import annotations

import os
from contextlib import aclosing, asynccontextmanager
from zlib import crc32

import pytest
import trio

from engine.queue.errors import StoreFullError, StoreUnusableError
from engine.queue.sqlite import open_store
from engine.queue.submission import Accepted
from engine.queue.values import Action, Selection, State
from engine.worker import shards as module
from engine.worker.config import load_config
from engine.worker.control_server import serve_control
from engine.worker.control_socket import listen
from engine.worker.desk import Desk, Refused
from engine.worker.shards import divide, open_shards, shard_of
from tests.queue.mail import mail


@pytest.fixture
def make(tmp_path):
    def make_config(text=""):
        (tmp_path / "engine.toml").write_text(text)
        return load_config(tmp_path / "engine.toml")

    return make_config


@asynccontextmanager
async def worker_at(config, folder, name="", store=None):
    """Run as much of a worker as answers on the socket."""
    async with open_store(folder / f"spool{name}.sqlite") as opened:
        async with trio.open_nursery() as nursery:
            desk = Desk(store or opened, status=lambda: {"pid": 7})
            await nursery.start(serve_control, folder / f"engine{name}.sock", desk)
            yield opened
            nursery.cancel_scope.cancel()


async def entries_of(shards, selection=None):
    async with aclosing(shards.entries(selection or Selection())) as entries:
        return [entry async for entry in entries]


# ---- which process ------------------------------------------------------------------------------


def test_a_domain_has_its_process_in_any_spelling():
    assert shard_of("One.Test", 4) == shard_of("one.test", 4) == crc32(b"one.test") % 4 + 1
    assert {shard_of(f"d{n}.test", 3) for n in range(100)} == {1, 2, 3}
    assert shard_of("one.test", 1) == 1


def test_a_message_is_divided_by_the_domains_of_its_recipients():
    addresses = [f"u{n}@d{n % 20}.test" for n in range(60)]
    whole = mail(*addresses, id="x", tenant="t")

    parts = divide(whole, 3)

    assert set(parts) == {1, 2, 3}
    for number, part in parts.items():
        assert (part.message.id, part.tenant) == ("x", "t")
        for recipient in part.message.recipients:
            assert shard_of(recipient.mailbox.routing_domain, 3) == number
    got = [each.address for part in parts.values() for each in part.message.recipients]
    assert sorted(got) == sorted(addresses)


def test_a_message_of_one_process_stays_whole():
    whole = mail("a@one.test", "b@one.test")
    assert divide(whole, 1) == {1: whole}
    assert divide(whole, 8) == {shard_of("one.test", 8): whole}


# ---- where it is asked --------------------------------------------------------------------------


async def test_without_a_worker_the_file_is_used_and_made(make, tmp_path):
    config = make()
    async with open_shards(config, "submit") as shards:
        assert await shards.submit([mail(id="x")]) == (Accepted("x", is_new=True),)
        assert not await shards.shards[0].is_running()
    async with open_shards(config, "look") as shards:
        assert [entry.message for entry in await entries_of(shards)] == ["x"]
    assert (tmp_path / "spool.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_file_that_root_makes_is_of_the_owner_of_its_folder(make, tmp_path):
    config = make()
    os.chown(tmp_path, 12_345, 23_456)
    async with open_shards(config, "submit") as shards:
        await shards.submit([mail(id="x")])
        found = [path.stat() for path in tmp_path.glob("spool.sqlite*")]
    assert len(found) == 3
    assert {(each.st_uid, each.st_gid, each.st_mode & 0o777) for each in found} == {
        (12_345, 23_456, 0o600)
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_log_that_root_begins_is_of_the_owner_of_the_store(make, tmp_path):
    config = make()
    os.chown(tmp_path, 12_345, 23_456)
    async with open_shards(config, "submit") as shards:
        await shards.submit([mail(id="x")])
    async with open_shards(config, "steer") as shards:
        assert await shards.apply(Action.PURGE, Selection(message="x")) == 1
    found = (tmp_path / "outcomes.jsonl").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12_345, 23_456, 0o640)


async def test_who_only_looks_or_steers_makes_no_file(make, tmp_path):
    for purpose in ("look", "steer"):
        async with open_shards(make(), purpose) as shards:
            assert await entries_of(shards) == []
            assert await shards.apply(Action.RETRY, Selection()) == 0
    assert not (tmp_path / "spool.sqlite").exists()


async def test_a_worker_that_runs_is_asked(make, tmp_path):
    config = make()
    async with worker_at(config, tmp_path) as store, open_shards(config, "submit") as shards:
        before = store.changes
        await shards.submit([mail(id="x")])
        assert store.changes > before  # the worker knows of it at once
        assert await shards.shards[0].is_running()
        assert (await shards.shards[0].status()).worker == {"pid": 7}


async def test_a_socket_that_nobody_listens_on_is_no_worker(make, tmp_path):
    config = make()
    listener = listen(tmp_path / "engine.sock")
    await listener.aclose()
    assert (tmp_path / "engine.sock").exists()
    async with open_shards(config, "submit") as shards:
        assert (await shards.submit([mail(id="x")]))[0].is_new


async def test_a_worker_that_ends_in_between_is_followed_by_the_file(make, tmp_path):
    config = make()
    async with open_shards(config, "submit") as shards:
        async with worker_at(config, tmp_path):
            await shards.submit([mail(id="x")])
            assert await shards.shards[0].is_running()
        assert await shards.submit([mail(id="x"), mail(id="y")]) == (
            Accepted("x", is_new=False),
            Accepted("y", is_new=True),
        )
        assert not await shards.shards[0].is_running()


async def test_a_worker_that_is_replaced_is_found_again(make, tmp_path):
    config = make()
    async with open_shards(config, "submit") as shards:
        for name in ("x", "y", "z"):
            async with worker_at(config, tmp_path):
                await shards.submit([mail(id=name)])
                assert await shards.shards[0].is_running()
        assert len(await entries_of(shards)) == 3


async def test_a_worker_that_dies_over_a_request_is_asked_again(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    config = make()
    tries = []

    async def die(task_status):
        listener = listen(tmp_path / "engine.sock")
        task_status.started()
        async with listener:
            for _ in range(2):
                async with await listener.accept() as stream:
                    await stream.send_all(b'\0\0\0\x0e{"control": 1}')
                    while len(tries) < 10 and b"submit" not in await stream.receive_some():
                        pass
                    tries.append(1)

    async with trio.open_nursery() as nursery, open_shards(config, "submit") as shards:
        await nursery.start(die)
        assert await shards.submit([mail(id="x")]) == (Accepted("x", is_new=True),)
    assert len(tries) == 2


async def test_a_socket_that_is_not_ours_is_said(make, tmp_path, monkeypatch):
    async def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    from engine.worker import control_client

    monkeypatch.setattr(control_client, "connect", refuse)
    async with open_shards(make(), "submit") as shards:
        with pytest.raises(StoreUnusableError, match=r"engine\.sock: Permission denied; allowed"):
            await shards.submit([mail()])


async def test_a_file_that_cannot_be_used_is_said_each_time(make, tmp_path):
    (tmp_path / "spool.sqlite").write_text("this is no database, but a letter" * 100)
    async with open_shards(make(), "submit") as shards:
        for _ in range(2):
            with pytest.raises(Exception, match=r"spool\.sqlite"):
                await shards.submit([mail()])


# ---- several processes --------------------------------------------------------------------------


async def test_each_process_gets_what_is_its_own(make, tmp_path):
    config = make("[worker]\nprocesses = 3\n")
    batch = [mail(f"a@d{n}.test", f"b@e{n}.test", f"c@d{n}.test", id=f"m{n}") for n in range(30)]
    async with open_shards(config, "submit") as shards:
        first = await shards.submit(batch)
        again = await shards.submit(batch)
        entries = await entries_of(shards)
        per_shard = [(await shard.counts()).queued for shard in shards.shards]
        assert await shards.apply(Action.HOLD, Selection(message="m7")) == 3

    assert first == tuple(Accepted(f"m{n}", is_new=True) for n in range(30))
    assert again == tuple(Accepted(f"m{n}", is_new=False) for n in range(30))
    assert len(entries) == sum(per_shard) == 90
    assert all(per_shard)
    for number, name in enumerate(("spool", "spool-2", "spool-3"), 1):
        async with open_store(tmp_path / f"{name}.sqlite") as store:
            for entry in (await store.entries(limit=100)).entries:
                assert shard_of(entry.recipient.partition("@")[2], 3) == number
                assert (entry.state is State.HELD) is (entry.message == "m7")


async def test_some_processes_may_run_and_others_not(make, tmp_path):
    config = make("[worker]\nprocesses = 2\n")
    async with worker_at(config, tmp_path, "-2"), open_shards(config, "submit") as shards:
        await shards.submit([mail(f"a@d{n}.test") for n in range(10)])
        assert [await shard.is_running() for shard in shards.shards] == [False, True]
        assert len(await entries_of(shards)) == 10


async def test_what_one_process_refuses_is_refused(make):
    config = make("[worker]\nprocesses = 2\n[queue]\nmax_message_octets = 10\n")
    async with open_shards(config, "submit") as shards:
        (answer,) = await shards.submit([mail("a@d0.test", "a@d1.test", "a@d2.test", id="x")])
    assert isinstance(answer, Refused)


async def test_a_process_whose_store_fails_fails_what_is_its_own(make, tmp_path):
    class Full:
        async def submit(self, submissions, *, forget=()):
            raise StoreFullError("the disk is full")

    config = make("[worker]\nprocesses = 2\n")
    own = next(f"d{n}.test" for n in range(9) if shard_of(f"d{n}.test", 2) == 1)
    other = next(f"d{n}.test" for n in range(9) if shard_of(f"d{n}.test", 2) == 2)
    async with worker_at(config, tmp_path, "-2", Full()), open_shards(config, "submit") as shards:
        assert (await shards.submit([mail(f"a@{own}", id="x")]))[0].is_new
        with pytest.raises(StoreFullError):
            await shards.submit([mail(f"a@{own}", id="y"), mail(f"a@{other}", id="z")])
        # What the other took is taken; to submit all of it again is harmless.
        assert (await shards.submit([mail(f"a@{own}", id="y")])) == (Accepted("y", is_new=False),)


async def test_a_weight_is_everybody_s(make):
    config = make("[worker]\nprocesses = 2\n")
    async with open_shards(config, "submit") as shards:
        await shards.set_weight("t", 2.0)
        with pytest.raises(ValueError, match="weight"):
            await shards.set_weight("t", 0.0)
