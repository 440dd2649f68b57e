"""How the sites of whoever is out are doing, and which site a domain's mail goes to.  Knows no I/O.

Used by the scheduler: leases bring the sites that are not well, outcomes say what became of them.
Not here: for how long a site is left alone (`engine.queue.backoff`), and writing it down
(`engine.queue.settler`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.queue.backoff import is_trouble
from engine.queue.values import SiteState

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from random import Random

    from engine.outcome import Outcome
    from engine.queue.backoff import BackOff
    from engine.queue.flight import Out

#: Domains whose sites are remembered, so that they are not told again and again.
_MAX_ROUTES: Final = 50_000


class SiteHealth:
    """The sites that are not well, of those that somebody is out to."""

    def __init__(self, back_off: BackOff, rng: Random) -> None:
        """Know of no site.

        Args:
            back_off: How long sites are left alone.
            rng: For jitter.
        """
        self._back_off = back_off
        self._rng = rng
        self._sites: dict[str, SiteState] = {}
        self._routes: dict[str, str] = {}

    def learn_route(self, domain: str, site: str) -> bool:
        """Note which site a domain's mail goes to; return whether that is news."""
        if not site or self._routes.get(domain) == site:
            return False
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        self._routes[domain] = site
        return True

    def note(self, states: Iterable[SiteState]) -> None:
        """Note how sites are doing, as the store has it."""
        for state in states:
            self._sites[state.name] = state

    def judge(
        self, out: Out, outcome: Outcome, now: float, of_site: Container[str]
    ) -> SiteState | None:
        """Return what an outcome makes of the state of its site; `None` where that stays as it is.

        Args:
            out: Whom the outcome is of, and who is not out any more.
            outcome: It.
            now: Wall clock, seconds since the epoch.
            of_site: The sites that others are still out to, by the names they were leased under.
        """
        if not self._sites and not is_trouble(outcome):
            return None  # all sites are well, and stay it
        leased_as = out.recipient.site
        name = self._routes.get(out.domain, leased_as)
        state = self._sites.get(name) or self._sites.get(leased_as) or SiteState(name=name)
        if state.name != name:
            state = SiteState(
                name=name,
                not_before=state.not_before,
                failures=state.failures,
                reason=state.reason,
            )
        news = self._back_off.judge(state, outcome, now, self._rng)
        if news is not None:
            self._sites[name] = news
        # The next lease brings it along again, if it is not well.
        if leased_as not in of_site:
            self._sites.pop(leased_as, None)
            if name not in of_site:
                self._sites.pop(name, None)
        return news
