from __future__ import annotations

import socket
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.engine import Engine
from engine.errors import ConfigError, EngineClosedError
from engine.outcome import Cause, Outcome, Status
from engine.paths import PathRule, SettingsTable
from engine.queue.memory import MemoryStore
from engine.routing.router import Router
from engine.routing.table import RouteTable
from engine.settings import Settings
from engine.testing.dns import FakeDns
from engine.testing.script import parse_script
from engine.testing.server import play
from engine.testing.sink import open_sink
from tests.delivery.helpers import (
    ZONE,
    an_engine,
    message,
    opening,
    outcomes_of,
    serving,
    settings,
    stalls,
    told,
    transaction,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# ---- in and out ----------------------------------------------------------------------------------


async def test_a_message_without_id_gets_a_number(autojump_clock):
    async with serving() as service, an_engine(service) as engine:
        assert await engine.submit(message()) == "1"
        assert await engine.submit(message(id="mine")) == "mine"
        assert await engine.submit(message()) == "3"
        found = {(await engine.outcomes.receive()).message for _ in range(3)}

    assert found == {"1", "mine", "3"}


async def test_outcomes_can_be_read_after_the_block(autojump_clock):
    async with serving() as service:
        async with an_engine(service) as engine:
            await engine.submit(message("a@x.test", "b@x.test"))
        found = await outcomes_of(engine)

    assert told(found) == [f"{name}@x.test delivered - final reply 250" for name in "ab"]


async def test_outcomes_end_with_the_engine(autojump_clock):
    async with serving() as service, trio.open_nursery() as nursery:
        found: list[Outcome] = []

        async def read() -> None:
            found.extend([outcome async for outcome in engine.outcomes])

        async with an_engine(service) as engine:
            nursery.start_soon(read)
            await engine.submit(message())

    assert len(found) == 1


def test_a_port_that_is_no_service_is_refused_before_anything_runs():
    table = SettingsTable(Settings(), [PathRule("x.test", {"port": "nope"})])

    with pytest.raises(ConfigError, match=r'^paths\[0\] x\.test: port: found "nope"; allowed'):
        Engine(table)
    with pytest.raises(ConfigError, match=r'^port: found "nope"; allowed'):
        Engine(Settings(port="nope"))


async def test_an_engine_can_be_entered_once(autojump_clock):
    async with serving() as service:
        async with an_engine(service) as engine:
            pass
        with pytest.raises(RuntimeError, match="once"):
            async with engine:
                pass


async def test_outside_of_its_block_an_engine_takes_nothing():
    engine = Engine()
    with pytest.raises(RuntimeError, match="`async with`"):
        await engine.submit(message())
    with pytest.raises(RuntimeError, match="`async with`"):
        await engine.verify(["a@x.test"])
    assert engine.statistics().submitted == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"settings": {"port": 25}}, "settings is a dict; allowed are Settings and SettingsTable"),
        ({"routes": {"*": ["192.0.2.1"]}}, "route 1 is '\\*'; allowed: a pair of what it matches"),
        ({"routes": ["192.0.2.1"]}, "route 1 is '192.0.2.1'; allowed: a pair of what it matches"),
        ({"routes": [("*", "192.0.2.1")]}, "hosts is '192.0.2.1'; allowed: a list"),
        ({"grace": "10s"}, "grace is a str; allowed is a number of seconds"),
        ({"grace": -1}, "grace is -1; allowed is a number of seconds, 0 or more"),
        ({"max_in_flight": "10"}, "max_in_flight is a str; allowed is a whole number"),
        ({"max_in_flight": 0}, "max_in_flight is 0; at least 1 is needed"),
        ({"resolver": "8.8.8.8"}, "resolver is a str; allowed is a Resolver"),
        ({"store": "spool.sqlite"}, r"store is a str; .* open_store\('spool.sqlite'\)"),
        ({"store": MemoryStore(), "queue": {}}, "queue is a dict; allowed is QueueOptions"),
    ],
)
def test_an_engine_cannot_be_made_of_anything(arguments, said):
    with pytest.raises((ConfigError, TypeError, ValueError), match=said):
        Engine(**arguments)


@pytest.mark.parametrize("more", [{}, {"store": MemoryStore()}])
async def test_what_is_no_message_is_not_taken(more, autojump_clock):
    async with serving() as service, an_engine(service, **more) as engine:
        with pytest.raises(TypeError, match="message is a str; allowed is a Message"):
            await engine.submit("hello")
        assert engine.statistics().submitted == 0


async def test_exceptions_of_the_block_come_out_ungrouped_and_stop_at_once(autojump_clock):
    async with serving(stalls) as service:
        started = trio.current_time()
        with pytest.raises(KeyError, match="mine"):
            async with an_engine(service) as engine:
                await engine.submit(message("stall@x.test"))
                await wait_all_tasks_blocked()
                raise KeyError("mine")

        assert trio.current_time() == started
        assert service.open == 0
    assert told(await outcomes_of(engine)) == ["stall@x.test deferred local rcpt cancelled -"]


async def test_two_engines_in_one_process(autojump_clock):
    async with serving(delay=1) as service:
        async with an_engine(service) as one, an_engine(service) as other:
            await one.submit(message("a@x.test"))
            await other.submit(message("b@x.test"))
            first, second = await one.outcomes.receive(), await other.outcomes.receive()

    assert (first.recipient, second.recipient) == ("a@x.test", "b@x.test")
    assert (first.message, second.message) == ("1", "1")
    assert first.peer is not None
    assert second.peer is not None
    assert first.peer.connection == second.peer.connection == 1


# ---- to a Unix socket ----------------------------------------------------------------------------


@asynccontextmanager
async def a_unix_server(path: Path, script: str) -> AsyncIterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        async with trio.open_nursery() as nursery:
            serve = partial(play, parse_script(script)[0])
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield
            nursery.cancel_scope.cancel()


async def test_mail_goes_to_a_unix_socket(tmp_path):
    path = tmp_path / "smtp"
    script = opening(False).replace("me.test", "localhost") + transaction(
        ("a@x.test", "250 ok"), pipelined=False
    )
    async with a_unix_server(path, script):
        async with Engine(routes=[("*", [f"unix:{path}"])]) as engine:
            await engine.submit(message("a@x.test"))
            outcome = await engine.outcomes.receive()

    record = outcome.as_dict()
    assert (record["status"], record["text"]) == ("delivered", outcome.text)
    assert (record["host"], record["address"], record["port"]) == (f"unix:{path}", None, None)
    assert (record["local_address"], record["connection"]) == (None, 1)
    assert record["features"]["fast_open"] == "off"


async def test_a_unix_socket_that_is_not_there_is_deferred(tmp_path):
    path = tmp_path / "smtp"
    async with Engine(routes=[("*", [f"unix:{path}"])]) as engine:
        await engine.submit(message("a@x.test"))
        outcome = await engine.outcomes.receive()

    assert told([outcome]) == ["a@x.test deferred host connect refused -"]
    assert outcome.text == f"connect to unix:{path}: No such file or directory"
    record = outcome.as_dict()
    assert (record["host"], record["address"], record["port"]) == (f"unix:{path}", None, None)


# ---- back-pressure -------------------------------------------------------------------------------


async def test_submit_waits_while_all_seats_are_taken(autojump_clock):
    async with serving() as service, an_engine(service, max_in_flight=3) as engine:
        for _ in range(3):
            await engine.submit(message())
        await wait_all_tasks_blocked()
        with trio.move_on_after(5) as scope:
            await engine.submit(message())
        assert scope.cancelled_caught

        await engine.outcomes.receive()
        await engine.submit(message())

        assert engine.statistics().messages == 4


async def test_a_cancelled_submit_has_taken_nothing(autojump_clock):
    async with serving() as service:
        async with an_engine(service, max_in_flight=1) as engine:
            await engine.submit(message())
            with trio.move_on_after(5):
                await engine.submit(message("never@x.test"))
            await engine.outcomes.receive()
            await engine.submit(message("b@x.test"))

        assert [outcome.recipient for outcome in await outcomes_of(engine)] == ["b@x.test"]
    assert engine.statistics().submitted == 2


async def test_a_message_larger_than_the_house_waits_for_an_empty_one(autojump_clock):
    async with serving() as service, an_engine(service, max_in_flight=2) as engine:
        await engine.submit(message())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.submit, message(*[f"n{n}@x.test" for n in range(5)]))
            await wait_all_tasks_blocked()
            assert engine.statistics().messages == 1
            await engine.outcomes.receive()

        assert engine.statistics().submitted == 6


class BrokenRouter(Router):
    """A router with a bug: it raises for one domain."""

    def known(self, domain, address_family=None):
        if domain == "broken.test":
            raise ZeroDivisionError("a bug")
        return super().known(domain, address_family)


def broken_router() -> Router:
    return BrokenRouter(FakeDns({}), table=RouteTable([("*", ["192.0.2.1"])]))


async def test_who_cannot_be_dispatched_was_not_taken(autojump_clock):
    async with (
        serving() as service,
        an_engine(service, router=broken_router(), max_in_flight=2) as engine,
    ):
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await engine.submit(message("a@broken.test", "b@broken.test"))
        assert engine.statistics() == replace(engine.statistics(), messages=0, submitted=0)

        assert await engine.submit(message("a@x.test", "b@x.test")) == "1"
        assert await engine.drain(60)
        found = [await engine.outcomes.receive() for _ in range(2)]

    assert told(found) == [f"{name}@x.test delivered - final reply 250" for name in "ab"]


async def test_a_message_that_can_be_dispatched_in_part_was_not_taken_at_all(autojump_clock):
    async with serving() as service, an_engine(service, router=broken_router()) as engine:
        with pytest.raises(ZeroDivisionError):
            await engine.submit(message("a@new.test", "b@broken.test"))
        await trio.sleep(1)
        await engine.submit(message("c@new.test"))
        assert await engine.drain(60)

    found = [outcome async for outcome in engine.outcomes]
    assert told(found) == ["c@new.test delivered - final reply 250"]


async def test_who_cannot_be_asked_about_takes_no_seat(autojump_clock):
    async with (
        serving() as service,
        an_engine(service, router=broken_router(), max_in_flight=2) as engine,
    ):
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await engine.verify(["a@broken.test", "b@broken.test"])
        assert await engine.drain(60)


# ---- the end -------------------------------------------------------------------------------------


async def test_leaving_the_block_finishes_what_is_in_flight(autojump_clock):
    async with serving(delay=7) as service:
        async with an_engine(service) as engine:
            for _ in range(5):
                await engine.submit(message())

        assert {outcome.status for outcome in await outcomes_of(engine)} == {Status.DELIVERED}
    assert len(service.accepted) == 5


async def test_drain_says_whether_all_was_done(autojump_clock):
    async with serving(delay=7) as service, an_engine(service) as engine:
        await engine.submit(message())
        started = trio.current_time()

        assert await engine.drain() is True

        assert trio.current_time() - started == pytest.approx(7)
        assert service.open == 0


async def test_drain_cancels_the_rest_when_its_time_is_over(autojump_clock):
    drained = []
    async with serving(stalls) as service:
        started = trio.current_time()
        async with an_engine(service) as engine:
            await engine.submit(message("stall@x.test"))
            await engine.submit(message("a@x.test"))
            drained.append(await engine.drain(timeout=30))

        assert trio.current_time() - started == pytest.approx(30)
    assert drained == [False]
    assert told(await outcomes_of(engine)) == [
        "a@x.test delivered - final reply 250",
        "stall@x.test deferred local rcpt cancelled -",
    ]


async def test_a_draining_engine_takes_nothing(autojump_clock):
    async with serving(delay=7) as service, an_engine(service) as engine:
        await engine.submit(message())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.drain)
            await wait_all_tasks_blocked()
            with pytest.raises(EngineClosedError):
                await engine.submit(message())


async def test_who_waits_to_submit_is_turned_away_when_the_engine_drains(autojump_clock):
    refused = []
    async with serving(delay=7) as service, an_engine(service, max_in_flight=1) as engine:

        async def submit() -> None:
            try:
                await engine.submit(message())
            except EngineClosedError:
                refused.append("refused")

        await engine.submit(message())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            await wait_all_tasks_blocked()
            await engine.drain()

    assert refused == ["refused"]
    assert engine.statistics().submitted == 1


async def test_two_may_drain_at_once(autojump_clock):
    async with serving(delay=7) as service, an_engine(service) as engine:
        await engine.submit(message())
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.drain)
                nursery.start_soon(engine.drain)


async def test_a_closed_engine_takes_nothing(autojump_clock):
    async with serving() as service:
        async with an_engine(service) as engine:
            pass
        with pytest.raises(EngineClosedError):
            await engine.submit(message())


async def test_an_engine_can_cancel_itself(autojump_clock):
    reached = []
    async with serving(stalls) as service:
        async with an_engine(service) as engine:
            await engine.submit(message("stall@x.test"))
            await wait_all_tasks_blocked()
            engine.cancel()
            await trio.lowlevel.checkpoint()
            reached.append("behind a checkpoint")

    assert reached == []
    assert len(await outcomes_of(engine)) == 1


async def test_a_cancelled_engine_takes_nothing(autojump_clock):
    async with serving() as service:
        async with an_engine(service) as engine:
            engine.cancel()
            with pytest.raises(EngineClosedError):
                await engine.submit(message())


async def test_an_engine_that_winds_down_takes_nothing(autojump_clock):
    """Somebody else's task submits while the reply to a content is still waited for."""
    scope = trio.CancelScope()
    async with serving(delay=5) as service, trio.open_nursery() as nursery:
        engine = an_engine(service, zone=ZONE)
        is_running = trio.Event()

        async def run() -> None:
            with scope:
                async with engine:
                    await engine.submit(message("early@z.test"))
                    await trio.sleep(6)
                    await engine.submit(message("long@x.test"))
                    is_running.set()
                    await trio.sleep_forever()

        nursery.start_soon(run)
        await is_running.wait()
        await trio.sleep(1)
        scope.cancel()
        await trio.sleep(1)
        refused = 0
        for domain in ("z.test", "x.test", "y.test"):
            try:
                await engine.submit(message(f"late@{domain}"))
            except EngineClosedError:
                refused += 1

    found = await outcomes_of(engine)
    assert (len(found), refused) == (2, 3)
    assert engine.statistics().in_flight == 0


async def test_mail_submitted_while_the_block_outlives_the_cancellation_is_not_lost(autojump_clock):
    """The block is shielded for a while: its engine still takes mail, and has to answer for it."""
    async with serving() as service:
        async with an_engine(service) as engine:
            await engine.submit(message("a@x.test"))
            await engine.outcomes.receive()
            with trio.CancelScope(shield=True, relative_deadline=60):
                engine._nursery.cancel_scope.cancel()
                await trio.sleep(5)  # the site's pool has ended
                await engine.submit(message("b@x.test"))
                await trio.sleep(5)

    assert told(await outcomes_of(engine)) == ["b@x.test deferred local connect cancelled -"]


# ---- many at once --------------------------------------------------------------------------------


async def test_a_site_that_stalls_delays_no_other(autojump_clock):
    def answer(host: str, _: str) -> str:
        return "stall" if host == "192.0.2.200" else "250 ok"

    async with serving(answer, delay=0.1) as service:
        async with an_engine(service, zone={}) as engine:
            started = trio.current_time()
            for number in range(50):
                await engine.submit(message("s@[192.0.2.200]"))
                await engine.submit(message(f"a@[192.0.2.{number + 1}]"))
            found = [await engine.outcomes.receive() for _ in range(50)]

            assert {outcome.status for outcome in found} == {Status.DELIVERED}
            assert trio.current_time() - started < 1
            assert engine.statistics().in_flight == 50
            engine.cancel()

    assert len(await outcomes_of(engine)) == 50


async def test_a_full_house_of_stalled_mail_is_let_in_again(autojump_clock):
    """Seats are bounded: who fills them with a stalled site waits, and time-outs free them."""
    async with serving(stalls) as service:
        quick = settings(command_timeout=20, max_connections=2)
        async with an_engine(service, settings=quick, max_in_flight=4) as engine:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read() -> None:
                    for _ in range(10):
                        outcome = await engine.outcomes.receive()
                        assert outcome.cause is Cause.TIMEOUT

                for _ in range(10):
                    await engine.submit(message("stall@x.test"))

    assert engine.statistics().deferred == 10


FAULTS = [
    "reject",
    "defer",
    "full",
    "toomany",
    "421",
    "drop",
    "garbage",
    "data-reject",
    "data-defer",
    "close-in-data",
    "close-after-dot",
    "slow-0.02",
    "greylist",
]
#: What the worst of it can come to; where recipients share a message, one speaks for all.
POSSIBLE = {
    "reject": {"failed", "deferred", "unknown"},
    "data-reject": {"failed", "deferred", "unknown"},
    "close-after-dot": {"unknown", "deferred", "failed"},
}


def throw_dice(rng: Random, number: int) -> tuple[list[str], str]:
    """Choose recipients and reverse-path of a message."""
    names = rng.choices(["fine", *FAULTS], [40, *[1] * len(FAULTS)], k=rng.randint(1, 4))
    names += ["stall"] if number % 70 == 69 else []
    senders = [f"{name}@me.test" for name in ("s", "reject-mail", "drop-mail", "421-mail")]
    (sender,) = rng.choices(senders, [97, 1, 1, 1])
    return [f"{name}+{number}.{n}@x.test" for n, name in enumerate(names)], sender


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_everybody_has_one_outcome_whatever_servers_do(seed):
    """Over real sockets, against a server with every fault it knows."""
    rng = Random(seed)
    # Not too quick: a busy machine may keep a server that does its best from answering for long.
    quick = settings(command_timeout=1.5, final_timeout=1.5, max_connections=8)
    found: list[Outcome] = []
    submitted: dict[str, list[str]] = {}
    senders: dict[str, str] = {}
    async with open_sink() as sink:
        routes = [("*", [f"127.0.0.1:{sink.port}"])]
        async with trio.open_nursery() as nursery:
            engine = Engine(quick, routes=routes, max_in_flight=100)

            async def read() -> None:
                found.extend([outcome async for outcome in engine.outcomes])

            nursery.start_soon(read)
            async with engine:
                for number in range(200):
                    to, sender = throw_dice(rng, number)
                    submitted[str(number)] = to
                    senders[str(number)] = sender
                    await engine.submit(message(*to, id=str(number), sender=sender))
                assert await engine.drain(timeout=20)
        statistics = sink.statistics()

    asked = Counter((number, to) for number, all_to in submitted.items() for to in all_to)
    assert Counter((outcome.message, outcome.recipient) for outcome in found) == asked
    numbers = engine.statistics()
    told_of = Counter(outcome.status for outcome in found)
    assert numbers.in_flight == numbers.connections_open == 0
    assert (numbers.delivered, numbers.deferred, numbers.failed, numbers.unknown) == tuple(
        told_of[status]
        for status in (Status.DELIVERED, Status.DEFERRED, Status.FAILED, Status.UNKNOWN)
    )
    in_doubt = statistics.recipients - told_of[Status.DELIVERED]
    assert 0 <= in_doubt <= told_of[Status.UNKNOWN]
    for number, recipients in submitted.items():
        mine = [outcome for outcome in found if outcome.message == number]
        if all(to.startswith(("fine", "slow")) for to in recipients):
            is_sender_fine = senders[number] == "s@me.test"
            assert {each.status for each in mine} == {Status.DELIVERED} or not is_sender_fine
        for each in mine:
            fault = each.recipient.partition("+")[0]
            assert str(each.status) in POSSIBLE.get(fault, set(Status))
            assert Cause.INTERNAL is not each.cause


async def test_over_real_sockets_messages_arrive_as_they_were():
    async with open_sink(keep=True) as sink:
        routes = [("*", [f"127.0.0.1:{sink.port}"])]
        async with Engine(settings(max_connections=3), routes=routes) as engine:
            for number in range(60):
                body = b"Subject: %d\r\n\r\n.dot\r\n" % number
                await engine.submit(message(f"n{number}@x.test", content=body))
        statistics = sink.statistics()

    assert {outcome.status for outcome in await outcomes_of(engine)} == {Status.DELIVERED}
    assert {(each.recipients, each.content) for each in sink.messages} == {
        ((f"n{number}@x.test",), b"Subject: %d\r\n\r\n.dot\r\n" % number) for number in range(60)
    }
    assert statistics.connections <= 3
    assert statistics.connections == engine.statistics().connections_opened
    assert engine.statistics().octets == statistics.octets


async def test_a_watcher_that_fails_costs_no_mail(autojump_clock, caplog):
    def fail(_: object) -> None:
        raise ZeroDivisionError("oh no")

    async with serving() as service, an_engine(service) as engine:
        engine.events.watch(fail)
        await engine.submit(message())

        assert (await engine.outcomes.receive()).status is Status.DELIVERED
