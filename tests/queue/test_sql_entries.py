from __future__ import annotations

import pytest

from engine.queue import sql_entries
from engine.queue.sqlite import open_store
from engine.queue.values import Action, Selection
from tests.queue.mail import START, mail
from tests.queue.plans import walks


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "spool.sqlite") as store:
        yield store


@pytest.mark.parametrize(
    "name",
    [
        "entries",
        "entries_of_message",
        "step_end",
        "step_end_of_message",
        "recipients_steered",
        "wish_for",
        "sites_backed_off",
        "message_numbers",
        "ended_messages",
        "recipients_of",
    ],
)
def test_a_step_goes_through_no_large_table(name):
    """A step begins at a number and ends after so many; it is no walk from the start."""
    assert walks(name) == []


async def test_looking_for_little_in_much_comes_back_in_between(store, monkeypatch):
    monkeypatch.setattr(sql_entries, "STEP", 10)
    await store.submit([mail(f"u{n}@one.test") for n in range(45)] + [mail("x@rare.test")])

    pages, after = [], 0
    while after is not None:
        page = await store.entries(Selection(domain="rare.test"), after=after)
        pages.append(len(page.entries))
        after = page.next

    assert pages == [0, 0, 0, 0, 1]


async def test_a_step_with_more_than_fits_a_page_is_continued_where_it_ended(store, monkeypatch):
    monkeypatch.setattr(sql_entries, "STEP", 10)
    await store.submit([mail(f"u{n}@d{n % 2}.test") for n in range(40)])

    found, after, pages = [], 0, 0
    while after is not None:
        page = await store.entries(Selection(domain="d1.test"), after=after, limit=3)
        found += [entry.recipient for entry in page.entries]
        after, pages = page.next, pages + 1

    assert found == [f"u{n}@d1.test" for n in range(1, 40, 2)]
    assert pages >= 7


async def test_one_message_is_found_without_looking_at_others(store, monkeypatch):
    monkeypatch.setattr(sql_entries, "STEP", 2)
    await store.submit([mail(f"u{n}@one.test") for n in range(40)])
    await store.submit([mail("a@one.test", "b@one.test", "c@one.test", id="x")])

    found, after = [], 0
    while after is not None:
        page = await store.entries(Selection(message="x"), after=after)
        found.append([entry.recipient for entry in page.entries])
        after = page.next

    assert found == [["a@one.test", "b@one.test", "c@one.test"]]
    assert await store.apply(Action.HOLD, Selection(message="x"), now=START) == 3


async def test_steering_takes_as_many_steps_as_it_needs(store, monkeypatch):
    monkeypatch.setattr(sql_entries, "STEP", 7)
    await store.submit([mail(f"u{n}@d{n % 3}.test") for n in range(50)])
    before = store._committer.operations

    assert await store.apply(Action.HOLD, Selection(domain="d0.test"), now=START) == 17

    assert store._committer.operations - before == 8
    assert (await store.counts(now=START)).held == 17
