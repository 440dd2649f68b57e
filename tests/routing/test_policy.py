from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from engine.outcome import Cause, Status
from engine.routing.mta_sts import StsFinding, StsPolicy
from engine.routing.policy import Policies
from engine.routing.router import Router
from engine.routing.table import RouteTable
from engine.security import HostRefused, MessageTls, TlsDemand, TlsLevel
from engine.settings import Settings
from engine.testing.dns import FakeDns

EE = "3 1 1 " + "25" * 32
UNUSABLE = "1 1 1 " + "25" * 32

#: "signed" and "plain" are what the domain is; "dane", "bare", "bad", … what its MX host is.
ZONE = {
    "signed-dane.test": {"MX": ["10 mx.dane.test"]},
    "signed-bare.test": {"MX": ["10 mx.bare.test"]},
    "signed-unusable.test": {"MX": ["10 mx.unusable.test"]},
    "signed-bad.test": {"MX": ["10 mx.bad.test"]},
    "plain-dane.example": {"MX": ["10 mx.dane.test"]},
    "plain-bare.example": {"MX": ["10 mx.example"]},
    "plain-bad.example": {"MX": ["10 mx.bad.test"]},
    "mx.dane.test": {"A": ["192.0.2.1"]},
    "_25._tcp.mx.dane.test": {"TLSA": [EE]},
    "mx.bare.test": {"A": ["192.0.2.2"]},
    "mx.unusable.test": {"A": ["192.0.2.3"]},
    "_25._tcp.mx.unusable.test": {"TLSA": [UNUSABLE]},
    "mx.bad.test": {"A": ["192.0.2.4"]},
    "_25._tcp.mx.bad.test": {"TLSA": "BOGUS"},
    "mx.example": {"A": ["192.0.2.5"]},
}
ALL_MX = ("mx.dane.test", "mx.bare.test", "mx.unusable.test", "mx.bad.test", "mx.example")
ENFORCE = StsFinding(StsPolicy("enforce", 86400, ALL_MX), seconds=600)
OTHER_MX = StsFinding(StsPolicy("enforce", 86400, ("mx.other.test",)), seconds=600)
TESTING = StsFinding(StsPolicy("testing", 86400, ALL_MX), seconds=600)
TESTING_OTHER = StsFinding(StsPolicy("testing", 86400, ("mx.other.test",)), seconds=600)
NO_STS = StsFinding(seconds=600)
UNKNOWN = StsFinding(seconds=5, is_unknown=True)


class Sts:
    """Finds what it is told to, for every domain."""

    def __init__(self, finding=NO_STS, delay=0.0):
        self.finding = finding
        self.delay = delay
        self.asked = []

    async def find(self, domain):
        self.asked.append(domain)
        await trio.sleep(self.delay)
        return self.finding


class World:
    def __init__(self, finding=NO_STS, *, ttl=300.0, table=None, **sts):
        self.dns = FakeDns(ZONE, authentic=["test"], ttl=ttl)
        self.sts = Sts(finding, **sts)
        self.router = Router(self.dns, table=table)
        self.policies = Policies(self.dns, self.sts)

    async def demand(self, domain, message=MessageTls.BY_POLICY, *, port=25, **settings):
        route = await self.router.route(domain)
        candidate = route.candidates[0]
        arguments = domain, route, candidate, port, Settings(**settings), message
        verdict = await self.policies.demand(*arguments)
        assert self.policies.known(*arguments) == verdict
        return verdict


def shown(verdict):
    """Level and policy of a demand; status, cause and code of a refusal."""
    if isinstance(verdict, HostRefused):
        return f"{verdict.status} {verdict.cause} {verdict.enhanced}"
    how = "by TLSA" if verdict.tlsa else "by name" if verdict.names else ""
    return f"{verdict.level.name} {verdict.policy} {how}".strip()


FORBIDDEN, NO_DNS = "deferred policy 4.7.1", "deferred dns 4.4.3"
MAY, MUST, PKIX = "OPPORTUNISTIC opportunistic", "REQUIRE required", "VERIFY required by name"
DANE, STS, ENCRYPT = "VERIFY dane by TLSA", "VERIFY mta-sts by name", "REQUIRE dane"


@pytest.mark.parametrize(
    ("domain", "finding", "expected"),
    [
        # Secure records that are usable settle it (RFC 8461 §2).
        ("signed-dane.test", NO_STS, DANE),
        ("signed-dane.test", ENFORCE, DANE),
        ("signed-dane.test", OTHER_MX, DANE),
        ("signed-dane.test", TESTING, DANE),
        # Without records MTA-STS decides.
        ("signed-bare.test", NO_STS, MAY),
        ("signed-bare.test", ENFORCE, STS),
        ("signed-bare.test", OTHER_MX, FORBIDDEN),
        ("signed-bare.test", TESTING, MAY),
        ("signed-bare.test", TESTING_OTHER, MAY),
        ("signed-bare.test", UNKNOWN, MAY),
        # None is usable: encryption at least, and MTA-STS may ask for more.
        ("signed-unusable.test", NO_STS, ENCRYPT),
        ("signed-unusable.test", ENFORCE, STS),
        ("signed-unusable.test", OTHER_MX, FORBIDDEN),
        ("signed-unusable.test", TESTING, ENCRYPT),
        # A lookup that fails is final for now; MTA-STS does not make it good.
        ("signed-bad.test", NO_STS, NO_DNS),
        ("signed-bad.test", ENFORCE, NO_DNS),
        ("plain-bad.example", ENFORCE, NO_DNS),
        # With unsigned MX records an attacker may name a host with records of its own: the domain's
        # MTA-STS policy is what notices.
        ("plain-dane.example", NO_STS, DANE),
        ("plain-dane.example", ENFORCE, STS),
        ("plain-dane.example", OTHER_MX, FORBIDDEN),
        ("plain-dane.example", TESTING, DANE),
        ("plain-bare.example", NO_STS, MAY),
        ("plain-bare.example", ENFORCE, STS),
        ("plain-bare.example", OTHER_MX, FORBIDDEN),
    ],
)
async def test_dane_and_mta_sts_raise_what_is_asked_for(domain, finding, expected):
    assert shown(await World(finding).demand(domain)) == expected


@pytest.mark.parametrize(
    ("domain", "finding", "settings", "expected"),
    [
        ("signed-bare.test", NO_STS, {"tls": "require"}, MUST),
        ("signed-bare.test", NO_STS, {"tls": "verify"}, PKIX),
        ("signed-unusable.test", NO_STS, {"tls": "require"}, ENCRYPT),
        ("signed-unusable.test", NO_STS, {"tls": "verify"}, PKIX),
        ("signed-dane.test", NO_STS, {"tls": "verify"}, DANE),
        ("plain-dane.example", NO_STS, {"tls": "verify"}, DANE),
        ("signed-bare.test", ENFORCE, {"tls": "verify"}, STS),
        ("signed-dane.test", NO_STS, {"dane": "off"}, MAY),
        ("signed-dane.test", ENFORCE, {"dane": "off"}, STS),
        ("signed-bad.test", NO_STS, {"dane": "off"}, MAY),
        ("signed-bare.test", ENFORCE, {"mta_sts": "off"}, MAY),
        ("signed-bare.test", OTHER_MX, {"mta_sts": "off"}, MAY),
        ("signed-dane.test", NO_STS, {"dane": "require"}, DANE),
        ("signed-bare.test", ENFORCE, {"dane": "require"}, FORBIDDEN),
        ("signed-unusable.test", ENFORCE, {"dane": "require"}, FORBIDDEN),
        ("plain-dane.example", ENFORCE, {"dane": "require"}, FORBIDDEN),
        ("[192.0.2.1]", NO_STS, {"dane": "require"}, FORBIDDEN),
        ("[192.0.2.1]", ENFORCE, {}, MAY),
        ("[192.0.2.1]", ENFORCE, {"tls": "verify"}, PKIX),
    ],
)
async def test_the_settings_say_what_counts(domain, finding, settings, expected):
    assert shown(await World(finding).demand(domain, **settings)) == expected


@pytest.mark.parametrize("domain", ["signed-dane.test", "signed-bad.test", "plain-bare.example"])
async def test_where_tls_is_switched_off_nobody_is_asked(domain):
    world = World(OTHER_MX)

    verdict = await world.demand(domain, tls="off")

    assert verdict == TlsDemand(TlsLevel.OFF)
    assert verdict.reported == ()
    assert world.sts.asked == []
    assert not [name for name, rdtype in world.dns.asked if rdtype == "TLSA"]


@pytest.mark.parametrize(
    ("domain", "finding", "settings", "expected"),
    [
        ("signed-dane.test", NO_STS, {}, DANE),
        ("signed-bare.test", NO_STS, {}, PKIX),
        ("signed-unusable.test", NO_STS, {}, PKIX),
        ("signed-bad.test", NO_STS, {}, NO_DNS),
        ("signed-bare.test", ENFORCE, {}, STS),
        ("plain-bare.example", ENFORCE, {}, STS),
        ("plain-bare.example", TESTING, {}, PKIX),
        ("plain-bare.example", TESTING_OTHER, {}, "failed policy 5.7.30"),
        ("plain-bare.example", OTHER_MX, {}, FORBIDDEN),
        ("plain-bare.example", NO_STS, {}, "failed policy 5.7.30"),
        ("plain-bare.example", UNKNOWN, {}, NO_DNS),
        ("plain-bare.example", NO_STS, {"tls": "verify"}, "failed policy 5.7.30"),
        ("plain-bare.example", ENFORCE, {"mta_sts": "off"}, "failed policy 5.7.30"),
        ("plain-dane.example", NO_STS, {}, "failed policy 5.7.30"),
        ("plain-dane.example", ENFORCE, {}, STS),
        ("plain-dane.example", TESTING, {}, PKIX),
        ("signed-dane.test", NO_STS, {"dane": "off"}, PKIX),
        ("signed-dane.test", NO_STS, {"tls": "off"}, "failed policy 5.7.10"),
    ],
)
async def test_requiretls_needs_the_right_host_and_its_proof(domain, finding, settings, expected):
    """RFC 8689 §4.2.1."""
    world = World(finding)

    assert shown(await world.demand(domain, MessageTls.REQUIRED, **settings)) == expected


@pytest.mark.parametrize(
    ("domain", "finding", "settings", "expected"),
    [
        ("signed-dane.test", ENFORCE, {}, MAY),
        ("signed-bad.test", NO_STS, {}, MAY),
        ("plain-bare.example", OTHER_MX, {}, MAY),
        ("plain-bare.example", OTHER_MX, {"tls": "require"}, MUST),
        ("plain-bare.example", NO_STS, {"tls": "verify"}, PKIX),
        ("signed-dane.test", NO_STS, {"dane": "require"}, DANE),
        ("signed-bare.test", NO_STS, {"dane": "require"}, FORBIDDEN),
    ],
)
async def test_tls_required_no_passes_over_what_the_receiver_published_and_not_over_ours(
    domain, finding, settings, expected
):
    """RFC 8689 §8.4."""
    world = World(finding)

    verdict = await world.demand(domain, MessageTls.OPTIONAL, **settings)

    assert shown(verdict) == expected
    assert verdict.reported == ()
    assert world.sts.asked == []


@pytest.mark.parametrize("domain", ["signed-dane.test", "signed-bad.test", "plain-bad.example"])
async def test_where_dane_decides_mta_sts_is_not_asked(domain):
    world = World(ENFORCE)

    await world.demand(domain)

    assert world.sts.asked == []


class TestReports:
    @pytest.mark.parametrize(
        ("domain", "finding", "expected"),
        [
            ("signed-dane.test", ENFORCE, [("tlsa", "mx.dane.test", None)]),
            ("signed-bare.test", NO_STS, [("no-policy-found", "signed-bare.test", None)]),
            ("signed-bare.test", ENFORCE, [("sts", "signed-bare.test", None)]),
            ("signed-bare.test", TESTING, [("sts", "signed-bare.test", None)]),
            (
                "plain-dane.example",
                ENFORCE,
                [("tlsa", "mx.dane.test", None), ("sts", "plain-dane.example", None)],
            ),
            ("signed-bad.test", ENFORCE, [("tlsa", "mx.bad.test", "dnssec-invalid")]),
            ("signed-bare.test", OTHER_MX, [("sts", "signed-bare.test", "validation-failure")]),
            (
                "signed-bare.test",
                StsFinding(None, "sts-webpki-invalid", "expired"),
                [("sts", "signed-bare.test", "sts-webpki-invalid")],
            ),
        ],
    )
    async def test_a_verdict_says_under_which_policies_it_is_counted(
        self, domain, finding, expected
    ):
        verdict = await World(finding).demand(domain)

        assert [(p.kind, p.domain, p.failure) for p in verdict.reported] == expected
        assert {policy.receiver for policy in verdict.reported} == {domain}

    async def test_an_address_has_nobody_to_report_to(self):
        assert (await World().demand("[192.0.2.1]")).reported == ()

    async def test_reports_about_a_smart_host_are_its_own(self):
        world = World(table=RouteTable([("*", ["mx.bare.test"])]))

        verdict = await world.demand("signed-dane.test")

        (policy,) = verdict.reported
        assert (policy.domain, policy.receiver) == ("mx.bare.test", "mx.bare.test")
        assert world.sts.asked == ["mx.bare.test"]

    async def test_the_names_of_a_trial_are_told(self):
        assert (await World(TESTING).demand("plain-bare.example")).trial_names == ("mx.example",)


class TestMemory:
    async def test_the_second_message_asks_nobody(self):
        world = World(ENFORCE)

        first = await world.demand("signed-bare.test")
        asked = world.dns.asked.total()

        assert await world.demand("signed-bare.test") is first
        assert world.dns.asked.total() == asked
        assert world.sts.asked == ["signed-bare.test"]

    async def test_it_holds_as_long_as_the_shortest_answer(self, autojump_clock):
        world = World(replace(ENFORCE, seconds=60), ttl=60)
        await world.demand("signed-bare.test")
        world.sts.finding = NO_STS
        await trio.sleep(59)
        assert shown(await world.demand("signed-bare.test")) == STS
        await trio.sleep(2)
        assert shown(await world.demand("signed-bare.test")) == MAY

    async def test_a_ttl_of_nothing_is_a_second(self, autojump_clock):
        world = World(StsFinding(seconds=0.0), ttl=0)
        await world.demand("plain-bare.example")
        await world.demand("plain-bare.example")
        await trio.sleep(1.01)
        await world.demand("plain-bare.example")

        assert len(world.sts.asked) == 2

    @pytest.mark.parametrize(
        ("domain", "options", "verdict"),
        [
            ("signed-dane.test", {}, DANE),
            ("signed-dane.test", {"message": MessageTls.REQUIRED}, DANE),
            ("signed-dane.test", {"message": MessageTls.OPTIONAL}, MAY),
            ("signed-dane.test", {"port": 465}, None),
            ("signed-dane.test", {"dane": "off", "mta_sts": "off"}, MAY),
            ("signed-dane.test", {"dane": "off"}, None),
            ("signed-bare.test", {}, None),
            ("plain-bare.example", {"mta_sts": "off"}, MAY),
            ("plain-bare.example", {"mta_sts": "off", "tls": "verify"}, "VERIFY required by name"),
            ("plain-bare.example", {}, None),
        ],
    )
    async def test_what_follows_from_what_was_asked_before_is_known(self, domain, options, verdict):
        world = World()
        await world.demand("signed-dane.test")
        route = await world.router.route(domain)
        options = dict(options)
        message = options.pop("message", MessageTls.BY_POLICY)
        port = options.pop("port", 25)

        known = world.policies.known(
            domain, route, route.candidates[0], port, Settings(**options), message
        )

        assert (known and shown(known)) == verdict

    async def test_what_is_known_is_kept_no_longer_than_what_it_follows_from(self, autojump_clock):
        world = World(replace(ENFORCE, seconds=1000), ttl=60)
        await world.demand("signed-bare.test")
        route = await world.router.route("signed-bare.test")
        await trio.sleep(50)
        place = "signed-bare.test", route, route.candidates[0], 25
        known = world.policies.known(*place, Settings(tls="require"))
        assert known is not None
        await trio.sleep(11)

        assert world.policies.known(*place, Settings(tls="require")) is None

    async def test_when_a_host_becomes_secure_it_is_judged_anew(self):
        world = World()
        world.dns.authentic = False
        assert shown(await world.demand("signed-dane.test")) == MAY
        world.dns.authentic = ["test"]
        world.router = Router(world.dns)

        assert shown(await world.demand("signed-dane.test")) == DANE

    async def test_many_at_once_are_one_search(self, autojump_clock):
        world = World(ENFORCE, delay=3)
        route = await world.router.route("plain-bare.example")
        verdicts = []

        async def ask(seconds):
            with trio.move_on_after(seconds):
                verdict = await world.policies.demand(
                    "plain-bare.example", route, route.candidates[0], 25, Settings()
                )
                verdicts.append(shown(verdict))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            await trio.sleep(0.5)
            for _ in range(100):
                nursery.start_soon(ask, 60)

        assert verdicts == [STS] * 100
        # The first was cancelled, and one of those who waited began again.
        assert len(world.sts.asked) == 2

    async def test_who_never_finds_out_about_mta_sts_is_not_waited_for(self, autojump_clock):
        world = World(delay=10_000)

        assert shown(await world.demand("plain-bare.example")) == MAY
        assert trio.current_time() == 75
        assert shown(await world.demand("plain-bare.example", MessageTls.REQUIRED)) == NO_DNS


async def test_without_a_source_of_policies_the_setting_has_no_effect():
    dns = FakeDns(ZONE, authentic=["test"])
    route = await Router(dns).route("plain-bare.example")

    verdict = await Policies(dns).demand(
        "plain-bare.example", route, route.candidates[0], 25, Settings()
    )

    assert shown(verdict) == MAY


async def test_refusals_are_the_policys():
    verdict = await World(OTHER_MX).demand("plain-bare.example")

    assert (verdict.status, verdict.cause, verdict.stage.value) == (
        Status.DEFERRED,
        Cause.POLICY,
        "policy",
    )
