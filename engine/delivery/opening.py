"""The opening of a session: greeting, hello, TLS, authentication; and the QUIT at its end.

`Opening` goes step by step before any mail.  With early pipelining it says what a server is known to
take before that has greeted, and what belongs in one window with the first envelope it leaves to
whoever sends that: `first_words` go in front, and `confirm` hears the replies to them.

It returns `Trouble` for everything a server may do, and raises only for the end of the session, for
TLS that fails, and for bugs of ours.  Not here: what is said of a message
(`engine.delivery.transaction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from engine.delivery.session_terms import SessionLost
from engine.delivery.verdict import Trouble, refused
from engine.outcome import Cause
from engine.security import TlsLevel
from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities
from engine.smtp.command import QUIT, STARTTLS, Kind, hello
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from engine.delivery.login import Login
    from engine.delivery.session import Session
    from engine.net.stream import ByteStream
    from engine.smtp.command import Command
    from engine.smtp.connection import Answered
    from engine.smtp.reply import Reply

#: By these names, in greeting or hello, servers are known that take mail transactions in flight,
#: behind a final dot and by BDAT (tried with Exim 4.96 and Postfix 3.7).
_KNOWN_TO_STREAM: Final = (b"exim", b"postfix")
_NO_TLS: Final = EnhancedStatusCode(4, 7, 4)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a session is to be opened.

    Attributes:
        name: Our name.
        esmtp: Whether EHLO is tried.
        lmtp: Whether LMTP is spoken.
        level: How much is asked of STARTTLS.
        has_tls: Whether the connection is over TLS from the first octet.
        falls_back: Whether mail may go in clear where STARTTLS is refused for the moment.
    """

    name: str
    esmtp: bool = True
    lmtp: bool = False
    level: TlsLevel = TlsLevel.OFF
    has_tls: bool = False
    falls_back: bool = True


class Surroundings(Protocol):
    """What an opening needs of those around it."""

    async def shake_hands(self, stream: ByteStream) -> ByteStream:
        """Make a TLS stream of one in clear.

        Raises:
            TlsFailed: There is none.
        """
        ...

    def recall(self, *, has_tls: bool) -> Capabilities | None:
        """Return what the server is known to offer, if it takes commands before its greeting.

        Args:
            has_tls: Whether that is over TLS; in clear it may offer something else.
        """
        ...

    def heard(self, kind: Kind, reply: Reply, *, has_tls: bool) -> Trouble | None:
        """Take note of a reply to greeting or hello; the session may be given up for it."""
        ...


class Opening:
    """The opening of one session.

    Attributes:
        offered: What the server offers; with `first_words` unanswered, what it is known to offer.
        is_known_to_stream: Whether greeting or hello name a server that takes several transactions
            in flight.
        has_tls: Whether the session is over TLS.
        first_words: What belongs in front of the first envelope, in its window; empty as a rule.
        speaks_first: Whether anything was said before the server had greeted, or over TLS before
            it had answered our hello.
        is_misfit: Whether the server did not do what it was known for, so that it deserves to be
            asked again the ordinary way, over a new connection.
    """

    def __init__(
        self, session: Session, terms: Terms, around: Surroundings, login: Login | None = None
    ) -> None:
        self.offered = NO_CAPABILITIES
        self.is_known_to_stream = False
        self.has_tls = terms.has_tls
        self.first_words: tuple[Command, ...] = ()
        self.speaks_first = False
        self.is_misfit = False
        self._session = session
        self._terms = terms
        self._around = around
        self._login = login
        self._is_greeted = False

    async def run(self) -> Trouble | None:
        """Open the session.

        Returns:
            Why the server takes no mail from us; `None` when it does, or when that will be known
            by `confirm`.  After a refusal the session still stands, so that QUIT can be said.

        Raises:
            SessionLost: The session ended.
            TlsFailed: There is no TLS, or not the one demanded.
        """
        wants_tls = self._terms.level > TlsLevel.OFF and not self.has_tls
        known = self._around.recall(has_tls=self.has_tls)
        if known is None:
            trouble = await self._hear_greeting() or await self._say_hello()
            answer = None
        elif not wants_tls:
            return await self._speak_first(known)
        elif known.starttls:
            trouble, answer = await self._say_early(STARTTLS)
        elif self._terms.level > TlsLevel.OPPORTUNISTIC:
            # Let it say itself that it has no TLS.
            trouble = await self._hear_greeting() or await self._say_hello()
            answer = None
        else:
            return await self._speak_first(known)
        if trouble is None and wants_tls:
            trouble = await self._start_tls(answer)
            if trouble is None and self.has_tls:
                known = self._around.recall(has_tls=True)
                if known is not None:
                    return await self._speak_first(known)
                trouble = await self._say_hello()
        return trouble or await self._log_in()

    async def confirm(self) -> Trouble | None:
        """Hear what the server says to `first_words`, which were sent.

        Returns:
            As `run`.  When the session is lost first, nothing is known: what was sent behind
            learns of it.
        """
        is_greeted, count = self._is_greeted, len(self.first_words)
        self.first_words = ()
        answers = await self._session.replies(count + (not is_greeted))
        trouble = None
        if not is_greeted and answers:
            trouble = self._heard_greeting(answers.pop(0))
        return trouble or (self._heard_early(answers[0]) if answers else None)

    # -- greeting and hello -----------------------------------------------------------------

    async def _hear_greeting(self) -> Trouble | None:
        await self._session.open()
        return self._heard_greeting(await self._session.reply())

    def _heard_greeting(self, answer: Answered) -> Trouble | None:
        self._is_greeted = True
        veto = self._around.heard(Kind.CONNECT, answer.reply, has_tls=self.has_tls)
        self._see_whether_it_streams(answer.reply)
        if not answer.reply.is_positive:
            return refused(answer.command, answer.reply, is_pipelined=False)
        return veto

    async def _say_hello(self) -> Trouble | None:
        """EHLO first; HELO after any complete refusal of it (RFC 5321 §3.2), or if told so.

        LHLO has no fallback (RFC 2033 §4.1).  Nor has EHLO over TLS, where the server has already
        shown that it knows it.
        """
        terms, session = self._terms, self._session
        kind = Kind.LHLO if terms.lmtp else Kind.EHLO if terms.esmtp else Kind.HELO
        (answer,) = await session.exchange(hello(kind, terms.name))
        veto = self._around.heard(kind, answer.reply, has_tls=self.has_tls)
        is_starttls = self.has_tls and not terms.has_tls
        if (
            not answer.reply.is_positive
            and kind is Kind.EHLO
            and not is_starttls
            and session.is_usable
        ):
            kind, refusal = Kind.HELO, answer.reply.text
            try:
                (answer,) = await session.exchange(hello(kind, terms.name))
            except SessionLost as ending:
                ending.add_remark(f"EHLO response was: {refusal}")
                raise
            veto = self._around.heard(kind, answer.reply, has_tls=self.has_tls)
        if not answer.reply.is_positive:
            return refused(answer.command, answer.reply, is_pipelined=False)
        self._see_whether_it_streams(answer.reply)
        self.offered = NO_CAPABILITIES if kind is Kind.HELO else Capabilities.parse(answer.reply)
        return veto

    def _see_whether_it_streams(self, reply: Reply) -> None:
        line = reply.lines[0].lower()
        self.is_known_to_stream |= any(name in line for name in _KNOWN_TO_STREAM)

    # -- early pipelining -------------------------------------------------------------------

    async def _speak_first(self, known: Capabilities) -> Trouble | None:
        """Say hello to a server without waiting for its greeting, together with what comes next."""
        login = self._login
        if login is None or not login.is_due:
            self.offered = known
            self.speaks_first = True
            self.first_words = (hello(Kind.EHLO, self._terms.name),)
            return None
        words = await login.first_words(self._session, known.auth, has_tls=self.has_tls)
        trouble, answer = await self._say_early(*words)
        if trouble is not None:
            return trouble
        return await login.run(
            self._session, self.offered.auth, has_tls=self.has_tls, answer=answer
        )

    async def _say_early(self, *words: Command) -> tuple[Trouble | None, Answered | None]:
        """Say EHLO and at most one thing behind it; return what became of EHLO, and its reply."""
        session, is_greeted = self._session, self._is_greeted
        self.speaks_first = True
        await session.send(hello(Kind.EHLO, self._terms.name), *words)
        trouble = None
        if not is_greeted:
            trouble = await self._hear_greeting()
        answer = await session.reply()
        trouble = trouble or self._heard_early(answer)
        # All is heard before anything else can be said.
        return trouble, await session.reply() if words else None

    def _heard_early(self, answer: Answered) -> Trouble | None:
        shown = self._session.shown(answer.reply)
        veto = self._around.heard(Kind.EHLO, shown, has_tls=self.has_tls)
        if not answer.reply.is_positive:
            # A 421 is no disagreement: the server goes.
            self.is_misfit = answer.reply.code != 421
            return refused(answer.command, answer.reply, is_pipelined=True)
        self._see_whether_it_streams(answer.reply)
        self.offered = Capabilities.parse(answer.reply)
        return veto

    # -- TLS --------------------------------------------------------------------------------

    async def _start_tls(self, answer: Answered | None) -> Trouble | None:
        """Start TLS where it is offered; `None` also where mail may go in clear."""
        terms, session = self._terms, self._session
        is_needed = terms.level > TlsLevel.OPPORTUNISTIC
        if answer is None:
            if not self.offered.starttls:
                if not is_needed:
                    return None
                text = "TLS is required, and the server does not offer STARTTLS"
                return Trouble(Stage.STARTTLS, Cause.UNSUPPORTED, detail=text, enhanced=_NO_TLS)
            (answer,) = await session.exchange(STARTTLS)
        reply = answer.reply
        if reply.is_positive:
            await session.start_tls(self._around.shake_hands)
            self.has_tls = True
            # RFC 3207 §4.2: what was said in clear is forgotten.
            self.offered = NO_CAPABILITIES
            return None
        is_for_now = reply.severity == 4
        if is_needed or not session.is_usable or (is_for_now and not terms.falls_back):
            return refused(answer.command, reply, is_pipelined=False)
        return None

    async def _log_in(self) -> Trouble | None:
        login = self._login
        if login is None or not login.is_due:
            return None
        return await login.run(self._session, self.offered.auth, has_tls=self.has_tls)


async def say_quit(session: Session) -> None:
    """Say QUIT, wait for the answer as long as `Timeouts.quit` allows, and close.

    RFC 5321 §4.1.1.10 wants the reply to be waited for; what was delivered stays delivered
    whatever becomes of it.
    """
    if not session.has_said_quit:
        await session.send(QUIT)
    while session.is_owed and (await session.hear()).replies:
        pass
    await session.close()
