"""Engines with a store: mail that is on disk first, and what is written down before it goes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio

from engine.engine import Engine
from engine.errors import EngineClosedError
from engine.outcome import Status
from engine.queue.decision import Policy, Unknown
from engine.queue.errors import StoreFullError, StoreUnusableError
from engine.queue.hints import MemoryHints
from engine.queue.memory import MemoryStore
from engine.queue.retry import read_rules
from engine.queue.sqlite import open_store
from engine.queue.submission import Submission
from engine.queue.values import State
from engine.report.events import MessageSubmitted
from engine.stored import QueueOptions, unique_name
from tests.delivery.helpers import (
    CONTENT,
    NEXT,
    StreamedContent,
    an_engine,
    delivery,
    message,
    opening,
    scripted,
    serving,
    settings,
    stalls,
    told,
    transaction,
)

A, B, C = "a@x.test", "b@x.test", "c@x.test"
RULES, _ = read_rules([{"match": "*", "steps": ["5m", "10m"]}])
OPTIONS = QueueOptions(policy=Policy(rules=RULES))


class WatchedStore(MemoryStore):
    """A store that keeps what was marked; a mark fails, or waits, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: list[list[int]] = []
        self.before: list[tuple[bytes, ...]] = []
        self.hosts = None
        self.fails = False
        self.marks_may_go_on = trio.Event()
        self.marks_may_go_on.set()

    async def mark(self, lease, recipients):
        self.before.append(tuple(b"".join(stream.writes) for stream in self.hosts.streams))
        if self.fails:
            raise StoreFullError("no space left on device")
        await self.marks_may_go_on.wait()
        await super().mark(lease, recipients)
        self.marked.append(list(recipients))


class StreamingStore(WatchedStore):
    """A store whose contents are read while they are sent."""

    async def lease(self, **which):
        lease = await super().lease(**which)
        streamed = tuple(
            each._replace(
                message=replace(
                    each.message, content=StreamedContent(each.message.content.octets, piece=1000)
                ),
            )
            for each in lease.messages
        )
        return replace(lease, messages=streamed)


def stored_engine(connector, store, *, queue=OPTIONS, **more):
    return an_engine(connector, store=store, queue=queue, clock=trio.current_time, **more)


async def receive(engine, count):
    return [await engine.outcomes.receive() for _ in range(count)]


async def left_in(store):
    page = await store.entries()
    return [(entry.recipient, entry.state, entry.attempts) for entry in page.entries]


# ---- what comes of it ----------------------------------------------------------------------------


async def test_what_is_submitted_is_delivered_and_leaves_the_store(autojump_clock):
    store = MemoryStore()
    async with serving() as service, stored_engine(service, store) as engine:
        assert await engine.submit(message(A, B, id="one")) == "one"
        outcomes = await receive(engine, 2)

    assert told(outcomes) == [f"{to} delivered - final reply 250" for to in (A, B)]
    assert await left_in(store) == []
    assert [each async for each in engine.outcomes] == []


async def test_a_message_without_an_id_gets_one_that_nothing_else_has(autojump_clock):
    async with serving() as service, stored_engine(service, MemoryStore()) as engine:
        ids = {await engine.submit(message(A)) for _ in range(3)}
        outcomes = await receive(engine, 3)

    assert {outcome.message for outcome in outcomes} == ids
    assert all(len(each) == 32 for each in ids)


async def test_a_message_that_is_submitted_twice_is_delivered_once(autojump_clock):
    async with serving() as service, stored_engine(service, MemoryStore()) as engine:
        for _ in range(2):
            assert await engine.submit(message(A, id="one")) == "one"
        await receive(engine, 1)
        assert await engine.submit(message(A, id="one")) == "one"

    assert len(service.accepted) == 1


async def test_who_is_deferred_is_tried_again_as_the_rules_say(autojump_clock):
    answers = iter(["450 greylisted", "450 greylisted", "250 ok"])
    times = []

    def answer(_host, _to):
        times.append(trio.current_time())
        return next(answers)

    async with serving(answer) as service, stored_engine(service, MemoryStore()) as engine:
        await engine.submit(message(A, id="one"))
        outcomes = await receive(engine, 3)

    assert [outcome.status for outcome in outcomes] == ["deferred", "deferred", "delivered"]
    assert times[1] - times[0] == pytest.approx(300, abs=1)
    assert times[2] - times[1] == pytest.approx(600, abs=1)


async def test_what_a_run_before_has_left_is_delivered(tmp_path, autojump_clock):
    path = tmp_path / "spool.sqlite"
    async with serving(lambda *_: "450 later") as service, open_store(path) as store:
        async with stored_engine(service, store) as engine:
            await engine.submit(message(A, id="one"))
            await receive(engine, 1)
        assert await left_in(store) == [(A, State.QUEUED, 1)]
    async with serving() as service, open_store(path) as store:
        async with stored_engine(service, store) as engine:
            (outcome,) = await receive(engine, 1)
        assert await left_in(store) == []

    assert (outcome.message, outcome.status) == ("one", Status.DELIVERED)


# The next run on a real clock: one in memory would jump while the file is written, and on and on.


async def test_a_store_that_was_not_entered_is_opened_around_the_engine(tmp_path):
    path = tmp_path / "spool.sqlite"
    opening = open_store(path)
    async with serving() as service:
        engine = stored_engine(service, opening)
        assert "not open" in repr(opening)
        async with engine:
            await engine.submit(message(A, id="one"))
            assert (await engine.outcomes.receive()).status is Status.DELIVERED
        assert "not open" in repr(opening)
        # What it had settled is there, and whoever comes next opens it again.
        async with opening as store:
            assert await left_in(store) == []


async def test_a_store_that_was_entered_stays_open_behind_the_engine(tmp_path):
    async with serving() as service, open_store(tmp_path / "spool.sqlite") as store:
        async with stored_engine(service, store) as engine:
            await engine.submit(message(A))
            await engine.outcomes.receive()
        assert await left_in(store) == []


async def test_a_store_has_one_who_opens_and_closes_it(tmp_path):
    opening = open_store(tmp_path / "spool.sqlite")
    async with serving() as service, opening as store:
        engine = stored_engine(service, opening)
        with pytest.raises(RuntimeError, match="is open already"):
            async with engine:
                pass
        assert [each async for each in engine.outcomes] == []
        assert await left_in(store) == []


async def test_an_engine_whose_store_cannot_be_opened_does_not_begin(tmp_path):
    async with serving() as service:
        engine = stored_engine(service, open_store(tmp_path / "none" / "spool.sqlite"))
        with pytest.raises(StoreUnusableError):
            async with engine:
                pass
        assert [each async for each in engine.outcomes] == []


async def test_a_cancelled_engine_closes_the_store_it_has_opened(tmp_path):
    opening = open_store(tmp_path / "spool.sqlite")
    async with serving(stalls) as service:
        with trio.CancelScope() as scope:
            async with stored_engine(service, opening, grace=0) as engine:
                async with engine.events.subscribe() as events:
                    await engine.submit(message("stall@x.test", id="one"))
                    async for event in events:
                        if isinstance(event, MessageSubmitted):
                            scope.cancel()
    assert "not open" in repr(opening)
    async with opening as store:
        assert await left_in(store) == [("stall@x.test", State.QUEUED, 0)]


async def test_leases_of_the_dead_are_taken_over_at_once(autojump_clock):
    store = MemoryStore()
    await store.submit([Submission(message=message(A, B, id="one"), submitted_at=0.0)])
    lease = await store.lease(owner="dead", now=0, seats=9, deadline=1e9, retry_at=60, site_seats=9)
    marked = lease.messages[0].recipients[0]
    await store.mark(lease.number, [marked.number])
    queue = QueueOptions(policy=Policy(rules=RULES, unknown=Unknown.HOLD), dead=["dead"])
    async with serving() as service, stored_engine(service, store, queue=queue) as engine:
        outcomes = await receive(engine, 2)

    assert told(outcomes) == [
        f"{marked.address} unknown message final internal -",
        f"{B} delivered - final reply 250",
    ]
    assert await left_in(store) == [(A, State.HELD, 1)]


async def test_outcomes_can_go_to_a_callback_instead(autojump_clock):
    records = []

    async def on_settled(batch):
        await trio.lowlevel.checkpoint()
        records.extend(settled.as_dict() for settled in batch)

    queue = QueueOptions(policy=Policy(rules=RULES), on_settled=on_settled)
    async with (
        serving(lambda _, to: "450 later" if to == "b" else "250 ok") as service,
        stored_engine(service, MemoryStore(), queue=queue) as engine,
    ):
        await engine.submit(message(A, B, id="one"))
        await trio.sleep(1)

    records.sort(key=lambda record: record["recipient"])
    assert [(each["attempt"], each["final"]) for each in records] == [(1, True), (1, False)]
    assert json.dumps(records)


async def test_a_drain_finishes_what_was_begun_and_leaves_the_rest(autojump_clock):
    store = MemoryStore()
    async with serving(delay=30) as service, stored_engine(service, store) as engine:
        await engine.submit(message(A, id="one"))
        await trio.sleep(1)
        late = Submission(message=message(B, id="two"), submitted_at=0, not_before=900)
        await store.submit([late])
        assert await engine.drain()
        with pytest.raises(EngineClosedError):
            await engine.submit(message(C, id="three"))
        (outcome,) = await receive(engine, 1)

    assert outcome.status is Status.DELIVERED
    assert await left_in(store) == [(B, State.QUEUED, 0)]


async def test_who_does_not_read_outcomes_stops_the_rest_and_loses_nothing(autojump_clock):
    store = MemoryStore()
    async with (
        serving() as service,
        stored_engine(service, store, max_in_flight=2) as engine,
    ):
        for number in range(10):
            await engine.submit(message(A, id=f"m{number}"))
        await trio.sleep(60)
        assert len(service.accepted) <= 6
        outcomes = await receive(engine, 10)

    assert len({outcome.message for outcome in outcomes}) == 10
    assert await left_in(store) == []


async def test_who_was_delivered_is_settled_whether_or_not_anybody_reads_of_it(autojump_clock):
    store = MemoryStore()
    first = replace(OPTIONS, owner="first")
    async with (
        serving() as service,
        stored_engine(service, store, max_in_flight=2, queue=first) as hung,
    ):
        for number in range(10):
            await hung.submit(message(A, id=f"m{number}"))
        await trio.sleep(60)
        left = [number for number, _, _ in await left_in(store)]
        assert 2 <= len(service.accepted) < 4
        assert len(left) + len(service.accepted) == 10
        assert {(state, tries) for _, state, tries in await left_in(store)} == {(State.QUEUED, 0)}

        # Nothing is known of it any more: nobody may have been delivered, and nobody is twice.
        second = replace(OPTIONS, owner="second", dead=["first"])
        async with stored_engine(service, store, queue=second) as engine:
            outcomes = await receive(engine, len(left))
        assert {outcome.status for outcome in outcomes} == {Status.DELIVERED}
        assert len(service.accepted) == 10
        assert await left_in(store) == []


async def test_a_drain_does_not_wait_for_whoever_reads(autojump_clock):
    store = MemoryStore()
    async with serving() as service, stored_engine(service, store, max_in_flight=2) as engine:
        for number in range(10):
            await engine.submit(message(A, id=f"m{number}"))
        await trio.sleep(60)
        assert await engine.drain(60)
        assert State.LEASED not in {state for _, state, _ in await left_in(store)}
    outcomes = [outcome.message async for outcome in engine.outcomes]
    assert len(outcomes) == len(set(outcomes)) == len(service.accepted)


@pytest.mark.parametrize("seats", [1, 2, 5])
async def test_outcomes_that_nobody_reads_are_bounded(seats, autojump_clock):
    store = MemoryStore()
    async with serving() as service, stored_engine(service, store, max_in_flight=seats) as engine:
        await engine.submit(message(*[f"n{number}@x.test" for number in range(40)]))
        most = 0
        for _ in range(40):
            await trio.sleep(60)
            most = max(most, len(engine.outcomes))
            await engine.outcomes.receive()
        assert seats <= most < 2 * seats
    assert await left_in(store) == []


async def test_whoever_reads_of_a_delivery_finds_it_settled(autojump_clock):
    store = MemoryStore()
    async with serving() as service, stored_engine(service, store) as engine:
        for number in range(3):
            await engine.submit(message(A, id=f"m{number}"))
            await engine.outcomes.receive()
            assert await left_in(store) == []


class StuckStore(MemoryStore):
    """A store that takes no more settlements once it is told so; what was asked is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.asked = 0

    async def settle(self, settlements, **how):
        self.asked += 1
        if self.fails:
            raise StoreFullError("no space left on device")
        return await super().settle(settlements, **how)


async def test_what_cannot_be_settled_is_read_of_at_the_end_all_the_same(autojump_clock):
    store = StuckStore()
    store.fails = True
    async with serving() as service:
        async with stored_engine(service, store) as engine:
            for number in range(3):
                await engine.submit(message(A, id=f"m{number}"))
            await trio.sleep(20)
            with pytest.raises(trio.WouldBlock):
                engine.outcomes.receive_nowait()
            engine.cancel()
            await trio.sleep_forever()
    assert [outcome.status async for outcome in engine.outcomes] == ["delivered"] * 3
    assert len(service.accepted) == 3
    assert store.asked > 1


async def test_what_is_settled_at_the_second_try_is_read_of_once(autojump_clock):
    store = StuckStore()
    store.fails = True
    async with serving() as service, stored_engine(service, store) as engine:
        await engine.submit(message(A, B, id="one"))
        await trio.sleep(20)
        store.fails = False
        outcomes = await receive(engine, 2)
        assert await left_in(store) == []
    assert {outcome.recipient for outcome in outcomes} == {A, B}
    assert [each async for each in engine.outcomes] == []


async def test_cancelled_while_it_is_settled_an_outcome_comes_once(autojump_clock):
    class SlowStore(MemoryStore):
        async def settle(self, settlements, **how):
            is_settling.set()
            ignored = await super().settle(settlements, **how)
            await trio.sleep(3)
            return ignored

    is_settling, store = trio.Event(), SlowStore()
    async with serving() as service:
        with trio.CancelScope() as scope:
            async with stored_engine(service, store) as engine:
                await engine.submit(message(A, id="one"))
                await is_settling.wait()
                scope.cancel()
                await trio.sleep_forever()
    assert [outcome.status async for outcome in engine.outcomes] == ["delivered"]
    assert await left_in(store) == []


async def test_a_cancelled_engine_leaves_mail_queued_that_was_not_delivered(autojump_clock):
    store = MemoryStore()
    async with serving(stalls) as service:
        with trio.move_on_after(5):
            async with stored_engine(service, store, grace=1) as engine:
                await engine.submit(message("stall@x.test", id="one"))
                await trio.sleep_forever()

    assert await left_in(store) == [("stall@x.test", State.QUEUED, 0)]
    (outcome,) = [each async for each in engine.outcomes]
    assert (outcome.status, outcome.cause) == ("deferred", "cancelled")


def test_no_two_runs_have_one_name():
    assert len({unique_name() for _ in range(9)}) == 9


# ---- what is written down before the end of a content ----------------------------------------------

PIPELINED = transaction((A, "250 ok"), (B, "550 no"), (C, "250 ok"), pipelined=True)
CHUNKED = (
    "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\n"
    f"C: BDAT {len(CONTENT)} LAST\nC# {len(CONTENT)}\nS: 250 ok\nS: 250 ok\nS: 250 done\n"
)
QUIT = "C: QUIT\nS: 221 bye\n"


async def send(script, *messages, options=None, store=None, **more):
    """Submit messages to a host that plays a script; return the store and all outcomes."""
    store = store or WatchedStore()
    async with scripted(script) as hosts:
        store.hosts = hosts
        more.setdefault("queue", OPTIONS)
        async with stored_engine(
            hosts, store, settings=settings(**(options or {})), **more
        ) as engine:
            for each in messages:
                await engine.submit(each)
            count = sum(len(each.recipients) for each in messages)
            outcomes = await receive(engine, count)
    return store, outcomes


async def test_those_who_were_accepted_are_marked_before_the_content_goes(autojump_clock):
    script = opening(True) + PIPELINED + QUIT
    store, outcomes = await send(script, message(A, B, C, id="one"))

    assert [each.status for each in outcomes].count("delivered") == 2
    assert [len(marked) for marked in store.marked] == [2]
    ((written,),) = store.before
    assert written.endswith(b"DATA\r\n")


async def test_all_are_marked_before_a_content_that_goes_with_its_envelope(autojump_clock):
    script = opening(True, "CHUNKING") + CHUNKED + QUIT
    store, _ = await send(script, message(A, id="one"))

    assert store.marked == [[1]]
    ((written,),) = store.before
    assert b"MAIL" not in written


async def test_a_content_that_is_streamed_is_marked_before_its_last_piece(autojump_clock):
    body = StreamedContent(CONTENT * 400, piece=1000)
    script = opening(True) + delivery(A, True) + QUIT
    store, (outcome,) = await send(script, message(A, id="one", body=body), store=StreamingStore())

    assert outcome.status is Status.DELIVERED
    ((written,),) = store.before
    assert len(written) > 9000
    assert not written.endswith(b"\r\n.\r\n")


async def test_several_in_flight_are_marked_together(autojump_clock):
    script = opening(True, "CHUNKING") + CHUNKED
    three = CHUNKED.replace("S: 250 ok\nS: 250 ok\nS: 250 done\n", "")
    script += three + three + three + "S: 250 ok\n" * 9 + QUIT
    store, outcomes = await send(
        script.replace("220 mx.test", "220 mx.test Exim 4.96"),
        *[message(A, id=f"m{number}") for number in range(4)],
        options={"stream_depth": 3, "max_connections": 1},
    )

    assert len(outcomes) == 4
    assert sorted(number for marked in store.marked for number in marked) == [1, 2, 3, 4]


async def test_what_cannot_be_marked_is_not_sent_and_not_counted(autojump_clock, caplog):
    store = WatchedStore()
    store.fails = True
    script = opening(True) + (
        "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
        "S: 250 ok\nS: 250 ok\nS: 354 go on\n! expect-eof\n"
    )
    store, (outcome,) = await send(script, message(A, id="one"), store=store)

    assert told([outcome]) == [f"{A} deferred local content io -"]
    assert "no space left on device" in outcome.text
    assert "internal error" not in caplog.text
    assert not caplog.records
    assert await left_in(store) == [(A, State.QUEUED, 0)]


async def test_what_cannot_be_marked_does_not_go_with_its_envelope_either(autojump_clock):
    store = WatchedStore()
    store.fails = True
    script = opening(True, "CHUNKING") + "! expect-eof\n"
    store, (outcome,) = await send(script, message(A, id="one"), store=store)

    assert told([outcome]) == [f"{A} deferred local content io -"]


async def test_what_went_out_before_is_heard_out_when_the_next_cannot_be_marked(autojump_clock):
    class Store(WatchedStore):
        async def mark(self, lease, recipients):
            self.fails = len(self.marked) == 2
            await super().mark(lease, recipients)

    first = delivery(A, True)
    behind = (
        "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\nS: 250 ok\nS: 250 ok\n"
        "S: 354 go on\nC= content\nC: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
        "! sleep 5\nS: 250 taken\nS: 250 ok\nS: 250 ok\nS: 354 go on\n! expect-eof\n"
    )
    script = opening(True).replace("220 mx.test", "220 mx.test Exim 4.96") + first + behind
    _, outcomes = await send(
        script,
        *[message(A, id=f"m{number}") for number in range(3)],
        options={"stream_depth": 2, "max_connections": 1},
        store=Store(),
    )

    assert [each.status for each in outcomes] == ["delivered", "delivered", "deferred"]
    assert outcomes[-1].scope == "local"


async def test_with_early_pipelining_marks_come_before_the_connection(autojump_clock):
    hints = MemoryHints()
    offers = opening(True, "CHUNKING", "PIPECONNECT")
    chunk = CHUNKED.replace("S: 250 ok\nS: 250 ok\nS: 250 done\n", "")
    early = (
        f"C: EHLO me.test\n{chunk}S: 220 mx.test\nS: 250-mx.test\nS: 250-PIPELINING\n"
        "S: 250-CHUNKING\nS: 250 PIPECONNECT\nS: 250 ok\nS: 250 ok\nS: 250 done\n" + QUIT
    )
    options = {"early_pipelining": True, "quit_pipelining": False}
    store = WatchedStore()
    async with scripted(offers + CHUNKED + QUIT + NEXT + early) as hosts:
        store.hosts = hosts
        for number in range(2):
            async with stored_engine(
                hosts, store, settings=settings(**options), hints=hints
            ) as engine:
                await engine.submit(message(A, id=f"m{number}"))
                (outcome,) = await receive(engine, 1)
                assert outcome.status is Status.DELIVERED

    assert outcome.features.early_pipelining
    assert len(store.marked) == 2
    assert len(store.before[1]) == 1  # only the connection before


@pytest.mark.parametrize("fails", [True, False])
async def test_early_words_go_without_a_content_that_cannot_be_marked(fails, autojump_clock):
    hints = MemoryHints()
    offers = opening(True, "CHUNKING", "PIPECONNECT")
    early = (
        "C: EHLO me.test\nS: 220 mx.test\nS: 250-mx.test\nS: 250-PIPELINING\n"
        "S: 250-CHUNKING\nS: 250 PIPECONNECT\n! expect-eof\n"
    )
    store = WatchedStore()
    async with scripted(offers + CHUNKED + QUIT + NEXT + early, is_watched=fails) as hosts:
        store.hosts = hosts
        for number in range(2):
            store.fails = fails and number == 1
            async with stored_engine(
                hosts, store, settings=settings(early_pipelining=True), hints=hints
            ) as engine:
                await engine.submit(message(A, id=f"m{number}"))
                (outcome,) = await receive(engine, 1)

    expected = [f"{A} deferred local content io -"]
    assert (told([outcome]) == expected) is fails


async def test_cancelled_while_it_is_marked_a_content_does_not_go(autojump_clock):
    store = WatchedStore()
    store.marks_may_go_on = trio.Event()
    script = opening(True) + (
        "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
        "S: 250 ok\nS: 250 ok\nS: 354 go on\n! expect-eof\n"
    )
    async with scripted(script) as hosts:
        store.hosts = hosts
        with trio.move_on_after(5):
            async with stored_engine(hosts, store, grace=1) as engine:
                await engine.submit(message(A, id="one"))
                await trio.sleep_forever()

    assert told([each async for each in engine.outcomes]) == [
        f"{A} deferred local content cancelled -"
    ]


async def test_a_route_that_was_found_is_told_to_the_store(autojump_clock):
    store = MemoryStore()
    zone = {"x.test": {"MX": ["10 mx.test"]}, "mx.test": {"A": ["192.0.2.1"]}}
    async with (
        serving(lambda *_: "450 later") as service,
        stored_engine(service, store, zone=zone) as engine,
    ):
        await engine.submit(message(A, id="one"))
        await receive(engine, 1)
        await trio.sleep(1)

    (entry,) = (await store.entries()).entries
    assert entry.site == "mx.test"


async def test_without_a_store_nothing_waits():
    async with Engine() as engine:
        with pytest.raises(ValueError, match="without a store"):
            await engine.wait_empty()


def test_options_without_a_store_are_refused():
    with pytest.raises(ValueError, match="store"):
        Engine(queue=QueueOptions())
