from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from engine.content import from_octets
from engine.message import Message, Recipient
from engine.outcome import Cause, Outcome, Status
from engine.smtp.stages import Stage
from engine.worker.budget import SMALL_OCTETS, Budget

LARGE = from_octets(b"x" * (SMALL_OCTETS + 10) + b"\r\n")
OCTETS = LARGE.facts.octets


def message(name: str, recipients: int = 1, content=LARGE) -> Message:
    return Message(
        name, None, tuple(Recipient.parse("a@b.test") for _ in range(recipients)), content
    )


def outcome(name: str) -> Outcome:
    return Outcome(
        message=name,
        recipient="a@b.test",
        status=Status.DELIVERED,
        stage=Stage.FINAL,
        cause=Cause.REPLY,
        text="ok",
    )


async def has_room(budget: Budget, name: str) -> bool:
    with trio.move_on_after(0) as scope:
        await budget.take(message(name))
    return not scope.cancelled_caught


async def test_small_contents_never_wait():
    budget = Budget(1)
    for _ in range(10):
        await budget.take(message("1", content=from_octets(b"small\r\n")))


async def test_a_content_larger_than_everything_goes_alone():
    budget = Budget(1)
    await budget.take(message("1"))
    assert not await has_room(budget, "2")
    budget.settle(outcome("1"))
    assert await has_room(budget, "2")


async def test_the_last_recipient_frees_the_octets():
    budget = Budget(OCTETS)
    await budget.take(message("1", recipients=2))
    budget.settle(outcome("1"))
    assert not await has_room(budget, "2")
    budget.settle(outcome("other"))
    assert not await has_room(budget, "2")
    budget.settle(outcome("1"))
    assert await has_room(budget, "2")


async def test_two_messages_of_one_id_are_freed_together():
    budget = Budget(2 * OCTETS)
    await budget.take(message("1"))
    await budget.take(message("1"))
    budget.settle(outcome("1"))
    assert not await has_room(budget, "2")
    budget.settle(outcome("1"))
    assert await has_room(budget, "2")


async def test_who_waits_is_woken(autojump_clock: trio.testing.MockClock):
    budget = Budget(OCTETS)
    await budget.take(message("1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.take, message("2"))
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        budget.settle(outcome("1"))
