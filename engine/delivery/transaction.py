"""One mail transaction: what is said when, and a verdict for everybody.

Whoever runs the session sends what `begin` and `hear` return, and gives every reply to `hear`, in
order.  With PIPELINING the envelope is one window; with CHUNKING a small content is part of it.
Nothing here waits, so several transactions of one session can be in flight.
"""

from __future__ import annotations

from contextlib import aclosing
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from engine.delivery.verdict import (
    accepted,
    delivered,
    is_overflow,
    is_protocol_doubt,
    judge,
    lost,
    overflowed,
    refused,
)
from engine.outcome import Scope, Status
from engine.smtp.command import (
    DATA,
    ENDS_OF_CONTENT,
    LONE_DOT,
    QUIT,
    Answers,
    Kind,
    bdat,
    bdat_head,
    bdat_piece,
    content,
)
from engine.smtp.connection import Answered
from engine.smtp.content import DotStuffer, stuff
from engine.smtp.errors import ContentError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from engine.delivery.envelope import Envelope
    from engine.delivery.session_terms import SessionLost
    from engine.delivery.verdict import Trouble, Verdict
    from engine.message import Content
    from engine.outcome import Peer
    from engine.smtp.command import Command
    from engine.smtp.connection import Run
    from engine.smtp.reply import Reply


class Manner(NamedTuple):
    """How transactions are carried out on a connection.

    Attributes:
        pipelining: The envelope goes out as one window (RFC 2920 §3.1).
        chunking: The content goes out as one chunk, by BDAT (RFC 3030 §2).
        one_flight_octets: Up to this size a chunk goes out in the window of its envelope; above it
            the replies to the envelope are heard first.
        lmtp: A content is answered once for each recipient (RFC 2033 §4.2).
    """

    pipelining: bool = False
    chunking: bool = False
    one_flight_octets: int = 0
    lmtp: bool = False


class Due(Enum):
    """What has to happen next."""

    #: Replies are owed, or commands were just handed out.
    REPLIES = auto()
    #: The content is to be sent, and it is not held in memory: the caller reads it.
    CONTENT = auto()
    #: Nothing: everybody has a verdict and no reply is owed.
    NOTHING = auto()


_NONE: tuple[Command, ...] = ()
# Every message asks for these; in Python 3.11 a member of an enum is found ten times as slowly as a name.
_ONCE, _NOTHING = Answers.ONCE, Due.NOTHING


class Transaction:
    """One transaction, from MAIL to the reply to its content.

    Attributes:
        verdicts: One a recipient, in the envelope's order; `None` while undecided.
        again: Recipients (places in the envelope) who merely found no room in this transaction and
            may be asked at once in a new one; where that cannot be, their verdict stands.
        doubtful: Recipients hit by a refusal that may be a disagreement about the protocol; they
            deserve another try in lockstep.
        due: What has to happen next.
        is_sent: Whether everything it has to say was handed out.
        last_answered: The newest of its commands that the peer answered, if it answered any.
    """

    # What most transactions never have differently stands in the class: one is made a message.
    again: Sequence[int] = ()
    doubtful: Sequence[int] = ()
    due = Due.REPLIES
    is_sent = False
    last_answered: Command | None = None
    _is_refused = False
    _is_one_flight = False
    _is_callout = False
    _rcpts_heard = 0
    _owed = 0
    _answers = Answers.ONCE
    _more = 0  # replies that the content has still to have
    _each: Sequence[Answered] = ()  # those that it had, where they only count together

    def __init__(
        self,
        envelope: Envelope,
        content: Content,
        peer: Peer,
        manner: Manner,
        *,
        prdr: bool = False,
        is_callout: bool = False,
    ) -> None:
        """Begin.

        Args:
            envelope: Its commands.
            content: What is sent.
            peer: With whom.
            manner: How.
            prdr: Whether a reply for each recipient is asked for after the content.
            is_callout: Whether recipients are only asked about, and no content is sent.
        """
        self.verdicts: list[Verdict | None] = [None] * len(envelope.rcpts)
        self.envelope = envelope
        self._content = content
        self._peer = peer
        self._manner = manner
        self._accepted: list[int] = []
        if is_callout:
            self._is_callout = True
        if manner.lmtp:
            self._answers = Answers.FOR_EACH
        elif prdr:
            self._answers = Answers.FOR_EACH_AND_ALL

    def would_fit(self, envelope: Envelope, manner: Manner) -> bool:
        """Whether it says nothing that would not be said in this envelope and manner, too."""
        ours = (self.envelope.mail, *self.envelope.rcpts)
        theirs = (envelope.mail, *envelope.rcpts)
        return (
            self._manner.pipelining <= manner.pipelining
            and self._manner.chunking <= manner.chunking
            and all(map(_says_no_more, ours, theirs))
        )

    @property
    def is_accepted(self) -> bool:
        """Whether somebody is known to be accepted, so that its content ends it."""
        return bool(self._accepted)

    # -- what is said -----------------------------------------------------------------------

    def begin(self) -> tuple[Command, ...]:
        """Return the commands that open it."""
        (mail, rcpts), manner = self.envelope, self._manner
        if not manner.pipelining:
            return self._ask(mail)
        self._owed = len(rcpts) + 2
        if self._is_callout:
            self._owed -= 1
            self.is_sent = True
            return (mail, *rcpts)
        if not manner.chunking:
            return (mail, *rcpts, DATA)
        octets = self._content.octets
        if octets is not None and len(octets) <= manner.one_flight_octets:
            # RFC 3030 §2 would have the replies to the envelope heard first; what is sent in vain
            # when nobody is accepted is little, and the round trip saved is one of two.
            self.is_sent = self._is_one_flight = True
            return (mail, *rcpts, bdat(octets, True, self._answers))
        self._owed -= 1
        return (mail, *rcpts)

    def hear_run(self, run: Run, start: int) -> tuple[int, tuple[Command, ...]]:
        """Take replies as long as they are this transaction's and it has nothing to say.

        Args:
            run: Replies to the oldest commands that have none.
            start: Where this transaction's begin.

        Returns:
            Where the next one's begin, and what to say now, if anything.
        """
        replies, commands = run.replies, _NONE
        stop = start + self._owed
        if run.is_smooth and stop <= len(replies) and self._answers is _ONCE:
            # The rule: all went well, and there is nothing to decide.
            rcpts = len(self.verdicts)
            if self._owed == rcpts + 2 and self.last_answered is None:
                self.last_answered = run.commands[stop - 1]
                self._accepted = [*range(rcpts)]
                self._owed = 0
                if self._is_one_flight:
                    return stop, self._deliver(replies[stop - 1])
                return stop, self._say_content()
            if self._owed == 1 and self.is_sent and self._accepted:
                self._owed = 0
                return stop, self._deliver(replies[start])
        last = len(replies) - 1
        while start <= last and not commands and self.due is Due.REPLIES:
            command = run.commands[start]
            commands = self.hear(Answered(command, replies[start], run.answers_early(command)))
            start += 1
        return start, commands

    def hear(self, answer: Answered) -> tuple[Command, ...]:
        """Take the reply to the oldest command that has none; return what to say now, if anything."""
        self._owed -= 1
        command, reply, _ = answer
        self.last_answered = command
        kind = command.kind
        if reply.code == 421:
            return self.close(answer)
        if kind is Kind.RCPT:
            return self._hear_rcpt(answer)
        if kind in ENDS_OF_CONTENT:
            return self._hear_final(answer)
        if kind is Kind.DATA:
            return self._hear_data(answer)
        return self._hear_mail(answer)

    async def pieces(self) -> AsyncGenerator[Command, None]:
        """Read the content and yield it piece by piece, where `due` asks for that.

        Leave it early within `contextlib.aclosing`; the content is then unfinished.

        Raises:
            ContentError: As the content's `chunks`; it must not be finished.
            OSError: The same.
        """
        pieces = self._chunk() if self._manner.chunking else self._data()
        async with aclosing(pieces):
            async for piece in pieces:
                self.is_sent = piece.is_last
                yield piece

    async def _data(self) -> AsyncGenerator[Command, None]:
        stuffer = DotStuffer()
        async with aclosing(self._content.chunks()) as chunks:
            async for octets in chunks:
                yield content(stuffer.feed(octets), self._answers, is_last=False)
        yield content(stuffer.finish(), self._answers)

    async def _chunk(self) -> AsyncGenerator[Command, None]:
        left = self._content.facts.octets
        yield bdat_head(left, self._answers)
        held = b""
        async with aclosing(self._content.chunks()) as chunks:
            async for octets in chunks:
                if held:
                    yield bdat_piece(held, self._answers, is_last=False)
                held = octets
                left -= len(octets)
                if left < 0:
                    break
        if left:
            raise ContentError("its size is not what it was")
        # Behind its last octet the host may take it; so not before all of it was read well.
        yield bdat_piece(held, self._answers, is_last=True)

    def streamed(self) -> None:
        """Account for pieces that were sent; the reply is due, or its absence tells."""
        self.due = Due.REPLIES
        self._owed += 1

    def _ask(self, command: Command) -> tuple[Command, ...]:
        self._owed += 1
        return (command,)

    # -- what is heard ----------------------------------------------------------------------

    def _hear_mail(self, answer: Answered) -> tuple[Command, ...]:
        reply = answer.reply
        if reply.code // 100 != 2:
            self._is_refused = True
            # What is in flight behind it is heard out; this refusal is what counts.
            self._refuse_all(answer)
        return self._go_on()

    def _hear_rcpt(self, answer: Answered) -> tuple[Command, ...]:
        place = self._rcpts_heard
        self._rcpts_heard = place + 1
        reply = answer.reply
        if reply.code // 100 == 2:
            if self._is_callout:
                if not self._is_refused:
                    self.verdicts[place] = accepted(reply, self._peer)
            else:
                self._accepted.append(place)
                if self._is_refused:
                    # That can only be in the transaction before, which the server holds for still
                    # open.  It goes on with that one; then so do we.
                    self.verdicts[place] = None
                    self.doubtful = [each for each in self.doubtful if each != place]
            return self._go_on() if not self._owed else _NONE
        if self._is_refused:
            return self._go_on()
        if is_overflow(reply):
            self.again = (*self.again, place)
            self.verdicts[place] = overflowed(self._trouble(answer), self._peer)
        else:
            self.verdicts[place] = judge(self._trouble(answer), self._peer)
        return self._go_on()

    def _go_on(self) -> tuple[Command, ...]:
        """Say what comes next, once all that was said is answered."""
        if self._owed:
            return _NONE
        if self._accepted or not self._is_refused:
            rcpts = self.envelope.rcpts
            if self._rcpts_heard < len(rcpts):
                return self._ask(rcpts[self._rcpts_heard])
            self._forgive_overflow()
            if self._accepted:
                return self._say_content() if self._manner.chunking else self._ask(DATA)
        return self._end()

    def _hear_data(self, answer: Answered) -> tuple[Command, ...]:
        if self._manner.pipelining:
            self._forgive_overflow()
        if answer.reply.code // 100 == 3:
            if self._accepted:
                return self._say_content()
            return self._say_lone_dot()  # RFC 2920 §3.1: it may come although nobody was accepted
        if self._accepted:
            self._refuse_all(answer)
        return self._end()

    def _say_content(self) -> tuple[Command, ...]:
        octets = self._content.octets
        if octets is None:
            self.due = Due.CONTENT
            return _NONE
        self.is_sent = True
        if self._manner.chunking:
            return self._ask(bdat(octets, True, self._answers))
        return self._ask(content(stuff(octets), self._answers))

    def _say_lone_dot(self) -> tuple[Command, ...]:
        """Answer a 354 that came although nobody was accepted (RFC 2920 §3.1).

        Whatever the reply, nothing was delivered and everybody's verdict stands.
        """
        self.is_sent = True
        if self._manner.lmtp:
            # RFC 2033 §4.2: a reply for each who was accepted, so none.  Who counts differently
            # would be misunderstood from here on; nothing more is said, and nothing waited for.
            self.due = Due.NOTHING
            return (LONE_DOT, QUIT)
        return self._ask(LONE_DOT)

    def _hear_final(self, answer: Answered) -> tuple[Command, ...]:
        if self._is_one_flight:
            self._forgive_overflow()
        code = answer.reply.code
        if self._answers is Answers.FOR_EACH_AND_ALL and (self._more or code == 353):
            return self._hear_each_and_all(answer)
        if not self._accepted:
            # Whatever it says, nothing was delivered.
            return self._end()
        if self._answers is Answers.FOR_EACH:
            return self._hear_each(answer)
        if code // 100 == 2:
            return self._deliver(answer.reply)
        self._refuse_all(answer)
        return self._end()

    def _deliver(self, reply: Reply) -> tuple[Command, ...]:
        """Everybody who was accepted has the message."""
        verdict = delivered(reply, self._peer)
        for place in self._accepted:
            self.verdicts[place] = verdict
        self.is_sent = True
        self.due = _NOTHING
        return _NONE

    def _hear_each(self, answer: Answered) -> tuple[Command, ...]:
        """LMTP: a reply for each recipient, in the order of their RCPT (RFC 2033 §4.2)."""
        place = self._accepted[self._more]
        self._more += 1
        self.verdicts[place] = self._judge_one(answer)
        if self._more < len(self._accepted):
            self._owed += 1
            return _NONE
        return self._end()

    def _hear_each_and_all(self, answer: Answered) -> tuple[Command, ...]:
        """PRDR: 353, a reply for each recipient, and one for the whole that outweighs them."""
        if not self._more:
            self._more = len(self._accepted) + 1
            self._owed += 1
            return _NONE
        self._more -= 1
        if self._more:
            self._each = (*self._each, answer)
            self._owed += 1
            return _NONE
        if not self._accepted:
            return self._end()  # whatever it says, nothing was delivered
        severity = answer.reply.code // 100
        for place, one in zip(self._accepted, self._each, strict=True):
            is_refused = one.reply.code // 100 != 2
            if severity == 2 or (severity == 4 and is_refused):
                self.verdicts[place] = self._judge_one(one)
        self._settle_rest(self._judge_refusal(answer))
        return self._end()

    def _judge_one(self, answer: Answered) -> Verdict:
        """Judge a reply that is about one recipient, after the content."""
        reply = answer.reply
        if reply.code // 100 == 2:
            return delivered(reply, self._peer)
        return self._judge_refusal(answer)._replace(scope=Scope.RECIPIENT)

    def _forgive_overflow(self) -> None:
        """Ask again only where this transaction made progress, or it would go round in circles."""
        if self.again and not self._accepted:
            statuses = [verdict.status for verdict in self.verdicts if verdict is not None]
            if not {Status.FAILED, Status.ACCEPTED} & set(statuses):
                self.again = ()

    def _end(self) -> tuple[Command, ...]:
        self.is_sent = True
        self.due = Due.NOTHING
        return _NONE

    # -- how it may end before its time -----------------------------------------------------

    def close(self, answer: Answered) -> tuple[Command, ...]:
        """421: the session is over, whatever was asked (RFC 5321 §3.8)."""
        self._keep_refusals()
        self._settle_rest(self._judge_refusal(answer))
        return self._end()

    def lose(
        self, ending: SessionLost, *, is_oldest: bool, is_content_written: bool, octets: int
    ) -> None:
        """The session ended before the reply that was due.

        Args:
            ending: How.
            is_oldest: Whether the missing reply was one of this transaction's.
            is_content_written: Whether the whole content has left, or may have.
            octets: Octets of content written so far.
        """
        self._keep_refusals()
        command = ending.command if is_oldest else self.envelope.mail
        if command is None:
            # Nothing was owed: it came behind the command that was answered last.
            command = self.last_answered
        trouble = lost(
            ending,
            command,
            is_pipelined=command is not None and self._is_pipelined(command),
            is_content_written=is_content_written,
            octets=octets,
        )
        self._settle_rest(judge(trouble, self._peer))
        self._end()

    def _keep_refusals(self) -> None:
        """PRDR: who was refused stays refused, though nothing is said of the whole any more."""
        for place, one in zip(self._accepted, self._each, strict=False):
            if one.reply.code // 100 != 2:
                self.verdicts[place] = self._judge_one(one)

    def give_up(self, verdict: Verdict) -> None:
        """Something on our side ended it before its time."""
        self._settle_rest(verdict)
        self._end()

    # -- verdicts ---------------------------------------------------------------------------

    def _refuse_all(self, answer: Answered) -> None:
        trouble = self._trouble(answer)
        if is_protocol_doubt(trouble):
            self.doubtful = [place for place, known in enumerate(self.verdicts) if known is None]
        self._settle_rest(judge(trouble, self._peer))

    def _settle_rest(self, verdict: Verdict) -> None:
        """Give the verdict to everybody who has none."""
        verdicts = self.verdicts
        for place, known in enumerate(verdicts):
            if known is None:
                verdicts[place] = verdict

    def _is_pipelined(self, command: Command) -> bool:
        """Whether a command was sent with others' replies still owed."""
        if command.kind in ENDS_OF_CONTENT:
            return self._is_one_flight
        return self._manner.pipelining

    def _judge_refusal(self, answer: Answered) -> Verdict:
        return judge(self._trouble(answer), self._peer)

    def _trouble(self, answer: Answered) -> Trouble:
        return refused(
            answer.command,
            answer.reply,
            is_pipelined=self._is_pipelined(answer.command),
            is_early=answer.is_early,
        )


def _says_no_more(one: Command, other: Command) -> bool:
    """Whether a command has no parameter that the other one has not."""
    return set(one.octets.split()) <= set(other.octets.split())
