"""One connection of a pool to one host: from its hello to its QUIT, as long as there is mail for it.

The next message is taken before QUIT would be said, and while none waits the connection is kept
idle for a while.  A connection that dies idle costs nobody an attempt.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from engine.delivery.carrier import Carrier
from engine.delivery.envelope import refuse_without_tls
from engine.delivery.host_session import HostSession, Retry, tls_verdict
from engine.delivery.session import run_session
from engine.net.errors import ConnectFailed
from engine.net.lazy_stream import LazyStream
from engine.net.own_address import own_address_towards
from engine.net.tls_errors import TlsFailed
from engine.outcome import Cause, Peer
from engine.report import events
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from engine.delivery.approach import Approach
    from engine.delivery.attempt import Attempt
    from engine.delivery.pool import SitePool
    from engine.delivery.session import Session
    from engine.delivery.task import DeliveryTask
    from engine.delivery.verdict import Verdict
    from engine.net.connector import Connection
    from engine.net.stream import ByteStream


class Visit:
    """A connection to a candidate, and the pool it works for; a `Source` of attempts."""

    def __init__(
        self,
        pool: SitePool,
        task: DeliveryTask,
        way: Approach,
        connection: Connection | None = None,
    ) -> None:
        self._pool = pool
        self._task = task
        self._way = way
        self._connection = connection
        self._is_up = False
        self._session: Session | None = None
        self._host: HostSession | None = None

    def connects_by_itself(self, attempt: Attempt) -> bool:
        """Whether the connection is made when there is something to say over it.

        So it is where we speak first: TLS from the first octet, whose hello may ride in the SYN,
        and early pipelining.
        """
        settings = self._way.path.settings
        if settings.protocol == "smtps":
            return settings.fast_open == "commands"
        if not self._may_speak_first(attempt):
            return False
        memory = self._pool.memory_of(self._way.candidate)
        return memory.hello(has_tls=False) is not None

    def _may_speak_first(self, attempt: Attempt | None) -> bool:
        """Whether the host may be spoken to before it has greeted."""
        settings = self._way.path.settings
        return (
            settings.early_pipelining
            and settings.pipelining
            and settings.esmtp
            and settings.protocol != "lmtp"
            and attempt is not None
            and not (attempt.lockstep or attempt.in_turn or attempt.message.require_tls)
            and (settings.helo_name is not None or not settings.proxy)
        )

    async def run(self) -> None:
        """Say hello, carry the task's attempt and what comes after it, say QUIT.

        On return the attempt of the task is settled, given back to the pool, or still in the
        task's hands with this host's verdicts in it.

        Raises:
            ConnectFailed: The connection was to be made here and could not be; the task's attempt
                is in its hands as before.
        """
        pool, shared, way = self._pool, self._pool.shared, self._way
        transcript = shared.make_transcript() if shared.make_transcript else None
        started = trio.current_time()
        is_secured = way.path.settings.protocol == "smtps"
        stream = self._connection.stream if self._connection and not is_secured else self._dial
        async with run_session(
            stream,
            way.path.timeouts,
            scribe=transcript,
            early=self._may_speak_first(self._task.attempt),
            grace=shared.grace,
        ) as session:
            self._session = session
            peer = replace(way.peer, local_address=self._own_address())
            self._host = host = HostSession(
                session,
                peer,
                way.path,
                shared,
                way.demand,
                site=pool.site,
                transcript=transcript,
            )
            carrier = Carrier(host, self)
            if self._connection is not None:
                self._arrived(self._connection)
            try:
                await self._converse(host, carrier)
            except ConnectFailed:
                carrier.withdraw()
                raise
            except TlsFailed as failure:
                carrier.withdraw()
                host.note_tls_failure(failure)
                self._refused(host, tls_verdict(failure))
            except BaseException as error:
                is_ours = isinstance(error, Exception)
                carrier.break_off(Cause.INTERNAL if is_ours else Cause.CANCELLED)
                raise
            finally:
                self._task.stage = session.stage
                if self._is_up:
                    self._gone(host, started)

    async def _converse(self, host: HostSession, carrier: Carrier) -> None:
        task, pool = self._task, self._pool
        attempt = task.attempt
        has_broken_tls = (
            host.settings.tls_fallback_to_clear
            and (attempt is None or not attempt.message.require_tls)
            and host.memory.has_broken_tls
        )
        refusal = await host.greet(
            lockstep=attempt is not None and attempt.lockstep,
            in_turn=not self._may_speak_first(attempt),
            in_clear=has_broken_tls or (attempt is not None and attempt.in_clear),
        )
        if refusal is None:
            pool.arrived(task)
            pool.opened(self._way.line)
            try:
                await carrier.run()
            finally:
                pool.closed(self._way.line, host.dismissal)
        elif not self._is_retried(host):
            pool.arrived(task)
            self._refused(host, refusal)
        await host.quit()

    def _is_retried(self, host: HostSession) -> bool:
        """See whether the host is asked once more, in another way."""
        attempt = self._task.attempt
        if attempt is None or host.retry is None:
            return False
        if host.retry is Retry.IN_TURN and not attempt.in_turn:
            attempt.in_turn = True
        elif host.retry is Retry.IN_CLEAR and not attempt.in_clear:
            attempt.in_clear = True
        else:
            return False
        attempt.redo = self._way.candidate
        host.session.abandon()
        return True

    def _refused(self, host: HostSession, refusal: Verdict) -> None:
        task, candidate = self._task, self._way.candidate
        if task.attempt is not None and task.attempt.is_back:
            # A moment ago it took us; whatever it says now, it takes mail at other times.
            refusal = refusal.for_now
        host.publish(
            events.HostDeferred,
            self._pool.site,
            refusal.stage,
            refusal.cause,
            refusal.text,
        )
        is_turned_away = refusal.stage is Stage.GREETING and refusal.cause is not Cause.EVENT
        if not (is_turned_away and self._pool.spare(candidate, task, refusal.cause)):
            self._pool.rest_after(candidate, refusal)
        if (attempt := task.attempt) is not None:
            if refusal.stage in (Stage.STARTTLS, Stage.TLS) and attempt.walk is not None:
                attempt.walk.blame_name(candidate)
            host.report_all(attempt, refuse_without_tls(attempt.message, refusal, host.peer))

    # -- the connection ---------------------------------------------------------------------

    async def _dial(self, words: bytes) -> ByteStream:
        """Connect, and say these words first.

        Raises:
            ConnectFailed: There is no connection.
            TlsFailed: There is no TLS, where that comes first.
        """
        way, host = self._way, self._host
        assert host is not None
        if way.path.settings.protocol != "smtps":
            return (await self._connect(words)).stream
        if self._connection is None:
            stream = await host.shake_hands(LazyStream(self._connect))
        else:
            stream = await host.shake_hands(self._connection.stream)
        if words:
            with suppress(trio.BrokenResourceError):  # what the host said before can be read
                await stream.send_all(words)
        return stream

    async def _connect(self, words: bytes) -> Connection:
        way = self._way
        connector = self._pool.shared.connector
        connection = await connector.connect(way.candidate, way.path.options, early_data=words)
        self._arrived(connection)
        return connection

    def _own_address(self) -> str | None:
        """Return our address as the host will see it, as far as that can be told beforehand."""
        peer, options = self._way.peer, self._way.path.options
        if self._connection is not None or peer.address is None or options.proxies:
            return None
        return own_address_towards(peer, options)

    def _arrived(self, connection: Connection) -> None:
        """Account for a connection that stands."""
        shared, facts = self._pool.shared, connection.facts
        host = self._host
        assert host is not None
        self._is_up = True
        shared.recorder.connections_opened += 1
        number = shared.number_connection()
        peer = Peer(facts.host, facts.address, facts.port, facts.local_address, number)
        host.connected(connection, peer)
        host.publish(
            events.ConnectionOpened,
            self._pool.site,
            facts.connect_seconds,
            facts.interface,
            facts.proxy,
            facts.fast_open,
            facts.round_trip_seconds,
        )

    def _gone(self, host: HostSession, started: float) -> None:
        """Account for a connection that is gone."""
        self._pool.shared.recorder.connections_closed += 1
        loss = host.session.loss
        reason = host.ending or str(loss.cause if loss else "cancelled")
        seconds = trio.current_time() - started
        host.publish(events.ConnectionClosed, self._pool.site, reason, host.transactions, seconds)

    # -- a source of attempts ---------------------------------------------------------------

    def take(self) -> Attempt | None:
        """Return the attempt that was brought along, then those that wait in the pool."""
        task = self._task
        attempt, task.attempt = task.attempt, None
        if attempt is None:
            attempt = self._pool.take(self._way.line)
            if attempt is None:
                return None
        task.in_hand[attempt] = None
        return attempt

    async def wait(self, room: int) -> Attempt | None:
        """Keep the connection idle until the pool has work for it."""
        assert self._session is not None
        seconds = self._way.path.settings.idle_timeout
        attempt = await self._pool.wait_for_work(self._session, self._way.line, room, seconds)
        if attempt is not None:
            self._task.in_hand[attempt] = None
        return attempt

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come, so that the connection ends with what is in flight."""
        return self._pool.is_over and self._task.attempt is None

    def withdraw(self, attempt: Attempt) -> None:
        """Take an attempt back that was begun and of which nothing was said."""
        del self._task.in_hand[attempt]
        attempt.jobs = 0
        if self._task.attempt is None:
            self._task.attempt = attempt
        else:
            attempt.redo = self._way.candidate
            self._pool.put_back(attempt, self._way.candidate)

    def done(self, attempt: Attempt) -> None:
        """Give what is not settled back to the pool."""
        del self._task.in_hand[attempt]
        line = self._way.line
        if not line.has_served and self._session is not None:
            line.has_served = self._session.is_usable
        if attempt.waiting:
            if attempt.returns and attempt.unasked:
                attempt.redo = self._way.candidate
                attempt.is_back = self._host is not None and self._host.is_confirmed
            attempt.returns = False
            attempt.setback = None
            self._pool.put_back(attempt, self._way.candidate)
