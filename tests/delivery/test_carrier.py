"""What only shows where several transactions share a connection, or a content goes by BDAT."""

from __future__ import annotations

import pytest

from engine.content import from_binary
from engine.delivery.host_memory import HostMemory
from engine.outcome import Peer, Status
from engine.queue.hints import MemoryHints
from engine.smtp.mime import to_seven_bit
from tests.delivery.helpers import (
    CONTENT,
    MX1,
    MX2,
    NEXT,
    StreamedContent,
    an_engine,
    deliver,
    delivered,
    greeted,
    message,
    opening,
    outcomes_of,
    places,
    scripted,
    settings,
    static_router,
    told,
    transaction,
)

A, B, C, D = "a@x.test", "b@x.test", "c@x.test", "d@x.test"
OPEN = greeted("PIPELINING", "CHUNKING")
OK = "S: 250 2.1.0 ok\n"


def chunk(to: str, *, content: bytes = CONTENT, sender: str = "s@me.test", reset: str = "") -> str:
    """What a client says that sends one message in one flight."""
    return (
        f"{reset}C: MAIL FROM:<{sender}>\nC: RCPT TO:<{to}>\n"
        f"C: BDAT {len(content)} LAST\nC# {len(content)}\n"
    )


def replies(*codes: str) -> str:
    return "".join(f"S: {code}\n" for code in codes)


def behind(to: str, **more: str) -> str:
    """The same behind a message whose recipients were not answered yet."""
    return chunk(to, reset="C: RSET\n", **more)


GOOD = replies("250 2.1.0 sender", "250 2.1.5 recipient", "250 2.0.0 queued")
FLUSHED = replies("250 2.0.0 flushed")


# ---- CHUNKING ------------------------------------------------------------------------------------


async def test_a_small_content_goes_in_one_flight_with_its_envelope(drip, autojump_clock):
    async with scripted(OPEN + chunk(A) + GOOD, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == delivered(A)
    assert outcome.features.chunking
    assert outcome.features.pipelining


async def test_a_larger_content_waits_for_the_replies_to_its_envelope(drip, autojump_clock):
    """RFC 3030 §2."""
    body = b"x" * 98 + b"\r\n"
    script = (
        OPEN
        + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}>\nC: RCPT TO:<{B}>\n"
        + replies("250 ok", "250 ok", "550 5.1.1 who")
        + "C: BDAT 100 LAST\nC# 100\nS: 250 queued\n"
    )
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(
            hosts, message(A, B, content=body), options={"one_flight_octets": 99}
        )

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 550",
    ]


async def test_a_larger_content_is_not_sent_when_nobody_is_accepted(autojump_clock):
    body = b"x" * 98 + b"\r\n"
    script = (
        OPEN
        + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}>\n"
        + replies("250 ok", "550 5.1.1 who")
        + "C: QUIT\nS: 221 bye\n"
    )
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A, content=body), options={"one_flight_octets": 0})

    assert told(outcomes) == [f"{A} failed recipient rcpt reply 550"]


async def test_without_pipelining_a_chunk_goes_to_those_accepted(drip, autojump_clock):
    script = (
        greeted("CHUNKING")
        + f"C: MAIL FROM:<s@me.test>\nS: 250 ok\nC: RCPT TO:<{A}>\nS: 250 ok\n"
        + f"C: BDAT {len(CONTENT)} LAST\nC# {len(CONTENT)}\nS: 250 queued\n"
    )
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == delivered(A)
    assert outcome.features.chunking
    assert not outcome.features.pipelining


async def test_dots_go_as_they_are(autojump_clock):
    body = b".\r\n..x\r\n.\r\n"
    async with scripted(OPEN + chunk(A, content=body) + GOOD) as hosts:
        await deliver(hosts, message(A, content=body))
        written = b"".join(hosts.streams[0].writes)

    assert written.endswith(b"BDAT 11 LAST\r\n" + body + b"QUIT\r\n") or body in written


async def test_a_content_that_is_read_while_it_is_sent_is_one_chunk(autojump_clock):
    body = b"0123456789\r\n" * 20_000
    script = (
        OPEN
        + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}>\n"
        + replies("250 ok", "250 ok")
        + f"C: BDAT {len(body)} LAST\nC# {len(body)}\nS: 250 queued\n"
    )
    async with scripted(script, capacity=100_000) as hosts:
        (outcome,) = await deliver(hosts, message(A, body=StreamedContent(body)))

    assert told([outcome]) == delivered(A)


async def test_a_chunk_is_not_finished_before_all_of_the_content_was_read(autojump_clock):
    """A file that changed, say, shows that at its end: the host must not have it by then."""
    body = b"0123456789\r\n" * 20
    script = OPEN + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}>\n" + replies("250 ok", "250 ok")
    script += f"C: BDAT {len(body)} LAST\nC# 200\n! expect-eof"
    failing = StreamedContent(body, OSError("changed"), piece=100)
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A, body=failing))

    assert told([outcome]) == [f"{A} deferred local content io -"]


async def test_chunking_can_be_switched_off(autojump_clock):
    script = (
        OPEN
        + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}>\nC: DATA\n"
        + replies("250 ok", "250 ok", "354 go on")
        + "C= content\nS: 250 queued\n"
    )
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options={"chunking": False})

    assert told([outcome]) == delivered(A)
    assert not outcome.features.chunking


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(
            replies("550 5.1.8 not you", "503 no", "503 no"),
            f"{A} failed message mail reply 550",
            id="mail",
        ),
        pytest.param(
            replies("451 4.7.1 later", "503 no", "503 no"),
            f"{A} deferred message mail reply 451",
            id="mail for now",
        ),
        pytest.param(
            replies("250 ok", "550 5.1.1 who", "503 nobody"),
            f"{A} failed recipient rcpt reply 550",
            id="rcpt",
        ),
        pytest.param(
            replies("250 ok", "550 5.1.1 who", "250 thanks for nothing"),
            f"{A} failed recipient rcpt reply 550",
            id="rcpt, and a chunk accepted for nobody",
        ),
        pytest.param(
            replies("250 ok", "250 ok", "554 5.6.0 spam"),
            f"{A} failed message final reply 554",
            id="content",
        ),
        pytest.param(
            replies("250 ok", "250 ok", "452 4.3.1 full"),
            f"{A} deferred message final reply 452",
            id="content for now",
        ),
        pytest.param(
            replies("421 4.3.2 going"), f"{A} deferred host mail reply 421", id="421 to mail"
        ),
        pytest.param(
            replies("250 ok", "250 ok", "421 4.3.2 going"),
            f"{A} deferred host final reply 421",
            id="421 to the content",
        ),
        # The content has left: whatever reply is missing first, it may have been accepted.
        pytest.param("! close\n", f"{A} unknown message final closed -", id="closed"),
        pytest.param(
            "S: 250 ok\n! close\n", f"{A} unknown message final closed -", id="closed after mail"
        ),
        pytest.param(
            replies("250 ok", "250 ok") + "! close\n",
            f"{A} unknown message final closed -",
            id="closed after rcpt",
        ),
        pytest.param("! stall\n", f"{A} unknown message final timeout -", id="silent"),
        pytest.param(
            replies("250 ok", "250 ok", "what"),
            f"{A} unknown message final malformed-reply -",
            id="garbage",
        ),
        pytest.param(
            replies("250 ok", "550 5.1.1 who") + "! close\n",
            f"{A} failed recipient rcpt reply 550",
            id="closed after a refusal",
        ),
    ],
)
async def test_every_end_of_a_flight_has_its_verdict(said, expected, drip, autojump_clock):
    quits = "" if "!" in said or "421" in said or "what" in said else "C: QUIT\nS: 221 bye\n"
    async with scripted(OPEN + chunk(A) + said + quits, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A))

    assert told(outcomes) == [expected]


async def test_a_refused_chunk_is_named_like_a_refused_content(autojump_clock):
    script = OPEN + chunk(A) + replies("250 ok", "250 ok", "554 5.6.0 spam")
    async with scripted(script + "C: QUIT\nS: 221 bye\n") as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert outcome.text == (
        "SMTP error from 192.0.2.1 [192.0.2.1]:25 after pipelined end of data: 554 5.6.0 spam"
    )


@pytest.mark.parametrize("code", [500, 502, 503])
async def test_a_host_that_mishandles_chunks_gets_data_and_is_remembered(code, autojump_clock):
    plain = (
        "C: MAIL FROM:<s@me.test>\nS: 250 ok\nC: RCPT TO:<{to}>\nS: 250 ok\n"
        "C: DATA\nS: 354 go on\nC= content\nS: 250 queued\n"
    )
    piped = (
        "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{to}>\nC: DATA\n"
        + replies("250 ok", "250 ok", "354 go on")
        + "C= content\nS: 250 queued\n"
    )
    script = (
        OPEN
        + chunk(A)
        + replies("250 ok", "250 ok", f"{code} 5.5.1 what")
        + "C: QUIT\nS: 221 bye\n"
        + NEXT
        + OPEN
        + plain.format(to=A)
        + "C: QUIT\nS: 221 bye\n"
        + NEXT
        + OPEN
        + piped.format(to=B)
    )
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts, message(A), message(B), options={"max_messages_per_connection": 1}
        )

    assert told(outcomes) == delivered(A, B)
    assert [outcome.attempts for outcome in outcomes] == [(), ()]


async def test_after_a_refused_chunk_the_transaction_may_still_be_open(autojump_clock):
    """Who does not know BDAT holds it for open, and would refuse the next MAIL as nested."""
    start = greeted("CHUNKING")
    envelope = f"C: MAIL FROM:<s@me.test>\n{OK}C: RCPT TO:<{{}}>\n{OK}"
    last = f"C: BDAT {len(CONTENT)} LAST\nC# {len(CONTENT)}\n"
    script = start + envelope.format(A) + last + "S: 502 5.5.1 what\nC: RSET\n" + FLUSHED
    script += envelope.format(B) + last + "S: 250 queued\nC: QUIT\nS: 221 bye\n" + NEXT
    script += start + envelope.format(A) + "C: DATA\nS: 354 go on\nC= content\nS: 250 queued\n"
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), **TOGETHER)

    assert sorted(told(outcomes)) == delivered(A, B)


async def test_where_the_second_try_in_lockstep_fails_the_next_host_is_asked(autojump_clock):
    script = OPEN + chunk(A) + replies("250 ok", "250 ok", "503 5.5.1 what")
    script += "C: QUIT\nS: 221 bye\n" + NEXT + "! close\n"
    async with scripted({MX1: script, MX2: OPEN + chunk(A) + GOOD}) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=(MX1, MX2))

    assert told([outcome]) == delivered(A)
    assert [(tried.stage, tried.cause) for tried in outcome.attempts] == [("greeting", "closed")]


async def test_a_refused_mail_says_nothing_about_chunks(autojump_clock):
    """Some servers say 501 to a sender that they do not like."""
    lockstep = "C: MAIL FROM:<s@me.test>\nS: 501 5.1.7 bad sender\n"
    script = OPEN + chunk(A) + replies("501 5.1.7 bad sender", "503 no", "503 no")
    script += "C: QUIT\nS: 221 bye\n" + NEXT + OPEN + lockstep
    hints = MemoryHints()
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A), hints=hints)

    assert told(outcomes) == [f"{A} failed message mail reply 501"]
    assert not HostMemory(hints, Peer("192.0.2.1", "192.0.2.1", 25)).is_bad_at_chunking


# ---- several in flight ---------------------------------------------------------------------------

TOGETHER = {"together": True, "options": {"stream_depth": 3, "max_connections": 1}}


async def test_after_the_first_chunks_are_in_flight_together(drip, autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + chunk(D) + GOOD
    script += GOOD * 2
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C, D)), **TOGETHER)
        writes = len(hosts.streams[0].writes)

    assert told(outcomes) == delivered(A, B, C, D)
    assert places(outcomes) == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert writes <= 4  # hello, the first message, all the others, QUIT


async def test_by_data_the_next_envelope_rides_behind_the_dot(drip, autojump_clock):
    envelope = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{}>\nC: DATA\n"
    taken = replies("250 ok", "250 ok", "354 go on")
    script = (
        opening(True)
        + envelope.format(A)
        + taken
        + "C= content\nS: 250 queued\n"
        + envelope.format(B)
        + taken
        + "C= content\n"
        + envelope.format(C)
        + "S: 250 queued\n"
        + taken
        + "C= content\nS: 250 queued\n"
    )
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C)), **TOGETHER)
        contents = hosts.contents

    assert told(outcomes) == delivered(A, B, C)
    assert contents == [CONTENT] * 3


async def test_lockstep_is_lockstep(autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + GOOD + chunk(C) + GOOD
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts,
            *map(message, (A, B, C)),
            together=True,
            options={"stream_depth": 1, "max_connections": 1},
        )
        writes = len(hosts.streams[0].writes)

    assert told(outcomes) == delivered(A, B, C)
    assert writes == 5


async def test_a_host_that_is_known_not_to_take_several_gets_one_at_a_time(autojump_clock):
    """Whatever the number is, it would refuse them again."""
    hints = MemoryHints()
    HostMemory(hints, Peer("192.0.2.1", "192.0.2.1", 25)).note_stream(is_taken=False)
    script = OPEN + chunk(A) + GOOD + chunk(B) + GOOD + chunk(C) + GOOD
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C)), hints=hints, **TOGETHER)
        writes = len(hosts.streams[0].writes)

    assert told(outcomes) == delivered(A, B, C)
    assert writes == 5


@pytest.mark.parametrize(
    ("greeting", "is_streamed"), [("mx.test ESMTP Exim 4.96", True), ("mx.test ESMTP", False)]
)
async def test_auto_streams_to_servers_that_are_known_to_take_it(
    greeting, is_streamed, autojump_clock
):
    script = OPEN.replace("S: 220 mx.test", f"S: 220 {greeting}")
    script += chunk(A) + GOOD
    if is_streamed:
        script += chunk(B) + chunk(C) + GOOD + GOOD
    else:
        script += chunk(B) + GOOD + chunk(C) + GOOD
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts, *map(message, (A, B, C)), together=True, options={"max_connections": 1}
        )
        writes = len(hosts.streams[0].writes)

    assert told(outcomes) == delivered(A, B, C)
    assert writes == (4 if is_streamed else 5)


async def test_a_refusal_in_a_stream_is_one_messages_own(drip, autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + chunk(D)
    script += replies("250 ok", "250 ok", "554 5.6.0 spam") + GOOD
    script += replies("452 4.3.1 full", "503 no", "503 no") + "C: QUIT\nS: 221 bye\n"
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C, D)), **TOGETHER)

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} failed message final reply 554",
        f"{C} delivered - final reply 250",
        f"{D} deferred message mail reply 452",
    ]


@pytest.mark.parametrize(
    ("refusal", "d"),
    [
        ("450 4.7.1 slow down", "deferred message mail reply 450"),
        ("550 5.7.1 no", "failed message mail reply 550"),
        ("503 5.5.1 what", "delivered - final reply 250"),
    ],
)
@pytest.mark.parametrize("octets", [25, 125], ids=["one flight", "chunk later"])
async def test_who_is_accepted_behind_a_refused_mail_is_delivered(
    refusal, d, octets, drip, autojump_clock
):
    """The server goes on with the transaction before, whatever it had against the new one."""
    body = b"x" * (octets - 2) + b"\r\n"
    named = f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{C}>\nC: RCPT TO:<{D}>\n"
    content = f"C: BDAT {octets} LAST\nC# {octets}\n"
    nobody = replies("250 ok", "550 5.1.1 who", "503 5.5.1 nobody")
    heard = replies(refusal, "250 ok", "551 5.1.1 who")
    script = OPEN + chunk(A) + GOOD + chunk(B) + named
    script += content + nobody + heard if octets == 25 else nobody + heard + content
    script += replies("250 queued")
    if refusal.startswith("503"):
        # That may have been about the protocol: who was not accepted is asked in turn.
        again = f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{D}>\n"
        script += again + (content + GOOD if octets == 25 else OK * 2 + content + OK)
    async with scripted(script, drip=drip) as hosts:
        mail = message(A), message(B), message(C, D, content=body)
        options = {**TOGETHER["options"], "one_flight_octets": 100}
        outcomes = await deliver(hosts, *mail, together=True, options=options)

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 550",
        f"{C} delivered - final reply 250",
        f"{D} {d}",
    ]


async def test_behind_one_that_may_be_refused_goes_a_reset_before_another_sender(
    drip, autojump_clock
):
    """No content ends the one before: what its MAIL says would hold for the next message, too."""
    script = OPEN + chunk(A) + GOOD + chunk(B) + behind(C, sender="t@me.test")
    script += replies("250 ok", "550 5.1.1 who", "503 5.5.1 nobody") + FLUSHED + GOOD
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(
            hosts, message(A), message(B), message(C, sender="t@me.test"), **TOGETHER
        )

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 550",
        f"{C} delivered - final reply 250",
    ]


async def test_a_reset_goes_before_other_terms_but_not_before_another_size(autojump_clock):
    script = greeted("PIPELINING", "CHUNKING", "SIZE", "DSN")
    body = b"x" * 98 + b"\r\n"
    for envid, octets, reset in (
        ("e", 25, ""),
        ("e", 25, ""),
        ("e", 100, ""),
        ("f", 100, "C: RSET\n"),
    ):
        script += f"{reset}C: MAIL FROM:<s@me.test> SIZE={octets + 1024} ENVID={envid}\n"
        script += f"C: RCPT TO:<a@x.test>\nC: BDAT {octets} LAST\nC# {octets}\n"
        if not script.count("S: 250 2.0.0 queued"):
            script += GOOD
    script += GOOD * 2 + FLUSHED + GOOD
    async with scripted(script) as hosts:
        mails = [
            message(A, envid="e"),
            message(A, envid="e"),
            message(A, envid="e", content=body),
            message(A, envid="f", content=body),
        ]
        outcomes = await deliver(hosts, *mails, **TOGETHER)

    assert told(outcomes) == delivered(A, A, A, A)


async def test_after_a_refusal_all_in_flight_begin_with_a_reset(drip, autojump_clock):
    """MAIL is refused as nested, which servers count as an error: Exim hangs up at the fourth."""
    nobody = replies("250 ok", "550 5.1.1 who", "503 5.5.1 nobody")
    nested = replies("503 5.5.1 sender already given", "250 ok", "250 queued")
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + nobody + behind(D) + nested
    script += FLUSHED + GOOD
    options = {"stream_depth": 2, "max_connections": 1}
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C, D)), together=True, options=options)

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 550",
        f"{C} delivered - final reply 250",
        f"{D} delivered - final reply 250",
    ]


async def test_who_was_not_taken_in_a_nested_transaction_is_asked_again_and_streaming_goes_on(
    autojump_clock,
):
    """That says nothing about whether the host takes commands behind a content."""
    nobody = replies("250 ok", "550 5.1.1 who", "503 5.5.1 nobody")
    nested = replies("503 5.5.1 sender already given", "503 5.5.1 no", "503 5.5.1 no")
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + nobody + behind(D) + nested
    script += FLUSHED + GOOD + chunk(C) + GOOD
    options = {"stream_depth": 2, "max_connections": 1}
    hints = MemoryHints()
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts, *map(message, (A, B, C, D)), together=True, options=options, hints=hints
        )

    assert sorted(told(outcomes)) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 550",
        f"{C} delivered - final reply 250",
        f"{D} delivered - final reply 250",
    ]
    assert hints.get("stream", "192.0.2.1:25") != b"no"


async def test_behind_one_that_somebody_was_accepted_of_no_reset_is_needed(autojump_clock):
    """Its envelope was heard out before its content left."""
    body = b"x" * 98 + b"\r\n"
    script = OPEN + chunk(A) + GOOD + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{B}>\n"
    script += replies("250 ok", "250 ok") + "C: BDAT 100 LAST\nC# 100\n" + chunk(C)
    script += "S: 250 queued\n" + GOOD
    options = TOGETHER["options"] | {"one_flight_octets": 99}
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts,
            message(A),
            message(B, content=body),
            message(C),
            together=True,
            options=options,
        )

    assert told(outcomes) == delivered(A, B, C)


async def test_a_connection_on_which_many_are_refused_in_flight_gives_way_to_another(
    autojump_clock,
):
    """Exim hangs up at the eleventh RSET that no message came before; what is in flight then would
    be left in doubt.
    """
    names = [f"{number}@x.test" for number in range(8)]
    nobody = replies("250 ok", "550 5.1.1 who", "503 5.5.1 nobody")
    first, *bad, good, last = names
    script = OPEN + chunk(first) + GOOD + chunk(bad[0]) + chunk(bad[1]) + chunk(bad[2])
    script += nobody + behind(bad[3]) + nobody + behind(bad[4]) + nobody
    script += FLUSHED + nobody + FLUSHED + nobody + "C: QUIT\nS: 221 bye\n"
    script += NEXT + OPEN + chunk(good) + GOOD + chunk(last) + GOOD
    async with scripted(script, is_watched=True) as hosts:
        outcomes = await deliver(hosts, *map(message, names), **TOGETHER)

    assert sorted(told(outcomes)) == sorted(
        delivered(first, good, last) + [f"{name} failed recipient rcpt reply 550" for name in bad]
    )


async def test_what_a_server_refuses_behind_the_dot_is_sent_again_in_lockstep(autojump_clock):
    """Haraka 3.3 takes the message and answers 503 to what came early: no outcome is touched."""
    envelope = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{}>\nC: DATA\n"
    taken = replies("250 ok", "250 ok", "354 go on")
    script = opening(True) + envelope.format(A) + taken + "C= content\nS: 250 queued\n"
    script += envelope.format(B) + taken + "C= content\n" + envelope.format(C)
    script += replies("250 queued", "503 early", "503 early", "503 early")
    script += envelope.format(C) + taken + "C= content\nS: 250 queued\n"
    script += envelope.format(D) + taken + "C= content\nS: 250 queued\n"
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C, D)), **TOGETHER)

    assert told(outcomes) == delivered(A, B, C, D)
    assert [outcome.attempts for outcome in outcomes] == [()] * 4
    assert {connection for connection, _ in places(outcomes)} == {1}


@pytest.mark.parametrize(
    ("greeting", "rides"), [("mx.test ESMTP Exim 4.96", True), ("mx.test ESMTP Haraka", False)]
)
async def test_the_first_envelope_behind_the_dot_of_a_stranger_is_a_small_one(
    greeting, rides, autojump_clock
):
    """Haraka 3.3 hangs up on more than 8 KB there, and keeps its reply to the content."""
    many = [f"{number}@x.test" for number in range(11)]
    rcpts = "".join(f"C: RCPT TO:<{name}>\n" for name in many)
    envelope = "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{}>\nC: DATA\n"
    taken, content = replies("250 ok", "250 ok", "354 go on"), "C= content\n"
    large = "C: MAIL FROM:<s@me.test>\n" + rcpts + "C: DATA\n"
    large_taken = replies("250 ok", *["250 ok"] * 11, "354 go on")
    script = opening(True).replace("S: 220 mx.test", f"S: 220 {greeting}")
    script += envelope.format(A) + taken + content + "S: 250 queued\n"
    script += envelope.format(B) + taken + content + "S: 250 queued\n"
    script += large + large_taken + content + "S: 250 queued\n"
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), message(*many), **TOGETHER)
        written = b"|".join(hosts.streams[0].writes)

    assert told(outcomes) == delivered(*sorted((A, B, *many)))
    assert (b"\r\n.\r\nMAIL" in written) is rides


async def test_a_lost_stream_leaves_in_doubt_what_has_left_and_nothing_else(autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + chunk(D)
    script += GOOD + "S: 250 ok\n! close"
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C, D)), **TOGETHER)

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} delivered - final reply 250",
        f"{C} unknown message final closed -",
        f"{D} unknown message final closed -",
    ]


async def test_what_has_not_left_of_a_lost_stream_is_deferred(autojump_clock):
    """The third content was still being written: it cannot have been accepted."""
    body = b"x" * 998 + b"\r\n"
    script = OPEN + chunk(A) + GOOD + chunk(B, content=body) + "C# 500\n! close"
    options = {"stream_depth": 3, "max_connections": 1, "one_flight_octets": 5000}
    async with scripted(script, capacity=700, is_watched=False) as hosts:
        outcomes = await deliver(
            hosts,
            message(A),
            message(B, content=body),
            message(C, content=body),
            together=True,
            options=options,
        )

    by_recipient = {outcome.recipient: outcome for outcome in outcomes}
    assert by_recipient[A].status is Status.DELIVERED
    assert by_recipient[B].status is Status.UNKNOWN
    assert by_recipient[C].status is Status.DEFERRED


GROUPS = {
    "together": True,
    "options": {
        "stream_depth": 2,
        "max_connections": 1,
        "max_recipients_per_transaction": 1,
        "one_flight_octets": 5000,
    },
}


async def test_a_message_whose_transactions_all_found_the_connection_dead_is_sent_again(
    caplog, autojump_clock
):
    body = b"x" * 998 + b"\r\n"
    script = OPEN + chunk(A) + GOOD + "C: MAIL FROM:<s@me.test>\n! close\n" + NEXT + OPEN
    script += chunk(B, content=body) + GOOD
    script += chunk(C, content=body) + chunk(D, content=body) + GOOD + GOOD
    async with scripted(script, capacity=700) as hosts:
        outcomes = await deliver(hosts, message(A), message(B, C, D, content=body), **GROUPS)

    assert told(outcomes) == delivered(A, B, C, D)
    assert all(outcome.attempts == () for outcome in outcomes)
    assert not caplog.records


async def test_a_refused_recipient_is_not_held_against_those_who_were_not_asked(autojump_clock):
    script = OPEN + chunk(A) + replies("250 ok", "450 4.2.0 busy") + "! close\n"
    script += NEXT + OPEN + chunk(B) + GOOD
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts, message(A, B), options={"max_recipients_per_transaction": 1}
        )

    assert told(outcomes) == [f"{A} deferred recipient rcpt reply 450", *delivered(B)]


async def test_a_host_is_not_asked_again_about_nobody(autojump_clock):
    """One transaction was heard of, one was not, and one had not begun when the connection ended."""
    body = b"x" * 998 + b"\r\n"
    script = OPEN + chunk(A) + GOOD
    script += f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{B}>\nC: BDAT 1000 LAST\nC# 500\n"
    script += "S: 250 ok\n! close"
    async with scripted(script, capacity=700) as hosts:
        outcomes = await deliver(hosts, message(A), message(B, C, D, content=body), **GROUPS)

    assert told(outcomes) == [
        *delivered(A),
        f"{B} deferred host rcpt closed -",
        f"{C} deferred host rcpt closed -",
        f"{D} deferred host rcpt closed -",
    ]
    assert hosts.made == ["192.0.2.1"]


async def test_421_in_a_stream_defers_what_is_undecided(drip, autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + chunk(D)
    script += GOOD + "S: 421 4.3.2 going down\n"
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C, D)), **TOGETHER)

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} delivered - final reply 250",
        f"{C} deferred host mail reply 421",
        f"{D} deferred host mail reply 421",
    ]


async def test_octets_of_contents_in_flight_are_counted_once(autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + chunk(D)
    script += GOOD + GOOD + "! close"
    options = {"stream_depth": 3, "max_connections": 1}
    async with scripted(script) as hosts:
        router = await static_router([MX1], "x.test")
        async with an_engine(hosts, router=router, settings=settings(**options)) as engine:
            for to in (A, B, C, D):
                await engine.submit(message(to))
        outcomes = await outcomes_of(engine)

    assert engine.statistics().octets == 4 * len(CONTENT)
    (unknown,) = [outcome for outcome in outcomes if outcome.status is Status.UNKNOWN]
    assert f"in response to pipelined end of data ({len(CONTENT)} octets written)" in unknown.text


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(["421 4.3.2 going down"] * 5, id="421 to everything"),
        pytest.param(["503 5.5.1 what"] * 5, id="refusals"),
        pytest.param(
            ["250 ok", "250 queued", "250 a", "250 b", "250 c"],
            id="as if it were nothing",
        ),
    ],
)
async def test_what_stands_behind_a_421_does_not_count(rest, drip, autojump_clock):
    """Least of all for another message than the one it answers."""
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C)
    script += replies("421 4.3.2 going down", *rest) + "! close"
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B, C)), **TOGETHER)

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} deferred host mail reply 421",
        f"{C} deferred host mail reply 421",
    ]


async def test_421_to_everything_costs_nobody_else_the_connection(caplog, autojump_clock):
    script = OPEN + chunk(A) + replies(*["421 4.3.2 going down"] * 3) + "! close\n"
    script += NEXT + OPEN + chunk(B) + GOOD
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, *map(message, (A, B)), **TOGETHER)

    assert told(outcomes) == [
        f"{A} deferred host mail reply 421",
        f"{B} delivered - final reply 250",
    ]
    assert not caplog.records


async def test_421_to_a_reset_in_a_stream_is_meant_for_all(drip, autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + behind(C, sender="t@me.test")
    script += GOOD + replies(*["421 4.3.2 going down"] * 4) + "! close"
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(
            hosts, message(A), message(B), message(C, sender="t@me.test"), **TOGETHER
        )

    assert told(outcomes) == [
        *delivered(A, B),
        f"{C} deferred host mail reply 421",
    ]


async def test_recipients_of_one_message_are_streamed_in_groups(autojump_clock):
    script = OPEN + chunk(A) + GOOD + chunk(B) + chunk(C) + GOOD + GOOD
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts,
            message(A, B, C),
            options={"max_recipients_per_transaction": 1, "stream_depth": 4},
        )

    assert told(outcomes) == delivered(A, B, C)
    assert places(outcomes) == [(1, 1), (1, 2), (1, 3)]


# ---- LMTP ----------------------------------------------------------------------------------------

LMTP = greeted("PIPELINING").replace("EHLO", "LHLO")


def lmtp(*rcpts: str, data: str = "354 go on", **more: str) -> str:
    script = "C: MAIL FROM:<s@me.test>\n"
    script += "".join(f"C: RCPT TO:<{to}>\n" for to in (A, B, C)) + "C: DATA\n"
    return script + replies("250 ok", *rcpts, data)


async def test_lmtp_has_a_reply_for_each_recipient_that_was_accepted(drip, autojump_clock):
    script = LMTP + lmtp("250 ok", "550 5.1.1 who", "250 ok") + "C= content\n"
    script += replies("250 2.0.0 stored", "452 4.2.2 over quota") + "C: QUIT\nS: 221 bye\n"
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B, C), options={"protocol": "lmtp"})

    assert told(outcomes) == [
        f"{A} delivered - final reply 250",
        f"{B} failed recipient rcpt reply 550",
        f"{C} deferred recipient final reply 452",
    ]
    assert all(outcome.features.lmtp for outcome in outcomes)


async def test_lmtp_that_breaks_off_leaves_in_doubt_who_had_no_reply(drip, autojump_clock):
    script = LMTP + lmtp("250 ok", "250 ok", "250 ok") + "C= content\n"
    script += "S: 550 5.2.1 disabled\nS: 250 stored\n! close"
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B, C), options={"protocol": "lmtp"})

    assert told(outcomes) == [
        f"{A} failed recipient final reply 550",
        f"{B} delivered - final reply 250",
        f"{C} unknown message final closed -",
    ]


@pytest.mark.parametrize(
    ("verb", "reply"), [("DATA", "354 go on"), ("BDAT 1200 LAST", "")], ids=["dots", "chunk"]
)
async def test_lmtp_may_refuse_a_content_to_each_before_its_end(verb, reply, drip, autojump_clock):
    body = StreamedContent(b"0123456789\r\n" * 100, piece=100)
    script = LMTP.replace("250 PIPELINING", "250 CHUNKING")
    for command in ("MAIL FROM:<s@me.test>", f"RCPT TO:<{A}>", f"RCPT TO:<{B}>"):
        script += f"C: {command}\nS: 250 ok\n"
    script += f"C: {verb}\n" + (f"S: {reply}\n" if reply else "")
    script += "C# 500\n" + replies("552 5.3.4 large", "552 5.3.4 large") + "! stall"
    options = {"protocol": "lmtp", "chunking": not reply}
    async with scripted(script, drip=drip, capacity=300) as hosts:
        outcomes = await deliver(hosts, message(A, B, body=body), options=options)

    assert told(outcomes) == [
        f"{A} failed recipient content reply 552",
        f"{B} failed recipient content reply 552",
    ]


@pytest.mark.parametrize(
    "end",
    ["S: 221 bye\n", "S: 503 5.5.1 nobody\nS: 221 bye\n", "! stall\n"],
    ids=["no reply", "a reply", "silence"],
)
async def test_lmtp_that_goes_on_for_nobody_is_left_without_waiting(end, drip, autojump_clock):
    """RFC 2033 §4.2: the end of a content has a reply for each who was accepted, here none."""
    script = LMTP + lmtp("550 5.1.1 who", "451 4.2.0 busy", "550 5.1.1 who")
    script += "C= a lone dot\nC: QUIT\n" + end
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B, C), options={"protocol": "lmtp"})

    assert told(outcomes) == [
        f"{A} failed recipient rcpt reply 550",
        f"{B} deferred recipient rcpt reply 451",
        f"{C} failed recipient rcpt reply 550",
    ]
    assert autojump_clock.current_time() < 10


async def test_lmtp_ignores_quotas_where_that_is_offered_and_asked_for(autojump_clock):
    script = LMTP.replace("S: 250 PIPELINING", "S: 250-IGNOREQUOTA\nS: 250 PIPELINING")
    script += f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}> IGNOREQUOTA\nC: DATA\n"
    script += replies("250 ok", "250 ok", "354 go on") + "C= content\nS: 250 stored\n"
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts, message(A), options={"protocol": "lmtp", "lmtp_ignore_quota": True}
        )

    assert told(outcomes) == delivered(A)


async def test_lmtp_has_no_need_of_prdr(autojump_clock):
    script = LMTP.replace("S: 250 PIPELINING", "S: 250-PRDR\nS: 250 PIPELINING")
    script += lmtp("250 ok", "250 ok", "250 ok") + "C= content\n"
    script += replies("250 stored", "550 5.7.1 no", "250 stored")
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A, B, C), options={"protocol": "lmtp"})

    assert [outcome.status for outcome in outcomes] == ["delivered", "failed", "delivered"]
    assert not any(outcome.features.prdr for outcome in outcomes)


# ---- PRDR ----------------------------------------------------------------------------------------

PRDR = greeted("PIPELINING", "PRDR")


def prdr(*finals: str) -> str:
    script = PRDR + f"C: MAIL FROM:<s@me.test> PRDR\nC: RCPT TO:<{A}>\nC: RCPT TO:<{B}>\nC: DATA\n"
    return script + replies("250 ok", "250 ok", "250 ok", "354 go on") + "C= c\n" + replies(*finals)


@pytest.mark.parametrize(
    ("finals", "a", "b"),
    [
        pytest.param(
            ("353 each", "250 a", "550 5.7.1 b", "250 all"),
            "delivered - final reply 250",
            "failed recipient final reply 550",
            id="one refused",
        ),
        pytest.param(
            ("353 each", "250 a", "451 4.7.1 b", "250 all"),
            "delivered - final reply 250",
            "deferred recipient final reply 451",
            id="one deferred",
        ),
        pytest.param(
            ("353 each", "250 a", "250 b", "554 5.6.0 all"),
            "failed message final reply 554",
            "failed message final reply 554",
            id="all refused in the end",
        ),
        pytest.param(
            ("353 each", "250 a", "550 5.7.1 b", "451 4.3.0 all"),
            "deferred message final reply 451",
            "failed recipient final reply 550",
            id="all deferred in the end",
        ),
        pytest.param(
            ("250 for all",),
            "delivered - final reply 250",
            "delivered - final reply 250",
            id="one reply after all",
        ),
        pytest.param(
            ("554 5.6.0 for all",),
            "failed message final reply 554",
            "failed message final reply 554",
            id="one refusal after all",
        ),
    ],
)
async def test_prdr_has_a_reply_for_each_and_one_for_all(finals, a, b, drip, autojump_clock):
    quits = "" if "delivered" in a + b else "C: QUIT\nS: 221 bye\n"
    async with scripted(prdr(*finals) + quits, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B))

    assert told(outcomes) == [f"{A} {a}", f"{B} {b}"]
    assert all(outcome.features.prdr for outcome in outcomes)


async def test_prdr_that_breaks_off_keeps_refusals_and_leaves_the_rest_in_doubt(autojump_clock):
    async with scripted(prdr("353 each", "250 a", "550 5.7.1 b") + "! close") as hosts:
        outcomes = await deliver(hosts, message(A, B))

    assert told(outcomes) == [
        f"{A} unknown message final closed -",
        f"{B} failed recipient final reply 550",
    ]


@pytest.mark.parametrize("finals", [(), ("250 a",)], ids=["for one", "for all"])
async def test_prdr_that_ends_with_a_421_keeps_refusals(finals, drip, autojump_clock):
    script = prdr("353 each", "550 5.7.1 a", *finals, "421 4.3.2 going")
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B))

    assert told(outcomes) == [
        f"{A} failed recipient final reply 550",
        f"{B} deferred host final reply 421",
    ]


@pytest.mark.parametrize(
    ("final", "reset"),
    [("250 thanks for nothing", ""), ("554 5.5.1 nobody", "C: RSET\nS: 250 flushed\n")],
)
async def test_prdr_for_nobody_is_heard_to_its_end(final, reset, caplog, drip, autojump_clock):
    content = f"C: BDAT {len(CONTENT)} LAST\nC# {len(CONTENT)}\n"
    script = greeted("PIPELINING", "CHUNKING", "PRDR") + "C: MAIL FROM:<s@me.test> PRDR\n"
    script += f"C: RCPT TO:<{A}>\nC: RCPT TO:<{B}>\n{content}"
    script += replies("250 ok", "550 5.1.1 who", "550 5.1.1 who", "353 to each", final)
    script += reset + chunk(C) + GOOD
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B), message(C), **TOGETHER)

    assert told(outcomes) == [
        f"{A} failed recipient rcpt reply 550",
        f"{B} failed recipient rcpt reply 550",
        f"{C} delivered - final reply 250",
    ]
    assert not caplog.records


async def test_prdr_is_not_asked_for_one_recipient(autojump_clock):
    script = PRDR + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}>\nC: DATA\n"
    script += replies("250 ok", "250 ok", "354 go on") + "C= c\nS: 250 queued\n"
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == delivered(A)
    assert not outcome.features.prdr


# ---- limits --------------------------------------------------------------------------------------


def plain(*recipients: str) -> str:
    script = "C: MAIL FROM:<s@me.test>\n"
    script += "".join(f"C: RCPT TO:<{to}>\n" for to in recipients) + "C: DATA\n"
    script += replies("250 ok", *["250 ok"] * len(recipients), "354 go on")
    return script + "C= content\nS: 250 queued\n"


async def test_rcptmax_divides_recipients(autojump_clock):
    script = greeted("PIPELINING", "LIMITS RCPTMAX=2") + plain(A, B) + plain(C)
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A, B, C))

    assert told(outcomes) == delivered(A, B, C)


async def test_mailmax_renews_the_connection(autojump_clock):
    hello = greeted("PIPELINING", "LIMITS MAILMAX=1")
    script = hello + plain(A) + "C: QUIT\nS: 221 bye\n" + NEXT + hello + plain(B)
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes) == delivered(A, B)


async def test_rcptdomainmax_keeps_domains_apart(autojump_clock):
    script = greeted("PIPELINING", "LIMITS RCPTDOMAINMAX=5") + plain(A, B) + plain("c@y.test")
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A, "c@y.test", B))

    assert told(outcomes) == delivered(A, B, "c@y.test")


async def test_rcptdomainmax_counts_the_domains_of_a_session(autojump_clock):
    """RFC 9422 §4.3; a domain that was named before may come again."""
    hello = greeted("PIPELINING", "LIMITS RCPTDOMAINMAX=2")
    script = hello + plain(A) + plain("b@y.test") + plain(B) + "C: QUIT\nS: 221 bye\n"
    script += NEXT + hello + plain("c@z.test")
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts, message(A), message("b@y.test"), message(B), message("c@z.test")
        )

    assert told(outcomes) == delivered(A, B, "b@y.test", "c@z.test")
    assert all(outcome.attempts == () for outcome in outcomes)


async def test_a_message_is_gone_on_with_whatever_the_domains_of_a_session_may_be(autojump_clock):
    """As the reference client does; a server that minds can say so."""
    script = greeted("PIPELINING", "LIMITS RCPTDOMAINMAX=1") + plain(A) + plain("b@y.test")
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A, "b@y.test"))

    assert told(outcomes) == delivered(A, "b@y.test")


async def test_domains_are_kept_apart_where_that_is_set(autojump_clock):
    script = opening(True) + plain(A, B) + plain("c@y.test")
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A, "c@y.test", B), options={"multi_domain": False})

    assert told(outcomes) == delivered(A, B, "c@y.test")


# ---- binary --------------------------------------------------------------------------------------

BINARY = b"Content-Type: application/x\r\n\r\n\0\n\xff"


async def test_a_binary_content_goes_as_it_is_to_who_takes_it(drip, autojump_clock):
    """RFC 3030 §3."""
    dialogue = opening(True, "CHUNKING", "BINARYMIME", "8BITMIME")
    dialogue += "C: MAIL FROM:<s@me.test> BODY=BINARYMIME\nC: RCPT TO:<a@x.test>\n"
    dialogue += f"C: BDAT {len(BINARY)} LAST\nC# {len(BINARY)}\nS: 250 ok\nS: 250 ok\nS: 250 ok\n"
    async with scripted(dialogue, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message("a@x.test", body=from_binary(BINARY)))

    assert told([outcome]) == delivered("a@x.test")
    assert hosts.contents == [BINARY]


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        (["8BITMIME"], {}),
        (["8BITMIME", "CHUNKING"], {}),
        (["8BITMIME", "CHUNKING", "BINARYMIME"], {"chunking": False}),
    ],
    ids=str,
)
async def test_others_get_it_encoded(keywords, options, autojump_clock):
    dialogue = opening(True, *keywords) + "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\n"
    converted = to_seven_bit(BINARY, is_binary=True)
    if "CHUNKING" in keywords and options.get("chunking", True):
        dialogue += f"C: BDAT {len(converted)} LAST\nC# {len(converted)}\n"
        dialogue += "S: 250 ok\nS: 250 ok\nS: 250 ok\n"
    else:
        dialogue += "C: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go on\nC= content\nS: 250 ok\n"
    async with scripted(dialogue) as hosts:
        (outcome,) = await deliver(
            hosts, message("a@x.test", body=from_binary(BINARY)), options=options
        )

    assert told([outcome]) == delivered("a@x.test")
    assert hosts.contents == [converted]


# ---- replies too many ----------------------------------------------------------------------------


@pytest.mark.parametrize("surplus", ["250 2.0.0 once more", "421 4.4.2 bye", "hello"])
async def test_a_reply_too_many_costs_the_next_message_a_connection_and_nothing_else(
    surplus, pipelined, autojump_clock
):
    first = transaction((A, "250 ok"), pipelined=pipelined)
    first = first.replace("S: 250 2.0.0 queued\n", f"S+ 250 2.0.0 queued\\r\\n{surplus}\\r\\n\n")
    script = opening(pipelined) + first + "! expect-eof\n" + NEXT + opening(pipelined)
    script += transaction((B, "250 ok"), pipelined=pipelined)
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes) == delivered(A, B)
    assert [(each.peer.connection, each.transaction) for each in outcomes] == [(1, 1), (2, 1)]
    assert [each.attempts for each in outcomes] == [(), ()]
