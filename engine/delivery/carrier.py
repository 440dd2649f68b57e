"""The mail of a session: transactions one after another, or several in flight where the host likes it.

It takes attempts from a source for as long as there are any, begins their transactions, hands each
reply to the one it belongs to, and reports what became of everybody.  Where attempts come from, and
what happens to those that are not done here, is the source's: a pool's visit, or `open_session`.
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from engine.delivery.envelope import build, not_convertible, refuse
from engine.delivery.session_terms import SessionLost
from engine.delivery.seven_bit import in_seven_bit
from engine.delivery.streaming import FEW_RECIPIENTS, MOST, MOST_OCTETS
from engine.delivery.transaction import Due, Transaction
from engine.delivery.verdict import dismissed, ours
from engine.errors import EngineError
from engine.outcome import Cause, Scope, Status
from engine.report import events
from engine.security import TlsLevel
from engine.smtp.command import ENDS_OF_CONTENT, QUIT, RSET, Kind
from engine.smtp.connection import Answered
from engine.smtp.errors import ContentError, NotConvertibleError
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from engine.delivery.attempt import Attempt
    from engine.delivery.host_session import HostSession
    from engine.delivery.verdict import Verdict
    from engine.message import Content, Recipient
    from engine.smtp.command import Command
    from engine.smtp.connection import Run

#: What reading a content may raise: files, their octets, and stores do.
_NOT_READ: Final = (OSError, ContentError, EngineError)
#: The parameter of RFC 1870 §4.
_SIZE: Final = re.compile(rb" SIZE=[0-9]+")


class Source(Protocol):
    """Where a session's work comes from, and where it goes when it is done here."""

    def take(self) -> Attempt | None:
        """Return the next attempt to begin now, `None` where there is none."""
        ...

    async def wait(self, room: int) -> Attempt | None:
        """Wait for the next attempt; `None` when the connection is no longer needed.

        Args:
            room: How many there could be at once.
        """
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        ...

    def withdraw(self, attempt: Attempt) -> None:
        """Take an attempt back of which nothing was said: there was no connection."""
        ...

    def done(self, attempt: Attempt) -> None:
        """Take an attempt back that has nothing left to do here.

        Whom this host has not decided on goes to the next one, or with `Attempt.returns` set to
        this one again, over another connection.
        """
        ...


class _Job(NamedTuple):
    """What one transaction is for: some recipients of an attempt, and the content for this host."""

    attempt: Attempt
    group: Sequence[int]
    content: Content


class _Flight(Transaction):
    """A transaction that was begun and is not over.

    Attributes:
        job: What it is for.
        number: Which transaction of the connection, from 1.
        started: When it began, by Trio's clock.
        octets_before: Octets of content that go out before its own.
        octets: Octets of its own content that were handed out, as they go on the wire.
        content: Which content of the session is its, from 1; 0 while none was sent.
        is_behind: Whether it was begun with another one in flight.
        is_reset: Whether RSET goes before it, whose reply is owed.
        is_nested: Whether the one before it may still have been open, so that a refusal of its MAIL
            says nothing about the host.
        is_alone: Whether nothing may be in flight with it.
        is_overruled: Whether greeting or hello made its refusals void.
        overruling: What they mean instead; `None`: that all is to be asked again in turn.
        prdr: Whether a reply for each recipient was asked for.
    """

    job: _Job
    number: int
    started: float
    octets_before = 0
    octets = 0
    content = 0
    is_behind = False
    is_reset = False
    is_nested = False
    is_alone = False
    is_overruled = False
    overruling: Verdict | None = None
    prdr = False


# Every message asks for these; in Python 3.11 a member of an enum is found ten times as slowly as a name.
_CONTENT, _NOTHING = Due.CONTENT, Due.NOTHING

_NOBODY: Final[frozenset[int]] = frozenset()


class Carrier:
    """Carries mail over one session, from its hello to its QUIT."""

    def __init__(self, host: HostSession, source: Source) -> None:
        self._host = host
        self._session = host.session
        self._source = source
        self._todo: deque[_Job] = deque()
        self._flying: deque[_Flight] = deque()
        self._window: list[Command] = []
        self._contents = 0  # that were put in windows to their end
        self._octets = 0  # of contents in flight
        self._octets_said = 0  # of contents handed out, as they go on the wire
        self._has_said_quit = False
        self._journal = host.journal
        self._ends: list[_Flight] = []  # whose contents end in the window
        self._is_stuck = False  # nothing may be sent to its end any more
        self._is_up_to_date = False  # all that came was read, and nothing was waited for since
        self._latest: Attempt | None = None  # that began here

    async def run(self) -> None:
        """Deliver what the source gives, until there is no more or the connection is of no use.

        On return nothing is in flight, and the source has back all that it gave.
        """
        session, host, flying = self._session, self._host, self._flying
        if host.first_words:
            await self._speak_first()
        while True:
            if len(flying) < host.depth.limit and self._may_begin:
                await self._fill()
            if self._window:
                if self._ends and not await self._note_ends():
                    continue
                window, self._window = self._window, []
                await session.send(*window)
                if self._has_said_quit:
                    # Some servers hold their replies back until they see the end (Exim: 200 ms).
                    await session.half_close()
            if not flying:
                if self._is_stuck:
                    session.abandon()  # a content may be unfinished
                    break
                if self._todo or not self._may_go_on or not await self._wait_for_work():
                    break
                continue
            if flying[0].due is _CONTENT:
                await self._send_content(flying[0])
                continue
            run = await session.hear()
            if not run.replies:
                self._lose()
                break
            self._is_up_to_date = True
            self._hear(run)
        self._give_back()

    # -- early pipelining -------------------------------------------------------------------

    async def _speak_first(self) -> None:
        """Send hello and the first envelope together, and see whether they went together."""
        host, session = self._host, self._session
        await self._fill(most=1)
        if self._ends:
            await self._note_ends()
        window, self._window = self._window, []
        await session.send(*host.first_words, *window)
        verdict = await host.confirm()
        if verdict is None and (session.loss is not None or all(map(self._fits, self._flying))):
            return
        for flight in self._flying:
            flight.is_overruled = True
            if host.retry is None:
                flight.overruling = verdict
        if verdict is not None and verdict.reply is not None and verdict.reply.code == 421:
            # RFC 5321 §3.8: the session is over, and with it what was not decided on.
            while self._flying:
                flight = self._flying.popleft()
                flight.give_up(verdict)
                self._land(flight)
        elif (verdict is None or host.retry is not None) and not self._contents:
            # It is not worth waiting for more refusals.
            session.abandon()

    def _fits(self, flight: _Flight) -> bool:
        """Whether what was said is what would be said to a host that offers what this one does."""
        host, (attempt, group, content) = self._host, flight.job
        agreed, message, facts = host.agreed, attempt.message, content.facts
        recipients = [attempt.recipients[place] for place in group]
        return (
            not (host.demand.level > TlsLevel.OFF and host.offered.starttls and not host.has_tls)
            and (not facts.is_8bit or agreed.takes(facts))
            and not 0 < agreed.most_recipients < len(group)
            and (agreed.has_prdr or not flight.prdr)
            and refuse(message, recipients, facts, agreed.dialect, host.peer) is None
            and flight.would_fit(
                build(message, recipients, facts, agreed.dialect, prdr=flight.prdr), agreed.manner
            )
        )

    def withdraw(self) -> None:
        """There is no connection: give everything back as it was."""
        attempts = dict.fromkeys(work.attempt for work in self._todo)
        attempts |= dict.fromkeys(flight.job.attempt for flight in self._flying)
        self._host.recorder.transactions -= len(self._flying)
        self._flying.clear()
        self._todo.clear()
        for attempt in attempts:
            self._source.withdraw(attempt)

    # -- beginning --------------------------------------------------------------------------

    @property
    def _may_go_on(self) -> bool:
        host = self._host
        if self._has_said_quit or self._is_stuck:
            return False
        if not host.transactions:
            # Also over a connection that is gone: who came with it is owed a verdict.
            return True
        return self._session.is_usable and not host.is_used_up

    @property
    def _may_begin(self) -> bool:
        """Whether there may be one more in flight, as far as their number goes."""
        flying, host = self._flying, self._host
        if not flying:
            return self._may_go_on
        return (
            flying[-1].is_sent
            and not self._has_said_quit
            and not self._is_stuck
            and not flying[-1].is_alone
            and self._octets < MOST_OCTETS
            and self._session.is_usable
            and not host.is_used_up
        )

    async def _fill(self, most: int = MOST) -> None:
        """Begin the transactions that may begin now, so many at most."""
        host, todo, flying = self._host, self._todo, self._flying
        while len(flying) < most:
            while not todo:
                attempt = self._source.take()
                if attempt is None:
                    return
                content = attempt.message.content
                if content.facts.is_8bit and not host.agreed.takes(content.facts):
                    await self._unpack_converted(attempt)
                else:
                    self._unpack(attempt, content)
            if flying and not host.takes_streams and len(todo[0].group) > FEW_RECIPIENTS:
                return  # more than a server must have room for that may not take it at all
            first = todo[0].attempt
            if (first.message.require_tls or first.is_callout) and (flying or host.first_words):
                return  # REQUIRETLS mail travels alone, and only where it is known to be taken
            if not flying and host.transactions:
                if not self._is_up_to_date:
                    # What came meanwhile must not be taken for the reply to the next command.
                    self._session.glance()
                if not self._session.is_ready and not await host.make_ready():
                    # A refused RSET gives the connection up, not the message.
                    return
            if host.agreed.most_domains and not host.admits(
                _domain_of(todo[0]), goes_on=first is self._latest
            ):
                return  # its recipients need a connection of their own
            self._latest = first
            self._begin(todo.popleft())
            if len(flying) >= host.depth.limit or not self._may_begin:
                return

    async def _wait_for_work(self) -> bool:
        host = self._host
        if host.transactions and not host.did_last_succeed:
            return False  # after a refusal there is no reason to keep the server waiting
        self._is_up_to_date = False
        attempt = await self._source.wait(host.depth.limit)
        if attempt is None:
            return False
        content = attempt.message.content
        if content.facts.is_8bit and not host.agreed.takes(content.facts):
            await self._unpack_converted(attempt)
        else:
            self._unpack(attempt, content)
        return True

    async def _unpack_converted(self, attempt: Attempt) -> None:
        """Do as `_unpack` with a content that the host takes in seven bits only."""
        self._is_up_to_date = False
        try:
            content = await in_seven_bit(attempt.message.content)
        except NotConvertibleError as error:
            self._refuse(attempt, not_convertible(str(error), self._host.peer))
        except _NOT_READ as error:
            self._refuse(attempt, _unreadable(error))
        else:
            self._unpack(attempt, content)

    def _refuse(self, attempt: Attempt, problem: Verdict) -> None:
        """Begin nothing for an attempt that the host cannot be given."""
        self._host.report_all(attempt, problem)
        self._source.done(attempt)

    def _unpack(self, attempt: Attempt, content: Content) -> None:
        """Make an attempt's recipients into jobs, as many as a transaction may have in each.

        Args:
            attempt: It.
            content: What is sent: its message's, as this host takes it.
        """
        host, message = self._host, attempt.message
        problem = refuse(message, attempt.recipients, content.facts, host.agreed.dialect, host.peer)
        if problem is not None:
            self._refuse(attempt, problem)
            return
        places = attempt.unasked
        if len(places) == 1:
            attempt.jobs = 1
            self._todo.append(_Job(attempt, (places[0],), content))
            return
        for group in self._groups(attempt):
            attempt.jobs += 1
            self._todo.append(_Job(attempt, group, content))

    def _groups(self, attempt: Attempt) -> Iterable[Sequence[int]]:
        """Divide recipients among transactions."""
        places, agreed = tuple(attempt.unasked), self._host.agreed
        most = agreed.most_recipients
        if not agreed.has_one_domain:
            if not most or len(places) <= most:
                return (places,)
            return _pieces(places, most)
        by_domain: dict[str, list[int]] = {}
        for place in places:
            domain = attempt.recipients[place].mailbox.routing_domain
            by_domain.setdefault(domain, []).append(place)
        return [
            piece for group in by_domain.values() for piece in _pieces(group, most or len(group))
        ]

    def _begin(self, job: _Job) -> None:
        host, (attempt, group, content) = self._host, job
        message = attempt.message
        recipients: Sequence[Recipient] = attempt.recipients
        if len(group) < len(recipients):
            recipients = [recipients[place] for place in group]
        agreed, is_callout = host.agreed, attempt.is_callout
        dialect = agreed.dialect
        if is_callout:
            dialect = dialect._replace(size_addition=-1)  # no size of nothing
        prdr = agreed.has_prdr and len(group) > 1 and not is_callout
        envelope = build(message, recipients, content.facts, dialect, prdr=prdr)
        flight = _Flight(
            envelope, content, host.peer, agreed.manner, prdr=prdr, is_callout=is_callout
        )
        host.transactions = number = host.transactions + 1
        host.recorder.transactions += 1
        if events.TransactionStarted in host.events.wanted:
            host.publish(events.TransactionStarted, attempt.name, len(group), number)
        flight.job, flight.number, flight.started = job, number, host.now()
        self._octets += content.facts.octets
        if message.require_tls or is_callout:
            flight.is_alone = True
        if prdr:
            flight.prdr = True
            self._session.count_recipients()
        flying = self._flying
        if flying:
            flight.is_behind = True
            before = flying[-1]
            if not before.is_accepted and (host.has_refused or not _are_alike(before, flight)):
                # Should nobody of the one before be accepted, no content ends it, and MAIL would be
                # nested: an error, but a server that goes on would deliver this one on the terms of
                # the other.  Where these are the same that does no harm; but servers count errors
                # (Exim hangs up at the fourth), so after a first refusal all begin with RSET.
                flight.is_reset = True
                self._window.append(RSET)
        flying.append(flight)
        self._say(flight, flight.begin())

    def _say(self, flight: _Flight, commands: Sequence[Command]) -> None:
        self._window += commands
        last = commands[-1]
        if last.kind in ENDS_OF_CONTENT:
            self._contents += 1
            flight.content = self._contents
            if self._journal is not None:
                self._ends.append(flight)
            flight.octets_before = self._octets_said
            self._hand_out(flight, last)
            if not self._todo and self._may_say_quit:
                self._has_said_quit = True
                self._window.append(QUIT)

    @property
    def _may_say_quit(self) -> bool:
        """Whether a content is the last one, so that QUIT may go right behind it.

        Not over TLS, where the other side cannot be told that this is the end without ending it.
        """
        host = self._host
        return (
            host.may_pipeline_quit and not self._todo and (host.is_used_up or self._source.is_over)
        )

    def _hand_out(self, flight: _Flight, piece: Command) -> None:
        """Account for octets of content that are on their way to the peer."""
        octets = len(piece.octets) - piece.head
        flight.octets += octets
        self._octets_said += octets

    def _written(self, flight: _Flight) -> int:
        """Return how many octets of its content have been written, or may have."""
        written, octets = self._session.content_octets - flight.octets_before, flight.octets
        return octets if written >= octets else max(0, written)

    async def _send_content(self, flight: _Flight) -> None:
        """Send a content that is read while it is sent."""
        session = self._session
        flight.octets_before = self._octets_said
        try:
            async with session.listening(), aclosing(flight.pieces()) as pieces:
                async for piece in pieces:
                    if session.has_answers or not session.is_usable:
                        break  # refused or lost midway: the reply, or its absence, tells
                    if piece.is_last and self._journal is not None:
                        self._ends.append(flight)
                        if not await self._note_ends():
                            session.abandon()
                            return
                    if piece.is_last:
                        self._contents += 1
                        flight.content = self._contents
                        self._has_said_quit = self._may_say_quit
                    self._hand_out(flight, piece)
                    await session.send(piece, *((QUIT,) if self._has_said_quit else ()))
            flight.streamed()
            if self._has_said_quit:
                await session.half_close()
        except _NOT_READ as error:
            # Our fault: the content stays unfinished, and the connection with it.
            session.abandon()
            flight.give_up(_unreadable(error))
            self._land(self._flying.popleft())

    async def _note_ends(self) -> bool:
        """Have the journal write down which contents end here; return whether they may.

        What was written down before may have been delivered, should we die; all else was not.
        """
        ends, self._ends = self._ends, []
        assert self._journal is not None
        contents = [end for flight in ends if (end := _end_of(flight))[1]]
        try:
            if contents:
                await self._journal(contents)
        except Exception as error:  # noqa: BLE001 - the bulkhead: trouble of ours costs no mail
            self._get_stuck(ends[0], error)
        return not self._is_stuck

    def _get_stuck(self, first: _Flight, error: Exception) -> None:
        """Send nothing of a window, nor anything else; what went out before is heard out."""
        self._is_stuck = True
        self._window.clear()
        text = f"it could not be noted that the content goes out: {error}"
        verdict = ours(Status.DEFERRED, Cause.IO, Stage.CONTENT, text)
        dropped: list[_Flight] = []
        while not dropped or dropped[-1] is not first:
            dropped.append(self._flying.pop())
        for flight in reversed(dropped):
            flight.give_up(verdict)
            self._land(flight)
        for job in self._todo:
            job.attempt.setback = verdict

    # -- hearing ----------------------------------------------------------------------------

    def _hear(self, run: Run) -> None:
        """Hand replies to the transactions they belong to, the oldest first."""
        place, end, flying = 0, len(run.replies), self._flying
        while place < end and flying:  # a reply to QUIT is nobody's
            flight = flying[0]
            if flight.is_reset and run.commands[place].kind is Kind.RSET:
                flight.is_reset = False
                place += 1
            else:
                place, commands = flight.hear_run(run, place)
                if commands:
                    self._say(flight, commands)
                if flight.due is _NOTHING:
                    flying.popleft()
                    self._land(flight)
            if not run.is_smooth and run.replies[place - 1].code == 421:
                # It was said to one and is meant for all.  Some servers say it to everything that
                # is in flight, some go on as if nothing had been: what stands behind it does not count.
                command, reply = run.commands[place - 1], run.replies[place - 1]
                self._close(Answered(command, reply, run.answers_early(command)))
                return

    def _close(self, answer: Answered) -> None:
        """Account for a 421 to everything that is in flight."""
        self._host.dismissal = dismissed(answer.reply, self._host.peer)
        while self._flying:
            flight = self._flying.popleft()
            flight.close(answer)
            self._land(flight)

    # -- what became of it ------------------------------------------------------------------

    def _land(self, flight: _Flight) -> None:
        """Report what became of a transaction, and see whether its attempt has more to do here."""
        host, (attempt, group, content) = self._host, flight.job
        self._octets -= content.facts.octets
        host.recorder.octets += self._written(flight)
        attempt.jobs -= 1
        again: AbstractSet[int]
        if flight.is_overruled:
            again = self._overrule(flight)
        elif flight.again or flight.doubtful or not self._session.is_usable:
            again = self._sort_out(flight)
        else:
            again = _NOBODY
        host.report(
            attempt, group, flight.verdicts, flight.number, flight.started, again, flight.prdr
        )
        if host.did_last_succeed:
            if flight.is_behind:
                host.note_stream()
            elif not attempt.is_callout:
                host.depth.delivered()
        elif not flight.is_accepted:
            host.has_refused = True
            if self._flying:
                host.refusals += 1
                self._flying[0].is_nested = not self._flying[0].is_reset
        if not attempt.jobs:
            self._source.done(attempt)

    def _overrule(self, flight: _Flight) -> AbstractSet[int]:
        """Return who is asked again, because the host was not the one that it was taken for."""
        attempt, group, _ = flight.job
        overruling = flight.overruling
        undone = [
            place
            for place, verdict in enumerate(flight.verdicts)
            if verdict is None
            or verdict.status not in (Status.DELIVERED, Status.UNKNOWN)
            or (overruling is not None and _is_void(verdict, overruling))
        ]
        if overruling is not None:
            self._host.report_all(attempt, overruling, [group[place] for place in undone])
            for place in undone:
                flight.verdicts[place] = None
            return _NOBODY
        attempt.in_turn = attempt.returns = True
        self._drop_jobs_of(attempt)
        return {group[place] for place in undone}

    def _sort_out(self, flight: _Flight) -> AbstractSet[int]:
        """Return who is asked once more, and see to it."""
        attempt, group, _ = flight.job
        if not self._session.is_usable:
            verdicts = [verdict for verdict in flight.verdicts if verdict is not None]
            if all(verdict.may_go_on for verdict in verdicts):
                # What was said of one recipient is nothing to another one.
                of_all = [each for each in verdicts if each.scope is not Scope.RECIPIENT]
                attempt.setback = of_all[-1] if of_all else attempt.setback
        elif flight.doubtful and flight.is_nested:
            return self._ask_again(flight, flight.doubtful)
        elif flight.doubtful and flight.is_behind:
            # It does not take commands behind a content: again, and one by one from here on.
            self._host.depth.refused()
            self._host.memory.note_stream(is_taken=False)
            return self._ask_again(flight, flight.doubtful)
        elif flight.again:
            return self._ask_again(flight, flight.again)
        if flight.doubtful and (attempt.returns or not attempt.lockstep):
            # With nobody accepted it was MAIL that was refused, and no chunk.
            if self._host.agreed.manner.chunking and flight.is_accepted:
                self._host.memory.note_bad_chunking()
            attempt.lockstep = attempt.returns = True
            self._drop_jobs_of(attempt)
            return {group[place] for place in flight.doubtful}
        return _NOBODY

    def _ask_again(self, flight: _Flight, places: Sequence[int]) -> set[int]:
        """Ask recipients again at once, in a transaction of their own on this connection."""
        attempt, group, content = flight.job
        again = [group[place] for place in places]
        attempt.jobs += 1
        self._todo.appendleft(_Job(attempt, again, content))
        return set(again)

    def _drop_jobs_of(self, attempt: Attempt) -> None:
        """Begin nothing more for an attempt that is to be asked over another connection."""
        kept = [job for job in self._todo if job.attempt is not attempt]
        attempt.jobs -= len(self._todo) - len(kept)
        self._todo = deque(kept)

    def _lose(self) -> None:
        """The session ended with transactions in flight."""
        session, is_oldest = self._session, True
        uses_chunking = self._host.agreed.manner.chunking
        ending = session.loss or SessionLost(Cause.CLOSED, None)
        is_wordless = all(
            flight.last_answered is None and not flight.content for flight in self._flying
        )
        if ending.reply is not None or (ending.cause is Cause.CLOSED and is_wordless):
            self._host.dismissal = dismissed(ending.reply, self._host.peer)
        while self._flying:
            flight = self._flying.popleft()
            attempt = flight.job.attempt
            is_written = 0 < flight.content <= session.contents_written
            if self._was_stale(flight, ending, is_written=is_written) and (
                attempt.returns or not attempt.had_stale_connection
            ):
                # The connection had died before; this message just found out, maybe with several
                # transactions at once.
                attempt.had_stale_connection = attempt.returns = True
                attempt.jobs -= 1
                self._host.recorder.octets += self._written(flight)
                if not attempt.jobs:
                    self._source.done(attempt)
            else:
                flight.lose(
                    ending,
                    is_oldest=is_oldest,
                    is_content_written=is_written,
                    octets=self._written(flight),
                )
                if is_written and ending.cause is Cause.TIMEOUT and uses_chunking:
                    self._host.memory.note_bad_chunking()
                self._land(flight)
            is_oldest = False

    def _was_stale(
        self, transaction: Transaction, ending: SessionLost, *, is_written: bool
    ) -> bool:
        """Whether a reused connection turned out to be gone before anything was answered."""
        return (
            self._host.transactions > 1
            and ending.cause is Cause.CLOSED
            and transaction.last_answered is None
            and not is_written
        )

    def _give_back(self) -> None:
        """Give back what was not begun: it deserves another connection, unless this one told all."""
        while self._todo:
            attempt = self._todo[0].attempt
            self._drop_jobs_of(attempt)
            if attempt.setback is None:
                attempt.returns = True
            else:
                # Nothing was achieved here; another connection would hardly achieve more.
                self._host.report_all(attempt, attempt.setback)
            self._source.done(attempt)

    def break_off(self, cause: Cause) -> None:
        """Account for an end of our own making with transactions in flight.

        Whose content has left may have been accepted: they are `unknown`, never merely deferred.
        Everybody else is left to whoever holds the attempts.
        """
        text = f"{self._host.peer}: the reply to the content was not waited for"
        verdict = ours(Status.UNKNOWN, cause, Stage.FINAL, text)._replace(scope=Scope.MESSAGE)
        for flight in self._flying:
            self._host.recorder.octets += self._written(flight)
            if 0 < flight.content <= self._session.contents_written:
                attempt, group, _ = flight.job
                flight.give_up(verdict)
                self._host.report(attempt, group, flight.verdicts, flight.number, flight.started)
        self._flying.clear()


def _is_void(verdict: Verdict, overruling: Verdict) -> bool:
    """Whether a content of unknown fate was not taken: the host refused us, and said no more.

    RFC 5321 §3.1: behind a refused greeting it takes nothing.  One that goes on all the same may.
    """
    has_refused = overruling.cause is Cause.REPLY
    return has_refused and verdict.cause in (Cause.CLOSED, Cause.TIMEOUT)


def _end_of(flight: _Flight) -> tuple[str, list[str]]:
    """Return what the journal is told: a message's id, and who may get it by this content."""
    attempt, group, _ = flight.job
    recipients, verdicts = attempt.recipients, flight.verdicts
    if len(group) == 1 and verdicts[0] is None:
        return attempt.name, [recipients[group[0]].address]  # the rule
    return attempt.name, [
        recipients[place].address
        for place, verdict in zip(group, verdicts, strict=True)
        if verdict is None
    ]


def _domain_of(job: _Job) -> str:
    """Return the domain of a job's recipients, where they are all of one."""
    return job.attempt.recipients[job.group[0]].mailbox.routing_domain


def _are_alike(one: _Flight, other: _Flight) -> bool:
    """Whether what their transactions deliver goes on the same terms: MAIL, but for the size."""
    ours, theirs = one.envelope.mail.octets, other.envelope.mail.octets
    return ours == theirs or _SIZE.sub(b"", ours, count=1) == _SIZE.sub(b"", theirs, count=1)


def _pieces(places: Sequence[int], most: int) -> list[Sequence[int]]:
    return [places[start : start + most] for start in range(0, len(places), most)]


def _unreadable(error: Exception) -> Verdict:
    text = f"the content could not be read: {error}"
    return ours(Status.DEFERRED, Cause.IO, Stage.CONTENT, text)
