"""What is known about a connection once it is made.  Filled by the connector, read by delivery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.outcome import FastOpen


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """Both ends of a connection and how it came about.

    Attributes:
        host: The name the route knows the peer by.
        address: The peer's IP address.
        port: The peer's TCP port.
        local_address: Our IP address; behind a proxy the one that the proxy sees.
        local_port: Our TCP port.
        is_ipv6: Whether `address` is of the IPv6 family.
        interface: The address we were told to connect from, `None` where the operating system
            chose.
        proxy: The proxy in between, `None` for a direct connection.
        fast_open: What TCP Fast Open did (RFC 7413 §4).
        connect_seconds: From the first step to the last one before TLS.
    """

    host: str
    address: str
    port: int
    local_address: str
    local_port: int
    is_ipv6: bool
    interface: str | None
    proxy: str | None
    fast_open: FastOpen
    connect_seconds: float
