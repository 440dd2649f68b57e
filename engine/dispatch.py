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
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.choices import AddressFamily
    from engine.delivery.shared import Shared
    from engine.message import Message, Recipient
    from engine.routing.router import Router

_log = logging.getLogger("engine")

#: Domains whose pool is remembered beside their route.
_MOST_WAYS: Final = 10_000


@dataclass(slots=True)
class _Parcel:
    """A message on its way to the pools.

    Attributes:
        message: It.
        by_domain: Its recipients by routing domain, in their order.
        submitted_at: When it was submitted, by Trio's clock.
        routes: What is known of its domains.
        unknown: The domains whose route is being looked for.
    """

    message: Message
    by_domain: dict[str, list[Recipient]]
    submitted_at: float
    routes: dict[str, Route | Unroutable] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


class _Way(NamedTuple):
    """The pool that a domain's mail goes to, and until when that is believed, by Trio's clock."""

    pool: SitePool
    until: float


class Dispatcher:
    """Routes messages and keeps the pools.

    Attributes:
        pools: The pools that run, by site, host order and the rules that hold for them.
    """

    def __init__(self, shared: Shared, router: Router, on_pool_closed: Callable[[], None]) -> None:
        """Make a dispatcher; it works inside `run_in`'s nursery.

        Args:
            shared: The engine's parts.
            router: Routes domains.
            on_pool_closed: Called when a pool has ended.
        """
        self.pools: dict[tuple[str, str, tuple[int, ...]], SitePool] = {}
        self._shared = shared
        self._router = router
        self._on_pool_closed = on_pool_closed
        self._waiting: dict[str, list[_Parcel]] = {}
        self._ways: dict[str, _Way] = {}
        self._nursery: trio.Nursery | None = None
        self._now: Callable[[], float] = trio.current_time

    def run_in(self, nursery: trio.Nursery) -> None:
        """Start tasks in this nursery from now on."""
        self._nursery = nursery
        self._now = trio.lowlevel.current_clock().current_time

    def dispatch(self, message: Message) -> None:
        """Hand a message to its pools, at once where the ways are known."""
        now, recipients = self._now(), message.recipients
        if len(recipients) == 1:
            # Most bulk mail goes here, to a domain that was met a moment ago.
            way = self._ways.get(recipients[0].mailbox.routing_domain)
            if way is not None and now < way.until:
                pool = way.pool
                pool.put(Attempt(message, recipients, pool.settle, now, 0.0))
                return
        by_domain: dict[str, list[Recipient]] = {}
        for recipient in message.recipients:
            domain = recipient.mailbox.routing_domain
            if domain in by_domain:
                by_domain[domain].append(recipient)
            else:
                by_domain[domain] = [recipient]
        parcel = _Parcel(message, by_domain, now)
        for domain in by_domain:
            family = self._family_for(domain)
            known = self._router.known(domain, family)
            if known is None or domain in self._waiting:
                self._wait_for(domain, parcel)
                continue
            parcel.routes[domain] = known
            if isinstance(known, Route) and len(by_domain) == 1:
                self._remember(domain, known, now + self._router.seconds_left(domain, family))
        if not parcel.unknown:
            self._hand_out(parcel)

    def _remember(self, domain: str, route: Route, until: float) -> None:
        """Note the way to a domain; what is noted here may be forgotten at any time."""
        if len(self._ways) >= _MOST_WAYS:
            self._ways.clear()
        self._ways[domain] = _Way(self._pool_for(domain, route), until)

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
        verdict = ours(
            Status.DEFERRED, Cause.CANCELLED, Stage.ROUTE, "the engine was stopped first"
        )
        try:
            found = await self._router.route(domain, self._family_for(domain))
        except Exception:  # noqa: BLE001 - the bulkhead: a bug costs an attempt, and no mail
            _log.exception("routing %s failed by a bug of ours; its mail is deferred", domain)
            verdict = ours(
                Status.DEFERRED, Cause.INTERNAL, Stage.ROUTE, "internal error; see the log"
            )
        finally:
            for parcel in self._waiting.pop(domain):
                self._let_go(parcel, domain, found, verdict)
        events = self._shared.events
        if found is not None and RecipientsRouted in events.wanted:
            site = found.site if isinstance(found, Route) else ""
            events.publish(RecipientsRouted(self._shared.clock(), domain, site, found.seconds))

    def _let_go(
        self, parcel: _Parcel, domain: str, found: Route | Unroutable | None, verdict: Verdict
    ) -> None:
        parcel.unknown.discard(domain)
        if found is None:
            # This part ends here; what else the message has goes its own way.
            recipients = parcel.by_domain.pop(domain)
            self._attempt(parcel, recipients, self._shared.settle).end(verdict, trio.current_time())
        else:
            parcel.routes[domain] = found
        if not parcel.unknown:
            self._hand_out(parcel)

    # -- handing out ------------------------------------------------------------------------

    def _hand_out(self, parcel: _Parcel) -> None:
        """Give each pool its part: recipients who go to one site travel together."""
        by_pool: dict[SitePool, tuple[list[Recipient], float]] = {}
        for domain, recipients in parcel.by_domain.items():
            route = parcel.routes[domain]
            if isinstance(route, Unroutable):
                self._settle_unroutable(parcel, recipients, route)
                continue
            pool = self._pool_for(domain, route)
            if pool in by_pool:
                by_pool[pool][0].extend(recipients)
            else:
                by_pool[pool] = (recipients, route.seconds)
        for pool, (recipients, seconds) in by_pool.items():
            pool.put(self._attempt(parcel, recipients, pool.settle, seconds))

    @staticmethod
    def _attempt(
        parcel: _Parcel,
        recipients: list[Recipient],
        settle: Callable[..., None],
        route_seconds: float = 0.0,
    ) -> Attempt:
        return Attempt(
            parcel.message,
            recipients,
            settle,
            parcel.submitted_at,
            route_seconds,
        )

    def _family_for(self, domain: str) -> AddressFamily:
        table = self._shared.table
        if not table.rules:
            return table.defaults.address_family
        return table.settings(table.matching(domain=domain, site="")).address_family

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
        self._ways.clear()
        self._on_pool_closed()

    def _settle_unroutable(
        self, parcel: _Parcel, recipients: list[Recipient], found: Unroutable
    ) -> None:
        verdict = Verdict(
            found.status, Stage.ROUTE, found.cause, found.text, found.scope, None, found.enhanced
        )
        attempt = self._attempt(parcel, recipients, self._shared.settle, found.seconds)
        attempt.end(verdict, trio.current_time())
