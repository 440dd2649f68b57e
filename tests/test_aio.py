from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from engine import blocking
from engine.aio import Engine, EngineFailedError
from engine.content import FileContent
from engine.errors import ConfigError, EngineClosedError, SubmitError
from engine.outcome import Outcome, Status
from engine.queue.decision import Policy
from engine.queue.errors import StoreUnusableError
from engine.queue.retry import read_rules
from engine.queue.sqlite import open_store
from engine.report.events import MessageSubmitted
from engine.stored import QueueOptions
from engine.testing.sink_thread import sink_in_thread
from tests.delivery.helpers import message, settings
from tests.left_behind import fates, nothing_left_behind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from engine.testing.sink import Sink

ROOT = Path(__file__).parents[1]


def engine_to(sink: Sink, **options: object) -> Engine:
    # With CHUNKING the content is gone before anybody stalls, and would be waited for.
    more = settings(command_timeout=30, max_connections=4, chunking=False)
    return Engine(more, routes=[("*", [f"127.0.0.1:{sink.port}"])], **options)


def run(
    main: Callable[[Sink], Coroutine[object, object, None]],
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run a coroutine with a sink that is none of its loop's, and check that nothing is left."""

    async def watched(sink: Sink) -> None:
        async with asyncio.timeout(30):
            await main(sink)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not trio.lowlevel.in_trio_run()

    if make_loop is not None:
        make_loop().close()  # uvloop keeps a pipe for signals, once and for ever
    with nothing_left_behind(), sink_in_thread(keep=True) as sink:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(watched(sink))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.002)


async def all_of(engine: Engine) -> list[Outcome]:
    return [outcome async for outcome in engine.outcomes]


def crash(engine: Engine) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("a bug")

    engine._hosted.engine._nursery.start_soon(fail)


# ---- in and out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_message_is_sent_and_its_outcomes_returned(loop: str):
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            outcomes = await engine.send(message("a@x.test", "reject@x.test", id="one"))
        assert {(each.message, each.recipient): each.status for each in outcomes} == {
            ("one", "a@x.test"): Status.DELIVERED,
            ("one", "reject@x.test"): Status.FAILED,
        }
        assert [kept.recipients for kept in sink.messages] == [("a@x.test",)]
        assert engine.statistics().delivered == 1
        assert await all_of(engine) == []

    make_loop = None if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    run(main, make_loop)


def test_outcomes_of_what_was_submitted_can_be_read_during_the_block_and_behind_it():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            assert await engine.submit(message("a@x.test")) == "1"
            assert (await engine.outcomes.receive()).recipient == "a@x.test"
            await engine.submit(message("b@x.test"))
        assert [outcome.recipient for outcome in await all_of(engine)] == ["b@x.test"]
        for _ in range(2):
            with pytest.raises(EngineClosedError):
                await engine.outcomes.receive()

    run(main)


def test_outcomes_end_with_a_drain():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            readers = [asyncio.create_task(all_of(engine)) for _ in range(2)]
            for number in range(20):
                await engine.submit(message(f"n{number}@x.test"))
            assert await engine.drain() is True
            assert sum([len(await each) for each in readers]) == 20
            with pytest.raises(EngineClosedError):
                await engine.submit(message())

    run(main)


def test_a_content_can_be_a_file(tmp_path: Path):
    async def main(sink: Sink) -> None:
        path = tmp_path / "large.eml"
        path.write_bytes(b"Subject: large\r\n\r\n" + (b"y" * 998 + b"\r\n") * 300)
        async with engine_to(sink) as engine:
            content = await engine.from_file(path)
            assert isinstance(content, FileContent)
            (outcome,) = await engine.send(message("a@x.test", body=content))
            with pytest.raises(FileNotFoundError):
                await engine.from_file(tmp_path / "none.eml")
        assert outcome.status is Status.DELIVERED
        assert sink.messages[0].content == path.read_bytes()

    run(main)


def test_events_can_be_watched_from_before_the_block():
    async def main(sink: Sink) -> None:
        found: list[str] = []
        engine = engine_to(sink)

        def watch(event: MessageSubmitted) -> None:
            found.append(event.message)
            if event.message == "2":
                engine.unwatch(watch)

        engine.watch(watch, MessageSubmitted)
        async with engine:
            for _ in range(3):
                await engine.send(message())
        assert found == ["1", "2"]

    run(main)


def test_with_a_store_mail_is_on_disk_and_tried_again(tmp_path: Path):
    async def main(sink: Sink) -> None:
        rules, _ = read_rules([{"match": "*", "steps": ["1s", "5m"]}])
        options = QueueOptions(policy=Policy(rules=rules))
        store = open_store(tmp_path / "spool.sqlite")
        async with engine_to(sink, store=store, queue=options) as engine:
            reader = asyncio.create_task(all_of(engine))
            name = await engine.submit(message("greylist@x.test", id="one"))
            assert await engine.submit(message("greylist@x.test", id="one")) == name == "one"
            (sent,) = await engine.send(message("reject@x.test"))
            assert sent.status is Status.FAILED
            await engine.wait_empty()
            assert sink.statistics().messages == 1
        assert [(each.message, str(each.status)) for each in await reader] == [
            ("one", "deferred"),
            ("one", "delivered"),
        ]

    run(main)


def test_what_is_wrong_with_files_is_told_as_it_is_to_whoever_opens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async def main(_: Sink) -> None:
        bad_file = settings(tls_ca_file=str(tmp_path / "none.pem"))
        bad_store = open_store(tmp_path / "none" / "spool.sqlite")
        for engine, error in (
            (Engine(bad_file), ConfigError),
            (Engine(store=bad_store), StoreUnusableError),
        ):
            with pytest.raises(error):
                async with engine:
                    pass
            with pytest.raises(EngineFailedError):
                await engine.submit(message())

    run(main)
    assert caplog.records == []


def test_addresses_are_asked_about():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            answers = await engine.verify(["a@x.test", "reject@x.test"], catch_all=True)
        assert [str(each.outcome.status) for each in answers] == ["accepted", "failed"]
        assert answers[0].is_catch_all

    run(main)


def test_without_a_loop_it_says_what_to_use():
    async def main() -> None:
        async with Engine():
            pass

    with pytest.raises(RuntimeError, match=r"for Trio there is engine\.Engine"):
        trio.run(main)


def test_everybody_has_one_outcome_whatever_is_cancelled():
    rng = Random(1)
    faults = ["fine"] * 12 + ["reject", "defer", "drop", "close-after-dot", "421", "slow-0.02"]

    async def main(sink: Sink) -> None:
        asked: Counter[tuple[str, str]] = Counter()
        found: Counter[tuple[str, str]] = Counter()

        def count(outcomes: list[Outcome]) -> None:
            found.update((each.message, each.recipient) for each in outcomes)

        async def work(number: int) -> None:
            names = [f"{rng.choice(faults)}+{number}.{n}@x.test" for n in range(rng.randint(1, 3))]
            each = message(*names, id=str(number))
            call = engine.send if number % 2 else engine.submit
            try:
                async with asyncio.timeout(rng.choice([0.001, 0.01, 10, 10])):
                    result = await call(each)
                asked.update((each.id, name) for name in names)
                count(result if number % 2 else [])
            except TimeoutError:
                maybe.update((each.id, name) for name in names)

        async def read() -> None:
            count(await all_of(engine))

        maybe: Counter[tuple[str, str]] = Counter()
        async with asyncio.TaskGroup() as tasks:
            engine = engine_to(sink, max_in_flight=20)
            async with engine:
                tasks.create_task(read())
                async with asyncio.TaskGroup() as workers:
                    for number in range(200):
                        workers.create_task(work(number))
                await engine.drain()

        assert asked <= found
        assert found <= asked + maybe
        assert set(found.values()) == {1}
        assert found.total() == engine.statistics().submitted
        assert engine.statistics().in_flight == 0

    run(main)


# ---- back-pressure and cancellation --------------------------------------------------------------


def test_submit_waits_until_somebody_reads():
    async def main(sink: Sink) -> None:
        async with engine_to(sink, max_in_flight=2) as engine:
            await engine.submit(message())
            await engine.submit(message())
            await until(lambda: engine.statistics().delivered == 2)
            for seconds in (0, 0.05):
                with pytest.raises(TimeoutError, match="not taken"):
                    await engine.submit(message("never@x.test"), seconds)
            assert len(await engine.send(message("a@x.test"))) == 1

            late = asyncio.create_task(engine.submit(message("late@x.test")))
            await asyncio.sleep(0.05)
            assert not late.done()
            await engine.outcomes.receive()
            await late
        assert [each.recipient for each in await all_of(engine)] == ["a@x.test", "late@x.test"]

    run(main)


def test_a_cancelled_submit_that_still_waited_has_taken_nothing():
    async def main(sink: Sink) -> None:
        async with engine_to(sink, max_in_flight=1) as engine:
            await engine.submit(message("a@x.test"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await engine.submit(message("never@x.test"))
            task = asyncio.create_task(engine.submit(message("never@x.test")))
            await asyncio.sleep(0)
            task.cancel()  # before Trio has seen it
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.outcomes.receive()
            await engine.submit(message("b@x.test"))
        assert [each.recipient for each in await all_of(engine)] == ["b@x.test"]
        assert engine.statistics().submitted == 2

    run(main)


def test_a_send_that_is_cancelled_leaves_its_outcomes_to_the_stream():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await engine.send(message("slow-0.5@x.test"))
            assert (await engine.outcomes.receive()).status is Status.DELIVERED
            with pytest.raises(TimeoutError, match="outcomes"):
                await engine.send(message("slow-0.5@x.test"), timeout=0.1)
            assert (await engine.outcomes.receive()).status is Status.DELIVERED

    run(main)


def test_a_send_cancelled_when_all_was_known_leaves_its_outcomes_to_the_stream():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            task = asyncio.create_task(engine.send(message("a@x.test")))
            await until(lambda: bool(engine._calls))
            (call,) = engine._calls
            # asyncio has the result, and the task has not heard of it.
            call.promise.add_done_callback(lambda _: task.cancel())
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await engine.outcomes.receive()).recipient == "a@x.test"

    run(main)


def test_a_cancelled_receive_has_taken_nothing():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            task = asyncio.create_task(engine.outcomes.receive())
            await asyncio.sleep(0)
            engine._hosted._deliver = lambda told: (
                engine.outcomes._stream.put_nowait(told),
                task.cancel(),
            )
            await engine.submit(message("a@x.test"))
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await engine.outcomes.receive()).recipient == "a@x.test"

    run(main)


def test_two_messages_of_one_id_cannot_be_told_apart():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            await engine.submit(message("slow-0.2@x.test", id="same"))
            with pytest.raises(SubmitError, match="'same'"):
                await engine.send(message("a@x.test", id="same"))

    run(main)


# ---- many engines --------------------------------------------------------------------------------


def test_two_engines_in_one_loop_and_one_that_comes_as_they_go():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as one, engine_to(sink) as other:
            await asyncio.gather(*[each.send(message()) for each in (one, other) * 5])
            async with engine_to(sink) as third:
                await third.send(message())
            assert one._guest is other._guest is third._guest
        for _ in range(3):
            await asyncio.gather(*[use(sink) for _ in range(3)])

    async def use(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            assert (await engine.send(message()))[0].status is Status.DELIVERED

    run(main)


def test_engines_in_two_loops_and_one_in_a_thread_of_its_own():
    found: list[Status] = []

    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            for _ in range(20):
                found.extend(each.status for each in await engine.send(message()))

    with nothing_left_behind(), sink_in_thread() as sink:
        loops = [threading.Thread(target=lambda: asyncio.run(main(sink))) for _ in range(2)]
        for each in loops:
            each.start()
        with blocking.Engine(routes=[("*", [f"127.0.0.1:{sink.port}"])]) as engine:
            found.extend(each.status for each in engine.send(message()))
        for each in loops:
            each.join(20)
    assert found == [Status.DELIVERED] * 41


def test_the_failure_of_one_engine_is_none_of_the_others():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as fine:
            with pytest.raises(EngineFailedError):
                async with engine_to(sink) as broken:
                    crash(broken)
                    await broken.outcomes.receive()
            assert (await fine.send(message()))[0].status is Status.DELIVERED

    run(main)


def test_an_engine_belongs_to_its_loop():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            found = await asyncio.to_thread(elsewhere, engine)
            assert "another loop" in str(found)

    def elsewhere(engine: Engine) -> BaseException:
        async def call() -> None:
            await engine.submit(message())

        with pytest.raises(RuntimeError) as caught:
            asyncio.run(call())
        return caught.value

    run(main)


def test_where_trio_runs_already_there_is_a_better_engine():
    async def main() -> None:
        engine = Engine()
        with pytest.raises(RuntimeError, match=r"use engine\.Engine"):
            await engine.open()
        assert await engine.close()

    async def in_trio() -> None:
        asyncio.run(main())

    trio.run(in_trio)


# ---- the end -------------------------------------------------------------------------------------


def test_leaving_the_block_finishes_what_is_in_flight():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            for number in range(5):
                await engine.submit(message(f"slow-0.1+{number}@x.test"))
        assert {each.status for each in await all_of(engine)} == {Status.DELIVERED}

    run(main)


def test_an_exception_of_the_block_stops_at_once():
    async def main(sink: Sink) -> None:
        started = time.monotonic()
        with pytest.raises(KeyError, match="mine"):
            async with engine_to(sink) as engine:
                await engine.submit(message("stall@x.test"))
                await until(lambda: engine.statistics().transactions == 1)
                raise KeyError("mine")
        assert time.monotonic() - started < 5
        assert fates(await all_of(engine)) == ["stall@x.test deferred cancelled"]

    run(main)


@pytest.mark.parametrize("where", ["block", "submit", "send", "receive", "drain", "exit", "close"])
def test_a_cancellation_stops_at_once_and_loses_nothing(where: str):
    calls: dict[str, Callable[[Engine], Awaitable[object]]] = {
        "block": lambda _: asyncio.sleep(20),
        "submit": lambda engine: engine.submit(message("never@x.test")),
        "send": lambda engine: engine.send(message("stall+sent@x.test", "a@x.test")),
        "receive": lambda engine: engine.outcomes.receive(),
        "drain": Engine.drain,
        "exit": lambda _: asyncio.sleep(0),
        "close": lambda engine: engine.close(timeout=20),
    }

    async def main(sink: Sink) -> None:
        engine = engine_to(sink, max_in_flight={"submit": 1}.get(where, 10))

        async def use() -> None:
            async with engine:
                await engine.submit(message("stall@x.test"))
                await calls[where](engine)

        started = time.monotonic()
        task = asyncio.create_task(use())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 5
        expected = {"send": ["a@x.test", "stall+sent@x.test", "stall@x.test"]}
        found = [each.recipient for each in await all_of(engine)]
        assert sorted(found) == expected.get(where, ["stall@x.test"])

    run(main)


def test_an_exit_that_is_cancelled_again_still_waits_for_its_engine():
    async def main(sink: Sink) -> None:
        engine = engine_to(sink, grace=0.5)

        async def use() -> None:
            async with engine:
                await engine.submit(message("slow-20@x.test", "data-stall@x.test"))
                await until(lambda: engine.statistics().transactions == 1)

        task = asyncio.create_task(use())
        await asyncio.sleep(0.2)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await all_of(engine)) == 2

    run(main)


def test_an_open_that_is_cancelled_leaves_nothing():
    async def main(sink: Sink) -> None:
        for steps in range(4):
            engine = engine_to(sink)
            task = asyncio.create_task(engine.open())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(EngineClosedError):
                await engine.submit(message())

    run(main)


def test_close_drains_for_so_long_and_says_whether_that_was_enough():
    async def main(sink: Sink) -> None:
        engine = await engine_to(sink).open()
        await engine.submit(message("slow-0.1@x.test"))
        assert await engine.close(timeout=10) is True
        assert await engine.close() is True

        engine = await engine_to(sink).open()
        await engine.submit(message("stall@x.test"))
        assert await asyncio.gather(engine.close(timeout=0.1), engine.close(timeout=10)) == [
            False,
            True,
        ]
        assert fates(await all_of(engine)) == ["stall@x.test deferred cancelled"]

    run(main)


@pytest.mark.parametrize("when", ["before", "behind"])
def test_an_engine_that_is_not_open_refuses(when: str):
    async def main(sink: Sink) -> None:
        engine = engine_to(sink)
        if when == "behind":
            async with engine:
                pass
            with pytest.raises(RuntimeError, match="opened once"):
                await engine.open()
        for call in (engine.submit, engine.send):
            with pytest.raises(EngineClosedError, match="or was never opened"):
                await call(message())
        with pytest.raises(EngineClosedError):
            await engine.drain()
        engine.cancel()
        assert await engine.close()
        assert engine.statistics().messages == 0

    run(main)


def test_an_engine_may_be_cancelled_by_whoever_has_it():
    async def main(sink: Sink) -> None:
        async with engine_to(sink) as engine:
            asyncio.get_running_loop().call_later(0.1, engine.cancel)
            (outcome,) = await engine.send(message("stall@x.test"))
            assert fates([outcome]) == ["stall@x.test deferred cancelled"]

    run(main)


def test_an_engine_left_open_is_cancelled_with_its_loop():
    engines = []

    async def main(sink: Sink) -> None:
        engine = await engine_to(sink).open()
        await engine.submit(message("stall@x.test"))
        await until(lambda: engine.statistics().transactions == 1)
        engines.append(engine)

    with nothing_left_behind(), sink_in_thread() as sink:
        asyncio.run(main(sink))
    (engine,) = engines
    found = [engine.outcomes._stream.get_nowait() for _ in range(2)]
    assert fates([found[0].outcome]) == ["stall@x.test deferred cancelled"]
    assert found[1] is None


# ---- failures ------------------------------------------------------------------------------------


def test_an_engine_that_fails_raises_its_error_in_every_caller():
    async def main(sink: Sink) -> None:
        engine = await engine_to(sink, max_in_flight=1).open()
        sent = asyncio.create_task(engine.send(message("stall@x.test")))
        await until(lambda: engine.statistics().transactions == 1)
        waiting = [
            asyncio.create_task(call)
            for call in (
                engine.submit(message()),
                engine.send(message()),
                engine.outcomes.receive(),
                all_of(engine),
            )
        ]
        await asyncio.sleep(0.05)
        crash(engine)
        assert [each.status for each in await sent] == [Status.DEFERRED]
        waiting += [
            asyncio.create_task(call)
            for call in (engine.submit(message()), engine.drain(), engine.close())
        ]
        for each in waiting:
            with pytest.raises(EngineFailedError, match="ZeroDivisionError") as caught:
                await each
            assert isinstance(caught.value.__cause__, ExceptionGroup)

    run(main)


# ---- processes -----------------------------------------------------------------------------------

PRELUDE = """
import asyncio, os, signal, sys, threading, time
from engine.aio import Engine
from tests.delivery.helpers import message, settings
from tests.left_behind import wait_until

engine = Engine(
    settings(command_timeout=30, chunking=False), routes=[("*", [sys.argv[1]])], max_in_flight=2
)

async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)

def interrupt():
    wait_until(lambda: engine.statistics().transactions == 1)
    os.kill(os.getpid(), signal.SIGINT)

async def print_outcomes():
    print(sorted([str(each.status) async for each in engine.outcomes]))
"""


def program(code: str, sink: Sink) -> subprocess.CompletedProcess[str]:
    """Run a program, which has an engine to a sink, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code, f"127.0.0.1:{sink.port}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "start", ["asyncio.run(main())", "asyncio.new_event_loop().run_until_complete(main())"]
)
def test_a_program_that_is_interrupted_ends_with_every_outcome_known(start: str):
    """`asyncio.run` cancels its main task; with a bare loop Trio hears it, and stops the guest."""
    with sink_in_thread() as sink:
        done = program(
            f"""
async def main():
    async with engine:
        threading.Thread(target=interrupt).start()
        await engine.send(message("stall@x.test"))

try:
    {start}
except KeyboardInterrupt:
    print("interrupted")
asyncio.run(print_outcomes())
""",
            sink,
        )
    assert done.stdout == "interrupted\n['deferred']\n", done.stderr
    assert done.returncode == 0


def test_an_engine_whose_loop_is_gone_does_not_hold_up_the_interpreter():
    with sink_in_thread() as sink:
        started = time.monotonic()
        done = program(
            """
loop = asyncio.new_event_loop()
loop.run_until_complete(engine.open())
loop.run_until_complete(engine.submit(message("stall@x.test")))
loop.run_until_complete(until(lambda: engine.statistics().transactions == 1))
print("left")
""",
            sink,
        )
        assert time.monotonic() - started < 20
    assert done.stdout == "left\n", done.stderr


def test_trio_itself_may_fail_and_nobody_waits_for_ever():
    with sink_in_thread() as sink:
        done = program(
            """
import trio

async def break_trio():
    with trio.move_on_after(0.1):
        await trio.lowlevel.wait_task_rescheduled(lambda _: "no answer that Trio knows")

async def main():
    await engine.open()
    waiting = [asyncio.create_task(engine.send(message("stall@x.test", "stall@x.test")))]
    await until(lambda: engine.statistics().transactions == 1)
    waiting.append(asyncio.create_task(engine.submit(message())))
    waiting.append(asyncio.create_task(engine.outcomes.receive()))
    engine._hosted.engine._nursery.start_soon(break_trio)
    await asyncio.wait(waiting)
    waiting += [asyncio.create_task(each()) for each in (engine.drain, engine.close)]
    waiting.append(asyncio.create_task(engine.send(message())))
    await asyncio.wait(waiting)
    for each in waiting:
        print(type(each.exception()).__name__, type(each.exception().__cause__).__name__)

asyncio.run(main())
""",
            sink,
        )
    assert done.stdout == 6 * "EngineFailedError TrioInternalError\n", done.stdout + done.stderr
    assert done.returncode == 0
