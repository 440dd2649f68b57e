"""The PROXY protocol's header, octet for octet, as section 2.2 of its specification lays it out."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.net.haproxy import Haproxy, header

SIGNATURE = bytes.fromhex("0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A")
#: The connection that the specification shows in its section 2.1, as version 1.
SOURCE, TARGET = ("192.168.0.1", 56324), ("192.168.0.11", 443)


def read(octets):
    """Read a header as the specification tells a receiver to; return both ends and the rest."""
    assert octets[:12] == SIGNATURE
    version_command, family, size = struct.unpack_from("!BBH", octets, 12)
    block, rest = octets[16 : 16 + size], octets[16 + size :]
    assert len(block) == size
    if version_command == 0x20:
        return None, rest
    assert version_command == 0x21
    width = {0x11: 4, 0x21: 16}[family]
    source, target, *ports = struct.unpack(f"!{width}s{width}sHH", block)
    ends = (ip_address(source), ports[0]), (ip_address(target), ports[1])
    return ends, rest


def test_tcp_over_ipv4_takes_28_octets():
    octets = header(SOURCE, TARGET)
    assert octets == SIGNATURE + bytes.fromhex("21 11 000c c0a80001 c0a8000b dc04 01bb")
    assert len(octets) == 28


def test_tcp_over_ipv6_takes_52_octets():
    octets = header(("2001:db8::1", 1234), ("2001:db8:0:1::25", 25))
    assert octets == SIGNATURE + bytes.fromhex(
        "21 21 0024 20010db8000000000000000000000001 20010db8000000010000000000000025 04d2 0019"
    )
    assert len(octets) == 52


@pytest.mark.parametrize("target", [("192.0.2.1", 25), ("2001:db8::25", 25)])
def test_an_unknown_source_makes_it_local_without_addresses(target):
    assert header(None, target) == SIGNATURE + bytes.fromhex("20 00 0000")


def test_the_highest_addresses_and_ports_fit():
    ends = ("255.255.255.255", 65535)
    assert header(ends, ends) == SIGNATURE + bytes.fromhex("21 11 000c") + b"\xff" * 12


def test_a_source_port_of_zero_leaves_it_to_the_relay():
    ends, _ = read(header(("192.0.2.9", 0), ("192.0.2.1", 25)))
    assert ends[0] == (ip_address("192.0.2.9"), 0)


def two_ends(kind, bits):
    addresses = st.integers(0, 2**bits - 1).map(kind)
    return st.tuples(
        st.tuples(addresses, st.integers(0, 65535)), st.tuples(addresses, st.integers(1, 65535))
    )


@given(two_ends(IPv4Address, 32) | two_ends(IPv6Address, 128))
def test_a_receiver_reads_back_what_was_meant(ends):
    source, target = ends
    octets = header((str(source[0]), source[1]), (str(target[0]), target[1]))
    assert read(octets + b"rest") == ((source, target), b"rest")


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("192.0.2.9", 1), ("2001:db8::1", 25)),
        (("2001:db8::9", 1), ("192.0.2.1", 25)),
    ],
)
def test_both_ends_must_be_of_one_family(source, target):
    with pytest.raises(ValueError, match="allowed are two IPv4 or two IPv6 addresses") as caught:
        header(source, target)
    assert source[0] in str(caught.value)
    assert target[0] in str(caught.value)


@pytest.mark.parametrize("address", ["mx.test", "[2001:db8::1]", "fe80::1%eth0", ""])
def test_an_address_that_is_none_is_refused_by_its_name(address):
    with pytest.raises(ValueError, match=r"^target: .* is not an IP address; allowed are"):
        header(SOURCE, (address, 25))
    with pytest.raises(ValueError, match=r"^source: .* is not an IP address; allowed are"):
        header((address, 25), TARGET)


def test_a_bad_target_is_refused_even_where_the_header_has_no_room_for_it():
    with pytest.raises(ValueError, match=r"^target: "):
        header(None, ("mx.test", 25))


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_target_port_out_of_range_is_refused(port):
    with pytest.raises(ValueError, match=f"^target port {port}: allowed .* from 1 to 65535"):
        header(SOURCE, ("192.0.2.1", port))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_source_port_out_of_range_is_refused(port):
    with pytest.raises(ValueError, match=f"^source port {port}: allowed .* from 0 to 65535"):
        header(("192.0.2.9", port), TARGET)


# -- as a dialogue ------------------------------------------------------------------------------


def test_the_dialogue_is_done_once_begun():
    dialogue = Haproxy(SOURCE, TARGET)
    assert dialogue.begin() == header(SOURCE, TARGET)
    assert dialogue.is_done
    assert (dialogue.bound, dialogue.leftover) == (None, b"")


def test_a_dialogue_without_source_is_local():
    assert Haproxy(None, TARGET).begin() == header(None, TARGET)


def test_whatever_is_received_belongs_to_the_target():
    dialogue = Haproxy(SOURCE, TARGET)
    assert dialogue.receive(b"220 mx") == b""
    assert dialogue.receive(b".test\r\n") == b""
    assert dialogue.leftover == b"220 mx.test\r\n"


def test_a_dialogue_refuses_what_its_header_cannot_say():
    with pytest.raises(ValueError, match="source port 65536"):
        Haproxy(("192.0.2.9", 65536), TARGET)
