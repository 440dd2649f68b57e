from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.text import Text

from engine.outcome import Cause, Status
from engine.smtp.status import EnhancedStatusCode
from engine.worker.explain_certificate import Certificate
from engine.worker.explain_facts import (
    DemandFact,
    Explanation,
    HostFact,
    LimitsFact,
    MxFact,
    PlaceFact,
    ProbeFact,
    RefusedFact,
    Result,
    SettingFact,
    StsFact,
    TlsaFact,
    TlsFact,
    WayFact,
)
from engine.worker.explain_gather import Memory
from engine.worker.explain_judge import Judgement
from engine.worker.explain_show import render

if TYPE_CHECKING:
    from typing import Any

RECORD = "3 1 1 " + "ab" * 32
CERTIFICATE = Certificate(
    "CN=mx1.x.test",
    "CN=Example Root,O=Example",
    ("mx1.x.test", "mx2.x.test"),
    2,
    "2026-01-01T00:00:00+00:00",
    "2026-04-01T00:00:00+00:00",
    60,
    "elliptic curve secp256r1",
    (RECORD,),
)
PROBE = ProbeFact(
    is_good=True,
    text="would be sent over TLSv1.3, verified by TLSA records",
    local_address="192.0.2.9",
    fast_open="asked",
    connect_seconds=0.0123,
    round_trip=0.0119,
    greeting="220 mx1.x.test ESMTP",
    greeting_seconds=0.002,
    hello={"PIPELINING": "", "SIZE": "52428800", "STARTTLS": ""},
    hello_over_tls={"PIPELINING": ""},
    tls=TlsFact(
        "TLSv1.3",
        "TLS_AES_256_GCM_SHA384",
        0.025,
        7200.0,
        2,
        CERTIFICATE,
        (
            Judgement("chain", False, "the certificate is not trusted: no issuer"),
            Judgement("dane", True, "3 1 1 abababababababab… matches"),
        ),
    ),
)
FIRST = PlaceFact(
    "192.0.2.1",
    25,
    1,
    local_address="192.0.2.9",
    hello_name="me.test",
    settings=(SettingFact("connect_timeout", 10.0, "engine.toml:16"),),
    tlsa=TlsaFact("_25._tcp.mx1.x.test", (RECORD,), ("1 1 1 " + "cd" * 32,)),
    is_covered=True,
    tls=DemandFact("verify", "dane", (), "mx1.x.test", "needed, with a certificate (DANE)"),
    known=Memory(takes_streams=True, has_broken_tls=True),
    probe=PROBE,
)
SECOND = PlaceFact(
    "2001:db8::2",
    25,
    2,
    tlsa=TlsaFact(),
    is_covered=False,
    refused=RefusedFact(
        Status.DEFERRED, Cause.POLICY, EnhancedStatusCode(4, 7, 1), "mx2.x.test is not allowed"
    ),
    known=Memory(),
)
EXPLANATION = Explanation(
    "bob@x.test",
    "x.test",
    Result.TRIED,
    "would be tried at 1 address",
    None,
    True,
    WayFact("mx", None, (MxFact(10, "mx1.x.test"), MxFact(20, "mx2.x.test")), 2, None, True, 3600),
    "mx1.x.test,mx2.x.test,us.test",
    ('[[paths]] 1 "*.x.test" (engine.toml:11)',),
    (SettingFact("max_connections", 5, "engine.toml:12"),),
    LimitsFact(5, 500, 0, 5, 50, False, "auto"),
    (),
    "connect",
    (StsFact("x.test", "enforce", ("mx1.x.test",), 604_800),),
    (
        HostFact("mx1.x.test", 10, None, True, None, (FIRST,)),
        HostFact("mx2.x.test", 20, "real.test", False, None, (SECOND,)),
        HostFact(
            "us.test", 30, None, False, "this machine", (PlaceFact("192.0.2.99", None, None),)
        ),
    ),
)
TEXT = """\
bob@x.test  tried
 Mail        would be tried at 1 address
 Domain      x.test
 Route       MX records, signed (DNSSEC); holds for 60 min
 MX             10 mx1.x.test
                20 mx2.x.test
 Site        mx1.x.test,mx2.x.test,us.test
 Rules       [[paths]] 1 "*.x.test" (engine.toml:11)
 Settings    max_connections = 5 (engine.toml:12)
 Limits      5 connections to the site
             500 messages on a connection
             any number of recipients a transaction
             5 addresses tried, then one of each further preference, 50 in all
 Connecting  directly; TCP Fast Open connect
 MTA-STS     enforce, by x.test, for 7 d once fetched
             allows mx1.x.test

 Order Pref Host       Address
     1   10 mx1.x.test 192.0.2.1:25
     2   20 mx2.x.test [2001:db8::2]:25 ruled out
     -   30 us.test    192.0.2.99       this machine

 mx1.x.test  192.0.2.1:25
  Addresses   signed (DNSSEC)
  From        192.0.2.9
  Hello       as me.test
  Settings    connect_timeout = 10 (engine.toml:16)
  TLSA        _25._tcp.mx1.x.test
              3 1 1 ababababababababab…
              1 1 1 cdcdcdcdcdcdcdcdcd… (of no use)
  MTA-STS     names the host
  TLS         needed, with a certificate (DANE)
  Known       takes several messages in flight
              its TLS did not work lately

  Seen at 192.0.2.1:25
  Connected   in 12.3 ms from 192.0.2.9, round trip 11.9 ms, TCP Fast Open asked
  Greeting    220 mx1.x.test ESMTP (2.0 ms)
  Offers      PIPELINING, SIZE 52428800, STARTTLS
  TLS         TLSv1.3, TLS_AES_256_GCM_SHA384, in 25.0 ms
              resumable for 2 h
  Certificate CN=mx1.x.test
              for mx1.x.test, mx2.x.test
              by CN=Example Root,O=Example
              until 2026-04-01 (60 days left); elliptic curve secp256r1
              2 sent
  TLSA 3 1 1  abababababababababababababababababababababababababababababababab
  Chain       BAD: the certificate is not trusted: no issuer
  DANE        good: 3 1 1 abababababababab… matches
  Over TLS    PIPELINING
  Mail        would be sent over TLSv1.3, verified by TLSA records

 mx2.x.test  [2001:db8::2]:25
  Alias of    real.test
  Addresses   not signed
  TLSA        no signed records
  MTA-STS     does not name the host
  Ruled out   4.7.1 mx2.x.test is not allowed
"""


def draw(explanation: Explanation, width: int = 80, *, colours: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, highlight=False, markup=False)
    console.print(render(explanation))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().rstrip().splitlines())


def changed(explanation: Explanation = EXPLANATION, **more: Any) -> Explanation:
    from dataclasses import replace

    return replace(explanation, **more)


def test_all_of_it_on_eighty_columns():
    assert draw(EXPLANATION) == TEXT


def test_what_cannot_be_routed_is_short():
    way = WayFact("mx", None, (), 0, None, False, 300.0)
    found = changed(
        result=Result.FAILED,
        text="x.test does not exist in the DNS",
        enhanced=EnhancedStatusCode(5, 1, 2),
        way=way,
        site=None,
        hosts=(),
        is_validating=False,
    )
    assert (
        draw(found)
        == """\
bob@x.test  failed
 Mail        5.1.2 x.test does not exist in the DNS
 Domain      x.test
 Route       MX records were asked for, not signed; holds for 5 min
 DNSSEC      no name server is trusted to validate: nothing counts as signed
"""
    )


@pytest.mark.parametrize(
    ("way", "text"),
    [
        (WayFact("static", "*", (), 0, None, None, None), 'static route, match = "*"'),
        (WayFact("literal", None, (), 0, None, None, None), "the address itself"),
        (
            WayFact("implicit", None, (), 0, None, False, 60.0),
            "the domain itself: it has no MX records, not signed; holds for 60 s",
        ),
        (
            WayFact("mx", None, (MxFact(1, "a"),), 9, "b.test", True, 200_000.0),
            "MX records of b.test, signed (DNSSEC); holds for 2 d",
        ),
    ],
)
def test_ways(way, text):
    assert f" Route       {text}\n" in draw(changed(way=way))
    is_static = way.kind == "static"
    tried = "5 addresses tried" if is_static else "5 addresses tried, then one of each"
    assert f"             {tried}{chr(10) if is_static else ' '}" in draw(changed(way=way))


def test_more_than_a_person_reads_is_counted():
    records = tuple(MxFact(number, f"mx{number}.test") for number in range(30))
    way = WayFact("mx", None, records, 1234, None, False, 60.0)
    policy = StsFact("x.test", "testing", tuple(f"{n}.test" for n in range(100)), 60, "not 200")
    tlsa = TlsaFact("_25._tcp.a", tuple(f"3 1 1 {n:064x}" for n in range(50)))
    place = PlaceFact("192.0.2.1", 25, 1, tlsa=tlsa)
    text = draw(changed(way=way, mta_sts=(policy,), hosts=(host(place),)))
    assert "\n             and 1224 more\n" in text
    assert "9.test and 90 more" in text.replace("\n             ", " ")
    assert "             not 200\n" in text
    assert "\n              and 40 more\n" in text


def test_a_site_of_many_hosts_breaks_between_them():
    names = [f"mail-exchanger-{number}.x.test" for number in range(12)]
    text = draw(changed(site=",".join(names)))
    lines = text[text.index(" Site ") : text.index(" Rules ")].splitlines()
    assert len(lines) > 2
    assert " ".join(line[13:] for line in lines) == ", ".join(names[:10]) + " and 2 more"


def host(*places: PlaceFact) -> HostFact:
    return HostFact("mx.test", 10, None, False, None, places)


def test_addresses_that_are_alike_are_described_once_and_others_are_not():
    one, other = PlaceFact("192.0.2.1", 25, 1), PlaceFact("192.0.2.2", 25, 2)
    different = PlaceFact("192.0.2.3", 25, 3, local_address="192.0.2.9")
    text = draw(changed(hosts=(host(one, other, different),)))
    assert "\n mx.test  192.0.2.1:25, 192.0.2.2:25\n  Addresses   not signed\n" in text
    assert "\n mx.test  192.0.2.3:25\n  Addresses   not signed\n  From        192.0.2.9\n" in text


def test_hosts_of_one_preference_are_said_to_be_shuffled():
    one, other = host(PlaceFact("192.0.2.1", 25, 1)), host(PlaceFact("192.0.2.2", 25, 2))
    line = "Hosts of one preference are shuffled for each message."
    assert line in draw(changed(hosts=(one, other)))
    assert line not in draw(changed(hosts=(one,)))


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (Memory(takes_streams=False), "takes one message at a time"),
        (Memory(takes_early=True), "takes commands before its greeting"),
        (Memory(is_bad_at_chunking=True), "mishandled BDAT: it gets DATA"),
        (Memory(avoids_fast_open=True), "no TCP Fast Open: there was trouble with it lately"),
    ],
)
def test_what_is_known_of_a_host(known, text):
    place = PlaceFact("192.0.2.1", 25, 1, known=known)
    assert f"  Known       {text}\n" in draw(changed(hosts=(host(place),)))


def test_trouble_is_not_to_be_overlooked():
    probe = ProbeFact(False, "connect to mx.test: Connection refused")
    text = draw(changed(hosts=(host(PlaceFact("192.0.2.1", 25, 1, probe=probe)),)))
    assert "\n  TROUBLE     connect to mx.test: Connection refused\n" in text


def test_proxies_and_unix_sockets():
    socket = HostFact("unix:/run/lmtp", 0, None, False, None, (PlaceFact(None, None, 1),))
    text = draw(changed(proxies=("socks5://192.0.2.5:1080",), hosts=(socket,)))
    assert " Connecting  through socks5://192.0.2.5:1080; " in text
    assert "     1    0 unix:/run/lmtp -\n" in text


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("colours", [False, True])
def test_it_fits_its_terminal(width: int, colours: bool):
    long = "a-very-long-label." * 12 + "test"
    found = changed(
        address=f"bob@{long}",
        domain=long,
        site=",".join([long] * 5),
        hosts=(
            HostFact(long, 10, long, True, None, (FIRST, SECOND)),
            HostFact(long, 20, None, False, "x" * 300, ()),
        ),
    )
    text = draw(found, width, colours=colours)
    visible = io.StringIO()
    Console(file=visible, width=2000).print(Text.from_ansi(text))
    assert max(len(line.rstrip()) for line in visible.getvalue().splitlines()) <= width


def test_what_decides_is_coloured():
    lines = map(Text.from_ansi, draw(EXPLANATION, colours=True).splitlines())
    green, yellow, red = "color(2)", "color(3)", "color(1)"
    coloured = {
        (line.plain[start:end].strip(), colour)
        for line in lines
        for start, end, style in line.spans
        for colour in (green, yellow, red)
        if colour in str(style)
    }
    assert coloured == {
        ("tried", green),
        ("BAD", yellow),
        ("good", green),
        ("4.7.1 mx2.x.test is not allowed", red),
    }


def test_markup_of_a_peer_is_text():
    probe = ProbeFact(True, "[red]x[/red]", greeting="220 [bold]hi[/bold]")
    text = draw(changed(hosts=(host(PlaceFact("192.0.2.1", 25, 1, probe=probe)),)))
    assert "[red]x[/red]" in text
    assert "220 [bold]hi[/bold]" in text
