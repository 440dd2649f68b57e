from __future__ import annotations

import pytest
import trio

from engine.delivery.host_session import may_go_in_clear, own_name
from engine.net.tls_errors import TlsFailed
from engine.outcome import Cause, Peer
from engine.security import TlsDemand, TlsLevel
from tests.delivery.helpers import (
    MX1,
    MX2,
    NEXT,
    RESET,
    deliver,
    delivered,
    delivery,
    message,
    opening,
    places,
    scripted,
    settings,
    told,
    transaction,
)

A, B, C = "a@x.test", "b@x.test", "c@x.test"


# ---- perhaps a disagreement about the protocol ----------------------------------------------------


@pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
async def test_a_confused_refusal_of_mail_is_asked_again_in_lockstep(code, drip, autojump_clock):
    doubted = transaction(
        (A, "503 no"), (B, "503 no"), pipelined=True, mail=f"{code} what", data="503 no"
    )
    plain = transaction((A, "250 ok"), (B, "550 who"), pipelined=False)
    dialogue = opening(True) + doubted + "C: QUIT\nS: 221 bye\n" + NEXT + opening(True) + plain
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B))

    assert told(outcomes) == [*delivered(A), f"{B} failed recipient rcpt reply 550"]
    assert places(outcomes) == [(2, 1), (2, 1)]
    assert all(outcome.attempts == () for outcome in outcomes)
    assert all(outcome.features.pipelining is False for outcome in outcomes)


@pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
async def test_a_confused_refusal_of_data_is_asked_again_for_those_accepted(
    code, drip, autojump_clock
):
    doubted = transaction((A, "250 ok"), (B, "550 who"), pipelined=True, data=f"{code} what")
    plain = transaction((A, "250 ok"), pipelined=False)
    dialogue = opening(True) + doubted + "C: QUIT\nS: 221 bye\n" + NEXT + opening(True) + plain
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, B))

    assert told(outcomes) == [*delivered(A), f"{B} failed recipient rcpt reply 550"]
    assert places(outcomes) == [(2, 1), (1, 1)]


async def test_the_answer_in_lockstep_stands(autojump_clock):
    doubted = transaction((A, "503 no"), pipelined=True, mail="503 what", data="503 no")
    plain = transaction((A, "250 ok"), pipelined=False, mail="503 5.5.1 still what")
    dialogue = opening(True) + doubted + NEXT + opening(True) + plain
    async with scripted(dialogue) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == [f"{A} failed message mail reply 503"]
    assert outcome.attempts == ()
    assert "pipelined" not in outcome.text


async def test_in_lockstep_there_is_nothing_to_doubt(autojump_clock):
    dialogue = opening(False) + transaction((A, "250 ok"), pipelined=False, mail="503 what")
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A))

    assert told(outcomes) == [f"{A} failed message mail reply 503"]


async def test_a_recipient_refused_with_such_a_code_is_refused(autojump_clock):
    dialogue = opening(True) + transaction((A, "501 bad address"), pipelined=True, data="503 no")
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A))

    assert told(outcomes) == [f"{A} failed recipient rcpt reply 501"]


async def test_other_messages_go_on_over_the_doubted_connection(autojump_clock):
    doubted = transaction((A, "503 no"), pipelined=True, mail="503 what", data="503 no")
    first = opening(True) + doubted + delivery(B, True)
    second = opening(True) + delivery(A, False)
    async with scripted(first + NEXT + second) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), together=True)

    assert told(outcomes) == delivered(A, B)
    assert places(outcomes) == [(2, 1), (1, 2)]


# ---- many recipients -----------------------------------------------------------------------------


async def test_recipients_are_split_into_transactions(pipelined, autojump_clock):
    everybody = [f"{number:03}@x.test" for number in range(250)]
    groups = [everybody[:100], everybody[100:200], everybody[200:]]
    dialogue = opening(pipelined) + "".join(
        transaction(*[(to, "250 ok") for to in group], pipelined=pipelined) for group in groups
    )
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(
            hosts, message(*everybody), options={"max_recipients_per_transaction": 100}
        )

    assert told(outcomes) == delivered(*everybody)
    assert [place[1] for place in places(outcomes)] == [1] * 100 + [2] * 100 + [3] * 50
    assert len(hosts.contents) == 3


async def test_both_limits_together_take_as_many_connections_as_needed(autojump_clock):
    parts = [opening(True) + delivery(to, True) + "C: QUIT\nS: 221 bye\n" for to in (A, B, C)]
    async with scripted(NEXT.join(parts)) as hosts:
        outcomes = await deliver(
            hosts,
            message(A, B, C),
            options={"max_recipients_per_transaction": 1, "max_messages_per_connection": 1},
        )

    assert told(outcomes) == delivered(A, B, C)
    assert places(outcomes) == [(1, 1), (2, 1), (3, 1)]


async def one_by_one(script: str) -> list[str]:
    async with scripted(script) as hosts:
        outcomes = await deliver(
            hosts, message(A, B, C), options={"max_recipients_per_transaction": 1}
        )
    return told(outcomes)


async def test_a_connection_lost_between_two_groups_costs_no_attempt(autojump_clock):
    said = f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{B}>\nC: DATA\n! close\n"
    dialogue = opening(True) + delivery(A, True) + said
    dialogue += NEXT + opening(True) + delivery(B, True) + delivery(C, True)

    assert await one_by_one(dialogue) == delivered(A, B, C)


async def test_an_unknown_group_leaves_the_rest_to_be_delivered(autojump_clock):
    lost = delivery(B, True).rpartition("S: ")[0] + "! close\n"
    dialogue = opening(True) + delivery(A, True) + lost + NEXT + opening(True) + delivery(C, True)

    assert await one_by_one(dialogue) == [
        *delivered(A),
        f"{B} unknown message final closed -",
        *delivered(C),
    ]


async def test_a_group_that_loses_the_host_defers_the_rest(autojump_clock):
    dialogue = opening(True) + delivery(A, True)
    dialogue += f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{B}>\nC: DATA\nS: 421 down\n! close\n"

    assert await one_by_one(dialogue) == [
        *delivered(A),
        f"{B} deferred host mail reply 421",
        f"{C} deferred host mail reply 421",
    ]


async def test_a_group_that_is_refused_does_not_speak_for_the_rest(pipelined, autojump_clock):
    refused = transaction((B, "550 who"), pipelined=pipelined, data="554 nobody")
    dialogue = opening(pipelined) + delivery(A, pipelined) + refused + RESET
    dialogue += delivery(C, pipelined)

    assert await one_by_one(dialogue) == [
        *delivered(A),
        f"{B} failed recipient rcpt reply 550",
        *delivered(C),
    ]


# ---- what the host offers ------------------------------------------------------------------------


async def test_a_host_whose_limit_is_too_small_is_not_asked(pipelined, drip, autojump_clock):
    dialogue = opening(pipelined, "SIZE 10") + "C: QUIT\nS: 221 bye"
    async with scripted(dialogue, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert told([outcome]) == [f"{A} failed message mail unsupported -"]
    assert str(outcome.enhanced) == "5.3.4"
    assert "5.3.4" in outcome.text
    assert outcome.transaction is None


async def test_another_host_may_take_what_is_too_large_for_the_first(autojump_clock):
    scripts = {
        MX1: opening(True, "SIZE 10"),
        MX2: opening(True, "SIZE 0")
        + delivery(A, True).replace("<s@me.test>", "<s@me.test> SIZE=1049"),
    }
    async with scripted(scripts) as hosts:
        (outcome,) = await deliver(hosts, message(A, content=b"x" * 23), routes=[MX1, MX2])

    assert told([outcome]) == delivered(A)
    assert [(tried.address, tried.cause) for tried in outcome.attempts] == [(MX1, "unsupported")]


async def test_8_bit_content_is_converted_where_8bitmime_is_not_offered(drip, autojump_clock):
    dialogue = opening(True) + delivery(A, True)
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, content="\r\nschön\r\n".encode()))

    assert told(outcomes) == delivered(A)
    (arrived,) = hosts.contents
    assert arrived.isascii()
    assert b"Content-Transfer-Encoding: quoted-printable\r\n" in arrived
    assert arrived.endswith(b"\r\n\r\nsch=C3=B6n\r\n")


async def test_8_bit_content_that_cannot_be_converted_needs_8bitmime(drip, autojump_clock):
    body = "DKIM-Signature: v=1\r\n\r\nschön\r\n".encode()
    async with scripted(opening(True), drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A, content=body))

    assert told([outcome]) == [f"{A} failed message mail unsupported -"]
    assert str(outcome.enhanced) == "5.6.3"
    assert "signed by DKIM" in outcome.text


async def test_size_is_that_of_the_converted_content(autojump_clock):
    body = b"\r\n" + "ö".encode() * 100 + b"\r\n"
    async with scripted(opening(True, "SIZE 400")) as hosts:
        (outcome,) = await deliver(hosts, message(A, content=body))

    assert str(outcome.enhanced) == "5.3.4"


async def test_8_bit_content_is_declared_and_sent_as_it_is(pipelined, drip, autojump_clock):
    dialogue = opening(pipelined, "8BITMIME") + delivery(A, pipelined)
    dialogue = dialogue.replace("<s@me.test>", "<s@me.test> BODY=8BITMIME")
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A, content=b"\r\nsch\xf6n\r\n"))

    assert told(outcomes) == delivered(A)
    assert hosts.contents == [b"\r\nsch\xf6n\r\n"]


async def test_a_message_no_host_of_this_kind_takes_does_not_hold_up_the_next(autojump_clock):
    dialogue = opening(True, "SIZE 100") + delivery(B, True)
    dialogue = dialogue.replace("<s@me.test>", "<s@me.test> SIZE=100")
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A, content=b"x" * 200), message(B), together=True)

    assert told(outcomes) == [f"{A} failed message mail unsupported -", *delivered(B)]


# ---- set-up --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "expected", "seconds"),
    [
        ("S: 450 4.3.2 busy", "deferred host greeting reply 450", 0),
        ("S: 421 4.3.2 busy\n! expect-eof", "deferred host greeting reply 421", 0),
        ("S: 521 5.3.2 no mail here", "failed host greeting reply 521", 0),
        ("S: 554 5.7.1 not you", "failed host greeting reply 554", 0),
        ("! close", "deferred host greeting closed -", 0),
        ("! stall", "deferred host greeting timeout -", 11),
        ("S: hello", "deferred host greeting malformed-reply -", 0),
        (r"S+ 220 hi\r\n421 4.3.2 or not\r\n", "deferred host greeting reply 421", 0),
        (r"S+ 220 hi\r\n250 really\r\n", "deferred host greeting malformed-reply -", 0),
        ("S: 220 hi\nC: EHLO me.test\n! stall", "deferred host hello timeout -", 22),
        ("S: 220 hi\nC: EHLO me.test\n! close", "deferred host hello closed -", 0),
        (
            "S: 220 hi\nC: EHLO me.test\nS: 550 no\nC: HELO me.test\nS: 550 no",
            "failed host hello reply 550",
            0,
        ),
        # With nothing owed, and before there is a transaction.
        ("S+ 220 hi\\r\\n220 ho\\r\\n", "deferred host greeting malformed-reply -", 0),
        ("S+ 220 hi\\r\\n421 busy\\r\\n", "deferred host greeting reply 421", 0),
        (
            "S: 220 hi\nC: EHLO me.test\nS+ 250 mx.test\\r\\n250 PIPELINING\\r\\n",
            "deferred host hello malformed-reply -",
            0,
        ),
        (
            "S: 220 hi\nC: EHLO me.test\nS+ 250 mx.test\\r\\n421 busy\\r\\n",
            "deferred host hello reply 421",
            0,
        ),
        (
            "S: 220 hi\nC: EHLO me.test\nS: 502 no\nC: HELO me.test\nS: 451 no",
            "deferred host hello reply 451",
            0,
        ),
    ],
)
async def test_a_set_up_that_fails_decides_for_everybody(script, expected, seconds, autojump_clock):
    started = trio.current_time()
    options = {"greeting_timeout": 11, "command_timeout": 22}
    async with scripted(script) as hosts:
        outcomes = await deliver(hosts, message(A, B), options=options)

    assert told(outcomes) == [f"{A} {expected}", f"{B} {expected}"]
    assert trio.current_time() - started == pytest.approx(seconds)
    assert {outcome.transaction for outcome in outcomes} == {None}


async def test_helo_only_hosts_get_mail_without_extensions(drip, autojump_clock):
    dialogue = "S: 220 hi\nC: EHLO me.test\nS: 502 no\nC: HELO me.test\nS: 250 mx.test\n"
    async with scripted(dialogue + delivery(A, False), drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A))

    assert told(outcomes) == delivered(A)


async def test_esmtp_can_be_switched_off(drip, autojump_clock):
    dialogue = "S: 220 hi\nC: HELO me.test\nS: 250-mx.test\nS: 250 PIPELINING\n"
    async with scripted(dialogue + delivery(A, False), drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A), options={"esmtp": False})

    assert told(outcomes) == delivered(A)


async def test_without_a_name_we_say_our_address(autojump_clock):
    """RFC 5321 §4.1.4."""
    dialogue = opening(True).replace("EHLO me.test", "EHLO [198.51.100.9]") + delivery(A, True)
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), options={"helo_name": None})

    assert told(outcomes) == delivered(A)


# ---- what is told about it -----------------------------------------------------------------------


async def test_the_transcript_has_the_set_up_and_the_transaction(autojump_clock):
    dialogue = opening(True) + delivery(A, True) + delivery(B, True)
    async with scripted(dialogue) as hosts:
        _, outcome = await deliver(hosts, message(A), message(B), transcripts=True)

    assert outcome.transcript == (
        "S: 220 mx.test",
        "C: EHLO me.test",
        "S: 250-mx.test",
        "S: 250 PIPELINING",
        "C: MAIL FROM:<s@me.test>",
        f"C: RCPT TO:<{B}>",
        "C: DATA",
        "S: 250 sender ok",
        "S: 250 ok",
        "S: 354 go on",
        "C= 28 octets",
        "S: 250 2.0.0 queued",
    )


async def test_without_transcripts_there_is_none(autojump_clock):
    async with scripted(opening(True) + delivery(A, True)) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert outcome.transcript is None


async def test_the_first_message_bears_the_set_up_in_its_timings(autojump_clock):
    slow = opening(True).replace("C: EHLO me.test\n", "C: EHLO me.test\n! sleep 3\n")
    body = delivery(A, True).replace("S: 354 go on", "! sleep 4\nS: 354 go on")
    async with scripted(slow + body + delivery(B, True)) as hosts:
        first, second = await deliver(hosts, message(A), message(B))

    assert (first.timings.hello, first.timings.transaction, first.timings.total) == (3, 4, 7)
    assert (second.timings.hello, second.timings.transaction, second.timings.total) == (0, 0, 0)


# ---- names, and TLS that fails --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "address", "expected"),
    [
        ("me.test", "192.0.2.1", "me.test"),
        (None, "192.0.2.1", "[192.0.2.1]"),
        (None, "2001:db8::1", "[IPv6:2001:db8::1]"),
        (None, None, "localhost"),
    ],
)
def test_what_we_call_ourselves_is_a_name_or_an_address(name, address, expected):
    """RFC 5321 §4.1.4."""
    assert own_name(name, address) == expected


@pytest.mark.parametrize(
    ("changes", "demand", "may_help", "expected"),
    [
        ({}, TlsDemand(), True, True),
        ({}, TlsDemand(), False, False),
        ({"tls_fallback_to_clear": False}, TlsDemand(), True, False),
        ({"protocol": "smtps"}, TlsDemand(), True, False),
        ({}, TlsDemand(TlsLevel.REQUIRE, "required"), True, False),
        ({}, TlsDemand(TlsLevel.VERIFY, "dane"), True, False),
    ],
)
def test_mail_goes_in_clear_only_where_nobody_demands_otherwise(
    changes, demand, may_help, expected
):
    failure = TlsFailed(Peer("mx.test"), Cause.TLS, "no", clear_may_help=may_help)
    assert may_go_in_clear(failure, demand, settings(**changes)) is expected


# ---- what is in force -----------------------------------------------------------------------------


@pytest.mark.parametrize("offer", [(), ("DSN",)])
async def test_outcomes_know_whether_the_host_reports_on_success(offer, autojump_clock):
    dialogue = opening(True, *offer) + transaction((A, "250 ok"), pipelined=True)
    async with scripted(dialogue) as hosts:
        (outcome,) = await deliver(hosts, message(A))

    assert outcome.features.dsn is bool(offer)
    assert "dsn" not in outcome.as_dict()["features"]
