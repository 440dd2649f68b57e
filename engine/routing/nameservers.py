"""Which name servers to ask: those of the configuration, or of this host's resolv.conf(5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.routing.families import is_address
from engine.routing.site import host_text
from engine.routing.table import parse_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_DNS_PORT: Final = 53
#: Where Unix keeps the name servers of a host.
RESOLV_CONF: Final = Path("/etc/resolv.conf")
#: As many name servers as the C library uses.
_MAX_SYSTEM_SERVERS: Final = 3


@dataclass(frozen=True, slots=True)
class NameServer:
    """Where a name server listens: IP address and port."""

    address: str
    port: int = _DNS_PORT

    def __str__(self) -> str:
        return host_text(self.address, self.port)


def parse_server(text: str) -> NameServer:
    """Read `ADDRESS[:PORT]`.

    Raises:
        ValueError: It is something else; the text says what is allowed.
    """
    try:
        server = parse_host(text)
    except ValueError as error:
        raise ValueError(f"name server {error}") from None
    if not server.is_address:
        raise ValueError(
            f"name server {text!r}: allowed: an IP address with or without a port, "
            "192.0.2.53, 192.0.2.53:5353, 2001:db8::53, [2001:db8::53]:5353"
        )
    return NameServer(server.host, server.port or _DNS_PORT)


def read_resolv_conf(text: str) -> tuple[NameServer, ...]:
    """Return the first three name servers of a resolv.conf(5); without any, this host."""
    named = re.findall(r"^nameserver[ \t]+(\S+)", text, re.MULTILINE)
    servers = [NameServer(str(ip_address(name))) for name in named if is_address(name)]
    return tuple(servers[:_MAX_SYSTEM_SERVERS]) or (NameServer("127.0.0.1"),)


def system_servers(resolv_conf: Path) -> tuple[NameServer, ...]:
    """Return the name servers of this host.  Reads a file: call it in a thread."""
    try:
        return read_resolv_conf(resolv_conf.read_text("utf-8", "replace"))
    except OSError:
        # resolv.conf(5): without the file the name server is on this host.
        return read_resolv_conf("")


def trust_in(trusted: Iterable[str] | None) -> Callable[[str], bool]:
    """Return whether an address is that of a name server to be trusted with DNSSEC.

    Args:
        trusted: Their IP addresses, whatever the port; `None`: all loopback addresses.

    Raises:
        ValueError: One is no IP address; the text says what is allowed.
    """
    if trusted is None:
        return lambda address: ip_address(address).is_loopback
    addresses = frozenset(map(_trusted_address, trusted))
    return lambda address: address in addresses


def is_any_trusted(
    servers: Sequence[str], trusted: Iterable[str] | None, resolv_conf: Path = RESOLV_CONF
) -> bool:
    """Whether any name server that would be asked is to be trusted with DNSSEC.

    May read a file: call it in a thread.

    Args:
        servers: `ADDRESS[:PORT]` each; those of the resolv.conf when none are given.
        trusted: As for `trust_in`.
        resolv_conf: Where the name servers of this host are written.
    """
    is_trusted = trust_in(trusted)
    asked = tuple(map(parse_server, servers)) or system_servers(resolv_conf)
    return any(is_trusted(server.address) for server in asked)


def _trusted_address(text: str) -> str:
    if not is_address(text):
        raise ValueError(f"trusted name server {text[:300]!r}: allowed: an IP address")
    return str(ip_address(text))
