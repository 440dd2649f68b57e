"""IP packets for tests of the link: made the long way round, with sums of their own."""

from __future__ import annotations

import ipaddress
import struct

from engine.testing.segment import Endpoint, Flags

SYN, ACK, FIN = Flags.SYN, Flags.ACK, Flags.FIN
CLIENT = Endpoint("198.18.0.1", 40000)
SERVER = Endpoint("198.18.0.2", 25)


def packet(
    source: Endpoint,
    destination: Endpoint,
    flags: Flags,
    seq: int = 0,
    ack: int = 0,
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    """The IP packet of a segment; IPv4 or IPv6, as the addresses are."""
    here, there = (ipaddress.ip_address(end.address).packed for end in (source, destination))
    options += b"\0" * (-len(options) % 4)
    size = 20 + len(options)
    tcp = bytearray(
        struct.pack(
            "!HHIIBBHHH", source.port, destination.port, seq, ack, size << 2, flags, 65535, 0, 0
        )
        + options
        + payload
    )
    pseudo = here + there + struct.pack("!II", len(tcp), 6)
    struct.pack_into("!H", tcp, 16, checksum(pseudo + tcp))
    if len(here) == 4:
        ip = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0))
        ip += here + there
        struct.pack_into("!H", ip, 10, checksum(ip))
    else:
        ip = bytearray(struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + here + there)
    return bytes(ip + tcp)


def checksum(octets: bytes) -> int:
    """The Internet checksum, by the remainder that ones' complement sums are."""
    octets = bytes(octets) + b"\0" * (len(octets) % 2)
    remainder = int.from_bytes(octets) % 0xFFFF
    return 0xFFFF - (remainder or (0xFFFF if any(octets) else 0))
