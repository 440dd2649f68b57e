"""One mail transaction over a session: MAIL, RCPT, DATA, content, and a verdict for everybody.

The hot path of a bulk sender: with PIPELINING a message costs two windows and two waits.
"""

from __future__ import annotations

from contextlib import aclosing
from enum import Enum, auto
from typing import TYPE_CHECKING

from engine.delivery.session import SessionLost
from engine.delivery.verdict import (
    delivered,
    is_overflow,
    is_protocol_doubt,
    judge,
    lost,
    ours,
    overflowed,
    refused,
)
from engine.outcome import Cause, Status
from engine.smtp.command import DATA, LONE_DOT, content
from engine.smtp.content import DotStuffer, stuff
from engine.smtp.errors import ContentError
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.delivery.envelope import Envelope
    from engine.delivery.session import Session
    from engine.delivery.verdict import Verdict
    from engine.message import Content
    from engine.outcome import Peer
    from engine.smtp.command import Command
    from engine.smtp.connection import Answered


class _Step(Enum):
    """What comes after the opening of a transaction."""

    CONTENT = auto()
    LONE_DOT = auto()
    NOTHING = auto()


class Transfer:
    """One transaction; run it once, then read what became of each recipient.

    Attributes:
        verdicts: One a recipient, in the envelope's order; `None` only while running, or when it
            was cancelled before it was decided.
        again: Recipients (places in the envelope) who merely found no room in this transaction and
            may be asked at once in a new one; where that cannot be, their verdict stands.
        doubtful: Recipients hit by a refusal that may be a disagreement about the protocol; they
            deserve a try in lockstep on a new connection.
        was_heard: Whether the peer answered anything.
    """

    def __init__(
        self,
        session: Session,
        envelope: Envelope,
        content: Content,
        peer: Peer,
        *,
        pipelining: bool,
    ) -> None:
        self.verdicts: list[Verdict | None] = [None] * len(envelope.rcpts)
        self.again: list[int] = []
        self.doubtful: list[int] = []
        self.was_heard = False
        self._session = session
        self._envelope = envelope
        self._content = content
        self._peer = peer
        self._pipelining = pipelining
        self._accepted: list[int] = []
        self._contents_before = session.contents_written
        self._octets_before = session.content_octets

    @property
    def content_octets(self) -> int:
        """Octets of content written so far."""
        return self._session.content_octets - self._octets_before

    @property
    def is_content_written(self) -> bool:
        """Whether the content has left to its last octet, or may have."""
        return self._session.contents_written > self._contents_before

    async def run(self) -> None:
        """Carry the transaction out; never raises for what the peer does.

        Cancelled before the content's end nothing was delivered; from there on the session keeps
        cancellation away until the reply came or was given up.
        """
        if self._pipelining:
            step = await self._open_pipelined()
        else:
            step = await self._open_in_lockstep()
        if step is _Step.CONTENT:
            await self._send_content()
        elif step is _Step.LONE_DOT:
            await self._send_lone_dot()

    # -- opening ----------------------------------------------------------------------------

    async def _open_pipelined(self) -> _Step:
        envelope = self._envelope
        await self._session.send(envelope.mail, *envelope.rcpts, DATA)
        answers = await self._session.replies(len(envelope.rcpts) + 2)
        return self._weigh_opening(answers)

    def _weigh_opening(self, answers: Sequence[Answered]) -> _Step:
        """Read the replies to MAIL, every RCPT and DATA, as far as they came."""
        if not answers:
            return self._lose()
        self.was_heard = True
        mail, rcpts = answers[0], answers[1 : len(self.verdicts) + 1]
        if mail.reply.severity != 2:
            self._refuse_all(mail)
            # What was in flight behind it was heard out; the refusal is what counts.
            goes_on = any(answer.reply.severity == 3 for answer in answers[1:])
            return _Step.LONE_DOT if goes_on else _Step.NOTHING
        for index, answer in enumerate(rcpts):
            if answer.reply.code == 421:
                return self._close(answer)
            self._hear_rcpt(index, answer)
        if len(answers) < len(self.verdicts) + 2:
            return self._lose()
        self._forgive_overflow()
        return self._weigh_data(answers[-1])

    def _weigh_data(self, answer: Answered) -> _Step:
        if answer.reply.severity == 3:
            # RFC 2920 §3.1: it may come although nobody was accepted.
            return _Step.CONTENT if self._accepted else _Step.LONE_DOT
        if self._accepted:
            self._refuse_all(answer)
        return _Step.NOTHING

    async def _open_in_lockstep(self) -> _Step:
        answer = await self._ask(self._envelope.mail)
        if answer is None:
            return self._lose()
        if answer.reply.severity != 2:
            self._refuse_all(answer)
            return _Step.NOTHING
        for index, command in enumerate(self._envelope.rcpts):
            answer = await self._ask(command)
            if answer is None:
                return self._lose()
            if answer.reply.code == 421:
                return self._close(answer)
            self._hear_rcpt(index, answer)
        self._forgive_overflow()
        if not self._accepted:
            return _Step.NOTHING
        answer = await self._ask(DATA)
        return self._lose() if answer is None else self._weigh_data(answer)

    async def _ask(self, command: Command) -> Answered | None:
        await self._session.send(command)
        answers = await self._session.replies(1)
        self.was_heard |= bool(answers)
        return answers[0] if answers else None

    def _hear_rcpt(self, index: int, answer: Answered) -> None:
        reply = answer.reply
        if reply.is_positive:
            self._accepted.append(index)
            return
        trouble = refused(answer.command, reply, is_pipelined=self._pipelining)
        if is_overflow(reply):
            self.again.append(index)
            self.verdicts[index] = overflowed(trouble, self._peer)
        else:
            self.verdicts[index] = judge(trouble, self._peer)

    def _forgive_overflow(self) -> None:
        """Ask again only where this transaction made progress, or it would go round in circles."""
        has_refused = any(v is not None and v.status is Status.FAILED for v in self.verdicts)
        if not self._accepted and not has_refused:
            self.again.clear()

    async def _send_lone_dot(self) -> None:
        """Answer a 354 that came although nobody was accepted (RFC 2920 §3.1).

        Whatever the reply, nothing was delivered and everybody's verdict stands.
        """
        await self._session.send(LONE_DOT)
        await self._session.replies(1)

    # -- the content ------------------------------------------------------------------------

    async def _send_content(self) -> None:
        session, octets = self._session, self._content.octets
        try:
            if octets is not None:
                await session.send(content(stuff(octets)))
            elif not await self._stream_content():
                return
            answers = await session.replies(1)
        finally:
            session.release()
        if not answers:
            self._lose()
        elif answers[0].reply.severity == 2:
            verdict = delivered(answers[0].reply, self._peer)
            for index in self._accepted:
                self.verdicts[index] = verdict
        else:
            self._settle_rest(self._judge_refusal(answers[0]))

    async def _stream_content(self) -> bool:
        """Send a content that is read while it is sent; `False` when it could not be read."""
        session, stuffer = self._session, DotStuffer()
        try:
            async with aclosing(self._content.chunks()) as chunks:
                async for chunk in chunks:
                    if session.has_answers or not session.is_usable:
                        return True  # refused or lost midway: the reply, or its absence, tells
                    await session.send(content(stuffer.feed(chunk), is_last=False))
        except (OSError, ContentError) as error:
            # Our fault: the content stays unfinished, and the connection with it.
            session.abandon()
            text = f"the content could not be read: {error}"
            self._settle_rest(ours(Status.DEFERRED, Cause.IO, Stage.CONTENT, text))
            return False
        await session.send(content(stuffer.finish()))
        return True

    # -- verdicts ---------------------------------------------------------------------------

    def _lose(self) -> _Step:
        """The session ended before the reply that was due."""
        ending = self._session.loss or SessionLost(Cause.CLOSED, None)
        command = ending.command
        trouble = lost(
            ending,
            is_pipelined=self._pipelining and command is not None and command.shown is None,
            is_content_written=self.is_content_written,
            octets=self.content_octets,
        )
        self._settle_rest(judge(trouble, self._peer))
        return _Step.NOTHING

    def _close(self, answer: Answered) -> _Step:
        """421: the session is over, whatever was asked (RFC 5321 §3.8)."""
        self._settle_rest(self._judge_refusal(answer))
        return _Step.NOTHING

    def _refuse_all(self, answer: Answered) -> None:
        trouble = refused(answer.command, answer.reply, is_pipelined=self._pipelining)
        if is_protocol_doubt(trouble):
            self.doubtful = [place for place, known in enumerate(self.verdicts) if known is None]
        self._settle_rest(judge(trouble, self._peer))

    def _settle_rest(self, verdict: Verdict) -> None:
        """Give the verdict to everybody who has none."""
        verdicts = self.verdicts
        for index, known in enumerate(verdicts):
            if known is None:
                verdicts[index] = verdict

    def _judge_refusal(self, answer: Answered) -> Verdict:
        trouble = refused(
            answer.command,
            answer.reply,
            is_pipelined=self._pipelining and answer.command.shown is None,
            is_early=answer.is_early,
        )
        return judge(trouble, self._peer)
