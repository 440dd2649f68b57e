from __future__ import annotations

from dataclasses import replace

import pytest

from engine.delivery.verdict import Verdict
from engine.outcome import Cause, Status, TlsFacts
from engine.paths import PathRule, SettingsTable
from engine.queue.hints import MemoryHints
from engine.settings import Settings
from engine.smtp.capabilities import Capabilities
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.worker.explain_describe import MAX_TEXT, Describer, bounded
from engine.worker.explain_facts import MxFact, Result, SettingFact, StsFact, TlsaFact
from engine.worker.explain_probe import Sight, TlsSight
from tests.worker.explaining import TLSA, ZONE, explained, policy, scout

DEFERRED = Verdict(Status.DEFERRED, Stage.CONNECT, Cause.REFUSED, "refused")
FAILED = Verdict(Status.FAILED, Stage.GREETING, Cause.REPLY, "not today")


def places(explanation):
    """Return all addresses as `host address order note`."""
    return [
        f"{host.host} {place.address} {place.order or '-'} {host.note or place.note or ''}".strip()
        for host in explanation.hosts
        for place in host.places
    ]


# ---- what it comes to ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "result", "code", "text"),
    [
        ("x.test", "tried", None, "would be tried at 4 addresses"),
        ("one.test", "tried", None, "would be tried at 1 address"),
        ("closed.test", "failed", "5.1.10", "closed.test takes no mail (null MX)"),
        ("nowhere.test", "failed", "5.1.2", "nowhere.test does not exist in the DNS"),
        ("broken.test", "deferred", "4.4.3", "MX lookup of broken.test failed"),
        ("us.test", "deferred", "4.4.6", "us.test: lowest numbered MX record points to this host"),
    ],
)
async def test_what_becomes_of_mail(domain, result, code, text, autojump_clock):
    found = await explained(domain, own_names=["us.test"])
    assert (found.result, found.address, found.domain) == (result, f"a@{domain}", domain)
    assert (found.enhanced and str(found.enhanced)) == code
    assert found.text.startswith(text)


async def test_where_a_policy_rules_out_every_host_it_is_forbidden(autojump_clock):
    hints, zone = policy("enforce", "elsewhere.test")
    found = await explained("one.test", zone, hints=hints)
    assert (found.result, str(found.enhanced)) == (Result.FORBIDDEN, "4.7.1")
    assert "MTA-STS policy of one.test" in found.text
    ((place,),) = (host.places for host in found.hosts)
    assert place.refused is not None
    assert place.refused.cause is Cause.POLICY
    assert (place.tls, place.order, place.is_covered) == (None, 1, False)


async def test_where_records_could_not_be_looked_up_mail_waits(autojump_clock):
    zone = {**ZONE, "_25._tcp.mx.one.test": {"TLSA": "SERVFAIL"}}
    found = await explained("one.test", zone, authentic=["one.test"])
    assert (found.result, str(found.enhanced)) == (Result.DEFERRED, "4.4.3")
    assert "TLSA lookup" in found.text


async def test_where_our_own_side_bars_every_host_mail_waits(autojump_clock):
    found = await explained("one.test", interface="2001:db8::9", interface_strict=True)
    assert (found.result, found.enhanced) == (Result.DEFERRED, None)
    assert "no IPv4 address among interface" in found.text


async def test_a_host_that_may_mend_is_hoped_for(autojump_clock):
    """One host is forbidden, the other could not be looked up."""
    hints, zone = policy("enforce", "elsewhere.test", domain="unsure.test")
    found = await explained("unsure.test", zone, hints=hints)
    assert found.result is Result.DEFERRED


# ---- with what was seen --------------------------------------------------------------------------


def in_clear() -> Sight:
    return Sight(None, greeting=Reply(220, (b"hi",)), offered=Capabilities())


def over_tls() -> Sight:
    facts = TlsFacts("TLSv1.3", "AES", "no", "opportunistic")
    return replace(in_clear(), tls=TlsSight(facts, 0.1, 7200.0, 1, None, ()))


async def seen(domain, *sights, zone=ZONE, **more):
    finder, describer, _ = scout(zone, **more)
    finding = await finder.find(domain)
    candidates = [lead.candidate for lead in finding.leads]
    return describer.describe(domain, finding, dict(zip(candidates, sights, strict=True)))


@pytest.mark.parametrize(
    ("sights", "result", "text"),
    [
        ((in_clear(), Sight(DEFERRED)), "tried", "would be sent to {0}, in clear"),
        (
            (Sight(DEFERRED), over_tls()),
            "tried",
            "would be sent to {1}, over TLSv1.3 with a certificate that nobody checks",
        ),
        (
            (Sight(DEFERRED, is_clear_next=True), Sight(DEFERRED)),
            "tried",
            "would be sent to {0}, in clear",
        ),
        ((Sight(DEFERRED), Sight(FAILED)), "deferred", "refused"),
        ((Sight(FAILED), Sight(FAILED)), "failed", "not today"),
    ],
)
async def test_a_look_decides(sights, result, text, autojump_clock):
    zone = {
        "two.test": {"MX": ["0 a", "1 b"]},
        "a": {"A": ["192.0.2.1"]},
        "b": {"A": ["192.0.2.2"]},
    }
    found = await seen("two.test", *sights, zone=zone)
    assert found.result == result
    assert found.text == text.format("a [192.0.2.1]:25", "b [192.0.2.2]:25")


async def test_a_verified_certificate_is_told_by_what(autojump_clock):
    zone = {**ZONE, "_25._tcp.mx.one.test": {"TLSA": [TLSA]}}
    found = await seen("one.test", over_tls(), zone=zone, authentic=["one.test"])
    assert found.text.endswith("over TLSv1.3, verified by TLSA records")
    found = await seen("one.test", over_tls(), tls="verify")
    assert found.text.endswith("over TLSv1.3, verified by authorities")


async def test_what_was_seen_stands_with_its_place(autojump_clock):
    found = await seen("one.test", replace(over_tls(), round_trip=0.01))
    probe = found.hosts[0].places[0].probe
    assert probe is not None
    assert (probe.is_good, probe.greeting, probe.round_trip) == (True, "220 hi", 0.01)
    assert probe.tls is not None
    assert (probe.tls.version, probe.tls.resumable_seconds) == ("TLSv1.3", 7200.0)


async def test_a_reply_is_bounded_and_cannot_steer_a_terminal(autojump_clock):
    evil = b"\x1b[2J" + b"x" * 8000
    offered = Capabilities.parse(Reply(250, (b"mx", b"X" * 500 + b" " + evil)))
    verdict = DEFERRED._replace(text=evil.decode())
    sight = Sight(verdict, greeting=Reply(220, (evil,) * 7), offered=offered)
    found = await seen("one.test", sight)
    probe = found.hosts[0].places[0].probe
    assert probe is not None
    assert probe.hello is not None
    texts = [probe.text, probe.greeting, found.text, *probe.hello, *probe.hello.values()]
    assert all(text.isprintable() and len(text) <= MAX_TEXT for text in texts)


# ---- hosts and their addresses -------------------------------------------------------------------


async def test_every_host_is_there_and_says_why_it_is_not_tried(autojump_clock):
    found = await explained("ours.test", own_names=["us.test"])
    assert found.way.records == (
        MxFact(10, "mx1.x.test"),
        MxFact(20, "us.test"),
        MxFact(20, "mx2.x.test"),
    )
    lines = places(found)
    assert lines[:2] == ["mx1.x.test 2001:db8::1 1", "mx1.x.test 192.0.2.1 2"]
    assert lines[2:] == [
        "us.test 192.0.2.99 - this machine: cut off, with all of equal or worse preference",
        "mx2.x.test 192.0.2.2 - cut off: not better than this machine",
    ]


async def test_addresses_that_are_not_tried_say_why(autojump_clock):
    zone = {
        **ZONE,
        "x.test": {"MX": ["10 a.test", "10 b.test", "30 c.test"]},
        "a.test": {"A": ["192.0.2.1"]},
        "b.test": {"A": ["192.0.2.2"]},
        "c.test": {"A": ["192.0.2.1", "192.0.2.3", "192.0.2.4"]},
    }
    found = await explained("x.test", zone, max_hosts_tried=2)
    lines = places(found)
    assert sorted(line.split(" ", 2)[2] for line in lines[:2]) == ["1", "2"]
    assert lines[2] == "c.test 192.0.2.1 - the same address as that of a host before it"
    assert sorted(line.split(" ", 2)[2] for line in lines[3:]) == [
        "- beyond max_hosts_tried (2)",
        "3",
    ]
    # The route knows both families, and the site's own rule wants one.
    rules = [PathRule("backup.test,mx1.x.test,mx2.x.test", {"address_family": "ipv4"})]
    found = await explained("x.test", rules=rules)
    assert "mx1.x.test 2001:db8::1 - address_family is ipv4" in places(found)


async def test_a_host_without_address_says_so(autojump_clock):
    found = await explained("half.test")
    assert (found.hosts[0].note, found.hosts[0].places) == (
        "gone.test does not exist in the DNS",
        (),
    )


@pytest.mark.parametrize(
    ("domain", "more", "way"),
    [
        ("x.test", {}, ("mx", None, None, False, 300.0)),
        ("alias.test", {"authentic": True}, ("mx", None, "x.test", True, 300.0)),
        ("implicit.test", {}, ("implicit", None, None, False, 300.0)),
        ("[192.0.2.1]", {}, ("literal", None, None, None, None)),
        ("x.test", {"routes": [("*", ["192.0.2.9"])]}, ("static", "*", None, None, None)),
    ],
)
async def test_where_the_hosts_come_from(domain, more, way, autojump_clock):
    found = (await explained(domain, **more)).way
    assert (found.kind, found.rule, found.alias, found.is_signed, found.seconds) == way


async def test_who_publishes_thousands_of_records_is_shown_with_fifty(autojump_clock):
    zone = {"x.test": {"MX": [f"{number} mx{number}.test" for number in range(100)]}}
    found = await explained("x.test", {**zone, "mx0.test": {"A": ["192.0.2.1"]}})
    assert (len(found.way.records), found.way.count) == (50, 100)


# ---- settings ------------------------------------------------------------------------------------


async def test_settings_that_differ_say_where_they_come_from(autojump_clock):
    rules = [PathRule("one.test", {"max_connections": 3}), PathRule("192.0.2.9", {"port": 26})]
    finder, _, _ = scout(rules=rules, helo_name="me.test", serialize=True)
    finding = await finder.find("one.test")
    table = SettingsTable(Settings(helo_name="me.test", serialize=True), rules)
    sources = {
        "defaults.helo_name": "engine.toml:2",
        "defaults.serialize": "--set",
        "paths[0].match": "engine.toml:4",
        "paths[0].max_connections": "engine.toml:5",
        "paths[1].port": "engine.toml:8",
    }
    found = Describer(table, sources).describe("one.test", finding)
    assert found.rules == ('[[paths]] 1 "one.test" (engine.toml:4)',)
    assert found.settings == (
        SettingFact("helo_name", "me.test", "engine.toml:2"),
        SettingFact("max_connections", 3, "engine.toml:5"),
        SettingFact("serialize", True, "--set"),
    )
    assert (found.limits.max_connections, found.limits.serialize) == (3, True)
    ((place,),) = (host.places for host in found.hosts)
    assert place.settings == (SettingFact("port", 26, "engine.toml:8"),)
    assert place.hello_name == "me.test"


async def test_no_secret_is_told(autojump_clock):
    found = await explained(
        "one.test",
        auth={"username": "u", "password": "s3cretW0rd+1"},
        proxy="socks5://user:s3cretW0rd@192.0.2.5",
        routes=[("*", ["127.0.0.1"])],
    )
    assert {each.name: each.value for each in found.settings} == {
        "auth": "set",
        "proxy": ["socks5://192.0.2.5:1080"],
    }
    assert found.proxies == ("socks5://192.0.2.5:1080",)
    assert "s3cretW0rd" not in repr(found)


async def test_without_a_name_we_say_our_address_and_behind_a_proxy_nobody_can_tell(autojump_clock):
    for more, name in (({}, "[127.0.0.1]"), ({"proxy": "socks5://192.0.2.5"}, None)):
        found = await explained("one.test", routes=[("*", ["127.0.0.1"])], **more)
        assert found.hosts[0].places[0].hello_name == name


# ---- TLS -----------------------------------------------------------------------------------------


async def test_records_are_told_apart_by_their_use(autojump_clock):
    useless = "1 1 1 " + "cd" * 32
    zone = {**ZONE, "_25._tcp.mx.one.test": {"TLSA": [TLSA, useless]}}
    place = (await explained("one.test", zone, authentic=["one.test"])).hosts[0].places[0]
    assert place.tlsa == TlsaFact("_25._tcp.mx.one.test", (TLSA,), (useless,))
    assert place.tls is not None
    assert (place.tls.level, place.tls.by) == ("verify", "dane")
    assert place.requiretls is None


@pytest.mark.parametrize(
    ("authentic", "settings", "trouble"),
    [
        (["one.test"], {}, None),
        ([], {}, "not looked for: the host's addresses are not signed"),
        (["one.test"], {"dane": "off"}, "not looked for: dane is off"),
        (["one.test"], {"tls": "off"}, "not looked for: tls is off"),
    ],
)
async def test_where_there_are_no_records_it_is_said_why(
    authentic, settings, trouble, autojump_clock
):
    found = await explained("one.test", authentic=authentic, **settings)
    assert found.hosts[0].places[0].tlsa == TlsaFact(trouble=trouble)


@pytest.mark.parametrize(
    ("mode", "is_covered"), [("enforce", True), ("testing", True), ("none", None)]
)
async def test_the_policy_of_a_domain(mode, is_covered, autojump_clock):
    hints, zone = policy(mode, *(["mx.one.test"] if mode != "none" else []))
    found = await explained("one.test", zone, hints=hints)
    (fact,) = found.mta_sts
    assert (fact.domain, fact.mode, fact.max_age) == ("one.test", mode, 86_400)
    assert found.hosts[0].places[0].is_covered is is_covered


async def test_a_policy_that_cannot_be_had_says_so(autojump_clock):
    zone = {**ZONE, "_mta-sts.one.test": {"TXT": ["v=STSv1; id=1"]}}
    (fact,) = (await explained("one.test", zone)).mta_sts
    assert fact.mode is None
    assert "mta-sts.one.test has no IP address" in fact.trouble
    zone = {**ZONE, "_mta-sts.one.test": {"TXT": "SERVFAIL"}}
    (fact,) = (await explained("one.test", zone)).mta_sts
    assert fact == StsFact("one.test", None, trouble="the DNS gave no answer")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "where it can be had, with any certificate; else in clear"),
        (
            {"tls_fallback_to_clear": False},
            "where it is offered, with any certificate; else in clear",
        ),
        ({"tls": "off"}, 'none: tls = "off"'),
        ({"tls": "require"}, 'needed, with any certificate (tls = "require")'),
        (
            {"tls": "verify"},
            'needed, with a trusted certificate for mx.one.test (tls = "verify")',
        ),
        ({"protocol": "smtps"}, "from the first octet, with any certificate"),
    ],
    ids=str,
)
async def test_what_tls_is_demanded_is_said_in_words(settings, text, autojump_clock):
    place = (await explained("one.test", **settings)).hosts[0].places[0]
    assert place.tls is not None
    assert place.tls.text == text


async def test_who_demands_it_is_named(autojump_clock):
    hints, zone = policy("enforce", "mx.one.test")
    tls = (await explained("one.test", zone, hints=hints)).hosts[0].places[0].tls
    assert tls is not None
    assert tls.text == "needed, with a trusted certificate for mx.one.test (MTA-STS)"
    zone = {**ZONE, "_25._tcp.mx.one.test": {"TLSA": ["1 1 1 " + "cd" * 32]}}
    found = await explained("one.test", zone, authentic=True, hints=MemoryHints())
    assert found.hosts[0].places[0].tls.text == "needed, with any certificate (DANE)"


def test_a_text_is_bounded_and_printable():
    assert bounded("plain") == "plain"
    assert bounded("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert bounded("x" * 1000) == "x" * (MAX_TEXT - 1) + "…"
