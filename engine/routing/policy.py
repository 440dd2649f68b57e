"""What TLS a host must show for a message, or why it must not be used: all policies together.

    DANE         the host's TLSA records   `engine.routing.dane`
    MTA-STS      the domain's policy       `engine.routing.mta_sts`
    REQUIRETLS   the message               `engine.routing.sender_rules`
    `tls`        the settings              `engine.routing.sender_rules`

They are asked in this order, and `engine.routing.opinion` combines what they say.
`Policies.demand` is asked before a host is connected to; its answers are remembered as long as the
DNS allows.  Whether a host then shows what it must is `engine.net`'s to find out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import trio

from engine.routing.cache import TtlCache
from engine.routing.dane import TlsaFinding, find_tlsa, needs_lookup
from engine.routing.dane import judge as dane_opinion
from engine.routing.flight import SingleFlight
from engine.routing.mta_sts import StsFinding, judge
from engine.routing.opinion import Opinion, combine
from engine.routing.sender_rules import judge_message, judge_settings, policy_domain
from engine.security import HostRefused, MessageTls, ReportedPolicy, Stance, TlsDemand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.route import Candidate, Route
    from engine.routing.resolver import Resolver
    from engine.settings import Settings

_Verdict: TypeAlias = TlsDemand | HostRefused

#: Seconds a verdict is kept at least, so that a TTL of 0 does not mean a lookup a message.
_MIN_SECONDS: Final = 1.0
#: Seconds to find out about an MTA-STS policy: a fetch, and the lookup before it.
_STS_TIMEOUT: Final = 75.0
_MAX_ENTRIES: Final = 50_000


class StsSource(Protocol):
    """Who knows the MTA-STS policies of domains; `engine.routing.sts_store.StsPolicies` is one."""

    async def find(self, domain: str) -> StsFinding:
        """Return what is known of a domain's policy."""
        ...


class _Key(NamedTuple):
    """All that a verdict depends on, the DNS apart."""

    domain: str
    host: str
    canonical: str
    is_secure: bool
    is_route_secure: bool
    is_static: bool
    aliases: tuple[str, ...]
    port: int
    tls: str
    tls_sni: str | None
    dane: str
    mta_sts: str
    message: MessageTls


class _Place(NamedTuple):
    """Where TLSA records are looked for."""

    host: str
    canonical: str
    is_secure: bool
    port: int


#: Where nobody knows of MTA-STS policies.
_NO_POLICY: Final = StsFinding(seconds=math.inf)


class Policies:
    """Says what TLS each host must show, one search at a time for each, and remembers it.

    Args:
        resolver: Who is asked for TLSA records.
        sts: Who knows MTA-STS policies; `None`: nobody, and the setting has no effect.
        clock: Seconds that never go back.
        max_entries: How many verdicts are kept.
    """

    def __init__(
        self,
        resolver: Resolver,
        sts: StsSource | None = None,
        *,
        clock: Callable[[], float] = trio.current_time,
        max_entries: int = _MAX_ENTRIES,
    ) -> None:
        self._resolver = resolver
        self._sts = sts
        self._verdicts: TtlCache[_Key, _Verdict] = TtlCache(max_entries, clock)
        self._tlsa: TtlCache[_Place, TlsaFinding] = TtlCache(max_entries, clock)
        self._policies: TtlCache[str, StsFinding] = TtlCache(max_entries, clock)
        self._searches: SingleFlight[_Key, _Verdict] = SingleFlight()

    def known(
        self,
        domain: str,
        route: Route,
        candidate: Candidate,
        port: int,
        settings: Settings,
        message: MessageTls = MessageTls.BY_POLICY,
    ) -> TlsDemand | HostRefused | None:
        """Return what is known already, `None` when `demand` must be asked; args are the same."""
        key = _key(domain, route, candidate, port, settings, message)
        verdict = self._verdicts.get(key)
        if verdict is None:
            found = self._conclude(key, route, candidate, settings)
            if not isinstance(found, _Place | str):
                return found
        return verdict

    async def demand(
        self,
        domain: str,
        route: Route,
        candidate: Candidate,
        port: int,
        settings: Settings,
        message: MessageTls = MessageTls.BY_POLICY,
    ) -> TlsDemand | HostRefused:
        """Return what TLS a host must show, or why it must not be used.

        If cancelled, others who wait for the same are served all the same.

        Args:
            domain: The recipient domain, as it was routed.
            route: Its route.
            candidate: One of the route's candidates.
            port: The TCP port that will be connected to.
            settings: Those for this host.
            message: What the message asks for.
        """
        key = _key(domain, route, candidate, port, settings, message)
        verdict = self.known(domain, route, candidate, port, settings, message)
        if verdict is not None:
            await trio.lowlevel.checkpoint()
            return verdict
        search = partial(self._search, key, route, candidate, settings)
        return await self._searches.share(key, search)

    async def stance(self, domain: str, route: Route, settings: Settings) -> tuple[Stance, float]:
        """Return what distinguishes a domain from others of its site, and how long that holds.

        Args:
            domain: The recipient domain, as it was routed.
            route: Its route.
            settings: Those for the site.
        """
        secure, aliases = (
            (route.is_secure, route.aliases) if settings.dane != "off" else (False, ())
        )
        if (
            settings.mta_sts == "off"
            or settings.tls == "off"
            or self._sts is None
            # With a static route the hosts are who counts.
            or route.is_static
            or not route.candidates
            or (owner := policy_domain(domain, route, route.candidates[0])) is None
        ):
            return Stance(secure, aliases), math.inf
        finding = self._policies.get(owner) or await self._find(owner)
        policy = finding.policy
        sts = () if policy is None or policy.mode == "none" else (policy.mode, *policy.mx)
        return Stance(secure, aliases, sts), max(finding.seconds, _MIN_SECONDS)

    async def _search(
        self, key: _Key, route: Route, candidate: Candidate, settings: Settings
    ) -> _Verdict:
        while True:
            verdict = self._conclude(key, route, candidate, settings)
            if isinstance(verdict, _Place):
                finding = await find_tlsa(self._resolver, candidate, key.port)
                self._tlsa.put(verdict, finding, max(finding.seconds, _MIN_SECONDS))
            elif isinstance(verdict, str):
                await self._find(verdict)
            else:
                return verdict

    def _conclude(
        self, key: _Key, route: Route, candidate: Candidate, settings: Settings
    ) -> _Verdict | _Place | str:
        """Return what follows from what is known; else which TLSA or MTA-STS lookup is missing."""
        opinions: list[Opinion] = []
        if settings.tls != "off":
            # Where the operator switched it off for a path, nothing that is published raises it.
            missing = self._hear_receiver(opinions, key, route, candidate, settings)
            if missing is not None:
                return missing
        opinions.append(judge_message(key.message, route, candidate, settings, opinions))
        opinions.append(judge_settings(candidate, settings))
        verdict = _addressed(combine(opinions), key, policy_domain(key.domain, route, candidate))
        seconds = min(*(opinion.seconds for opinion in opinions), *self._seconds_left(key))
        self._verdicts.put(key, verdict, max(seconds, _MIN_SECONDS))
        return verdict

    def _seconds_left(self, key: _Key) -> Iterator[float]:
        """Yield how long what was found in lookups still holds."""
        place = _Place(key.host, key.canonical, key.is_secure, key.port)
        if self._tlsa.get(place) is not None:
            yield self._tlsa.seconds_left(place)
        owner = key.host if key.is_static else key.domain
        if self._policies.get(owner) is not None:
            yield self._policies.seconds_left(owner)

    def _hear_receiver(
        self,
        opinions: list[Opinion],
        key: _Key,
        route: Route,
        candidate: Candidate,
        settings: Settings,
    ) -> _Place | str | None:
        """Add what the receiver published; who could change nothing is not asked."""
        # RFC 8689 §8.4: such a message is sent as if there were neither DANE nor MTA-STS, except
        # where our own operator wants DANE.
        is_optional = key.message is MessageTls.OPTIONAL
        if settings.dane == "require" or (settings.dane == "try" and not is_optional):
            place = _Place(key.host, key.canonical, key.is_secure, key.port)
            finding = self._tlsa.get(place) if needs_lookup(candidate) else TlsaFinding()
            if finding is None:
                return place
            dane = dane_opinion(finding, route, candidate, settings.dane)
            opinions.append(dane)
            # RFC 8461 §2: MTA-STS does not stand in for DANE that fails.
            if dane.settles_it or isinstance(dane.verdict, HostRefused):
                return None
        owner = policy_domain(key.domain, route, candidate)
        if settings.mta_sts == "on" and owner is not None and not is_optional:
            policy = self._policies.get(owner) if self._sts is not None else _NO_POLICY
            if policy is None:
                return owner
            opinions.append(judge(owner, policy, candidate.host))
        return None

    async def _find(self, owner: str) -> StsFinding:
        """Ask for a domain's MTA-STS policy, and remember the answer."""
        assert self._sts is not None
        finding = StsFinding(is_unknown=True)
        with trio.move_on_after(_STS_TIMEOUT):
            finding = await self._sts.find(owner)
        self._policies.put(owner, finding, max(finding.seconds, _MIN_SECONDS))
        return finding


def _addressed(verdict: _Verdict, key: _Key, owner: str | None) -> _Verdict:
    """Return a verdict with the policies that are reported, and to whom."""
    if owner is None or key.tls == "off" or key.message is MessageTls.OPTIONAL:
        # There is nobody to tell, or no policy was asked.
        return replace(verdict, reported=())
    reported = verdict.reported or (ReportedPolicy("no-policy-found", owner),)
    return replace(verdict, reported=tuple(replace(p, receiver=owner) for p in reported))


def _key(
    domain: str,
    route: Route,
    candidate: Candidate,
    port: int,
    settings: Settings,
    message: MessageTls,
) -> _Key:
    return _Key(
        domain,
        candidate.host,
        candidate.canonical,
        candidate.is_secure,
        route.is_secure,
        route.is_static,
        route.aliases,
        port,
        settings.tls,
        settings.tls_sni,
        settings.dane,
        settings.mta_sts,
        message,
    )
