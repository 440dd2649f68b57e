from __future__ import annotations

import pytest
import trio

from engine.callout import Callout
from engine.engine import Engine
from engine.errors import EngineClosedError
from engine.outcome import Cause, Outcome, Scope, Status
from engine.queue.hints import MemoryHints
from engine.smtp.errors import AddressSyntaxError
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from tests.delivery.helpers import (
    MX1,
    MX2,
    NEXT,
    RESET,
    delivery,
    message,
    opening,
    scripted,
    serving,
    settings,
    static_router,
    told,
)

A, B = "a@x.test", "b@x.test"
each_manner = pytest.mark.parametrize("pipelined", [True, False])
BYE = "C: QUIT\nS: 221 bye\n"


def asked(*recipients: tuple[str, str], pipelined: bool = True, sender: str = "") -> str:
    """MAIL and RCPT, and nothing more."""
    pairs = [(f"MAIL FROM:<{sender}>", "250 ok")]
    pairs += [(f"RCPT TO:<{recipient}>", reply) for recipient, reply in recipients]
    if pipelined:
        lines = [f"C: {command}" for command, _ in pairs] + [f"S: {reply}" for _, reply in pairs]
    else:
        lines = [line for command, reply in pairs for line in (f"C: {command}", f"S: {reply}")]
    return "".join(f"{line}\n" for line in lines)


async def verify(hosts, *addresses, routes=(MX1,), options=None, hints=None, **more):
    router = await static_router(routes, "x.test", "y.test")
    made = settings(**(options or {}))
    async with Engine(made, router=router, connector=hosts, hints=hints) as engine:
        found = await engine.verify(addresses, **more)
    assert [outcome async for outcome in engine.outcomes] == []
    assert engine.statistics().connections_open == 0
    return found


@pytest.mark.parametrize("drip", [False, True])
@each_manner
async def test_recipients_are_asked_about_and_nothing_is_sent(pipelined, drip, autojump_clock):
    dialogue = asked((A, "250 2.1.5 fine"), (B, "550 5.1.1 who"), pipelined=pipelined)
    async with scripted(opening(pipelined) + dialogue + BYE, drip=drip) as hosts:
        first, second = await verify(hosts, A, B)

    assert told([first.outcome, second.outcome]) == [
        f"{A} accepted - rcpt reply 250",
        f"{B} failed recipient rcpt reply 550",
    ]
    assert str(first.outcome.enhanced) == "2.1.5"
    assert "would be accepted by" in first.outcome.text
    assert first.is_catch_all is None
    assert first.as_dict()["catch_all"] is None


@each_manner
async def test_a_host_that_says_no_to_all_is_the_last_word(pipelined, autojump_clock):
    dialogue = opening(pipelined) + asked((A, "550 who"), pipelined=pipelined) + BYE
    async with scripted({MX1: dialogue, MX2: ""}, is_watched=False) as hosts:
        (found,) = await verify(hosts, A, routes=(MX1, MX2))

    assert found.outcome.status is Status.FAILED
    assert hosts.made == [MX1]


@each_manner
async def test_the_next_host_is_asked_when_one_will_not_say(pipelined, autojump_clock):
    first = opening(pipelined) + asked((A, "451 later"), pipelined=pipelined) + BYE
    second = opening(pipelined) + asked((A, "250 ok"), pipelined=pipelined) + BYE
    async with scripted({MX1: first, MX2: second}) as hosts:
        (found,) = await verify(hosts, A, routes=(MX1, MX2))

    assert found.outcome.status is Status.ACCEPTED
    assert [tried.stage for tried in found.outcome.attempts] == [Stage.RCPT]


async def test_refused_mail_is_the_answer_for_all(autojump_clock):
    dialogue = "C: MAIL FROM:<me@me.test>\nC: RCPT TO:<a@x.test>\nS: 550 not you\nS: 503 no\n"
    async with scripted(opening(True) + dialogue + BYE) as hosts:
        (found,) = await verify(hosts, A, sender="me@me.test")

    assert told([found.outcome]) == [f"{A} failed message mail reply 550"]


async def test_who_found_no_room_is_asked_in_another_transaction(autojump_clock):
    dialogue = opening(True) + asked((A, "250 ok"), (B, "452 too many")) + RESET
    dialogue += asked((B, "250 ok")) + BYE
    async with scripted(dialogue) as hosts:
        found = await verify(hosts, A, B)

    assert [each.outcome.status for each in found] == ["accepted", "accepted"]


async def test_mail_and_questions_share_a_connection(autojump_clock):
    dialogue = opening(True) + delivery(A, True) + asked((B, "250 ok")) + RESET
    dialogue += delivery("c@x.test", True) + BYE
    async with scripted(dialogue) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(), router=router, connector=hosts) as engine:
            await engine.submit(message(A))
            await engine.outcomes.receive()
            (found,) = await engine.verify([B])
            await engine.submit(message("c@x.test"))
            await engine.outcomes.receive()

    assert found.outcome.transaction == 2
    assert engine.statistics().in_flight == 0
    assert engine.statistics().delivered == 2


async def test_a_lost_connection_is_deferred(autojump_clock):
    async with scripted(opening(True) + "C: MAIL FROM:<>\nC: RCPT TO:<a@x.test>\n! close") as hosts:
        (found,) = await verify(hosts, A)

    assert told([found.outcome]) == [f"{A} deferred host mail closed -"]


# ---- what was answered before --------------------------------------------------------------------


async def test_answers_are_believed_for_a_while(autojump_clock):
    hints = MemoryHints(clock=trio.current_time)
    dialogue = opening(True) + asked((A, "250 ok"), (B, "550 5.1.1 who")) + BYE
    again = opening(True) + asked((B, "250 ok")) + BYE
    async with scripted(dialogue + NEXT + again) as hosts:
        first = await verify(hosts, A, B, hints=hints)
        second = await verify(hosts, B, A, hints=hints)
        await trio.sleep(3 * 3600)  # refusals are believed for two hours
        third = await verify(hosts, A, B, hints=hints)

    assert [each.outcome.status for each in first] == ["accepted", "failed"]
    assert [each.outcome.status for each in second] == ["failed", "accepted"]
    assert [each.outcome.status for each in third] == ["accepted", "accepted"]
    assert second[0].outcome.reply.code == 550
    assert len(hosts.made) == 2


async def test_another_sender_may_hear_another_answer(autojump_clock):
    hints = MemoryHints()
    dialogue = opening(True) + asked((A, "250 ok")) + BYE
    other = opening(True) + asked((A, "550 no"), sender="me@me.test") + BYE
    async with scripted(dialogue + NEXT + other) as hosts:
        (first,) = await verify(hosts, A, hints=hints)
        (second,) = await verify(hosts, A, hints=hints, sender="me@me.test")

    assert (first.outcome.status, second.outcome.status) == ("accepted", "failed")


async def test_what_was_answered_need_not_count(autojump_clock):
    hints = MemoryHints()
    dialogue = opening(True) + asked((A, "250 ok")) + BYE
    async with scripted(dialogue + NEXT + dialogue) as hosts:
        await verify(hosts, A, hints=hints)
        await verify(hosts, A, hints=hints, fresh=True)

    assert len(hosts.made) == 2


@pytest.mark.parametrize("octets", [b"", b"[]", b"{}", b'{"status": "accepted"}', b"\xff"])
async def test_a_hint_that_cannot_be_read_is_lost(octets, autojump_clock):
    hints = MemoryHints()
    hints.put("callout", f">{A}", octets, seconds=100)
    async with scripted(opening(True) + asked((A, "250 ok")) + BYE) as hosts:
        (found,) = await verify(hosts, A, hints=hints)

    assert found.outcome.status is Status.ACCEPTED


# ---- hosts that take everything ------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "expected"), [("250 ok", True), ("550 no", False)])
async def test_a_host_that_takes_any_address_is_found_out(answer, expected, autojump_clock):
    dialogue = "C: MAIL FROM:<>\nC: RCPT TO:<a@x.test>\nC~ RCPT TO:<????????????????@x.test>\n"
    dialogue = dialogue.replace("?" * 16, "*") + f"S: 250 ok\nS: 250 ok\nS: {answer}\n"
    hints = MemoryHints()
    async with scripted(opening(True) + dialogue + BYE) as hosts:
        (first,) = await verify(hosts, A, hints=hints, catch_all=True)
        (second,) = await verify(hosts, A, hints=hints, catch_all=True)

    assert first.is_catch_all is second.is_catch_all is expected
    assert first.outcome.status is second.outcome.status is Status.ACCEPTED


async def test_a_host_that_will_not_say_is_not_called_one(autojump_clock):
    dialogue = "C: MAIL FROM:<>\nC: RCPT TO:<a@x.test>\nC~ RCPT TO:<*@x.test>\n"
    dialogue += "S: 250 ok\nS: 250 ok\nS: 451 later\n"
    async with scripted(opening(True) + dialogue + BYE) as hosts:
        (found,) = await verify(hosts, A, catch_all=True)

    assert found.is_catch_all is None


# ---- many, and bad -------------------------------------------------------------------------------


async def test_many_are_asked_within_the_limits_of_their_sites(autojump_clock):
    async with serving() as service:
        router = await static_router([MX1], "x.test")
        addresses = [f"{number}@x.test" for number in range(1500)]
        options = settings(max_recipients_per_transaction=50, max_connections=2)
        async with Engine(options, router=router, connector=service, max_in_flight=100) as engine:
            found = await engine.verify(addresses)

    assert [each.outcome.recipient for each in found] == addresses
    assert {each.outcome.status for each in found} == {"accepted"}
    assert service.peak <= 2
    assert service.accepted == []


async def test_an_address_asked_about_twice_is_answered_twice(autojump_clock):
    async with scripted(opening(True) + asked((A, "250 ok")) + BYE) as hosts:
        found = await verify(hosts, A, A)

    assert [each.outcome.recipient for each in found] == [A, A]


async def test_what_is_no_address_is_refused_before_anything_is_asked(autojump_clock):
    async with scripted({}) as hosts:
        with pytest.raises(AddressSyntaxError):
            await verify(hosts, A, "b x@x.test")

    assert hosts.made == []


async def test_an_engine_that_is_draining_asks_nobody(autojump_clock):
    async with scripted({}) as hosts:
        router = await static_router([MX1], "x.test")
        async with Engine(settings(), router=router, connector=hosts) as engine:
            await engine.drain()
            with pytest.raises(EngineClosedError):
                await engine.verify([A])


async def test_a_cancelled_engine_answers_all_the_same(autojump_clock):
    async with scripted(opening(True) + "C: MAIL FROM:<>\nC: RCPT TO:<a@x.test>\n! stall") as hosts:
        router = await static_router([MX1], "x.test")
        found = []
        async with Engine(settings(), router=router, connector=hosts) as engine:

            async def ask() -> None:
                with trio.CancelScope(shield=True):
                    found.extend(await engine.verify([A]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(1)
                engine.cancel()

    assert told([found[0].outcome]) == [f"{A} deferred local mail cancelled -"]


def test_a_reply_of_our_own_making_is_not_kept():
    hints = MemoryHints()
    callout = Callout([A], hints)
    text = "no route"
    callout.hear(
        Outcome("", A, Status.FAILED, Stage.ROUTE, Cause.DNS, text, Scope.DOMAIN, None, None)
    )

    assert hints.get("callout", f">{A}") is None
    (found,) = callout.verifications()
    assert found.outcome.text == text


def test_a_reply_is_kept_with_its_words():
    hints = MemoryHints()
    reply = Reply(550, (b"5.1.1 who",))
    Callout([A], hints).hear(
        Outcome("", A, Status.FAILED, Stage.RCPT, Cause.REPLY, "x", Scope.RECIPIENT, reply, None)
    )

    callout = Callout([A], hints)
    assert callout.message is None
    (found,) = callout.verifications()
    assert found.outcome.reply == reply


@pytest.mark.parametrize("addresses", ["a@x.test", b"a@x.test"])
def test_addresses_are_a_list(addresses):
    with pytest.raises(TypeError, match="allowed is a list of them"):
        Callout(addresses, MemoryHints())
