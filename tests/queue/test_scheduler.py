from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import trio
from trio.testing import MockClock

from engine.errors import EngineClosedError
from engine.outcome import Cause, Scope, Status
from engine.queue.backoff import BackOff
from engine.queue.decision import Policy, Unknown
from engine.queue.errors import LeaseLostError, StoreFullError
from engine.queue.memory import MemoryStore
from engine.queue.retry import read_rules
from engine.queue.scheduler import Scheduler
from engine.queue.values import Action, Result, Selection, SiteState, State
from engine.smtp.stages import Stage
from tests.queue.mail import START, mail, outcome, take
from tests.queue.store_conformance import entries_of, states_of
from tests.queue.world import (
    World,
    accepted,
    later,
    refused,
    scheduling,
    unreachable,
    wall_clock,
)

DAY = 86400.0


def policy(*steps, **how):
    rules, problems = read_rules([{"match": "*", "steps": list(steps)}])
    assert not problems
    return Policy(rules, **how)


class Told(list):
    """What a scheduler told, as `on_settled`."""

    async def __call__(self, settled):
        await trio.lowlevel.checkpoint()
        self.extend(settled)

    @property
    def results(self):
        return Counter(each.settlement.result.value for each in self)


# -- the way of a message -----------------------------------------------------------------------


async def test_what_is_due_is_delivered_and_leaves(autojump_clock):
    store, world, told = MemoryStore(), World(), Told()
    await store.submit([mail("a@one.test", "b@two.test"), mail("c@one.test")])

    async with scheduling(store, world, on_settled=told) as scheduler:
        await scheduler.wait_empty()

    assert world.delivered == {"a@one.test": 1, "b@two.test": 1, "c@one.test": 1}
    assert await states_of(store) == []
    assert told.results == {"delivered": 3}
    assert trio.current_time() < 1


async def test_what_is_submitted_later_is_taken_at_once(autojump_clock):
    store, world = MemoryStore(), World()
    async with scheduling(store, world, idle_seconds=1000) as scheduler:
        await trio.sleep(10)
        await store.submit([mail("a@one.test", at=wall_clock())])
        await scheduler.wait_empty()

    assert world.tries == {"a@one.test": [START + 10]}


async def test_what_another_process_queued_is_found_in_time(autojump_clock, monkeypatch):
    store, world = MemoryStore(), World()
    monkeypatch.setattr(store, "_note_change", lambda: None)
    async with scheduling(store, world, idle_seconds=30):
        await trio.sleep(10)
        await store.submit([mail("a@one.test", at=wall_clock())])
        await trio.sleep(31)

    assert len(world.tries["a@one.test"]) == 1


async def test_who_was_deferred_is_tried_again_when_it_is_due_and_not_before(autojump_clock):
    answers = iter([later, later, accepted])
    store, world, told = MemoryStore(), World(lambda m, a, d: next(answers)(m, a)), Told()
    await store.submit([mail("a@one.test")])

    async with scheduling(
        store, world, policy=policy("5m", "10m"), on_settled=told, idle_seconds=1e6
    ) as scheduler:
        await scheduler.wait_empty()

    first, second, third = world.tries["a@one.test"]
    assert first == START
    assert second == pytest.approx(START + 1 + 300, abs=0.01)  # in whole seconds
    assert third == pytest.approx(second + 1 + 600, abs=0.01)
    assert [each.recipient.attempts for each in told] == [1, 2, 3]
    assert [each.is_final for each in told] == [False, False, True]
    assert told[0].next_attempt == pytest.approx(second, abs=0.01)


async def test_who_fails_leaves_and_whoever_is_to_be_told_finds_it(autojump_clock):
    store, world = MemoryStore(), World(lambda m, a, d: refused(m, a))
    await store.submit([mail("a@one.test", id="x")])
    wants = Policy(wants_report=lambda message, recipient, found, result: True)

    async with scheduling(store, world, policy=wants) as scheduler:
        await scheduler.wait_empty()

    (message,) = await store.ended()
    assert (message.message.id, message.entries[0].result) == ("x", Result.FAILED)
    assert message.entries[0].as_dict()["last"]["reply"]["code"] == 550


@pytest.mark.parametrize(
    ("unknown", "states"),
    [
        (Unknown.RETRY, [("a@one.test", "queued")]),
        (Unknown.ASSUME_DELIVERED, []),
        (Unknown.HOLD, [("a@one.test", "held")]),
    ],
)
async def test_who_may_have_been_delivered_follows_the_policy(autojump_clock, unknown, states):
    def lost(message, address, domain):
        return outcome(
            Status.UNKNOWN,
            message=message,
            recipient=address,
            stage=Stage.FINAL,
            cause=Cause.TIMEOUT,
            scope=Scope.MESSAGE,
        )

    store, world = MemoryStore(), World(lost)
    await store.submit([mail("a@one.test")])

    async with scheduling(store, world, policy=Policy(unknown=unknown)):
        await trio.sleep(5)

    assert await states_of(store) == states


async def test_what_expires_while_it_waits_is_failed_without_a_try(autojump_clock):
    store, world, told = MemoryStore(), World(lambda m, a, d: later(m, a)), Told()
    await store.submit(
        [mail("a@one.test", not_before=START + 900, deadline=START + 600), mail("b@one.test")]
    )

    async with scheduling(
        store, world, policy=policy("1h"), on_settled=told, idle_seconds=1e6
    ) as scheduler:
        await scheduler.wait_empty()

    assert "a@one.test" not in world.tries
    (expired,) = [each for each in told if each.outcome.recipient == "a@one.test"]
    assert expired.is_final
    assert str(expired.outcome.enhanced) == "4.4.7"


async def test_an_outcome_of_nobody_is_logged_and_ignored(autojump_clock, caplog):
    store, world = MemoryStore(), World()
    async with scheduling(store, world) as scheduler:
        world.outcomes_in.send_nowait(accepted("nobody", "a@one.test"))
        await store.submit([mail("a@one.test")])
        await scheduler.wait_empty()

    assert "'nobody'" in caplog.text
    assert world.delivered == {"a@one.test": 1}


async def test_a_recipient_that_is_listed_twice_is_settled_twice(autojump_clock):
    store, world, told = MemoryStore(), World(), Told()
    await store.submit([mail("a@one.test", "a@one.test")])

    async with scheduling(store, world, on_settled=told) as scheduler:
        await scheduler.wait_empty()

    assert told.results == {"delivered": 2}
    assert await states_of(store) == []


# -- limits and shares --------------------------------------------------------------------------


async def test_no_more_are_out_than_there_are_seats(autojump_clock):
    store, world = MemoryStore(), World(seconds=2)
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(200)])

    async with scheduling(store, world, seats=16) as scheduler:
        await scheduler.wait_empty()
        assert scheduler.tally().settled == 200

    assert world.most == 16
    assert sum(world.delivered.values()) == 200


async def test_one_seat_is_enough(autojump_clock):
    store, world = MemoryStore(), World()
    await store.submit([mail(f"u{n}@one.test") for n in range(5)])

    async with scheduling(store, world, seats=1) as scheduler:
        await scheduler.wait_empty()

    assert world.most == 1
    assert sum(world.delivered.values()) == 5


async def test_a_site_has_no_more_out_than_it_may(autojump_clock):
    store, world = MemoryStore(), World(seconds=2)
    await store.submit([mail(f"u{n}@one.test") for n in range(50)])

    async with scheduling(store, world, site_seats=4) as scheduler:
        await scheduler.wait_empty()

    assert world.most == 4
    assert sum(world.delivered.values()) == 50


async def test_a_clogged_site_starves_nobody(autojump_clock):
    def behave(message, address, domain):
        return None if domain == "slow.test" else accepted(message, address)

    store, world = MemoryStore(), World(behave)
    await store.submit([mail(f"u{n}@slow.test") for n in range(500)])
    await store.submit([mail(f"u{n}@d{n % 7}.test") for n in range(200)])

    with trio.move_on_after(30):
        async with scheduling(store, world, seats=40, site_seats=30):
            await trio.sleep_forever()

    assert sum(world.delivered.values()) == 200
    assert world.most_at["slow.test"] <= 30


async def test_few_free_seats_are_used_as_well(autojump_clock):
    def behave(message, address, domain):
        return None if domain.startswith("slow") else accepted(message, address)

    store, world = MemoryStore(), World(behave)
    await store.submit([mail(f"u{n}@slow{n}.test") for n in range(39)])

    with trio.move_on_after(30):
        async with scheduling(store, world, seats=40):
            await trio.sleep(1)
            await store.submit([mail(f"u{n}@quick.test", at=wall_clock()) for n in range(20)])
            await trio.sleep_forever()

    assert sum(world.delivered.values()) == 20


async def test_the_scheduler_waits_for_the_deliverer(autojump_clock):
    """Back-pressure: what is not taken is not leased on and on."""
    store, world = MemoryStore(), World()
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(50)])
    gate = trio.Event()

    async def deliver(message):
        await gate.wait()
        await world.deliver(message)

    async with Scheduler(store, owner="w", seats=10, clock=wall_clock) as scheduler:
        async with world.running(), trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run, deliver, world.outcomes)
            await trio.sleep(5)
            assert scheduler.tally().leased <= 10
            gate.set()
            await scheduler.wait_empty()
            scheduler.drain()

    assert sum(world.delivered.values()) == 50


# -- sites that are not well --------------------------------------------------------------------


async def test_a_site_that_refuses_is_left_alone_and_its_mail_keeps_its_attempts(autojump_clock):
    def behave(message, address, domain):
        return (
            unreachable(message, address)
            if trio.current_time() < 500
            else accepted(message, address)
        )

    store, world = MemoryStore(), World(behave, seconds=0.1)
    await store.submit([mail(f"u{n}@one.test") for n in range(100)])

    async with scheduling(
        store, world, site_seats=5, back_off=BackOff(jitter=0.0), policy=policy("10m", "20m")
    ) as scheduler:
        await trio.sleep(59)
        assert len(world.tries) == 5
        (state,) = await store.sites()
        assert (state.failures, state.not_before) == (1, START + 60.1)
        untouched = [e for e in await entries_of(store) if e.attempts == 0]
        assert len(untouched) == 95
        await scheduler.wait_empty()

    assert sum(world.delivered.values()) == 100
    # Backed off after 0 s, 60 s, 180 s and 420 s, five at a time; at 900 s it is well again.
    assert sum(len(tries) for tries in world.tries.values()) == 100 + 4 * 5
    assert await store.sites() == ()


async def test_a_site_is_known_by_where_its_domains_are_routed(autojump_clock):
    store, world = MemoryStore(), World(lambda m, a, d: later(m, a, 421, Stage.MAIL, Scope.HOST))
    await store.submit([mail("a@one.test")])

    async with scheduling(store, world) as scheduler:
        scheduler.learn_route("one.test", "mx.big.test")
        scheduler.learn_route("two.test", "mx.big.test")
        await trio.sleep(1)
        await store.submit([mail("b@two.test", at=wall_clock())])
        scheduler.learn_route("two.test", "mx.big.test")
        await trio.lowlevel.checkpoint()

    (state,) = await store.sites()
    assert state.name == "mx.big.test"
    assert {entry.site for entry in await entries_of(store, domain="one.test")} == {"mx.big.test"}


async def test_mail_of_a_site_that_is_down_for_days_is_given_up_in_time(autojump_clock):
    store, world = MemoryStore(), World(lambda m, a, d: unreachable(m, a), seconds=1)
    await store.submit([mail(f"u{n}@down.test") for n in range(60)])

    async with scheduling(store, world, idle_seconds=600, site_seats=3) as scheduler:
        await scheduler.wait_empty()

    assert trio.current_time() < 6 * DAY
    assert min(len(tries) for tries in world.tries.values()) >= 2
    assert len(world.tries) == 60


# -- clocks -------------------------------------------------------------------------------------


class JumpingClock:
    def __init__(self):
        self.offset = 0.0

    def __call__(self):
        return wall_clock() + self.offset


@pytest.mark.parametrize("jump", [30 * DAY, -30 * DAY])
async def test_a_wall_clock_that_jumps_keeps_nobody_from_being_delivered(autojump_clock, jump):
    answers = Counter()

    def behave(message, address, domain):
        answers[address] += 1
        return accepted(message, address) if answers[address] > 2 else later(message, address)

    store, world, clock = MemoryStore(), World(behave), JumpingClock()
    await store.submit([mail("a@one.test"), mail("b@two.test")])

    async with scheduling(
        store,
        world,
        clock=clock,
        policy=policy("5m until 99d"),
        lease_seconds=7200,
        idle_seconds=600,
        sweep_seconds=7200,
    ) as scheduler:
        await trio.sleep(100)
        clock.offset = jump
        await trio.sleep(100)
        assert scheduler.tally().lost == 0
        await store.submit([mail("c@three.test", at=clock())])
        if jump < 0:
            await trio.sleep(-jump)
        await scheduler.wait_empty()

    assert world.delivered == {"a@one.test": 1, "b@two.test": 1, "c@three.test": 1}


# -- leases -------------------------------------------------------------------------------------


async def test_leases_are_put_off_as_long_as_it_takes(autojump_clock):
    store, world = MemoryStore(), World(seconds=10_000)
    await store.submit([mail("a@one.test")])

    async with scheduling(store, world, lease_seconds=60) as scheduler:
        await trio.sleep(5000)
        other = await store.recover(owner="w2", now=wall_clock(), deadline=wall_clock() + 60)
        assert other.released == 0
        await scheduler.wait_empty()

    assert world.delivered == {"a@one.test": 1}


async def test_what_another_worker_left_is_taken_over(autojump_clock, caplog):
    store, world, told = MemoryStore(), World(), Told()
    await store.submit([mail("a@one.test"), mail("b@two.test", id="marked")])
    lease = await take(store, owner="dead", deadline=START + 60, retry_at=START + 30)
    (marked,) = [m.recipients[0].number for m in lease.messages if m.message.id == "marked"]
    await store.mark(lease.number, [marked])

    async with scheduling(store, world, lease_seconds=60, on_settled=told, policy=policy("5m")):
        await trio.sleep(100)

    # Who was not marked is simply tried again; of who was, the log says that it is in doubt.
    assert len(world.tries["a@one.test"]) == 1
    doubtful = told[0]
    assert doubtful.outcome.status is Status.UNKNOWN
    assert (doubtful.outcome.recipient, doubtful.settlement.result) == (
        "b@two.test",
        Result.DEFERRED,
    )
    assert "1 recipients are queued again, 1 may have been delivered" in caplog.text


async def test_owners_known_to_be_dead_are_recovered_from_at_once(autojump_clock):
    store, world, told = MemoryStore(), World(), Told()
    await store.submit([mail("a@one.test")])
    await take(store, owner="dead", deadline=START + 9999, retry_at=START)

    async with Scheduler(store, owner="w", clock=wall_clock, on_settled=told) as scheduler:
        assert await scheduler.recover() == 0
        assert await scheduler.recover(dead=["dead"]) == 1
        async with world.running(), trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run, world.deliver, world.outcomes)
            await scheduler.wait_empty()
            scheduler.drain()

    assert world.delivered == {"a@one.test": 1}


async def test_marks_reach_the_store_and_fail_when_the_lease_is_lost(autojump_clock):
    store = MemoryStore()
    await store.submit([mail("a@one.test", "b@one.test", "c@two.test", id="x")])
    world, seen = World(seconds=50), []

    async with scheduling(store, world, owner="w") as scheduler:
        await trio.sleep(1)
        await scheduler.mark([("x", ["a@one.test"])])
        found = await store.recover(
            owner="thief", now=wall_clock(), deadline=wall_clock() + 9, dead=["w"]
        )
        seen += [r.address for m in found.doubtful for r in m.recipients]
        with pytest.raises(LeaseLostError):
            await scheduler.mark([("x", ["b@one.test", "c@two.test"])])
        await scheduler.mark([("x", ["nobody@one.test"])])
        await trio.sleep(100)

    assert seen == ["a@one.test"]


# -- endings ------------------------------------------------------------------------------------


async def test_draining_finishes_what_is_out_and_leases_nothing_more(autojump_clock):
    store, world = MemoryStore(), World(seconds=10)
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(30)])

    async with scheduling(store, world, seats=20):
        await trio.sleep(5)

    assert sum(world.delivered.values()) == 20
    assert Counter(state for _, state in await states_of(store)) == {"queued": 10}
    assert {entry.attempts for entry in await entries_of(store)} == {0}


async def test_an_engine_that_closes_gets_nothing_more_and_nothing_is_lost(autojump_clock):
    store, world = MemoryStore(), World()
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(10)])
    taken = []

    async def deliver(message):
        if len(taken) == 4:
            raise EngineClosedError("closed")
        taken.append(message)
        await world.deliver(message)

    async with Scheduler(store, owner="w", clock=wall_clock) as scheduler, world.running():
        await scheduler.run(deliver, world.outcomes)

    assert sum(world.delivered.values()) == 4
    assert {state for _, state in await states_of(store)} == {"queued"}
    assert {entry.attempts for entry in await entries_of(store)} == {0}


async def test_a_bug_in_the_deliverer_costs_no_mail_and_no_attempt(autojump_clock, caplog):
    store, world = MemoryStore(), World()
    await store.submit([mail("a@one.test", id="bad"), mail("b@two.test")])
    calls = Counter()

    async def deliver(message):
        calls[message.id] += 1
        if message.id == "bad" and calls["bad"] < 3:
            raise ZeroDivisionError
        await world.deliver(message)

    async with Scheduler(store, owner="w", clock=wall_clock) as scheduler, world.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run, deliver, world.outcomes)
            await scheduler.wait_empty()
            scheduler.drain()

    assert world.delivered == {"a@one.test": 1, "b@two.test": 1}
    assert "ZeroDivisionError" in caplog.text
    assert trio.current_time() > 60  # not at once, again and again


async def test_who_was_cancelled_in_the_engine_is_due_again_and_keeps_its_attempts(autojump_clock):
    store, world, told = MemoryStore(), World(lambda m, a, d: None), Told()
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(10)])

    with trio.move_on_after(5):
        async with scheduling(store, world, on_settled=told):
            await trio.sleep_forever()

    assert told.results == {"released": 10}
    assert {each.outcome.cause for each in told} == {Cause.CANCELLED}
    entries = await entries_of(store)
    assert {(e.state, e.attempts) for e in entries} == {(State.QUEUED, 0)}
    assert all(e.next_attempt <= wall_clock() for e in entries)


async def test_who_was_marked_and_has_no_outcome_in_the_end_is_in_doubt(autojump_clock):
    """A deliverer that breaks its promise: each recipient is settled all the same."""
    store, told = MemoryStore(), Told()
    await store.submit([mail("a@one.test", "b@two.test", id="x")])

    async def swallow(message):
        await trio.lowlevel.checkpoint()

    _, silent = trio.open_memory_channel(0)
    with trio.move_on_after(5):
        async with Scheduler(store, owner="w", clock=wall_clock, on_settled=told) as scheduler:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.run, swallow, silent)
                await trio.sleep(1)
                await scheduler.mark([("x", ["b@two.test"])])
                await trio.sleep_forever()

    (doubtful,) = told
    assert (doubtful.outcome.recipient, doubtful.outcome.status) == ("b@two.test", Status.UNKNOWN)
    assert {entry.state for entry in await entries_of(store)} == {State.QUEUED}


# -- stores that fail ---------------------------------------------------------------------------


class Failing(MemoryStore):
    """A store whose disk is full until some time."""

    def __init__(self, *names, until):
        super().__init__()
        for name in names:
            setattr(self, name, self._fail_until(until, getattr(self, name)))

    @staticmethod
    def _fail_until(until, method):
        async def do(*args, **kwargs):
            await trio.lowlevel.checkpoint()
            if trio.current_time() < until:
                raise StoreFullError("the disk is full")
            return await method(*args, **kwargs)

        return do


async def test_outcomes_that_cannot_be_kept_are_kept_until_they_can(autojump_clock, caplog):
    store, world, told = Failing("settle", until=100), World(), Told()
    await store.submit([mail(f"u{n}@d{n}.test") for n in range(30)])

    async with scheduling(store, world, seats=20, on_settled=told) as scheduler:
        await trio.sleep(50)
        tally = scheduler.tally()
        assert (tally.out, tally.unsettled, tally.leased) == (0, 20, 20)
        assert tally.failure is not None
        await scheduler.wait_empty()
        assert scheduler.tally().failure is None

    assert set(world.delivered.values()) == {1}
    assert len(world.delivered) == 30
    # Each was told of once, however often the store was asked.
    assert told.results == {"delivered": 30}
    assert "the disk is full" in caplog.text
    assert len(caplog.records) < 20


async def test_a_log_that_cannot_be_written_holds_up_the_store(autojump_clock):
    store, world, told = MemoryStore(), World(), Told()
    await store.submit([mail("a@one.test")])

    async def tell(settled):
        if trio.current_time() < 50:
            raise OSError("no space left on device")
        await told(settled)

    async with scheduling(store, world, on_settled=tell) as scheduler:
        await trio.sleep(40)
        assert await states_of(store) == [("a@one.test", "leased")]
        await scheduler.wait_empty()

    assert told.results == {"delivered": 1}


async def test_a_store_that_gives_no_leases_is_asked_again_with_pauses(autojump_clock, caplog):
    store, world = Failing("lease", until=100), World()
    await store.submit([mail("a@one.test")])

    async with scheduling(store, world) as scheduler:
        await scheduler.wait_empty()

    assert world.delivered == {"a@one.test": 1}
    assert 3 < len(caplog.records) < 12


async def test_upkeep_that_fails_is_logged_and_goes_on(autojump_clock, caplog):
    store, world = Failing("extend", "sweep", until=300), World(seconds=500)
    await store.submit([mail("a@one.test")])

    async with scheduling(store, world, lease_seconds=100) as scheduler:
        await scheduler.wait_empty()

    assert world.delivered == {"a@one.test": 1}
    levels = {record.levelno for record in caplog.records}
    assert levels == {logging.ERROR, logging.WARNING}


async def test_a_store_that_fails_for_good_leaves_its_leases_to_the_next_run(
    autojump_clock, caplog
):
    store, world = Failing("settle", until=math.inf), World()
    await store.submit([mail("a@one.test")])

    with trio.move_on_after(5):
        async with scheduling(store, world, close_seconds=1):
            await trio.sleep_forever()

    assert await states_of(store) == [("a@one.test", "leased")]
    assert "the next run recovers them" in caplog.text


async def test_draining_does_not_wait_for_a_store_that_gives_no_leases(autojump_clock):
    store, world = Failing("lease", until=math.inf), World()

    async with scheduling(store, world):
        await trio.sleep(500)

    assert trio.current_time() == 500


async def test_a_bug_in_whoever_is_told_ends_the_run_and_loses_nothing(autojump_clock, caplog):
    store, world = MemoryStore(), World()
    await store.submit([mail("a@one.test")])

    async def tell(settled):
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with scheduling(store, world, on_settled=tell):
            await trio.sleep_forever()

    assert await states_of(store) == [("a@one.test", "leased")]
    assert "the next run recovers them" in caplog.text


async def test_no_busy_polling(autojump_clock):
    """With nothing due, a scheduler sleeps."""
    store, world, calls = MemoryStore(), World(), Counter()
    await store.submit([mail(not_before=START + 3600)])
    lease = store.lease

    async def count(**how):
        calls["lease"] += 1
        return await lease(**how)

    store.lease = count
    async with scheduling(store, world, idle_seconds=60) as scheduler:
        await trio.sleep(3000)
        assert calls["lease"] <= 52
        await scheduler.wait_empty()

    assert world.tries["a@one.test"] == [START + 3600]


async def test_seats_are_at_least_one():
    with pytest.raises(ValueError, match="seats 0"):
        Scheduler(MemoryStore(), owner="w", seats=0)
    with pytest.raises(ValueError, match="site_seats 0"):
        Scheduler(MemoryStore(), owner="w", site_seats=0)


# -- a person steers ----------------------------------------------------------------------------


async def test_a_person_s_wishes_are_granted_while_it_runs(autojump_clock):
    store, world = MemoryStore(), World(lambda m, a, d: later(m, a), seconds=5)
    await store.submit([mail("a@one.test"), mail("b@two.test"), mail("c@three.test")])

    async with scheduling(store, world, policy=policy("1h until 9d")) as scheduler:
        await trio.sleep(1)
        await store.apply(Action.HOLD, Selection(domain="one.test"), now=wall_clock())
        await trio.sleep(10)
        await store.apply(Action.RETRY, Selection(domain="two.test"), now=wall_clock())
        await trio.sleep(10)
        await store.apply(Action.PURGE, Selection(domain="three.test"), now=wall_clock())
        await store.apply(Action.PURGE, Selection(domain="two.test"), now=wall_clock())
        await scheduler.wait_empty()

    assert await states_of(store) == [("a@one.test", "held")]
    assert [len(world.tries[f"{n}"]) for n in ("a@one.test", "b@two.test", "c@three.test")] == [
        1,
        2,
        1,
    ]


async def test_wait_empty_is_not_fooled_by_what_is_just_coming(autojump_clock):
    store, world = MemoryStore(), World()
    async with scheduling(store, world) as scheduler:
        await scheduler.wait_empty()
        await store.submit([mail("a@one.test", at=wall_clock())])
        await scheduler.wait_empty()
        assert world.delivered == {"a@one.test": 1}


class SlowToSay(MemoryStore):
    """A store whose answers to `lease` take their time: meanwhile the world goes on."""

    async def lease(self, **how):
        found = await super().lease(**how)
        await trio.sleep(0 if found.messages else 1)
        return found


async def test_an_answer_that_is_out_of_date_ends_nothing_and_delays_nothing(autojump_clock):
    """A lease that was given while somebody was out does not know that he was queued again."""
    answers = iter([later, accepted])
    store, world = SlowToSay(), World(lambda m, a, d: next(answers)(m, a), seconds=0.5)
    await store.submit([mail("a@one.test")])

    async with scheduling(store, world, policy=policy("2s"), idle_seconds=1000) as scheduler:
        await scheduler.wait_empty()

    assert world.delivered == {"a@one.test": 1}
    assert trio.current_time() < 10


# -- a week -------------------------------------------------------------------------------------


class Week:
    """How the receivers of a week behave: by the number in their domain's name.

    Each kind of trouble has its end, but for one: `down` never comes back.
    """

    KINDS = (
        *("well",) * 7,
        *("greylists",) * 6,
        *("storms",) * 3,
        "out for two days",
        "full for a day",
        "down",
        "no such",
    )

    def __init__(self):
        self.rng = Random(7)
        self.first_seen = {}

    def kind(self, domain):
        return self.KINDS[int(domain[1:].partition(".")[0]) % len(self.KINDS)]

    def __call__(self, message, address, domain):
        now = trio.current_time()
        match self.kind(domain):
            case "greylists":
                first = self.first_seen.setdefault(address, now)
                return (
                    accepted(message, address)
                    if now - first >= 300
                    else later(message, address, 450)
                )
            case "out for two days" if now < 2 * DAY:
                return unreachable(message, address)
            case "storms" if self.rng.random() < 0.5:
                code, stage = self.rng.choice([(421, Stage.MAIL), (451, Stage.FINAL)])
                scope = Scope.HOST if code == 421 else Scope.MESSAGE
                return later(message, address, code, stage, scope)
            case "full for a day" if now < DAY:
                return later(message, address, 452)
            case "down":
                return unreachable(message, address, Cause.TIMEOUT)
            case "no such":
                return refused(message, address)
            case _:
                return accepted(message, address)


def test_a_week_ends_for_everybody_as_the_rules_say():
    """10,000 recipients through greylisting, outages and storms, in seconds."""

    async def live():
        store, week, told = MemoryStore(), Week(), Told()
        world = World(week)
        submissions = [
            mail(
                *(f"u{n}-{k}@d{n % 140}.test" for k in range(4)),
                tenant=f"t{n % 3}",
                job=f"j{n % 5}",
            )
            for n in range(2500)
        ]
        await store.submit(submissions)
        async with scheduling(
            store,
            world,
            on_settled=told,
            rng=Random(3),
            seats=400,
            site_seats=40,
            idle_seconds=600,
            sweep_seconds=3600,
            lease_seconds=3600,
        ) as scheduler:
            await scheduler.wait_empty()
            assert scheduler.tally().lost == 0
        assert await states_of(store) == []
        return week, world, told

    week, world, told = trio.run(live, clock=MockClock(autojump_threshold=0))

    ends = {}
    for each in told:
        address = each.outcome.recipient
        assert address not in ends, "it was told of after its end"
        if each.is_final:
            ends[address] = each
    assert len(ends) == 10_000
    for address, end in ends.items():
        kind = week.kind(address.partition("@")[2])
        tries = world.tries[address]
        assert len(tries) == end.recipient.attempts
        if kind == "no such":
            assert (end.settlement.result, len(tries)) == (Result.FAILED, 1)
        elif kind == "down":
            assert end.settlement.result is Result.FAILED
            assert tries[-1] - tries[0] >= 4 * DAY
        else:
            assert end.settlement.result is Result.DELIVERED, kind
            assert world.delivered[address] == 1
        if kind == "well":
            assert len(tries) == 1
        if kind == "greylists":
            assert len(tries) == 2
            assert 300 <= tries[1] - tries[0] < 330
        # Nobody is bothered before it is due: the shortest wait is five minutes.
        assert all(b - a >= 300 for a, b in pairwise(tries))
    assert world.most <= 400
    assert max(world.most_at.values()) <= 40


# -- cancelled anywhere -------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the step with some number of any task."""

    def __init__(self, step):
        self.step = step
        self.scope = None

    def before_task_step(self, task):
        if self.scope is not None:
            self.step -= 1
            if self.step == 0:
                self.scope.cancel()


def run_cancelled_at(step):
    """Run a small queue, cancelled at a step; return what is left, or `None` if it came through."""

    def behave(message, address, domain):
        if domain == "busy.test":
            return later(message, address)
        return accepted(message, address)

    async def live():
        store, told = MemoryStore(), Told()
        world = World(behave, seconds=0.1)
        await store.submit([mail("a@one.test", "b@busy.test", id="x"), mail("c@one.test", id="y")])
        await store.submit([mail("d@late.test", id="z", not_before=START + 0.3)])
        instrument.scope = trio.CancelScope()
        is_through = False
        with instrument.scope:
            async with scheduling(
                store, world, on_settled=told, idle_seconds=0.2, seats=3, policy=policy("5m")
            ) as scheduler:
                await trio.sleep(0.1)
                await scheduler.mark([("x", ["a@one.test"])])
                await trio.sleep(0.6)
            is_through = True
        instrument.scope = None
        return is_through, await entries_of(store), await store.owners(), world, told

    instrument = CancelAtStep(step)
    return trio.run(live, clock=MockClock(autojump_threshold=0), instruments=[instrument])


def test_wherever_it_is_cancelled_everybody_is_settled_exactly_once():
    step = 0
    while True:
        step += 1
        is_through, entries, owners, world, told = run_cancelled_at(step)
        # Nobody stays leased, nobody is lost, nobody who was delivered is still there.
        assert owners == ()
        left = {entry.recipient: entry for entry in entries}
        everybody = {"a@one.test", "b@busy.test", "c@one.test", "d@late.test"}
        for address in everybody:
            assert (address in left) != (world.delivered[address] == 1), (step, address)
        told_of = Counter((each.outcome.recipient, each.recipient.attempts) for each in told)
        finals = Counter(each.outcome.recipient for each in told if each.is_final)
        assert set(finals.values()) <= {1}
        assert all(finals[address] == 1 for address in everybody - set(left))
        assert set(told_of.values()) <= {1}
        if is_through:
            break
    assert step > 30
    assert set(left) == {"b@busy.test"}


def test_sites_keep_their_state_between_runs():
    async def live():
        store = MemoryStore()
        await store.submit([mail("a@one.test")])
        for _ in range(2):
            world = World(lambda m, a, d: unreachable(m, a), seconds=0.1)
            async with scheduling(
                store, world, back_off=BackOff(jitter=0.0), policy=policy("1m until 9d")
            ):
                await trio.sleep(100)
        return await store.sites()

    (state,) = trio.run(live, clock=MockClock(autojump_threshold=0))

    assert isinstance(state, SiteState)
    assert state.failures >= 2
    assert replace(state, reason="").name == "one.test"
