from __future__ import annotations

import pytest

from engine.queue.errors import StoreError
from engine.queue.sqlite import SqliteStore, open_store
from engine.queue.submission import Submission
from tests.delivery.helpers import message


async def test_while_it_is_open_it_is_the_store(tmp_path):
    opening = open_store(tmp_path / "spool.sqlite")
    async with opening as store:
        assert isinstance(store, SqliteStore)
        await opening.submit([Submission(message=message("a@x.test", id="one"), submitted_at=0.0)])
        assert (await opening.counts(now=0.0)) == (await store.counts(now=0.0))
        assert opening.changes == 1


async def test_what_is_not_open_says_how_it_is_opened(tmp_path):
    opening = open_store(tmp_path / "spool.sqlite")
    with pytest.raises(RuntimeError, match=r"spool\.sqlite' is not open.*async with open_store"):
        await opening.counts(now=0.0)
    async with opening:
        pass
    with pytest.raises(RuntimeError, match="is not open"):
        await opening.counts(now=0.0)


async def test_it_may_be_opened_again_but_not_twice_at_a_time(tmp_path):
    opening = open_store(tmp_path / "spool.sqlite")
    for _ in range(2):
        async with opening as store:
            with pytest.raises(
                RuntimeError, match=r"is open already.*or uses what `async with` gave"
            ):
                await opening.__aenter__()
            assert (await store.counts(now=0.0)) is not None


async def test_what_cannot_be_opened_is_not_open(tmp_path):
    opening = open_store(tmp_path / "none" / "spool.sqlite")
    with pytest.raises(StoreError):
        await opening.__aenter__()
    with pytest.raises(RuntimeError, match="is not open"):
        await opening.counts(now=0.0)


def test_it_shows_where_it_is_and_has_nothing_private_of_the_store(tmp_path):
    opening = open_store(tmp_path / "spool.sqlite")
    assert "spool.sqlite', not open" in repr(opening)
    assert not hasattr(opening, "_committer")
