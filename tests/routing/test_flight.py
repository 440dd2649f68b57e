from __future__ import annotations

from functools import partial

import pytest
import trio

from engine.routing.flight import SingleFlight


class Work:
    """Takes a second, counts, and fails the first `failures` times."""

    def __init__(self, failures=0):
        self.started = 0
        self.failures = failures

    async def __call__(self):
        self.started += 1
        number = self.started
        await trio.sleep(1)
        if number <= self.failures:
            raise RuntimeError(f"work {number}")
        return number


async def ask(flights, key, work, results):
    results.append(await flights.share(key, work))


async def test_tasks_that_ask_for_the_same_key_share_one_piece_of_work(autojump_clock):
    flights, work, results = SingleFlight(), Work(), []

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask, flights, "key", work, results)

    assert (work.started, results) == (1, [1] * 100)
    assert trio.current_time() == 1


async def test_different_keys_do_not_wait_for_each_other(autojump_clock):
    flights, work, results = SingleFlight(), Work(), []

    async with trio.open_nursery() as nursery:
        for key in range(5):
            nursery.start_soon(ask, flights, key, work, results)

    assert work.started == 5
    assert trio.current_time() == 1


async def test_work_that_ended_is_done_again_when_asked_again(autojump_clock):
    flights, work = SingleFlight(), Work()

    assert [await flights.share("key", work), await flights.share("key", work)] == [1, 2]


async def test_when_the_worker_is_cancelled_one_waiter_takes_over_for_all(autojump_clock):
    flights, work, results = SingleFlight(), Work(), []

    async with trio.open_nursery() as nursery:
        first = await nursery.start(ask_cancellably, flights, work)
        for _ in range(10):
            nursery.start_soon(ask, flights, "key", work, results)
        await trio.sleep(0.5)
        first.cancel()

    assert (work.started, results) == (2, [2] * 10)
    assert trio.current_time() == 1.5


async def ask_cancellably(flights, work, task_status):
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await flights.share("key", work)


async def test_a_cancelled_waiter_leaves_the_work_to_the_others(autojump_clock):
    flights, work, results = SingleFlight(), Work(), []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, flights, "key", work, results)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.5) as scope:
            await flights.share("key", work)

    assert scope.cancelled_caught
    assert (work.started, results) == (1, [1])


async def test_an_error_is_the_workers_own_and_a_waiter_tries_again(autojump_clock):
    flights, work, results = SingleFlight(), Work(failures=1), []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_error, partial(flights.share, "key", work))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, flights, "key", work, results)

    assert results == [2]


async def expect_error(function):
    with pytest.raises(RuntimeError, match="work 1"):
        await function()
