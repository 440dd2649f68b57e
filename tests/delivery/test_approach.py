"""Whether a host may be used at all: policies, vetoes, our own limits."""

from __future__ import annotations

import pytest

from engine.engine import Engine
from engine.outcome import Peer, Status
from engine.queue.hints import MemoryHints
from engine.report import events
from engine.routing.mta_sts import StsPolicy
from engine.routing.router import Router
from engine.routing.sts_store import HINT_KIND, _Kept, _to_octets
from engine.testing.dns import FakeDns
from tests.delivery.helpers import (
    MX1,
    MX2,
    deliver,
    delivered,
    delivery,
    message,
    opening,
    scripted,
    settings,
    told,
)

A, B = "a@x.test", "b@y.test"
ZONE = {
    "x.test": {"MX": ["10 mx.test", "20 other.test"]},
    "y.test": {"MX": ["10 mx.test", "20 other.test"]},
    "mx.test": {"A": [MX1]},
    "other.test": {"A": [MX2]},
}


async def send(hosts, zone, *messages, authentic=False, options=None, hints=None, **more):
    """Send messages, one after the other, by an engine whose policies come from this DNS."""
    dns = FakeDns(zone, authentic=authentic)
    engine = Engine(
        settings(**(options or {})),
        router=Router(dns),
        resolver=dns,
        connector=hosts,
        hints=hints or MemoryHints(),
        **more,
    )
    found = []
    async with engine:
        for each in messages:
            await engine.submit(each)
            found += [await engine.outcomes.receive() for _ in each.recipients]
    return found


def sts(mode: str, *mx: str, domain: str = "x.test") -> tuple[MemoryHints, dict]:
    """Hints with a policy, and the DNS that says it still holds."""
    hints = MemoryHints()
    kept = _Kept("1", 2e9, StsPolicy(mode, 86400, mx))
    hints.put(HINT_KIND, domain, _to_octets(kept), seconds=86400)
    return hints, {**ZONE, f"_mta-sts.{domain}": {"TXT": ["v=STSv1; id=1"]}}


async def test_a_host_that_a_policy_forbids_is_passed_by(autojump_clock):
    """RFC 8461 §4.1."""
    hints, zone = sts("enforce", "other.test")
    script = "S: 220 other.test\nC: EHLO me.test\nS: 250 other.test\nC: QUIT\nS: 221 bye\n"
    async with scripted({MX2: script}) as hosts:
        (outcome,) = await send(hosts, zone, message(A), hints=hints)

    assert told([outcome]) == [f"{A} deferred host starttls unsupported -"]
    (tried,) = outcome.attempts
    assert (tried.host, tried.stage, tried.cause) == ("mx.test", "policy", "policy")
    assert hosts.made == [MX2]


async def test_a_testing_policy_stands_in_nobodys_way(autojump_clock):
    hints, zone = sts("testing", "elsewhere.test")
    async with scripted({MX1: opening(True) + delivery(A, True)}) as hosts:
        (outcome,) = await send(hosts, zone, message(A), hints=hints)

    assert told([outcome]) == delivered(A)


async def test_a_lookup_that_fails_is_never_taken_for_no_policy(autojump_clock):
    """RFC 7672 §2.1.2."""
    zone = {**ZONE, "_25._tcp.mx.test": {"TLSA": "SERVFAIL"}}
    async with scripted({MX2: opening(True) + delivery(A, True)}) as hosts:
        (outcome,) = await send(hosts, zone, message(A), authentic=["x.test", "mx.test"])

    assert told([outcome]) == delivered(A)
    (tried,) = outcome.attempts
    assert (tried.host, tried.stage, tried.cause) == ("mx.test", "policy", "dns")


async def test_a_message_that_requires_tls_fails_where_nobody_can_vouch_for_the_host(
    autojump_clock,
):
    """RFC 8689 §4.2.1."""
    async with scripted({}) as hosts:
        (outcome,) = await send(hosts, ZONE, message(A, require_tls=True))

    assert outcome.status is Status.FAILED
    assert str(outcome.enhanced) == "5.7.30"
    assert hosts.made == []


async def test_domains_whose_policies_differ_share_no_connection(autojump_clock):
    hints, zone = sts("enforce", "mx.test")
    first = opening(True) + delivery(B, True)
    second = "S: 220 mx.test\nC: EHLO me.test\nS: 250 mx.test\nC: QUIT\nS: 221 bye\n"
    third = "S: 554 no\nC: QUIT\nS: 221 bye\n"
    scripts = {MX1: f"{first}! connection\n{second}", MX2: third}
    async with scripted(scripts, is_watched=False) as hosts:
        outcomes = await send(hosts, zone, message(B), message(A), hints=hints)

    assert not hosts.mismatches
    assert [outcome.status for outcome in outcomes] == ["delivered", "deferred"]
    assert outcomes[1].attempts[0].stage == "starttls"


async def test_domains_whose_policies_agree_share_a_connection(autojump_clock):
    """Signed or not, without TLSA records there is nothing to differ in."""
    dialogue = opening(True) + delivery(A, True) + delivery(B, True)
    async with scripted({MX1: dialogue}) as hosts:
        outcomes = await send(hosts, ZONE, message(A), message(B), authentic=["x.test", "mx.test"])

    assert told(outcomes) == delivered(A, B)
    assert hosts.made == [MX1]


async def test_a_message_that_needs_no_tls_gets_past_the_receivers_policy(autojump_clock):
    """RFC 8689 §3: `TLS-Required: No`."""
    hints, zone = sts("enforce", "other.test")
    content = b"TLS-Required: No\r\n\r\nhello\r\n"
    async with scripted({MX1: opening(True) + delivery(A, True)}) as hosts:
        (outcome,) = await send(hosts, zone, message(A, content=content), hints=hints)

    assert told([outcome]) == delivered(A)


async def test_a_path_without_tls_asks_nobody(autojump_clock):
    hints, zone = sts("enforce", "other.test")
    async with scripted({MX1: opening(True) + delivery(A, True)}) as hosts:
        (outcome,) = await send(hosts, zone, message(A), hints=hints, options={"tls": "off"})

    assert told([outcome]) == delivered(A)


# ---- programs have a say -------------------------------------------------------------------------


async def test_a_greeting_may_be_vetoed(autojump_clock):
    def veto(peer: Peer, greeting: str) -> str | None:
        return f"{peer.host} says {greeting}" if peer.address == MX1 else None

    first = "S: 220 go away please\nC: QUIT\nS: 221 bye\n"
    scripts = {MX1: first, MX2: opening(True) + delivery(A, True)}
    async with scripted(scripts) as hosts:
        (outcome,) = await deliver(hosts, message(A), routes=(MX1, MX2), veto_greeting=veto)

    assert told([outcome]) == delivered(A)
    (tried,) = outcome.attempts
    assert (tried.stage, tried.cause) == ("greeting", "event")
    assert "192.0.2.1 says 220 go away please" in tried.text


async def test_what_hosts_say_and_whom_they_put_off_is_told(autojump_clock):
    seen = []
    dialogue = opening(True) + "C: MAIL FROM:<s@me.test>\nC: RCPT TO:<a@x.test>\nC: DATA\n"
    dialogue += "S: 250 ok\nS: 451 4.2.1 later\nS: 554 nobody\n"
    async with scripted({MX1: dialogue}) as hosts:
        router = Router(FakeDns(ZONE))
        async with Engine(settings(max_hosts_tried=1), router=router, connector=hosts) as engine:
            kinds = events.Greeted, events.HelloAnswered, events.RecipientDeferred
            engine.events.watch(seen.append, *kinds)
            await engine.submit(message(A))
            await engine.outcomes.receive()

    greeting, hello, deferral = seen[:3]
    assert greeting.text.startswith("220 ")
    assert hello.text.startswith("250 ")
    assert (deferral.recipient, deferral.stage, deferral.cause) == (A, "rcpt", "reply")
    assert "451 4.2.1 later" in deferral.text


# ---- our own limits ------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "is_sent"), [(998, False), (999, True), (0, True)])
async def test_lines_longer_than_our_limit_are_not_sent(most, is_sent, autojump_clock):
    content = b"a: b\r\n\r\n" + b"x" * 999 + b"\r\n"
    scripts = {MX1: opening(True) + delivery(A, True)} if is_sent else {}
    async with scripted(scripts) as hosts:
        (outcome,) = await deliver(
            hosts, message(A, content=content), options={"max_line_length": most}
        )

    if is_sent:
        assert told([outcome]) == delivered(A)
    else:
        assert told([outcome]) == [f"{A} failed message policy policy -"]
        assert "999 octets, limit 998" in outcome.text
        assert hosts.made == []
