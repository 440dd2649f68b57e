from __future__ import annotations

import pytest

from engine.delivery.host_memory import HostMemory
from engine.net.fastopen_memory import FastOpenMemory
from engine.outcome import Peer
from engine.paths import PathRule
from engine.queue.hints import MemoryHints
from engine.route import Candidate, HostFailure, Unroutable
from engine.security import HostRefused, TlsDemand, TlsLevel
from engine.smtp.reply import Reply
from engine.worker.explain_gather import Memory
from tests.worker.explaining import TLSA, ZONE, policy, scout


def places(finding):
    return [(step.host, getattr(step, "address", None)) for step in finding.steps]


async def test_the_steps_are_those_of_one_delivery_attempt(autojump_clock):
    finder, *_ = scout()
    finding = await finder.find("x.test")
    assert set(places(finding)[:3]) == {
        ("mx1.x.test", "2001:db8::1"),
        ("mx1.x.test", "192.0.2.1"),
        ("mx2.x.test", "192.0.2.2"),
    }
    assert places(finding)[3:] == [("backup.test", "192.0.2.3")]
    assert [lead.candidate for lead in finding.leads] == list(finding.steps)


async def test_where_few_may_be_tried_the_next_preference_is_still_reached(autojump_clock):
    finder, *_ = scout(max_hosts_tried=1, address_family="ipv4")
    finding = await finder.find("x.test")
    assert [host for host, _ in places(finding)][1:] == ["backup.test"]
    assert len(finding.leads) == 2


async def test_a_host_without_address_is_a_step_without_lead(autojump_clock):
    finder, *_ = scout()
    finding = await finder.find("half.test")
    failed, step = finding.steps
    assert isinstance(failed, HostFailure)
    assert isinstance(step, Candidate)
    assert [lead.candidate for lead in finding.leads] == [step]


async def test_where_there_is_no_way_there_are_no_steps(autojump_clock):
    finder, *_ = scout()
    for domain in ("closed.test", "broken.test", "nowhere.test"):
        finding = await finder.find(domain)
        assert isinstance(finding.survey.verdict, Unroutable)
        assert (finding.steps, finding.leads, finding.policies) == ((), (), ())


async def test_the_settings_of_a_lead_are_those_of_its_path(autojump_clock):
    rules = [
        PathRule("one.test", {"max_connections": 3}),
        PathRule("192.0.2.0/24", {"port": 2525}),
        PathRule("else.test", {"port": 26}),
    ]
    finder, *_ = scout(rules=rules)
    finding = await finder.find("one.test")
    assert (finding.rules, finding.settings.max_connections) == ((0,), 3)
    (lead,) = finding.leads
    assert lead.rules == (1, 0)
    assert lead.path.settings.max_connections == 3
    assert lead.peer.port == 2525


# ---- TLS -----------------------------------------------------------------------------------------


async def test_records_and_what_they_demand(autojump_clock):
    zone = {**ZONE, "_25._tcp.mx.one.test": {"TLSA": [TLSA]}}
    finder, *_ = scout(zone, authentic=["one.test"])
    (lead,) = (await finder.find("one.test")).leads
    assert lead.tlsa is not None
    assert lead.tlsa.base == "mx.one.test"
    assert isinstance(lead.verdict, TlsDemand)
    assert (lead.verdict.level, lead.verdict.policy) == (TlsLevel.VERIFY, "dane")
    assert isinstance(lead.strict, TlsDemand)


async def test_records_are_asked_for_at_the_port_that_would_be_used(autojump_clock):
    zone = {**ZONE, "_2525._tcp.mx.one.test": {"TLSA": [TLSA]}}
    finder, *_ = scout(zone, authentic=["one.test"], port=2525)
    (lead,) = (await finder.find("one.test")).leads
    assert lead.tlsa is not None
    assert lead.tlsa.records


@pytest.mark.parametrize(
    ("authentic", "settings"),
    [([], {}), (["one.test"], {"dane": "off"}), (["one.test"], {"tls": "off"})],
)
async def test_nobody_asks_for_records_that_could_not_count(authentic, settings, autojump_clock):
    finder, _, dns = scout(authentic=authentic, **settings)
    (lead,) = (await finder.find("one.test")).leads
    assert lead.tlsa is None
    assert not [name for name, rdtype in dns.asked if rdtype == "TLSA"]


async def test_a_policy_is_found_and_refuses_a_host_it_does_not_name(autojump_clock):
    hints, zone = policy("enforce", "elsewhere.test")
    finder, *_ = scout(zone, hints=hints)
    finding = await finder.find("one.test")
    ((owner, found),) = finding.policies
    assert (owner, found.policy.mode) == ("one.test", "enforce")
    (lead,) = finding.leads
    assert lead.owner == "one.test"
    assert isinstance(lead.verdict, HostRefused)


async def test_an_address_comes_again_under_the_name_that_the_policy_knows(autojump_clock):
    hints, zone = policy("enforce", "b.test", domain="x.test")
    hosts = {"MX": ["10 a.test", "20 b.test", "30 c.test"]}
    zone = {**zone, "x.test": hosts} | {f"{it}.test": {"A": ["192.0.2.1"]} for it in "abc"}
    finder, *_ = scout(zone, hints=hints)

    finding = await finder.find("x.test")

    assert places(finding) == [("a.test", "192.0.2.1"), ("b.test", "192.0.2.1")]
    assert [type(lead.verdict) for lead in finding.leads] == [HostRefused, TlsDemand]


async def test_a_static_route_has_the_policies_of_its_hosts(autojump_clock):
    hints, zone = policy("enforce", "mx.one.test", domain="mx.one.test")
    finder, *_ = scout(zone, hints=hints, routes=[("*", ["mx.one.test", "mx2.x.test"])])
    finding = await finder.find("one.test")
    assert [owner for owner, _ in finding.policies] == ["mx.one.test", "mx2.x.test"]
    assert [lead.verdict.policy for lead in finding.leads] == ["mta-sts", "opportunistic"]


@pytest.mark.parametrize("settings", [{"mta_sts": "off"}, {"tls": "off"}], ids=str)
async def test_policies_that_are_switched_off_are_not_asked_for(settings, autojump_clock):
    hints, zone = policy("enforce", "elsewhere.test")
    finder, _, dns = scout(zone, hints=hints, **settings)
    finding = await finder.find("one.test")
    assert finding.policies == ()
    assert not [name for name, rdtype in dns.asked if rdtype == "TXT"]


async def test_requiretls_is_judged_beside(autojump_clock):
    finder, *_ = scout()
    (lead,) = (await finder.find("one.test")).leads
    assert isinstance(lead.verdict, TlsDemand)
    assert isinstance(lead.strict, HostRefused)
    assert str(lead.strict.enhanced) == "5.7.30"


# ---- our own side --------------------------------------------------------------------------------


async def test_our_address_is_the_one_that_is_set_or_that_the_system_would_choose(autojump_clock):
    finder, *_ = scout(routes=[("*", ["127.0.0.1"])])
    (lead,) = (await finder.find("one.test")).leads
    assert lead.peer == Peer("127.0.0.1", "127.0.0.1", 25, "127.0.0.1")
    finder, *_ = scout(routes=[("*", ["127.0.0.1"])], interface="127.0.0.7")
    (lead,) = (await finder.find("one.test")).leads
    assert lead.peer.local_address == "127.0.0.7"


async def test_an_interface_of_the_wrong_family_bars_a_host(autojump_clock):
    finder, *_ = scout(interface="2001:db8::9", interface_strict=True)
    (lead,) = (await finder.find("one.test")).leads
    assert "no IPv4 address among interface" in lead.barred
    assert lead.peer.local_address is None


async def test_behind_a_proxy_nobody_knows_our_address(autojump_clock):
    finder, *_ = scout(routes=[("*", ["127.0.0.1"])], proxy="socks5://192.0.2.5")
    (lead,) = (await finder.find("one.test")).leads
    assert lead.peer.local_address is None


async def test_a_unix_socket_has_neither_address_nor_port(autojump_clock):
    finder, *_ = scout(routes=[("*", ["unix:/run/lmtp"])], protocol="lmtp")
    (lead,) = (await finder.find("one.test")).leads
    assert lead.peer == Peer("unix:/run/lmtp")


async def test_what_is_remembered_of_a_host_is_told(autojump_clock):
    hints = MemoryHints()
    peer = Peer("mx.one.test", "192.0.2.9", 25)
    known = HostMemory(hints, peer)
    known.note_stream(is_taken=True)
    known.note_bad_chunking()
    known.note_broken_tls()
    known.note_hello(Reply(250, (b"mx", b"PIPELINING", b"PIPECONNECT")), has_tls=False)
    FastOpenMemory(hints).blame(peer, "timed out")
    finder, *_ = scout(hints=hints)
    (lead,) = (await finder.find("one.test")).leads
    assert lead.memory == Memory(
        takes_streams=True,
        is_bad_at_chunking=True,
        has_broken_tls=True,
        takes_early=True,
        avoids_fast_open=True,
    )
    finder, *_ = scout()
    (lead,) = (await finder.find("one.test")).leads
    assert lead.memory == Memory()
