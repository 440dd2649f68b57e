from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine import aio, blocking
from engine.calls import Call
from engine.errors import EngineClosedError, EngineFailedError, SubmitError
from engine.hosted import HostedEngine, Told
from engine.outcome import Status
from engine.queue.decision import Policy
from engine.queue.errors import StoreUnusableError
from engine.queue.memory import MemoryStore
from engine.queue.retry import read_rules
from engine.queue.sqlite import open_store
from engine.report.events import ConnectionOpened
from engine.stored import QueueOptions
from tests.delivery.helpers import an_engine, message, serving, stalls, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from engine.outcome import Outcome
    from tests.delivery.helpers import Service


class Host(HostedEngine):
    """A hosted engine whose stream is a list."""

    def __init__(self, service: Service, **options: object) -> None:
        self.stream: list[Told | None] = []
        made = an_engine(service, clock=trio.current_time, **options)
        super().__init__(made, self.stream.append, options)

    def read(self) -> Outcome:
        told_of = self.stream.pop(0)
        assert told_of is not None
        self.taken(told_of)
        return told_of.outcome

    def crash(self) -> None:
        async def fail() -> None:
            raise ZeroDivisionError("a bug")

        self.engine._nursery.start_soon(fail)


@asynccontextmanager
async def hosting(answer=None, delay: float = 0.0, **options: object) -> AsyncIterator[Host]:
    async with serving(*([answer] if answer else []), delay=delay) as service:
        host = Host(service, **options)
        async with trio.open_nursery() as nursery:
            opened = trio.Event()
            nursery.start_soon(host.run, opened.set)
            await opened.wait()
            yield host
            host.leave()


def recipients(host: Host) -> list[str]:
    return [each.outcome.recipient for each in host.stream if each is not None]


# ---- who gets what -------------------------------------------------------------------------------


async def test_outcomes_go_to_who_waits_for_them_and_the_others_into_the_stream(autojump_clock):
    async with hosting(delay=1) as host:
        await host.submit(message("a@x.test"))
        sent = await host.send(message("b@x.test", "c@x.test"))
        await host.submit(message("d@x.test"))

    assert told(sent) == [f"{name}@x.test delivered - final reply 250" for name in "bc"]
    assert recipients(host) == ["a@x.test", "d@x.test"]
    assert host.stream[-1] is None


async def test_messages_get_numbers_that_no_other_in_flight_has(autojump_clock):
    async with hosting(delay=1) as host:
        assert await host.submit(message(id="2")) == "2"
        assert await host.submit(message()) == "1"
        assert await host.submit(message()) == "3"
        assert {outcome.message for outcome in await host.send(message())} == {"4"}


async def test_what_somebody_sends_has_its_id_for_itself_while_it_is_in_flight(autojump_clock):
    async with hosting(delay=1) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.send, message("a@x.test", id="one"))
        await wait_all_tasks_blocked()
        for call in (host.submit, host.send):
            with pytest.raises(SubmitError, match="'one': one of that id is in flight"):
                await call(message("b@x.test", id="one"))
        await trio.sleep(2)
        await host.submit(message("b@x.test", id="one"))
        await host.submit(message("b@x.test", id="one"))  # nobody has to tell these apart
        with pytest.raises(SubmitError):
            await host.send(message("b@x.test", id="one"))

    assert recipients(host) == ["b@x.test", "b@x.test"]
    assert host.engine.statistics().messages == 3


async def test_who_reads_nothing_holds_up_his_own_submits_and_nobody_elses_send(autojump_clock):
    async with hosting(max_in_flight=2) as host:
        await host.submit(message("a@x.test"))
        await host.submit(message("b@x.test"))
        await wait_all_tasks_blocked()
        with pytest.raises(TimeoutError, match="not taken within 5 s"):
            await host.submit(message("never@x.test"), 5)
        for _ in range(5):
            assert len(await host.send(message("c@x.test", "d@x.test", "e@x.test"))) == 3

        host.read()
        await host.submit(message("f@x.test"), 5)

    assert recipients(host) == ["b@x.test", "f@x.test"]
    assert host.engine.statistics().messages == 8


async def test_a_submit_that_is_late_gives_its_seats_back(autojump_clock):
    async with hosting(stalls, max_in_flight=2) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.send, message("stall@x.test", "stall@x.test"))
        await wait_all_tasks_blocked()
        for _ in range(5):  # seats there are in the stream, and none inside
            with pytest.raises(TimeoutError):
                await host.submit(message("late@x.test", "later@x.test"), 1)
        host.engine.cancel()
    assert recipients(host) == []
    assert host._seats.taken == 0


# ---- who does not wait any more ------------------------------------------------------------------


async def test_a_send_that_is_late_leaves_its_outcomes_to_the_stream(autojump_clock):
    def answer(host: str, recipient: str) -> str:
        return "stall" if recipient == "stall" else "550 no"

    async with hosting(answer) as host:
        await host.send(message("a@x.test"))
        with pytest.raises(TimeoutError, match="within 20 s"):
            await host.send(message("b@x.test", "stall@x.test"), 20)
        assert recipients(host) == []  # its transaction is not over
        await trio.sleep(1000)

        assert sorted(recipients(host)) == ["b@x.test", "stall@x.test"]
        assert host._strays == 2
        host.read()
        host.read()
        assert host._strays == 0


async def test_what_is_known_when_a_send_is_cancelled_is_in_the_stream_at_once(autojump_clock):
    async with hosting(stalls, zone={}) as host:
        with trio.move_on_after(20):
            await host.send(message("a@[192.0.2.1]", "stall@[192.0.2.2]"))
        assert recipients(host) == ["a@[192.0.2.1]"]
        host.cancel()
    assert recipients(host) == ["a@[192.0.2.1]", "stall@[192.0.2.2]"]


async def test_a_send_cancelled_before_it_was_taken_has_no_outcome(autojump_clock):
    async with hosting(stalls, max_in_flight=1) as host, trio.open_nursery() as nursery:
        nursery.start_soon(host.send, message("stall@x.test"))
        await wait_all_tasks_blocked()
        with pytest.raises(TimeoutError):
            await host.send(message("never@x.test", id="never"), 5)
        assert "never" not in host._in_flight
        host.cancel()
    assert recipients(host) == []


async def test_outcomes_nobody_reads_are_bounded_and_the_rest_is_in_the_log(autojump_clock, caplog):
    async with hosting(delay=5, max_in_flight=2) as host:
        for number in range(4):
            with trio.move_on_after(1):
                await host.send(message(f"n{number}@x.test", id=str(number)))
            await trio.sleep(10)

    assert recipients(host) == ["n0@x.test", "n1@x.test"]
    assert [record.getMessage().split(": accepted")[0] for record in caplog.records] == [
        f"nobody reads outcomes: message {number} to <n{number}@x.test>: delivered"
        for number in (2, 3)
    ]


# ---- a store -------------------------------------------------------------------------------------

RULES, _ = read_rules([{"match": "*", "steps": ["5m", "5m"]}])
AGAIN = QueueOptions(policy=Policy(rules=RULES))


def deferring(times: int) -> Callable[[str, str], str]:
    """Answer 451 so many times for each recipient."""
    asked: Counter[str] = Counter()

    def answer(host: str, recipient: str) -> str:
        asked[recipient] += 1
        return "250 ok" if asked[recipient] > times else "451 later"

    return answer


async def test_with_a_store_messages_are_kept_and_each_attempt_is_in_the_stream(autojump_clock):
    store = MemoryStore()
    async with hosting(deferring(1), store=store, queue=AGAIN) as host:
        name = await host.submit(message("a@x.test"))
        await host.wait_empty()

    told_of = [each.outcome for each in host.stream if each is not None]
    assert [(each.message, str(each.status)) for each in told_of] == [
        (name, "deferred"),
        (name, "delivered"),
    ]
    assert len(name) == 32  # no number, which an earlier run may have given


async def test_with_a_store_the_same_id_again_is_harmless(autojump_clock):
    store = MemoryStore()
    for _ in range(2):
        async with hosting(store=store, queue=AGAIN) as host:
            for _ in range(2):
                assert await host.submit(message("a@x.test", id="one")) == "one"
            await host.wait_empty()
            assert host._in_flight == {}
    assert recipients(host) == []


async def test_with_a_store_send_returns_the_first_attempt_and_the_next_are_in_the_stream(
    autojump_clock,
):
    async with hosting(deferring(1), store=MemoryStore(), queue=AGAIN) as host:
        outcomes = await host.send(message("a@x.test", "b@x.test"))
        assert [str(each.status) for each in outcomes] == ["deferred", "deferred"]
        assert recipients(host) == []
        await host.wait_empty()
        assert host._in_flight == {}

    assert sorted(recipients(host)) == ["a@x.test", "b@x.test"]


async def test_one_recipient_tried_twice_does_not_stand_for_another(autojump_clock):
    slow = QueueOptions(policy=Policy(rules=RULES), site_seats=1)
    async with hosting(deferring(1), store=MemoryStore(), queue=slow, delay=400) as host:
        outcomes = await host.send(message("a@x.test", "b@x.test", "c@x.test"))
        host.cancel()
    assert sorted(each.recipient for each in outcomes) == [f"{name}@x.test" for name in "abc"]


async def test_with_a_store_send_can_wait_for_the_end(autojump_clock):
    last = QueueOptions(policy=Policy(rules=RULES), only_final=True)
    async with hosting(deferring(2), store=MemoryStore(), queue=last) as host:
        (outcome,) = await host.send(message("a@x.test"))
    assert outcome.status is Status.DELIVERED


async def test_with_a_store_send_refuses_what_may_have_no_outcome(autojump_clock):
    async with hosting(store=MemoryStore()) as host:
        with pytest.raises(SubmitError, match=r"'one'.*use submit"):
            await host.send(message("a@x.test", id="one"))

    async def settled(batch: object) -> None:
        """Keep nothing."""

    options = QueueOptions(on_settled=settled)
    async with hosting(store=MemoryStore(), queue=options) as host:
        with pytest.raises(ValueError, match="on_settled"):
            await host.send(message("a@x.test"))
        await host.submit(message("a@x.test"))
        await host.wait_empty()
    assert recipients(host) == []


async def test_with_a_store_nobody_who_submits_waits_for_who_reads(autojump_clock, caplog):
    caplog.set_level("INFO")
    async with hosting(store=MemoryStore(), max_in_flight=2) as host:
        for number in range(5):
            await host.submit(message(f"n{number}@x.test"))
        await host.wait_empty()

    assert len(recipients(host)) == 2
    assert [each.levelname for each in caplog.records] == ["INFO"] * 3


async def test_with_a_store_the_queue_waits_for_who_has_begun_to_read(autojump_clock, caplog):
    async with hosting(store=MemoryStore(), max_in_flight=2) as host:
        host.note_reader()
        for number in range(9):
            await host.submit(message(f"n{number}@x.test"))
        await trio.sleep(60)
        found = len(recipients(host))
        assert found < 9
        names = set()
        for _ in range(9):
            names.add(host.read().recipient)
            await trio.sleep(60)
    assert names == {f"n{number}@x.test" for number in range(9)}
    assert "nobody reads outcomes" not in caplog.text
    assert "cannot be kept" not in caplog.text
    assert host.stream == [None]


async def test_with_a_store_an_end_hands_over_what_waits_for_a_reader(autojump_clock):
    async with hosting(store=MemoryStore(), max_in_flight=2) as host:
        host.note_reader()
        for number in range(9):
            await host.submit(message(f"n{number}@x.test"))
        await trio.sleep(60)
        assert host._held is not None
        assert await host.drain()
        statistics = host.engine.statistics()
    assert len(recipients(host)) == statistics.delivered
    assert host.stream[-1] is None


async def test_with_a_store_a_cancelled_run_hands_over_what_waits_for_a_reader(autojump_clock):
    async with serving() as service:
        host = Host(service, store=MemoryStore(), max_in_flight=2)
        host.note_reader()
        async with trio.open_nursery() as nursery:
            opened = trio.Event()
            nursery.start_soon(host.run, opened.set)
            await opened.wait()
            for number in range(9):
                await host.submit(message(f"n{number}@x.test"))
            await trio.sleep(60)
            assert host._held is not None
            nursery.cancel_scope.cancel()
    assert len(recipients(host)) == len(set(recipients(host))) == host.engine.statistics().delivered
    assert host.stream[-1] is None


async def test_a_store_is_opened_around_the_engine(autojump_clock, tmp_path):
    path = tmp_path / "spool.sqlite"
    opening = open_store(path)
    async with hosting(store=opening) as host:
        await host.send(message("a@x.test"))
        async with open_store(path, is_read_only=True) as store:
            assert len(await store.owners()) <= 1
    assert "not open" in repr(opening)


async def test_a_store_that_cannot_be_opened_is_the_callers_to_mend(
    autojump_clock, tmp_path, caplog
):
    async with serving() as service:
        host = Host(service, store=open_store(tmp_path / "none" / "spool.sqlite"))
        await host.run(lambda: None)
    assert isinstance(host.refusal, StoreUnusableError)
    assert caplog.records == []
    assert host.stream == [None]


@pytest.mark.parametrize("store", ["spool.sqlite", Path("spool.sqlite"), 7])
def test_what_is_no_store_is_refused(store: object):
    for constructor in (blocking.Engine, aio.Engine):
        with pytest.raises(TypeError, match="allowed is what open_store returns"):
            constructor(store=store)


# ---- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["submit", "send"])
async def test_what_is_no_message_is_refused(call: str, autojump_clock):
    async with hosting() as host:
        with pytest.raises(TypeError, match="message is a str; allowed is a Message"):
            await getattr(host, call)("Subject: hello")
        with pytest.raises(TypeError, match="message is a str; allowed is a Message"):
            await host.submit_for("Subject: hello", None)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True])
async def test_a_timeout_is_a_number_of_seconds(timeout: object, autojump_clock):
    async with hosting() as host:
        for call in (host.submit, host.send):
            with pytest.raises(ValueError, match=r"timeout is .*; allowed are seconds"):
                await call(message(), timeout)
        assert host.engine.statistics().submitted == 0


async def test_addresses_are_asked_about(autojump_clock):
    async with hosting(lambda _, recipient: "550 no" if recipient == "b" else "250 ok") as host:
        answers = await host.verify(
            ["a@x.test", "b@x.test"], "s@me.test", catch_all=True, fresh=True
        )
    assert [str(each.outcome.status) for each in answers] == ["accepted", "failed"]
    assert [each.is_catch_all for each in answers] == [True, True]
    assert recipients(host) == []


# ---- the end -------------------------------------------------------------------------------------


async def test_the_stream_ends_behind_what_was_drained(autojump_clock):
    async with hosting(delay=7) as host:
        await host.submit(message("a@x.test"))
        assert await host.drain() is True
        assert recipients(host) == ["a@x.test"]
        assert host.stream[1:] == [None]
        with pytest.raises(EngineClosedError):
            await host.submit(message())
    assert host.stream[1:] == [None]


async def test_a_drain_whose_time_is_over_leaves_the_stream_open_until_the_end(autojump_clock):
    async with hosting(stalls) as host:
        await host.submit(message("stall@x.test"))
        assert await host.drain(5) is False
        assert host.stream == []
    assert recipients(host) == ["stall@x.test"]
    assert host.stream[1:] == [None]


async def test_who_waits_for_room_is_turned_away_by_the_end(autojump_clock):
    async with hosting(stalls, max_in_flight=1) as host, trio.open_nursery() as nursery:
        calls = [Call(Future(), host.submit, message("stall@x.test"))]
        calls += [Call(Future(), host.submit, message()), Call(Future(), host.send, message())]
        for call in calls:
            host.begin(call)
            await wait_all_tasks_blocked()
        nursery.start_soon(host.drain)
        await wait_all_tasks_blocked()

        assert [call.promise.done() for call in calls] == [True, True, True]
        for call in calls[1:]:
            assert isinstance(call.promise.exception(), EngineClosedError)
        host.cancel()


async def test_a_call_before_and_behind_its_life_is_refused(autojump_clock):
    async with serving() as service:
        host = Host(service)
        early, late = Future(), Future()
        host.begin(Call(early, host.submit, message()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.run, host.leave)
        host.begin(Call(late, host.submit, message()))
    for future in (early, late):
        with pytest.raises(EngineClosedError, match="or was never opened"):
            future.result(0)


async def test_a_call_that_is_cancelled_before_it_begins_does_nothing(autojump_clock):
    async with hosting() as host:
        future: Future[str] = Future()
        call = Call(future, host.submit, message())
        call.cancel()
        host.begin(call)
        await wait_all_tasks_blocked()
        assert isinstance(future.exception(0), EngineClosedError)
    assert host.engine.statistics().messages == 0


async def test_an_engine_that_fails_tells_everybody(autojump_clock, caplog):
    async with hosting(stalls, max_in_flight=1) as host:
        calls = {
            "send": Call(Future(), host.send, message("stall@x.test")),
            "submit": Call(Future(), host.submit, message("late@x.test")),
        }
        for call in calls.values():
            host.begin(call)
            await wait_all_tasks_blocked()
        host.crash()
        await trio.sleep(1)

        # The engine's last deed was to settle it.
        assert told(calls["send"].promise.result(0)) == [
            "stall@x.test deferred local rcpt cancelled -"
        ]
        assert isinstance(calls["submit"].promise.exception(0), EngineFailedError)
        late: Future[str] = Future()
        host.begin(Call(late, host.submit, message()))
        with pytest.raises(EngineFailedError, match="ZeroDivisionError") as caught:
            late.result(0)
        assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert host.stream == [None]
    assert "the engine has failed" in caplog.text


async def test_who_waits_for_an_engine_to_drain_hears_when_it_fails(autojump_clock):
    async with hosting(stalls) as host:
        await host.submit(message("stall@x.test"))
        future: Future[bool] = Future()
        host.begin(Call(future, host.drain))
        await wait_all_tasks_blocked()
        host.crash()
        await trio.sleep(1)
        assert future.result(0) is True  # for the failure settled it
        assert host.failure is not None
    assert recipients(host) == ["stall@x.test"]


async def test_who_waits_for_outcomes_that_a_failed_engine_lost_is_told(autojump_clock):
    async with hosting(stalls) as host:
        future: Future[list[Outcome]] = Future()
        host.begin(Call(future, host.send, message("stall@x.test")))
        await wait_all_tasks_blocked()
        host.engine._shared.settle = lambda _: None
        for pool in host.engine._dispatcher.pools.values():
            pool.settle = lambda *_: None
        host.crash()
        await trio.sleep(1)
        assert isinstance(future.exception(0), EngineFailedError)


async def test_cancelled_from_outside_it_still_hands_over_every_outcome(autojump_clock):
    async with serving(stalls) as service:
        host = Host(service)
        future: Future[list[Outcome]] = Future()
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                opened = trio.Event()
                nursery.start_soon(host.run, opened.set)
                await opened.wait()
                await host.submit(message("stall@x.test"))
                host.begin(Call(future, host.send, message("a@x.test", "stall@x.test")))
        assert isinstance(future.exception(0), EngineClosedError)
    assert sorted(recipients(host)) == ["a@x.test", "stall@x.test", "stall@x.test"]
    assert host.stream[-1] is None


# ---- round about ---------------------------------------------------------------------------------


async def test_what_a_message_starts_does_not_keep_its_callers_context(autojump_clock):
    request: ContextVar[str] = ContextVar("request", default="none")
    found: list[str] = []
    async with hosting() as host:
        host.engine.events.watch(lambda _: found.append(request.get()), ConnectionOpened)
        request.set("the first request")
        future: Future[list[Outcome]] = Future()
        host.begin(Call(future, host.send, message()))
        await trio.sleep(1)
    assert future.done()
    assert found == ["none"]
