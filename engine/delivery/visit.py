"""One connection of a pool to one host: from its hello to its QUIT, as long as there is mail for it.

The next message is taken before QUIT would be said, and while none waits the connection is kept
idle for a while.  A connection that dies idle costs nobody an attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.delivery.carrier import Carrier
from engine.delivery.host_session import HostSession
from engine.delivery.session import run_session
from engine.outcome import Cause, Peer
from engine.report import events

if TYPE_CHECKING:
    from engine.delivery.attempt import Attempt
    from engine.delivery.pool import SitePool
    from engine.delivery.session import Session
    from engine.delivery.shared import Path
    from engine.delivery.task import DeliveryTask
    from engine.net.connector import Connection
    from engine.route import Candidate


class Visit:
    """A connection to a candidate, and the pool it works for; a `Source` of attempts."""

    def __init__(
        self,
        pool: SitePool,
        task: DeliveryTask,
        candidate: Candidate,
        path: Path,
        connection: Connection,
    ) -> None:
        self._pool = pool
        self._task = task
        self._candidate = candidate
        self._path = path
        self._connection = connection
        self._session: Session | None = None

    async def run(self) -> None:
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
            self._connection.stream,
            self._path.timeouts,
            scribe=transcript,
            grace=shared.grace,
        ) as session:
            self._session = session
            host = HostSession(
                session, self._connection, peer, self._path.settings, shared, transcript
            )
            carrier = Carrier(host, self)
            host.publish(events.ConnectionOpened, pool.site, facts.connect_seconds)
            try:
                await self._converse(host, carrier)
            except BaseException as error:
                is_ours = isinstance(error, Exception)
                carrier.break_off(Cause.INTERNAL if is_ours else Cause.CANCELLED)
                raise
            finally:
                self._task.stage = session.stage
                reason = host.ending or str(session.loss.cause if session.loss else "cancelled")
                seconds = trio.current_time() - started
                host.publish(events.ConnectionClosed, pool.site, reason, host.transactions, seconds)

    async def _converse(self, host: HostSession, carrier: Carrier) -> None:
        task = self._task
        refusal = await host.greet(lockstep=task.attempt is not None and task.attempt.lockstep)
        self._pool.arrived(task)
        if refusal is None:
            keywords = tuple(host.offered.keywords)
            host.publish(events.SessionReady, self._pool.site, keywords, host.hello_seconds)
            await carrier.run()
        else:
            if task.attempt is not None and task.attempt.is_back:
                # A moment ago it took us; whatever it says now, it takes mail at other times.
                refusal = refusal.for_now
            shared = self._pool.shared
            if events.HostDeferred in shared.events.wanted:
                stage, cause, text = refusal.stage, refusal.cause, refusal.text
                shared.events.publish(
                    events.HostDeferred(
                        shared.clock(), self._pool.site, host.peer.text, stage, cause, text
                    )
                )
            if task.attempt is not None:
                host.report_all(task.attempt, refusal)
        await host.quit()

    # -- a source of attempts ---------------------------------------------------------------

    def take(self) -> Attempt | None:
        """Return the attempt that was brought along, then those that wait in the pool."""
        task = self._task
        attempt, task.attempt = task.attempt, None
        if attempt is None:
            attempt = self._pool.take(self._candidate)
            if attempt is None:
                return None
        task.in_hand[attempt] = None
        return attempt

    async def wait(self, room: int) -> Attempt | None:
        """Keep the connection idle until the pool has work for it."""
        assert self._session is not None
        seconds = self._path.settings.idle_timeout
        attempt = await self._pool.wait_for_work(self._session, self._candidate, room, seconds)
        if attempt is not None:
            self._task.in_hand[attempt] = None
        return attempt

    def done(self, attempt: Attempt) -> None:
        """Give what is not settled back to the pool."""
        del self._task.in_hand[attempt]
        if attempt.waiting:
            if attempt.returns and attempt.unasked:
                attempt.redo = self._candidate
            attempt.returns = False
            attempt.setback = None
            self._pool.put_back(attempt, self._candidate)
