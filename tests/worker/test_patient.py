from __future__ import annotations

import pytest
import trio

from engine.queue.decision import Policy
from engine.queue.memory import MemoryStore
from engine.queue.retry import read_rules
from engine.testing.sink import open_sink
from engine.worker.patient import PatientEngine
from tests.delivery.helpers import message, settings

RULES, _ = read_rules([{"match": "*", "steps": ["50ms", "50ms"]}])


def patient_engine(port, store):
    return PatientEngine(settings(), store, Policy(rules=RULES), [("*", [f"127.0.0.1:{port}"])])


async def test_it_ends_when_everybody_has_a_last_outcome():
    names = ["reader", "greylist", "defer", "reject"]
    store = MemoryStore()
    async with open_sink() as there, patient_engine(there.port, store) as engine:
        for number, name in enumerate(names):
            await engine.submit(message(f"{name}@x.test", id=str(number)))

    outcomes = [each async for each in engine.outcomes]
    assert {each.recipient: each.status.value for each in outcomes} == {
        "reader@x.test": "delivered",
        "greylist@x.test": "delivered",
        "defer@x.test": "deferred",
        "reject@x.test": "failed",
    }
    assert len(outcomes) == len(names)
    assert (await store.entries()).entries == ()
    assert engine.statistics().connections_open == 0


async def test_stopped_at_once_it_leaves_in_the_store_what_was_not_delivered():
    store = MemoryStore()
    async with open_sink() as there:
        async with patient_engine(there.port, store) as engine:
            await engine.submit(message("slow-30@x.test", id="1"))
            await trio.sleep(0.2)
            engine.cancel()

    (entry,) = (await store.entries()).entries
    assert entry.recipient == "slow-30@x.test"
    assert [each async for each in engine.outcomes] == []


async def test_an_error_of_the_block_does_not_wait_for_the_queue():
    with pytest.raises(RuntimeError, match="mine"):
        async with open_sink() as there, patient_engine(there.port, MemoryStore()) as engine:
            await engine.submit(message("defer@x.test", id="1"))
            raise RuntimeError("mine")
