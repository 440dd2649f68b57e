from __future__ import annotations

import socket
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from engine.engine import Engine
from engine.net.connector import Connector
from engine.net.errors import ConnectFailed
from engine.outcome import Cause, Scope, Status
from engine.routing.router import Router
from engine.smtp.stages import Stage
from engine.testing.dns import FakeDns
from tests.delivery.helpers import (
    NEXT,
    deliver,
    delivered,
    greeted,
    message,
    scripted,
    serving,
    settings,
    told,
    transaction,
)

if TYPE_CHECKING:
    from engine.message import Message

A, B, C = "a@x.test", "b@x.test", "c@x.test"
MX1, MX2, MX3 = "192.0.2.1", "192.0.2.2", "192.0.2.3"
THREE = [MX1, MX2, MX3]
OPENING = greeted("PIPELINING")


def delivery(*recipients: str) -> str:
    return OPENING + transaction(*[(to, "250 ok") for to in recipients], pipelined=True)


def refusal(reply: str, *recipients: str) -> str:
    """A host that says the same to every RCPT."""
    each = [(to, reply) for to in recipients]
    return OPENING + transaction(*each, pipelined=True, data="554 nobody")


def tried(outcome) -> list[tuple[str | None, str, str]]:
    return [(each.address, str(each.stage), str(each.cause)) for each in outcome.attempts]


# ---- from host to host ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "stage", "cause"),
    [
        ("S: 421 4.3.2 busy", "greeting", "reply"),
        ("S: 554 5.7.1 not you", "greeting", "reply"),
        ("! close", "greeting", "closed"),
        ("! stall", "greeting", "timeout"),
        ("S: nonsense", "greeting", "malformed-reply"),
        ("S: 220 hi\nC: EHLO me.test\n! reset", "hello", "closed"),
        (
            OPENING + transaction((A, "503 no"), pipelined=True, mail="451 x", data="503 no"),
            "mail",
            "reply",
        ),
        (refusal("451 4.2.0 busy", A), "rcpt", "reply"),
        (refusal("452 4.5.3 full", A), "rcpt", "reply"),
        (OPENING + transaction((A, "250 ok"), pipelined=True, data="451 x"), "data", "reply"),
        (OPENING + transaction((A, "250 ok"), pipelined=True, final="451 x"), "final", "reply"),
    ],
)
async def test_what_one_host_defers_the_next_may_take(first, stage, cause, drip, autojump_clock):
    async with scripted({MX1: first, MX2: delivery(A)}, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=[MX1, MX2])

    assert told([outcome]) == delivered(A)
    assert tried(outcome) == [(MX1, stage, cause)]
    assert hosts.made == [MX1, MX2]


@pytest.mark.parametrize(
    "first",
    [
        refusal("550 5.1.1 who", A),
        OPENING + transaction((A, "503 no"), pipelined=True, mail="550 x", data="503 no"),
        OPENING + transaction((A, "250 ok"), pipelined=True, data="554 x"),
        OPENING + transaction((A, "250 ok"), pipelined=True, final="554 x"),
    ],
    ids=["rcpt", "mail", "data", "final"],
)
async def test_what_one_host_refuses_for_good_no_other_is_asked(first, autojump_clock):
    async with scripted({MX1: first}) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=[MX1, MX2])

    assert outcome.status is Status.FAILED
    assert hosts.made == [MX1]
    assert outcome.attempts == ()


@pytest.mark.parametrize("ending", ["! close", "! stall", "S: nonsense"])
async def test_an_unknown_never_goes_to_the_next_host(ending, autojump_clock):
    """It may have been accepted: a second host would be a second copy."""
    lost = delivery(A).rpartition("S: ")[0] + ending
    async with scripted({MX1: lost}) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=[MX1, MX2])

    assert (outcome.status, outcome.scope) == (Status.UNKNOWN, Scope.MESSAGE)
    assert hosts.made == [MX1]


async def test_attempts_are_recorded_in_order(autojump_clock):
    scripts = {MX1: "! close", MX2: refusal("450 4.2.1 busy", A), MX3: "S: 421 busy"}
    async with scripted(scripts) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=THREE)

    assert told([outcome]) == [f"{A} deferred host greeting reply 421"]
    assert tried(outcome) == [(MX1, "greeting", "closed"), (MX2, "rcpt", "reply")]
    assert outcome.attempts[1].text == (
        f"SMTP error from {MX2} [{MX2}]:25 after pipelined RCPT TO:<{A}>: 450 4.2.1 busy"
    )


async def test_each_recipient_has_its_own_way(autojump_clock):
    first = OPENING + transaction(
        (A, "250 ok"), (B, "550 5.1.1 who"), (C, "451 4.2.0 busy"), pipelined=True
    )
    async with scripted({MX1: first, MX2: delivery(C)}) as hosts:
        outcomes = await deliver(hosts, message(A, B, C), routes=[MX1, MX2])

    assert told(outcomes) == [
        *delivered(A),
        f"{B} failed recipient rcpt reply 550",
        *delivered(C),
    ]
    assert {outcome.recipient: tried(outcome) for outcome in outcomes} == {
        A: [],
        B: [],
        C: [(MX1, "rcpt", "reply")],
    }


async def test_only_whoever_was_deferred_is_asked_elsewhere(autojump_clock):
    first = OPENING + transaction((A, "451 x"), (B, "451 x"), pipelined=True, data="554 nobody")
    second = OPENING + transaction((A, "250 ok"), (B, "451 x"), pipelined=True)
    async with scripted({MX1: first, MX2: second, MX3: delivery(B)}) as hosts:
        outcomes = await deliver(hosts, message(A, B), routes=THREE)

    assert told(outcomes) == delivered(A, B)
    assert [len(outcome.attempts) for outcome in sorted(outcomes, key=lambda o: o.recipient)] == [
        1,
        2,
    ]


async def test_a_lost_connection_defers_those_accepted_to_the_next_host(autojump_clock):
    said = f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{A}>\nC: DATA\nS: 250 ok\nS: 250 ok\n! close"
    async with scripted({MX1: OPENING + said, MX2: delivery(A)}) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=[MX1, MX2])

    assert told([outcome]) == delivered(A)
    assert tried(outcome) == [(MX1, "data", "closed")]


async def test_the_last_host_decides_where_none_takes_it(autojump_clock):
    scripts = {MX1: "S: 421 one", MX2: "S: 450 two", MX3: "! close"}
    async with scripted(scripts) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=THREE)

    assert told([outcome]) == [f"{A} deferred host greeting closed -"]
    assert tried(outcome) == [(MX1, "greeting", "reply"), (MX2, "greeting", "reply")]


# ---- refused at set-up ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scripts", "status"),
    [
        ({MX1: "S: 554 no", MX2: "S: 521 no"}, "failed"),
        ({MX1: "S: 554 no", MX2: "S: 421 busy"}, "deferred"),
        ({MX1: "S: 421 busy", MX2: "S: 554 no"}, "deferred"),
        ({MX1: "S: 554 no"}, "deferred"),  # MX2 refuses the connection
        ({MX2: "S: 554 no"}, "deferred"),
        ({MX1: "S: 554 no", MX2: "! stall"}, "deferred"),
        ({MX1: "S: 554 no", MX2: refusal("451 busy", A)}, "deferred"),
        ({MX1: refusal("451 busy", A), MX2: "S: 554 no"}, "deferred"),
    ],
)
async def test_a_host_that_refuses_us_is_final_only_if_all_do(scripts, status, autojump_clock):
    async with scripted(scripts) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=[MX1, MX2])

    assert outcome.status == status
    assert hosts.made == [MX1, MX2]


# ---- how many hosts ------------------------------------------------------------------------------


async def test_no_more_hosts_than_allowed_are_tried(autojump_clock):
    async with scripted({MX1: "S: 421 x", MX2: "S: 421 x"}) as hosts:
        options = {"max_hosts_tried_hard": 2}
        (outcome,) = await deliver(hosts, message(A), routes=THREE, options=options)

    assert told([outcome]) == [f"{A} deferred host greeting reply 421"]
    assert hosts.made == [MX1, MX2]


ZONE = {
    "x.test": {"MX": ["10 one.test", "20 two.test", "5 best.test"]},
    "best.test": {"A": ["192.0.2.51", "192.0.2.52", "192.0.2.53"]},
    "one.test": {"A": ["192.0.2.1"]},
    "two.test": {"A": ["192.0.2.2"]},
}


async def test_hosts_are_tried_by_mx_preference(autojump_clock):
    async with scripted({MX2: delivery(A)}) as hosts:
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(ZONE), rng=Random(1))

    assert told([outcome]) == delivered(A)
    assert set(hosts.made[:3]) == {"192.0.2.51", "192.0.2.52", "192.0.2.53"}
    assert hosts.made[3:] == [MX1, MX2]
    assert outcome.peer is not None
    assert (outcome.peer.host, len(outcome.attempts)) == ("two.test", 4)


async def test_beyond_the_limit_only_backup_hosts_are_reached(autojump_clock):
    """However many addresses the best host has."""
    async with scripted({MX2: delivery(A)}) as hosts:
        (outcome,) = await deliver(
            hosts, message(A), resolver=FakeDns(ZONE), options={"max_hosts_tried": 2}
        )

    assert told([outcome]) == delivered(A)
    assert hosts.made[2:] == [MX1, MX2]


async def test_equals_are_shuffled(autojump_clock):
    first = set()
    for seed in range(12):
        async with scripted({}) as hosts:
            await deliver(hosts, message(A), resolver=FakeDns(ZONE), rng=Random(seed))
        first.add(hosts.made[0])

    assert first == {"192.0.2.51", "192.0.2.52", "192.0.2.53"}


async def test_a_host_without_address_counts_as_tried(autojump_clock):
    zone = {
        "x.test": {"MX": ["10 gone.test", "20 two.test"]},
        "two.test": {"A": [MX2]},
    }
    async with scripted({MX2: delivery(A)}) as hosts:
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(zone))

    assert told([outcome]) == delivered(A)
    (gone,) = outcome.attempts
    assert (gone.host, gone.address, gone.stage, gone.cause) == (
        "gone.test",
        None,
        Stage.ROUTE,
        Cause.DNS,
    )


@pytest.mark.parametrize(("records", "status"), [(None, "failed"), ("SERVFAIL", "deferred")])
async def test_hosts_without_address_and_hosts_that_refuse_us(records, status, autojump_clock):
    zone = {"x.test": {"MX": ["10 one.test", "20 gone.test"]}, "one.test": {"A": [MX1]}}
    if records:
        zone["gone.test"] = {"A": records, "AAAA": records}
    async with scripted({MX1: "S: 554 no"}) as hosts:
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(zone))

    assert outcome.status == status
    assert (outcome.stage, outcome.cause) == (Stage.ROUTE, Cause.DNS)


# ---- several at once -----------------------------------------------------------------------------

EQUALS = {
    "x.test": {"MX": ["10 mx.test", "20 two.test"]},
    "mx.test": {"A": [MX1, "192.0.2.51"], "AAAA": ["2001:db8::1", "2001:db8::2"]},
    "two.test": {"A": [MX2]},
}
V6 = "2001:db8::1", "2001:db8::2"


async def test_a_host_that_does_not_answer_is_overtaken_by_its_equals(autojump_clock):
    """RFC 8305 §5: each a quarter of a second later, and the families by turns (§4)."""
    async with scripted({MX1: delivery(A), "192.0.2.51": delivery(A)}, is_watched=False) as hosts:
        hosts.slow = dict.fromkeys(V6, 60.0)
        started = trio.current_time()
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(EQUALS), rng=Random(3))

        assert trio.current_time() - started == pytest.approx(0.25)
    assert told([outcome]) == delivered(A)
    first, second = hosts.made
    assert first in V6
    assert second not in V6
    # It neither failed nor was it left: it was too slow for this time.
    assert outcome.attempts == ()
    assert outcome.peer.connection == 1


async def test_a_host_that_fails_is_followed_by_its_equals_at_once(autojump_clock):
    async with scripted({MX1: delivery(A)}) as hosts:
        started = trio.current_time()
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(EQUALS), rng=Random(3))

        assert trio.current_time() - started == 0
    assert told([outcome]) == delivered(A)
    assert set(hosts.made[:-1]) | {MX1} <= {*V6, MX1, "192.0.2.51"}
    assert [tried.address for tried in outcome.attempts] == hosts.made[:-1]


async def test_backups_do_not_race(autojump_clock):
    async with scripted({MX2: delivery(A)}) as hosts:
        hosts.slow = dict.fromkeys((*V6, MX1, "192.0.2.51"), 60.0)
        started = trio.current_time()
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(EQUALS))

        assert 60 <= trio.current_time() - started < 61
    assert told([outcome]) == delivered(A)
    assert hosts.made[-1] == MX2
    assert len(outcome.attempts) == 4


async def test_a_race_takes_no_more_connections_than_the_site_may_have(autojump_clock):
    async with scripted({MX1: delivery(A), "192.0.2.51": delivery(A)}, is_watched=False) as hosts:
        hosts.slow = dict.fromkeys(V6, 10.0)
        started = trio.current_time()
        (outcome,) = await deliver(
            hosts,
            message(A),
            resolver=FakeDns(EQUALS),
            rng=Random(3),
            options={"max_connections": 1},
        )

        assert trio.current_time() - started >= 10
    assert told([outcome]) == delivered(A)


async def test_who_lost_a_race_is_still_there_for_the_next_try(autojump_clock):
    """It is no host that was tried."""
    zone = {"x.test": {"MX": ["10 mx.test"]}, "mx.test": {"A": [MX1], "AAAA": [V6[0]]}}
    scripts = {MX1: "S: 421 busy", V6[0]: delivery(A)}
    async with scripted(scripts) as hosts:
        hosts.slow = {V6[0]: 1.0}
        (outcome,) = await deliver(hosts, message(A), resolver=FakeDns(zone))

    assert told([outcome]) == delivered(A)
    assert hosts.made == [V6[0], MX1, V6[0]]
    assert [tried.address for tried in outcome.attempts] == [MX1]


async def test_a_cancelled_race_leaves_nothing(autojump_clock):
    async with scripted({}) as hosts:
        hosts.slow = dict.fromkeys((*V6, MX1, "192.0.2.51"), 60.0)
        engine = Engine(settings(), router=Router(FakeDns(EQUALS)), connector=hosts)
        async with engine:
            await engine.submit(message(A))
            await trio.sleep(0.4)
            engine.cancel()
        outcomes = [outcome async for outcome in engine.outcomes]

    assert told(outcomes) == [f"{A} deferred local connect cancelled -"]
    assert engine.statistics().connections_open == 0


# ---- one at a time -------------------------------------------------------------------------------


async def test_a_host_gets_one_connection_at_a_time_where_it_must(autojump_clock):
    """Although two sites lead to it, and many messages wait."""
    zone = {
        "x.test": {"MX": ["10 mx.test"]},
        "y.test": {"MX": ["10 mx.test", "20 two.test"]},
        "mx.test": {"A": [MX1]},
        "two.test": {"A": [MX2]},
    }
    async with serving(delay=1.0) as service:
        router = Router(FakeDns(zone))
        options = settings(serialize=True, max_messages_per_connection=2)
        async with Engine(options, router=router, connector=service) as engine:
            for number in range(10):
                await engine.submit(message(f"{number}@{'xy'[number % 2]}.test"))
        outcomes = [outcome async for outcome in engine.outcomes]

    assert {outcome.status for outcome in outcomes} == {"delivered"}
    assert len(outcomes) == 10
    assert (service.peak, len(service.made)) == (1, 6)


# ---- where from ----------------------------------------------------------------------------------


async def test_a_function_may_choose_where_a_message_comes_from(autojump_clock):
    """And no two messages share a connection that should come from different addresses."""

    def choose(host: str, envelope: Message) -> list[str]:
        assert host == MX1
        return ["198.51.100.1" if "one" in str(envelope.reverse_path) else "198.51.100.2"]

    first = OPENING
    for recipient in (A, B):
        to = recipient, "250 ok"
        first += transaction(to, pipelined=True, sender="one@me.test")
    second = OPENING + transaction((C, "250 ok"), pipelined=True, sender="two@me.test")
    async with scripted({MX1: first + NEXT + second}) as hosts:
        outcomes = await deliver(
            hosts,
            message(A, sender="one@me.test"),
            message("c@x.test", sender="two@me.test"),
            message(B, sender="one@me.test"),
            options={"interface": choose},
        )

    assert told(outcomes) == delivered(A, B, "c@x.test")
    assert [options.interface for options in hosts.options] == [
        ("198.51.100.1",),
        ("198.51.100.2",),
    ]


@pytest.mark.parametrize("answer", [["eth0"], None, [1], object()])
async def test_a_function_that_chooses_no_address_is_our_fault(answer, autojump_clock):
    async with scripted({}) as hosts:
        (outcome,) = await deliver(
            hosts, message(A), options={"interface": lambda _host, _envelope: answer}
        )

    assert told([outcome]) == [f"{A} deferred source connect config -"]
    assert hosts.made == []


# ---- hosts that cannot be connected to -----------------------------------------------------------


async def test_a_host_that_refuses_connections_rests(autojump_clock):
    """The next messages do not knock again; their attempts say what was found."""
    first, second = delivery(A), transaction((B, "250 ok"), pipelined=True)
    async with scripted({MX2: first + second}) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), routes=[MX1, MX2])

    assert told(outcomes) == delivered(A, B)
    assert hosts.made == [MX1, MX2]


async def test_a_message_that_finds_all_hosts_resting_is_deferred_with_the_reason(autojump_clock):
    async with scripted({}) as hosts:
        first, second = await deliver(hosts, message(A), message(B), routes=[MX1])

    assert told([first]) == [f"{A} deferred host connect refused -"]
    assert told([second]) == [f"{B} deferred host connect refused -"]
    assert first.text == second.text == f"connect to {MX1} [{MX1}]:25: Connection refused"
    assert str(second.enhanced) == "4.4.1"
    assert hosts.made == [MX1]


async def test_a_host_rests_however_many_messages_come_meanwhile(autojump_clock):
    recipients = [f"{number}@site.test" for number in range(9)]
    async with scripted({}) as hosts:
        outcomes = await deliver(hosts, *map(message, recipients), routes=[MX1])

    assert len(told(outcomes)) == 9
    assert hosts.made == [MX1]


@pytest.mark.parametrize("script", ["! stall", "S: 220 mx.test\nC: EHLO me.test\n! stall"])
async def test_a_silent_host_rests(script, autojump_clock):
    """Every message would wait for it as long as the first one did."""
    first, second = delivery(A), transaction((B, "250 ok"), pipelined=True)
    async with scripted({MX1: script, MX2: first + second}) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), routes=[MX1, MX2])

    assert told(outcomes) == delivered(A, B)
    assert hosts.made == [MX1, MX2]
    assert [tried.cause for tried in outcomes[0].attempts] == ["timeout"]


async def test_a_host_that_answers_does_not_rest(autojump_clock):
    """What it says to one message, it may not say to the next."""
    scripts = {MX1: "S: 450 not now\n" + NEXT + delivery(B), MX2: delivery(A)}
    async with scripted(scripts) as hosts:
        async with Engine(settings(), routes=[("*", [MX1, MX2])], connector=hosts) as engine:
            for recipient in (A, B):
                await engine.submit(message(recipient))
                outcome = await engine.outcomes.receive()
                assert told([outcome]) == delivered(recipient)
                await trio.sleep(6)

    assert hosts.made == [MX1, MX2, MX1]


@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ("S: 421 not now", "deferred host greeting reply 421"),
        ("S: 554 never", "failed host greeting reply 554"),
        ("! close", "deferred host greeting closed -"),
        ("S: 220 mx.test\nC: EHLO me.test\nS: 421 not now", "deferred host hello reply 421"),
    ],
)
async def test_a_host_that_turns_three_connections_away_in_a_row_rests(
    script, verdict, autojump_clock
):
    """A backlog must not knock once for each message."""
    recipients = [f"{number}@site.test" for number in range(5)]
    async with scripted({MX1: NEXT.join([script + "\n"] * 3)}) as hosts:
        outcomes = await deliver(hosts, *map(message, recipients), routes=[MX1])

    assert told(outcomes) == [f"{recipient} {verdict}" for recipient in recipients]
    assert hosts.made == [MX1] * 3


HELLO = "S: 220 mx.test\nC: EHLO me.test\nS: 250 mx.test\nC: MAIL FROM:<s@me.test>\n"


@pytest.mark.parametrize(
    ("end", "verdict"),
    [
        ("S: 421 4.7.28 too much of you", "deferred host mail reply 421"),
        ("! close", "deferred host mail closed -"),
    ],
)
async def test_a_host_that_ends_three_sessions_in_a_row_at_their_first_mail_rests(
    end, verdict, autojump_clock
):
    """It limits how much it takes of us; with a connection for each message we would ask for worse."""
    recipients = [f"{number}@site.test" for number in range(40)]
    script = NEXT.join([f"{HELLO}{end}\n"] * 10)
    async with scripted({MX1: script}, is_watched=False) as hosts:
        outcomes = await deliver(
            hosts, *map(message, recipients), routes=[MX1], options={"max_connections": 3}
        )

    assert sorted(told(outcomes)) == sorted(f"{recipient} {verdict}" for recipient in recipients)
    assert 3 <= len(hosts.made) <= 5  # two may be under way when the third one has ended
    # The last ones were not said a word for; their outcomes tell why, and of nobody else's mail.
    assert "192.0.2.1 [192.0.2.1]:25 ends sessions before it takes any mail" in outcomes[-1].text
    assert "s@me.test" not in outcomes[-1].text


async def test_a_host_that_ends_a_session_behind_mail_it_took_does_not_rest(autojump_clock):
    """So servers do that limit the messages of a connection."""
    recipients = [f"{number}@site.test" for number in range(10)]
    scripts = [
        delivery(taken)
        + f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{left}>\nC: DATA\nS: 421 4.7.0 enough\n"
        for taken, left in zip(recipients[::2], recipients[1::2], strict=True)
    ]
    async with scripted({MX1: NEXT.join(scripts)}) as hosts:
        outcomes = await deliver(
            hosts, *map(message, recipients), routes=[MX1], options={"max_connections": 1}
        )

    assert [outcome.status for outcome in outcomes] == ["delivered", "deferred"] * 5
    assert hosts.made == [MX1] * 5


@pytest.mark.parametrize("start", ["", HELLO], ids=["at once", "at the first mail"])
async def test_mail_that_is_taken_ends_the_count_of_those_turned_away(start, autojump_clock):
    busy = f"{start}S: 421 not now\n" + NEXT
    scripts = {MX1: busy * 2 + delivery(A) + NEXT + busy * 2 + delivery(B)}
    async with scripted(scripts) as hosts:
        async with Engine(settings(), routes=[("*", [MX1])], connector=hosts) as engine:
            for recipient in (*"vw", A, *"xy", B):
                await engine.submit(
                    message(recipient if "@" in recipient else f"{recipient}@c.test")
                )
                outcome = await engine.outcomes.receive()
                await trio.sleep(6)

    assert told([outcome]) == delivered(B)
    assert hosts.made == [MX1] * 6


async def test_a_host_that_rested_is_tried_again(autojump_clock):
    async with scripted({}) as hosts:
        async with Engine(settings(), routes=[("*", [MX1])], connector=hosts) as engine:
            for _ in range(2):
                await engine.submit(message(A))
                await engine.outcomes.receive()
                await trio.sleep(16)

    assert hosts.made == [MX1, MX1]


class BrokenConnector:
    """Fails in one way."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure
        self.asked = 0

    async def connect(self, candidate, options):
        self.asked += 1
        await trio.lowlevel.checkpoint()
        raise self.failure


@pytest.mark.parametrize("scope", [Scope.SOURCE, Scope.LOCAL])
async def test_what_is_our_own_fault_makes_no_host_rest(scope, autojump_clock):
    failure = ConnectFailed(Stage.CONNECT, Cause.CONFIG, scope, "bind: not ours")
    connector = BrokenConnector(failure)
    async with scripted({}) as hosts:
        outcomes = await deliver(hosts, message(A), message(B), routes=[MX1], connector=connector)

    assert told(outcomes) == [f"{to} deferred {scope} connect config -" for to in (A, B)]
    assert {str(outcome.enhanced) for outcome in outcomes} == {"4.3.5"}
    assert connector.asked == 2


async def test_an_unexpected_exception_defers_and_never_bounces(autojump_clock, caplog):
    connector = BrokenConnector(ZeroDivisionError("oh no"))
    async with scripted({}) as hosts:
        outcomes = await deliver(hosts, message(A, B), routes=[MX1, MX2], connector=connector)

    assert told(outcomes) == [f"{to} deferred local connect internal -" for to in (A, B)]
    assert "ZeroDivisionError: oh no" in caplog.text
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_refused_connection_over_real_sockets_is_told(unused_port):
    async with Engine(
        settings(), routes=[("*", [f"127.0.0.1:{unused_port}"])], connector=Connector()
    ) as engine:
        await engine.submit(message(A))
        outcome = await engine.outcomes.receive()

    assert told([outcome]) == [f"{A} deferred host connect refused -"]
    assert outcome.peer is not None
    assert (outcome.peer.port, outcome.peer.connection) == (unused_port, None)
    assert engine.statistics().connections_failed == 1
    assert engine.statistics().connections_opened == 0


@pytest.fixture
def unused_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# ---- the same host again -------------------------------------------------------------------------


async def test_a_host_asked_again_for_free_counts_once(autojump_clock):
    """Stale connection, then a new one that fails: the walk goes on with the next host."""
    stale = f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{B}>\nC: DATA\n! close\n"
    first = delivery(A) + stale + "! connection\nS: 421 busy\n"
    async with scripted({MX1: first, MX2: delivery(B)}) as hosts:
        _, outcome = await deliver(hosts, message(A), message(B), routes=[MX1, MX2])

    assert told([outcome]) == delivered(B)
    assert tried(outcome) == [(MX1, "greeting", "reply")]
    assert hosts.made == [MX1, MX1, MX2]


async def test_a_host_asked_on_a_shared_connection_is_not_asked_again(autojump_clock):
    """The best host rests, so a message began with the second one: that one has had its say."""
    second = delivery(A) + transaction((B, "451 busy"), pipelined=True, data="554 nobody")
    async with scripted({MX2: second}) as hosts:
        _, outcome = await deliver(hosts, message(A), message(B), routes=[MX1, MX2])

    assert outcome.status is Status.DEFERRED
    assert (MX2, "rcpt", "reply") in [
        *tried(outcome),
        (outcome.peer.address, str(outcome.stage), str(outcome.cause)),
    ]
    assert hosts.made == [MX1, MX2]


# ---- vetoes --------------------------------------------------------------------------------------


async def test_a_vetoed_host_is_not_connected_to_and_the_next_one_is_tried(autojump_clock):
    asked = []

    def veto(peer, site):
        asked.append((peer.address, peer.port, site))
        return "blocked\nfor now" if peer.address == MX1 else None

    dialogue = greeted() + transaction((A, "250 ok"), pipelined=False)
    async with scripted({MX2: dialogue}) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=[MX1, MX2], veto=veto)

    assert outcome.status is Status.DELIVERED
    assert asked == [(MX1, 25, f"{MX1},{MX2}"), (MX2, 25, f"{MX1},{MX2}")]
    (tried,) = outcome.attempts
    assert (tried.stage, tried.cause) == ("connect", "event")
    assert tried.text == rf"{MX1} [{MX1}]:25 is not to be connected to now: blocked\nfor now"


async def test_a_veto_of_the_only_host_defers(autojump_clock):
    async with scripted({}) as hosts:
        (outcome,) = await deliver(hosts, message(A), veto=lambda *_: "not today")

    assert told([outcome]) == [f"{A} deferred host connect event -"]
    assert str(outcome.enhanced) == "4.7.1"
