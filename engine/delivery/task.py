"""A per-host delivery task: walks from host to host for what its pool gives it.

It holds one attempt at a time and opens one connection after another.  Whether a host may be used is
`engine.delivery.approach`'s to find out; what happens on a connection is `engine.delivery.visit`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.delivery.approach import Approach, Barred, approach, unconnected
from engine.delivery.attempt import Carriage
from engine.delivery.verdict import Verdict, ours
from engine.delivery.visit import Visit
from engine.net.errors import ConnectFailed
from engine.net.racing import race
from engine.outcome import Cause, Peer, Scope, Status
from engine.report.events import ConnectionFailed
from engine.route import Candidate, HostFailure
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.delivery.attempt import Attempt
    from engine.delivery.pool import SitePool
    from engine.delivery.walk import Walk
    from engine.net.connector import Connection


class DeliveryTask:
    """One task of a pool.

    Attributes:
        attempt: What it is on its way with.
        in_hand: What the connection it holds is working on, in the order it was taken.
        heading: The host it is on its way to.
        scope: Around all it does.
        stage: Where it stands with that, for who has to settle it.
    """

    def __init__(self, pool: SitePool) -> None:
        self.attempt: Attempt | None = None
        self.in_hand: dict[Attempt, None] = {}
        self.heading: Candidate | None = None
        self.scope = trio.CancelScope()
        self.stage = Stage.CONNECT
        self._pool = pool
        self._shared = pool.shared

    def end(self, cause: Cause, text: str) -> None:
        """Settle what the task still holds, when it ends otherwise than by having done its work."""
        attempts = [*self.in_hand, self.attempt] if self.attempt else [*self.in_hand]
        self.in_hand.clear()
        self.attempt = None
        for attempt in attempts:
            attempt.end(ours(Status.DEFERRED, cause, self.stage, text), trio.current_time())

    async def run(self, attempt: Attempt) -> None:
        """Carry an attempt, and after it whatever needs a connection of its own."""
        self.attempt = attempt
        while self.attempt is not None:
            self._pool.departed(self)
            await self._try_next_host(self.attempt)
            if self._is_free():
                self._pool.arrived(self)
                self.attempt = self._pool.take_any()

    def _is_free(self) -> bool:
        """Whether there is nothing left to do for the attempt in here, if it is still in here."""
        return self.attempt is None or self.attempt.is_done

    async def _try_next_host(self, attempt: Attempt) -> None:
        self.stage = Stage.CONNECT
        pool, now = self._pool, trio.current_time()
        walk, redo = pool.walk_of(attempt), attempt.redo
        attempt.redo = None
        step = redo or walk.peek()
        if step is None:
            attempt.give_up(now)
            return
        if redo is not None:
            walk.strike(redo)
        else:
            walk.take(step)
            attempt.arrive()
        if isinstance(step, HostFailure):
            attempt.report_all(_unresolved(step), now, Carriage(Peer(step.host)))
            return
        try:
            way = await approach(pool, step, attempt)
        except Barred as barred:
            self._give_up(step, barred, now)
            return
        self.heading = step
        async with pool.only_one(way):
            await self._visit(way, walk, attempt, may_race=redo is None)

    async def _visit(self, way: Approach, walk: Walk, attempt: Attempt, *, may_race: bool) -> None:
        """Go to a host, or to one as good that answers sooner."""
        visit = Visit(self._pool, self, way)
        if not visit.connects_by_itself(attempt):
            found = await self._connect(way, walk, attempt, may_race=may_race)
            if found is None:
                return
            visit = Visit(self._pool, self, *found)
        started = trio.current_time()
        try:
            await visit.run()
        except ConnectFailed as failure:
            self._give_up(way.candidate, failure, started)

    # -- connecting -------------------------------------------------------------------------

    async def _connect(
        self, way: Approach, walk: Walk, attempt: Attempt, *, may_race: bool
    ) -> tuple[Approach, Connection] | None:
        """Connect to a host; when it does not answer at once, to others of its preference, too."""
        connector, started = self._shared.connector, trio.current_time()
        ways = {way.candidate: way}

        async def connect(candidate: Candidate) -> Connection:
            if candidate not in ways:
                ways[candidate] = await approach(self._pool, candidate, attempt)
            return await connector.connect(candidate, ways[candidate].path.options)

        if not (may_race and walk.has_equals(way.candidate)):
            try:
                return way, await connect(way.candidate)
            except ConnectFailed as failure:
                self._give_up(way.candidate, failure, started)
                return None
        begun: list[Candidate] = []
        found = await race(self._rivals(way, walk, attempt, begun), connect, seats=self._pool.seats)
        for failed in found.failures:
            begun.remove(failed.candidate)
            self._give_up(failed.candidate, failed.failure, started)
            if self.attempt is not None:
                self.attempt.arrive()  # at the next one
        for candidate in begun:
            if candidate is not found.winner:
                walk.give_back(candidate)  # it might have answered, too
        if found.winner is None or found.connection is None:
            return None
        return ways[found.winner], found.connection

    def _rivals(
        self, way: Approach, walk: Walk, attempt: Attempt, begun: list[Candidate]
    ) -> Iterator[Candidate]:
        """Yield who is to be connected to, one behind the other; families take turns."""
        candidate: Candidate | None = way.candidate
        while candidate is not None:
            begun.append(candidate)
            yield candidate
            if self.attempt is not attempt:
                return  # somebody else carries it now
            candidate = walk.rival_of(candidate)
            if candidate is not None:
                walk.take(candidate)

    def _give_up(self, candidate: Candidate, failure: ConnectFailed, started: float) -> None:
        """Account for a host that could not be connected to, or must not be."""
        pool, shared, verdict = self._pool, self._shared, unconnected(failure)
        options = pool.path_to(candidate).options
        peer = pool.peer_of(candidate)
        if not isinstance(failure, Barred):
            shared.recorder.connections_failed += 1
            if failure.scope is Scope.HOST and not pool.spare(candidate, self, failure.cause):
                pool.rest(candidate, verdict)
            if ConnectionFailed in shared.events.wanted:
                shared.events.publish(
                    ConnectionFailed(
                        shared.clock(),
                        pool.site,
                        peer.host,
                        peer.address,
                        peer.port,
                        failure.stage,
                        failure.cause,
                        failure.text,
                        ", ".join(options.interface) or None,
                        ", ".join(proxy.name for proxy in options.proxies) or None,
                        trio.current_time() - started,
                    )
                )
        if (attempt := self.attempt) is not None:
            if verdict.stage is Stage.POLICY and attempt.walk is not None:
                attempt.walk.blame_name(candidate)
            attempt.report_all(verdict, trio.current_time(), Carriage(peer))


_NO_ADDRESS = EnhancedStatusCode(5, 4, 4)
_DNS_TROUBLE = EnhancedStatusCode(4, 4, 3)


def _unresolved(failure: HostFailure) -> Verdict:
    if failure.is_temporary:
        status, enhanced = Status.DEFERRED, _DNS_TROUBLE
    else:
        status, enhanced = Status.FAILED, _NO_ADDRESS
    return Verdict(
        status,
        Stage.ROUTE,
        Cause.DNS,
        failure.text,
        Scope.HOST,
        enhanced=enhanced,
        is_here_only=not failure.is_temporary,
    )
