from __future__ import annotations

import pytest

from engine.queue import sql_lanes
from engine.queue.database import open_in_memory
from engine.queue.sql_lanes import move_domains, note_sites, open_lanes
from engine.queue.sqlite import open_store
from engine.queue.values import SiteState
from tests.queue.mail import START, addresses_in, leased_in, mail, settlements, take
from tests.queue.plans import walks


@pytest.mark.parametrize(
    "name", ["new_domains", "insert_sites", "insert_domains", "open_lanes", "numbers_of_lanes"]
)
def test_lanes_are_found_by_indexes(name):
    assert walks(name) == []


def dues_of(db):
    return dict(db._connection.execute("select number, due from lanes").fetchall())


def test_a_place_has_one_lane_that_is_looked_at_when_the_first_is_due():
    db = open_in_memory()
    place, other = ("one.test", 0, "", ""), ("one.test", 0, "", "job")

    first = open_lanes(db, [(place, 50), (place, 30), (other, 40)], overdue=1000)
    again = open_lanes(db, [(place, 20), (other, 90)], overdue=1000)

    assert first == again
    assert len(set(first.values())) == 2
    assert dues_of(db) == {first[place]: 20, first[other]: 40}
    assert open_lanes(db, [], overdue=0) == {}


def test_a_lane_of_a_site_that_is_backed_off_is_looked_at_when_that_ends():
    db = open_in_memory()
    note_sites(db, [SiteState(name="one.test", not_before=0.5)], overdue=1000)

    open_lanes(db, [(("one.test", 0, "", ""), 30)], overdue=1000)
    assert list(dues_of(db).values()) == [500]

    note_sites(db, [SiteState(name="two.test", not_before=5.0)], overdue=1000)
    open_lanes(db, [(("two.test", 0, "", ""), 30)], overdue=1000)
    assert sorted(dues_of(db).values()) == [500, 1030]  # by then it is overdue


def test_of_two_states_of_a_site_the_last_counts():
    db = open_in_memory()

    note_sites(
        db,
        [SiteState(name="a", failures=1, not_before=1.0), SiteState(name="a", failures=2)],
        overdue=0,
    )

    assert db.rows("sites_unwell") == [["a", 0, 2, ""]]


def test_domains_without_mail_are_not_remembered():
    db = open_in_memory()

    move_domains(db, {"one.test": "mx.test"}, overdue=0)

    assert db._connection.execute("select count(*) from sites").get == 0


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "spool.sqlite") as store:
        yield store


async def test_lanes_of_a_domain_merge_into_those_of_its_site(store):
    await store.submit([mail(f"u{n}@d{n % 3}.test", job=f"j{n % 2}") for n in range(24)])

    await store.settle([], now=START, routes={f"d{n}.test": "mx.test" for n in range(3)})

    count = store._committer._db._connection.execute("select count(*) from lanes").get
    assert count == 2
    assert len(leased_in(await take(store))) == 24
    names = store._committer._db._connection.execute("select name from sites").fetchall()
    assert names == [("mx.test",)]


async def test_a_long_lane_stands_beside_and_is_emptied_all_the_same(store, monkeypatch):
    monkeypatch.setattr(sql_lanes, "_LONG_LANE", 5)
    await store.submit([mail(f"u{n}@long.test") for n in range(30)])
    await store.submit([mail("a@short.test")])

    await store.settle([], now=START, routes={"short.test": "mx.test"})
    await store.settle([], now=START, routes={"long.test": "mx.test"})
    await store.submit([mail("later@long.test")])

    count = store._committer._db._connection.execute("select count(*) from lanes").get
    assert count == 2
    taken = []
    while (lease := await take(store, site_seats=7)).messages:
        assert len(leased_in(lease)) <= 7
        taken += addresses_in(lease)
        await store.settle(settlements(lease), now=START)
    assert len(taken) == 32


async def test_what_was_due_first_still_is_after_lanes_merged(store):
    await store.submit([mail("late@one.test", not_before=START + 50)])
    await store.settle([], now=START, routes={"one.test": "mx.test"})
    await store.submit([mail("soon@two.test", not_before=START + 20)])
    await store.settle([], now=START, routes={"two.test": "mx.test"})

    assert (await take(store)).next_due == START + 20
    assert addresses_in(await take(store, START + 20)) == ["soon@two.test"]
    assert addresses_in(await take(store, START + 50)) == ["late@one.test"]
