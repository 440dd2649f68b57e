"""Which MTA-STS policy of a domain holds, kept as long as it does and renewed before it expires.

`StsPolicies.find` is asked for each domain; `StsPolicies.run` is a task that renews what is in use,
and whose parent is the engine's nursery.  What is kept is kept in the hints, so it outlives the
process where they do.  Not here: what a policy means (`engine.routing.mta_sts`).
"""

from __future__ import annotations

import heapq
import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

import trio

from engine.routing.cache import TtlCache
from engine.routing.flight import SingleFlight
from engine.routing.mta_sts import StsFinding, StsPolicy, StsPolicyError, read_policy, read_record
from engine.routing.sts_fetch import StsFetchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.hints import Hints
    from engine.routing.resolver import Resolver
    from engine.security import TlsFailure

HINT_KIND: Final = "mta-sts"

#: RFC 8461 §3.3: five minutes or more for each version of a policy that cannot be fetched.
FAILURE_SECONDS: Final = 300.0
#: A policy that was just fetched is used for that long, whatever it says: a burst costs one fetch.
LEAST_SECONDS: Final = 60.0
#: RFC 8461 §3.3 suggests to renew policies once a day.
REFRESH_SECONDS: Final = 86_400.0
#: After a renewal that failed.
_RETRY_SECONDS: Final = 3600.0
_MAX_DOMAINS: Final = 20_000
_REFRESHES_AT_ONCE: Final = 4

_log = logging.getLogger("engine.routing")


class Fetcher(Protocol):
    """Who fetches policies; `engine.routing.sts_fetch.StsFetcher` is one."""

    async def fetch(self, domain: str) -> StsPolicy:
        """Return the policy a domain publishes now.

        Raises:
            StsFetchError: It could not be had.
        """
        ...


class _Kept(NamedTuple):
    """A policy in the hints: the id that announced it, and when it was fetched (wall time)."""

    identity: str
    fetched_at: float
    policy: StsPolicy

    def seconds_left(self, now: float) -> float:
        # A clock that was set back must not make a policy live for ever.
        return self.policy.max_age - max(now - self.fetched_at, 0.0)


class _Failed(NamedTuple):
    """A fetch that failed, as `StsFetchError` says it."""

    failure: TlsFailure
    reason: str


#: What a fetch came to.
_Fetched: TypeAlias = StsPolicy | _Failed


class StsPolicies:
    """The MTA-STS policies of the domains that mail goes to.

    Args:
        resolver: Who is asked for the TXT records; it should remember answers.
        hints: Where policies are kept.
        fetcher: Who fetches them.
        clock: Wall clock, seconds since the epoch: policies outlive the process.
    """

    def __init__(
        self,
        resolver: Resolver,
        hints: Hints,
        fetcher: Fetcher,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._resolver = resolver
        self._hints = hints
        self._fetcher = fetcher
        self._clock = clock
        self._fetches: SingleFlight[tuple[str, str], _Fetched] = SingleFlight()
        # What was fetched, or failed to be, a moment ago, by domain and id.
        self._recent: TtlCache[tuple[str, str], _Fetched]
        self._recent = TtlCache(_MAX_DOMAINS, trio.current_time)
        self._due: list[tuple[float, str]] = []  # a heap of when to renew what
        self._scheduled: set[str] = set()
        self._used: set[str] = set()  # since they were last renewed
        self._changed = trio.Event()

    async def find(self, domain: str) -> StsFinding:
        """Return what is known of a domain's policy; fetches it where that is needed.

        Never raises for anything a domain does.  Many who ask at once cost one fetch, and who is
        cancelled disturbs none of the others.

        Args:
            domain: The policy domain, lower-case A-labels.
        """
        answer = await self._resolver.txt(f"_mta-sts.{domain}")
        identity = read_record(answer.records)
        kept = self._kept(domain)
        if kept is not None:
            self._use(domain, kept)
        if identity is None:
            reason = answer.text or "no valid _mta-sts record"
            return self._without_news(
                kept, answer.ttl, reason, is_unknown=answer.status == "failed"
            )
        if kept is not None and kept.identity == identity:
            seconds = min(answer.ttl, kept.seconds_left(self._clock()))
            return StsFinding(kept.policy, seconds=seconds)
        # RFC 8461 §3.1: another id means another policy.
        fetched = await self._fetch(domain, identity)
        if isinstance(fetched, StsPolicy):
            self._use(domain, _Kept(identity, self._clock(), fetched))
            seconds = max(min(answer.ttl, float(fetched.max_age)), LEAST_SECONDS)
            return StsFinding(fetched, seconds=seconds)
        seconds = self._recent.seconds_left((domain, identity))
        if kept is None:
            # RFC 8461 §3.3: as though there were no policy.
            return StsFinding(None, fetched.failure, fetched.reason, seconds)
        # RFC 8461 §3.3: what is kept is applied as long as it is valid.
        seconds = min(seconds, kept.seconds_left(self._clock()))
        return StsFinding(kept.policy, fetched.failure, fetched.reason, seconds)

    def _without_news(
        self, kept: _Kept | None, ttl: float, reason: str, *, is_unknown: bool
    ) -> StsFinding:
        if kept is None:
            return StsFinding(seconds=ttl, is_unknown=is_unknown)
        seconds = min(ttl, kept.seconds_left(self._clock()))
        return StsFinding(kept.policy, "sts-policy-fetch-error", reason, seconds)

    # -- fetching ---------------------------------------------------------------------------

    async def _fetch(self, domain: str, identity: str) -> _Fetched:
        recent = self._recent.get((domain, identity))
        if recent is not None:
            return recent
        return await self._fetches.share(
            (domain, identity), partial(self._fetch_now, domain, identity)
        )

    async def _fetch_now(self, domain: str, identity: str) -> _Fetched:
        fetched: _Fetched
        try:
            fetched = await self._fetcher.fetch(domain)
        except StsFetchError as error:
            fetched = _Failed(error.failure, error.reason)
            self._complain(domain, fetched)
            self._recent.put((domain, identity), fetched, FAILURE_SECONDS)
            return fetched
        self._recent.put((domain, identity), fetched, LEAST_SECONDS)
        kept = _Kept(identity, self._clock(), fetched)
        self._hints.put(HINT_KIND, domain, _to_octets(kept), seconds=fetched.max_age)
        return fetched

    def _complain(self, domain: str, error: _Failed) -> None:
        kept = self._kept(domain)
        if kept is None:
            _log.info("MTA-STS policy of %s: %s", domain, error.reason)
        elif kept.policy.mode != "none":
            # RFC 8461 §10.2: somebody may be keeping us from the policy until it expires.
            days = kept.seconds_left(self._clock()) / 86_400
            _log.warning(
                "MTA-STS policy of %s cannot be renewed and expires in %.1f days: %s",
                domain,
                days,
                error.reason,
            )

    def _kept(self, domain: str) -> _Kept | None:
        octets = self._hints.get(HINT_KIND, domain)
        kept = None if octets is None else _from_octets(octets)
        if kept is None or kept.seconds_left(self._clock()) <= 0:
            return None
        return kept

    # -- renewing ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Renew policies in use before they expire, until cancelled.

        RFC 8461 §10.2: otherwise who can block lookups at the right moment is rid of the policy.
        What nobody asked for since it was last renewed is let go.
        """
        seats = trio.Semaphore(_REFRESHES_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                domain = await self._next_due()
                if domain in self._used:
                    self._used.discard(domain)
                    await seats.acquire()
                    nursery.start_soon(self._refresh, domain, seats)
                else:
                    self._scheduled.discard(domain)

    async def _next_due(self) -> str:
        while True:
            at = self._due[0][0] if self._due else float("inf")
            if at <= trio.current_time():
                return heapq.heappop(self._due)[1]
            self._changed = trio.Event()
            with trio.move_on_at(at):
                await self._changed.wait()

    async def _refresh(self, domain: str, seats: trio.Semaphore) -> None:
        """Renew a policy; until that is over it counts as scheduled."""
        seconds = None
        try:
            seconds = await self._refresh_now(domain)
        except Exception:  # noqa: BLE001 - the bulkhead: the policy that is kept still holds
            _log.exception("MTA-STS policy of %s could not be renewed", domain)
        finally:
            seats.release()
            self._scheduled.discard(domain)
            if seconds is not None:
                self._schedule(domain, seconds)

    async def _refresh_now(self, domain: str) -> float | None:
        """Fetch a policy anew; return the seconds until the next time, `None` for no more."""
        kept = self._kept(domain)
        if kept is None:
            return None
        # RFC 8461 §10.2: whatever became of the TXT record.
        answer = await self._resolver.txt(f"_mta-sts.{domain}")
        identity = read_record(answer.records) or kept.identity
        fetched = await self._fetches.share(
            (domain, identity), partial(self._fetch_now, domain, identity)
        )
        if isinstance(fetched, StsPolicy):
            return _refresh_after(fetched)
        return min(_RETRY_SECONDS, kept.seconds_left(self._clock()) / 2)

    def _use(self, domain: str, kept: _Kept) -> None:
        """Remember that a policy is in use, and see to it that it is renewed."""
        if len(self._used) < _MAX_DOMAINS:
            self._used.add(domain)
        age = kept.policy.max_age - kept.seconds_left(self._clock())
        self._schedule(domain, _refresh_after(kept.policy) - age)

    def _schedule(self, domain: str, seconds: float) -> None:
        if domain in self._scheduled or len(self._scheduled) >= _MAX_DOMAINS:
            return
        self._scheduled.add(domain)
        heapq.heappush(self._due, (trio.current_time() + max(seconds, LEAST_SECONDS), domain))
        self._changed.set()


def _refresh_after(policy: StsPolicy) -> float:
    return min(REFRESH_SECONDS, policy.max_age / 2)


def _to_octets(kept: _Kept) -> bytes:
    policy = "\n".join(kept.policy.lines)
    return json.dumps([kept.identity, kept.fetched_at, policy]).encode()


def _from_octets(octets: bytes) -> _Kept | None:
    """Read a hint; what is not one is as good as lost."""
    try:
        identity, fetched_at, policy = json.loads(octets)
        return _Kept(str(identity), float(fetched_at), read_policy(policy.encode()))
    except (ValueError, TypeError, AttributeError, StsPolicyError):
        return None
