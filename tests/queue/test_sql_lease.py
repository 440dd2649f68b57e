from __future__ import annotations

from collections import Counter

import pytest

from engine.queue.sqlite import open_store
from engine.queue.values import Result, Settlement
from tests.queue.mail import START, addresses_in, leased_in, mail, settlements, take
from tests.queue.plans import plan_of, walks

#: Statements that a lease, a mark, a settlement or a submission runs.
OFTEN = (
    "lanes_come_due",
    "lines_up",
    "sites_out",
    "lanes_next",
    "recipients_next",
    "recipients_expired",
    "insert_lease",
    "take_recipients",
    "lanes_left",
    "close_lanes",
    "steps_aside",
    "outlook",
    "clocks",
    "shares_of",
    "set_clocks",
    "set_shares",
    "messages_of",
    "contents_of",
    "pieces_of",
    "hold_damaged",
    "leases_of",
    "insert_marks",
    "extend_leases",
    "count_out",
    "close_leases",
    "lost_leases",
    "recipients_doubtful",
    "adopt_recipients",
    "recipients_lost",
)


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "spool.sqlite") as store:
        yield store


@pytest.mark.parametrize("name", OFTEN)
def test_a_lease_goes_through_no_table_as_large_as_the_queue(name):
    """The line itself may be walked: it ends where enough was found."""
    allowed = {"lanes_next": ["SCAN lanes USING INDEX lanes_line"]}
    allowed["outlook"] = ["SCAN lanes USING COVERING INDEX lanes_line"]

    assert walks(name) == allowed.get(name, [])


def test_the_line_is_kept_by_an_index():
    assert "SCAN lanes USING INDEX lanes_line" in plan_of("lanes_next")
    assert not any("TEMP B-TREE" in step for step in plan_of("lanes_next"))
    assert not any("TEMP B-TREE" in step for step in plan_of("lanes_come_due"))
    assert any(
        "USING COVERING INDEX recipients_waiting (lane=? AND due<?)" in step
        for step in plan_of("recipients_next")
    )
    assert "SEARCH recipients USING COVERING INDEX recipients_waiting (lane=?)" in plan_of(
        "lanes_left"
    )


async def test_a_lease_takes_from_many_lanes_of_one_recipient_each(store):
    await store.submit([mail(f"u@d{n}.test") for n in range(700)])

    first, second = await take(store, seats=600), await take(store, seats=600)

    assert len(leased_in(first)) >= 500
    assert first.next_due == START
    assert not first.is_clogged
    assert len(leased_in(first)) + len(leased_in(second)) == 700
    assert second.next_due is None


async def test_more_lanes_than_are_looked_at_at_once_are_looked_at_in_turn(store):
    await store.submit([mail(f"u@d{n}.test") for n in range(1200)])

    taken = []
    while (lease := await take(store, seats=1000)).messages:
        taken += addresses_in(lease)
        await store.settle(settlements(lease), now=START)

    assert len(set(taken)) == len(taken) == 1200


async def test_a_lane_that_is_empty_or_not_due_any_more_is_left(store):
    await store.submit([mail("a@one.test"), mail("b@two.test")])
    lease = await take(store, seats=1)
    address = addresses_in(lease)[0]
    await store.settle(settlements(lease, Result.DEFERRED, due=START + 50), now=START)

    lease = await take(store)

    assert addresses_in(lease) != [address]
    assert lease.next_due == START + 50
    count = store._committer._db._connection.execute("select count(*) from lanes").get
    assert count == 1


async def test_a_message_is_read_once_for_all_its_recipients(store):
    await store.submit([mail(*(f"u@d{n}.test" for n in range(20)))])

    lease = await take(store)

    (message,) = lease.messages
    assert len(message.recipients) == len(message.message.recipients) == 20
    assert {r.site for r in message.recipients} == {f"d{n}.test" for n in range(20)}


async def test_deep_lanes_share_a_lease(store):
    await store.submit([mail(f"u{n}@d{n % 4}.test") for n in range(400)])

    lease = await take(store, seats=100)

    counts = Counter(r.site for _, r in leased_in(lease))
    assert len(counts) == 4
    assert max(counts.values()) <= 50


async def test_leases_are_closed_when_nobody_is_under_them(store):
    db = store._committer._db._connection
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(4)])
    first, second = await take(store, seats=2), await take(store, seats=2)
    for lease in (first, second):
        await store.mark(lease.number, [r.number for _, r in leased_in(lease)])
    await store.settle(settlements(first), now=START)

    await store.extend("w1", deadline=START + 60)

    assert db.execute("select number from leases").fetchall() == [(second.number,)]
    assert db.execute("select distinct lease from marks").fetchall() == [(second.number,)]


async def test_numbers_of_leases_are_never_used_again(store):
    await store.submit([mail()])
    old = await take(store)
    await store.settle(settlements(old), now=START)
    await store.extend("w1", deadline=START)
    await store.submit([mail()])

    new = await take(store)

    assert new.number > old.number
    ((_, recipient),) = leased_in(new)
    late = Settlement(lease=old.number, recipient=recipient.number, result=Result.DELIVERED)
    assert await store.settle([late], now=START) == (recipient.number,)
