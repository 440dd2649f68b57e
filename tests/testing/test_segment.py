"""TCP segments in IP packets: what is read, and what is cut out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.testing.segment import Endpoint, Flags, Segment, parse_segment, without_payload
from tests.testing.packets import ACK, SYN, packet

COOKIE = bytes.fromhex("f24933f0cfe37f45")
FAMILIES = [("198.18.0.1", "198.18.0.2"), ("2001:2::1", "2001:2::2")]
each_family = pytest.mark.parametrize(("source", "destination"), FAMILIES, ids=["IPv4", "IPv6"])


def ones_sum(octets):
    """The sum as RFC 1071 tells it; a header with a right checksum in it makes 0xFFFF."""
    octets += b"\0" * (len(octets) % 2)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def assert_sums_are_right(octets):
    if octets[0] >> 4 == 4:
        assert ones_sum(octets[:20]) == 0xFFFF
        addresses, tcp = octets[12:20], octets[20:]
        assert int.from_bytes(octets[2:4]) == len(octets)
    else:
        addresses, tcp = octets[8:40], octets[40:]
        assert int.from_bytes(octets[4:6]) == len(tcp)
    assert ones_sum(addresses + struct.pack("!II", len(tcp), 6) + tcp) == 0xFFFF


@each_family
def test_a_segment_is_read_out_of_its_packet(source, destination):
    octets = packet(
        Endpoint(source, 40000), Endpoint(destination, 25), ACK | Flags.PSH, 7, 4_000_000_000, b"hi"
    )
    assert parse_segment(octets) == Segment(
        Endpoint(source, 40000),
        Endpoint(destination, 25),
        ACK | Flags.PSH,
        7,
        4_000_000_000,
        b"hi",
        None,
    )
    assert_sums_are_right(octets)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", None),
        (b"\x02\x04\x05\xb4", None),
        (b"\x22\x02", b""),
        (b"\x02\x04\x05\xb4\x01\x01\x22\x0a" + COOKIE, COOKIE),
        (b"\x22\x0a" + COOKIE + b"\x01\x01", COOKIE),
        (b"\xfe\x04\xf9\x89", b""),
        (b"\xfe\x0c\xf9\x89" + COOKIE, COOKIE),
        (b"\xfe\x04\xab\xcd", None),
        # Behind the end of the list nothing counts; a length that cannot be ends it too.
        (b"\x00\x22\x02\x00", None),
        (b"\x08\x00\x22\x02", None),
        (b"\x08\x01\x22\x02", None),
        (b"\x01\x01\x01\x22", None),
    ],
)
def test_the_fast_open_option_is_found(options, expected):
    octets = packet(Endpoint("198.18.0.1", 1), Endpoint("198.18.0.2", 2), SYN, options=options)
    segment = parse_segment(octets)
    assert segment is not None
    assert segment.fast_open == expected


def test_octets_behind_the_end_of_the_packet_are_not_payload():
    octets = packet(Endpoint("198.18.0.1", 1), Endpoint("198.18.0.2", 2), ACK, 1, 1, b"hi")
    segment = parse_segment(octets + b"padding")
    assert segment is not None
    assert segment.payload == b"hi"


def test_an_acknowledgment_without_its_bit_is_none():
    octets = packet(Endpoint("198.18.0.1", 1), Endpoint("198.18.0.2", 2), SYN, 7, 99)
    segment = parse_segment(octets)
    assert segment is not None
    assert segment.ack == 0


@each_family
def test_what_is_cut_short_is_no_segment(source, destination):
    octets = packet(Endpoint(source, 1), Endpoint(destination, 2), ACK, 1, 1, b"hi")
    assert all(parse_segment(octets[:end]) is None for end in range(len(octets)))


@each_family
def test_other_protocols_are_no_segments(source, destination):
    octets = bytearray(packet(Endpoint(source, 1), Endpoint(destination, 2), ACK))
    octets[9 if octets[0] >> 4 == 4 else 6] = 17
    assert parse_segment(bytes(octets)) is None
    with pytest.raises(ValueError, match="not the packet of a TCP segment"):
        without_payload(bytes(octets))


@given(st.binary(max_size=80))
def test_any_octets_are_a_segment_or_none(octets):
    parse_segment(octets)
    for version in (0x45, 0x60):
        parse_segment(bytes([version]) + octets)


@each_family
@given(data=st.data())
def test_a_segment_loses_its_payload_and_nothing_else(source, destination, data):
    payload = data.draw(st.binary(max_size=50))
    octets = packet(
        Endpoint(source, 40000),
        Endpoint(destination, 25),
        SYN,
        data.draw(st.integers(0, 2**32 - 1)),
        0,
        payload,
        options=b"\x01\x01\x22\x0a" + COOKIE,
    )
    stripped = without_payload(octets)
    assert_sums_are_right(stripped)
    before, after = parse_segment(octets), parse_segment(stripped)
    assert before is not None
    assert after is not None
    assert (before.payload, after.payload) == (payload, b"")
    assert (after.source, after.destination) == (before.source, before.destination)
    assert (after.flags, after.seq, after.fast_open) == (SYN, before.seq, COOKIE)
    assert len(octets) - len(stripped) == len(payload)


def test_a_segment_shows_on_one_line():
    here, there = Endpoint("198.18.0.1", 40000), Endpoint("2001:2::2", 25)
    assert str(Segment(here, there, SYN, 7, 0, b"EHLO x\r\n", COOKIE)) == (
        "198.18.0.1:40000 > [2001:2::2]:25 SYN seq 7, 8 octets, cookie f24933f0cfe37f45"
    )
    assert str(Segment(there, here, SYN | ACK, 9, 8, fast_open=b"")) == (
        "[2001:2::2]:25 > 198.18.0.1:40000 SYN ACK seq 9, ack 8, cookie asked for"
    )
