"""The rules between DNS answers and a route, and the order of one delivery attempt.  Knows no I/O.

Called by the router, step by step: `read_mx` (which hosts), `read_addresses` (their addresses),
`cut_at_ourselves` (no loops), `build_route`.  `plan` is called by whoever walks a route.  RFC 5321
§5.1 with the null MX of RFC 7505 §3; everything a domain publishes is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from itertools import groupby
from typing import TYPE_CHECKING, Final

from engine.route import UNIX, Candidate, HostFailure, Route, Unroutable
from engine.routing.families import families, family_of, is_address
from engine.routing.site import site_name
from engine.routing.unroutable import dns_trouble, no_such_domain, null_mx

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from engine.choices import AddressFamily
    from engine.routing.resolver import Answer, Family, MxRecord

#: How many hosts of a domain, and addresses of a host, are considered.  The largest providers
#: publish a dozen; the bounds are there for who publishes thousands.  Hosts: as many as are tried
#: in one attempt (`max_hosts_tried_hard`).
MAX_HOSTS: Final = 50
MAX_ADDRESSES: Final = 30


@dataclass(frozen=True, slots=True)
class Host:
    """A host on its way to becoming candidates.

    Attributes:
        name: Its name, or its IP address or Unix socket where the route names that.
        preference: Its MX preference, lower first.
        port: TCP port where the route fixes one.
        addresses: Its IP addresses, once they are known.
        failure: Why it has none, if so.
        canonical: Its name behind CNAMEs.
        is_secure: Whether DNSSEC vouches for its addresses and the CNAMEs on the way.
    """

    name: str
    preference: int = 0
    port: int | None = None
    addresses: tuple[str, ...] = ()
    failure: HostFailure | None = None
    canonical: str = ""
    is_secure: bool = False

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket, which has no address."""
        return self.name.startswith(UNIX)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to look up."""
        return bool(self.addresses) or self.failure is not None or self.is_unix

    def fail(self, text: str, *, is_temporary: bool = False) -> Host:
        """Return the host as one without addresses, saying why."""
        failure = HostFailure(self.name, self.preference, is_temporary, text, self.port)
        return replace(self, addresses=(), failure=failure)


def read_mx(domain: str, answer: Answer[MxRecord]) -> tuple[Host, ...] | Unroutable:
    """Return a domain's hosts by ascending preference, at most `MAX_HOSTS`."""
    match answer.status:
        case "failed":
            # RFC 5321 §5.1: queue and retry; never the domain's own address instead.
            return dns_trouble(f"MX lookup of {domain} failed: {answer.text}")
        case "no-such-name":
            return no_such_domain(f"{domain} does not exist in the DNS")
        case "no-data":
            # RFC 5321 §5.1: the implicit MX, the domain itself with preference 0.
            return (Host(domain),)
        case "ok":
            return _read_records(domain, answer.records)


def aliases_of(domain: str, answer: Answer[MxRecord]) -> tuple[str, ...]:
    """Return the names that stand for each of a domain's hosts, as in `Route`.

    RFC 7672 §3.2.2: with insecure MX records there are none.
    """
    if answer.status != "ok" or not answer.authentic:
        return ()
    return tuple(dict.fromkeys((domain, answer.canonical or domain)))


def _read_records(domain: str, records: Iterable[MxRecord]) -> tuple[Host, ...] | Unroutable:
    # RFC 7505 §3: "." alone says that the domain takes no mail, whatever its preference.  Beside
    # other records, where it must not be, it is no host at all.
    named = [record for record in records if record.exchange != "."]
    if not named:
        return null_mx(domain)
    hosts: dict[str, Host] = {}
    for record in sorted(named, key=lambda record: record.preference):
        # A name that is repeated keeps its lowest preference, as in Exim.
        hosts.setdefault(record.exchange, _read_record(record))
    return tuple(hosts.values())[:MAX_HOSTS]


def _read_record(record: MxRecord) -> Host:
    host = Host(record.exchange, record.preference)
    if is_address(record.exchange):
        # Some zones have it.  It looks like an address and is a name that nobody has: RFC 5321
        # §5.1 wants a host name, and Exim does not follow it either.
        return host.fail(f"MX record points to the IP address {host.name} instead of a host name")
    return host


def read_addresses(host: Host, answers: Sequence[Answer[str]]) -> Host:
    """Return a host with its addresses, at most `MAX_ADDRESSES`, or with the reason for none.

    Args:
        host: The host.
        answers: What the DNS said, for each family that was asked for.
    """
    found = tuple(dict.fromkeys(address for answer in answers for address in answer.records))
    if found:
        told = [answer for answer in answers if answer.records]
        return replace(
            host,
            addresses=found[:MAX_ADDRESSES],
            canonical=told[0].canonical,
            is_secure=all(answer.authentic for answer in told),
        )
    trouble = [answer.text for answer in answers if answer.status == "failed"]
    if trouble:
        text = f"address lookup of {host.name} failed: {trouble[0]}"
        return host.fail(text, is_temporary=True)
    if any(answer.status == "no-data" for answer in answers):
        return host.fail(f"{host.name} has no IP address of an allowed family")
    return host.fail(f"{host.name} does not exist in the DNS")


def is_ourselves(host: Host, own_names: frozenset[str], local_addresses: frozenset[str]) -> bool:
    """Whether a host is this host.

    Args:
        host: It, with its addresses.
        own_names: What this host is called, lower-case; it may stand behind CNAMEs.
        local_addresses: As in `is_local`.
    """
    return not own_names.isdisjoint((host.name, host.canonical)) or any(
        is_local(address, local_addresses) for address in host.addresses
    )


def cut_at_ourselves(hosts: Sequence[Host], own: Sequence[Host]) -> tuple[Host, ...]:
    """Drop the hosts that are this host, and all of equal or worse preference.

    RFC 5321 §5.1: otherwise two backup MX hosts would send each other the same mail for ever.

    Args:
        hosts: The hosts with their addresses.
        own: Those among them that are this host.
    """
    cut = min((host.preference for host in own), default=None)
    return tuple(host for host in hosts if cut is None or host.preference < cut)


def is_local(address: str, local_addresses: frozenset[str]) -> bool:
    """Whether an IP address leads to this machine.

    Loopback and unspecified addresses always do (a connection to 0.0.0.0 ends here too), unless
    the set is empty: that switches the check off.
    """
    if not local_addresses:
        return False
    ip = ip_address(address)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_unspecified or str(ip) in local_addresses


def build_route(
    hosts: Iterable[Host],
    *,
    is_static: bool = False,
    is_secure: bool = False,
    aliases: tuple[str, ...] = (),
) -> Route:
    """Return the route over hosts in order.

    Preferences are numbered from 0: that one domain says 10 and 20 where another says 5 and 50 of
    the same hosts means the same, and their mail shares connections.

    Args:
        hosts: The hosts.
        is_static: As in `Route`; so are the next two.
        is_secure: Whether it is certain that these hosts serve the domain.
        aliases: Names that stand for each of them.
    """
    hosts = tuple(hosts)
    ranks = {
        preference: rank
        for rank, preference in enumerate(sorted({host.preference for host in hosts}))
    }
    candidates: dict[tuple[str, str | None, int | None], Candidate] = {}
    for host in hosts:
        for address in (None,) if host.is_unix else host.addresses:
            candidate = Candidate(
                host.name,
                address,
                host.port,
                ranks[host.preference],
                host.canonical,
                host.is_secure,
            )
            candidates.setdefault((host.name, address, host.port), candidate)
    return Route(
        site=site_name((host.name, host.port) for host in hosts),
        candidates=tuple(candidates.values()),
        failures=tuple(
            replace(host.failure, preference=ranks[host.preference])
            for host in hosts
            if host.failure is not None
        ),
        is_static=is_static,
        is_secure=is_secure,
        aliases=aliases,
        order=";".join(
            site_name((host.name, host.port) for host in hosts if host.preference == preference)
            for preference in ranks
        ),
    )


def plan(route: Route, family: AddressFamily, rng: Random) -> tuple[Candidate, ...]:
    """Return the order in which one delivery attempt tries a route's candidates.

    Ascending preference.  Inside one preference the preferred family goes first, as in Exim.
    Within that, hosts are in random order (RFC 5321 §5.1) with their addresses side by side, in
    random order too.  A static route is not shuffled.

    Args:
        route: The route.
        family: Which families are used, and which first.
        rng: Where chance comes from; the same state gives the same order.

    Returns:
        The candidates; none where the route has no address of an allowed family.
    """
    # A Unix socket has no family, and no policy rules it out.
    rank: dict[Family | None, int] = {None: -1}
    rank |= {name: position for position, name in enumerate(families(family))}
    usable = [c for c in route.candidates if _family(c) in rank]
    order: list[Candidate] = []
    for _, group in groupby(usable, key=lambda candidate: candidate.preference):
        equals = list(group)
        if not route.is_static:
            equals = _shuffled(equals, rng)
        # The sort is stable: the order among the addresses of one family stays.
        order += sorted(equals, key=lambda candidate: rank[_family(candidate)])
    return tuple(order)


def _family(candidate: Candidate) -> Family | None:
    return None if candidate.address is None else family_of(candidate.address)


def _shuffled(group: Iterable[Candidate], rng: Random) -> list[Candidate]:
    by_host: dict[str, list[Candidate]] = {}
    for candidate in group:
        by_host.setdefault(candidate.host, []).append(candidate)
    hosts = list(by_host.values())
    rng.shuffle(hosts)
    for addresses in hosts:
        rng.shuffle(addresses)
    return [candidate for addresses in hosts for candidate in addresses]
