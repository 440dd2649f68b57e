"""Early pipelining: what is said before the host has greeted, and what becomes of it."""

from __future__ import annotations

import pytest

from engine.delivery.host_memory import HostMemory
from engine.outcome import Peer
from engine.queue.hints import MemoryHints
from engine.smtp.reply import Reply
from tests.delivery.helpers import (
    CONTENT,
    MX1,
    MX2,
    NEXT,
    deliver,
    delivered,
    message,
    places,
    scripted,
    told,
)

A, B = "a@x.test", "b@x.test"
OPTIONS = {"early_pipelining": True}
EARLY = ("PIPELINING", "PIPECONNECT")
CHUNKING = (*EARLY, "CHUNKING")
PEER = Peer(MX1, MX1, 25)
BYE = "C: QUIT\nS: 221 bye\n"


def knowing(*keywords: str, at: Peer = PEER, has_tls: bool = False) -> MemoryHints:
    """Return hints of what a host offers."""
    hints = MemoryHints()
    lines = ("mx.test", *keywords)
    HostMemory(hints, at).note_hello(Reply(250, tuple(map(str.encode, lines))), has_tls=has_tls)
    return hints


def known(hints: MemoryHints, at: Peer = PEER, *, has_tls: bool = False) -> bool:
    return HostMemory(hints, at).hello(has_tls=has_tls) is not None


def hello(*keywords: str) -> str:
    """The reply to EHLO."""
    lines = ["mx.test", *keywords]
    return "".join(f"S: 250-{line}\n" for line in lines[:-1]) + f"S: 250 {lines[-1]}\n"


def said(recipient: str = A, last: str = "DATA") -> str:
    """What is said first."""
    lines = ["EHLO me.test", "MAIL FROM:<s@me.test>", f"RCPT TO:<{recipient}>", last]
    return "".join(f"C: {line}\n" for line in lines)


def in_one_flight(recipient: str = A) -> str:
    return said(recipient, f"BDAT {len(CONTENT)} LAST") + f"C# {len(CONTENT)}\n"


OK = "S: 250 sender ok\nS: 250 ok\n"
GO_ON = OK + "S: 354 go on\nC= content\nS: 250 queued\n"


# ---- all goes well -------------------------------------------------------------------------------


async def test_the_first_time_the_host_speaks_first(drip, autojump_clock):
    hints = MemoryHints()
    first = "S: 220 mx.test\nC: EHLO me.test\n" + hello(*EARLY)
    first += "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n" + GO_ON
    async with scripted(first + BYE, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    assert told([outcome]) == delivered(A)
    assert not outcome.features.early_pipelining
    assert known(hints)


async def test_a_host_that_is_known_is_told_everything_at_once(drip, autojump_clock):
    script = said() + "S: 220 mx.test\n" + hello(*EARLY) + GO_ON + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=knowing(*EARLY))

    assert told([outcome]) == delivered(A)
    assert outcome.features.early_pipelining
    assert outcome.features.pipelining
    assert (outcome.transaction, outcome.peer.connection) == (1, 1)
    words = "EHLO me.test\r\nMAIL FROM:<s@me.test>\r\nRCPT TO:<a@x.test>\r\nDATA\r\n"
    assert hosts.early == [words.encode()]


async def test_commands_may_ride_in_the_syn_and_content_never(drip, autojump_clock):
    script = in_one_flight() + "S: 220 mx.test\n" + hello(*CHUNKING) + OK + "S: 250 queued\n" + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=knowing(*CHUNKING))

    assert told([outcome]) == delivered(A)
    assert outcome.features.chunking
    assert hosts.early[0].endswith(f"BDAT {len(CONTENT)} LAST\r\n".encode())


async def test_mail_goes_on_as_usual_behind_it(drip, autojump_clock):
    second = f"C: MAIL FROM:<s@me.test>\nC: RCPT TO:<{B}>\nC: DATA\n" + GO_ON
    script = said() + "S: 220 mx.test\n" + hello(*EARLY) + GO_ON + second + BYE
    async with scripted(script, drip=drip) as hosts:
        outcomes = await deliver(
            hosts, message(A), message(B), options=OPTIONS, hints=knowing(*EARLY)
        )

    assert told(outcomes) == delivered(A, B)
    assert places(outcomes) == [(1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"early_pipelining": False}, {}),
        ({"early_pipelining": True, "pipelining": False}, {}),
        ({"early_pipelining": True, "esmtp": False}, {}),
        ({"early_pipelining": True, "proxy": "socks5://192.0.2.9", "helo_name": ""}, {}),
    ],
    ids=str,
)
async def test_some_hosts_are_spoken_to_in_turn_all_the_same(options, more, autojump_clock):
    verb = "EHLO" if options.get("esmtp", True) else "HELO"
    async with scripted(f"S: 220 mx.test\nC~ {verb} *\nS: 421 enough\n! expect-eof") as hosts:
        options = {key: value for key, value in options.items() if value != ""}
        if "proxy" in options:
            options["helo_name"] = None
        await deliver(hosts, message(A), options=options, hints=knowing(*EARLY))

    assert hosts.early == [b""]


async def test_without_a_name_the_hello_has_the_address_that_the_host_will_see(autojump_clock):
    """The routing table tells it before there is a connection."""
    script = "C: EHLO [127.0.0.1]\nC: MAIL FROM:<s@me.test>\nC~ RCPT *\nC: DATA\n"
    script += "S: 421 enough\n! expect-eof"
    at = Peer("127.0.0.1", "127.0.0.1", 25)
    async with scripted({"127.0.0.1": script}) as hosts:
        await deliver(
            hosts,
            message(A),
            routes=("127.0.0.1",),
            options={**OPTIONS, "helo_name": None},
            hints=knowing(*EARLY, at=at),
        )


@pytest.mark.parametrize(
    ("replies", "stage"),
    [("", "greeting"), ("S: 220 mx.test\n", "hello")],
    ids=["greeting", "hello"],
)
async def test_behind_a_421_nothing_is_taken(replies, stage, drip, autojump_clock):
    """It ends the session (RFC 5321 §3.8); the whole message has left, and is not in doubt."""
    script = in_one_flight() + replies + "S: 421 4.3.2 going down\n! close\n"
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=knowing(*CHUNKING))

    assert told([outcome]) == [f"{A} deferred host {stage} reply 421"]


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [421, 450, 554])
async def test_a_refused_greeting_is_the_hosts_and_is_forgotten(code, drip, autojump_clock):
    hints = knowing(*EARLY)
    rest = "! expect-eof\n" if code == 421 else "S: 503 no\n" * 4 + BYE
    async with scripted(said() + f"S: {code} go away\n" + rest, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    status = "failed" if code == 554 else "deferred"
    assert told([outcome]) == [f"{A} {status} host greeting reply {code}"]
    assert outcome.transaction is None
    assert not known(hints)


@pytest.mark.parametrize("last", ["DATA", "BDAT"])
async def test_a_refused_greeting_counts_even_where_the_host_then_hangs_up(last, autojump_clock):
    """It takes nothing that follows (RFC 5321 §3.1), so a content that has left is not in doubt."""
    first, keywords = (said(), EARLY) if last == "DATA" else (in_one_flight(), CHUNKING)
    async with scripted(first + "S: 554 go away\n! close") as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=knowing(*keywords))

    assert told([outcome]) == [f"{A} failed host greeting reply 554"]


async def test_a_host_that_goes_on_behind_a_refused_greeting_may_have_the_content(autojump_clock):
    script = in_one_flight() + "S: 554 go away\n" + hello(*CHUNKING) + "! close"
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=knowing(*CHUNKING))

    assert told([outcome]) == [f"{A} unknown message final malformed-reply -"]


@pytest.mark.parametrize("last", ["DATA", "BDAT"])
async def test_a_refused_hello_is_asked_again_in_turn(last, drip, autojump_clock):
    """It was taken for another host; HELO may still be liked."""
    keywords = EARLY if last == "DATA" else CHUNKING
    first = said() if last == "DATA" else in_one_flight()
    script = first + "S: 220 mx.test\n" + "S: 502 no\n" + "S: 503 hello first\n" * 3 + "! close\n"
    script += NEXT + "S: 220 mx.test\nC: EHLO me.test\nS: 502 no\nC: HELO me.test\nS: 250 mx\n"
    script += f"C: MAIL FROM:<s@me.test>\nS: 250 ok\nC: RCPT TO:<{A}>\nS: 250 ok\n"
    script += "C: DATA\nS: 354 go on\nC= content\nS: 250 queued\n" + BYE
    hints = knowing(*keywords)
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    assert told([outcome]) == delivered(A)
    assert (outcome.peer.connection, outcome.transaction, outcome.attempts) == (2, 1, ())
    assert not known(hints)


async def test_a_refusal_of_mail_is_what_it_says(drip, autojump_clock):
    hints = knowing(*EARLY)
    script = said() + "S: 220 mx.test\n" + hello(*EARLY)
    script += "S: 550 5.7.1 not you\nS: 503 no\nS: 503 no\n" + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    assert told([outcome]) == [f"{A} failed message mail reply 550"]
    assert "after pipelined MAIL" in outcome.text
    assert known(hints)


# ---- what a host offers has changed --------------------------------------------------------------


async def test_what_no_longer_fits_is_asked_again_in_turn_at_no_cost(drip, autojump_clock):
    """SIZE= was said to a host that has no SIZE any more."""
    hints = knowing(*EARLY, "SIZE 1000")
    lines = said().replace("<s@me.test>", f"<s@me.test> SIZE={min(len(CONTENT) + 1024, 1000)}")
    script = lines + "S: 220 mx.test\n" + hello(*EARLY) + "! close\n"
    script += NEXT + "S: 220 mx.test\nC: EHLO me.test\n" + hello(*EARLY)
    script += "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n" + GO_ON + BYE
    async with scripted(script, drip=drip, is_watched=False) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    assert not hosts.mismatches
    assert told([outcome]) == delivered(A)
    assert (outcome.peer.connection, outcome.transaction, outcome.attempts) == (2, 1, ())
    assert not outcome.features.early_pipelining
    assert known(hints)


async def test_a_content_that_was_accepted_all_the_same_is_not_sent_twice(drip, autojump_clock):
    """CHUNKING is gone from the list, and was taken."""
    hints = knowing(*CHUNKING)
    script = in_one_flight() + "S: 220 mx.test\n" + hello("PIPELINING") + OK + "S: 250 queued\n"
    async with scripted(script + BYE, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    assert told([outcome]) == delivered(A)
    assert not known(hints)


async def test_a_content_that_was_refused_for_it_is_sent_in_turn(drip, autojump_clock):
    hints = knowing(*CHUNKING)
    script = in_one_flight() + "S: 220 mx.test\n" + hello("PIPELINING") + OK + "S: 500 what\n"
    script += "! expect-eof\n" + NEXT + "S: 220 mx.test\nC: EHLO me.test\n" + hello("PIPELINING")
    script += "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n" + GO_ON + BYE
    async with scripted(script, drip=drip, is_watched=False) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    assert told([outcome]) == delivered(A)
    assert outcome.attempts == ()


async def test_a_content_whose_reply_is_lost_is_unknown_whatever_was_offered(autojump_clock):
    script = in_one_flight() + "S: 220 mx.test\n" + hello("PIPELINING") + OK + "! close\n"
    async with scripted(script) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=knowing(*CHUNKING))

    assert told([outcome]) == [f"{A} unknown message final closed -"]


async def test_more_than_was_known_is_no_harm(drip, autojump_clock):
    hints = knowing(*EARLY)
    script = said() + "S: 220 mx.test\n" + hello(*CHUNKING) + GO_ON + BYE
    async with scripted(script, drip=drip) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=hints)

    # It would say BDAT now; but nothing is wrong with DATA either.
    assert told([outcome])[0].split()[1] == "delivered"


# ---- lost connections ----------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["", "S: 220 mx.test\n"])
async def test_a_connection_that_is_lost_early_goes_to_the_next_host(when, autojump_clock):
    hints = knowing(*EARLY)
    second = "S: 220 mx2.test\nC: EHLO me.test\n" + hello("PIPELINING")
    second += "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n" + GO_ON + BYE
    async with scripted({MX1: said() + when + "! close\n", MX2: second}) as hosts:
        (outcome,) = await deliver(
            hosts, message(A), routes=(MX1, MX2), options=OPTIONS, hints=hints
        )

    assert told([outcome]) == delivered(A)
    (tried,) = outcome.attempts
    assert (tried.stage, tried.cause) == ("hello" if when else "greeting", "closed")
    assert not known(hints)


async def test_a_host_that_cannot_be_connected_to_is_no_transaction(autojump_clock):
    async with scripted({}) as hosts:
        (outcome,) = await deliver(hosts, message(A), options=OPTIONS, hints=knowing(*EARLY))

    assert told([outcome]) == [f"{A} deferred host connect refused -"]
    assert outcome.transaction is None
    assert outcome.peer.connection is None


async def test_a_host_that_cannot_be_connected_to_is_followed_by_the_next(autojump_clock):
    second = said() + "S: 220 mx2.test\n" + hello(*EARLY) + GO_ON + BYE
    hints = knowing(*EARLY)
    HostMemory(hints, Peer(MX2, MX2, 25)).note_hello(
        Reply(250, (b"mx2.test", b"PIPELINING", b"PIPECONNECT")), has_tls=False
    )
    async with scripted({MX2: second}) as hosts:
        (outcome,) = await deliver(
            hosts, message(A), routes=(MX1, MX2), options=OPTIONS, hints=hints
        )

    assert told([outcome]) == delivered(A)
    assert [tried.cause for tried in outcome.attempts] == ["refused"]
