"""Back-pressure: seats are taken in order, given back when outcomes are taken, and never lost."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.errors import EngineClosedError
from engine.outcome import Cause, Outcome, Status
from engine.outcomes import Outcomes, Seats
from engine.smtp.stages import Stage


class Submitters:
    """Tasks that take seats and note who got them, in order."""

    def __init__(self, seats, nursery):
        self.seats = seats
        self.nursery = nursery
        self.seated = []
        self.refused = []

    async def come(self, name, count):
        """Let somebody come and wait until it is clear whether there is room."""
        scope = trio.CancelScope()
        self.nursery.start_soon(self._take, name, count, scope)
        await wait_all_tasks_blocked()
        return scope

    async def _take(self, name, count, scope):
        with scope:
            try:
                await self.seats.take(count)
            except EngineClosedError:
                self.refused.append(name)
            else:
                self.seated.append(name)


def outcome(number):
    return Outcome(
        message=str(number),
        recipient="a@b.test",
        status=Status.DELIVERED,
        stage=Stage.FINAL,
        cause=Cause.REPLY,
        text="accepted",
    )


# -- seats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, -1])
def test_a_house_has_at_least_one_seat(total):
    with pytest.raises(ValueError, match=f"max_in_flight is {total}; at least 1 is needed"):
        Seats(total)


async def test_free_seats_are_taken_at_once():
    seats = Seats(3)
    await seats.take(1)
    await seats.take(2)
    assert seats.taken == 3
    seats.give_back(2)
    assert seats.taken == 1


async def test_who_finds_no_seat_waits_for_one(nursery):
    seats = Seats(2)
    come = Submitters(seats, nursery)
    await come.come("a", 2)
    await come.come("b", 1)
    assert come.seated == ["a"]
    seats.give_back()
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "b"]
    assert seats.taken == 2


async def test_who_waits_is_not_overtaken_by_a_smaller_group(nursery):
    seats = Seats(3)
    come = Submitters(seats, nursery)
    await come.come("a", 2)
    await come.come("b", 3)
    await come.come("c", 1)  # there would be room, but b was first
    assert come.seated == ["a"]
    seats.give_back(2)
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "b"]
    seats.give_back(3)
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "b", "c"]


async def test_seats_that_come_free_together_seat_all_they_can(nursery):
    seats = Seats(4)
    come = Submitters(seats, nursery)
    await come.come("a", 4)
    for name in "bcde":
        await come.come(name, 1)
    seats.give_back(3)
    await wait_all_tasks_blocked()
    assert set(come.seated) == set("abcd")  # woken together they run in any order
    assert seats.taken == 4


async def test_a_group_larger_than_the_house_waits_for_an_empty_one(nursery):
    seats = Seats(2)
    come = Submitters(seats, nursery)
    await come.come("a", 1)
    await come.come("many", 5)
    await come.come("b", 1)
    assert come.seated == ["a"]
    seats.give_back()
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "many"]
    assert seats.taken == 5
    seats.give_back(4)
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "many", "b"]
    assert seats.taken == 2


async def test_a_large_house_seats_in_batches(nursery):
    """Waking a submitter for every seat would cost a task switch for each message."""
    seats = Seats(80)
    come = Submitters(seats, nursery)
    await come.come("a", 80)
    await come.come("b", 1)
    seats.give_back(9)
    await wait_all_tasks_blocked()
    assert come.seated == ["a"]
    seats.give_back()
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "b"]


async def test_cancelled_while_waiting_no_seat_is_taken(nursery):
    seats = Seats(1)
    come = Submitters(seats, nursery)
    await come.come("a", 1)
    waiting = await come.come("b", 1)
    waiting.cancel()
    await wait_all_tasks_blocked()
    assert waiting.cancelled_caught
    seats.give_back()
    assert seats.taken == 0
    await come.come("c", 1)
    assert come.seated == ["a", "c"]


async def test_whoever_waited_behind_a_cancelled_group_is_seated(nursery):
    seats = Seats(4)
    come = Submitters(seats, nursery)
    await come.come("a", 2)
    large = await come.come("large", 4)
    await come.come("small", 1)
    assert come.seated == ["a"]
    large.cancel()
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "small"]


async def test_cancelled_in_the_moment_of_being_seated_the_seat_is_kept(nursery):
    """What was taken is taken: who is seated learns of the cancellation at the next checkpoint."""
    seats = Seats(1)
    come = Submitters(seats, nursery)
    await come.come("a", 1)
    waiting = await come.come("b", 1)
    seats.give_back()
    waiting.cancel()
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "b"]
    assert seats.taken == 1


@pytest.mark.parametrize("then", ["give_back", "close", "give_back and close"])
async def test_a_seat_offered_to_whoever_is_being_cancelled_goes_to_the_next(nursery, then):
    """A cancelled task learns of it only when it runs, and may be offered a seat before."""
    seats = Seats(1)
    come = Submitters(seats, nursery)
    await come.come("a", 1)
    waiting = await come.come("b", 1)
    await come.come("c", 1)
    waiting.cancel()
    for act in then.split(" and "):
        getattr(seats, act)()
    await wait_all_tasks_blocked()
    assert waiting.cancelled_caught
    assert (come.seated, come.refused) == {
        "give_back": (["a", "c"], []),
        "close": (["a"], ["c"]),
        "give_back and close": (["a"], ["c"]),
    }[then]
    seats.give_back(seats.taken)
    assert seats.taken == 0


async def test_closing_turns_everybody_away(nursery):
    seats = Seats(1)
    come = Submitters(seats, nursery)
    await come.come("a", 1)
    await come.come("b", 1)
    await come.come("c", 1)
    seats.close()
    await wait_all_tasks_blocked()
    await come.come("d", 1)
    assert come.seated == ["a"]
    assert sorted(come.refused) == ["b", "c", "d"]
    assert seats.taken == 1


async def test_a_closed_house_says_so():
    seats = Seats(1)
    seats.close()
    with pytest.raises(EngineClosedError, match="takes no more messages"):
        await seats.take(1)


async def test_seats_are_given_back_after_closing(nursery):
    seats = Seats(2)
    come = Submitters(seats, nursery)
    await come.come("a", 2)
    seats.close()
    seats.give_back(2)
    await wait_all_tasks_blocked()
    assert seats.taken == 0


# -- outcomes -----------------------------------------------------------------------------------


async def test_outcomes_come_out_in_order():
    seats = Seats(1000)
    outcomes = Outcomes(seats)
    await seats.take(500)
    for number in range(500):
        outcomes.put(outcome(number))
    assert len(outcomes) == 500
    received = [(await outcomes.receive()).message for _ in range(500)]
    assert received == [str(number) for number in range(500)]
    assert len(outcomes) == 0
    assert seats.taken == 0


async def test_a_seat_is_given_back_when_its_outcome_is_taken_and_not_before():
    seats = Seats(2)
    outcomes = Outcomes(seats)
    await seats.take(2)
    outcomes.put(outcome(1))
    outcomes.put(outcome(2))
    assert seats.taken == 2
    await outcomes.receive()
    assert seats.taken == 1
    outcomes.receive_nowait()
    assert seats.taken == 0


async def test_whoever_takes_outcomes_lets_submitters_in(nursery):
    seats = Seats(1)
    outcomes = Outcomes(seats)
    come = Submitters(seats, nursery)
    await come.come("a", 1)
    await come.come("b", 1)
    outcomes.put(outcome(1))
    await wait_all_tasks_blocked()
    assert come.seated == ["a"]
    await outcomes.receive()
    await wait_all_tasks_blocked()
    assert come.seated == ["a", "b"]


async def test_receiving_waits_for_an_outcome(nursery):
    outcomes = Outcomes(Seats(1))
    received = []

    async def take():
        received.append(await outcomes.receive())

    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    assert received == []
    outcomes.put(outcome(1))
    await wait_all_tasks_blocked()
    assert received == [outcome(1)]


async def test_cancelled_while_receiving_nothing_is_lost(nursery):
    seats = Seats(1)
    outcomes = Outcomes(seats)
    await seats.take(1)
    with trio.CancelScope() as scope:

        async def cancel():
            await wait_all_tasks_blocked()
            scope.cancel()

        nursery.start_soon(cancel)
        await outcomes.receive()
    assert scope.cancelled_caught
    outcomes.put(outcome(1))
    assert seats.taken == 1
    assert outcomes.receive_nowait() == outcome(1)
    assert seats.taken == 0


async def test_without_an_outcome_receive_nowait_would_block():
    seats = Seats(1)
    with pytest.raises(trio.WouldBlock):
        Outcomes(seats).receive_nowait()
    assert seats.taken == 0


async def test_the_channel_ends_behind_what_is_in_it():
    seats = Seats(3)
    outcomes = Outcomes(seats)
    await seats.take(3)
    for number in range(3):
        outcomes.put(outcome(number))
    outcomes.end()
    assert [one.message async for one in outcomes] == ["0", "1", "2"]
    assert seats.taken == 0
    with pytest.raises(trio.EndOfChannel):
        await outcomes.receive()
    with pytest.raises(trio.EndOfChannel):
        outcomes.receive_nowait()
    assert seats.taken == 0


async def test_a_reader_that_leaves_loses_nothing_for_the_next_one():
    seats = Seats(2)
    outcomes = Outcomes(seats)
    await seats.take(2)
    outcomes.put(outcome(1))
    async with outcomes:
        assert await outcomes.receive() == outcome(1)
    outcomes.put(outcome(2))
    assert await outcomes.receive() == outcome(2)


async def test_a_busy_reader_still_lets_others_run(nursery):
    seats = Seats(10_000)
    outcomes = Outcomes(seats)
    await seats.take(2000)
    for number in range(2000):
        outcomes.put(outcome(number))
    left_when_run = []

    async def other():
        left_when_run.append(len(outcomes))

    nursery.start_soon(other)
    for _ in range(2000):
        await outcomes.receive()
    assert left_when_run != []
    assert left_when_run[0] > 0
