from __future__ import annotations

import json
import threading
from contextlib import closing
from functools import partial

import apsw
import pytest
import trio

from engine.queue.committer import Kind, one_by_one, open_committer
from engine.queue.database import open_database
from engine.queue.errors import StoreClosedError, StoreError, StoreFullError


class Gate:
    """Holds the thread of a committer until it is opened, so that a group gathers."""

    def __init__(self):
        self.is_entered = threading.Event()
        self._open = threading.Event()

    def open(self):
        self._open.set()

    async def until_entered(self):
        await trio.to_thread.run_sync(self.is_entered.wait)

    def __call__(self, db, argument):
        self.is_entered.set()
        assert self._open.wait(10)
        return argument


@pytest.fixture
async def opened(tmp_path):
    async with open_committer(partial(open_database, tmp_path / "s.sqlite")) as committer:
        yield committer


def put(db, name):
    """Write something."""
    db.run("insert_sites", names=json.dumps([name]))
    return name


def put_once(db, name):
    if name in names(db):
        raise KeyError(name)
    return put(db, name)


def names(db, _=None):
    return sorted(row[0] for row in db._connection.execute("select name from sites"))


PUT = one_by_one("put", put)
PUT_ONCE = one_by_one("put once", put_once)
NAMES = one_by_one("names", names, is_read=True)


async def gather(committer, *operations):
    """Do operations in one group; return what each returned or raised."""
    gate, results = Gate(), {}

    async def do(number, kind, argument):
        try:
            results[number] = await committer.do(kind, argument)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            results[number] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.do, one_by_one("gate", gate), None)
        await gate.until_entered()
        for number, operation in enumerate(operations):
            nursery.start_soon(do, number, *operation)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    return [results[number] for number in range(len(operations))]


async def test_operations_of_many_tasks_share_one_commit(opened):
    results = await gather(opened, *[(PUT, f"n{number}") for number in range(50)])

    assert results == [f"n{number}" for number in range(50)]
    assert (opened.commits, opened.operations) == (2, 51)
    assert len(await opened.do(NAMES, None)) == 50


async def test_operations_of_one_kind_are_done_by_one_call(opened):
    calls = []

    def apply(db, arguments):
        calls.append(list(arguments))
        return [argument * 2 for argument in arguments]

    results = await gather(opened, *[(Kind("double", apply), number) for number in range(5)])

    assert results == [0, 2, 4, 6, 8]
    assert [sorted(call) for call in calls] == [[0, 1, 2, 3, 4]]


async def test_what_is_urgent_is_on_disk_while_the_others_of_its_group_are_at_work(
    opened, tmp_path
):
    first, second = Gate(), Gate()
    urgent = Kind("urgent", lambda db, names: [put(db, name) for name in names], is_urgent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.do, one_by_one("gate", first), None)
        await first.until_entered()
        nursery.start_soon(opened.do, one_by_one("gate", second), None)
        await trio.testing.wait_all_tasks_blocked()

        async def mark():
            assert await opened.do(urgent, "n1") == "n1"
            with closing(open_database(tmp_path / "s.sqlite", is_read_only=True)) as other:
                assert names(other) == ["n1"]
            second.open()

        nursery.start_soon(mark)
        await trio.testing.wait_all_tasks_blocked()
        first.open()


async def test_an_operation_that_fails_takes_nobody_along(opened):
    results = await gather(
        opened, (PUT, "a"), (PUT_ONCE, "b"), (PUT_ONCE, "b"), (NAMES, None), (PUT, "c")
    )

    assert (results[0], results[4]) == ("a", "c")
    # Tasks of Trio take their turns in no order.
    assert {str(results[1]), str(results[2])} == {"b", "'b'"}
    assert results[3] == ["a", "b", "c"]
    assert await opened.do(NAMES, None) == ["a", "b", "c"]


async def test_what_an_operation_that_fails_has_written_is_undone(opened):
    def write_and_fail(db, name):
        put(db, name)
        raise ZeroDivisionError

    results = await gather(opened, (PUT, "a"), (one_by_one("fail", write_and_fail), "bad"))

    assert isinstance(results[1], ZeroDivisionError)
    assert await opened.do(NAMES, None) == ["a"]
    with pytest.raises(ZeroDivisionError):
        await opened.do(one_by_one("fail", write_and_fail), "bad")
    assert await opened.do(NAMES, None) == ["a"]


async def test_an_exception_that_is_returned_is_raised_and_undoes_nothing(opened):
    def apply(db, arguments):
        return [KeyError(each) if each == "bad" else put(db, each) for each in arguments]

    kind = Kind("some", apply)
    results = await gather(opened, (kind, "a"), (kind, "bad"), (kind, "b"))

    assert results[0] == "a"
    assert isinstance(results[1], KeyError)
    assert await opened.do(NAMES, None) == ["a", "b"]


async def test_each_task_gets_an_error_of_its_own(opened):
    def fail(db, _):
        raise apsw.FullError("full")

    kind = one_by_one("fail", fail)
    first, second = await gather(opened, (kind, 1), (kind, 2))

    assert isinstance(first, StoreFullError)
    assert isinstance(second, StoreFullError)
    assert first is not second


async def test_a_transaction_that_is_lost_is_done_again_one_by_one(opened):
    """As on a disk that has room for the small ones of a group only."""

    def lose(db, name):
        put(db, name)
        db._connection.execute("rollback")
        raise apsw.FullError("full")

    results = await gather(opened, (PUT, "a"), (one_by_one("lose", lose), "bad"), (PUT, "b"))

    assert results[0] == "a"
    assert isinstance(results[1], StoreFullError)
    assert results[2] == "b"
    assert await opened.do(NAMES, None) == ["a", "b"]


async def test_a_disk_that_is_full_loses_nothing_and_can_be_read(opened):
    await opened.do(PUT, "a")

    def limit(db, pages):
        return list(db.pragma(f"max_page_count = {pages}"))

    await opened.do(one_by_one("limit", limit, is_read=True), 1)

    def write_much(db, _):
        db.insert_many("insert_contents", [(number, b"x" * 4096) for number in range(100)])

    with pytest.raises(StoreFullError, match="the disk is full"):
        await opened.do(one_by_one("much", write_much), None)
    assert await opened.do(NAMES, None) == ["a"]
    await opened.do(one_by_one("limit", limit, is_read=True), 100_000)
    await opened.do(one_by_one("much", write_much), None)


# -- cancellation -------------------------------------------------------------------------------


async def test_who_gives_up_before_his_turn_has_done_nothing(opened):
    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.do, one_by_one("gate", gate), None)
        await gate.until_entered()
        with trio.move_on_after(0.01) as scope:
            await opened.do(PUT, "a")
        assert scope.cancelled_caught
        gate.open()

    assert await opened.do(NAMES, None) == []


async def test_who_gives_up_too_late_gets_the_result(opened):
    gate = Gate()
    results = []

    async def wait():
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel, scope)
            results.append(await opened.do(one_by_one("gate", gate), "done"))
            results.append(scope.cancel_called)
        results.append(scope.cancelled_caught)

    async def cancel(scope):
        await gate.until_entered()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        gate.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)

    assert results == ["done", True, False]


async def test_who_is_cancelled_already_does_not_begin(opened):
    with trio.CancelScope() as scope:
        scope.cancel()
        await opened.do(PUT, "a")

    assert await opened.do(NAMES, None) == []


# -- bounds and ends ----------------------------------------------------------------------------


async def test_more_than_so_many_wait_outside(tmp_path):
    opener = partial(open_database, tmp_path / "s.sqlite")
    async with open_committer(opener, max_waiting=3) as committer:
        gate = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.do, one_by_one("gate", gate), None)
            await gate.until_entered()
            for number in range(10):
                nursery.start_soon(committer.do, PUT, f"n{number}")
            await trio.testing.wait_all_tasks_blocked()
            assert committer._waiting.qsize() == 2
            gate.open()

        assert len(await committer.do(NAMES, None)) == 10


async def test_what_has_begun_is_finished_when_the_block_ends(tmp_path):
    path = tmp_path / "s.sqlite"
    gate = Gate()
    with trio.CancelScope() as scope:
        async with open_committer(partial(open_database, path)) as committer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(committer.do, one_by_one("gate", gate), None)
                await gate.until_entered()
                nursery.start_soon(committer.do, PUT, "a")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                gate.open()

    with pytest.raises(StoreClosedError):
        await committer.do(PUT, "b")
    async with open_committer(partial(open_database, path)) as committer:
        assert await committer.do(NAMES, None) == []


async def test_a_file_that_cannot_be_opened_says_so_before_the_block(tmp_path):
    with pytest.raises(StoreError, match="no folder"):
        async with open_committer(partial(open_database, tmp_path / "no" / "s.sqlite")):
            pytest.fail("the block has begun")


async def test_an_exception_of_the_block_comes_out_as_it_is(tmp_path):
    with pytest.raises(KeyError, match="mine"):
        async with open_committer(partial(open_database, tmp_path / "s.sqlite")):
            raise KeyError("mine")
