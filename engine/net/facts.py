"""What is known about a connection once it is made.  Filled by the connector, read by delivery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.outcome import FastOpen


@dataclass(frozen=True, slots=True)
class ProxyFacts:
    """A connection's way through a proxy.

    Attributes:
        name: `scheme://host:port`, without credentials.
        address: The proxy's IP address.
        port: Its TCP port.
        local_address: Our IP address towards it.
        local_port: Our TCP port towards it.
        external_address: Where it connects from, an IP address or, if it likes, a name; `None`
            where it does not say.
        external_port: The TCP port of that, `None` where it does not say.
    """

    name: str
    address: str
    port: int
    local_address: str
    local_port: int
    external_address: str | None = None
    external_port: int | None = None


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """Both ends of a connection and how it came about.

    Attributes:
        host: The name the route knows the peer by.
        address: The peer's IP address, `None` for a Unix socket: `host` names that.
        port: The peer's TCP port, `None` for a Unix socket.
        local_address: Our IP address as the peer sees it, so behind a proxy the proxy's where it
            says so; `None` for a Unix socket.
        local_port: The TCP port of that.
        is_ipv6: Whether `address` is of the IPv6 family.
        interface: The address we were told to connect from, `None` where the operating system
            chose.
        proxy: The proxy in between, `None` for a direct connection.
        fast_open: What TCP Fast Open did (RFC 7413 §4), through a proxy on the way to that.
        connect_seconds: From the first step to the last one before TLS.
        round_trip_seconds: The kernel's estimate from the handshake (RFC 6298 §2), `None` where it
            has none; through a proxy that of the way to it.
        through: More about the proxy.
    """

    host: str
    address: str | None
    port: int | None
    local_address: str | None
    local_port: int | None
    is_ipv6: bool
    interface: str | None
    proxy: str | None
    fast_open: FastOpen
    connect_seconds: float
    round_trip_seconds: float | None = None
    through: ProxyFacts | None = None


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """How a TCP connection fares at a moment.

    Attributes:
        fast_open: What TCP Fast Open did.
        round_trip_seconds: The kernel's smoothed estimate (RFC 6298 §2), `None` where it has none.
    """

    fast_open: FastOpen
    round_trip_seconds: float | None
