"""A session with one host that messages are delivered over, one mail transaction after another.

It says hello once, runs the transactions that an attempt needs here, and reports every verdict to
the attempt.  Where the messages come from, and what happens to those that are not done here, is the
caller's: a pool's visit, or `open_session`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from engine.delivery.conversation import say_quit, set_up
from engine.delivery.envelope import build, refuse
from engine.delivery.transfer import Transfer
from engine.delivery.verdict import Trouble, judge
from engine.outcome import Cause, Features, Peer, Status, Timings
from engine.report import events
from engine.smtp.capabilities import NO_CAPABILITIES
from engine.smtp.command import RSET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from engine.delivery.attempt import Attempt
    from engine.delivery.session import Session
    from engine.delivery.shared import Shared
    from engine.delivery.verdict import Verdict
    from engine.message import Recipient
    from engine.net.facts import ConnectionFacts
    from engine.report.transcript import Transcript
    from engine.settings import Settings


_NOBODY: Final[frozenset[int]] = frozenset()


class HostSession:
    """A session and what is known about the host at its other end.

    Attributes:
        session: The three-party session underneath.
        peer: Both ends, and the connection's number.
        offered: What the host offers; nothing until `greet` has said hello.
        features: What is in force.
        transactions: Mail transactions begun.
        ending: How the session ended, `done` when it ended with our QUIT; empty before.
        did_last_succeed: Whether the last transaction delivered to anybody.
    """

    def __init__(
        self,
        session: Session,
        facts: ConnectionFacts,
        peer: Peer,
        settings: Settings,
        shared: Shared,
        transcript: Transcript | None,
    ) -> None:
        self.session = session
        self.peer = peer
        self.offered = NO_CAPABILITIES
        self.features = Features(fast_open=facts.fast_open, proxy=facts.proxy)
        self.transactions = 0
        self.ending = ""
        self.did_last_succeed = False
        self._settings = settings
        self._recorder = shared.recorder
        self._events = shared.events
        self._clock = shared.clock
        self._transcript = transcript
        self._mark = 0
        self._is_set_up = False
        self._connect_seconds = facts.connect_seconds
        self._hello_seconds = 0.0

    # -- the session ------------------------------------------------------------------------

    async def greet(self, *, lockstep: bool = False) -> Verdict | None:
        """Hear the greeting, say hello, and see what is offered.

        Args:
            lockstep: Use no pipelining, whatever is offered.

        Returns:
            Why the host takes no mail from us, `None` when it does.
        """
        started = trio.current_time()
        settings = self._settings
        offered = await set_up(self.session, name=self._helo_name(), esmtp=settings.esmtp)
        self._hello_seconds = trio.current_time() - started
        if isinstance(offered, Trouble):
            return judge(offered, self.peer)
        self.offered = offered
        features = self.features
        self.features = Features(
            pipelining=settings.pipelining and offered.pipelining and not lockstep,
            fast_open=features.fast_open,
            proxy=features.proxy,
        )
        self._is_set_up = True
        if self._transcript is not None:
            self._mark = self._transcript.mark()
        return None

    @property
    def hello_seconds(self) -> float:
        """How long greeting and hello took."""
        return self._hello_seconds

    @property
    def is_used_up(self) -> bool:
        """Whether the connection has carried as much as the settings allow."""
        limit = self._settings.max_messages_per_connection
        return 0 < limit <= self.transactions

    async def make_ready(self) -> bool:
        """Make the session ready for MAIL, if it can be; RSET only where a transaction is open."""
        session = self.session
        if session.is_transaction_open:
            await session.send(RSET)
            await session.replies(1)
        return session.is_ready

    async def quit(self) -> None:
        """Say QUIT, if anything can still be said; nothing depends on the answer."""
        loss = self.session.loss
        self.ending = "done" if loss is None else str(loss.cause)
        await say_quit(self.session)

    def _helo_name(self) -> str:
        """Return our name; without one the address the peer sees (RFC 5321 §4.1.4)."""
        name, address = self._settings.helo_name, self.peer.local_address
        if name is not None:
            return name
        if address is None:
            return "localhost"  # whoever listens on a Unix socket sees no more
        return f"[IPv6:{address}]" if ":" in address else f"[{address}]"

    # -- one message ------------------------------------------------------------------------

    async def deliver(self, attempt: Attempt) -> bool:
        """Run transactions until this host has decided on everybody it can decide on.

        Returns:
            Whether whom it has not decided on deserves another connection to it, at no cost.
        """
        message, settings, session = attempt.message, self._settings, self.session
        problem = refuse(message, attempt.recipients, self.offered, self.peer)
        if problem is not None:
            self.report_all(attempt, problem)
            return False
        limit = settings.max_recipients_per_transaction
        while unasked := attempt.unasked:
            # A connection that never carried anything owes this message a verdict of its own.
            if self.transactions and not (session.is_ready or await self.make_ready()):
                return True
            if self.is_used_up:
                return True
            group = unasked[:limit] if limit else list(unasked)
            recipients: Sequence[Recipient] = attempt.recipients
            if len(group) < len(recipients):
                recipients = [recipients[index] for index in group]
            envelope = build(message, recipients, self.offered, settings.size_addition)
            transfer = Transfer(
                session, envelope, message.content, self.peer, pipelining=self.features.pipelining
            )
            started = self._begin(message.id, len(group))
            await transfer.run()
            self._recorder.content_sent(transfer.content_octets)
            if self._weigh(attempt, group, transfer, started):
                return True
            if not session.is_usable:
                return False
        return False

    def _begin(self, message: str, recipients: int) -> float:
        self.transactions += 1
        self._recorder.transaction_started()
        if self._events.is_watched:
            self.publish(events.TransactionStarted, message, recipients, self.transactions)
        return trio.current_time()

    def _weigh(
        self, attempt: Attempt, group: Sequence[int], transfer: Transfer, started: float
    ) -> bool:
        """Report what became of a group; return whether the rest deserves another connection."""
        session = self.session
        if session.is_usable and not transfer.again and not transfer.doubtful:
            self._report(attempt, group, transfer, _NOBODY, started)
            return False
        if self._was_stale(transfer) and not attempt.had_stale_connection:
            # The connection had died before; this message just found out.
            attempt.had_stale_connection = True
            return True
        again = {group[place] for place in transfer.again} if session.is_usable else set[int]()
        is_doubtful = bool(transfer.doubtful) and not attempt.lockstep
        if is_doubtful:
            attempt.lockstep = True
            again |= {group[place] for place in transfer.doubtful}
        self._report(attempt, group, transfer, again, started)
        if is_doubtful or session.is_usable or not attempt.unasked:
            return is_doubtful
        # The session was lost before everybody was asked.
        verdicts = [verdict for verdict in transfer.verdicts if verdict is not None]
        if all(verdict.may_go_on for verdict in verdicts):
            # Nothing was achieved here; another connection would hardly achieve more.
            self.report_all(attempt, verdicts[-1])
            return False
        return True

    def _was_stale(self, transfer: Transfer) -> bool:
        """Whether a reused connection turned out to be gone before anything was answered."""
        loss = self.session.loss
        return (
            loss is not None
            and self.transactions > 1
            and loss.cause is Cause.CLOSED
            and not transfer.was_heard
            and not transfer.is_content_written
        )

    # -- reporting --------------------------------------------------------------------------

    def _report(
        self,
        attempt: Attempt,
        group: Sequence[int],
        transfer: Transfer,
        again: AbstractSet[int],
        started: float,
    ) -> None:
        """Hand everybody's verdict on, but for those who are asked again."""
        now = trio.current_time()
        timings = self._timings(now - started)
        transcript = self._take_transcript()
        self.did_last_succeed = False
        for index, verdict in zip(group, transfer.verdicts, strict=True):
            if verdict is None or index in again:
                continue
            if verdict.status is Status.DELIVERED:
                self.did_last_succeed = True
            attempt.report(
                index,
                verdict,
                now,
                peer=self.peer,
                features=self.features,
                transaction=self.transactions,
                timings=timings,
                transcript=transcript,
            )

    def report_all(self, attempt: Attempt, verdict: Verdict) -> None:
        """Give everybody this host has not decided on the same verdict; no transaction did it."""
        timings, transcript = self._timings(0.0), self._take_transcript()
        self.did_last_succeed = False
        for index in list(attempt.unasked):
            attempt.report(
                index,
                verdict,
                trio.current_time(),
                peer=self.peer,
                features=self.features,
                timings=timings,
                transcript=transcript,
            )

    def _timings(self, transaction: float) -> Timings:
        """Return the times of a transaction; the connection's first one also bears its set-up."""
        if self.transactions > 1:
            return Timings(transaction=transaction)
        return Timings(
            connect=self._connect_seconds, hello=self._hello_seconds, transaction=transaction
        )

    def _take_transcript(self) -> tuple[str, ...] | None:
        if self._transcript is None:
            return None
        lines = self._transcript.since(self._mark)
        if self._is_set_up:
            self._mark = self._transcript.mark()
        return lines

    def publish(self, event: Callable[..., events.Event], *facts: object) -> None:
        """Publish an event of this connection, if anybody listens."""
        if self._events.is_watched:
            self._events.publish(event(self._clock(), self.peer, *facts))
