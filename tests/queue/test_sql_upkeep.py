from __future__ import annotations

import pytest

from engine.queue import sql_upkeep
from engine.queue.database import open_in_memory
from engine.queue.sql_upkeep import check_strays, check_structure, sweep
from engine.queue.sqlite import open_store
from tests.queue.mail import START, leased_in, mail, settlements, take
from tests.queue.plans import walks


@pytest.mark.parametrize(
    "name",
    ["forget_messages", "idle_sites", "next_sites", "drop_domains", "drop_sites", "drop_pieces_of"],
)
def test_a_sweep_goes_through_no_large_table(name):
    assert walks(name) == []


async def test_sites_are_swept_a_step_at_a_time_round_and_round(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_upkeep, "_AT_ONCE", 10)
    async with open_store(tmp_path / "spool.sqlite") as store:
        await store.submit([mail(f"u@d{n}.test") for n in range(35)])
        while (lease := await take(store, seats=100)).messages:
            keep = [s for s, (_, r) in zip(settlements(lease), leased_in(lease), strict=True)]
            await store.settle(keep, now=START)
        db = store._committer._db._connection

        left = []
        for _ in range(5):
            await store.sweep(now=START, remember=60)
            left.append(db.execute("select count(*) from sites").get)

        assert left == [25, 15, 5, 0, 0]
        assert db.execute("select count(*) from domains").get == 0


async def test_ids_are_forgotten_a_step_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sql_upkeep, "_AT_ONCE", 10)
    async with open_store(tmp_path / "spool.sqlite") as store:
        await store.submit([mail(f"u@d{n}.test") for n in range(25)])
        lease = await take(store)
        await store.settle(settlements(lease), now=START)
        db = store._committer._db._connection

        left = []
        for _ in range(3):
            await store.sweep(now=START + 60, remember=60)
            left.append(db.execute("select count(*) from messages").get)

        assert left == [15, 5, 0]


def test_an_empty_store_can_be_swept_and_is_in_order():
    db = open_in_memory()

    assert sweep(db, 1000, 10, 0) == 0
    assert check_structure(db) == []
    assert check_strays(db, 0) == ([], None)


def test_states_that_contradict_themselves_are_found():
    db = open_in_memory()
    insert = (
        "insert into recipients (message, address, domain, notify, state, due, lane)"
        " values (1, 'a@one.test', 'one.test', '', 'queued', 0, null)"
    )
    db._connection.execute(insert)

    assert check_strays(db, 0) == (["recipient 1: its state contradicts itself"], 1)
    assert check_strays(db, 1) == ([], None)
