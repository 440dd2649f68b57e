from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Cause, Status
from engine.route import Candidate, Route
from engine.routing.dane import (
    MAX_RECORDS,
    TlsaFinding,
    base_domains,
    find_tlsa,
    judge,
    reference_names,
    usable,
)
from engine.routing.opinion import NOTHING
from engine.routing.resolver import Resolver
from engine.routing.router import Router
from engine.routing.table import RouteTable
from engine.security import HostRefused, Tlsa, TlsDemand, TlsLevel
from engine.testing.dns import FakeDns

SHA256, SHA512 = b"\x25" * 32, b"\x51" * 64
#: A SEQUENCE as a certificate or key begins.
DER = b"\x30\x03abc"
LONG_DER = b"\x30\x82\x01\x00" + b"k" * 256

EE = Tlsa(3, 1, 1, SHA256)
TA = Tlsa(2, 0, 1, SHA256)


class TestUsable:
    @pytest.mark.parametrize(
        "record",
        [
            Tlsa(usage, selector, matching, data)
            for usage in (2, 3)
            for selector in (0, 1)
            for matching, data in ((0, DER), (0, LONG_DER), (1, SHA256), (2, SHA512))
        ],
        ids=str,
    )
    def test_records_that_can_authenticate_a_mail_host(self, record):
        assert usable([record]) == (record,)

    @pytest.mark.parametrize(
        "record",
        [
            pytest.param(Tlsa(0, 0, 1, SHA256), id="PKIX-TA (RFC 7672 §3.1.3)"),
            pytest.param(Tlsa(1, 1, 1, SHA256), id="PKIX-EE"),
            pytest.param(Tlsa(4, 1, 1, SHA256), id="unknown usage"),
            pytest.param(Tlsa(255, 1, 1, SHA256), id="private usage"),
            pytest.param(Tlsa(3, 2, 1, SHA256), id="unknown selector"),
            pytest.param(Tlsa(3, 1, 3, SHA256), id="unknown matching type"),
            pytest.param(Tlsa(3, 1, 1, SHA256[1:]), id="digest too short"),
            pytest.param(Tlsa(3, 1, 1, SHA512), id="digest too long"),
            pytest.param(Tlsa(3, 1, 2, SHA256), id="SHA-512 of the length of SHA-256"),
            pytest.param(Tlsa(3, 1, 1, b""), id="no digest"),
            pytest.param(Tlsa(3, 0, 0, b""), id="no certificate"),
            pytest.param(Tlsa(3, 0, 0, b"\x30"), id="cut"),
            pytest.param(Tlsa(3, 0, 0, b"\x30\x00"), id="empty sequence"),
            pytest.param(Tlsa(3, 0, 0, DER + b"x"), id="more than a sequence"),
            pytest.param(Tlsa(3, 0, 0, DER[:-1]), id="less than a sequence"),
            pytest.param(Tlsa(3, 0, 0, b"\x02\x03abc"), id="an integer"),
            pytest.param(Tlsa(3, 0, 0, b"\x30\x80abc\x00\x00"), id="indefinite length"),
            pytest.param(Tlsa(3, 0, 0, LONG_DER[:-1]), id="less than a long sequence"),
        ],
    )
    def test_records_that_cannot(self, record):
        assert usable([record]) == ()
        assert usable([record, EE]) == (EE,)

    @pytest.mark.parametrize(
        ("records", "kept"),
        [
            ([(3, 1, 1), (3, 1, 2)], [(3, 1, 2)]),
            ([(3, 1, 2), (3, 1, 1), (3, 1, 1)], [(3, 1, 2)]),
            ([(3, 1, 1), (3, 0, 2)], [(3, 1, 1), (3, 0, 2)]),
            ([(3, 1, 1), (2, 1, 2)], [(3, 1, 1), (2, 1, 2)]),
            ([(3, 1, 0), (3, 1, 1), (3, 1, 2)], [(3, 1, 0), (3, 1, 2)]),
            ([(3, 1, 0), (3, 1, 1)], [(3, 1, 0), (3, 1, 1)]),
            ([(3, 1, 0)], [(3, 1, 0)]),
        ],
    )
    def test_of_the_digests_for_one_usage_and_selector_the_strongest_counts(self, records, kept):
        """RFC 7671 §9; full data plays no part in it."""
        data = {0: DER, 1: SHA256, 2: SHA512}

        found = usable(Tlsa(*record, data[record[2]]) for record in records)

        assert [record[:3] for record in found] == kept

    def test_a_malformed_record_does_not_displace_a_weaker_one(self):
        """RFC 7671 §9: agility comes after unusable and malformed records are dropped."""
        assert usable([EE, Tlsa(3, 1, 2, SHA256)]) == (EE,)

    @given(
        st.lists(
            st.builds(
                Tlsa,
                st.integers(0, 255),
                st.integers(0, 255),
                st.integers(0, 255),
                st.binary(max_size=70),
            )
        )
    )
    def test_any_record_is_read(self, records):
        assert set(usable(records)) <= set(records)


PLAIN = Candidate("mx.test", "192.0.2.1", canonical="mx.test", is_secure=True)
ALIAS = Candidate("alias.test", "192.0.2.1", canonical="mx.test", is_secure=True)


class TestNames:
    """RFC 7672 §2.2.2 and §3.2.2."""

    @pytest.mark.parametrize(
        ("candidate", "is_alias_secure", "bases"),
        [
            (PLAIN, False, ("mx.test",)),
            (ALIAS, False, ("mx.test", "alias.test")),
            (replace(PLAIN, is_secure=False), False, ()),
            (replace(ALIAS, is_secure=False), False, ()),
            (replace(ALIAS, is_secure=False), True, ("alias.test",)),
            (Candidate("mx.test", "192.0.2.1", is_secure=True), False, ("mx.test",)),
            (Candidate("192.0.2.1", "192.0.2.1", is_secure=True), False, ()),
            (Candidate("2001:db8::1", "2001:db8::1", is_secure=True), True, ()),
        ],
    )
    def test_where_records_may_be(self, candidate, is_alias_secure, bases):
        assert base_domains(candidate, is_alias_secure=is_alias_secure) == bases

    @pytest.mark.parametrize(
        ("is_secure", "aliases", "candidate", "names"),
        [
            pytest.param(
                True, ("a.test", "b.test"), PLAIN, ("mx.test", "a.test", "b.test"), id="secure MX"
            ),
            pytest.param(True, ("mx.test",), PLAIN, ("mx.test",), id="the domain is its own MX"),
            pytest.param(False, (), PLAIN, ("mx.test",), id="insecure MX"),
            pytest.param(False, (), ALIAS, ("mx.test",), id="insecure MX, an alias"),
            pytest.param(True, (), PLAIN, ("mx.test",), id="no MX"),
            pytest.param(True, (), ALIAS, ("mx.test", "alias.test"), id="no MX, an alias"),
        ],
    )
    def test_what_certificates_may_be_for(self, is_secure, aliases, candidate, names):
        route = Route("mx.test", (candidate,), is_secure=is_secure, aliases=aliases)

        assert reference_names("mx.test", route, candidate) == names


SECURE = Route("mx.test", (PLAIN,), is_secure=True, aliases=("example.test",))
INSECURE = Route("mx.test", (PLAIN,))


class TestJudge:
    def test_usable_records_are_verified_by(self):
        weak, other = Tlsa(3, 1, 2, SHA512), Tlsa(0, 0, 1, SHA256)
        finding = TlsaFinding("mx.test", (EE, weak, TA, other), seconds=60)

        opinion = judge(finding, SECURE, PLAIN, "try")

        assert opinion.verdict == TlsDemand(
            TlsLevel.VERIFY, "dane", ("mx.test", "example.test"), "mx.test", (weak, TA)
        )
        assert (opinion.is_certain, opinion.seconds, opinion.settles_it) == (True, 60, True)
        (policy,) = opinion.verdict.reported
        assert (policy.kind, policy.domain, policy.failure) == ("tlsa", "mx.test", None)
        assert policy.strings == (
            f"3 1 1 {SHA256.hex()}",
            f"3 1 2 {SHA512.hex()}",
            f"2 0 1 {SHA256.hex()}",
            f"0 0 1 {SHA256.hex()}",
        )

    def test_with_insecure_mx_records_the_host_is_verified_and_the_domain_is_not(self):
        opinion = judge(TlsaFinding("mx.test", (TA,)), INSECURE, PLAIN, "try")

        assert opinion.verdict == TlsDemand(TlsLevel.VERIFY, "dane", ("mx.test",), "mx.test", (TA,))
        assert not opinion.is_certain

    def test_records_of_which_none_is_usable_demand_tls_without_authentication(self):
        finding = TlsaFinding("mx.test", (Tlsa(1, 1, 1, SHA256),))

        opinion = judge(finding, SECURE, PLAIN, "try")

        assert opinion.verdict == TlsDemand(TlsLevel.REQUIRE, "dane", (), "mx.test")
        assert opinion.verdict.reported[0].failure == "tlsa-invalid"

    def test_without_records_dane_demands_nothing(self):
        opinion = judge(TlsaFinding(seconds=9), SECURE, PLAIN, "try")

        assert opinion.verdict == NOTHING
        assert (opinion.seconds, opinion.is_certain) == (9, True)

    @pytest.mark.parametrize("mode", ["try", "require"])
    def test_a_failed_lookup_refuses_the_host_for_now(self, mode):
        opinion = judge(TlsaFinding(failure="no answer"), SECURE, PLAIN, mode)

        refusal = opinion.verdict
        assert isinstance(refusal, HostRefused)
        assert (refusal.status, refusal.cause, refusal.text) == (
            Status.DEFERRED,
            Cause.DNS,
            "no answer",
        )
        assert refusal.reported[0].failure == "dnssec-invalid"

    @pytest.mark.parametrize(
        ("finding", "route", "text"),
        [
            (TlsaFinding(), SECURE, "it has no TLSA records"),
            (TlsaFinding("mx.test", (Tlsa(0, 0, 1, SHA256),)), SECURE, "none of its TLSA"),
            (TlsaFinding("mx.test", (EE,)), INSECURE, "the MX records that name it are not signed"),
        ],
    )
    def test_required_dane_defers_where_it_cannot_be(self, finding, route, text):
        """RFC 7672 §2.2.1 and §6."""
        refusal = judge(finding, route, PLAIN, "require").verdict

        assert isinstance(refusal, HostRefused)
        assert (refusal.status, refusal.cause) == (Status.DEFERRED, Cause.POLICY)
        assert refusal.text.startswith("DANE is required for mx.test, and ")
        assert text in refusal.text
        assert refusal.reported[0].failure == "dane-required"

    def test_required_dane_is_content_with_usable_records(self):
        opinion = judge(TlsaFinding("mx.test", (EE,)), SECURE, PLAIN, "require")

        assert opinion.verdict.level is TlsLevel.VERIFY


RECORD = f"3 1 1 {SHA256.hex()}"
ZONE = {
    "example.test": {"MX": ["10 mx.test"]},
    "unsigned.example": {"MX": ["10 mx.test"]},
    "outside.test": {"MX": ["10 mx.example"]},
    "mx.test": {"A": ["192.0.2.1"]},
    "_25._tcp.mx.test": {"TLSA": [RECORD]},
    "_26._tcp.mx.test": {"TLSA": ["3 1 1 " + "ee" * 32]},
    "mx.example": {"A": ["192.0.2.2"]},
    "_25._tcp.mx.example": {"TLSA": "SERVFAIL"},
    # An alias within what is signed, with records at either end.
    "alias.test": {"MX": ["10 in.test"]},
    "in.test": {"CNAME": ["mx.test"]},
    "_25._tcp.in.test": {"TLSA": ["3 1 1 " + "11" * 32]},
    "alias2.test": {"MX": ["10 in2.test"]},
    "in2.test": {"CNAME": ["bare.test"]},
    "bare.test": {"A": ["192.0.2.3"]},
    "_25._tcp.in2.test": {"TLSA": ["3 1 1 " + "22" * 32]},
    # An alias that leads out of it.
    "alias3.test": {"MX": ["10 out.test"]},
    "out.test": {"CNAME": ["mx.example"]},
    "_25._tcp.out.test": {"TLSA": ["3 1 1 " + "33" * 32]},
    # An alias that comes from outside.
    "alias4.test": {"MX": ["10 from.example"]},
    "from.example": {"CNAME": ["mx.test"]},
    # Records behind an alias of their own.
    "shared.test": {"MX": ["10 mx1.shared.test"]},
    "mx1.shared.test": {"A": ["192.0.2.4"]},
    "_25._tcp.mx1.shared.test": {"CNAME": ["tlsa.shared.test"]},
    "tlsa.shared.test": {"TLSA": ["2 0 1 " + "44" * 32]},
    "leaving.test": {"MX": ["10 mx1.leaving.test"]},
    "mx1.leaving.test": {"A": ["192.0.2.5"]},
    "_25._tcp.mx1.leaving.test": {"CNAME": ["tlsa.example"]},
    "tlsa.example": {"TLSA": [RECORD]},
    "none.test": {"MX": ["10 bare.test"]},
    "own.test": {"A": ["192.0.2.6"]},
    "_25._tcp.own.test": {"TLSA": [RECORD]},
    "forged.test": {"MX": ["10 mx.forged.test"]},
    "mx.forged.test": {"A": ["192.0.2.7"]},
    "_25._tcp.mx.forged.test": {"TLSA": "BOGUS"},
    "slow.test": {"MX": ["10 mx.slow.test"]},
    "mx.slow.test": {"A": ["192.0.2.8"]},
    "_25._tcp.mx.slow.test": {"TLSA": "TIMEOUT"},
    "many.test": {"A": ["192.0.2.9"]},
    "_25._tcp.many.test": {"TLSA": [f"3 1 1 {number:064x}" for number in range(200)]},
}


async def ask_dane(dns, route, candidate, port, mode, **options):
    return judge(await find_tlsa(dns, candidate, port, **options), route, candidate, mode)


async def ask(domain, *, port=25, mode="try", dns=None, **options):
    dns = dns or FakeDns(ZONE, authentic=["test"])
    route = await Router(dns).route(domain)
    return await ask_dane(dns, route, route.candidates[0], port, mode, **options)


def digests(opinion):
    return [record.data[:1].hex() for record in opinion.verdict.tlsa]


@pytest.mark.parametrize(
    ("domain", "sni", "found", "names"),
    [
        pytest.param("example.test", "mx.test", ["25"], ("mx.test", "example.test"), id="plain"),
        pytest.param("unsigned.example", "mx.test", ["25"], ("mx.test",), id="unsigned domain"),
        pytest.param("alias.test", "mx.test", ["25"], ("mx.test", "alias.test"), id="expanded"),
        pytest.param("alias2.test", "in2.test", ["22"], ("in2.test", "alias2.test"), id="original"),
        pytest.param(
            "alias3.test", "out.test", ["33"], ("out.test", "alias3.test"), id="leads out"
        ),
        pytest.param(
            "shared.test", "mx1.shared.test", ["44"], ("mx1.shared.test", "shared.test"), id="CNAME"
        ),
        pytest.param("own.test", "own.test", ["25"], ("own.test",), id="no MX"),
    ],
)
async def test_records_are_found_where_they_may_be(domain, sni, found, names):
    opinion = await ask(domain)

    assert (opinion.verdict.level, opinion.verdict.policy) == (TlsLevel.VERIFY, "dane")
    assert (opinion.verdict.sni, digests(opinion), opinion.verdict.names) == (sni, found, names)


@pytest.mark.parametrize(
    ("domain", "asked"),
    [
        pytest.param("none.test", {"_25._tcp.bare.test"}, id="no records"),
        pytest.param("outside.test", set(), id="insecure addresses: nobody is asked"),
        pytest.param("alias4.test", set(), id="an insecure alias"),
        pytest.param("leaving.test", {"_25._tcp.mx1.leaving.test"}, id="insecure records"),
        pytest.param("[192.0.2.1]", set(), id="address literal"),
    ],
)
async def test_without_secure_records_dane_demands_nothing(domain, asked):
    dns = FakeDns(ZONE, authentic=["test"])

    assert (await ask(domain, dns=dns)).verdict == NOTHING
    assert {name for name, rdtype in dns.asked if rdtype == "TLSA"} == asked


async def test_the_port_is_part_of_the_question():
    assert digests(await ask("example.test", port=26)) == ["ee"]
    assert (await ask("example.test", port=27)).verdict == NOTHING


async def test_a_resolver_that_is_not_trusted_means_no_dane():
    dns = FakeDns(ZONE)

    assert (await ask("example.test", dns=dns)).verdict == NOTHING
    assert not [name for name, rdtype in dns.asked if rdtype in ("TLSA", "CNAME")]


@pytest.mark.parametrize(
    ("domain", "text"),
    [
        ("forged.test", "TLSA lookup of _25._tcp.mx.forged.test failed: .*BOGUS"),
        ("slow.test", "TLSA lookup of _25._tcp.mx.slow.test failed: .*TIMEOUT"),
    ],
)
async def test_a_lookup_that_fails_refuses_the_host_and_is_not_no_records(
    domain, text, autojump_clock
):
    refusal = (await ask(domain)).verdict

    assert isinstance(refusal, HostRefused)
    assert (refusal.status, refusal.cause) == (Status.DEFERRED, Cause.DNS)
    assert re.search(text, refusal.text)


async def test_a_failure_at_the_expanded_name_is_not_made_good_by_the_original_one():
    """RFC 7672 §2.2.2: errors for any query in the process abandon the host."""
    zone = {**ZONE, "_25._tcp.mx.test": {"TLSA": "SERVFAIL"}}

    opinion = await ask("alias.test", dns=FakeDns(zone, authentic=["test"]))

    assert isinstance(opinion.verdict, HostRefused)


async def test_an_alias_that_cannot_be_looked_up_refuses_the_host():
    class NoAliases(FakeDns):
        async def query(self, name, rdtype):
            if rdtype == "CNAME":
                return await FakeDns({name: {"CNAME": "SERVFAIL"}}).query(name, rdtype)
            return await super().query(name, rdtype)

    opinion = await ask("alias3.test", dns=NoAliases(ZONE, authentic=["test"]))

    assert isinstance(opinion.verdict, HostRefused)
    assert opinion.verdict.text.startswith("CNAME lookup of out.test failed")


async def test_a_resolver_that_never_answers_is_not_waited_for(autojump_clock):
    class Stuck(Resolver):
        async def query(self, name, rdtype):
            await trio.sleep_forever()

    opinion = await ask_dane(Stuck(), SECURE, PLAIN, 25, "try", timeout=7)

    assert isinstance(opinion.verdict, HostRefused)
    assert opinion.verdict.text == "TLSA lookup for mx.test took over 7 s"
    assert opinion.seconds < math.inf
    assert trio.current_time() == 7


async def test_a_smart_host_has_records_too():
    dns = FakeDns(ZONE, authentic=["test"])
    router = Router(dns, table=RouteTable([("*", ["in.test", "192.0.2.99"])]))
    route = await router.route("whatever.example")

    opinion = await ask_dane(dns, route, route.candidates[0], 25, "try")
    assert opinion.verdict.names == ("mx.test", "in.test")
    assert opinion.settles_it
    assert (await ask_dane(dns, route, route.candidates[-1], 25, "try")).verdict == NOTHING
    refusal = (await ask_dane(dns, route, route.candidates[-1], 25, "require")).verdict
    assert isinstance(refusal, HostRefused)


async def test_no_more_records_are_taken_than_anybody_needs():
    assert len((await ask("many.test")).verdict.tlsa) == MAX_RECORDS


async def test_the_verdict_holds_as_long_as_the_answers_do():
    dns = FakeDns(ZONE, authentic=["test"], ttl=42)

    assert (await ask("example.test", dns=dns)).seconds == 42
    assert (await ask("none.test", dns=dns)).seconds == 42
    assert (await ask("outside.test", dns=dns)).seconds == math.inf
