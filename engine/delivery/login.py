"""Authenticate a session (RFC 4954 §4): read the credentials, try one mechanism after another.

Called by `engine.delivery.opening`.  What each mechanism says is `engine.smtp.sasl`'s.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import trio

from engine.delivery.credentials import CredentialsUnavailableError, read_credentials
from engine.delivery.verdict import Trouble, refused
from engine.outcome import Cause, Scope
from engine.smtp import sasl
from engine.smtp.command import auth, auth_step
from engine.smtp.errors import CredentialsError, SaslError, ServerProofError
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.delivery.session import Session
    from engine.setting_types import Auth
    from engine.smtp.command import Command
    from engine.smtp.connection import Answered
    from engine.smtp.mechanisms import Credentials
    from engine.smtp.reply import Reply
    from engine.smtp.sasl import Exchange

_NOT_OFFERED: Final = EnhancedStatusCode(4, 7, 4)
_NO_PROOF: Final = EnhancedStatusCode(4, 7, 0)
_OUR_SIDE: Final = EnhancedStatusCode(4, 3, 5)


class Login:
    """Authentication of one session.

    Attributes:
        mechanism: The one that worked, `None` while none has.
        refusal: The refusal of the last mechanism that was tried.
    """

    def __init__(
        self,
        settings: Auth | None,
        *,
        is_required: bool,
        in_clear: bool,
        host: str,
        port: int | None,
        tell: Callable[[Reply, str], None],
    ) -> None:
        """Prepare it.

        Args:
            settings: Whose credentials, and which mechanisms; `None`: there is nobody to be.
            is_required: Whether the session is of no use without.
            in_clear: Whether a mechanism that shows the secret may be used without TLS.
            host: The server's name.
            port: Its TCP port.
            tell: Told of each refusal, with the mechanism.
        """
        self.mechanism: str | None = None
        self.refusal: Answered | None = None
        self._settings = settings
        self._is_required = is_required
        self._in_clear = in_clear
        self._host = host
        self._port = port
        self._tell = tell
        self._credentials: Credentials | None = None
        self._first: Exchange | None = None
        self._problem = ""  # with a server's challenge

    @property
    def is_due(self) -> bool:
        """Whether anything is to be done."""
        return self._settings is not None or self._is_required

    async def first_words(
        self, session: Session, offered: Sequence[str], *, has_tls: bool
    ) -> tuple[Command, ...]:
        """Return what may be said together with EHLO to a server that is known to offer this.

        A mechanism of one step: AUTH ends the group, for what follows depends on its reply.
        """
        if await self._read_credentials() is None:
            for exchange in self._exchanges(offered, has_tls=has_tls):
                if not exchange.is_one_step:
                    break
                self._first = exchange
                return (self._begin(session, exchange),)
        return ()

    async def run(
        self,
        session: Session,
        offered: Sequence[str],
        *,
        has_tls: bool,
        answer: Answered | None = None,
    ) -> Trouble | None:
        """Authenticate.

        Args:
            session: It has said hello.
            offered: The server's mechanisms.
            has_tls: Whether the connection is encrypted.
            answer: The reply to `first_words`, where those were said.

        Returns:
            Why the session is of no use; `None` also where it goes on without.

        Raises:
            SessionLost: The session ended.
        """
        if (trouble := await self._read_credentials()) is not None:
            return trouble
        first = self._first if answer is not None else None
        if first is not None:
            trouble = await self._attempt(session, first, answer)
            if trouble is not None or self.mechanism is not None:
                return trouble
        for exchange in self._exchanges(offered, has_tls=has_tls):
            if first is not None and exchange.mechanism == first.mechanism:
                continue
            trouble = await self._attempt(session, exchange)
            if trouble is not None or self.mechanism is not None:
                return trouble
        return self._failed(offered, has_tls=has_tls) if self._is_required else None

    async def _read_credentials(self) -> Trouble | None:
        if self._settings is not None and self._credentials is None:
            try:
                self._credentials = await read_credentials(self._settings)
            except CredentialsUnavailableError as error:
                text = f"our credentials cannot be had: {error}"
                return Trouble(
                    Stage.AUTH, Cause.CONFIG, detail=text, scope=Scope.SOURCE, enhanced=_OUR_SIDE
                )
        return None

    def _exchanges(self, offered: Sequence[str], *, has_tls: bool) -> Iterator[Exchange]:
        credentials, settings = self._credentials, self._settings
        if credentials is None or settings is None:
            return
        for mechanism in sasl.choose(
            offered,
            settings.mechanisms,
            has_tls=has_tls,
            in_clear_allowed=self._in_clear,
            credentials=credentials,
        ):
            nonce = secrets.token_urlsafe(24)
            try:
                exchange = sasl.start(
                    mechanism, credentials, nonce=nonce, host=self._host, port=self._port
                )
            except CredentialsError:
                continue
            yield exchange

    async def _attempt(
        self, session: Session, exchange: Exchange, answer: Answered | None = None
    ) -> Trouble | None:
        """Try one mechanism; a refusal of it alone is no trouble."""
        problem = ""
        try:
            if answer is None:
                (answer,) = await session.exchange(self._begin(session, exchange))
            while answer.reply.severity == 3:
                if problem:
                    session.abandon()
                    return _untrue(f"{exchange.mechanism}: a challenge in answer to our cancelling")
                try:
                    response = sasl.encode(await _respond(exchange, answer.reply))
                except ServerProofError:
                    raise
                except SaslError as error:
                    # RFC 4954 §4: the server answers this with 501.
                    problem, response = str(error), sasl.CANCEL
                (answer,) = await session.exchange(self._step(session, response))
            if answer.reply.is_positive:
                exchange.finish()
                self.mechanism = exchange.mechanism
                return None
        except SaslError as error:
            # To the server we may be who we are; to us it is not who it must be.
            session.abandon()
            return _untrue(f"{exchange.mechanism}: {error}")
        reply = answer.reply
        self._tell(reply, exchange.mechanism)
        if reply.severity == 4:
            return refused(answer.command, reply, is_pipelined=False)  # the server's own trouble
        if session.loss is not None:
            raise session.loss
        if problem:
            self._problem = f"{exchange.mechanism}: {problem}"
        else:
            self.refusal = answer
        return None

    def _begin(self, session: Session, exchange: Exchange) -> Command:
        response = exchange.initial_response()
        if self._credentials is not None and self._credentials.secret is not None:
            session.conceal(self._credentials.secret.encode())
        if response is None:
            return auth(exchange.mechanism)
        encoded = sasl.encode_initial(response)
        _conceal(session, encoded)
        return auth(exchange.mechanism, encoded)

    def _step(self, session: Session, response: bytes) -> Command:
        _conceal(session, response)
        return auth_step(response)

    def _failed(self, offered: Sequence[str], *, has_tls: bool) -> Trouble:
        """Say why a server where authentication is required is of no use."""
        if self.refusal is not None:
            # Our credentials are refused: another host of the same receiver would do the same.
            return refused(self.refusal.command, self.refusal.reply, is_pipelined=False)
        if self._problem:
            return _untrue(f"authentication is required, and failed: {self._problem}")
        problem = "the server offers no AUTH"
        if self._settings is None:
            problem = "there are no credentials for it"
        elif offered:
            problem = "the server offers no mechanism that we can use"
            self._in_clear, could_in_clear = True, self._in_clear
            if not could_in_clear and any(self._exchanges(offered, has_tls=has_tls)):
                problem = "the server offers it with the password in clear only"
        scope = Scope.SOURCE if self._settings is None else Scope.HOST
        cause = Cause.CONFIG if self._settings is None else Cause.UNSUPPORTED
        text = f"authentication is required, and {problem}"
        return Trouble(Stage.AUTH, cause, detail=text, scope=scope, enhanced=_NOT_OFFERED)


def _conceal(session: Session, response: bytes) -> None:
    """Keep a response from being shown if the server repeats it, as some do what they refuse."""
    if len(response) > 1:  # not "*", "=" or nothing
        session.conceal(response)


async def _respond(exchange: Exchange, reply: Reply) -> bytes:
    challenge = sasl.read_challenge(reply)
    if exchange.derives_keys:
        return await trio.to_thread.run_sync(exchange.respond, challenge)
    return exchange.respond(challenge)


def _untrue(text: str) -> Trouble:
    return Trouble(Stage.AUTH, Cause.POLICY, detail=text, scope=Scope.HOST, enhanced=_NO_PROOF)
