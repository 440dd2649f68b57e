"""A per-host delivery task: walks from host to host for what its pool gives it.

It holds one attempt at a time and opens one connection after another.  What happens on a connection
is `engine.delivery.visit`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.delivery.attempt import Carriage
from engine.delivery.verdict import Verdict, ours
from engine.delivery.visit import Visit
from engine.net.errors import ConnectFailed
from engine.net.port import port_for
from engine.outcome import Cause, Peer, Scope, Status
from engine.report.events import ConnectionFailed
from engine.route import HostFailure
from engine.smtp.reply import show
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from engine.delivery.attempt import Attempt
    from engine.delivery.pool import SitePool
    from engine.delivery.shared import Path
    from engine.route import Candidate


class DeliveryTask:
    """One task of a pool.

    Attributes:
        attempt: What it is on its way with.
        in_hand: What the connection it holds is working on, in the order it was taken.
        scope: Around all it does.
        stage: Where it stands with that, for who has to settle it.
    """

    def __init__(self, pool: SitePool) -> None:
        self.attempt: Attempt | None = None
        self.in_hand: dict[Attempt, None] = {}
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
                self.attempt = self._pool.take_any()

    def _is_free(self) -> bool:
        """Whether there is nothing left to do for the attempt in here, if it is still in here."""
        return self.attempt is None or self.attempt.is_done

    async def _try_next_host(self, attempt: Attempt) -> None:
        self.stage = Stage.CONNECT
        pool, now = self._pool, trio.current_time()
        walk, redo = pool.walk_of(attempt), attempt.redo
        attempt.redo, attempt.is_back = None, redo is not None
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
        path = pool.path_to(step)
        peer = Peer(step.host, step.address, port_for(step, path.options))
        if (verdict := pool.resting(step)) is not None:
            attempt.report_all(verdict, now, Carriage(peer))
            return
        if self._shared.veto is not None:
            reason = self._shared.veto(peer, pool.site)
            if reason is not None:
                attempt.report_all(_vetoed(peer, reason), now, Carriage(peer))
                return
        await self._visit(step, path, peer)

    async def _visit(self, candidate: Candidate, path: Path, peer: Peer) -> None:
        pool, shared = self._pool, self._shared
        try:
            connection = await shared.connector.connect(candidate, path.options)
        except ConnectFailed as failure:
            self._not_connected(candidate, peer, failure)
            return
        shared.recorder.connections_opened += 1
        try:
            await Visit(pool, self, candidate, path, connection).run()
        finally:
            shared.recorder.connections_closed += 1

    def _not_connected(self, candidate: Candidate, peer: Peer, failure: ConnectFailed) -> None:
        pool, shared = self._pool, self._shared
        verdict = _unconnected(failure)
        shared.recorder.connections_failed += 1
        if failure.scope is Scope.HOST:
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
                )
            )
        if self.attempt is not None:
            self.attempt.report_all(verdict, trio.current_time(), Carriage(peer))


_NO_ANSWER = EnhancedStatusCode(4, 4, 1)
_BY_POLICY = EnhancedStatusCode(4, 7, 1)
_OUR_SIDE = EnhancedStatusCode(4, 3, 5)
_NO_ADDRESS = EnhancedStatusCode(5, 4, 4)
_DNS_TROUBLE = EnhancedStatusCode(4, 4, 3)


def _vetoed(peer: Peer, reason: str) -> Verdict:
    text = f"{peer} is not to be connected to now: {show(reason.encode())}"
    return Verdict(Status.DEFERRED, Stage.CONNECT, Cause.EVENT, text, Scope.HOST, None, _BY_POLICY)


def _unconnected(failure: ConnectFailed) -> Verdict:
    enhanced = _NO_ANSWER if failure.scope is Scope.HOST else _OUR_SIDE
    return Verdict(
        Status.DEFERRED, failure.stage, failure.cause, failure.text, failure.scope, None, enhanced
    )


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
