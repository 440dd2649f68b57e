from __future__ import annotations

from concurrent.futures import Future

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.calls import Call
from engine.errors import EngineClosedError


def closed() -> EngineClosedError:
    return EngineClosedError("over")


async def double(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * number


async def test_what_comes_of_a_call_is_the_result_of_its_promise():
    future: Future[int] = Future()
    await Call(future, double, 21).run(closed)
    assert future.result(0) == 42


async def test_the_error_of_a_call_is_its_callers_and_goes_no_further():
    async def fail() -> None:
        raise ZeroDivisionError("a bug")

    future: Future[None] = Future()
    await Call(future, fail).run(closed)
    assert isinstance(future.exception(0), ZeroDivisionError)


async def test_a_call_that_is_cancelled_before_it_begins_calls_nothing():
    begun = []

    async def begin() -> None:
        begun.append(True)

    future: Future[None] = Future()
    call = Call(future, begin)
    call.cancel()
    await call.run(closed)
    assert isinstance(future.exception(0), EngineClosedError)
    assert begun == []


async def test_a_call_that_is_cancelled_on_its_way_fails_with_the_error_that_is_made():
    future: Future[None] = Future()
    call = Call(future, trio.sleep_forever)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run, closed)
        await wait_all_tasks_blocked()
        call.cancel()
    assert isinstance(future.exception(0), EngineClosedError)


async def test_a_call_that_its_nursery_cancels_keeps_its_promise_and_stays_cancelled():
    future: Future[None] = Future()
    with trio.CancelScope() as scope:
        scope.cancel()
        await Call(future, trio.sleep_forever).run(closed)
    assert scope.cancelled_caught
    assert isinstance(future.exception(0), EngineClosedError)


async def test_a_promise_that_nobody_waits_for_any_more_is_left_as_it_is():
    future: Future[int] = Future()
    call = Call(future, double, 21)
    assert future.cancel()
    await call.run(closed)
    call.fail(closed())
    assert future.cancelled()


async def test_a_promise_is_kept_once():
    future: Future[int] = Future()
    call = Call(future, double, 21)
    await call.run(closed)
    call.fail(closed())
    assert future.result(0) == 42


async def test_what_is_no_error_of_the_call_ends_whoever_runs_it_and_the_promise_is_kept_all_the_same():
    async def interrupt() -> None:
        raise KeyboardInterrupt

    future: Future[None] = Future()
    with pytest.raises(KeyboardInterrupt):
        await Call(future, interrupt).run(closed)
    assert isinstance(future.exception(0), EngineClosedError)
