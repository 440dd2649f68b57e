"""The queue in earnest: a store in a file, the scheduler, the engine, and a server that misbehaves."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import trio

from engine import Engine, Settings
from engine.queue.backoff import BackOff
from engine.queue.decision import Policy, Unknown
from engine.queue.retry import read_rules
from engine.queue.scheduler import Scheduler
from engine.queue.sqlite import open_store
from engine.queue.values import State
from engine.testing.sink import open_sink
from tests.queue.mail import mail
from tests.queue.store_conformance import entries_of

QUICK, _ = read_rules([{"match": "*", "steps": ["200ms", "200ms until 2s"]}])


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "spool.sqlite") as store:
        yield store


@pytest.fixture
async def sink():
    async with open_sink(keep=True) as sink:
        yield sink


def engine_to(sink, **how):
    return Engine(Settings(), routes=[("*", [f"127.0.0.1:{sink.port}"])], own_addresses=[], **how)


async def run_until_empty(store, sink, policy, told, **how):
    async def tell(settled):
        told.extend(settled)

    scheduler = Scheduler(
        store,
        owner="w1",
        policy=policy,
        on_settled=tell,
        back_off=BackOff(first=0.05, limit=0.1),
        **how,
    )
    with trio.fail_after(30):
        async with scheduler, engine_to(sink) as engine, trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run, engine.submit, engine.outcomes)
            await scheduler.wait_empty()
            scheduler.drain()


async def test_everybody_ends_as_the_server_and_the_rules_say(store, sink):
    now = time.time()
    await store.submit(
        [mail(f"u{n}@d{n % 20}.test", f"v{n}@d{n % 20}.test", at=now) for n in range(150)]
        + [mail(f"greylist+{n}@grey.test", at=now) for n in range(5)]
        + [mail("reject@bad.test", "fine@bad.test", "defer@bad.test", id="mixed", at=now)]
    )
    told = []

    await run_until_empty(store, sink, Policy(QUICK), told)

    ends = {s.outcome.recipient: s for s in told if s.is_final}
    missing = {s.outcome.recipient for s in told} - set(ends)
    assert not missing, [(s.outcome.text, s.text) for s in told if s.outcome.recipient in missing]
    assert len(ends) == 300 + 5 + 3
    results = Counter(s.settlement.result.value for s in ends.values())
    assert results == {"delivered": 306, "failed": 2}
    assert ends["reject@bad.test"].recipient.attempts == 1
    assert ends["defer@bad.test"].recipient.attempts > 5
    assert {ends[f"greylist+{n}@grey.test"].recipient.attempts for n in range(5)} == {2}
    assert await entries_of(store) == []
    copies = Counter(recipient for received in sink.messages for recipient in received.recipients)
    assert len(copies) == 306
    assert set(copies.values()) == {1}


async def test_a_content_whose_reply_never_came_follows_the_policy(store, sink):
    await store.submit([mail("close-after-dot@one.test", "a@one.test", at=time.time())])
    told = []

    await run_until_empty(store, sink, Policy(QUICK, unknown=Unknown.HOLD), told)

    assert {s.outcome.status.value for s in told} == {"unknown"}
    assert {entry.state for entry in await entries_of(store)} == {State.HELD}


async def test_a_worker_that_is_cancelled_can_be_followed_by_another(store, sink):
    await store.submit([mail(f"u{n}@d{n % 9}.test", at=time.time()) for n in range(400)])
    told = []
    with trio.move_on_after(0.15):
        await run_until_empty(store, sink, Policy(QUICK), told, seats=50)
    half = len(told)
    assert await store.owners() == ()

    await run_until_empty(store, sink, Policy(QUICK), told, seats=50)

    finals = Counter(s.outcome.recipient for s in told if s.is_final)
    assert len(finals) == 400
    assert set(finals.values()) == {1}
    assert half < len(told)
    copies = Counter(recipient for received in sink.messages for recipient in received.recipients)
    assert set(copies.values()) == {1}
