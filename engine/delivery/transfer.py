"""One mail transaction over a session: MAIL, RCPT, DATA, content, and a verdict for everybody.

The hot path of a bulk sender: with PIPELINING a message costs two windows and two waits.
"""

from __future__ import annotations

from contextlib import aclosing
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
    from engine.delivery.envelope import Envelope
    from engine.delivery.session import Session
    from engine.delivery.verdict import Verdict
    from engine.message import Content
    from engine.outcome import Peer
    from engine.smtp.command import Command
    from engine.smtp.connection import Answered


class _ServiceClosing(Exception):  # noqa: N818 - a turn of the dialogue
    """421: the session is over, whatever was asked (RFC 5321 §3.8)."""

    def __init__(self, answer: Answered) -> None:
        super().__init__(answer)
        self.answer = answer


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
        self, session: Session, envelope: Envelope, content: Content, peer: Peer, *, pipelining: bool
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
    def is_content_written(self) -> bool:
        """Whether the content has left to its last octet, or may have."""
        return self._session.contents_written > self._contents_before

    async def run(self) -> None:
        """Carry the transaction out; never raises for what the peer does.

        Cancelled before the content's end nothing was delivered; from there on the session keeps
        cancellation away until the reply came or was given up.
        """
        try:
            if self._pipelining:
                is_wanted = await self._open_pipelined()
            else:
                is_wanted = await self._open_in_lockstep()
            if is_wanted:
                await self._send_content()
        except _ServiceClosing as closing:
            self._settle_rest(self._judge_refusal(closing.answer))
        except SessionLost as ending:
            self._settle_rest(self._judge_loss(ending))

    # -- opening ----------------------------------------------------------------------------

    async def _open_pipelined(self) -> bool:
        session, envelope = self._session, self._envelope
        await session.send(envelope.mail, *envelope.rcpts, DATA)
        answer = await self._reply()
        if not answer.reply.is_positive:
            self._refuse_all(answer)
            await self._discard(len(envelope.rcpts) + 1)
            return False
        for index in range(len(envelope.rcpts)):
            self._hear_rcpt(index, await self._reply())
        self._forgive_overflow()
        answer = await self._reply()
        if answer.reply.severity == 3:
            if self._accepted:
                return True
            await self._send_lone_dot()
        elif self._accepted:
            self._refuse_all(answer)
        return False

    async def _open_in_lockstep(self) -> bool:
        answer = await self._ask(self._envelope.mail)
        if not answer.reply.is_positive:
            self._refuse_all(answer)
            return False
        for index, command in enumerate(self._envelope.rcpts):
            self._hear_rcpt(index, await self._ask(command))
        self._forgive_overflow()
        if not self._accepted:
            return False
        answer = await self._ask(DATA)
        if answer.reply.severity == 3:
            return True
        self._refuse_all(answer)
        return False

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
        try:
            await self._session.exchange(LONE_DOT)
        except SessionLost:
            return

    async def _discard(self, count: int) -> None:
        """Hear out what was in flight behind a refusal; the refusal is what counts."""
        try:
            for _ in range(count):
                answer = await self._session.reply()
                if answer.reply.code == 421:
                    return
                if answer.reply.severity == 3:
                    await self._send_lone_dot()
        except SessionLost:
            return

    # -- the content ------------------------------------------------------------------------

    async def _send_content(self) -> None:
        session, octets = self._session, self._content.octets
        try:
            if octets is not None:
                session.commit()
                await session.send(content(stuff(octets)))
            elif not await self._stream_content():
                return
            answer = await self._reply()
        finally:
            session.release()
        if answer.reply.is_positive:
            verdict = delivered(answer.reply, self._peer)
        else:
            verdict = self._judge_refusal(answer)
        for index in self._accepted:
            self.verdicts[index] = verdict

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
        session.commit()
        await session.send(content(stuffer.finish()))
        return True

    # -- small parts ------------------------------------------------------------------------

    async def _ask(self, command: Command) -> Answered:
        await self._session.send(command)
        return await self._reply()

    async def _reply(self) -> Answered:
        answer = await self._session.reply()
        self.was_heard = True
        if answer.reply.code == 421:
            raise _ServiceClosing(answer)
        return answer

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

    def _judge_loss(self, ending: SessionLost) -> Verdict:
        command = ending.command
        trouble = lost(
            ending,
            is_pipelined=self._pipelining and command is not None and command.shown is None,
            is_content_written=self.is_content_written,
            octets=self._session.content_octets - self._octets_before,
        )
        return judge(trouble, self._peer)
