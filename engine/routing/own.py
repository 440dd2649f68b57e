"""Find the IP addresses of this machine, as Linux shows them under /proc.

Called once, by the engine that makes a router: an MX that is one of them is ourselves
(RFC 5321 §5.1).  Not here: host names, and addresses others reach us by through a translation.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

_IPV4: Final = Path("/proc/net/fib_trie")
_IPV6: Final = Path("/proc/net/if_inet6")

# A leaf of the routing trie, and under it what the kernel does with exactly this address; between
# them there may be routes of other lengths that begin alike.
_LEAF: Final = re.compile(r"\|-- ([0-9.]+)\n((?:\s+/[0-9]+ .*\n?)*)")
_LOCAL: Final = re.compile(r"/32 host LOCAL\b")
_INTERFACE: Final = re.compile(r"^([0-9a-f]{32})\s", re.MULTILINE)


def read_own_addresses(ipv4: Path = _IPV4, ipv6: Path = _IPV6) -> frozenset[str]:
    """Return the addresses of all interfaces in their usual text form, loopback among them.

    Reads two small files that are never on a disk, so no thread is needed.

    Args:
        ipv4: The routing trie of the kernel.
        ipv6: Its list of IPv6 addresses.

    Returns:
        The addresses; empty where the system has no such files.
    """
    return parse_fib_trie(_text(ipv4)) | parse_if_inet6(_text(ipv6))


def parse_fib_trie(text: str) -> frozenset[str]:
    """Return the IPv4 addresses that a `fib_trie` marks as this machine's own."""
    return frozenset(leaf[1] for leaf in _LEAF.finditer(text) if _LOCAL.search(leaf[2]))


def parse_if_inet6(text: str) -> frozenset[str]:
    """Return the IPv6 addresses of an `if_inet6`."""
    found = _INTERFACE.findall(text)
    return frozenset(str(IPv6Address(int(digits, 16))) for digits in found)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
