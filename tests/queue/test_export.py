from __future__ import annotations

import pytest

from engine.queue.errors import StoreBusyError, StoreDamagedError
from engine.queue.export import Damage, export_messages
from engine.queue.memory import MemoryStore
from engine.queue.values import Result
from tests.queue.mail import START, mail, settlements, take


class Damaged(MemoryStore):
    """A store in which some messages cannot be read."""

    def __init__(self, bad, error=StoreDamagedError):
        super().__init__()
        self.bad, self.error, self.calls = bad, error, 0

    async def messages(self, *, after=0, limit=100):
        self.calls += 1
        found = await super().messages(after=after, limit=limit)
        if any(each.number in self.bad for each in found) or (not found and self.bad == "all"):
            raise self.error("page 7 is damaged")
        return found


async def exported(store):
    return [
        each if isinstance(each, Damage) else each.message.id
        async for each in export_messages(store)
    ]


async def test_all_messages_come_with_those_recipients_that_are_left():
    store = MemoryStore()
    await store.submit([mail("a@one.test", "b@two.test", id=f"m{n}") for n in range(120)])
    await store.settle(settlements(await take(store, seats=1)), now=START)

    assert await exported(store) == [f"m{n}" for n in range(120)]
    (first, *_) = [each async for each in export_messages(store)]
    assert [recipient.address for recipient in first.message.recipients] == ["b@two.test"]
    assert len(first.entries) == 1


async def test_an_empty_store_gives_nothing():
    assert await exported(MemoryStore()) == []


async def test_what_is_held_or_has_ended_comes_along():
    store = MemoryStore()
    await store.submit([mail(id="held", is_held=True), mail(id="ended")])
    await store.settle(settlements(await take(store), Result.FAILED, report=True), now=START)

    assert await exported(store) == ["held", "ended"]


async def test_what_cannot_be_read_is_told_and_costs_nothing_beside_it():
    store = Damaged({1, 40, 41, 42, 120})
    await store.submit([mail(id=f"m{n}") for n in range(1, 121)])

    found = await exported(store)

    assert [each for each in found if isinstance(each, Damage)] == [
        Damage(1, 1, "page 7 is damaged"),
        Damage(40, 42, "page 7 is damaged"),
        Damage(120, 120, "page 7 is damaged"),
    ]
    assert len(found) == 115 + 3
    assert found[38:42] == ["m39", Damage(40, 42, "page 7 is damaged"), "m43", "m44"]


async def test_a_store_that_cannot_be_read_at_all_comes_to_an_end():
    class Lost(MemoryStore):
        async def messages(self, *, after=0, limit=100):
            raise StoreDamagedError("page 1 is damaged")

    (damage,) = await exported(Lost())

    assert damage.first == 1
    assert damage.last > 10**12


async def test_other_errors_are_raised():
    store = Damaged({1}, StoreBusyError)
    await store.submit([mail()])

    with pytest.raises(StoreBusyError):
        await exported(store)
