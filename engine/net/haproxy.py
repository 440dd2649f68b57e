"""The PROXY protocol's header: tell a relay who connects to whom.  Knows no I/O.

`engine.net.proxy` sends it ahead of everything else.  Only the binary form, version 2, and only
TCP; none of the optional fields behind the addresses.  The protocol has no RFC: HAProxy publishes
it as `proxy-protocol.txt`, whose section 2.2 this follows.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from engine.net.interface import address_family

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"

# The upper four bits are the version, the lower four the command.
_LOCAL: Final = 0x20
_PROXY: Final = 0x21

_UNSPECIFIED: Final = 0x00
#: Family and transport in one octet, by an address's number of octets: TCP over IPv4 or IPv6.
_TCP: Final = {4: 0x11, 16: 0x21}


def header(source: tuple[str, int] | None, target: tuple[str, int]) -> bytes:
    """Return the octets that go ahead of a connection: 16 to 52 of them.

    Args:
        source: IP address and port to appear as, the port 0 where the relay may choose; `None`
            where it is not known.  The header then says LOCAL, "take the connection as it is",
            and has no room for a target.
        target: IP address and port to reach, of the source's family: a header has but one.

    Raises:
        ValueError: An address or port is not allowed, or the families differ.
    """
    target_address = _packed("target", target, lowest_port=1)
    if source is None:
        return _SIGNATURE + bytes([_LOCAL, _UNSPECIFIED, 0, 0])
    source_address = _packed("source", source, lowest_port=0)
    if len(source_address) != len(target_address):
        raise ValueError(
            f"source {source[0]} for target {target[0]}: allowed are two IPv4 or two IPv6 addresses"
        )
    ports = source[1].to_bytes(2, "big") + target[1].to_bytes(2, "big")
    block = source_address + target_address + ports
    head = bytes([_PROXY, _TCP[len(target_address)]]) + len(block).to_bytes(2, "big")
    return _SIGNATURE + head + block


class Haproxy:
    """The header as a dialogue that is done once begun: no relay answers it.

    Attributes:
        is_done: Always true.
        bound: Always `None`.
        leftover: What was received; all of it is the target's.
    """

    __slots__ = ("_header", "leftover")

    is_done: Final = True
    bound: Final = None

    def __init__(self, source: tuple[str, int] | None, target: tuple[str, int]) -> None:
        """Prepare for a source and a target; arguments and errors are those of `header`."""
        self._header: Final = header(source, target)
        self.leftover = b""

    def begin(self) -> bytes:
        """Return the header; it has to go out in one piece."""
        return self._header

    def receive(self, octets: bytes) -> bytes:
        """Keep what was received, and return `b""`: there is nothing to send."""
        self.leftover += octets
        return b""


def _packed(name: str, end: tuple[str, int], lowest_port: int) -> bytes:
    address, port = end
    try:
        address_family(address)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not lowest_port <= port <= 65535:
        raise ValueError(f"{name} port {port}: allowed are numbers from {lowest_port} to 65535")
    return ip_address(address).packed
