"""Name the receiver behind a route as it sees itself.  Knows no I/O.

Thousands of domains share one provider's mail hosts.  What counts for connection limits and for
re-using connections is the set of hosts, not the domain: domains with the same hosts are one site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.route import UNIX

if TYPE_CHECKING:
    from collections.abc import Iterable


def host_text(host: str, port: int | None) -> str:
    """Return `host`, or `host:port` where a port is fixed; IPv6 is bracketed before a port."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def site_name(hosts: Iterable[tuple[str, int | None]]) -> str:
    """Return the site of a set of hosts: unique, lower-case, sorted, joined by commas.

    The paths of Unix sockets stay as they are: their case counts.

    Preferences do not count, nor does whether a host's addresses could be had: the name stays the
    same while one of the hosts has trouble with its name server.

    Args:
        hosts: Name (or IP address) of each host, and its port where the route fixes one.
    """
    return ",".join(sorted({_fold(host_text(host, port)) for host, port in hosts}))


def _fold(text: str) -> str:
    return text if text.startswith(UNIX) else text.lower()
