"""What a validating name server says, and what becomes of it: DANE, and policies over HTTPS."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio

from engine.outcome import Cause, Status
from engine.queue.hints import MemoryHints
from engine.routing.cache import CachingResolver
from engine.routing.policy import Policies
from engine.routing.router import Router
from engine.routing.sts_fetch import StsFetcher, dial_by
from engine.routing.sts_store import StsPolicies
from engine.routing.stub import DnsResolver
from engine.security import HostRefused, TlsDemand, TlsLevel
from engine.settings import Settings
from tests.https_server import HttpsServer, Page
from tests.servers.unbound import SignedZone, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.unbound import NameServer

pytestmark = pytest.mark.servers

GOOD, FORGED = "ab" * 32, "cd" * 32

SIGNED = SignedZone(
    "signed.test",
    f"""
signed.test. MX 10 mx.signed.test.
mx.signed.test. A 192.0.2.1
mx.signed.test. AAAA 2001:db8::1
_25._tcp.mx.signed.test. TLSA 3 1 1 {GOOD}
_25._tcp.mx.signed.test. TLSA 3 1 2 {GOOD * 2}
ta.signed.test. MX 10 ta-mx.signed.test.
ta-mx.signed.test. A 192.0.2.2
_25._tcp.ta-mx.signed.test. CNAME tlsa.signed.test.
tlsa.signed.test. TLSA 2 0 1 {GOOD}
bare.signed.test. MX 10 bare-mx.signed.test.
bare-mx.signed.test. A 192.0.2.3
alias.signed.test. CNAME ta.signed.test.
host-alias.signed.test. MX 10 out.signed.test.
out.signed.test. CNAME mx.unsigned.test.
_25._tcp.out.signed.test. TLSA 3 1 1 {GOOD}
implicit.signed.test. A 192.0.2.5
_25._tcp.implicit.signed.test. TLSA 3 1 1 {GOOD}
leads-out.signed.test. MX 10 mx.unsigned.test.
old.signed.test. MX 10 old-mx.signed.test.
old-mx.signed.test. A 192.0.2.6
_25._tcp.old-mx.signed.test. TLSA 0 0 1 {GOOD}
""",
)
#: Somebody changed the MX record of one domain, the TLSA record of another, and took away the
#: signature of a third.
BOGUS = SignedZone(
    "bogus.test",
    f"""
mx-forged.bogus.test. MX 10 good.bogus.test.
tlsa-forged.bogus.test. MX 10 forged.bogus.test.
good.bogus.test. A 192.0.2.9
forged.bogus.test. A 192.0.2.9
_25._tcp.forged.bogus.test. TLSA 3 1 1 {GOOD}
""",
    (
        ("MX 10 good.bogus.test.", "MX 10 evil.bogus.test."),
        (f"TLSA 3 1 1 {GOOD}", f"TLSA 3 1 1 {FORGED}"),
    ),
)
UNSIGNED = f"""
unsigned.test. MX 10 mx.unsigned.test.
mx.unsigned.test. A 192.0.2.7
_25._tcp.mx.unsigned.test. TLSA 3 1 1 {FORGED}
hosted.test. MX 10 mx.signed.test.
in.unsigned.test. CNAME mx.signed.test.
_mta-sts.sts.test. TXT "v=STSv1; id=1"
mta-sts.sts.test. A 127.0.0.1
sts.test. MX 10 mx.unsigned.test.
_mta-sts.other.test. TXT "v=STSv1; id=1"
mta-sts.other.test. A 127.0.0.1
other.test. MX 10 mx.other.test.
mx.other.test. A 192.0.2.8
"""


@pytest.fixture(scope="module")
def validating() -> Iterator[NameServer]:
    """An unbound that validates, for all tests here."""
    with start(UNSIGNED, SIGNED, BOGUS) as server:
        yield server


@pytest.fixture
def resolver(validating: NameServer) -> DnsResolver:
    return DnsResolver([f"{validating.host}:{validating.port}"])


@pytest.mark.parametrize(
    ("name", "rdtype", "status", "authentic"),
    [
        ("signed.test", "MX", "ok", True),
        ("mx.signed.test", "A", "ok", True),
        ("mx.signed.test", "AAAA", "ok", True),
        ("_25._tcp.mx.signed.test", "TLSA", "ok", True),
        ("_25._tcp.ta-mx.signed.test", "TLSA", "ok", True),
        ("alias.signed.test", "MX", "ok", True),
        pytest.param("_25._tcp.bare-mx.signed.test", "TLSA", "no-such-name", True, id="NXDOMAIN"),
        pytest.param("bare-mx.signed.test", "TLSA", "no-data", True, id="NODATA"),
        ("unsigned.test", "MX", "ok", False),
        ("_25._tcp.mx.unsigned.test", "TLSA", "ok", False),
        ("nothing.unsigned.test", "A", "no-such-name", False),
        pytest.param("out.signed.test", "A", "ok", False, id="an alias that leads out"),
        pytest.param("out.signed.test", "CNAME", "ok", True, id="the alias itself"),
        pytest.param("in.unsigned.test", "A", "ok", False, id="an alias that leads in"),
        ("mx-forged.bogus.test", "MX", "failed", False),
        ("_25._tcp.forged.bogus.test", "TLSA", "failed", False),
        ("forged.bogus.test", "A", "ok", True),
    ],
)
async def test_what_is_signed_is_authentic_and_what_is_forged_fails(
    name, rdtype, status, authentic, resolver
):
    answer = await resolver.query(name, rdtype)

    assert (answer.status, answer.authentic) == (status, authentic)
    # RFC 8914 §4.7 and what unbound makes of other trouble with signatures.
    assert ("EDE" in answer.text) is (status == "failed")


async def test_a_name_server_that_is_not_trusted_is_not_believed(validating):
    address = f"{validating.host}:{validating.port}"
    resolver = DnsResolver([address], trusted=["192.0.2.53"])

    answer = await resolver.mx("signed.test")

    assert (answer.status, answer.authentic) == ("ok", False)


async def demand(resolver, domain, sts=None, **settings):
    cached = CachingResolver(resolver)
    route = await Router(cached).route(domain)
    policies = Policies(cached, sts)
    return await policies.demand(domain, route, route.candidates[0], 25, Settings(**settings))


@pytest.mark.parametrize(
    ("domain", "names", "sni"),
    [
        ("signed.test", ("mx.signed.test", "signed.test"), "mx.signed.test"),
        ("ta.signed.test", ("ta-mx.signed.test", "ta.signed.test"), "ta-mx.signed.test"),
        (
            "alias.signed.test",
            ("ta-mx.signed.test", "alias.signed.test", "ta.signed.test"),
            "ta-mx.signed.test",
        ),
        pytest.param("hosted.test", ("mx.signed.test",), "mx.signed.test", id="unsigned domain"),
        pytest.param(
            "host-alias.signed.test",
            ("out.signed.test", "host-alias.signed.test"),
            "out.signed.test",
            id="alias leads out",
        ),
        pytest.param(
            "implicit.signed.test", ("implicit.signed.test",), "implicit.signed.test", id="no MX"
        ),
    ],
)
async def test_dane_is_found(domain, names, sni, resolver):
    verdict = await demand(resolver, domain)

    assert isinstance(verdict, TlsDemand)
    assert (verdict.level, verdict.policy) == (TlsLevel.VERIFY, "dane")
    assert (verdict.names, verdict.sni) == (names, sni)
    assert {record.data[:1] for record in verdict.tlsa} == {b"\xab"}


async def test_of_two_digests_the_stronger_one_is_left(resolver):
    verdict = await demand(resolver, "signed.test")

    assert [record.matching for record in verdict.tlsa] == [2]


@pytest.mark.parametrize(
    ("domain", "level", "policy"),
    [
        pytest.param("bare.signed.test", TlsLevel.OPPORTUNISTIC, "opportunistic", id="denied"),
        pytest.param("unsigned.test", TlsLevel.OPPORTUNISTIC, "opportunistic", id="unsigned"),
        pytest.param(
            "leads-out.signed.test", TlsLevel.OPPORTUNISTIC, "opportunistic", id="unsigned host"
        ),
        pytest.param("old.signed.test", TlsLevel.REQUIRE, "dane", id="unusable"),
    ],
)
async def test_dane_demands_no_certificate(domain, level, policy, resolver):
    verdict = await demand(resolver, domain)

    assert (verdict.level, verdict.policy, verdict.tlsa) == (level, policy, ())


async def test_a_forged_record_refuses_the_host(resolver):
    for dane in ("try", "require"):
        verdict = await demand(resolver, "tlsa-forged.bogus.test", dane=dane)

        assert isinstance(verdict, HostRefused)
        assert (verdict.status, verdict.cause) == (Status.DEFERRED, Cause.DNS)
        assert verdict.reported[0].failure == "dnssec-invalid"


async def test_a_forged_mx_record_leads_nowhere(resolver):
    unroutable = await Router(resolver).route("mx-forged.bogus.test")

    assert (unroutable.status, unroutable.cause) == (Status.DEFERRED, Cause.DNS)


@pytest.mark.parametrize("domain", ["bare.signed.test", "hosted.test", "unsigned.test"])
async def test_required_dane_waits_for_signatures_and_records(domain, resolver):
    verdict = await demand(resolver, domain, dane="require")

    assert (verdict.status, verdict.cause) == (Status.DEFERRED, Cause.POLICY)


class TestMtaSts:
    POLICY = b"version: STSv1\nmode: enforce\nmx: *.unsigned.test\nmax_age: 86400\n"

    @pytest.fixture
    async def sts(self, resolver, nursery):
        """The store of an engine whose connections to port 443 end at a server of ours."""
        server = HttpsServer(
            {"/.well-known/mta-sts.txt": Page(self.POLICY)},
            "mta-sts.sts.test",
            "mta-sts.other.test",
        )
        await nursery.start(server.run)

        async def connect(address, port):
            assert (address, port) == ("127.0.0.1", 443)
            return await trio.open_tcp_stream(*server.address)

        fetcher = StsFetcher(dial_by(resolver, connect), make_context=server.trusting)
        return StsPolicies(resolver, MemoryHints(), fetcher)

    async def test_a_policy_is_discovered_and_enforced(self, resolver, sts):
        verdict = await demand(resolver, "sts.test", sts)

        assert (verdict.level, verdict.policy) == (TlsLevel.VERIFY, "mta-sts")
        assert (verdict.names, verdict.sni) == (("mx.unsigned.test",), "mx.unsigned.test")

    async def test_a_host_that_the_policy_does_not_name_is_refused(self, resolver, sts):
        verdict = await demand(resolver, "other.test", sts)

        assert isinstance(verdict, HostRefused)
        assert "mx.other.test" in verdict.text

    async def test_a_domain_without_a_record_has_no_policy(self, resolver, sts):
        verdict = await demand(resolver, "unsigned.test", sts)

        assert verdict.policy == "opportunistic"

    async def test_a_policy_host_nobody_vouches_for_is_no_policy(self, resolver, sts):
        sts._fetcher._make_context = ssl.create_default_context

        verdict = await demand(resolver, "sts.test", sts)

        assert verdict.policy == "opportunistic"
        assert [policy.failure for policy in verdict.reported] == ["sts-webpki-invalid"]
