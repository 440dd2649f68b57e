from __future__ import annotations

import pytest
import trio

from engine.route import Candidate, HostFailure, Route, Unroutable
from engine.routing.cache import CachingResolver
from engine.routing.resolver import Answer, Resolver
from engine.routing.router import Router
from engine.routing.table import RouteTable
from engine.smtp.status import EnhancedStatusCode
from engine.testing.dns import FakeDns

ZONE = {
    "example.test": {"MX": ["20 mx2.example.test", "0 mx1.example.test"], "A": ["192.0.2.80"]},
    "mx1.example.test": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]},
    "mx2.example.test": {"A": ["192.0.2.2"]},
    "alias.test": {"CNAME": ["example.test"]},
    "implicit.test": {"A": ["192.0.2.3"], "AAAA": ["2001:db8::3"]},
    "empty.test": {"TXT": ["hello"]},
    "closed.test": {"MX": ["0 ."], "A": ["192.0.2.80"]},
    "broken.test": {"MX": "SERVFAIL", "A": ["192.0.2.80"]},
    "slow.test": {"MX": "TIMEOUT", "A": ["192.0.2.80"]},
    "half.test": {"A": "SERVFAIL"},
    "dead-hosts.test": {"MX": ["10 gone.test", "20 empty.test", "30 192.0.2.1"]},
    "unsure-hosts.test": {"MX": ["10 gone.test", "20 half.test"]},
    "mixed.test": {
        "MX": ["10 gone.test", "20 half.test", "30 192.0.2.1", "40 mx2.example.test"],
    },
    "cname-mx.test": {"MX": ["10 cname-host.test"]},
    "cname-host.test": {"CNAME": ["mx1.example.test"]},
    "same-address.test": {"MX": ["10 mx2.example.test", "20 twin.test"]},
    "twin.test": {"A": ["192.0.2.2"]},
    "backup.test": {"MX": ["10 mx1.example.test", "20 us.test", "20 mx2.example.test"]},
    "ours.test": {"MX": ["10 us.test", "20 mx2.example.test"]},
    "us.test": {"A": ["192.0.2.99"]},
    "loopback.test": {"MX": ["10 loopback-host.test"]},
    "loopback-host.test": {"A": ["127.0.0.1"]},
    "unspecified.test": {"A": ["0.0.0.0"]},
    "smart.test": {"A": ["192.0.2.7"], "AAAA": ["2001:db8::7"]},
}


def make_router(zone=ZONE, *, ttl=300.0, delay=0.0, **options):
    dns = FakeDns(zone, ttl=ttl, delay=delay)
    return Router(CachingResolver(dns), **options), dns


def summary(route):
    """Return a route as `rank host address` lines."""
    return [f"{c.preference} {c.host} {c.address}" for c in route.candidates]


async def test_a_domain_is_routed_to_its_mx_hosts():
    router, _ = make_router()

    route = await router.route("example.test")

    assert isinstance(route, Route)
    assert route.site == "mx1.example.test,mx2.example.test"
    assert route.candidates == (
        Candidate("mx1.example.test", "2001:db8::1", None, 0),
        Candidate("mx1.example.test", "192.0.2.1", None, 0),
        Candidate("mx2.example.test", "192.0.2.2", None, 1),
    )
    assert route.failures == ()
    assert not route.is_static


@pytest.mark.parametrize(
    ("domain", "candidates"),
    [
        pytest.param(
            "alias.test",
            [
                "0 mx1.example.test 2001:db8::1",
                "0 mx1.example.test 192.0.2.1",
                "1 mx2.example.test 192.0.2.2",
            ],
            id="a domain that is a CNAME has the MX of its target",
        ),
        pytest.param(
            "implicit.test",
            ["0 implicit.test 2001:db8::3", "0 implicit.test 192.0.2.3"],
            id="without MX the domain is its own host",
        ),
        pytest.param(
            "cname-mx.test",
            ["0 cname-host.test 2001:db8::1", "0 cname-host.test 192.0.2.1"],
            id="a CNAME as MX target is followed",
        ),
        pytest.param(
            "same-address.test",
            ["0 mx2.example.test 192.0.2.2", "1 twin.test 192.0.2.2"],
            id="an address counts for each of its names",
        ),
        pytest.param(
            "backup.test",
            ["0 mx1.example.test 2001:db8::1", "0 mx1.example.test 192.0.2.1"],
            id="where we are a backup only better hosts count",
        ),
    ],
)
async def test_candidates_of(domain, candidates):
    router, _ = make_router(own_names=["us.test"])

    assert summary(await router.route(domain)) == candidates


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("nowhere.test", "failed domain dns 5.1.2 nowhere.test does not exist in the DNS"),
        (
            "empty.test",
            (
                "failed domain dns 5.1.2 empty.test has no MX record, and "
                "empty.test has no IP address of an allowed family"
            ),
        ),
        ("closed.test", "failed domain dns 5.1.10 closed.test takes no mail (null MX)"),
        (
            "broken.test",
            (
                "deferred domain dns 4.4.3 MX lookup of broken.test failed: "
                "the fake name server: SERVFAIL"
            ),
        ),
        (
            "half.test",
            (
                "deferred domain dns 4.4.3 address lookup of half.test failed: "
                "the fake name server: SERVFAIL"
            ),
        ),
        (
            "dead-hosts.test",
            (
                "failed domain dns 5.4.4 all MX hosts of dead-hosts.test point to names without "
                "addresses: gone.test does not exist in the DNS"
            ),
        ),
        (
            "unsure-hosts.test",
            (
                "deferred domain dns 4.4.3 address lookup of half.test failed: "
                "the fake name server: SERVFAIL"
            ),
        ),
        (
            "ours.test",
            "deferred domain config 4.4.6 ours.test: lowest numbered MX record points to this host",
        ),
        (
            "loopback.test",
            (
                "deferred domain config 4.4.6 loopback.test: "
                "lowest numbered MX record points to this host"
            ),
        ),
        (
            "unspecified.test",
            (
                "deferred domain config 4.4.6 unspecified.test: "
                "lowest numbered MX record points to this host"
            ),
        ),
        (
            "[300.0.0.1]",
            "failed domain dns 5.1.2 [300.0.0.1] is no address literal of IPv4 or IPv6",
        ),
    ],
)
async def test_unroutable(domain, expected):
    router, _ = make_router(local_addresses=["192.0.2.99"])

    v = await router.route(domain)

    assert isinstance(v, Unroutable)
    assert f"{v.status} {v.scope} {v.cause} {v.enhanced} {v.text}" == expected


async def test_a_name_server_that_does_not_answer_defers_the_domain(autojump_clock):
    router, dns = make_router()

    verdict = await router.route("slow.test")

    assert isinstance(verdict, Unroutable)
    assert (verdict.status, str(verdict.enhanced), verdict.seconds) == ("deferred", "4.4.3", 5.0)
    assert ("slow.test", "A") not in dns.asked


@pytest.mark.parametrize(
    ("domain", "authentic", "is_secure", "aliases"),
    [
        ("example.test", ["example.test"], True, ("example.test",)),
        ("example.test", [], False, ()),
        ("alias.test", ["alias.test", "example.test"], True, ("alias.test", "example.test")),
        ("alias.test", ["example.test"], False, ()),
        ("implicit.test", ["implicit.test"], True, ()),
        ("implicit.test", [], True, ()),
        ("[192.0.2.1]", [], True, ()),
    ],
)
async def test_a_route_says_whether_its_hosts_are_certain(domain, authentic, is_secure, aliases):
    route = await Router(FakeDns(ZONE, authentic=authentic)).route(domain)

    assert (route.is_secure, route.aliases) == (is_secure, aliases)


@pytest.mark.parametrize(
    ("authentic", "is_secure"),
    [
        (["cname-mx.test", "cname-host.test", "example.test"], True),
        (["cname-mx.test", "cname-host.test"], False),
        (["cname-mx.test", "example.test"], False),
    ],
)
async def test_a_candidate_says_what_its_host_is_called_and_whether_that_is_certain(
    authentic, is_secure
):
    route = await Router(FakeDns(ZONE, authentic=authentic)).route("cname-mx.test")

    assert {(c.host, c.canonical, c.is_secure) for c in route.candidates} == {
        ("cname-host.test", "mx1.example.test", is_secure)
    }


async def test_hosts_without_addresses_are_reported_beside_the_others():
    router, _ = make_router()

    route = await router.route("mixed.test")

    assert summary(route) == ["3 mx2.example.test 192.0.2.2"]
    assert route.site == "192.0.2.1,gone.test,half.test,mx2.example.test"
    assert [(f.host, f.preference, f.is_temporary) for f in route.failures] == [
        ("gone.test", 0, False),
        ("half.test", 1, True),
        ("192.0.2.1", 2, False),
    ]


async def test_an_empty_set_of_local_addresses_lets_mx_point_to_loopback():
    router, _ = make_router(local_addresses=())

    assert summary(await router.route("loopback.test")) == ["0 loopback-host.test 127.0.0.1"]


@pytest.mark.parametrize(
    ("family", "candidates", "types"),
    [
        ("any", ["0 implicit.test 2001:db8::3", "0 implicit.test 192.0.2.3"], {"MX", "A", "AAAA"}),
        ("ipv4", ["0 implicit.test 192.0.2.3"], {"MX", "A"}),
        ("ipv6", ["0 implicit.test 2001:db8::3"], {"MX", "AAAA"}),
    ],
)
async def test_only_allowed_families_are_looked_up(family, candidates, types):
    router, dns = make_router(address_family=family)

    assert summary(await router.route("implicit.test")) == candidates
    assert {rdtype for _, rdtype in dns.asked} == types


async def test_a_call_can_ask_for_another_family_than_the_routers():
    router, _ = make_router(address_family="ipv4")

    assert len((await router.route("implicit.test")).candidates) == 1
    assert len((await router.route("implicit.test", "any")).candidates) == 2
    assert len(router.known("implicit.test").candidates) == 1
    assert router.known("implicit.test", "ipv6") is None


async def test_addresses_are_looked_up_at_the_same_time_but_not_all(autojump_clock):
    hosts = [f"mx{number}.test" for number in range(20)]
    zone = {host: {"A": [f"192.0.2.{number}"]} for number, host in enumerate(hosts)}
    zone["many.test"] = {"MX": [f"10 {host}" for host in hosts]}
    router, _ = make_router(zone, delay=1.0)

    route = await router.route("many.test")

    # One second for the MX records, then 40 questions ten at a time.
    assert (len(route.candidates), route.seconds) == (20, 5.0)


async def test_fifty_hosts_are_looked_up_at_most():
    zone = {"many.test": {"MX": [f"{number} mx{number}.test" for number in range(200)]}}
    router, dns = make_router(zone)

    await router.route("many.test")

    assert dns.asked.total() == 1 + 2 * 50


@pytest.mark.parametrize(
    ("domain", "address"),
    [
        ("[192.0.2.1]", "192.0.2.1"),
        ("[IPv6:2001:db8::1]", "2001:db8::1"),
        ("[127.0.0.1]", "127.0.0.1"),
    ],
)
async def test_an_address_literal_is_its_own_host_without_dns(domain, address, autojump_clock):
    router, dns = make_router()

    route = await router.route(domain)

    assert (route.site, route.candidates) == (route.order, (Candidate(address, address),))
    assert not dns.asked


async def test_an_address_literal_of_a_family_that_is_not_used_is_refused():
    router, _ = make_router(address_family="ipv4")

    verdict = await router.route("[IPv6:2001:db8::1]")

    assert isinstance(verdict, Unroutable)
    assert (verdict.status, verdict.cause, str(verdict.enhanced)) == ("failed", "config", "5.4.4")


class TestStaticRoutes:
    async def test_hosts_are_kept_in_order_with_their_ports(self, autojump_clock):
        table = RouteTable([("*", ["192.0.2.9:2525", "smart.test", "[2001:db8::9]:26"])])
        router, dns = make_router(table=table)

        route = await router.route("example.test")

        assert route == Route(
            site="192.0.2.9:2525,[2001:db8::9]:26,smart.test",
            candidates=(
                Candidate("192.0.2.9", "192.0.2.9", 2525, 0),
                Candidate("smart.test", "2001:db8::7", None, 1),
                Candidate("smart.test", "192.0.2.7", None, 1),
                Candidate("2001:db8::9", "2001:db8::9", 26, 2),
            ),
            is_static=True,
            is_secure=True,
            order="192.0.2.9:2525;smart.test;[2001:db8::9]:26",
        )
        assert set(dns.asked) == {("smart.test", "A"), ("smart.test", "AAAA")}

    async def test_a_host_is_not_followed_by_mx(self):
        router, dns = make_router(table=RouteTable([("*", ["closed.test"])]))

        assert summary(await router.route("x.test")) == ["0 closed.test 192.0.2.80"]
        assert ("closed.test", "MX") not in dns.asked

    async def test_a_unix_socket_is_neither_looked_up_nor_ruled_out(self, autojump_clock):
        table = RouteTable([("*", ["unix:/run/Lmtp"])])
        router, dns = make_router(table=table)

        assert await router.route("x.test", "ipv6") == Route(
            site="unix:/run/Lmtp",
            candidates=(Candidate("unix:/run/Lmtp", None),),
            is_static=True,
            order="unix:/run/Lmtp",
            is_secure=True,
        )
        assert not dns.asked

    async def test_a_domain_without_a_rule_goes_by_mx(self):
        router, _ = make_router(table=RouteTable([("*.example.test", ["192.0.2.9"])]))

        assert not (await router.route("example.test")).is_static
        assert (await router.route("a.example.test")).is_static

    async def test_hosts_for_all_mail_take_address_literals_too(self):
        router, _ = make_router(table=RouteTable([("*", ["192.0.2.9"])]))

        assert summary(await router.route("[192.0.2.1]")) == ["0 192.0.2.9 192.0.2.9"]

    async def test_a_static_route_may_lead_to_this_host(self):
        table = RouteTable([("*", ["127.0.0.1:2525", "us.test"])])
        router, _ = make_router(table=table, own_names=["us.test"], local_addresses=["192.0.2.99"])

        assert summary(await router.route("x.test")) == [
            "0 127.0.0.1 127.0.0.1",
            "1 us.test 192.0.2.99",
        ]

    async def test_a_name_that_does_not_resolve_is_a_failed_host(self):
        router, _ = make_router(table=RouteTable([("*", ["gone.test:26", "192.0.2.9"])]))

        route = await router.route("x.test")

        assert summary(route) == ["1 192.0.2.9 192.0.2.9"]
        text = "gone.test does not exist in the DNS"
        assert route.failures == (
            HostFailure("gone.test", 0, is_temporary=False, text=text, port=26),
        )

    async def test_an_address_of_a_family_that_is_not_used_is_a_failed_host(self):
        table = RouteTable([("*", ["2001:db8::9", "192.0.2.9"])])
        router, _ = make_router(table=table, address_family="ipv4")

        route = await router.route("x.test")

        assert summary(route) == ["1 192.0.2.9 192.0.2.9"]
        assert route.failures[0].text == "address_family rules out 2001:db8::9"

    @pytest.mark.parametrize(
        ("host", "expected"),
        [("gone.test", "deferred local config 4.3.5"), ("half.test", "deferred domain dns 4.4.3")],
    )
    async def test_without_a_usable_host_mail_waits(self, host, expected):
        router, _ = make_router(table=RouteTable([("*", [host])]))

        v = await router.route("x.test")

        assert f"{v.status} {v.scope} {v.cause} {v.enhanced}" == expected

    async def test_addresses_alone_are_known_for_ever(self, autojump_clock):
        router, _ = make_router(table=RouteTable([("*", ["192.0.2.9"])]))

        await router.route("x.test")
        await trio.sleep(10**9)

        assert summary(router.known("x.test")) == ["0 192.0.2.9 192.0.2.9"]


class TestSurvey:
    """What was seen on the way to a verdict."""

    async def test_it_has_every_host_and_which_of_them_are_ourselves(self):
        router, _ = make_router(own_names=["us.test"])

        await router.route("backup.test")
        found = await router.survey("backup.test")

        assert (found.kind, found.rule) == ("mx", None)
        assert found.verdict == router.known("backup.test")
        assert [record.exchange for record in found.answer.records] == [
            "mx1.example.test",
            "us.test",
            "mx2.example.test",
        ]
        assert [(host.name, host.preference, host.addresses) for host in found.hosts] == [
            ("mx1.example.test", 10, ("2001:db8::1", "192.0.2.1")),
            ("us.test", 20, ("192.0.2.99",)),
            ("mx2.example.test", 20, ("192.0.2.2",)),
        ]
        assert [host.name for host in found.own] == ["us.test"]
        assert found.kept == found.hosts[:1]

    @pytest.mark.parametrize(
        ("domain", "kind", "hosts", "code"),
        [
            ("closed.test", "mx", [], "5.1.10"),
            ("broken.test", "mx", [], "4.4.3"),
            ("implicit.test", "implicit", ["implicit.test"], None),
            ("empty.test", "implicit", ["empty.test"], "5.1.2"),
            ("[192.0.2.1]", "literal", ["192.0.2.1"], None),
            ("[300.0.0.1]", "literal", [], "5.1.2"),
        ],
    )
    async def test_it_says_where_the_hosts_come_from(self, domain, kind, hosts, code):
        router, _ = make_router()

        found = await router.survey(domain)

        assert (found.kind, [host.name for host in found.hosts]) == (kind, hosts)
        assert (found.verdict.enhanced if code else None) == (
            code and EnhancedStatusCode.parse(code)
        )

    async def test_a_static_route_is_named(self):
        router, _ = make_router(table=RouteTable([("*.test", ["smart.test", "gone.test"])]))

        found = await router.survey("x.test")

        assert (found.kind, found.rule.match) == ("static", "*.test")
        assert [host.failure is None for host in found.hosts] == [True, False]
        assert found.kept == found.hosts

    async def test_nothing_of_it_is_remembered(self):
        router, _ = make_router()

        await router.survey("implicit.test")

        assert router.known("implicit.test") is None


class TestMemory:
    async def test_nothing_is_known_before_it_was_asked(self):
        router, dns = make_router()

        assert router.known("example.test") is None
        assert not dns.asked

    async def test_what_was_found_is_known_and_took_no_time(self, autojump_clock):
        router, dns = make_router(delay=0.5)

        asked = await router.route("example.test")
        known = router.known("example.test")
        asked_again = await router.route("example.test")

        assert asked.seconds == 1.0
        assert known.seconds == asked_again.seconds == 0.0
        assert known.candidates == asked.candidates
        assert dns.asked["example.test", "MX"] == 1

    async def test_a_route_lives_as_long_as_its_shortest_answer(self, autojump_clock):
        router, _ = make_router(ttl=60)

        await router.route("example.test")
        await trio.sleep(30)
        await router.route("same-address.test")  # shares a host whose address is 30 s old

        assert router.known("same-address.test") is not None
        await trio.sleep(30)
        assert router.known("same-address.test") is None
        assert router.known("example.test") is None

    async def test_a_route_lives_one_second_at_least(self, autojump_clock):
        class Restless(Resolver):
            async def query(self, name, rdtype):
                await trio.lowlevel.checkpoint()
                return Answer("ok", ("192.0.2.1",), ttl=0) if rdtype == "A" else Answer("no-data")

        router = Router(Restless())

        await router.route("example.test")

        await trio.sleep(0.9)
        assert router.known("example.test") is not None
        await trio.sleep(0.1)
        assert router.known("example.test") is None

    async def test_a_domain_that_could_not_be_routed_is_tried_again_soon(self, autojump_clock):
        router, dns = make_router()

        assert isinstance(await router.route("broken.test"), Unroutable)
        assert isinstance(router.known("broken.test"), Unroutable)
        dns.change({"broken.test": {"A": ["192.0.2.1"]}})
        await trio.sleep(5)

        assert summary(await router.route("broken.test")) == ["0 broken.test 192.0.2.1"]

    async def test_many_who_ask_are_one_search_and_each_has_its_own_time(self, autojump_clock):
        router, dns = make_router(delay=1.0)
        seconds = []

        async def ask(after):
            await trio.sleep(after)
            seconds.append((await router.route("example.test")).seconds)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(ask, number / 4)

        assert sorted(seconds) == [1.0, 1.25, 1.5, 1.75, 2.0]
        assert dns.asked["example.test", "MX"] == 1

    async def test_who_is_cancelled_leaves_the_search_to_others(self, autojump_clock):
        router, _ = make_router(delay=1.0)
        routes = []

        async def ask():
            routes.append(await router.route("example.test"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled_after, 0.5, router)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)

        assert [len(route.candidates) for route in routes] == [3]

    async def test_the_memory_is_bounded(self):
        router, _ = make_router(max_domains=2)

        for domain in ("example.test", "implicit.test", "closed.test"):
            await router.route(domain)

        assert router.known("example.test") is None
        assert router.known("implicit.test") is not None
        assert router.known("closed.test") is not None


async def cancelled_after(seconds, router):
    with trio.move_on_after(seconds):
        await router.route("example.test")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"address_family": "ipv5"}, "allowed: any, ipv4"),
        ({"local_addresses": ["eth0"]}, "own address 'eth0'; allowed"),
        ({"max_domains": 0}, "1 entry or more"),
    ],
)
async def test_arguments_that_cannot_be_used_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        make_router(**options)


async def test_an_unknown_family_in_a_call_is_refused():
    router, _ = make_router()

    with pytest.raises(ValueError, match="allowed: any, ipv4"):
        await router.route("example.test", "ipv5")


def test_one_text_is_no_list_of_what_is_ourselves():
    for options in ({"local_addresses": "192.0.2.1"}, {"own_names": "mx.x.test"}):
        with pytest.raises(TypeError, match="allowed: a list of"):
            Router(FakeDns({}), **options)


def test_an_own_address_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"own address 'mx\.test'; allowed: an IP address"):
        Router(FakeDns({}), local_addresses=["192.0.2.1", "mx.test"])
