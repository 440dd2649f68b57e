"""An engine that is cancelled leaves no task, no descriptor and no lost outcome, whatever it waits for."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine import content as contents
from engine.engine import Engine
from engine.net.connector import Connector
from engine.outcome import Cause, Outcome, Scope, Status
from engine.testing.server import serve_script
from tests.delivery.helpers import (
    StreamedContent,
    greeted,
    message,
    scripted,
    settings,
    static_router,
    transaction,
    until,
)

A, B = "a@x.test", "b@x.test"
CONTENT = b"x" * 70 + b"\r\n"
HANGING = (Status.DEFERRED, Cause.CANCELLED, Scope.LOCAL)
DELIVERED = (Status.DELIVERED, Cause.REPLY, None)

MAIL = greeted() + "C: MAIL FROM:<s@me.test>\n"
RCPT = MAIL + "S: 250 ok\n" + f"C: RCPT TO:<{A}>\n"
DATA = RCPT + "S: 250 ok\nC: DATA\n"
BODY = DATA + "S: 354 go on\n"
DOT = BODY + "C= content\n"
REFUSED = greeted() + transaction((A, "550 5.1.1 who"), pipelined=False)


@dataclass(frozen=True)
class Stage:
    """Where a peer hangs.

    Attributes:
        name: Of the stage.
        script: What the server says before; `None` for one that answers no SYN.
        said: What the client has said last when it hangs.
        expected: Status, cause and scope of each outcome.
        recipients: A message to each is submitted.
        octets: Size of the content.
    """

    name: str
    script: str | None
    said: bytes = b""
    expected: tuple[tuple[Status, Cause, Scope | None], ...] = (HANGING,)
    recipients: tuple[str, ...] = (A,)
    octets: int = 72


STAGES = [
    Stage("connect", None),
    Stage("greeting", "! stall"),
    Stage("hello", "S: 220 hi\nC: EHLO me.test\n! stall", b"EHLO me.test\r\n"),
    Stage("mail", MAIL + "! stall", b"MAIL FROM:<s@me.test>\r\n"),
    Stage("rcpt", RCPT + "! stall", b"RCPT TO:<a@x.test>\r\n"),
    Stage("data", DATA + "! stall", b"DATA\r\n"),
    Stage("content", BODY + "C# 1\n! stall", octets=16_000_000),
    Stage(
        "rset",
        REFUSED + "C: RSET\n! stall",
        b"RSET\r\n",
        ((Status.FAILED, Cause.REPLY, Scope.RECIPIENT), HANGING),
        (A, B),
    ),
    Stage("idle", DOT + "S: 250 ok", b"\r\n.\r\n", (DELIVERED,)),
    Stage("quit", DOT + "S: 250 ok\nC: QUIT\n! stall", b"QUIT\r\n", (DELIVERED,)),
    Stage(
        "final",
        DOT + "! stall",
        b"\r\n.\r\n",
        ((Status.UNKNOWN, Cause.TIMEOUT, Scope.MESSAGE),),
    ),
    Stage("final, answered in time", DOT + "! sleep 0.1\nS: 250 ok", b"\r\n.\r\n", (DELIVERED,)),
]


class Watched(Connector):
    """A connector that knows what was said over its connections."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.said = bytearray()

    async def connect(self, candidate, options):
        self.asked += 1
        connection = await super().connect(candidate, options)
        return replace(connection, stream=WatchedStream(connection.stream, self.said))


class WatchedStream:
    """A byte stream that notes what leaves."""

    def __init__(self, stream, said: bytearray) -> None:
        self._stream, self._said = stream, said
        self.receive_some, self.receive_nowait = stream.receive_some, stream.receive_nowait
        self.close = stream.close

    def send_nowait(self, data) -> int:
        sent = self._stream.send_nowait(data)
        self._said += bytes(data[:sent])
        return sent

    async def send_all(self, data) -> None:
        await self._stream.send_all(data)
        self._said += data


@asynccontextmanager
async def a_server(script: str | None):
    """Serve a script, or answer no SYN; yields the port."""
    if script is not None:
        async with serve_script(script) as server:
            yield server.port
        return
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def reach(stage: Stage, engine: Engine, connector: Watched) -> None:
    """Wait until the engine hangs where it should."""
    await until(lambda: connector.asked > 0)
    if stage.octets > 100_000:
        await until(lambda: len(connector.said) > 100_000)
    else:
        await until(lambda: connector.said.endswith(stage.said))
    settled = sum(expected is not HANGING for expected in stage.expected)
    if stage.name in {"rset", "idle", "quit"}:
        await until(lambda: len(engine.outcomes) == settled)
    await wait_all_tasks_blocked(0.02)


@pytest.mark.parametrize("who", ["from outside", "by itself"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
async def test_a_cancelled_engine_leaves_nothing_behind(stage: Stage, who: str):
    before = descriptors(), tasks()
    connector, scope, taken = Watched(), trio.CancelScope(), 0.0
    grace = 0.3 if stage.name == "final" else 3.0
    body = CONTENT * (stage.octets // 72)
    options = settings(
        max_messages_per_connection=1 if stage.name == "quit" else 0, quit_timeout=60
    )
    async with a_server(stage.script) as port:
        router = await static_router([f"127.0.0.1:{port}"], "x.test")
        engine = Engine(options, router=router, connector=connector, grace=grace)

        async def run() -> None:
            with scope:
                async with engine:
                    for recipient in stage.recipients:
                        await engine.submit(message(recipient, content=body))
                    await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await reach(stage, engine, connector)
            started = trio.current_time()
            (scope if who == "from outside" else engine).cancel()
        taken = trio.current_time() - started
        statistics = engine.statistics()
        outcomes = [outcome async for outcome in engine.outcomes]

    assert tuple((each.status, each.cause, each.scope) for each in outcomes) == stage.expected
    assert statistics.in_flight == statistics.connections_open == 0
    assert statistics.sites == ()
    assert (descriptors(), tasks()) == before
    # Nothing is waited for but the reply to a content that has left, and that for the grace only.
    assert taken >= 0.3 if stage.name == "final" else taken < 2


async def outcome_when_cancelled(hosts, body, moments: int) -> Outcome | None:
    """Cancel an engine after a number of moments of Trio; return the one outcome."""
    router = await static_router(["192.0.2.1"], "x.test")
    engine = Engine(settings(), router=router, connector=hosts, grace=50)
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with scope:
                async with engine:
                    await engine.submit(message(A, body=body))
                    await trio.sleep_forever()

        nursery.start_soon(run)
        for _ in range(moments):
            await trio.lowlevel.checkpoint()
        scope.cancel()
    (outcome,) = [outcome async for outcome in engine.outcomes] or [None]
    assert engine.statistics().in_flight == engine.statistics().connections_open == 0
    return outcome


@pytest.mark.parametrize(
    ("capacity", "most"),
    [
        pytest.param(1_000_000, 40, id="roomy"),
        pytest.param(100, 120, id="narrow"),
        pytest.param(68, 120, id="brimful"),
    ],
)
@pytest.mark.parametrize(
    "body",
    [contents.from_octets(CONTENT * 3), StreamedContent(CONTENT * 3, piece=50)],
    ids=["held", "streamed"],
)
async def test_whenever_it_is_cancelled_the_outcome_is_true(
    body, capacity, most, pipelined, autojump_clock
):
    """Deferred only if the server never had the whole content; delivered only if it said so."""
    said = set()
    for moments in [*range(most)] * (120 // most):
        dialogue = greeted(*(["PIPELINING"] if pipelined else []))
        dialogue += transaction((A, "250 ok"), pipelined=pipelined)
        steps = dialogue.replace("C= the content, or a lone dot\n", "C= content\n! sleep 10\n")
        async with scripted(steps, capacity=capacity, is_watched=False) as hosts:
            outcome = await outcome_when_cancelled(hosts, body, moments)
            await trio.sleep(20)
        if outcome is None:
            assert moments == 0  # before anything was submitted
            continue
        said.add(outcome.status)
        left = b"".join(octets for stream in hosts.streams for octets in stream.writes)
        assert (outcome.status is Status.DELIVERED) is left.endswith(b"\r\n.\r\n"), moments

    assert said == {Status.DEFERRED, Status.DELIVERED}


@pytest.mark.parametrize("grace", [0, 3])
async def test_the_shield_of_a_content_lasts_for_the_grace_only(grace, autojump_clock):
    async with scripted(DOT + "! stall") as hosts:
        router = await static_router(["192.0.2.1"], "x.test")
        async with Engine(settings(), router=router, connector=hosts, grace=grace) as engine:
            await engine.submit(message(A))
            await wait_all_tasks_blocked()
            started = trio.current_time()
            engine.cancel()

        assert trio.current_time() - started == pytest.approx(grace)
        (outcome,) = [outcome async for outcome in engine.outcomes]
    assert (outcome.status, outcome.cause) == (Status.UNKNOWN, Cause.TIMEOUT)


async def test_a_refusal_within_the_grace_is_told(autojump_clock):
    async with scripted(DOT + "! sleep 2\nS: 554 5.6.0 spam") as hosts:
        router = await static_router(["192.0.2.1"], "x.test")
        async with Engine(settings(), router=router, connector=hosts, grace=3) as engine:
            await engine.submit(message(A))
            await wait_all_tasks_blocked()
            engine.cancel()

        (outcome,) = [outcome async for outcome in engine.outcomes]
    assert outcome.status is Status.FAILED


async def test_a_temporary_refusal_within_the_grace_asks_no_other_host(autojump_clock):
    async with scripted(DOT + "! sleep 2\nS: 451 4.3.0 later") as hosts:
        router = await static_router(["192.0.2.1", "192.0.2.2"], "x.test")
        async with Engine(settings(), router=router, connector=hosts, grace=3) as engine:
            await engine.submit(message(A))
            await wait_all_tasks_blocked()
            engine.cancel()

        (outcome,) = [outcome async for outcome in engine.outcomes]
        assert hosts.made == ["192.0.2.1"]
    assert (outcome.status, outcome.cause) == (Status.DEFERRED, Cause.CANCELLED)
    assert [(str(each.stage), str(each.cause)) for each in outcome.attempts] == [("final", "reply")]


async def test_other_recipients_of_a_content_that_left_are_deferred(autojump_clock):
    """The rest of a message whose first transaction is in flight is not begun any more."""
    async with scripted(DOT + "! sleep 2\nS: 250 ok\n! close") as hosts:
        router = await static_router(["192.0.2.1"], "x.test")
        options = settings(max_recipients_per_transaction=1)
        async with Engine(options, router=router, connector=hosts, grace=3) as engine:
            await engine.submit(message(A, B))
            await wait_all_tasks_blocked()
            engine.cancel()

        found = {each.recipient: each.status async for each in engine.outcomes}
    assert found == {A: Status.DELIVERED, B: Status.DEFERRED}


async def test_a_cancelled_stream_is_heard_out_and_nothing_more_is_begun(caplog, autojump_clock):
    """The reply to one content would make room for another message."""
    flight = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{}>\nC: BDAT 72 LAST\nC# 72\n"
    taken = "S: 250 ok\nS: 250 ok\nS: 250 queued\n"
    script = greeted("PIPELINING", "CHUNKING") + flight.format(A) + taken
    script += flight.format(B) + flight.format("c@x.test")
    script += f"! sleep 1\n{taken}! sleep 1\n{taken}! expect-eof"
    recipients = [A, B, "c@x.test", "d@x.test"]
    async with scripted(script) as hosts:
        router = await static_router(["192.0.2.1"], "x.test")
        options = settings(stream_depth=2, max_connections=1)
        async with Engine(options, router=router, connector=hosts, grace=3) as engine:
            for recipient in recipients:
                await engine.submit(message(recipient, content=CONTENT))
            await wait_all_tasks_blocked()
            engine.cancel()

        found = {each.recipient: (each.status, each.cause) async for each in engine.outcomes}
    delivered = (Status.DELIVERED, Cause.REPLY)
    cancelled = (Status.DEFERRED, Cause.CANCELLED)
    assert [found[recipient] for recipient in recipients] == [delivered] * 3 + [cancelled]
    assert not caplog.records
