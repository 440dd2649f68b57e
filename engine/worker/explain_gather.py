"""Find out what would become of mail for a domain, up to the moment before it would connect.

Called by `engine.worker.explain`.  It asks name servers, policy hosts and this machine, by the very
parts an engine has; no mail host hears of it (that is `engine.worker.explain_probe`).  What was
found is put into words elsewhere (`engine.worker.explain_facts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from engine.delivery.host_memory import HostMemory
from engine.delivery.shared import Path
from engine.delivery.walk import Walk
from engine.net.errors import ConnectFailed
from engine.net.fastopen_memory import FastOpenMemory
from engine.net.interface import interface_for
from engine.net.own_address import own_address_towards
from engine.net.port import port_for
from engine.outcome import Peer
from engine.route import Candidate, HostFailure, Route
from engine.routing.dane import find_tlsa, needs_lookup
from engine.routing.mta_sts import StsFinding
from engine.routing.mx import plan
from engine.routing.policy import Policies
from engine.routing.sender_rules import policy_domain
from engine.routing.sts_fetch import StsFetcher, dial_by
from engine.routing.sts_store import StsPolicies
from engine.security import HostRefused, MessageTls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from engine.hints import Hints
    from engine.paths import SettingsTable
    from engine.routing.dane import TlsaFinding
    from engine.routing.policy import StsSource
    from engine.routing.resolver import Resolver
    from engine.routing.router import Router, Survey
    from engine.security import TlsDemand
    from engine.settings import Settings

#: Places of one domain that are looked into at the same time.
_AT_ONCE: Final = 10
#: Seconds to find out about an MTA-STS policy.
_STS_SECONDS: Final = 75.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a host.

    Attributes:
        takes_streams: Whether it takes several transactions in flight; `None`: that is not known.
        is_bad_at_chunking: Whether it mishandled BDAT.
        has_broken_tls: Whether its TLS did not work lately.
        takes_early: Whether it takes commands before its greeting.
        avoids_fast_open: Whether TCP Fast Open had trouble with it lately.
    """

    takes_streams: bool | None = None
    is_bad_at_chunking: bool = False
    has_broken_tls: bool = False
    takes_early: bool = False
    avoids_fast_open: bool = False


@dataclass(frozen=True, slots=True)
class Lead:
    """A place where mail would be tried.

    Attributes:
        candidate: It.
        peer: The same, with our address towards it as far as that can be told.
        path: The settings towards it.
        rules: The rules that made them.
        barred: Why our own side cannot connect to it; empty where it can.
        verdict: What TLS it must show, or why it must not be used.
        strict: The same for a message with REQUIRETLS.
        tlsa: Its TLSA records; `None`: nobody asks for them.
        owner: Whose MTA-STS policy counts for it; `None`: nobody's does.
        memory: What is remembered of it.
    """

    candidate: Candidate
    peer: Peer
    path: Path
    rules: tuple[int, ...]
    barred: str
    verdict: TlsDemand | HostRefused
    strict: TlsDemand | HostRefused
    tlsa: TlsaFinding | None
    owner: str | None
    memory: Memory


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about a domain.

    Attributes:
        domain: It, as it is routed.
        survey: The way to it, and what was seen on that.
        rules: The rules that hold for the domain and its site.
        settings: What they make of the defaults.
        steps: Whom a delivery attempt would try, in order, if each of them failed.
        leads: What is known of those that have an address.
        policies: The MTA-STS policies that count for any of them, by their domains.
    """

    domain: str
    survey: Survey
    rules: tuple[int, ...]
    settings: Settings
    steps: tuple[Candidate | HostFailure, ...] = ()
    leads: tuple[Lead, ...] = ()
    policies: tuple[tuple[str, StsFinding], ...] = ()


class Scout:
    """Finds out about domains; one serves any number of them, and remembers what it was told."""

    def __init__(
        self,
        resolver: Resolver,
        router: Router,
        table: SettingsTable,
        hints: Hints,
        rng: Random,
        sts: StsSource | None = None,
    ) -> None:
        """Take the parts an engine would have.

        Args:
            resolver: Answers DNS questions, each once.
            router: Finds the ways to domains.
            table: The settings of every path.
            hints: What was learned of hosts; only MTA-STS policies are added.
            rng: Shuffles hosts of equal preference.
            sts: Who knows MTA-STS policies; `None`: they are looked up, and kept in the hints.
        """
        self._resolver = resolver
        self._router = router
        self._table = table
        self._hints = hints
        self._rng = rng
        self._sts = sts or StsPolicies(resolver, hints, StsFetcher(dial_by(resolver)))
        self._policies = Policies(resolver, self._sts)

    async def find(self, domain: str) -> Finding:
        """Find out about a domain.

        Args:
            domain: As for `Router.route`.
        """
        table = self._table
        by_domain = table.settings(table.matching(domain=domain, site=""))
        survey = await self._router.survey(domain, by_domain.address_family)
        route = survey.verdict
        if not isinstance(route, Route):
            return Finding(domain, survey, table.matching(domain=domain, site=""), by_domain)
        rules = table.matching(domain=domain, site=route.site)
        settings = table.settings(rules)
        order = plan(route, settings.address_family, self._rng)
        found: dict[Candidate, Lead] = {}
        policies: dict[str, StsFinding] = {}
        limiter = trio.CapacityLimiter(_AT_ONCE)

        async def look_into(candidate: Candidate) -> None:
            async with limiter:
                found[candidate] = await self._look_into(domain, route, candidate)

        async def look_up(owner: str) -> None:
            policies[owner] = await self._policy_of(owner)

        # Who comes next depends on what policies say of those before.
        while True:
            steps = _walk_through(order, route, settings, found)
            fresh = [step for step in steps if isinstance(step, Candidate) and step not in found]
            if not fresh:
                break
            async with trio.open_nursery() as nursery:
                for candidate in fresh:
                    nursery.start_soon(look_into, candidate)
        leads = [found[step] for step in steps if isinstance(step, Candidate)]
        async with trio.open_nursery() as nursery:
            for owner in dict.fromkeys(lead.owner for lead in leads):
                if owner is not None:
                    nursery.start_soon(look_up, owner)
        return Finding(
            domain,
            survey,
            rules,
            settings,
            tuple(steps),
            tuple(leads),
            tuple(sorted(policies.items())),
        )

    async def _policy_of(self, owner: str) -> StsFinding:
        with trio.move_on_after(_STS_SECONDS):
            return await self._sts.find(owner)
        return StsFinding(is_unknown=True, reason=f"no answer in {_STS_SECONDS:g} s")

    async def _look_into(self, domain: str, route: Route, candidate: Candidate) -> Lead:
        table = self._table
        rules = table.matching(
            domain=domain, site=route.site, host=candidate.host, address=candidate.address
        )
        path = Path.of(table.settings(rules))
        settings, options = path.settings, path.options
        port = port_for(candidate, options)
        peer = Peer(candidate.host, candidate.address, port)
        barred = ""
        if candidate.address is not None:
            own = None
            try:
                interface_for(peer, options)
            except ConnectFailed as failure:
                barred = failure.text
            else:
                own = None if options.proxies else own_address_towards(peer, options)
            peer = Peer(candidate.host, candidate.address, port, own)
        asked = domain, route, candidate, port or 0, settings
        has_tls = settings.tls != "off"
        tlsa = None
        if has_tls and settings.dane != "off" and needs_lookup(candidate):
            tlsa = await find_tlsa(self._resolver, candidate, port or 0)
        return Lead(
            candidate,
            peer,
            path,
            rules,
            barred,
            await self._policies.demand(*asked),
            await self._policies.demand(*asked, MessageTls.REQUIRED),
            tlsa,
            policy_domain(domain, route, candidate)
            if has_tls and settings.mta_sts == "on"
            else None,
            self._recall(peer),
        )

    def _recall(self, peer: Peer) -> Memory:
        known = HostMemory(self._hints, peer)
        return Memory(
            known.takes_streams,
            known.is_bad_at_chunking,
            known.has_broken_tls,
            known.hello(has_tls=False) is not None,
            peer.address is not None and FastOpenMemory(self._hints).avoids(peer.address),
        )


def _walk_through(
    order: Sequence[Candidate],
    route: Route,
    settings: Settings,
    found: Mapping[Candidate, Lead],
) -> Sequence[Candidate | HostFailure]:
    """Return whom one delivery attempt would try, in order, if each of them failed."""
    walk = Walk(
        order,
        route.failures,
        limit=settings.max_hosts_tried,
        hard_limit=settings.max_hosts_tried_hard,
        is_static=route.is_static,
    )
    steps = []
    while (step := walk.peek()) is not None:
        walk.take(step)
        lead = found.get(step) if isinstance(step, Candidate) else None
        if lead is not None and isinstance(lead.verdict, HostRefused):
            walk.blame_name(lead.candidate)
        steps.append(step)
    return steps
