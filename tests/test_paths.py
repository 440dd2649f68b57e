from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.paths import MATCH_ALLOWED, Match, MatchKind, PathRule, SettingsTable
from engine.settings import Settings

PORT_ALLOWED = "a number from 1 to 65535 or the name of a TCP service"
SITE = "mx1.example.net,mx2.example.net"


def rules(*matches: str) -> SettingsTable:
    overrides = [PathRule(match, {"max_connections": n}) for n, match in enumerate(matches, 1)]
    return SettingsTable(Settings(idle_timeout=9), overrides)


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        ("*", True),
        ("example.org", True),
        ("Example.ORG.", True),
        ("*.org", True),
        ("*.example.org", False),
        ("mx1.example.net", True),
        ("mx2.example.net", False),
        ("*.example.net", True),
        ("*.net", True),
        ("example.net", False),
        ("*.mx1.example.net", False),
        (SITE, True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("192.0.2.0/24", True),
        ("0.0.0.0/0", True),
        ("::/0", False),
        ("192.0.2.7/32", True),
        ("198.51.100.0/24", False),
    ],
)
def test_a_rule_matches_domain_site_host_or_address(match: str, applies: bool):
    found = rules(match).matching(
        domain="example.org", site=SITE, host="mx1.example.net", address="192.0.2.7"
    )
    assert found == ((0,) if applies else ())


@pytest.mark.parametrize(
    ("site", "match", "applies"),
    [
        ("a.big.test,b.big.test", "*.big.test", True),
        ("a.big.test,b.other.test", "*.big.test", False),
        ("a.big.test:2525,b.big.test:2525", "*.big.test", True),
        ("mx.big.test:2525", "mx.big.test", True),
        ("mx.big.test:2525", "mx.big.test:2525", True),
        ("127.0.0.1:2525", "127.0.0.1", True),
        ("[2001:db8::1]:2525", "[2001:db8::1]:2525", True),
        ("2001:db8::1", "2001:DB8::1", True),
        ("mx.big.test", "192.0.2.0/24", False),
    ],
)
def test_a_site_matches_without_a_host_being_chosen(site: str, match: str, applies: bool):
    assert rules(match).matching(domain="d.test", site=site) == ((0,) if applies else ())


def test_ipv6_networks_match():
    table = rules("2001:db8::/32", "192.0.2.0/24")
    assert table.matching(domain="d.test", site="h.test", address="2001:db8::9") == (0,)


@pytest.mark.parametrize(
    ("match", "applies"),
    [
        ("unix:/run/Dovecot/lmtp", True),
        ("unix:/run/dovecot/lmtp", False),
        ("*", True),
        ("192.0.2.0/24", False),
        ("*.test", False),
    ],
)
def test_a_unix_socket_is_a_host_that_can_be_named(match: str, applies: bool):
    host = "unix:/run/Dovecot/lmtp"
    found = rules(match).matching(domain="d.example", site=host, host=host)
    assert found == ((0,) if applies else ())


def test_u_labels_match_their_a_labels():
    assert rules("bücher.test").matching(domain="xn--bcher-kva.test", site="x") == (0,)


def test_the_most_specific_rule_is_applied_last():
    table = rules("192.0.2.0/24", "example.org", "*.org", "*", "192.0.0.0/16")
    found = table.matching(
        domain="example.org", site=SITE, host="mx1.example.net", address="192.0.2.7"
    )
    assert found == (3, 2, 4, 0, 1)


def test_longer_suffixes_are_more_specific():
    table = rules("*.mail.example.net", "*.net", "*.example.net")
    assert table.matching(domain="a.mail.example.net", site="x") == (1, 2, 0)


def test_among_equals_the_later_wins():
    table = rules("example.org", "mx1.example.net", "EXAMPLE.org")
    found = table.matching(domain="example.org", site=SITE, host="mx1.example.net")
    assert found == (0, 1, 2)
    assert table.settings(found).max_connections == 3


def test_settings_are_merged_in_the_given_order_over_the_defaults():
    table = SettingsTable(
        Settings(port=2525),
        [
            PathRule("*", {"idle_timeout": "1m", "tls": "off"}),
            PathRule("example.org", {"idle_timeout": "2m"}),
        ],
    )
    merged = table.settings((0, 1))
    assert (merged.port, merged.idle_timeout, merged.tls) == (2525, 120.0, "off")
    assert merged.model_fields_set == {"port", "idle_timeout", "tls"}


def test_the_same_rules_give_the_identical_settings():
    table = rules("*", "example.org")
    assert table.settings(()) is table.defaults
    assert table.settings((0, 1)) is table.settings((0, 1))
    assert table.settings((0,)) is not table.settings((0, 1))


def test_settings_in_use_stay_identical_however_many_others_are_asked_for():
    table = rules(*(f"d{number}.test" for number in range(SettingsTable.KEPT + 2)))
    held = table.settings((0,))
    for number in range(1, SettingsTable.KEPT + 2):
        table.settings((number,))
    assert table.settings((0,)) is held
    assert len(table._made) <= SettingsTable.KEPT + 1


def test_a_million_domains_leave_nothing_behind():
    table = rules("*.test", "d1.test")
    for number in range(3000):
        table.matching(domain=f"d{number}.test", site=f"mx{number}.test")
    assert table._of_peer.cache_info().currsize == SettingsTable.KEPT
    assert not table._made


def test_no_rules_match_nothing():
    assert SettingsTable(Settings()).matching(domain="d.test", site="x") == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "mx*.test",
        "*test",
        "*.",
        "**",
        "a..b",
        ".test",
        "a b",
        "192.0.2.300",
        "192.0.2.1/24",
        "192.0.2.0/33",
        "example.net/24",
        "*.1.2",
        "a@b.test",
        "ü" * 70 + ".test",
        5,
        None,
    ],
)
def test_other_matches_are_refused(text: object):
    with pytest.raises(ValueError, match=f"^{re.escape(MATCH_ALLOWED)}$"):
        Match.parse(text)


def test_bad_rules_are_all_named():
    with pytest.raises(ConfigError) as caught:
        SettingsTable(Settings(), [PathRule("*", {"port": 0}), PathRule("mx*", {"tsl": "off"})])
    assert caught.value.problems == (
        f"rules[0].port: found 0; allowed {PORT_ALLOWED}",
        f'rules[1].match: found "mx*"; allowed {MATCH_ALLOWED}',
        'rules[1].tsl: found an unknown name; allowed a known name; did you mean "tls"?',
    )


@given(st.text(max_size=30))
def test_any_text_is_a_match_or_a_value_error(text: str):
    try:
        match = Match.parse(text)
    except ValueError:
        return
    again = match.name if match.kind is not MatchKind.SUBDOMAINS else f"*.{match.name}"
    assert Match.parse(again) == match


@pytest.mark.parametrize("rule", [("*", {"port": 25}), "*", {"match": "*"}])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(TypeError, match=r"rules\[1\] is a .*; allowed is a PathRule"):
        SettingsTable(Settings(), [PathRule("*", {}), rule])


def test_defaults_are_settings():
    with pytest.raises(TypeError, match="defaults is a dict; allowed is a Settings"):
        SettingsTable({"port": 25})
