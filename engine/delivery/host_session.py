"""A session with one host that messages are delivered over, several at a time where the host likes it.

It says hello once, takes messages from a source for as long as there are any, runs their mail
transactions, and reports every verdict to the attempt.  Where the messages come from, and what
happens to those that are not done here, is the source's: a pool's visit, or `open_session`.
"""

from __future__ import annotations

from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from engine.delivery.attempt import Carriage
from engine.delivery.conversation import say_quit, set_up
from engine.delivery.envelope import build, refuse
from engine.delivery.session import SessionLost
from engine.delivery.transaction import Due, Manner, Transaction
from engine.delivery.verdict import Trouble, judge, ours
from engine.outcome import Cause, Features, Peer, Scope, Status, Timings
from engine.report import events
from engine.smtp.capabilities import NO_CAPABILITIES
from engine.smtp.command import ENDS_OF_CONTENT, RSET, content
from engine.smtp.content import DotStuffer
from engine.smtp.errors import ContentError
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.delivery.attempt import Attempt
    from engine.delivery.session import Session
    from engine.delivery.shared import Shared
    from engine.delivery.verdict import Verdict
    from engine.message import Recipient
    from engine.net.facts import ConnectionFacts
    from engine.report.transcript import Transcript
    from engine.settings import Settings
    from engine.smtp.command import Command
    from engine.smtp.connection import Answered


class Source(Protocol):
    """Where a session's work comes from, and where it goes when it is done here."""

    def take(self) -> Attempt | None:
        """Return the next attempt to begin now, `None` where there is none."""
        ...

    async def wait(self) -> Attempt | None:
        """Wait for the next attempt; `None` when the connection is no longer needed."""
        ...

    def done(self, attempt: Attempt) -> None:
        """Take an attempt back that has nothing left to do here.

        Whom this host has not decided on goes to the next one, or with `Attempt.returns` set to
        this one again, over another connection.
        """
        ...


class _Job(NamedTuple):
    """What one transaction is for."""

    attempt: Attempt
    group: Sequence[int]


class _Flight:
    """A transaction that was begun and is not over.

    Attributes:
        attempt: Whose it is.
        group: For whom of its recipients.
        transaction: What is said and heard.
        number: Which transaction of the connection, from 1.
        started: When it began, by Trio's clock.
        content: Which content of the session is its, from 1; 0 while none was sent.
        octets_before: Octets of content written before it.
    """

    __slots__ = (
        "attempt",
        "content",
        "group",
        "number",
        "octets_before",
        "started",
        "transaction",
    )

    def __init__(
        self,
        attempt: Attempt,
        group: Sequence[int],
        transaction: Transaction,
        number: int,
        started: float,
        octets_before: int,
    ) -> None:
        self.attempt = attempt
        self.group = group
        self.transaction = transaction
        self.number = number
        self.started = started
        self.content = 0
        self.octets_before = octets_before


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
        self._now = trio.lowlevel.current_clock().current_time
        self._transcript = transcript
        self._mark = 0
        self._is_set_up = False
        self._connect_seconds = facts.connect_seconds
        self._hello_seconds = 0.0
        self._manner = Manner()
        self._depth = 1
        self._todo: deque[_Job] = deque()
        self._flying: deque[_Flight] = deque()
        self._window: list[Command] = []
        self._contents = 0

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
        self._manner = Manner(self.features.pipelining)
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
        session.glance()
        if session.is_ready:
            return True
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

    # -- the work ---------------------------------------------------------------------------

    async def carry(self, source: Source) -> None:
        """Deliver what the source gives, until there is no more or the connection is of no use.

        On return nothing is in flight, and the source has back all that it gave.
        """
        session = self.session
        while True:
            await self._fill(source)
            if self._window:
                window, self._window = self._window, []
                await session.send(*window)
            if not self._flying:
                if self._todo or not self._may_go_on or not await self._wait_for_work(source):
                    break
                continue
            if self._flying[0].transaction.due is Due.CONTENT:
                await self._send_content(self._flying[0], source)
                continue
            answers = await session.hear()
            if not answers:
                self._lose(source)
                break
            self._hear(answers, source)
        self._give_back(source)

    async def _wait_for_work(self, source: Source) -> bool:
        if self.transactions and not self.did_last_succeed:
            return False  # after a refusal there is no reason to keep the server waiting
        attempt = await source.wait()
        if attempt is None:
            return False
        self._unpack(attempt, source)
        return True

    @property
    def _may_go_on(self) -> bool:
        if not self.transactions:
            # Also over a connection that is gone: who came with it is owed a verdict.
            return True
        return self.session.is_usable and not self.is_used_up

    async def _fill(self, source: Source) -> None:
        """Begin the transactions that may begin now."""
        while self._may_begin:
            while not self._todo:
                attempt = source.take()
                if attempt is None:
                    return
                self._unpack(attempt, source)
            # A refused RSET gives the connection up, not the message.
            if self.transactions and not self._flying and not await self.make_ready():
                return
            self._begin(self._todo.popleft())

    @property
    def _may_begin(self) -> bool:
        flying = self._flying
        if not flying:
            return self._may_go_on
        return (
            len(flying) < self._depth
            and flying[-1].transaction.is_sent
            and not self.is_used_up
            and self.session.is_usable
        )

    def _unpack(self, attempt: Attempt, source: Source) -> None:
        """Make an attempt's recipients into jobs, as many as a transaction may have in each."""
        attempt.begin_here()
        message = attempt.message
        problem = refuse(message, attempt.recipients, self.offered, self.peer)
        if problem is not None:
            self.report_all(attempt, problem)
            source.done(attempt)
            return
        group = tuple(attempt.unasked)
        limit = self._settings.max_recipients_per_transaction
        if not limit or len(group) <= limit:
            attempt.jobs += 1
            self._todo.append(_Job(attempt, group))
            return
        for start in range(0, len(group), limit):
            attempt.jobs += 1
            self._todo.append(_Job(attempt, group[start : start + limit]))

    def _begin(self, job: _Job) -> None:
        attempt, group = job
        message = attempt.message
        recipients: Sequence[Recipient] = attempt.recipients
        if len(group) < len(recipients):
            recipients = [recipients[place] for place in group]
        envelope = build(message, recipients, self.offered, self._settings.size_addition)
        transaction = Transaction(envelope, message.content, self.peer, self._manner)
        self.transactions = number = self.transactions + 1
        self._recorder.transaction_started()
        if self._events.is_watched:
            self.publish(events.TransactionStarted, message.id, len(group), number)
        octets = self.session.content_octets
        flight = _Flight(attempt, group, transaction, number, self._now(), octets)
        self._flying.append(flight)
        self._say(flight, transaction.begin())

    def _say(self, flight: _Flight, commands: Sequence[Command]) -> None:
        self._window += commands
        if commands[-1].kind in ENDS_OF_CONTENT:
            self._contents += 1
            flight.content = self._contents

    def _hear(self, answers: Sequence[Answered], source: Source) -> None:
        """Hand replies to the transactions they belong to, the oldest first."""
        place, flying = 0, self._flying
        while place < len(answers):
            flight = flying[0]
            transaction = flight.transaction
            place, commands = transaction.hear_all(answers, place)
            if commands:
                self._say(flight, commands)
            if transaction.due is Due.NOTHING:
                flying.popleft()
                self._land(flight, source)
        if flying and answers[-1].reply.code == 421:
            # It was said to one and is meant for all: nothing behind it will be answered.
            while flying:
                flight = flying.popleft()
                flight.transaction.close(answers[-1])
                self._land(flight, source)

    async def _send_content(self, flight: _Flight, source: Source) -> None:
        """Send a content that is read while it is sent."""
        session, stuffer = self.session, DotStuffer()
        try:
            chunks = flight.attempt.message.content.chunks()
            async with session.listening(), aclosing(chunks):
                async for chunk in chunks:
                    if session.has_answers or not session.is_usable:
                        break  # refused or lost midway: the reply, or its absence, tells
                    await session.send(content(stuffer.feed(chunk), is_last=False))
                else:
                    self._contents += 1
                    flight.content = self._contents
                    await session.send(content(stuffer.finish()))
            flight.transaction.streamed()
        except (OSError, ContentError) as error:
            # Our fault: the content stays unfinished, and the connection with it.
            session.abandon()
            text = f"the content could not be read: {error}"
            flight.transaction.give_up(ours(Status.DEFERRED, Cause.IO, Stage.CONTENT, text))
            self._land(self._flying.popleft(), source)

    # -- what became of it ------------------------------------------------------------------

    def _land(self, flight: _Flight, source: Source) -> None:
        """Report what became of a transaction, and see whether its attempt has more to do here."""
        attempt, transaction, session = flight.attempt, flight.transaction, self.session
        self._recorder.content_sent(session.content_octets - flight.octets_before)
        attempt.jobs -= 1
        if transaction.again or transaction.doubtful or not session.is_usable:
            self._report(flight, self._sort_out(flight))
        else:
            self._report(flight, _NOBODY)
        if not attempt.jobs:
            source.done(attempt)

    def _sort_out(self, flight: _Flight) -> set[int]:
        """Return who is asked once more, and see to it."""
        attempt, transaction, group = flight.attempt, flight.transaction, flight.group
        again: set[int] = set()
        if not self.session.is_usable:
            verdicts = [verdict for verdict in transaction.verdicts if verdict is not None]
            if all(verdict.may_go_on for verdict in verdicts):
                attempt.setback = verdicts[-1]
        elif transaction.again:
            again = {group[place] for place in transaction.again}
            attempt.jobs += 1
            self._todo.appendleft(_Job(attempt, sorted(again)))
        if transaction.doubtful and (attempt.returns or not attempt.lockstep):
            again |= {group[place] for place in transaction.doubtful}
            attempt.lockstep = attempt.returns = True
            self._drop_jobs_of(attempt)
        return again

    def _drop_jobs_of(self, attempt: Attempt) -> None:
        """Begin nothing more for an attempt that is to be asked over another connection."""
        kept = [job for job in self._todo if job.attempt is not attempt]
        attempt.jobs -= len(self._todo) - len(kept)
        self._todo = deque(kept)

    def _lose(self, source: Source) -> None:
        """The session ended with transactions in flight."""
        session, is_oldest = self.session, True
        ending = session.loss or SessionLost(Cause.CLOSED, None)
        while self._flying:
            flight = self._flying.popleft()
            attempt, transaction = flight.attempt, flight.transaction
            is_written = 0 < flight.content <= session.contents_written
            if self._was_stale(transaction, is_written) and not attempt.had_stale_connection:
                # The connection had died before; this message just found out.
                attempt.had_stale_connection = attempt.returns = True
                attempt.jobs -= 1
                if not attempt.jobs:
                    source.done(attempt)
            else:
                transaction.lose(
                    ending,
                    is_oldest=is_oldest,
                    is_content_written=is_written,
                    octets=session.content_octets - flight.octets_before,
                )
                self._land(flight, source)
            is_oldest = False

    def _was_stale(self, transaction: Transaction, is_written: bool) -> bool:
        """Whether a reused connection turned out to be gone before anything was answered."""
        loss = self.session.loss
        return (
            loss is not None
            and self.transactions > 1
            and loss.cause is Cause.CLOSED
            and not transaction.was_heard
            and not is_written
        )

    def _give_back(self, source: Source) -> None:
        """Give back what was not begun: it deserves another connection, unless this one told all."""
        while self._todo:
            attempt = self._todo[0].attempt
            self._drop_jobs_of(attempt)
            if attempt.setback is None:
                attempt.returns = True
            else:
                # Nothing was achieved here; another connection would hardly achieve more.
                self.report_all(attempt, attempt.setback)
            source.done(attempt)

    def break_off(self, cause: Cause) -> None:
        """Account for an end of our own making with transactions in flight.

        Whose content has left may have been accepted: they are `unknown`, never merely deferred.
        Everybody else is left to whoever holds the attempts.
        """
        text = f"{self.peer}: the reply to the content was not waited for"
        verdict = ours(Status.UNKNOWN, cause, Stage.FINAL, text)._replace(scope=Scope.MESSAGE)
        for flight in self._flying:
            if 0 < flight.content <= self.session.contents_written:
                flight.transaction.give_up(verdict)
                self._report(flight, _NOBODY)
        self._flying.clear()

    # -- reporting --------------------------------------------------------------------------

    def _report(self, flight: _Flight, asked_again: set[int] | frozenset[int]) -> None:
        """Hand everybody's verdict on, but for those who are asked again."""
        now = self._now()
        attempt = flight.attempt
        carriage = Carriage(
            self.peer,
            self.features,
            flight.number,
            self._timings(now - flight.started, flight.number),
            self._take_transcript() if self._transcript is not None else None,
        )
        self.did_last_succeed = False
        for place, verdict in zip(flight.group, flight.transaction.verdicts, strict=True):
            if verdict is None or place in asked_again:
                continue
            if verdict.status is Status.DELIVERED:
                self.did_last_succeed = True
            attempt.report(place, verdict, now, carriage)

    def report_all(self, attempt: Attempt, verdict: Verdict) -> None:
        """Give everybody this host has not decided on the same verdict; no transaction did it."""
        timings = self._timings(0.0, self.transactions)
        carriage = Carriage(self.peer, self.features, None, timings, self._take_transcript())
        self.did_last_succeed = False
        attempt.report_all(verdict, self._now(), carriage)

    def _timings(self, seconds: float, number: int) -> Timings:
        """Return the times of a transaction; the connection's first one also bears its set-up."""
        if number > 1:
            return Timings(transaction=seconds)
        return Timings(
            connect=self._connect_seconds, hello=self._hello_seconds, transaction=seconds
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
