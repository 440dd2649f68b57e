"""Static routes: which domains go to hosts that the operator names, instead of by MX.

`--host` on the command line and `[[routes]]` in the configuration end here.  Knows no I/O: names
among the hosts are resolved by the router.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from engine.route import UNIX
from engine.routing.site import host_text

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST_FORMS: Final = (
    "a name or an IP address, with or without a port from 1 to 65535: "
    "mx.example.net, mx.example.net:2525, 192.0.2.1, 192.0.2.1:2525, 2001:db8::1, "
    "[2001:db8::1]:2525; or unix: and the absolute path of a socket: unix:/run/lmtp"
)
MATCH_FORMS: Final = "*, example.net, or *.example.net (its subdomains only, not itself)"

# Letters, digits, hyphens, and the underscores that some host names have in spite of RFC 1123 §2.1.
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PORT: Final = re.compile(r"[0-9]{1,5}")
# What the kernel has room for.  Other than ASCII could be written in several ways; a comma stands
# between the hosts of a site.
_PATH: Final = re.compile(r"/[!-+\--~]{1,106}")


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host as the operator wrote it.

    Attributes:
        host: A name in lower-case A-labels, an IP address without brackets, or `unix:` and the
            path of a Unix socket.
        port: TCP port, `None` where none was given.
        is_address: Whether `host` is an IP address.
    """

    host: str
    port: int | None = None
    is_address: bool = False

    @property
    def is_unix(self) -> bool:
        """Whether `host` is a Unix socket."""
        return self.host.startswith(UNIX)

    def __str__(self) -> str:
        return host_text(self.host, self.port)


def parse_host(text: str) -> HostPort:
    """Read `HOST[:PORT]`, or `unix:/PATH`.

    Raises:
        ValueError: It is something else; the text says what is allowed.
    """
    try:
        if text.startswith(UNIX):
            return HostPort(_unix(text))
        host, port = _split(text)
        address = _address(host)
        return HostPort(address or read_name(host), port, is_address=address is not None)
    except ValueError as error:
        raise ValueError(f"{text[:300]!r}: {error}; allowed: {HOST_FORMS}") from None


def _unix(text: str) -> str:
    if not _PATH.fullmatch(text.removeprefix(UNIX)):
        raise ValueError("no absolute path of at most 107 octets, all visible ASCII but the comma")
    return text


def _split(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or _address(host) is None or rest[:1] not in ("", ":"):
            raise ValueError("brackets go around an IP address")
        return host, _port(rest[1:]) if rest else None
    # More than one colon and no brackets: an IPv6 address, whose last group is not a port.
    if text.count(":") != 1:
        return text, None
    host, _, port = text.partition(":")
    return host, _port(port)


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65_535:
        raise ValueError(f"{text!r} is no port")
    return int(text)


def _address(text: str) -> str | None:
    try:
        # A zone id (fe80::1%eth0) means something on one machine only; a route is no place for it.
        return None if "%" in text else str(ip_address(text))
    except ValueError:
        return None


def read_name(text: str) -> str:
    """Return a domain name as lower-case A-labels without a final dot.

    Raises:
        ValueError: It is not one.
    """
    name = text.removesuffix(".").lower()
    if not name.isascii():
        name = _a_labels(name)
    labels = name.split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{text[:300]!r} is neither a domain name nor an IP address")
    # No top-level domain is a number (RFC 3696 §2): 192.0.2.300 is a slip, not a name.
    if labels[-1].isdecimal():
        raise ValueError(f"{text[:300]!r} is not an IP address")
    return name


def _a_labels(name: str) -> str:
    import idna

    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(f"{name[:300]!r} is not a domain name: {error}") from None


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """One rule of a `RouteTable`.

    Attributes:
        match: `*`, a domain, or `*.` and a domain; lower-case A-labels.
        hosts: Where matching domains go, in this order.
    """

    match: str
    hosts: tuple[HostPort, ...]

    def covers(self, domain: str) -> bool:
        """Whether the rule is for a domain (lower-case A-labels)."""
        if self.match == "*":
            return True
        if self.match.startswith("*."):
            return domain.endswith(self.match[1:])
        return domain == self.match


class RouteTable:
    """Static routes in order; the first that matches wins.

    Args:
        rules: For each rule what it matches (`*`, `example.net`, or `*.example.net` for its
            subdomains only) and its hosts (`parse_host`).  Case does not matter.  `*` takes
            address literals (`[192.0.2.1]`) too: who names hosts for all mail means all.

    Raises:
        ValueError: A rule cannot be used; the text names it and says what is allowed.
    """

    __slots__ = ("rules",)

    def __init__(self, rules: Iterable[tuple[str, Sequence[str]]] = ()) -> None:
        if not isinstance(rules, Iterable):
            raise ValueError(f"routes is {rules!r}; allowed: a list of routes")  # noqa: TRY004 - as below
        self.rules = tuple(_read_rule(number, rule) for number, rule in enumerate(rules, 1))

    def rule_for(self, domain: str) -> StaticRoute | None:
        """Return the first rule for a domain; `None` means by MX."""
        domain = domain.lower()
        return next((rule for rule in self.rules if rule.covers(domain)), None)


def _read_rule(number: int, rule: object) -> StaticRoute:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
        pair = 'a pair of what it matches and its hosts, as ("*", ["192.0.2.1"])'
        raise ValueError(f"route {number} is {rule!r}; allowed: {pair}")
    match, hosts = rule
    if not isinstance(match, str):
        allowed = f"allowed: {MATCH_FORMS}"
        raise ValueError(f"route {number}: match is {match!r}; {allowed}")  # noqa: TRY004 - as below
    place = f"route {number} (match {match[:300]!r})"
    try:
        prefix = "*." if match.startswith("*.") else ""
        pattern = match if match == "*" else prefix + read_name(match.removeprefix(prefix))
    except ValueError as error:
        raise ValueError(f"{place}: {error}; allowed: {MATCH_FORMS}") from None
    if not isinstance(hosts, Iterable) or isinstance(hosts, str | bytes) or not hosts:
        raise ValueError(f"{place}: hosts is {hosts!r}; allowed: a list of one host or more")
    for host in hosts:
        if not isinstance(host, str):
            # As for what stands in a file and is no pair: one error for whoever reads it.
            raise ValueError(f"{place}: {host!r} is no text; allowed: {HOST_FORMS}")  # noqa: TRY004
    try:
        return StaticRoute(pattern, tuple(map(parse_host, hosts)))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
