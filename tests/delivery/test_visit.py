from __future__ import annotations

import pytest
import trio

from engine.engine import Engine
from engine.outcome import Status
from engine.report import events
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


# ---- one message after another --------------------------------------------------------------------


async def test_the_next_message_follows_without_reset(pipelined, drip, autojump_clock):
    """RFC 5321 §4.1.1.4: the end of data has cleared everything."""
    dialogue = opening(pipelined) + delivery(A, pipelined) + delivery(B, pipelined)
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes) == delivered(A, B)
    assert places(outcomes) == [(1, 1), (1, 2)]


async def test_a_transaction_that_stays_open_is_reset_first(pipelined, drip, autojump_clock):
    refused = transaction((A, "550 who"), pipelined=pipelined, data="554 nobody")
    dialogue = opening(pipelined) + refused + RESET + delivery(B, pipelined)
    async with scripted(dialogue, drip=drip) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), together=True)

    assert told(outcomes) == [f"{A} failed recipient rcpt reply 550", *delivered(B)]
    assert places(outcomes) == [(1, 1), (1, 2)]


async def test_refused_data_leaves_a_transaction_to_reset(pipelined, autojump_clock):
    dialogue = opening(pipelined) + delivery(A, pipelined, data="451 later") + RESET
    dialogue += delivery(B, pipelined)
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), together=True)

    assert told(outcomes) == [f"{A} deferred message data reply 451", *delivered(B)]


@pytest.mark.parametrize("refusal", [{"mail": "550 5.7.1 no"}, {"final": "554 5.6.0 spam"}])
async def test_what_leaves_no_transaction_open_needs_no_reset(refusal, pipelined, autojump_clock):
    first = transaction((A, "250 ok"), pipelined=pipelined, **refusal)
    if pipelined and "mail" in refusal:
        first = transaction((A, "503 no"), pipelined=True, mail="550 5.7.1 no", data="503 no")
    dialogue = opening(pipelined) + first + delivery(B, pipelined)
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), together=True)

    assert told(outcomes)[1:] == delivered(B)
    assert places(outcomes) == [(1, 1), (1, 2)]


@pytest.mark.parametrize(
    "answer", ["S: 503 5.5.1 no", "S: 451 later", "S: 421 down", "! close", "! stall"]
)
async def test_a_refused_reset_gives_the_connection_up_and_not_the_message(
    answer, pipelined, autojump_clock
):
    refused = transaction((A, "550 who"), pipelined=pipelined, data="554 nobody")
    dialogue = opening(pipelined) + refused + f"C: RSET\n{answer}\n"
    dialogue += NEXT + opening(pipelined) + delivery(B, pipelined)
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), together=True)

    assert told(outcomes) == [f"{A} failed recipient rcpt reply 550", *delivered(B)]
    assert places(outcomes) == [(1, 1), (2, 1)]
    assert all(outcome.attempts == () for outcome in outcomes)


async def test_a_server_that_refused_the_last_message_is_not_kept_waiting(
    pipelined, autojump_clock
):
    first = transaction((A, "550 who"), pipelined=pipelined, data="554 nobody")
    dialogue = opening(pipelined) + first + "C: QUIT\nS: 221 bye\n"
    dialogue += NEXT + opening(pipelined) + delivery(B, pipelined)
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes)[1:] == delivered(B)


@pytest.mark.parametrize("refusal", ["554 5.7.1 too many of you", "450 4.7.1 too many of you"])
async def test_a_host_that_took_us_a_moment_ago_refuses_us_for_now(
    refusal, pipelined, autojump_clock
):
    """It has no room for the second recipient, and no second session for us."""
    dialogue = opening(pipelined)
    dialogue += transaction((A, "250 ok"), (B, "452 4.5.3 enough"), pipelined=pipelined)
    dialogue += f"C: QUIT\nS: 221 bye\n{NEXT}S: {refusal}\nC: QUIT\nS: 221 bye\n"
    async with scripted(dialogue) as hosts:
        options = {"max_messages_per_connection": 1}
        outcomes = await deliver(hosts, message(A, B), options=options)

    assert told(outcomes) == [
        *delivered(A),
        f"{B} deferred host greeting reply {refusal[:3]}",
    ]


async def test_messages_per_connection_are_limited(pipelined, autojump_clock):
    dialogue = (
        opening(pipelined)
        + delivery(A, pipelined)
        + delivery(B, pipelined)
        + "C: QUIT\nS: 221 bye\n"
        + NEXT
        + opening(pipelined)
        + delivery(C, pipelined)
    )
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(
            hosts,
            message(A),
            message(B),
            message(C),
            options={"max_messages_per_connection": 2},
        )

    assert told(outcomes) == delivered(A, B, C)
    assert places(outcomes) == [(1, 1), (1, 2), (2, 1)]


# ---- connections that die between messages --------------------------------------------------------


@pytest.mark.parametrize("goodbye", ["", "S: 421 4.4.2 idle too long\n", "S: 250 what\n"])
async def test_a_connection_that_ends_while_idle_costs_nothing(goodbye, pipelined, autojump_clock):
    """Whether the peer closes, says 421, or says something nobody asked for."""
    dialogue = opening(pipelined) + delivery(A, pipelined) + f"! sleep 1\n{goodbye}! close\n"
    dialogue += NEXT + opening(pipelined) + delivery(B, pipelined)
    async with scripted(dialogue) as hosts:

        async def pause() -> None:
            await trio.sleep(2)

        outcomes = await deliver_with_pause(hosts, message(A), message(B), pause)

    assert told(outcomes) == delivered(A, B)
    assert places(outcomes) == [(1, 1), (2, 1)]
    assert all(outcome.attempts == () for outcome in outcomes)


async def deliver_with_pause(hosts, first, second, pause):
    """Deliver two messages with something in between."""
    async with Engine(settings(), routes=[("*", [MX1])], connector=hosts) as engine:
        await engine.submit(first)
        outcomes = [await engine.outcomes.receive()]
        await pause()
        await engine.submit(second)
        return [*outcomes, await engine.outcomes.receive()]


async def test_a_stale_connection_costs_no_attempt(pipelined, autojump_clock):
    """The peer has closed, and we learn it from the first command of the next message."""
    said = f"C: MAIL FROM:<s@me.test>\n{f'C: RCPT TO:<{B}>' if pipelined else ''}\n"
    said += "C: DATA\n" if pipelined else ""
    dialogue = opening(pipelined) + delivery(A, pipelined) + said + "! close\n"
    dialogue += NEXT + opening(pipelined) + delivery(B, pipelined)
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes) == delivered(A, B)
    assert places(outcomes) == [(1, 1), (2, 1)]
    assert outcomes[1].attempts == ()


async def test_a_connection_lost_later_costs_an_attempt(autojump_clock):
    dialogue = opening(False) + delivery(A, False)
    dialogue += "C: MAIL FROM:<s@me.test>\nS: 250 ok\nC: RCPT TO:<b@x.test>\n! close"
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes) == [*delivered(A), f"{B} deferred host rcpt closed -"]


async def test_an_unknown_on_a_reused_connection_is_an_unknown(pipelined, autojump_clock):
    lost = delivery(B, pipelined).rpartition("S: ")[0] + "! close"
    dialogue = opening(pipelined) + delivery(A, pipelined) + lost
    async with scripted(dialogue) as hosts:
        outcomes = await deliver(hosts, message(A), message(B))

    assert told(outcomes) == [*delivered(A), f"{B} unknown message final closed -"]


# ---- a reply too many -----------------------------------------------------------------------------


async def test_a_reply_too_many_in_a_transaction_spoils_it(autojump_clock):
    """It is never paired with a later command; the next host is asked."""
    spoiled = "C: MAIL FROM:<s@me.test>\nS+ 250 ok\\r\\n250 and more\\r\\n\n! sleep 1\n! close"
    scripts = {
        MX1: opening(False) + spoiled,
        MX2: opening(False) + delivery(A, False),
    }
    async with scripted(scripts) as hosts:
        outcomes = await deliver(hosts, message(A), routes=[MX1, MX2])

    assert told(outcomes) == delivered(A)
    (tried,) = outcomes[0].attempts
    assert (tried.address, tried.cause) == (MX1, "malformed-reply")


async def test_a_reply_too_many_behind_the_content_spoils_the_connection_only(
    pipelined, drip, autojump_clock
):
    dialogue = opening(pipelined) + delivery(A, pipelined) + "S: 250 queued twice\n! expect-eof\n"
    dialogue += NEXT + opening(pipelined) + delivery(B, pipelined)
    async with scripted(dialogue, drip=drip) as hosts:

        async def pause() -> None:
            await trio.sleep(1)

        outcomes = await deliver_with_pause(hosts, message(A), message(B), pause)

    assert told(outcomes) == delivered(A, B)
    assert places(outcomes) == [(1, 1), (2, 1)]


# ---- what is told about it -----------------------------------------------------------------------


async def test_events_follow_the_connection(autojump_clock):
    seen: list[events.Event] = []
    async with scripted(opening(True) + delivery(A, True)) as hosts:
        async with Engine(settings(), routes=[("*", [MX1])], connector=hosts) as engine:
            engine.events.watch(seen.append)
            await engine.submit(message(A))
            assert (await engine.outcomes.receive()).status is Status.DELIVERED

    assert [type(event).__name__ for event in seen] == [
        "MessageSubmitted",
        "RecipientsRouted",
        "SiteOpened",
        "ConnectionOpened",
        "Greeted",
        "HelloAnswered",
        "SessionReady",
        "TransactionStarted",
        "RecipientSettled",
        "ConnectionClosed",
        "SiteClosed",
    ]
    closed = seen[-2]
    assert isinstance(closed, events.ConnectionClosed)
    assert (closed.reason, closed.transactions) == ("done", 1)
