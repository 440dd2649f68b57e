"""What each policy makes of a certificate; the chains themselves are tried in tests/net."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.delivery.shared import Path
from engine.net.tls import TlsClient
from engine.net.tls_material import TlsMaterial
from engine.outcome import Peer
from engine.route import Candidate, Route
from engine.routing.dane import TlsaFinding
from engine.routing.mta_sts import StsPolicy
from engine.security import Tlsa, TlsDemand, TlsLevel
from engine.settings import Settings
from engine.worker.explain_gather import Lead, Memory
from engine.worker.explain_judge import Judge, shorten
from tests.certificates import make

ROOT = make("Root", is_ca=True)
GOOD = make("mx.test", ROOT, names=["mx.test"])
OTHER = make("other.test", ROOT, names=["other.test"])
STRANGE = make("mx.test", names=["mx.test"])
CANDIDATE = Candidate("mx.test", "192.0.2.1", canonical="mx.test", is_secure=True)
ROUTE = Route("mx.test", (CANDIDATE,), is_secure=True, aliases=("x.test",))
ENFORCE = StsPolicy("enforce", 86_400, ("mx.test",))


@pytest.fixture
def material(tmp_path):
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)
    return TlsMaterial(ca_file=str(tmp_path / "ca.pem"))


def lead(*records: Tlsa, candidate: Candidate = CANDIDATE, **settings: object) -> Lead:
    demand = TlsDemand()
    tlsa = TlsaFinding("mx.test", records) if records else TlsaFinding()
    return Lead(
        candidate,
        Peer("mx.test", "192.0.2.1", 25),
        Path.of(Settings(**settings)),
        (),
        "",
        demand,
        demand,
        tlsa,
        "x.test",
        Memory(),
    )


async def judged(chain, material, about=None, policy=None):
    judge = Judge([each.der for each in chain], material, TlsClient())
    found = await judge.by_each(about or lead(), ROUTE, policy)
    return {each.by: (each.is_met, each.text) for each in found}


async def test_chain_and_name_are_judged_apart(material):
    assert await judged([GOOD], material) == {
        "chain": (True, "leads to a trusted authority"),
        "name": (True, "is for mx.test"),
    }
    found = await judged([OTHER], material)
    assert found["chain"][0] is True
    assert found["name"][0] is False
    assert "other.test" in found["name"][1]
    found = await judged([STRANGE], material)
    assert found["chain"][0] is False
    assert found["name"] == (True, "is for mx.test")


async def test_who_the_operator_asks_for_counts_as_well(material):
    found = await judged([OTHER], material, lead(tls_sni="other.test"))
    assert found["name"] == (True, "is for other.test")


async def test_records_are_held_against_the_chain(material):
    found = await judged([STRANGE], material, lead(STRANGE.tlsa(3, 1, 1)))
    assert found["dane"] == (True, f"{shorten(STRANGE.tlsa(3, 1, 1))} matches")
    found = await judged([GOOD], material, lead(STRANGE.tlsa(3, 1, 1)))
    assert found["dane"] == (False, "no TLSA record matches the certificate (3 1 1)")
    # Under usage 2 the names count, and the domain's own is one of them (RFC 7672 §3.2.2).
    for names, is_met in ((["x.test"], True), (["y.test"], False)):
        chain = [make("a", ROOT, names=names), ROOT]
        found = await judged(chain, material, lead(ROOT.tlsa(2, 0, 1)))
        assert found["dane"][0] is is_met


async def test_records_that_are_of_no_use_judge_nothing(material):
    assert "dane" not in await judged([GOOD], material, lead(GOOD.tlsa(1, 1, 1)))


async def test_a_policy_wants_a_trusted_certificate_for_a_host_it_names(material):
    found = await judged([GOOD], material, policy=ENFORCE)
    assert found["mta-sts"] == (True, "as the policy wants it")
    for chain in ([OTHER], [STRANGE]):
        assert (await judged(chain, material, policy=ENFORCE))["mta-sts"][0] is False
    found = await judged([GOOD], material, policy=replace(ENFORCE, mx=("other.test",)))
    assert found["mta-sts"] == (False, "the policy does not name the host")
    assert "mta-sts" not in await judged([GOOD], material, policy=replace(ENFORCE, mode="none"))


async def test_without_a_certificate_every_policy_is_against_it(material):
    found = await judged([], material, lead(GOOD.tlsa(3, 1, 1)), ENFORCE)
    assert {by: is_met for by, (is_met, _) in found.items()} == {
        "chain": False,
        "dane": False,
        "mta-sts": False,
    }


async def test_authorities_that_cannot_be_read_trust_nobody(tmp_path):
    found = await judged([GOOD], TlsMaterial(ca_file=str(tmp_path / "none")))
    assert found["chain"][0] is False
    assert "cannot be read" in found["chain"][1]


@pytest.mark.parametrize(
    ("demand", "chain", "is_met"),
    [
        (TlsDemand(), [STRANGE], True),
        (TlsDemand(TlsLevel.REQUIRE, "required"), [STRANGE], True),
        (TlsDemand(TlsLevel.VERIFY, "required", ("mx.test",)), [GOOD], True),
        (TlsDemand(TlsLevel.VERIFY, "required", ("mx.test",)), [OTHER], False),
        (TlsDemand(TlsLevel.VERIFY, "mta-sts", ("mx.test",)), [STRANGE], False),
        (TlsDemand(TlsLevel.VERIFY, "dane", (), None, (STRANGE.tlsa(3),)), [STRANGE], True),
        (TlsDemand(TlsLevel.VERIFY, "dane", (), None, (STRANGE.tlsa(3),)), [GOOD], False),
        (TlsDemand(TlsLevel.VERIFY, "dane", (), None, (STRANGE.tlsa(3),)), [], False),
    ],
    ids=str,
)
async def test_what_is_demanded_is_held_against_it(demand, chain, is_met, material):
    judge = Judge([each.der for each in chain], material, TlsClient())
    assert (await judge.by_demand(demand) is None) is is_met


def test_a_record_is_cut_where_it_still_can_be_told_from_others():
    assert shorten(Tlsa(3, 1, 1, bytes(32))) == f"3 1 1 {'00' * 8}…"
    assert shorten(Tlsa(3, 1, 0, b"\x30\x01")) == "3 1 0 3001"
