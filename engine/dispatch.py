"""From a message to the pools of its sites: what the engine does with mail it has taken.

A message whose domains are known goes to its pools at once.  For a domain that is not known one
task asks the router, and what is submitted meanwhile waits for it in order; so a slow name server
holds up nobody else's mail, and a burst to a new domain costs one look-up.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from engine.delivery.attempt import Attempt
from engine.delivery.pool import SitePool
from engine.delivery.verdict import Verdict, ours
from engine.outcome import Cause, Status
from engine.report.events import RecipientsRouted
from engine.route import Route, Unroutable
from engine.routing.sender_rules import message_tls
from engine.security import MessageTls, Stance
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.choices import AddressFamily
    from engine.delivery.lane import Lane
    from engine.delivery.shared import Shared
    from engine.message import Message, Recipient
    from engine.outcome import Outcome
    from engine.routing.policy import Policies
    from engine.routing.router import Router
    from engine.settings import Settings

_log = logging.getLogger("engine")

#: Domains whose pool is remembered beside their route.
_MOST_WAYS: Final = 10_000


@dataclass(slots=True)
class _Parcel:
    """A message on its way to the pools.

    Attributes:
        message: It.
        name: What it is called where it has no id.
        by_domain: Its recipients by routing domain, in their order.
        submitted_at: When it was submitted, by Trio's clock.
        routes: What is known of its domains.
        stances: What they ask for on the way; of all that can be routed.
        settle: Takes the outcomes in place of whoever reads the engine's.
        is_callout: Whether recipients are only asked about, and no content is sent.
        unknown: The domains whose route is being looked for.
    """

    message: Message
    name: str
    by_domain: dict[str, list[Recipient]]
    submitted_at: float
    routes: dict[str, Route | Unroutable] = field(default_factory=dict)
    stances: dict[str, Stance] = field(default_factory=dict)
    settle: Callable[[Outcome], None] | None = None
    is_callout: bool = False
    unknown: set[str] = field(default_factory=set)


class _Way(NamedTuple):
    """The way of a domain's mail.

    Attributes:
        pool: Where it goes.
        stance: What the domain asks for on the way.
        lane: Its lane there, where the message itself asks for nothing.
        until: Until when that is believed, by Trio's clock.
    """

    pool: SitePool
    stance: Stance
    lane: Lane
    until: float


class Dispatcher:
    """Routes messages and keeps the pools.

    Attributes:
        pools: The pools that run, by site, host order and the rules that hold for them.
    """

    def __init__(
        self,
        shared: Shared,
        router: Router,
        policies: Policies,
        on_change: Callable[[], None],
    ) -> None:
        """Make a dispatcher; it works inside `run_in`'s nursery.

        Args:
            shared: The engine's parts.
            router: Routes domains.
            policies: Say what domains ask for on the way.
            on_change: Called when a pool has ended, and when nothing is being routed any more.
        """
        self.pools: dict[tuple[str, str, tuple[int, ...]], SitePool] = {}
        self._shared = shared
        self._router = router
        self._policies = policies
        self._on_change = on_change
        self._waiting: dict[str, list[_Parcel]] = {}
        self._ways: dict[str, _Way] = {}
        self._nursery: trio.Nursery | None = None
        self._now: Callable[[], float] = trio.current_time

    def run_in(self, nursery: trio.Nursery) -> None:
        """Start tasks in this nursery from now on."""
        self._nursery = nursery
        self._now = trio.lowlevel.current_clock().current_time

    @property
    def is_routing(self) -> bool:
        """Whether messages wait for the way to a domain to be found."""
        return bool(self._waiting)

    def dispatch(self, message: Message, name: str) -> None:
        """Hand a message to its pools, at once where the ways are known.

        Args:
            message: It.
            name: What it is called where it has no id.
        """
        now, recipients = self._now(), message.recipients
        if len(recipients) == 1:
            # Most bulk mail goes here, to a domain that was met a moment ago.
            way = self._ways.get(recipients[0].mailbox.routing_domain)
            if way is not None and now < way.until and not way.pool.is_closed:
                pool = way.pool
                attempt = Attempt(message, recipients, pool.settle, now, 0.0, name)
                attempt.lane = way.lane
                if message.require_tls or message.content.facts.is_tls_optional:
                    asked = _asked_of_tls(message)
                    attempt.lane = pool.lane(asked, way.stance, way.lane.domain)
                pool.put(attempt)
                return
        self._dispatch_slowly(message, now, name)

    def dispatch_apart(
        self, message: Message, settle: Callable[[Outcome], None], *, is_callout: bool = False
    ) -> None:
        """Hand a message to its pools that is nobody's but whoever asks.

        Args:
            message: It.
            settle: Takes each recipient's outcome; must not wait.
            is_callout: Whether recipients are only asked about, and no content is sent.
        """
        self._dispatch_slowly(message, self._now(), "", settle, is_callout=is_callout)

    def _dispatch_slowly(
        self,
        message: Message,
        now: float,
        name: str,
        settle: Callable[[Outcome], None] | None = None,
        *,
        is_callout: bool = False,
    ) -> None:
        by_domain: dict[str, list[Recipient]] = {}
        for recipient in message.recipients:
            domain = recipient.mailbox.routing_domain
            if domain in by_domain:
                by_domain[domain].append(recipient)
            else:
                by_domain[domain] = [recipient]
        parcel = _Parcel(message, name, by_domain, now, settle=settle, is_callout=is_callout)
        unknown = []  # waited for when all is looked at: a bug on the way must leave nothing behind
        for domain in by_domain:
            way = self._ways.get(domain)
            known = self._router.known(domain, self._family_for(domain))
            if known is None or domain in self._waiting:
                unknown.append(domain)
            elif not isinstance(known, Route):
                parcel.routes[domain] = known
            elif way is None or now >= way.until:
                unknown.append(domain)
            else:
                parcel.routes[domain], parcel.stances[domain] = known, way.stance
                if way.pool.is_closed:
                    self._remember(domain, known, way.stance, way.until - now)
        for domain in unknown:
            self._wait_for(domain, parcel)
        if not unknown:
            self._hand_out(parcel)

    def _remember(self, domain: str, route: Route, stance: Stance, seconds: float) -> None:
        """Note the way to a domain; what is noted here may be forgotten at any time."""
        if len(self._ways) >= _MOST_WAYS:
            self._ways.clear()
        pool = self._pool_for(domain, route)
        lane = pool.lane(MessageTls.BY_POLICY, stance, domain)
        left = self._router.seconds_left(domain, self._family_for(domain))
        self._ways[domain] = _Way(pool, stance, lane, self._now() + min(seconds, left))

    # -- routing ----------------------------------------------------------------------------

    def _wait_for(self, domain: str, parcel: _Parcel) -> None:
        parcel.unknown.add(domain)
        if domain in self._waiting:
            self._waiting[domain].append(parcel)
        else:
            self._waiting[domain] = [parcel]
            assert self._nursery is not None
            self._nursery.start_soon(self._find, domain, name=f"route {domain}")

    async def _find(self, domain: str) -> None:
        """Find the way to a domain, then let go what waits for it; nothing waits after this."""
        found: Route | Unroutable | None = None
        stance = Stance()
        verdict = ours(
            Status.DEFERRED, Cause.CANCELLED, Stage.ROUTE, "the engine was stopped first"
        )
        try:
            route = await self._router.route(domain, self._family_for(domain))
            if isinstance(route, Route):
                settings = self._settings_for(domain, route.site)
                stance, seconds = await self._policies.stance(domain, route, settings)
                self._remember(domain, route, stance, seconds)
                if self._shared.learn_route is not None:
                    self._shared.learn_route(domain, route.site)
            found = route
        except Exception:  # noqa: BLE001 - the bulkhead: a bug costs an attempt, and no mail
            _log.exception("routing %s failed by a bug of ours; its mail is deferred", domain)
            verdict = ours(
                Status.DEFERRED, Cause.INTERNAL, Stage.ROUTE, "internal error; see the log"
            )
        finally:
            for parcel in self._waiting.pop(domain):
                self._let_go(parcel, domain, found, stance, verdict)
            if not self._waiting:
                self._on_change()
        events = self._shared.events
        if found is not None and RecipientsRouted in events.wanted:
            site = found.site if isinstance(found, Route) else ""
            events.publish(RecipientsRouted(self._shared.clock(), domain, site, found.seconds))

    def _let_go(
        self,
        parcel: _Parcel,
        domain: str,
        found: Route | Unroutable | None,
        stance: Stance,
        verdict: Verdict,
    ) -> None:
        parcel.unknown.discard(domain)
        if found is None:
            # This part ends here; what else the message has goes its own way.
            recipients = parcel.by_domain.pop(domain)
            attempt = self._attempt(parcel, recipients, self._shared.settle)
            attempt.end(verdict, trio.current_time())
        else:
            parcel.routes[domain], parcel.stances[domain] = found, stance
        if not parcel.unknown:
            self._hand_out(parcel)

    # -- handing out ------------------------------------------------------------------------

    def _hand_out(self, parcel: _Parcel) -> None:
        """Give each pool its part: recipients who go to one site, in one lane, travel together."""
        message = parcel.message
        asked = _asked_of_tls(message)
        parts: dict[tuple[SitePool, Lane], tuple[list[str], float]] = {}
        for domain, recipients in parcel.by_domain.items():
            route = parcel.routes[domain]
            if isinstance(route, Unroutable):
                self._settle_unroutable(parcel, recipients, route)
                continue
            pool = self._pool_for(domain, route)
            part = pool, pool.lane(asked, parcel.stances[domain], domain)
            if part in parts:
                parts[part][0].append(domain)
            else:
                parts[part] = ([domain], route.seconds)
        for (pool, lane), (domains, seconds) in parts.items():
            recipients = parcel.by_domain[domains[0]]
            if len(domains) > 1:
                # They are named in the order in which they were given.
                chosen = frozenset(domains)
                recipients = [
                    each for each in message.recipients if each.mailbox.routing_domain in chosen
                ]
            attempt = self._attempt(parcel, recipients, pool.settle, seconds)
            attempt.lane = lane
            pool.put(attempt)

    @staticmethod
    def _attempt(
        parcel: _Parcel,
        recipients: list[Recipient],
        settle: Callable[..., None],
        route_seconds: float = 0.0,
    ) -> Attempt:
        attempt = Attempt(
            parcel.message,
            recipients,
            parcel.settle or settle,
            parcel.submitted_at,
            route_seconds,
            parcel.name,
        )
        if parcel.is_callout:
            attempt.is_callout = True
        return attempt

    def _settings_for(self, domain: str, site: str) -> Settings:
        table = self._shared.table
        return table.settings(table.matching(domain=domain, site=site))

    def _family_for(self, domain: str) -> AddressFamily:
        table = self._shared.table
        if not table.rules:
            return table.defaults.address_family
        return self._settings_for(domain, "").address_family

    def _pool_for(self, domain: str, route: Route) -> SitePool:
        rules = self._shared.table.matching(domain=domain, site=route.site)
        key = (route.site, route.order, rules)
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = SitePool(self._shared, route.site, route, rules, domain)
            assert self._nursery is not None
            self._nursery.start_soon(pool.run, self._forget, name=f"pool {route.site}")
        pool.route = route
        return pool

    def _forget(self, pool: SitePool) -> None:
        for key in [key for key, known in self.pools.items() if known is pool]:
            del self.pools[key]
        self._on_change()

    def _settle_unroutable(
        self, parcel: _Parcel, recipients: list[Recipient], found: Unroutable
    ) -> None:
        verdict = Verdict(
            found.status, Stage.ROUTE, found.cause, found.text, found.scope, None, found.enhanced
        )
        attempt = self._attempt(parcel, recipients, self._shared.settle, found.seconds)
        attempt.end(verdict, trio.current_time())


def _asked_of_tls(message: Message) -> MessageTls:
    return message_tls(
        require_tls=message.require_tls,
        has_null_path=message.reverse_path is None,
        is_optional=message.content.facts.is_tls_optional,
    )
