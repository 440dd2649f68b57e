"""Which of our addresses a connection comes from."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.net.errors import ConnectFailed
from engine.net.interface import address_family, choose_interface, interface_for
from engine.net.options import ConnectOptions
from engine.outcome import Cause, Peer, Scope
from engine.smtp.stages import Stage

MIXED = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"]


def test_the_first_address_of_the_right_family_wins():
    assert choose_interface(MIXED, is_ipv6=False) == "192.0.2.1"
    assert choose_interface(MIXED, is_ipv6=True) == "2001:db8::1"


def test_none_of_the_family_is_none():
    assert choose_interface(["192.0.2.1"], is_ipv6=True) is None
    assert choose_interface(["2001:db8::1"], is_ipv6=False) is None
    assert choose_interface([], is_ipv6=False) is None


@pytest.mark.parametrize(
    "item", ["eth0", "", "192.0.2", "192.0.2.256", "[2001:db8::1]", "fe80::1%lo", "1:2", "::\0"]
)
@pytest.mark.parametrize("is_ipv6", [False, True])
def test_an_item_behind_the_match_that_is_no_address_is_named(item, is_ipv6):
    with pytest.raises(ValueError, match=r"^interface: .* is not an IP address; allowed") as info:
        choose_interface([*MIXED, item], is_ipv6)
    assert repr(item) in str(info.value)


@given(st.ip_addresses())
def test_every_address_has_its_family(address):
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    assert address_family(str(address)) is family


@given(st.text("0123456789abf:.%", max_size=20))
def test_only_addresses_pass_that_the_standard_library_knows_too(text):
    try:
        address_family(text)
    except ValueError:
        return
    assert ipaddress.ip_address(text)


@pytest.mark.parametrize(
    ("address", "interface", "strict", "expected"),
    [
        ("192.0.2.9", (), False, None),
        ("192.0.2.9", (), True, None),
        ("192.0.2.9", MIXED, True, "192.0.2.1"),
        ("2001:db8::9", MIXED, True, "2001:db8::1"),
        ("192.0.2.9", ["2001:db8::1"], False, None),
    ],
)
def test_a_peer_is_connected_to_from(address, interface, strict, expected):
    options = ConnectOptions(interface=tuple(interface), interface_strict=strict)
    assert interface_for(Peer("mx.test", address, 25), options) == expected


@pytest.mark.parametrize(
    ("address", "interface", "family"),
    [("192.0.2.9", "2001:db8::1", "IPv4"), ("2001:db8::9", "192.0.2.1", "IPv6")],
)
def test_strict_without_an_address_of_the_family_is_the_sources_fault(address, interface, family):
    options = ConnectOptions(interface=(interface,), interface_strict=True)
    with pytest.raises(ConnectFailed) as info:
        interface_for(Peer("mx.test", address, 25), options)
    failed = info.value
    assert (failed.stage, failed.cause, failed.scope) == (
        Stage.CONNECT,
        Cause.CONFIG,
        Scope.SOURCE,
    )
    assert failed.text == (
        f"connect to mx.test [{address}]:25: no {family} address among interface {interface}"
    )
