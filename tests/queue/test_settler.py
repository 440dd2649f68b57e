from __future__ import annotations

import math

import pytest
import trio

from engine.outcome import Status
from engine.queue import decision, settler
from engine.queue.decision import Policy, Settled
from engine.queue.errors import StoreFullError
from engine.queue.memory import MemoryStore
from engine.queue.settler import Settler
from engine.queue.values import SiteState
from tests.queue.mail import START, mail, outcome, take
from tests.queue.store_conformance import states_of


class Told(list):
    """Whom an `on_settled` was told of; fails so often first."""

    def __init__(self, failures=0, error=OSError):
        self.failures, self.error = failures, error

    async def __call__(self, settled):
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise self.error("no space left on device")
        self += [each.outcome.recipient for each in settled]


class Failing(MemoryStore):
    """A store that settles nothing for so many times."""

    def __init__(self, failures):
        super().__init__()
        self.failures, self.calls = failures, []

    async def settle(self, settlements, **how):
        self.calls.append((len(settlements), how["sites"], how["routes"]))
        if self.failures:
            self.failures -= 1
            await trio.lowlevel.checkpoint()
            raise StoreFullError("the disk is full")
        return await super().settle(settlements, **how)


def make(store, told=None, **how):
    batches = []
    how = {"patience": 10.0} | how
    made = Settler(store, clock=lambda: START, on_settled=told, on_batch=batches.append, **how)
    return made, batches


async def delivered(store, count):
    """Lease so many recipients, and return that each was delivered."""
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(count)])
    lease = await take(store, seats=count)
    return [
        Settled(
            outcome(Status.DELIVERED, message=each.message.id, recipient=recipient.address),
            each,
            recipient,
            decision.settle(Policy(), each, index, outcome(Status.DELIVERED), START).settlement,
            None,
            "",
        )
        for each in lease.messages
        for index, recipient in enumerate(each.recipients)
    ]


async def test_what_is_added_is_told_and_then_settled(autojump_clock):
    store, told = MemoryStore(), Told()
    made, batches = make(store, told)
    settled = await delivered(store, 3)
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await trio.sleep(0.1)
            for each in settled[:2]:
                made.add(each)
            await trio.sleep(0.1)
            made.add(settled[2])
            await trio.sleep_forever()

    assert told == [each.outcome.recipient for each in settled]
    assert [len(batch) for batch in batches] == [2, 1]
    assert (made.settled, made.lost, len(made)) == (3, 0, 0)
    assert await states_of(store) == []


async def test_what_needs_no_telling_is_settled_all_the_same(autojump_clock):
    store, told = MemoryStore(), Told()
    made, _ = make(store, told)
    await store.submit([mail("a@one.test")])
    lease = await take(store)
    made.add(decision.release(lease.messages[0], 0, START))

    await made.finish()

    assert told == []
    assert await states_of(store) == [("a@one.test", "queued")]


async def test_many_are_settled_in_several_batches(autojump_clock, monkeypatch):
    monkeypatch.setattr(settler, "_BATCH", 4)
    store = MemoryStore()
    made, batches = make(store)
    for each in await delivered(store, 10):
        made.add(each)

    await made.finish()

    assert [len(batch) for batch in batches] == [4, 4, 2]


async def test_what_the_store_does_not_take_is_tried_again_and_told_once(autojump_clock, caplog):
    store, told = Failing(3), Told()
    made, batches = make(store, told)
    settled = await delivered(store, 2)
    made.add(settled[0])
    made.note_site(SiteState(name="x.test", failures=1))
    made.note_route("x.test", "mx.test")
    seen = []
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await trio.sleep(0.1)
            seen.append((made.failure is not None, made.has_news_of("x.test")))
            made.add(settled[1])
            made.note_site(SiteState(name="x.test", failures=2))
            await trio.sleep(10)
            seen.append((made.failure is not None, made.has_news_of("x.test")))
            await trio.sleep_forever()

    assert seen == [(True, True), (False, False)]
    assert told == [each.outcome.recipient for each in settled]
    assert [len(batch) for batch in batches] == [2]
    # What is newer is not overwritten by what failed to be written.
    _, sites, routes = store.calls[-1]
    assert [site.failures for site in sites] == [2]
    assert routes == {"x.test": "mx.test"}
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3


async def test_a_log_that_cannot_be_written_holds_up_the_store(autojump_clock):
    store, told = Failing(0), Told(failures=2)
    made, _ = make(store, told)
    (settled,) = await delivered(store, 1)
    made.add(settled)

    await made.finish()

    assert told == [settled.outcome.recipient]
    assert len(store.calls) == 1


async def test_other_errors_end_the_run_and_leave_what_waits(autojump_clock, caplog):
    store, told = MemoryStore(), Told(failures=9, error=KeyError)
    made, _ = make(store, told)
    made.add((await delivered(store, 1))[0])

    with pytest.raises(KeyError):
        await made.run()
    await made.finish()

    assert len(made) == 1
    assert "KeyError" in caplog.text


async def test_whose_lease_was_lost_is_counted(autojump_clock):
    store = MemoryStore()
    made, _ = make(store)
    for each in await delivered(store, 2):
        made.add(each)
        made.add(each)

    await made.finish()

    assert (made.settled, made.lost) == (4, 2)


async def test_a_batch_under_way_is_finished_when_everything_is_cancelled(autojump_clock):
    store, told = MemoryStore(), Told()

    async def slow(settled):
        await trio.sleep(3)
        await told(settled)

    made, _ = make(store, slow)
    made.add((await delivered(store, 1))[0])
    with trio.move_on_after(1) as scope:
        await made.run()

    assert scope.cancelled_caught
    assert trio.current_time() == 3
    assert await states_of(store) == []


async def test_behind_the_store_everybody_is_told_of_once(autojump_clock):
    store, kept = Failing(2), []
    made = Settler(
        store,
        clock=lambda: START,
        on_settled=None,
        on_batch=lambda _: None,
        on_kept=lambda batch: kept.append((list(batch), len(store.calls))),
        patience=10.0,
    )
    settled = await delivered(store, 3)
    for each in settled:
        made.add(each)

    await made.finish()
    made.end()

    assert kept == [(settled, 3)]


async def test_whom_the_store_has_not_taken_is_told_of_at_the_end(autojump_clock):
    store, kept = Failing(math.inf), []
    made = Settler(
        store,
        clock=lambda: START,
        on_settled=None,
        on_batch=lambda _: None,
        on_kept=kept.extend,
        patience=10.0,
    )
    settled = await delivered(store, 2)
    for each in settled:
        made.add(each)

    with trio.move_on_after(10):
        await made.finish()
    assert kept == []
    made.end()

    assert kept == settled


async def test_a_store_that_hangs_is_given_up_for_now(autojump_clock):
    class Hanging(MemoryStore):
        async def settle(self, settlements, **how):
            if trio.current_time() < 5:
                await trio.sleep_forever()
            return await super().settle(settlements, **how)

    store = Hanging()
    made, _ = make(store, patience=2.0)
    made.add((await delivered(store, 1))[0])

    with trio.move_on_after(20):
        await made.finish()

    assert await states_of(store) == []
    assert 5 <= trio.current_time() < 20


async def test_pauses_grow_up_to_a_bound(autojump_clock, caplog):
    store = Failing(math.inf)
    made, _ = make(store)
    made.add((await delivered(store, 1))[0])

    with trio.move_on_after(100):
        await made.run()

    # At once, and after pauses of 0.5, 1, 2, 4, 8, 16, 30 and 30 s.
    assert len(store.calls) == 9
    assert made.failure is not None
    assert len(made) == 1
