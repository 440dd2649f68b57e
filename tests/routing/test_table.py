from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.table import HostPort, RouteTable, parse_host


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("mx.example.test", HostPort("mx.example.test")),
        ("MX.Example.Test.", HostPort("mx.example.test")),
        ("mx.example.test:2525", HostPort("mx.example.test", 2525)),
        ("localhost:25", HostPort("localhost", 25)),
        ("_mail.example.test", HostPort("_mail.example.test")),
        ("4.example.test", HostPort("4.example.test")),
        ("bücher.example:25", HostPort("xn--bcher-kva.example", 25)),
        ("192.0.2.1", HostPort("192.0.2.1", None, is_address=True)),
        ("192.0.2.1:1", HostPort("192.0.2.1", 1, is_address=True)),
        ("[192.0.2.1]:65535", HostPort("192.0.2.1", 65535, is_address=True)),
        ("2001:DB8:0::1", HostPort("2001:db8::1", None, is_address=True)),
        ("[2001:db8::1]", HostPort("2001:db8::1", None, is_address=True)),
        ("[2001:db8::1]:2525", HostPort("2001:db8::1", 2525, is_address=True)),
        ("::1", HostPort("::1", None, is_address=True)),
        ("unix:/run/lmtp", HostPort("unix:/run/lmtp")),
        ("unix:/Run/Dovecot/lmtp.sock:24", HostPort("unix:/Run/Dovecot/lmtp.sock:24")),
        ("unix:/" + "a" * 106, HostPort("unix:/" + "a" * 106)),
    ],
)
def test_a_host_is_read(text, host):
    assert parse_host(text) == host
    assert parse_host(str(host)) == host


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is neither a domain name nor an IP address"),
        ("mx.test:", "'' is no port"),
        ("mx.test:0", "'0' is no port"),
        ("mx.test:65536", "'65536' is no port"),
        ("mx.test:999999999999", "is no port"),
        ("mx.test:smtp", "'smtp' is no port"),
        ("mx.test:+25", r"'\+25' is no port"),
        ("mx.test:2_5", "'2_5' is no port"),
        ("mx.test:٢٥", "is no port"),
        ("mx.test: 25", "' 25' is no port"),
        (":25", "neither a domain name nor"),
        ("mx..test", "neither a domain name nor"),
        (".test", "neither a domain name nor"),
        ("-mx.test", "neither a domain name nor"),
        ("mx-.test", "neither a domain name nor"),
        ("mx test", "neither a domain name nor"),
        ("mx.test\n", "neither a domain name nor"),
        ("mx.test\r\nRCPT", "neither a domain name nor"),
        ("a" * 64 + ".test", "neither a domain name nor"),
        ("a." * 126 + "test", "neither a domain name nor"),
        ("☃" * 70 + ".test", "not a domain name"),
        ("\ud800.test", "not a domain name"),
        ("192.0.2.300", "'192.0.2.300' is not an IP address"),
        ("192.0.2", "'192.0.2' is not an IP address"),
        ("192.0.2.1.:25", "is not an IP address"),
        ("fe80::1%eth0", "neither a domain name nor"),
        ("2001:db8::1::2", "neither a domain name nor"),
        ("[mx.test]:25", "brackets go around an IP address"),
        ("[2001:db8::1", "brackets go around an IP address"),
        ("[2001:db8::1]25", "brackets go around an IP address"),
        ("[::1]:", "'' is no port"),
        ("unix:", "no absolute path of at most 107 octets"),
        ("unix:/", "no absolute path"),
        ("unix:run/lmtp", "no absolute path"),
        ("unix:@lmtp", "no absolute path"),
        ("unix:/a b", "no absolute path"),
        ("unix:/a,b", "no absolute path"),
        ("unix:/a\0b", "no absolute path"),
        ("unix:/bücher", "no absolute path"),
        ("unix:/" + "a" * 107, "no absolute path"),
        ("UNIX:/run/lmtp", "'/run/lmtp' is no port"),
    ],
)
def test_what_is_no_host_is_refused_with_what_is_allowed(text, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        parse_host(text)
    assert "a port from 1 to 65535: mx.example.net, mx.example.net:2525" in str(refusal.value)
    assert "absolute path of a socket: unix:/run/lmtp" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "is_unix"), [("unix:/run/lmtp", True), ("mx.test", False), ("::1", False)]
)
def test_a_host_is_a_unix_socket_or_not(text, is_unix):
    assert parse_host(text).is_unix is is_unix


@given(st.text(max_size=300) | st.text(max_size=120).map("unix:/".__add__))
def test_any_text_is_a_host_or_refused_and_what_is_read_is_printable(text):
    try:
        host = parse_host(text)
    except ValueError:
        return
    assert host.host.isascii()
    assert host.host.isprintable()
    assert parse_host(str(host)) == host


@pytest.mark.parametrize(
    ("match", "domain", "expected"),
    [
        ("*", "example.test", True),
        ("*", "[192.0.2.1]", True),
        ("example.test", "example.test", True),
        ("Example.TEST", "example.test", True),
        ("example.test", "EXAMPLE.test", True),
        ("example.test", "a.example.test", False),
        ("example.test", "myexample.test", False),
        ("*.example.test", "a.example.test", True),
        ("*.example.test", "a.b.example.test", True),
        ("*.example.test", "example.test", False),
        ("*.example.test", "myexample.test", False),
        ("*.test", "[192.0.2.1]", False),
        ("*.bücher.example", "a.xn--bcher-kva.example", True),
    ],
)
def test_a_rule_covers(match, domain, expected):
    table = RouteTable([(match, ["192.0.2.9"])])

    assert (table.rule_for(domain) is not None) is expected


def test_the_first_rule_that_matches_wins():
    table = RouteTable(
        [
            ("a.example.test", ["192.0.2.1"]),
            ("*.example.test", ["192.0.2.2", "mx.test:2525"]),
            ("a.example.test", ["192.0.2.3"]),
        ]
    )

    found = table.rule_for("a.example.test"), table.rule_for("b.example.test")
    assert [rule.hosts for rule in found if rule is not None] == [
        (HostPort("192.0.2.1", None, is_address=True),),
        (HostPort("192.0.2.2", None, is_address=True), HostPort("mx.test", 2525)),
    ]
    assert table.rule_for("example.test") is None


@pytest.mark.parametrize(
    ("match", "hosts", "reason"),
    [
        (
            "*example.test",
            ["mx.test"],
            r"route 2 \(match '\*example.test'\): .*; allowed: \*, exam",
        ),
        ("a.*.test", ["mx.test"], r"its subdomains only, not itself"),
        ("**", ["mx.test"], "allowed: "),
        ("", ["mx.test"], "allowed: "),
        ("*.", ["mx.test"], "allowed: "),
        ("x.test", [], r"route 2 \(match 'x.test'\): hosts is \[\]; allowed: a list of one host"),
        ("x.test", "mx.test", "hosts is 'mx.test'; allowed: a list"),
        (
            "x.test",
            ["mx.test", "mx.test:0"],
            r"route 2 \(match 'x.test'\): 'mx.test:0': '0' is no p",
        ),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_by_number(match, hosts, reason):
    with pytest.raises(ValueError, match=reason):
        RouteTable([("*", ["mx.test"]), (match, hosts)])


@pytest.mark.parametrize("host", [("mx.test", 25), b"mx.test", 25, None])
def test_a_host_that_is_no_text_is_refused(host):
    with pytest.raises(ValueError, match=r"route 2 \(match '\*'\): .* is no text; allowed: a name"):
        RouteTable([("x.test", ["mx.test"]), ("*", [host])])


@pytest.mark.parametrize("match", [None, b"*", 25])
def test_a_match_that_is_no_text_is_refused(match):
    with pytest.raises(ValueError, match=r"route 1: match is .*; allowed: \*"):
        RouteTable([(match, ["mx.test"])])


@pytest.mark.parametrize("hosts", ["mx.test", b"mx.test", 25, None, []])
def test_hosts_are_a_list(hosts):
    with pytest.raises(ValueError, match=r"hosts is .*; allowed: a list of one host or more"):
        RouteTable([("*", hosts)])


@pytest.mark.parametrize("routes", [None, 25])
def test_routes_that_are_no_list_are_refused_by_name(routes):
    with pytest.raises(ValueError, match=r"^routes is (None|25); allowed: a list of routes$"):
        RouteTable(routes)
