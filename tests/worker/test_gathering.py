from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.worker.gathering import Gathering


def line(most=100, octets=1000):
    return Gathering(most=most, octets=octets)


async def put_all(gathering, things, octets=1):
    for thing in things:
        await gathering.put(thing, octets)


async def test_what_has_gathered_comes_in_groups_and_in_order():
    gathering = line()
    await put_all(gathering, range(25))
    taken = []
    for _ in range(3):
        group = await gathering.take(10, 1000)
        taken.append([thing for thing, _ in group])
    assert taken == [list(range(10)), list(range(10, 20)), list(range(20, 25))]


async def test_groups_are_bounded_by_octets_and_the_first_always_goes():
    gathering = line()
    for octets in (30, 80, 10, 10, 10):
        await gathering.put(octets, octets)
    groups = [[size for _, size in await gathering.take(10, 30)] for _ in range(3)]
    assert groups == [[30], [80], [10, 10, 10]]


async def test_whoever_takes_waits_until_there_is_something(nursery, autojump_clock):
    gathering, taken = line(), []

    async def take():
        taken.append(await gathering.take(10, 100))

    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    assert taken == []
    await gathering.put("x", 1)
    await wait_all_tasks_blocked()
    assert taken == [[("x", 1)]]


@pytest.mark.parametrize("bound", ["number", "octets"])
async def test_whoever_puts_waits_for_room(bound, nursery):
    gathering = line(most=5) if bound == "number" else line(octets=5)
    nursery.start_soon(put_all, gathering, range(8))
    await wait_all_tasks_blocked()
    assert len(await gathering.take(100, 100)) == 5
    await wait_all_tasks_blocked()
    if bound == "octets":
        # What was taken is held until it is done with.
        gathering.done(3)
        await wait_all_tasks_blocked()
    assert [thing for thing, _ in await gathering.take(100, 100)] == [5, 6, 7]


async def test_a_thing_larger_than_allowed_goes_alone(nursery):
    gathering = line(octets=10)
    await gathering.put("large", 50)
    nursery.start_soon(gathering.put, "small", 1)
    await wait_all_tasks_blocked()
    assert await gathering.take(10, 10) == [("large", 50)]
    gathering.done(50)
    await wait_all_tasks_blocked()
    assert await gathering.take(10, 10) == [("small", 1)]


async def test_once_closed_it_gives_what_is_left_and_then_nothing(nursery):
    gathering, ends = line(), []

    async def take():
        ends.append(await gathering.take(10, 10))

    nursery.start_soon(take)
    nursery.start_soon(take)
    await wait_all_tasks_blocked()
    gathering.close()
    await wait_all_tasks_blocked()
    assert ends == [[], []]
    await gathering.put("x", 1)
    assert await gathering.take(10, 10) == [("x", 1)]
    assert await gathering.take(10, 10) == []


async def test_nobody_is_left_waiting_however_tasks_take_turns():
    gathering, taken = line(most=3, octets=20), []

    async def take():
        while group := await gathering.take(2, 10):
            for _ in range(len(taken) % 3):
                await trio.lowlevel.checkpoint()
            taken.extend(thing for thing, _ in group)
            gathering.done(sum(octets for _, octets in group))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(take)
            for number in range(1000):
                await gathering.put(number, number % 7)
                if number % 5 == 0:
                    await trio.lowlevel.checkpoint()
            gathering.close()
    assert sorted(taken) == list(range(1000))
