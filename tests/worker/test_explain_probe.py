"""What a look at a host sees, and that it never begins mail: scripts end with QUIT."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from engine.delivery.shared import Path as SettingsPath
from engine.outcome import Cause, Peer, Status
from engine.route import Candidate, Route
from engine.routing.dane import TlsaFinding
from engine.routing.mta_sts import StsPolicy
from engine.security import TlsDemand, TlsLevel
from engine.settings import Settings
from engine.smtp.stages import Stage
from engine.testing.server import serve_script
from engine.worker.explain_gather import Lead, Memory
from engine.worker.explain_probe import PATIENCE, Prober
from tests.certificates import make, server_context
from tests.delivery.helpers import MX1, scripted

if TYPE_CHECKING:
    from pathlib import Path

ROOT = make("Root", is_ca=True)
GOOD = make("mx.test", ROOT, names=["mx.test"])
OTHER = make("other.test", ROOT, names=["other.test"])
BYE = "C: QUIT\nS: 221 bye\n"
HELLO = "S: 220 mx.test\nC: EHLO me.test\nS: 250-mx.test\nS: 250-PIPELINING\nS: 250 STARTTLS\n"
STARTED = HELLO + "C: STARTTLS\nS: 220 go on\n! starttls\n"
AGAIN = "C: EHLO me.test\nS: 250-mx.test\nS: 250 CHUNKING\n"
PLAIN = "S: 220 mx.test\nC: EHLO me.test\nS: 250 mx.test\n"


@pytest.fixture
def trusted(tmp_path: Path) -> str:
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)
    return str(tmp_path / "ca.pem")


def context(*chain):
    return server_context(list(chain or [GOOD]))


def lead(demand: TlsDemand | None = None, *, tlsa=None, candidate=None, **settings) -> Lead:
    demand = demand or TlsDemand(sni="mx.test")
    return Lead(
        candidate or Candidate("mx.test", MX1, canonical="mx.test", is_secure=True),
        Peer("mx.test", MX1, 25),
        SettingsPath.of(Settings(**{"helo_name": "me.test"} | settings)),
        (),
        "",
        demand,
        demand,
        tlsa,
        "x.test",
        Memory(),
    )


ROUTE = Route("mx.test", (), is_secure=True)
REQUIRE = TlsDemand(TlsLevel.REQUIRE, "required", sni="mx.test")
VERIFY = TlsDemand(TlsLevel.VERIFY, "required", ("mx.test",), "mx.test")


async def look(hosts, about=None, policy=None):
    return await Prober(hosts).look(about or lead(), ROUTE, policy)


def judged(sight):
    return {each.by: each.is_met for each in sight.tls.judgements}


# ---- what is seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("drip", [False, True])
async def test_a_host_with_tls_is_seen_in_clear_and_over_it(trusted, drip):
    script = STARTED + AGAIN + BYE
    async with scripted(script, ssl_context=context(), drip=drip) as hosts:
        sight = await look(hosts, lead(tls_ca_file=trusted))

    assert sight.trouble is None
    assert sight.greeting.text == "220 mx.test"
    assert list(sight.offered.keywords) == ["PIPELINING", "STARTTLS"]
    assert list(sight.offered_over_tls.keywords) == ["CHUNKING"]
    assert (sight.tls.facts.version, sight.tls.chain) == ("TLSv1.3", 1)
    assert sight.tls.certificate.names == ("mx.test",)
    assert sight.tls.resumable > 0
    assert judged(sight) == {"chain": True, "name": True}
    assert sight.connection.local_address == "198.51.100.9"


async def test_a_host_without_tls_is_seen_in_clear(autojump_clock):
    async with scripted(PLAIN + BYE) as hosts:
        sight = await look(hosts)

    assert (sight.trouble, sight.tls, sight.offered_over_tls) == (None, None, None)
    assert dict(sight.offered.keywords) == {}


async def test_a_host_that_knows_helo_only_offers_nothing(autojump_clock):
    script = "S: 220 mx.test\nC: EHLO me.test\nS: 502 what\nC: HELO me.test\nS: 250 SIZE 1\n"
    async with scripted(script + BYE) as hosts:
        sight = await look(hosts)

    assert sight.trouble is None
    assert dict(sight.offered.keywords) == {}


async def test_tls_from_the_first_octet(trusted):
    script = "! starttls\nS: 220 mx.test\n" + AGAIN + BYE
    async with scripted(script, ssl_context=context()) as hosts:
        sight = await look(hosts, lead(protocol="smtps", tls_ca_file=trusted))

    assert sight.trouble is None
    assert sight.offered is None
    assert sight.tls.facts.version == "TLSv1.3"


async def test_lmtp_is_greeted_as_such(autojump_clock):
    script = "S: 220 lmtp\nC: LHLO me.test\nS: 250-lmtp\nS: 250 PIPELINING\n" + BYE
    async with scripted(script) as hosts:
        sight = await look(hosts, lead(protocol="lmtp"))
    assert sight.offered.pipelining


async def test_no_password_is_used(autojump_clock):
    script = PLAIN.replace("250 mx.test", "250-mx.test\nS: 250 AUTH PLAIN") + BYE
    auth = {"username": "u", "password": "s3cretW0rd"}
    async with scripted(script) as hosts:
        sight = await look(hosts, lead(auth=auth, auth_required=True, auth_in_clear=True))
    assert sight.trouble is None


# ---- what would keep mail away -------------------------------------------------------------------


async def test_a_certificate_of_somebody_else_is_seen_and_keeps_mail_away(trusted):
    async with scripted(STARTED + AGAIN + BYE, ssl_context=context(OTHER)) as hosts:
        sight = await look(hosts, lead(VERIFY, tls_ca_file=trusted))

    assert sight.trouble is not None
    assert (sight.trouble.status, sight.trouble.stage) == (Status.DEFERRED, Stage.TLS)
    assert "other.test" in sight.trouble.text
    assert sight.tls.certificate.names == ("other.test",)
    assert judged(sight) == {"chain": True, "name": False}
    assert not sight.is_clear_next


async def test_it_does_where_nobody_checks_certificates(trusted):
    for demand in (None, REQUIRE):
        async with scripted(STARTED + AGAIN + BYE, ssl_context=context(OTHER)) as hosts:
            sight = await look(hosts, lead(demand, tls_ca_file=trusted))
        assert sight.trouble is None


@pytest.mark.parametrize("is_right", [True, False])
async def test_records_decide_where_they_are_demanded(trusted, is_right):
    record = (GOOD if is_right else OTHER).tlsa(3, 1, 1)
    demand = TlsDemand(TlsLevel.VERIFY, "dane", (), "mx.test", (record,))
    about = lead(demand, tlsa=TlsaFinding("mx.test", (record,)), tls_ca_file=trusted)
    async with scripted(STARTED + AGAIN + BYE, ssl_context=context()) as hosts:
        sight = await look(hosts, about)

    assert (sight.trouble is None) is is_right
    assert judged(sight)["dane"] is is_right


async def test_the_policy_of_the_domain_is_judged_too(trusted):
    policy = StsPolicy("enforce", 86_400, ("mx.test",))
    async with scripted(STARTED + AGAIN + BYE, ssl_context=context(OTHER)) as hosts:
        sight = await look(hosts, lead(tls_ca_file=trusted), policy)
    assert judged(sight)["mta-sts"] is False


async def test_a_host_that_refuses_connections_is_told(autojump_clock):
    async with scripted({}) as hosts:
        sight = await look(hosts)
    assert (sight.connection, sight.trouble.cause) == (None, Cause.REFUSED)


@pytest.mark.parametrize(
    ("script", "status", "stage"),
    [
        ("S: 554 not today\n" + BYE, "failed", "greeting"),
        ("S: 421 too busy\n! expect-eof\n", "deferred", "greeting"),
        ("S: 220 mx\nC: EHLO me.test\n! close\n", "deferred", "hello"),
        ("S: nonsense\n! expect-eof\n", "deferred", "greeting"),
        ("! stall\n", "deferred", "greeting"),
        (HELLO + "C: STARTTLS\nS: 454 not now\n" + BYE, "deferred", "starttls"),
        (PLAIN + BYE, "deferred", "starttls"),
    ],
)
async def test_what_a_host_does_wrong_is_told(script, status, stage, autojump_clock):
    async with scripted(script) as hosts:
        sight = await look(hosts, lead(REQUIRE))
    assert (sight.trouble.status, sight.trouble.stage) == (status, stage)
    assert not sight.is_clear_next


async def test_octets_injected_behind_starttls_are_told_and_nothing_follows(autojump_clock):
    script = HELLO + "C: STARTTLS\nS+ 220 go on\\r\\n250 injected\\r\\n\n! expect-eof\n"
    async with scripted(script) as hosts:
        sight = await look(hosts)
    assert (sight.trouble.cause, sight.is_clear_next) == (Cause.TLS, False)


@pytest.mark.parametrize(
    ("settings", "demand", "is_clear_next"),
    [({}, None, True), ({"tls_fallback_to_clear": False}, None, False), ({}, REQUIRE, False)],
    ids=str,
)
async def test_tls_that_fails_may_mean_that_mail_goes_in_clear(settings, demand, is_clear_next):
    script = HELLO + "C: STARTTLS\nS: 220 go on\n! sleep 0.1\nS: 500 what\n! close\n"
    async with scripted(script) as hosts:
        sight = await look(hosts, lead(demand, **settings))
    assert (sight.trouble.cause, sight.is_clear_next) == (Cause.TLS, is_clear_next)
    assert list(sight.offered.keywords) == ["PIPELINING", "STARTTLS"]


async def test_nobody_is_waited_for_longer_than_a_person_waits(autojump_clock):
    async with scripted("! stall\n") as hosts:
        started = trio.current_time()
        sight = await look(hosts, lead(greeting_timeout="5m"))
        assert trio.current_time() - started == pytest.approx(PATIENCE)
        assert hosts.options[0].connect_timeout == PATIENCE
    assert sight.trouble.cause is Cause.TIMEOUT


async def test_a_shorter_timeout_of_the_settings_counts(autojump_clock):
    async with scripted("! stall\n") as hosts:
        started = trio.current_time()
        await look(hosts, lead(greeting_timeout=7, connect_timeout=5))
        assert trio.current_time() - started == pytest.approx(7)
        assert hosts.options[0].connect_timeout == 5


# ---- over a real connection ----------------------------------------------------------------------


async def test_a_real_connection_has_a_round_trip(trusted):
    from engine.net.connector import Connector

    async with serve_script(STARTED + AGAIN + BYE, ssl_context=context()) as server:
        candidate = Candidate("mx.test", "127.0.0.1", server.port)
        about = replace(lead(tls_ca_file=trusted), candidate=candidate)
        sight = await Prober(Connector()).look(about, ROUTE, None)

    assert sight.trouble is None
    assert sight.round_trip > 0
    assert sight.fast_open in ("off", "asked", "used")
    assert sight.connection.local_address == "127.0.0.1"
    assert 0 < sight.greeting_seconds < 10
