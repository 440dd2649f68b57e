"""One connection of a pool to one host: from its hello to its QUIT, as long as there is mail for it.

The next message is taken before QUIT would be said, and while none waits the connection is kept
idle for a while.  A connection that dies idle costs nobody an attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.delivery.host_session import HostSession
from engine.delivery.session import run_session
from engine.outcome import Peer
from engine.report import events

if TYPE_CHECKING:
    from engine.delivery.attempt import Attempt
    from engine.delivery.pool import SitePool
    from engine.delivery.shared import Path
    from engine.delivery.task import DeliveryTask
    from engine.net.connector import Connection
    from engine.route import Candidate


class Visit:
    """A connection to a candidate, and the pool it works for."""

    def __init__(
        self, pool: SitePool, candidate: Candidate, path: Path, connection: Connection
    ) -> None:
        self._pool = pool
        self._candidate = candidate
        self._path = path
        self._connection = connection

    async def run(self, task: DeliveryTask) -> None:
        """Say hello, carry the task's attempt and what comes after it, say QUIT.

        On return the attempt of the task is settled, given back to the pool, or still in the
        task's hands with this host's verdicts in it.
        """
        pool, facts, shared = self._pool, self._connection.facts, self._pool.shared
        number = shared.number_connection()
        peer = Peer(facts.host, facts.address, facts.port, facts.local_address, number)
        transcript = shared.make_transcript() if shared.make_transcript else None
        started = trio.current_time()
        async with run_session(
            self._connection.stream, self._path.timeouts, scribe=transcript
        ) as session:
            host = HostSession(session, facts, peer, self._path.settings, shared, transcript)
            host.publish(events.ConnectionOpened, pool.site, facts.connect_seconds)
            pool.joined(session)
            try:
                await self._converse(host, task)
            finally:
                task.stage = session.stage
                pool.left(session)
                reason = host.ending or str(session.loss.cause if session.loss else "cancelled")
                seconds = trio.current_time() - started
                host.publish(events.ConnectionClosed, pool.site, reason, host.transactions, seconds)

    async def _converse(self, host: HostSession, task: DeliveryTask) -> None:
        refusal = await host.greet(lockstep=task.attempt is not None and task.attempt.lockstep)
        self._pool.arrived(task)
        if refusal is None:
            keywords = tuple(host.offered.keywords)
            host.publish(events.SessionReady, self._pool.site, keywords, host.hello_seconds)
            await self._carry(host, task)
        else:
            shared = self._pool.shared
            if shared.events.is_watched:
                stage, cause, text = refusal.stage, refusal.cause, refusal.text
                shared.events.publish(
                    events.HostDeferred(
                        shared.clock(), self._pool.site, host.peer.text, stage, cause, text
                    )
                )
            if task.attempt is not None:
                host.report_all(task.attempt, refusal)
        await host.quit()

    async def _carry(self, host: HostSession, task: DeliveryTask) -> None:
        """Deliver what the task brought, then the next attempt, for as long as there is one."""
        session = host.session
        while True:
            if task.attempt is None and not await self._find_work(host, task):
                return
            attempt = task.attempt
            assert attempt is not None
            if not (session.is_ready or await host.make_ready()):
                # A refused RSET gives the connection up, not the message.
                task.attempt = None
                self._hand_back(attempt, is_worth_another=True)
                return
            is_worth_another = await host.deliver(attempt)
            task.attempt = None
            self._hand_back(attempt, is_worth_another=is_worth_another)
            if not session.is_usable or host.is_used_up:
                return

    async def _find_work(self, host: HostSession, task: DeliveryTask) -> bool:
        """Give the task its next attempt, if there is one or comes one in time."""
        pool = self._pool
        attempt = pool.take(self._candidate)
        if attempt is None and (host.did_last_succeed or not host.transactions):
            # After a refusal there is no reason to keep the server waiting.
            seconds = self._path.settings.idle_timeout
            attempt = await pool.wait_for_work(host.session, self._candidate, seconds)
        task.attempt = attempt
        if attempt is None:
            return False
        attempt.arrive()
        return True

    def _hand_back(self, attempt: Attempt, *, is_worth_another: bool) -> None:
        if not attempt.is_done:
            if is_worth_another:
                attempt.redo = self._candidate
            self._pool.put_back(attempt, self._candidate)
