from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from engine.guest import Guest, Tenant, find_guest, see_through
from tests.left_behind import nothing_left_behind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Sleeper:
    """A tenant that sleeps until it is cancelled, and then for a moment."""

    def __init__(self, moment: float = 0.0) -> None:
        self.events: list[str] = []
        self.running = asyncio.Event()
        self.over = asyncio.Event()
        self.failure: Exception | None = None
        self._moment = moment
        self._scope = trio.CancelScope()
        self.tenant = Tenant(self._run, self._scope.cancel, self._abandon)

    async def _run(self) -> None:
        self.running.set()
        with self._scope:
            await trio.sleep_forever()
        await trio.sleep(self._moment)
        self.over.set()

    def _abandon(self, error: Exception) -> None:
        self.failure = error
        self.over.set()

    def leave(self) -> None:
        self._scope.cancel()


@asynccontextmanager
async def lodged(sleeper: Sleeper) -> AsyncIterator[Guest]:
    guest = await find_guest()
    guest.host(sleeper.tenant)
    await sleeper.running.wait()
    try:
        yield guest
    finally:
        sleeper.leave()
        await sleeper.over.wait()
        if guest.is_ending:
            await guest.wait_over()


def test_the_tenants_of_a_loop_share_one_run_which_ends_with_the_last():
    async def main() -> None:
        async with lodged(Sleeper()) as first:
            async with lodged(Sleeper()) as second:
                assert second is first
            assert not first.is_ending
            async with lodged(Sleeper()) as third:
                assert third is first
        assert not trio.lowlevel.in_trio_run()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        async with lodged(Sleeper()) as another:
            assert another is not first

    with nothing_left_behind():
        asyncio.run(main())


def test_whoever_comes_while_a_run_is_ending_waits_for_the_next():
    async def main() -> None:
        first = Sleeper()
        guest = await find_guest()
        guest.host(first.tenant)
        await first.running.wait()
        first.leave()
        await first.over.wait()
        assert guest.is_ending
        assert trio.lowlevel.in_trio_run()
        async with lodged(Sleeper()) as another:
            assert another is not guest

    asyncio.run(main())


def test_each_loop_has_its_own():
    guests = []

    async def main(barrier: threading.Barrier) -> None:
        async with lodged(Sleeper()) as guest:
            guests.append(guest)
            await asyncio.to_thread(barrier.wait, 10)

    barrier = threading.Barrier(2)
    threads = [
        threading.Thread(target=lambda: asyncio.run(main(barrier)), name=f"loop {number}")
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(guests)) == 2


def test_where_trio_runs_already_it_cannot_be_a_guest():
    async def main() -> None:
        with pytest.raises(RuntimeError, match="Trio runs in this thread already"):
            await find_guest()

    async def in_trio() -> None:
        asyncio.run(main())

    trio.run(in_trio)


def test_a_loop_that_ends_cancels_the_tenants_and_waits_for_them():
    sleepers = []

    async def main() -> None:
        for _ in range(2):
            sleeper = Sleeper(moment=0.1)
            (await find_guest()).host(sleeper.tenant)
            await sleeper.running.wait()
            sleepers.append(sleeper)

    with nothing_left_behind():
        asyncio.run(main())
    assert [sleeper.over.is_set() for sleeper in sleepers] == [True, True]
    assert not trio.lowlevel.in_trio_run()


def test_a_signal_handler_of_the_loop_works_beside_it_and_behind_it():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[str] = asyncio.Queue()
        loop.add_signal_handler(signal.SIGUSR1, heard.put_nowait, "heard")
        async with lodged(Sleeper()):
            signal.raise_signal(signal.SIGUSR1)
            assert await asyncio.wait_for(heard.get(), 5) == "heard"
        signal.raise_signal(signal.SIGUSR1)
        assert await asyncio.wait_for(heard.get(), 5) == "heard"

    asyncio.run(main())


def test_what_trio_itself_fails_by_is_told_to_the_tenants():
    class Broken:
        @staticmethod
        def unwrap() -> None:
            raise trio.TrioInternalError("broken")

    async def main() -> None:
        sleeper = Sleeper()
        async with lodged(sleeper) as guest:
            real, guest._over = guest._over, asyncio.get_running_loop().create_future()
            guest._done(Broken())
            guest._over = real
            assert isinstance(sleeper.failure, trio.TrioInternalError)

    asyncio.run(main())


def test_seeing_something_through_lets_no_cancellation_pass_before_it_is_done():
    async def main() -> None:
        hurries = []
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(see_through(future, lambda: hurries.append("hurry")))
        for _ in range(2):
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        future.set_result(None)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hurries == ["hurry", "hurry"]

    asyncio.run(main())
