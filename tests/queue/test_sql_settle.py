from __future__ import annotations

import pytest
import trio

from engine.queue.sqlite import open_store
from engine.queue.values import Result, State
from tests.queue.mail import START, leased_in, mail, settlements, take
from tests.queue.plans import walks
from tests.queue.store_conformance import entries_of


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "spool.sqlite") as store:
        yield store


@pytest.mark.parametrize(
    "name",
    [
        "recipients_standing",
        "delete_recipients",
        "delete_outcomes",
        "end_recipients",
        "queue_recipients",
        "hold_recipients",
        "keep_outcomes",
        "drop_contents",
        "drop_pieces",
        "finish_messages",
        "note_sites",
        "lanes_of_sites",
        "moved_domains",
        "numbers_of_sites",
        "set_sites",
        "lanes_to_move",
        "move_lanes",
        "merge_lanes",
        "look_again_at_lanes",
        "drop_empty_lanes",
        "move_out",
        "delete_sites",
        "ended_among",
    ],
)
def test_settling_goes_through_no_large_table(name):
    assert walks(name) == []


async def test_settlements_of_many_tasks_are_done_together(store):
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(30)])
    lease = await take(store)
    results = [Result.DELIVERED, Result.DEFERRED, Result.HELD, Result.FAILED, Result.RELEASED]
    ignored = []

    async def settle(settlement):
        ignored.append(await store.settle([settlement], now=START))

    before = store._committer.commits
    async with trio.open_nursery() as nursery:
        for number, (held, recipient) in enumerate(leased_in(lease)):
            (settlement,) = [
                s
                for s in settlements(
                    lease, results[number % 5], due=START + 9, report=number % 5 == 3
                )
                if s.recipient == recipient.number
            ]
            assert settlement.lease == held
            nursery.start_soon(settle, settlement)

    assert ignored == [()] * 30
    assert store._committer.commits - before < 10
    states = [entry.state for entry in await entries_of(store)]
    assert {state: states.count(state) for state in set(states)} == {
        State.QUEUED: 12,
        State.HELD: 6,
        State.ENDED: 6,
    }


async def test_of_two_tasks_that_settle_the_same_one_is_told(store):
    await store.submit([mail()])
    (settlement,) = settlements(await take(store))
    ignored = []

    async def settle():
        ignored.append(await store.settle([settlement], now=START))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(settle)

    assert sorted(ignored) == [(), *[(settlement.recipient,)] * 4]
