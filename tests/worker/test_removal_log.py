from __future__ import annotations

import json

import pytest
import trio

from engine.outcome import Outcome
from engine.queue.errors import StoreBusyError
from engine.queue.memory import MemoryStore
from engine.queue.values import Action, Removal, Result, Selection
from engine.report.outcome_record import read_record
from engine.worker import removal_log as module
from engine.worker.lock import hold_lock
from engine.worker.outcome_log import OutcomeLog
from engine.worker.removal_log import RemovalLog, lock_of, removal_record
from tests.queue.mail import START, mail, settlements, take
from tests.worker.test_outcome_log import settled


@pytest.fixture
def path(tmp_path):
    return tmp_path / "outcomes.jsonl"


@pytest.fixture
def removals(path):
    return RemovalLog(MemoryStore(), OutcomeLog(path), lock_of(path))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_record_has_all_that_records_of_outcomes_have():
    removal = Removal(3, "x", "a@one.test", 2, Action.CANCEL, "wrong link", START)
    record = removal_record(removal, has_transcript=True)
    assert record.keys() == {"time", "transcript"} | settled().as_dict().keys()
    expected = {
        "time": "2023-11-14T22:13:20.000Z",
        "message": "x",
        "recipient": "a@one.test",
        "status": "failed",
        "scope": "local",
        "stage": "policy",
        "cause": "cancelled",
        "text": "cancelled by hand: wrong link",
        "attempt": 2,
        "final": True,
        "next_attempt": None,
        "decision": "cancelled by hand: wrong link",
        "transcript": None,
    }
    assert {key: record[key] for key in expected} == expected
    assert "transcript" not in removal_record(removal)
    assert isinstance(read_record(record), Outcome)


async def test_each_has_one_line_however_often_and_by_however_many_it_is_asked_for(
    removals, path, monkeypatch
):
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    store = removals._store
    await store.submit([mail(*(f"u{n}@one.test" for n in range(10)), id="x")])
    await store.apply(Action.CANCEL, Selection(), now=START)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(removals.flush)
    await removals.flush()
    assert [each["recipient"] for each in lines(path)] == [f"u{n}@one.test" for n in range(10)]
    assert await store.removals() == ()


async def test_without_any_the_log_is_left_alone(removals, path):
    await removals.flush()
    assert list(path.parent.iterdir()) == []


async def test_one_process_at_a_time_does_it(removals, path, caplog, monkeypatch):
    store = removals._store
    await store.submit([mail("a@one.test", id="x")])
    await store.apply(Action.CANCEL, Selection(), now=START)
    async with trio.open_nursery() as nursery:
        with hold_lock(lock_of(path)):
            nursery.start_soon(removals.flush)
            await trio.sleep(0.2)
            assert lines(path) == []
            # The other one is quicker.
            await store.forget_removals([1])
    assert lines(path) == []
    await store.apply(Action.PURGE, Selection(), now=START)
    await store.submit([mail("b@one.test", id="y")])
    await store.apply(Action.CANCEL, Selection(), now=START)
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with hold_lock(lock_of(path)):
        await removals.flush()
    assert caplog.messages[-1].endswith("yet: another process has been at that for 0.1 s")
    await removals.flush()
    assert [each["recipient"] for each in lines(path)] == ["b@one.test"]


async def test_who_leaves_late_is_logged_soon(removals, path, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    store = removals._store
    await store.submit([mail("a@one.test", id="x")])
    lease = await take(store)
    await store.apply(Action.CANCEL, Selection(), now=START, reason="stop")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(removals.run)
        await trio.sleep(0.2)
        assert lines(path) == []
        await store.settle(settlements(lease, Result.DEFERRED, due=START + 60), now=START + 1)
        with trio.fail_after(15):
            while not lines(path):  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    (line,) = lines(path)
    assert (line["attempt"], line["final"], line["text"]) == (1, True, "cancelled by hand: stop")


async def test_what_cannot_be_logged_is_said_and_logged_when_it_can(removals, path, caplog):
    store = removals._store
    await store.submit([mail("a@one.test", id="x")])
    await store.apply(Action.PURGE, Selection(), now=START)
    path.mkdir()
    await removals.flush()
    path.rmdir()
    (text,) = caplog.messages
    assert text.startswith("who was cancelled or purged cannot be noted in the log of outcomes yet")
    assert text.endswith(f": [Errno 21] Is a directory: '{path}'")
    await removals.flush()
    assert [each["recipient"] for each in lines(path)] == ["a@one.test"]


async def test_a_crash_before_the_store_forgets_is_a_line_twice_and_never_none(path):
    class Forgetful(MemoryStore):
        async def forget_removals(self, numbers):
            raise StoreBusyError("busy")

    store = Forgetful()
    await store.submit([mail("a@one.test", id="x")])
    await store.apply(Action.CANCEL, Selection(), now=START)
    await RemovalLog(store, OutcomeLog(path), lock_of(path)).flush()
    await RemovalLog(store, OutcomeLog(path), lock_of(path)).flush()
    assert len(lines(path)) == 2
