from __future__ import annotations

import pytest
import trio

from engine.nursery import tasks_beside


async def test_tasks_end_with_the_block_and_are_waited_for(autojump_clock):
    ended = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(5, shield=True):
                await trio.sleep(1)
            ended.append(trio.current_time())

    started = trio.current_time()
    async with tasks_beside() as nursery:
        nursery.start_soon(work)
        await trio.sleep(2)
        assert not ended

    assert ended == [started + 3]


async def test_an_error_of_the_block_comes_out_as_it_is():
    with pytest.raises(KeyError) as info:
        async with tasks_beside() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise KeyError("mine")

    assert info.value.args == ("mine",)


async def test_an_error_of_a_task_cancels_the_block():
    async def fail() -> None:
        raise KeyError("its own")

    with pytest.RaisesGroup(KeyError):
        async with tasks_beside() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()


async def test_a_cancellation_goes_through(autojump_clock):
    with trio.move_on_after(1) as scope:
        async with tasks_beside() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()

    assert scope.cancelled_caught


def test_where_trio_does_not_run_it_says_what_does():
    with pytest.raises(RuntimeError, match=r"engine\.aio\.Engine"):
        tasks_beside().__aenter__().send(None)
