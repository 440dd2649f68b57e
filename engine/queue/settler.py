"""Settling in batches: from decisions on recipients to the store, and to who is told before or after.

Used by the scheduler, which adds to it and runs it.  What the store does not take is kept and tried
again; it is bounded, because nothing is leased meanwhile.  Not here: what becomes of whom
(`engine.queue.decision`).
"""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from engine.queue.decision import Settled
from engine.queue.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from engine.queue.store import Store
    from engine.queue.values import Settlement, SiteState

#: Recipients settled at a time.
_BATCH: Final = 1000
#: While the store fails, the next try is so many seconds away, at first and at most.
FIRST_PAUSE: Final = 0.5
LAST_PAUSE: Final = 30.0

_log = logging.getLogger("engine.queue")


class Settler:
    """Settles what is added, in that order.

    Attributes:
        failure: What kept the last try from succeeding, `None` if nothing did.
        settled: How many recipients were settled.
        lost: Of these, those the store did not want to hear of: their lease was lost.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float],
        on_settled: Callable[[Sequence[Settled]], Awaitable[None]] | None,
        on_batch: Callable[[Sequence[Settlement]], None],
        on_kept: Callable[[Sequence[Settled]], None] | None = None,
        patience: float,
    ) -> None:
        """Make a settler.

        Args:
            store: Where recipients are settled.
            clock: Wall clock, seconds since the epoch.
            on_settled: Told before the store is; what it raises of `OSError` is tried again.
            on_batch: Told behind the store what was settled; must not wait.
            on_kept: Told behind the store of the same as `on_settled` is before it, once; must not
                wait.
            patience: How long one batch may take, in seconds, when everything is cancelled.
        """
        self.failure: StoreError | OSError | None = None
        self.settled = 0
        self.lost = 0
        self._store = store
        self._clock = clock
        self._on_settled = on_settled
        self._on_batch = on_batch
        self._on_kept = on_kept
        self._patience = patience
        self._waiting: deque[Settled | Settlement] = deque()
        # So many at the head of those have been told of.
        self._told = 0
        self._sites: dict[str, SiteState] = {}
        self._routes: dict[str, str] = {}
        self._added = trio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, settled: Settled | Settlement) -> None:
        """Have a recipient settled."""
        self._waiting.append(settled)
        self._added.set()

    def note_site(self, state: SiteState) -> None:
        """Have the state of a site written down along with the next batch."""
        self._sites[state.name] = state

    def note_route(self, domain: str, site: str) -> None:
        """Have the site of a domain written down along with the next batch."""
        self._routes[domain] = site

    def has_news_of(self, site: str) -> bool:
        """Whether the state of a site waits to be written down."""
        return site in self._sites

    async def run(self) -> None:
        """Settle whatever is added, until cancelled."""
        pause = 0.0
        while True:
            if not self._waiting:
                self._added = trio.Event()
                await self._added.wait()
            try:
                await self._settle_batch()
            except (StoreError, OSError) as error:
                self.failure = error
                pause = min(max(2 * pause, FIRST_PAUSE), LAST_PAUSE)
                _log.error("outcomes cannot be kept: %s; next try in %.1f s", error, pause)
                await trio.sleep(pause)
            else:
                pause = 0.0

    async def finish(self) -> None:
        """Settle all that waits, however often it takes: whoever calls has a deadline."""
        while self._waiting:
            try:
                await self._settle_batch()
            except (StoreError, OSError) as error:
                _log.error("outcomes cannot be kept: %s", error)
                await trio.sleep(FIRST_PAUSE)
            except Exception:  # noqa: BLE001 - what ended the run must not be hidden by this
                _log.exception("outcomes cannot be kept")
                return

    def end(self) -> None:
        """Tell of those the store has not taken: what became of an attempt is known all the same."""
        self._tell_kept(self._waiting)

    async def _settle_batch(self) -> None:
        """Settle some of what waits; what is not settled in the end still waits."""
        batch = list(islice(self._waiting, _BATCH))
        settlements = [each.settlement if isinstance(each, Settled) else each for each in batch]
        sites, routes = self._sites, self._routes
        self._sites, self._routes = {}, {}
        # In one piece, so that what was told is not told twice.
        with trio.move_on_after(self._patience, shield=True) as scope:
            try:
                await self._tell(batch)
                ignored = await self._store.settle(
                    settlements, now=self._clock(), sites=tuple(sites.values()), routes=routes
                )
            except BaseException:
                self._sites = {**sites, **self._sites}
                self._routes = {**routes, **self._routes}
                raise
            for _ in batch:
                self._waiting.popleft()
            self._told = 0
            self.settled += len(batch)
            self.lost += len(ignored)
            self.failure = None
            self._tell_kept(batch)
            self._on_batch(settlements)
        if scope.cancelled_caught:
            is_told = self._told == len(batch)
            what = "nothing was settled" if is_told else "nobody has taken them"
            raise StoreError(f"{what} within {self._patience:g} s")
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _tell(self, batch: Sequence[Settled | Settlement]) -> None:
        """Tell of those in a batch that were not told of when it was tried before."""
        news = [each for each in batch[self._told :] if isinstance(each, Settled)]
        if self._on_settled is not None and news:
            await self._on_settled(news)
        self._told = len(batch)

    def _tell_kept(self, batch: Iterable[Settled | Settlement]) -> None:
        if self._on_kept is not None:
            news = [each for each in batch if isinstance(each, Settled)]
            if news:
                self._on_kept(news)
