from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from engine.blocking import Engine, EngineFailedError
from engine.content import FileContent
from engine.errors import ConfigError, EngineClosedError, SubmitError
from engine.outcome import Cause, Outcome, Status
from engine.queue.errors import StoreUnusableError
from engine.queue.sqlite import open_store
from engine.report.events import MessageSubmitted
from engine.testing.sink_thread import sink_in_thread
from tests.delivery.helpers import message, settings
from tests.left_behind import fates, nothing_left_behind, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.testing.sink import Sink

ROOT = Path(__file__).parents[1]


def engine_to(sink: Sink, **options: object) -> Engine:
    # With CHUNKING the content is gone before anybody stalls, and would be waited for.
    more = settings(command_timeout=30, max_connections=4, chunking=False)
    return Engine(more, routes=[("*", [f"127.0.0.1:{sink.port}"])], **options)


def crash(engine: Engine) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("a bug")

    engine._soon(engine._hosted.engine._nursery.start_soon, fail)


class Interrupted(BaseException):
    """What a signal handler raises."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise in the main thread, wherever it is then."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.main_thread().ident
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, previous)


# ---- in and out ----------------------------------------------------------------------------------


def test_a_message_is_sent_and_its_outcomes_returned():
    with nothing_left_behind(), sink_in_thread(keep=True) as sink, engine_to(sink) as engine:
        outcomes = engine.send(message("a@x.test", "reject@x.test", id="one"))
        (kept,) = sink.messages

    assert {(each.message, each.recipient): each.status for each in outcomes} == {
        ("one", "a@x.test"): Status.DELIVERED,
        ("one", "reject@x.test"): Status.FAILED,
    }
    assert kept.recipients == ("a@x.test",)
    assert engine.statistics().delivered == 1
    assert list(engine.outcomes) == []


def test_outcomes_of_what_was_submitted_can_be_read_during_the_block_and_behind_it():
    with sink_in_thread() as sink:
        with engine_to(sink) as engine:
            assert engine.submit(message("a@x.test")) == "1"
            assert engine.outcomes.receive(timeout=10).recipient == "a@x.test"
            with pytest.raises(TimeoutError):
                engine.outcomes.receive(timeout=0)
            engine.submit(message("b@x.test"))
        assert [outcome.recipient for outcome in engine.outcomes] == ["b@x.test"]
    for _ in range(2):
        with pytest.raises(EngineClosedError):
            engine.outcomes.receive()


def test_outcomes_end_with_a_drain_so_that_one_thread_can_do_it_all():
    with sink_in_thread() as sink, engine_to(sink) as engine:
        for number in range(20):
            engine.submit(message(f"n{number}@x.test"))
        assert engine.drain() is True
        assert len(list(engine.outcomes)) == 20
        with pytest.raises(EngineClosedError):
            engine.submit(message())


def test_many_messages_are_sent_by_one_thread_with_less_room_than_they_need():
    asked_for = []

    def messages() -> Iterator[object]:
        for number in range(300):
            asked_for.append(number)
            yield message(f"n{number}@x.test", f"m{number}@x.test", id=f"{number}")

    found = []
    with sink_in_thread() as sink, engine_to(sink, max_in_flight=10) as engine:
        for outcome in engine.send_many(messages()):
            found.append(outcome)
            assert 2 * len(asked_for) - len(found) <= 12
    assert len({(each.message, each.recipient) for each in found}) == len(found) == 600


def test_what_send_many_left_behind_is_in_the_stream():
    with sink_in_thread() as sink, engine_to(sink) as engine:
        outcomes = engine.send_many(message(f"n{number}@x.test") for number in range(10))
        first = next(outcomes)
        outcomes.close()
        engine.drain()
        rest = list(engine.outcomes)
    assert engine.statistics().submitted == len(rest) + 1
    assert first.recipient not in {each.recipient for each in rest}


def test_what_send_many_left_behind_when_the_engine_had_ended_is_in_the_stream():
    with sink_in_thread() as sink:
        with engine_to(sink) as engine:
            outcomes = engine.send_many(iter([message("a@x.test", "b@x.test", "c@x.test")]))
            first = next(outcomes)
        assert list(engine.outcomes) == []
        outcomes.close()
        rest = list(engine.outcomes)
    assert {first.recipient, *[each.recipient for each in rest]} == {f"{n}@x.test" for n in "abc"}
    assert len(rest) == 2


def test_outcomes_of_send_many_can_be_read_to_the_end_when_the_engine_has_ended():
    with sink_in_thread() as sink:
        with engine_to(sink) as engine:
            outcomes = engine.send_many([message("a@x.test", "b@x.test", "c@x.test")])
            found = [next(outcomes)]
        found += outcomes
    assert len(found) == 3


def test_what_the_source_of_messages_raises_comes_out_of_send_many():
    def messages() -> Iterator[object]:
        yield message("a@x.test")
        raise KeyError("mine")

    with sink_in_thread() as sink, engine_to(sink) as engine:
        with pytest.raises(KeyError, match="mine"):
            list(engine.send_many(messages()))
        assert engine.drain()
        assert engine.statistics().delivered == 1


def test_a_content_can_be_a_file(tmp_path):
    path = tmp_path / "large.eml"
    path.write_bytes(b"Subject: large\r\n\r\n" + (b"y" * 998 + b"\r\n") * 300)
    with sink_in_thread(keep=True) as sink, engine_to(sink) as engine:
        content = engine.from_file(path)
        assert isinstance(content, FileContent)
        (outcome,) = engine.send(message("a@x.test", body=content))
        with pytest.raises(FileNotFoundError):
            engine.from_file(tmp_path / "none.eml")
        assert outcome.status is Status.DELIVERED
        assert sink.messages[0].content == path.read_bytes()


def test_two_messages_of_one_id_cannot_be_told_apart():
    with sink_in_thread() as sink, engine_to(sink) as engine:
        engine.submit(message("slow-0.5@x.test", id="same"))
        with pytest.raises(SubmitError, match="'same'"):
            engine.send(message("a@x.test", id="same"))


def test_events_can_be_watched_from_before_the_block():
    found, seen_by = [], set()
    with sink_in_thread() as sink:
        engine = engine_to(sink)

        def watch(event: MessageSubmitted) -> None:
            seen_by.add(threading.current_thread())
            found.append(event.message)
            if event.message == "2":
                assert engine.statistics().messages == 2
                engine.unwatch(watch)

        engine.watch(watch, MessageSubmitted)
        with engine:
            for _ in range(3):
                engine.send(message())
    assert found == ["1", "2"]
    assert threading.main_thread() not in seen_by


def test_with_a_store_mail_is_on_disk_and_outlives_the_engine(tmp_path):
    path = tmp_path / "spool.sqlite"
    with sink_in_thread() as sink:
        with nothing_left_behind():
            engine = engine_to(sink, store=open_store(path)).open()
            for number in range(3):
                engine.submit(message(f"stall+{number}@x.test", id=str(number)))
            engine.cancel()
            engine.close()
        cancelled = [each for each in engine.outcomes if each.cause is not Cause.CANCELLED]
        assert cancelled == []

        with nothing_left_behind(), engine_to(sink, store=open_store(path)) as engine:
            assert engine.submit(message("stall+0@x.test", id="0")) == "0"  # it is there
            name = engine.submit(message("a@x.test"))
            outcome = next(each for each in engine.outcomes if each.recipient == "a@x.test")
            assert outcome.message == name
            (sent,) = engine.send(message("reject@x.test"))
            assert sent.status is Status.FAILED
            engine.cancel()


def test_with_a_store_one_may_wait_until_it_is_empty(tmp_path):
    with sink_in_thread() as sink:
        with engine_to(sink, store=open_store(tmp_path / "spool.sqlite")) as engine:
            for number in range(20):
                engine.submit(message(f"n{number}@x.test"))
            engine.wait_empty()
            assert sink.statistics().messages == 20
        assert len(list(engine.outcomes)) == 20
        with engine_to(sink) as engine, pytest.raises(ValueError, match="without a store"):
            engine.wait_empty()


def test_what_is_wrong_with_files_is_told_as_it_is_to_whoever_opens(tmp_path, caplog):
    bad_file = settings(tls_ca_file=str(tmp_path / "none.pem"))
    bad_store = open_store(tmp_path / "none" / "spool.sqlite")
    with nothing_left_behind():
        for engine, error in (
            (Engine(bad_file), ConfigError),
            (Engine(store=bad_store), StoreUnusableError),
        ):
            with pytest.raises(error), engine:
                pass
            with pytest.raises(EngineFailedError):
                engine.submit(message())
    assert caplog.records == []


def test_addresses_are_asked_about():
    with sink_in_thread() as sink, engine_to(sink) as engine:
        answers = engine.verify(["a@x.test", "reject@x.test"], sender="s@x.test")
        assert [str(each.outcome.status) for each in answers] == ["accepted", "failed"]
        assert sink.statistics().messages == 0


# ---- back-pressure -------------------------------------------------------------------------------


def test_submit_waits_until_somebody_reads():
    with sink_in_thread() as sink, engine_to(sink, max_in_flight=2) as engine:
        engine.submit(message())
        engine.submit(message())
        wait_until(lambda: engine.statistics().delivered == 2)
        for seconds in (0, 0.1):
            with pytest.raises(TimeoutError, match="not taken"):
                engine.submit(message("never@x.test"), timeout=seconds)
        assert engine.send(message("a@x.test"))[0].status is Status.DELIVERED

        submitter = threading.Thread(target=engine.submit, args=(message("late@x.test"),))
        submitter.start()
        submitter.join(0.1)
        assert submitter.is_alive()
        engine.outcomes.receive()
        submitter.join(10)
        assert not submitter.is_alive()
        engine.drain()
        assert [each.recipient for each in engine.outcomes] == ["a@x.test", "late@x.test"]


def test_a_send_that_is_late_is_delivered_all_the_same():
    with sink_in_thread() as sink, engine_to(sink) as engine:
        with pytest.raises(TimeoutError):
            engine.send(message("slow-0.5@x.test"), timeout=0.1)
        assert engine.outcomes.receive(10).status is Status.DELIVERED


def test_everybody_has_one_outcome_whoever_asks_from_however_many_threads():
    rng = Random(1)
    faults = ["fine"] * 12 + ["reject", "defer", "drop", "close-after-dot", "421", "garbage"]
    sent: list[Outcome] = []
    read: list[Outcome] = []
    asked: Counter[tuple[str, str]] = Counter()

    def recipients(name: str) -> list[str]:
        found = [f"{rng.choice(faults)}+{name}.{n}@x.test" for n in range(rng.randint(1, 3))]
        asked.update((name, each) for each in found)
        return found

    jobs = [(number, message(*recipients(f"{number}"), id=f"{number}")) for number in range(300)]
    with sink_in_thread() as sink, engine_to(sink, max_in_flight=20) as engine:

        def read_all() -> None:
            read.extend(engine.outcomes)

        def work(job: tuple[int, object]) -> None:
            number, each = job
            if number % 3 == 0:
                engine.submit(each)
            elif number % 3 == 1:
                sent.extend(engine.send(each))
            else:
                sent.extend(engine.send_many([each]))

        readers = [threading.Thread(target=read_all) for _ in range(3)]
        for each in readers:
            each.start()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, jobs))
        engine.drain()
        for each in readers:
            each.join(10)

    assert Counter((each.message, each.recipient) for each in sent + read) == asked
    assert {int(each.message) % 3 for each in read} == {0}
    assert engine.statistics().in_flight == 0


# ---- the end -------------------------------------------------------------------------------------


def test_leaving_the_block_finishes_what_is_in_flight():
    with nothing_left_behind(), sink_in_thread() as sink:
        with engine_to(sink) as engine:
            for number in range(5):
                engine.submit(message(f"slow-0.2+{number}@x.test"))
        assert {each.status for each in engine.outcomes} == {Status.DELIVERED}


def test_an_exception_of_the_block_stops_at_once():
    with nothing_left_behind(), sink_in_thread() as sink:
        started = time.monotonic()
        with pytest.raises(KeyError, match="mine"), engine_to(sink) as engine:
            engine.submit(message("stall@x.test"))
            wait_until(lambda: engine.statistics().transactions == 1)
            raise KeyError("mine")
        assert time.monotonic() - started < 5
    assert fates(engine.outcomes) == ["stall@x.test deferred cancelled"]


@pytest.mark.parametrize(
    "where", ["block", "submit", "send", "send_many", "receive", "drain", "exit"]
)
def test_an_interruption_stops_at_once_and_loses_nothing(where: str):
    calls: dict[str, Callable[[Engine], object]] = {
        "block": lambda _: time.sleep(20),
        "submit": lambda engine: engine.submit(message("never@x.test")),
        "send": lambda engine: engine.send(message("stall+sent@x.test", "a@x.test")),
        "send_many": lambda engine: list(engine.send_many([message("stall+sent@x.test")])),
        "receive": lambda engine: engine.outcomes.receive(),
        "drain": Engine.drain,
        "exit": lambda _: None,
    }
    room = {"submit": 1}.get(where, 10)
    with nothing_left_behind(), sink_in_thread() as sink:
        started = time.monotonic()
        with pytest.raises(Interrupted), interrupted_after(0.3):
            with engine_to(sink, max_in_flight=room) as engine:
                engine.submit(message("stall@x.test"))
                calls[where](engine)
        assert time.monotonic() - started < 5
    expected = {"send": ["a@x.test", "stall+sent@x.test", "stall@x.test"]}
    expected["send_many"] = expected["send"][1:]
    found = [each.recipient for each in engine.outcomes]
    assert sorted(found) == expected.get(where, ["stall@x.test"])


def test_a_call_that_was_interrupted_is_withdrawn_and_the_engine_goes_on():
    with sink_in_thread() as sink, engine_to(sink, max_in_flight=1) as engine:
        engine.submit(message("a@x.test"))
        with pytest.raises(Interrupted), interrupted_after(0.2):
            engine.submit(message("never@x.test"))
        engine.outcomes.receive()
        engine.submit(message("b@x.test"), timeout=10)
        engine.drain()
        assert [each.recipient for each in engine.outcomes] == ["b@x.test"]


def test_a_signal_handler_may_cancel_the_engine():
    with sink_in_thread() as sink, engine_to(sink) as engine:
        previous = signal.signal(signal.SIGUSR1, lambda *_: engine.cancel())
        main = threading.main_thread().ident
        timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1))
        timer.start()
        try:
            (outcome,) = engine.send(message("stall@x.test"))
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, previous)
    assert fates([outcome]) == ["stall@x.test deferred cancelled"]


def test_close_drains_for_so_long_and_says_whether_that_was_enough():
    with nothing_left_behind(), sink_in_thread() as sink:
        engine = engine_to(sink).open()
        engine.submit(message("slow-0.2@x.test"))
        assert engine.close(timeout=10) is True
        assert engine.close() is True

        engine = engine_to(sink).open()
        engine.submit(message("stall@x.test"))
        assert engine.close(timeout=0.2) is False
        assert engine.close(timeout=0.2) is True
    assert fates(engine.outcomes) == ["stall@x.test deferred cancelled"]


def test_two_threads_may_close_and_what_waits_in_others_comes_to_its_end():
    with nothing_left_behind(), sink_in_thread() as sink, ThreadPoolExecutor(5) as pool:
        engine = engine_to(sink, max_in_flight=1).open()
        sent = pool.submit(engine.send, message("slow-0.5@x.test"))
        wait_until(lambda: engine.statistics().transactions == 1)
        refused = pool.submit(engine.submit, message())
        read = pool.submit(list, engine.outcomes)
        time.sleep(0.1)
        closed = [pool.submit(engine.close, seconds) for seconds in (None, 10)]
        assert [each.result(10) for each in closed] == [True, True]
        assert [each.status for each in sent.result(10)] == [Status.DELIVERED]
        with pytest.raises(EngineClosedError):
            refused.result(10)
        assert read.result(10) == []


@pytest.mark.parametrize("when", ["before", "behind"])
def test_an_engine_that_is_not_open_refuses(when: str):
    with sink_in_thread() as sink:
        engine = engine_to(sink)
        if when == "behind":
            with engine:
                pass
        for call in (
            lambda: engine.submit(message()),
            lambda: engine.send(message()),
            lambda: list(engine.send_many([message()])),
            engine.drain,
            lambda: engine.from_file("/dev/null"),
        ):
            with pytest.raises(EngineClosedError, match="or was never opened"):
                call()
        engine.cancel()
        assert engine.close()
        assert engine.statistics().messages == 0


def test_an_engine_can_be_opened_once():
    with sink_in_thread() as sink, engine_to(sink) as engine:
        with pytest.raises(RuntimeError, match="opened once"):
            engine.open()
        engine.send(message())


def test_an_engine_is_not_called_from_its_own_thread():
    caught = []
    with sink_in_thread() as sink, engine_to(sink) as engine:

        def watch(_: object) -> None:
            with pytest.raises(RuntimeError, match="own thread") as error:
                engine.send(message())
            caught.append(error)

        engine.watch(watch, MessageSubmitted)
        engine.send(message())
    assert len(caught) == 1


# ---- failures ------------------------------------------------------------------------------------


def test_an_engine_that_fails_raises_its_error_in_every_caller():
    with nothing_left_behind(), sink_in_thread() as sink, ThreadPoolExecutor(8) as pool:
        engine = engine_to(sink, max_in_flight=1).open()
        sent = pool.submit(engine.send, message("stall@x.test"))
        wait_until(lambda: engine.statistics().transactions == 1)
        waiting = [
            pool.submit(engine.submit, message()),
            pool.submit(engine.send, message()),
            pool.submit(lambda: list(engine.send_many([message()]))),
            pool.submit(lambda: list(engine.outcomes)),
        ]
        time.sleep(0.1)
        crash(engine)

        assert [each.status for each in sent.result(10)] == [Status.DEFERRED]
        for each in waiting:
            assert isinstance(each.exception(10), EngineFailedError)
        for call in (
            lambda: engine.submit(message()),
            engine.drain,
            engine.outcomes.receive,
            engine.close,
        ):
            with pytest.raises(EngineFailedError, match="ZeroDivisionError") as caught:
                call()
            assert isinstance(caught.value.__cause__, ExceptionGroup)


def test_a_block_ends_with_the_error_of_its_engine():
    with sink_in_thread() as sink:
        with pytest.raises(EngineFailedError), engine_to(sink) as engine:
            crash(engine)
        with pytest.raises(EngineFailedError, match="failed") as caught, engine_to(sink) as engine:
            crash(engine)
            engine._over.wait(10)
            engine.submit(message())
        assert caught.value.__context__ is None


# ---- processes -----------------------------------------------------------------------------------

PRELUDE = """
import os, signal, sys, threading, time
from engine.blocking import Engine
from tests.delivery.helpers import message, settings
from tests.left_behind import wait_until

engine = Engine(settings(command_timeout=30, chunking=False), routes=[("*", [sys.argv[1]])])
"""


def run(code: str, sink: Sink) -> subprocess.CompletedProcess[str]:
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


def test_a_program_that_is_interrupted_ends_with_every_outcome_known():
    with sink_in_thread() as sink:
        done = run(
            """
def interrupt():
    wait_until(lambda: engine.statistics().messages == 2)
    os.kill(os.getpid(), signal.SIGINT)

try:
    with engine:
        engine.submit(message("stall@x.test"))
        threading.Thread(target=interrupt).start()
        engine.send(message("stall+sent@x.test"))
except KeyboardInterrupt:
    print(sorted((each.recipient, str(each.status)) for each in engine.outcomes))
""",
            sink,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[('stall+sent@x.test', 'deferred'), ('stall@x.test', 'deferred')]\n"


def test_trio_itself_may_fail_and_nobody_waits_for_ever():
    """In a process of its own, for Trio leaves a battlefield."""
    with sink_in_thread() as sink:
        done = run(
            """
import trio
from concurrent.futures import ThreadPoolExecutor

async def break_trio():
    with trio.move_on_after(0.1):
        await trio.lowlevel.wait_task_rescheduled(lambda _: "no answer that Trio knows")

pool = ThreadPoolExecutor(8)
engine = Engine(settings(chunking=False), routes=[("*", [sys.argv[1]])], max_in_flight=1).open()
waiting = [pool.submit(engine.send, message("stall@x.test"))]
wait_until(lambda: engine.statistics().transactions == 1)
waiting.append(pool.submit(engine.submit, message()))
waiting.append(pool.submit(lambda: list(engine.send_many([message()]))))
waiting.append(pool.submit(engine.outcomes.receive))
time.sleep(0.1)
engine._soon(engine._hosted.engine._nursery.start_soon, break_trio)
waiting[0].exception(10)
waiting += [pool.submit(each) for each in (engine.drain, engine.close, engine.outcomes.receive)]
for each in waiting:
    error = each.exception(10)
    print(type(error).__name__, type(error.__cause__).__name__)
""",
            sink,
        )
    assert done.stdout == 7 * "EngineFailedError TrioInternalError\n", done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyError('mine')"])
def test_an_engine_left_open_does_not_hold_up_the_interpreter(end: str):
    with sink_in_thread() as sink:
        started = time.monotonic()
        done = run(
            f"""
import atexit
atexit.register(lambda: print([str(each.status) for each in engine.outcomes]))
engine.open()
engine.submit(message("stall@x.test"))
wait_until(lambda: engine.statistics().transactions == 1)
{end}
""",
            sink,
        )
        assert time.monotonic() - started < 15
    assert done.stdout == "['deferred']\n"
    assert done.returncode == {"": 0, "sys.exit(3)": 3}.get(end, 1)
    assert ("Traceback" in done.stderr) is ("mine" in end)


def test_behind_a_fork_an_engine_says_what_is_wrong():
    with sink_in_thread() as sink:
        done = run(
            """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # we know that there are threads

def check(call):
    try:
        call()
    except RuntimeError as error:
        assert "before the process forked" in str(error), error
        return True

with engine:
    engine.send(message("a@x.test"))
    child = os.fork()
    if not child:
        calls = [
            lambda: engine.submit(message()),
            lambda: engine.send(message()),
            lambda: list(engine.send_many([message()])),
            lambda: engine.outcomes.receive(),
            lambda: list(engine.outcomes),
            lambda: engine.drain(),
            lambda: engine.cancel(),
            lambda: engine.statistics(),
            lambda: engine.open(),
        ]
        assert [check(each) for each in calls] == [True] * len(calls)
        assert engine.close()
        with Engine(routes=[("*", [sys.argv[1]])]) as own:
            assert own.send(message("child@x.test"))[0].status == "delivered"
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print(engine.send(message("b@x.test"))[0].status)
""",
            sink,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "delivered\n"
        assert sink.statistics().messages == 3
