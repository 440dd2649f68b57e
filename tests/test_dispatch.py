from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.outcome import Cause, Scope, Status
from engine.paths import PathRule, SettingsTable
from engine.routing.resolver import Resolver
from engine.routing.router import Router
from engine.smtp.stages import Stage
from engine.testing.dns import FakeDns
from tests.delivery.helpers import (
    MX1,
    MX2,
    ZONE,
    an_engine,
    greeted,
    message,
    outcomes_of,
    scripted,
    serving,
    settings,
    told,
    transaction,
)

# ---- ways ----------------------------------------------------------------------------------------


async def test_recipients_of_one_site_travel_together(autojump_clock):
    """However many domains they belong to, and in the order in which they were given."""
    everybody = ["a@x.test", "b@y.test", "c@x.test"]
    dialogue = greeted("PIPELINING") + transaction(
        ("a@x.test", "250 ok"), ("b@y.test", "250 ok"), ("c@x.test", "250 ok"), pipelined=True
    )
    async with scripted(dialogue) as hosts, an_engine(hosts, zone=ZONE) as engine:
        await engine.submit(message(*everybody))
        found = [await engine.outcomes.receive() for _ in everybody]

    assert told(found) == [f"{to} delivered - final reply 250" for to in sorted(everybody)]
    assert {outcome.transaction for outcome in found} == {1}


async def test_recipients_of_different_sites_do_not_wait_for_each_other(autojump_clock):
    async with serving(delay=5) as service, an_engine(service, zone=ZONE) as engine:
        await engine.submit(message("a@x.test", "b@z.test"))
        found = [await engine.outcomes.receive() for _ in range(2)]
        assert trio.current_time() == pytest.approx(5)

    assert {outcome.peer.host for outcome in found if outcome.peer} == {"mx.test", "other.test"}


@pytest.mark.parametrize(
    ("domain", "status", "enhanced"),
    [
        ("nowhere.test", Status.FAILED, "5.1.2"),
        ("closed.test", Status.FAILED, "5.1.10"),
        ("broken.test", Status.DEFERRED, "4.4.3"),
        ("slow.test", Status.DEFERRED, "4.4.3"),
    ],
)
async def test_what_cannot_be_routed_is_told(domain, status, enhanced, autojump_clock):
    async with serving() as service, an_engine(service, zone=ZONE) as engine:
        await engine.submit(message(f"a@{domain}", f"b@{domain}", "c@x.test"))
        found = {
            outcome.recipient: outcome
            for outcome in [await engine.outcomes.receive() for _ in range(3)]
        }

    assert found["c@x.test"].status is Status.DELIVERED
    for outcome in (found[f"a@{domain}"], found[f"b@{domain}"]):
        assert (outcome.status, outcome.stage, outcome.cause) == (status, Stage.ROUTE, Cause.DNS)
        assert (str(outcome.enhanced), outcome.scope, outcome.peer) == (
            enhanced,
            Scope.DOMAIN,
            None,
        )


async def test_slow_dns_for_one_domain_does_not_delay_another(autojump_clock):
    async with serving() as service, an_engine(service, zone=ZONE) as engine:
        await engine.submit(message("slow@slow.test"))
        await engine.submit(message("quick@x.test"))

        first = await engine.outcomes.receive()

        assert (first.recipient, first.timings.route) == ("quick@x.test", 0)
        assert trio.current_time() == pytest.approx(0)
        second = await engine.outcomes.receive()
        assert second.timings.route == pytest.approx(5)


async def test_a_known_way_is_not_asked_for_again(autojump_clock):
    dns = FakeDns(ZONE)
    async with serving() as service, an_engine(service, router=Router(dns)) as engine:
        for _ in range(5):
            await engine.submit(message())
            await engine.outcomes.receive()

    assert dns.asked["x.test", "MX"] == 1


async def test_an_address_literal_is_its_own_way(autojump_clock):
    async with serving() as service, an_engine(service, zone={}) as engine:
        await engine.submit(message("a@[192.0.2.7]"))
        outcome = await engine.outcomes.receive()

    assert outcome.status is Status.DELIVERED
    assert service.made == ["192.0.2.7"]


class BrokenResolver(Resolver):
    async def query(self, name, rdtype):
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("oh no")


async def test_a_bug_in_routing_defers_and_never_bounces(autojump_clock, caplog):
    async with serving() as service:
        async with an_engine(service, router=Router(BrokenResolver())) as engine:
            await engine.submit(message("a@x.test", "b@y.test"))
            found = [await engine.outcomes.receive() for _ in range(2)]

    assert told(found) == [
        "a@x.test deferred local route internal -",
        "b@y.test deferred local route internal -",
    ]
    assert "ZeroDivisionError: oh no" in caplog.text


async def test_mail_that_waits_for_the_dns_of_a_cancelled_engine_is_deferred(autojump_clock):
    async with serving() as service:
        async with an_engine(service, zone=ZONE) as engine:
            await engine.submit(message("a@slow.test"))
            await wait_all_tasks_blocked()
            engine.cancel()

    assert told(await outcomes_of(engine)) == ["a@slow.test deferred local route cancelled -"]


# ---- settings of paths ---------------------------------------------------------------------------


async def test_settings_of_a_path_hold_for_it_alone(autojump_clock):
    table = SettingsTable(
        settings(),
        [
            PathRule("other.test", {"helo_name": "other.me.test", "port": 2525}),
            PathRule("y.test", {"pipelining": False}),
        ],
    )
    body = transaction(("a@x.test", "250 ok"), pipelined=True)
    scripts = {
        MX1: greeted("PIPELINING")
        + body
        + "! connection\n"
        + greeted("PIPELINING")
        + transaction(("b@y.test", "250 ok"), pipelined=False),
        MX2: greeted("PIPELINING").replace("me.test", "other.me.test")
        + transaction(("c@z.test", "250 ok"), pipelined=True),
    }
    found = {}
    async with scripted(scripts) as hosts, an_engine(hosts, zone=ZONE, settings=table) as engine:
        for recipient in ("a@x.test", "b@y.test", "c@z.test"):
            await engine.submit(message(recipient))
            found[recipient] = await engine.outcomes.receive()

    assert {outcome.status for outcome in found.values()} == {Status.DELIVERED}
    assert {to: outcome.peer.port for to, outcome in found.items()} == {
        "a@x.test": 25,
        "b@y.test": 25,
        "c@z.test": 2525,
    }
