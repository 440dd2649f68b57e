"""One connection to one host, from its hello to its QUIT: as many mail transactions as there is mail.

The next message is taken before QUIT would be said, and while none waits the connection is kept
idle for a while.  A connection that dies idle costs nobody an attempt.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from engine.delivery.conversation import say_quit, set_up
from engine.delivery.envelope import build, refuse
from engine.delivery.session import SessionLost, run_session
from engine.delivery.transfer import Transfer
from engine.delivery.verdict import Trouble, judge
from engine.outcome import Cause, Features, Peer, Status, Timings
from engine.report import events
from engine.smtp.command import RSET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.delivery.attempt import Attempt
    from engine.delivery.envelope import Envelope
    from engine.delivery.pool import SitePool
    from engine.delivery.session import Session
    from engine.delivery.shared import Path
    from engine.delivery.task import DeliveryTask
    from engine.delivery.verdict import Verdict
    from engine.net.connector import Connection
    from engine.route import Candidate
    from engine.smtp.capabilities import Capabilities


class Visit:
    """A connection and what is known about it."""

    def __init__(
        self, pool: SitePool, candidate: Candidate, path: Path, connection: Connection
    ) -> None:
        facts = connection.facts
        self._pool = pool
        self._shared = pool.shared
        self._candidate = candidate
        self._path = path
        self._connection = connection
        self._peer = Peer(
            facts.host,
            facts.address,
            facts.port,
            facts.local_address,
            pool.shared.number_connection(),
        )
        self._features = Features(fast_open=facts.fast_open, proxy=facts.proxy)
        self._hello_seconds = 0.0
        self._transactions = 0
        self._did_last_succeed = False
        make_transcript = pool.shared.make_transcript
        self._transcript = make_transcript() if make_transcript else None
        self._mark = 0
        self._is_set_up = False
        self._started = 0.0

    async def run(self, task: DeliveryTask) -> None:
        """Say hello, carry the task's attempt and what comes after it, say QUIT.

        On return the attempt of the task is settled, given back to the pool, or still in the
        task's hands with this host's verdicts in it.
        """
        started = trio.current_time()
        connect_seconds = self._connection.facts.connect_seconds
        self._publish(events.ConnectionOpened, self._pool.site, connect_seconds)
        async with run_session(
            self._connection.stream, self._path.timeouts, scribe=self._transcript
        ) as session:
            self._pool.joined(session)
            try:
                await self._converse(session, task)
            finally:
                self._pool.left(session)
                reason = str(session.loss.cause) if session.loss else "done"
                seconds = trio.current_time() - started
                self._publish(
                    events.ConnectionClosed, self._pool.site, reason, self._transactions, seconds
                )

    async def _converse(self, session: Session, task: DeliveryTask) -> None:
        started = trio.current_time()
        settings = self._path.settings
        offered = await set_up(session, name=self._helo_name(), esmtp=settings.esmtp)
        self._hello_seconds = trio.current_time() - started
        if isinstance(offered, Trouble):
            verdict = judge(offered, self._peer)
            if self._shared.events.is_watched:
                self._shared.events.publish(
                    events.HostDeferred(
                        self._shared.clock(),
                        self._pool.site,
                        str(self._peer),
                        verdict.stage,
                        verdict.cause,
                        verdict.text,
                    )
                )
            if task.attempt is not None:
                self._report_all(task.attempt, verdict)
        else:
            await self._carry(session, task, offered)
        await say_quit(session)

    def _helo_name(self) -> str:
        """Return our name; without one the address the peer sees (RFC 5321 §4.1.4)."""
        name, address = self._path.settings.helo_name, self._peer.local_address
        if name is not None:
            return name
        return f"[IPv6:{address}]" if address and ":" in address else f"[{address}]"

    # -- message after message --------------------------------------------------------------

    async def _carry(self, session: Session, task: DeliveryTask, offered: Capabilities) -> None:
        settings, pool = self._path.settings, self._pool
        attempt = task.attempt
        assert attempt is not None
        is_pipelined = settings.pipelining and offered.pipelining and not attempt.lockstep
        features = self._features
        self._features = Features(is_pipelined, fast_open=features.fast_open, proxy=features.proxy)
        self._is_set_up = True
        if self._transcript is not None:
            self._mark = self._transcript.mark()
        keywords = tuple(offered.keywords)
        self._publish(events.SessionReady, pool.site, keywords, self._hello_seconds)
        while attempt is not None:
            await self._transact(session, attempt, offered)
            task.attempt = None
            if not attempt.is_done:
                pool.put_back(attempt, self._candidate)
            if not session.is_usable or self._is_used_up(settings.max_messages_per_connection):
                return
            attempt = task.attempt = await self._next_attempt(session)
            if attempt is not None and not await self._is_reset(session):
                # A refused RSET gives the connection up, not the message.
                attempt.redo = self._candidate
                task.attempt = None
                pool.put_back(attempt, self._candidate)
                return

    async def _next_attempt(self, session: Session) -> Attempt | None:
        attempt = self._pool.take(self._candidate)
        if attempt is None and self._did_last_succeed:
            # What was refused leaves no reason to keep the server waiting.
            idle_timeout = self._path.settings.idle_timeout
            attempt = await self._pool.wait_for_work(session, self._candidate, idle_timeout)
        if attempt is not None:
            attempt.arrive()
        return attempt

    def _is_used_up(self, limit: int) -> bool:
        return limit > 0 and self._transactions >= limit

    async def _is_reset(self, session: Session) -> bool:
        """Make the session ready for MAIL; RSET only where a transaction is open."""
        if not session.is_transaction_open:
            return session.is_ready
        with suppress(SessionLost):
            await session.exchange(RSET)
        return session.is_ready

    # -- one message ------------------------------------------------------------------------

    async def _transact(self, session: Session, attempt: Attempt, offered: Capabilities) -> None:
        """Run transactions until this host has decided on everybody, or cannot any more."""
        settings = self._path.settings
        problem = refuse(attempt.message, offered, self._peer)
        if problem is not None:
            self._report_all(attempt, problem)
            return
        limit = settings.max_recipients_per_transaction
        while unasked := attempt.unasked:
            is_used_up = self._is_used_up(settings.max_messages_per_connection)
            if is_used_up or not await self._is_reset(session):
                attempt.redo = self._candidate
                return
            group = unasked[:limit] if limit else list(unasked)
            recipients = [attempt.recipients[index] for index in group]
            envelope = build(attempt.message, recipients, offered, settings.size_addition)
            transfer = await self._transfer(session, attempt, envelope)
            self._weigh(session, attempt, group, transfer)
            if not session.is_usable or attempt.redo is not None:
                return

    async def _transfer(self, session: Session, attempt: Attempt, envelope: Envelope) -> Transfer:
        self._transactions += 1
        self._shared.recorder.transaction_started()
        if self._shared.events.is_watched:
            count = len(envelope.rcpts)
            self._publish(events.TransactionStarted, attempt.message.id, count, self._transactions)
        transfer = Transfer(
            session,
            envelope,
            attempt.message.content,
            self._peer,
            pipelining=self._features.pipelining,
        )
        self._started = trio.current_time()
        octets_before = session.content_octets
        await transfer.run()
        self._shared.recorder.content_sent(session.content_octets - octets_before)
        return transfer

    def _weigh(
        self, session: Session, attempt: Attempt, group: Sequence[int], transfer: Transfer
    ) -> None:
        """Report what became of a group, unless it deserves another connection to this host."""
        if self._was_stale(session, transfer) and not attempt.had_stale_connection:
            # The connection had died before; this message just found out.
            attempt.had_stale_connection = True
            attempt.redo = self._candidate
            return
        again = {group[place] for place in transfer.again} if session.is_usable else set[int]()
        if transfer.doubtful and not attempt.lockstep:
            attempt.lockstep = True
            attempt.redo = self._candidate
            again |= {group[place] for place in transfer.doubtful}
        self._report(attempt, group, transfer, again)
        if not session.is_usable and attempt.redo is None and attempt.unasked:
            self._leave_the_rest(attempt, transfer)

    def _was_stale(self, session: Session, transfer: Transfer) -> bool:
        """Whether a reused connection turned out to be gone before anything was answered."""
        return (
            self._transactions > 1
            and session.loss is not None
            and session.loss.cause is Cause.CLOSED
            and not transfer.was_heard
            and not transfer.is_content_written
        )

    def _leave_the_rest(self, attempt: Attempt, transfer: Transfer) -> None:
        """Decide what becomes of recipients whom a lost connection left unasked."""
        verdicts = [verdict for verdict in transfer.verdicts if verdict is not None]
        if all(verdict.may_go_on for verdict in verdicts):
            # Nothing was achieved here; another connection would hardly achieve more.
            self._report_all(attempt, verdicts[-1])
        else:
            attempt.redo = self._candidate

    # -- reporting --------------------------------------------------------------------------

    def _report(
        self, attempt: Attempt, group: Sequence[int], transfer: Transfer, again: set[int]
    ) -> None:
        """Hand everybody's verdict on, but for those who are asked again."""
        now = trio.current_time()
        timings = self._timings(now)
        transcript = self._take_transcript()
        self._did_last_succeed = False
        for index, verdict in zip(group, transfer.verdicts, strict=True):
            if verdict is None or index in again:
                continue
            if verdict.status is Status.DELIVERED:
                self._did_last_succeed = True
            attempt.report(
                index,
                verdict,
                now,
                peer=self._peer,
                features=self._features,
                transaction=self._transactions,
                timings=timings,
                transcript=transcript,
            )

    def _report_all(self, attempt: Attempt, verdict: Verdict) -> None:
        """Give everybody this host has not decided on the same verdict."""
        now = trio.current_time()
        timings, transcript = self._timings(now), self._take_transcript()
        self._did_last_succeed = False
        for index in list(attempt.unasked):
            attempt.report(
                index,
                verdict,
                now,
                peer=self._peer,
                features=self._features,
                transaction=self._transactions or None,
                timings=timings,
                transcript=transcript,
            )

    def _timings(self, now: float) -> Timings:
        """Return the times of the last transaction; the first one also bears the set-up."""
        transaction = now - self._started if self._transactions else 0.0
        if self._transactions > 1:
            return Timings(transaction=transaction)
        connect = self._connection.facts.connect_seconds
        return Timings(connect=connect, hello=self._hello_seconds, transaction=transaction)

    def _take_transcript(self) -> tuple[str, ...] | None:
        if self._transcript is None:
            return None
        lines = self._transcript.since(self._mark)
        if self._is_set_up:
            self._mark = self._transcript.mark()
        return lines

    def _publish(self, event: Callable[..., events.Event], *facts: object) -> None:
        """Publish an event of this connection; only when somebody listens."""
        if self._shared.events.is_watched:
            self._shared.events.publish(event(self._shared.clock(), self._peer, *facts))
