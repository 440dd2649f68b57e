"""QUIT behind the last content, and what it never changes."""

from __future__ import annotations

import pytest

from engine.engine import Engine
from engine.queue.hints import MemoryHints
from tests.delivery.helpers import (
    CONTENT,
    MX1,
    NEXT,
    StreamedContent,
    deliver,
    delivered,
    message,
    scripted,
    settings,
    static_router,
    told,
)

A, B = "a@x.test", "b@x.test"
ONE = {"max_messages_per_connection": 1}
GREETED = "S: 220 mx.test ESMTP Exim 4.96\nC: EHLO me.test\nS: 250-mx.test\nS: 250 PIPELINING\n"
CHUNKING = GREETED.replace("250 PIPE", "250-CHUNKING\nS: 250 PIPE")
ENVELOPE = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\n"
OK = "S: 250 ok\nS: 250 ok\n"
DATA = ENVELOPE + "C: DATA\n" + OK + "S: 354 go on\nC= content\n"
BDAT = ENVELOPE + f"C: BDAT {len(CONTENT)} LAST\nC# {len(CONTENT)}\n"
FINAL = "S: 250 queued\nS: 221 bye\n! expect-eof\n"


async def test_quit_goes_with_the_last_content_a_connection_may_carry(drip, autojump_clock):
    script = GREETED + DATA + "C: QUIT\n" + FINAL
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=ONE)

    assert told([outcome]) == delivered(A)
    (stream,) = hosts.streams
    assert stream.writes[-1].endswith(b"\r\n.\r\nQUIT\r\n")


async def test_quit_goes_with_the_last_chunk(drip, autojump_clock):
    script = CHUNKING + BDAT + "C: QUIT\n" + OK + FINAL
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=ONE)

    assert told([outcome]) == delivered(A)
    (stream,) = hosts.streams
    assert stream.writes[-1].endswith(CONTENT + b"QUIT\r\n")


async def test_quit_goes_with_the_last_piece_of_a_streamed_content(drip, autojump_clock):
    body = StreamedContent(CONTENT * 9, piece=50)
    script = GREETED + DATA + "C: QUIT\n" + FINAL
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A, body=body), options=ONE)

    assert told([outcome]) == delivered(A)


async def test_our_side_is_closed_behind_it(autojump_clock):
    """A stock Exim holds its replies back until it sees the end."""
    seen = []
    script = GREETED + DATA + "C: QUIT\n" + "! sleep 1\n" + FINAL
    async with scripted(script) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(**ONE), router=router, connector=hosts) as engine:
            await engine.submit(message(A))
            await engine.outcomes.receive()
            seen.append(hosts.streams[0].outgoing.is_ended)

    assert seen == [True]


async def test_quit_goes_with_the_last_content_of_a_drain(autojump_clock):
    script = GREETED + DATA + "C: QUIT\n" + FINAL
    async with scripted(script) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(), router=router, connector=hosts) as engine:
            await engine.submit(message(A))
        outcomes = [outcome async for outcome in engine.outcomes]

    assert told(outcomes) == delivered(A)


async def test_while_a_connection_may_be_of_use_quit_waits(autojump_clock):
    script = GREETED + DATA + "S: 250 queued\nC: QUIT\nS: 221 bye\n"
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A))  # it drains when the outcome is there

    assert told([outcome]) == delivered(A)


@pytest.mark.parametrize(
    ("greeting", "remembered"), [("220 mx.test ESMTP Haraka", None), ("220 mx.test Exim", b"no")]
)
@pytest.mark.parametrize("content", [CONTENT, StreamedContent(CONTENT)], ids=["held", "streamed"])
async def test_it_waits_where_the_server_is_not_known_to_take_it(
    greeting, remembered, content, autojump_clock
):
    """It may take our half-closed connection for a lost one, and keep its reply (Haraka 3.3)."""
    hints = MemoryHints()
    if remembered is not None:
        hints.put("stream", "192.0.2.1:25", remembered, seconds=60)
    script = GREETED.replace("220 mx.test ESMTP Exim 4.96", greeting) + DATA
    script += "S: 250 queued\nC: QUIT\nS: 221 bye\n"
    which = {"content" if isinstance(content, bytes) else "body": content}
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A, **which), options=ONE, hints=hints)

    assert told([outcome]) == delivered(A)
    (stream,) = hosts.streams
    assert stream.writes[-1] == b"QUIT\r\n"


async def test_where_the_settings_insist_any_server_is_told_at_once(autojump_clock):
    script = GREETED.replace("220 mx.test ESMTP Exim 4.96", "220 mx.test ESMTP")
    async with scripted(script + DATA + "C: QUIT\n" + FINAL) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={**ONE, "quit_pipelining": True})

    assert told([outcome]) == delivered(A)


@pytest.mark.parametrize(
    "options", [{"quit_pipelining": False}, {"pipelining": False}], ids=lambda it: next(iter(it))
)
async def test_it_may_be_switched_off(options, autojump_clock):
    dialogue = (
        DATA
        if options.get("pipelining", True)
        else (
            "C: MAIL FROM:<s@me.test>\nS: 250 ok\nC: RCPT TO:<a@x.test>\nS: 250 ok\n"
            "C: DATA\nS: 354 go on\nC= content\n"
        )
    )
    script = GREETED + dialogue + "S: 250 queued\nC: QUIT\nS: 221 bye\n"
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={**ONE, **options})

    assert told([outcome]) == delivered(A)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("S: 554 5.6.0 spam", "failed message final reply 554"),
        ("S: 451 later", "deferred message final reply 451"),
        ("S: 421 down", "deferred host final reply 421"),
        ("! close", "unknown message final closed -"),
    ],
)
async def test_what_became_of_the_content_counts_and_quit_is_not_said_again(
    reply, expected, autojump_clock
):
    script = GREETED + DATA + f"C: QUIT\n{reply}\n"
    script += "" if reply == "! close" else "! expect-eof\n"
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=ONE)

    assert told([outcome]) == [f"{A} {expected}"]


async def test_a_server_that_does_not_answer_quit_is_waited_for_only_so_long(autojump_clock):
    script = GREETED + DATA + "C: QUIT\nS: 250 queued\n! stall\n"
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={**ONE, "quit_timeout": 3})

    assert told([outcome]) == delivered(A)


async def test_who_found_no_room_is_asked_over_another_connection(autojump_clock):
    """With CHUNKING that is known only when QUIT was said."""
    first = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: RCPT TO:<b@x.test>\n"
    first += f"C: BDAT {len(CONTENT)} LAST\nC# {len(CONTENT)}\nC: QUIT\n"
    first += "S: 250 ok\nS: 250 ok\nS: 452 too many\n" + FINAL
    second = CHUNKING + BDAT.replace(A, B) + "C: QUIT\n" + OK + FINAL
    async with scripted(CHUNKING + first + NEXT + second) as hosts:
        outcomes = await deliver(hosts, message(A, B), options=ONE)

    assert told(outcomes) == delivered(A, B)


async def test_a_kernel_that_takes_octets_slowly_still_gets_the_end(autojump_clock):
    script = GREETED + DATA + "C: QUIT\n" + FINAL
    async with scripted(script, capacity=10) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=ONE)

    assert told([outcome]) == delivered(A)
    assert hosts.streams[0].outgoing.is_ended
