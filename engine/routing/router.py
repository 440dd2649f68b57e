"""Find the way to a domain: static routes, address literals, MX (RFC 5321 §5.1).

Called by the engine for each recipient domain, and by whoever explains a way.  The rules are in
`engine.routing.mx`; here is the order in which questions are asked, and the memory of what was
found.  Nothing a domain publishes raises: what cannot be routed is an `Unroutable`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import trio

from engine.choices import AddressFamily
from engine.route import Route, Unroutable
from engine.routing.cache import TtlCache
from engine.routing.families import families, family_of, is_address
from engine.routing.flight import SingleFlight
from engine.routing.mx import (
    Host,
    aliases_of,
    build_route,
    cut_at_ourselves,
    is_ourselves,
    read_addresses,
    read_mx,
)
from engine.routing.table import RouteTable
from engine.routing.unroutable import (
    no_such_domain,
    no_usable_host,
    no_usable_static_host,
    ruled_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from engine.routing.resolver import Answer, Family, MxRecord, Resolver
    from engine.routing.table import HostPort, StaticRoute

#: Seconds a finding is kept at least, so that a TTL of 0 does not mean a lookup a message.
_MIN_SECONDS: Final = 1.0
#: Address lookups of one domain at the same time; 30 slow hosts must not take all the resolver's.
_LOOKUPS_AT_ONCE: Final = 10
_MAX_DOMAINS: Final = 50_000

LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})

_Key: TypeAlias = tuple[str, AddressFamily]
_Verdict: TypeAlias = Route | Unroutable


@dataclass(frozen=True, slots=True)
class Survey:
    """What a search for the way to a domain came to, and what was seen on the way.

    Attributes:
        kind: Where the hosts come from: a static route, an address literal, MX records, or the
            lack of those (`implicit`).
        verdict: What follows.
        seconds: How long it holds.
        rule: The static route.
        answer: What the DNS said of the MX records, where it was asked.
        hosts: The hosts that are named, with their addresses.
        own: Those that are this host, where that counts.
        kept: Those that remain when ourselves and all behind are cut off.
    """

    kind: Literal["static", "literal", "mx", "implicit"]
    verdict: Route | Unroutable
    seconds: float
    rule: StaticRoute | None = None
    answer: Answer[MxRecord] | None = None
    hosts: tuple[Host, ...] = ()
    own: tuple[Host, ...] = ()
    kept: tuple[Host, ...] = ()


class Router:
    """Routes domains, one lookup at a time for each, and remembers for as long as the DNS allows.

    Args:
        resolver: Who is asked; its answers' TTLs are kept, so a cache beneath is worth having.
        table: Static routes; they go before everything else.
        address_family: The policy where a call gives none.
        local_addresses: IP addresses of this host.  An MX that has one of them, or a loopback or
            unspecified address, is ourselves (RFC 5321 §5.1); with an empty set nothing is.
            Static routes and address literals may lead to this host.
        own_names: Host names that are ourselves in the same sense.
        clock: Seconds that never go back.
        max_domains: How many findings are kept.

    Raises:
        TypeError: An argument is one text instead of several.
        ValueError: An argument cannot be used; the text says why.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        table: RouteTable | None = None,
        address_family: AddressFamily = "any",
        local_addresses: Iterable[str] = LOOPBACK,
        own_names: Iterable[str] = (),
        clock: Callable[[], float] = trio.current_time,
        max_domains: int = _MAX_DOMAINS,
    ) -> None:
        families(address_family)
        self._resolver = resolver
        self._table = table if table is not None else RouteTable()
        self._family = address_family
        self._local_addresses = frozenset(_read_own_addresses(local_addresses))
        if isinstance(own_names, str):  # its letters would be names
            raise TypeError(f"own names are {own_names[:300]!r}; allowed: a list of host names")
        self._own_names = frozenset(name.lower().removesuffix(".") for name in own_names)
        self._clock = clock
        self._findings: TtlCache[_Key, _Verdict] = TtlCache(max_domains, clock)
        self._searches: SingleFlight[_Key, _Verdict] = SingleFlight()

    def known(
        self, domain: str, address_family: AddressFamily | None = None
    ) -> Route | Unroutable | None:
        """Return what is known about a domain, `None` when `route` must be asked.

        Args and the result are those of `route`; its `seconds` are 0.0.
        """
        return self._findings.get((domain, address_family or self._family))

    def seconds_left(self, domain: str, address_family: AddressFamily | None = None) -> float:
        """Return for how long `known` will still know about a domain; 0.0 where it does not."""
        return self._findings.seconds_left((domain, address_family or self._family))

    async def route(
        self, domain: str, address_family: AddressFamily | None = None
    ) -> Route | Unroutable:
        """Find the way to a domain.

        A route lives as long as the smallest TTL among the answers it was made from, one second
        at least; static routes without names live for ever.  If cancelled, others who wait for
        the same domain are served all the same.

        Args:
            domain: Lower-case A-labels without a final dot, or an address literal with its
                brackets: `[192.0.2.1]`, `[IPv6:2001:db8::1]`.
            address_family: The policy; by default the router's.

        Returns:
            A route with one candidate at least; `seconds` says how long this call took.

        Raises:
            ValueError: There is no such address family policy.
        """
        key = (domain, address_family or self._family)
        verdict = self._findings.get(key)
        if verdict is not None:
            await trio.lowlevel.checkpoint()
            return verdict
        started = self._clock()
        verdict = await self._searches.share(key, partial(self._search, *key))
        return replace(verdict, seconds=self._clock() - started)

    async def survey(self, domain: str, address_family: AddressFamily | None = None) -> Survey:
        """Find the way to a domain as `route` does, and return what was seen on it.

        Nothing is remembered, and nothing that was remembered counts.  Args are those of `route`.

        Raises:
            ValueError: There is no such address family policy.
        """
        allowed = families(address_family or self._family)
        rule = self._table.rule_for(domain)
        if rule is not None:
            return await self._by_table(domain, rule, allowed)
        if domain.startswith("["):
            return _by_literal(domain, allowed)
        return await self._by_mx(domain, allowed)

    async def _search(self, domain: str, policy: AddressFamily) -> _Verdict:
        found = await self.survey(domain, policy)
        self._findings.put((domain, policy), found.verdict, max(found.seconds, _MIN_SECONDS))
        return found.verdict

    async def _by_table(self, domain: str, rule: StaticRoute, allowed: Sequence[Family]) -> Survey:
        hosts, seconds = await self._look_up(
            [_static_host(host, position, allowed) for position, host in enumerate(rule.hosts)],
            allowed,
        )
        route = build_route(hosts, is_static=True, is_secure=True)
        verdict = route if route.candidates else no_usable_static_host(domain, route.failures)
        return Survey("static", verdict, seconds, rule, None, hosts, (), hosts)

    async def _by_mx(self, domain: str, allowed: Sequence[Family]) -> Survey:
        answer = await self._resolver.mx(domain)
        named = read_mx(domain, answer)
        if isinstance(named, Unroutable):
            return Survey("mx", named, answer.ttl, None, answer)
        hosts, seconds = await self._look_up(named, allowed)
        own = tuple(
            host for host in hosts if is_ourselves(host, self._own_names, self._local_addresses)
        )
        kept = cut_at_ourselves(hosts, own)
        is_implicit = answer.status == "no-data"
        route = build_route(
            kept,
            # Without MX records the domain is its own host, and no forged record can name another.
            is_secure=is_implicit or answer.authentic,
            aliases=aliases_of(domain, answer),
        )
        verdict: _Verdict = route
        if not route.candidates:
            was_cut = len(kept) < len(hosts)
            verdict = no_usable_host(
                domain, route.failures, was_cut=was_cut, is_implicit=is_implicit
            )
        kind: Literal["mx", "implicit"] = "implicit" if is_implicit else "mx"
        seconds = min(seconds, answer.ttl)
        return Survey(kind, verdict, seconds, None, answer, hosts, own, kept)

    async def _look_up(
        self, hosts: Sequence[Host], allowed: Sequence[Family]
    ) -> tuple[tuple[Host, ...], float]:
        """Return the hosts with their addresses, and the seconds these hold."""
        answers: dict[tuple[str, Family], Answer[str]] = {}
        limiter = trio.CapacityLimiter(_LOOKUPS_AT_ONCE)

        async def ask(name: str, family: Family) -> None:
            async with limiter:
                answers[name, family] = await self._resolver.addresses(name, family)

        unsettled = [host.name for host in hosts if not host.is_settled]
        async with trio.open_nursery() as nursery:
            for name in dict.fromkeys(unsettled):
                for family in allowed:
                    nursery.start_soon(ask, name, family)
        settled = tuple(
            host
            if host.is_settled
            else read_addresses(host, [answers[host.name, family] for family in allowed])
            for host in hosts
        )
        return settled, min((answer.ttl for answer in answers.values()), default=math.inf)


def _read_own_addresses(addresses: Iterable[str]) -> Iterator[str]:
    if isinstance(addresses, str):  # its characters would be addresses
        raise TypeError(f"own addresses are {addresses[:300]!r}; allowed: a list of IP addresses")
    for text in addresses:
        try:
            yield str(ip_address(text))
        except ValueError:
            raise ValueError(f"own address {text!r}; allowed: an IP address") from None


def _static_host(written: HostPort, position: int, allowed: Sequence[Family]) -> Host:
    # The position is the preference: the operator's hosts are tried strictly in order.
    host = Host(written.host, position, written.port)
    if not written.is_address:
        return host  # a name to look up, or a Unix socket
    if family_of(written.host) not in allowed:
        return host.fail(f"address_family rules out {written.host}")
    return replace(host, addresses=(written.host,))


def _by_literal(domain: str, allowed: Sequence[Family]) -> Survey:
    # RFC 5321 §4.1.3: the address between the brackets, IPv6 behind its tag.
    text = domain[1:].removesuffix("]")
    address = text[5:] if text[:5].lower() == "ipv6:" else text
    verdict: _Verdict
    if not is_address(address):
        verdict = no_such_domain(f"{domain} is no address literal of IPv4 or IPv6")
    elif family_of(address) not in allowed:
        verdict = ruled_out(f"address_family rules out {domain}")
    else:
        hosts = (Host(address, addresses=(address,)),)
        route = build_route(hosts, is_secure=True)
        return Survey("literal", route, math.inf, hosts=hosts, kept=hosts)
    return Survey("literal", verdict, math.inf)
