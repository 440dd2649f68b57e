"""TCP segments inside IP packets: octets in, `Segment` values out, and the cutting out of a payload.

Used by the link between two network namespaces: what passes it is judged and logged by this.  IPv4
and IPv6 alike, both without extension headers in front of TCP; no packet is checked for its sums.
Knows no I/O.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, NamedTuple

_TCP: Final = 6
#: Kinds of TCP options: the ends of the list, and Fast Open (RFC 7413 §4.1.1).
_END_OF_OPTIONS: Final = 0
_NO_OPERATION: Final = 1
_FAST_OPEN: Final = 34
#: Fast Open before it had a number, which Linux tries on servers that ignored the other one: an
#: experimental option with an identifier (RFC 6994 §3).
_EXPERIMENTAL: Final = 254
_FAST_OPEN_IDENTIFIER: Final = b"\xf9\x89"


class Flags(IntFlag):
    """The control bits of a segment (RFC 9293 §3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


class Endpoint(NamedTuple):
    """One end of a connection."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment.

    Attributes:
        source: Who sent it.
        destination: Whom it is for.
        flags: Its control bits.
        seq: Its sequence number, that of the SYN itself included.
        ack: Its acknowledgment number; 0 without the ACK bit.
        payload: The octets it carries.
        fast_open: The Fast Open option: its cookie, empty where one is asked for, `None` where the
            segment has no such option (RFC 7413 §4.1.1).
    """

    source: Endpoint
    destination: Endpoint
    flags: Flags
    seq: int
    ack: int
    payload: bytes = b""
    fast_open: bytes | None = None

    def __str__(self) -> str:
        """Show it on one line, like `198.18.0.1:40000 > 198.18.0.2:25 SYN seq 7, 26 octets`."""
        marks = " ".join(flag.name or "" for flag in Flags if flag in self.flags)
        parts = [f"{_show(self.source)} > {_show(self.destination)} {marks} seq {self.seq}"]
        if Flags.ACK in self.flags:
            parts.append(f"ack {self.ack}")
        if self.payload:
            parts.append(f"{len(self.payload)} octets")
        if self.fast_open is not None:
            parts.append(f"cookie {self.fast_open.hex() or 'asked for'}")
        return ", ".join(parts)


def parse_segment(packet: bytes) -> Segment | None:
    """Return the TCP segment in an IP packet; `None` for any other packet, a broken one too."""
    layout = _find_tcp(packet)
    if layout is None:
        return None
    start, data = layout.tcp, layout.payload
    source_port, port, seq, ack = struct.unpack_from("!HHII", packet, start)
    flags = Flags(packet[start + 13])
    return Segment(
        Endpoint(str(ipaddress.ip_address(layout.source)), source_port),
        Endpoint(str(ipaddress.ip_address(layout.destination)), port),
        flags,
        seq,
        ack if Flags.ACK in flags else 0,
        packet[data : layout.end],
        _find_fast_open(packet[start + 20 : data]),
    )


def without_payload(packet: bytes) -> bytes:
    """Return the packet of a TCP segment with nothing behind its header, and right sums.

    Raises:
        ValueError: It is no TCP segment.
    """
    layout = _find_tcp(packet)
    if layout is None:
        raise ValueError("not the packet of a TCP segment")
    stripped = bytearray(packet[: layout.payload])
    if layout.tcp_is_in_ipv4:
        struct.pack_into("!H", stripped, 2, layout.payload)
        struct.pack_into("!H", stripped, 10, 0)
        struct.pack_into("!H", stripped, 10, _checksum(bytes(stripped[: layout.tcp])))
    else:
        struct.pack_into("!H", stripped, 4, layout.payload - layout.tcp)
    struct.pack_into("!H", stripped, layout.tcp + 16, 0)
    header = bytes(stripped[layout.tcp :])
    # The pseudo-header of both families sums up to the same (RFC 9293 §3.1, RFC 8200 §8.1).
    pseudo = layout.source + layout.destination + struct.pack("!HH", _TCP, len(header))
    struct.pack_into("!H", stripped, layout.tcp + 16, _checksum(pseudo + header))
    return bytes(stripped)


class _Layout(NamedTuple):
    """Where the parts of a packet with a TCP segment are."""

    source: bytes
    destination: bytes
    tcp: int
    payload: int
    end: int

    @property
    def tcp_is_in_ipv4(self) -> bool:
        return len(self.source) == 4


def _find_tcp(packet: bytes) -> _Layout | None:
    match packet[0] >> 4 if packet else 0:
        case 4 if len(packet) >= 20 and packet[9] == _TCP:
            start = 4 * (packet[0] & 0x0F)
            end = int.from_bytes(packet[2:4])
            source, destination = packet[12:16], packet[16:20]
        case 6 if len(packet) >= 40 and packet[6] == _TCP:
            start = 40
            end = start + int.from_bytes(packet[4:6])
            source, destination = packet[8:24], packet[24:40]
        case _:
            return None
    if end > len(packet) or start + 20 > end:
        return None
    payload = start + 4 * (packet[start + 12] >> 4)
    if not start + 20 <= payload <= end:
        return None
    return _Layout(source, destination, start, payload, end)


def _find_fast_open(options: bytes) -> bytes | None:
    at = 0
    while at < len(options) and options[at] != _END_OF_OPTIONS:
        if options[at] == _NO_OPERATION:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2:
            return None
        value = options[at + 2 : at + length]
        if options[at] == _FAST_OPEN:
            return value
        if options[at] == _EXPERIMENTAL and value.startswith(_FAST_OPEN_IDENTIFIER):
            return value[len(_FAST_OPEN_IDENTIFIER) :]
        at += length
    return None


def _checksum(octets: bytes) -> int:
    """The Internet checksum: ones' complement of the ones' complement sum (RFC 1071 §1)."""
    if len(octets) % 2:
        octets += b"\0"
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def _show(end: Endpoint) -> str:
    return f"[{end.address}]:{end.port}" if ":" in end.address else f"{end.address}:{end.port}"
