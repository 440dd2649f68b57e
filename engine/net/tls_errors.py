"""How TLS fails: one exception with everything an outcome and a TLS report need.

Raised by `engine.net.tls`, turned into outcomes by `engine.delivery`.  Decides who is to blame and
what a report calls it; not whether to try again, in clear or at all.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from engine.errors import EngineError
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.outcome import Peer

#: What a TLS report calls a failure (RFC 8460 §4.3), as far as a handshake can tell.
TlsResult: TypeAlias = Literal[
    "certificate-expired",
    "certificate-host-mismatch",
    "certificate-not-trusted",
    "tlsa-invalid",
    "validation-failure",
]

#: X509_V_ERR_CERT_HAS_EXPIRED.  All other codes of OpenSSL that a chain can meet with are what the
#: RFC calls not trusted: unknown authorities, constraints, errors in the chain.
_EXPIRED: Final = 10

#: What OpenSSL's words for common failures of a handshake mean to a person.
_HINTS: Final[Mapping[str, str]] = {
    "wrong version number": "the peer does not answer with TLS",
    "unsupported protocol": "the peer has only versions of TLS that are too old",
    "tlsv1 alert protocol version": "the peer has no version of TLS that we have",
    "sslv3 alert handshake failure": "the peer agrees to none of our ciphers and versions",
    "tlsv13 alert certificate required": "the peer wants a certificate of ours",
}


class Unverified(EngineError):  # noqa: N818 - an expected result, read aloud: "unverified"
    """The certificate does not show what it must.

    Attributes:
        text: Why, on one line; whatever it quotes of the certificate is escaped.
        result: The report's word for it.
    """

    def __init__(self, text: str, result: TlsResult) -> None:
        super().__init__(text)
        self.text = text
        self.result = result

    @classmethod
    def from_openssl(cls, error: ssl.SSLCertVerificationError) -> Unverified:
        """Make one of what OpenSSL has against a chain."""
        is_expired = error.verify_code == _EXPIRED
        result: TlsResult = "certificate-expired" if is_expired else "certificate-not-trusted"
        return cls(error.verify_message, result)


class AnsweredInClear(EngineError):  # noqa: N818 - as above
    """The peer said what passes for an SMTP reply, a positive one, where TLS was due."""


class TlsFailed(EngineError):  # noqa: N818 - an expected result, read aloud: "TLS failed"
    """There is no TLS, or not the TLS that was asked for; the connection is closed.

    Attributes:
        stage: `tls`.
        cause: `timeout`; `config` where our own certificate or authorities cannot be read; `tls` for
            the rest, also where the peer hung up: some do in place of an alert.
        scope: `host`; `local` for our own files.
        text: One line for a person: what was tried with whom, and what happened.
        errno: The system's number for it, `None` where no system call failed.
        result: What a TLS report calls it, `None` for what need not be reported
            (RFC 8460 §4.3.4).
        reason: `text` without the peer, for the report's `failure-reason-code`.
        clear_may_help: Whether it might work without TLS: the handshake failed.  Not so when the
            certificate was found wanting: then somebody else may be at the other end.
        was_reply: Whether what came in place of TLS passes for a positive reply: behind STARTTLS
            that is what somebody in between would say.
    """

    stage: Final = Stage.TLS

    def __init__(
        self,
        peer: Peer,
        cause: Cause,
        reason: str,
        *,
        scope: Scope = Scope.HOST,
        errno: int | None = None,
        result: TlsResult | None = None,
        clear_may_help: bool = False,
        was_reply: bool = False,
    ) -> None:
        text = f"start TLS with {peer}: {reason}"
        super().__init__(text)
        self.cause = cause
        self.scope = scope
        self.text = text
        self.errno = errno
        self.result = result
        self.reason = reason
        self.clear_may_help = clear_may_help
        self.was_reply = was_reply

    @classmethod
    def from_handshake(cls, peer: Peer, error: ssl.SSLError) -> TlsFailed:
        """Make one of a handshake that came to nothing."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return cls.from_unverified(peer, Unverified.from_openssl(error))
        return cls.from_alert(peer, describe(error))

    @classmethod
    def from_reply(cls, peer: Peer) -> TlsFailed:
        """Make one of a reply in clear in place of TLS."""
        reason = "the peer does not answer with TLS, but with a reply in clear"
        return cls(peer, Cause.TLS, reason, result="validation-failure", was_reply=True)

    @classmethod
    def from_alert(cls, peer: Peer, words: str) -> TlsFailed:
        """Make one of OpenSSL's words for what went wrong, also behind the handshake.

        With TLS 1.3 a peer finds our certificate wanting, or missing, when we are done already.
        """
        hint = _HINTS.get(words)
        reason = words if hint is None else f"{hint} ({words})"
        return cls(peer, Cause.TLS, reason, result="validation-failure", clear_may_help=True)

    @classmethod
    def from_unverified(cls, peer: Peer, error: Unverified) -> TlsFailed:
        """Make one of a certificate that does not do."""
        return cls(peer, Cause.TLS, error.text, result=error.result)

    @classmethod
    def from_lost_connection(cls, peer: Peer, error: BaseException) -> TlsFailed:
        """Make one of a connection that broke in the handshake."""
        system = error.__cause__
        return cls(
            peer,
            Cause.TLS,
            str(error) or "connection broken",
            errno=system.errno if isinstance(system, OSError) else None,
            result="validation-failure",
            clear_may_help=True,
        )


def alert_in(error: BaseException | None) -> str:
    """Return OpenSSL's words for the peer's alert, empty where an error is none.

    Behind the handshake nobody in between can say it.
    """
    if isinstance(error, ssl.SSLError) and "_ALERT_" in (error.reason or ""):
        return describe(error)
    return ""


def describe(error: ssl.SSLError) -> str:
    """Say in OpenSSL's words, on one line, what went wrong.

    Nothing of the peer's is quoted: an alert is a number (RFC 8446 §6), and the words for it are
    the library's.
    """
    if isinstance(error, ssl.SSLEOFError):
        return "the peer closed the connection"
    return (error.reason or "failed").replace("_", " ").lower()
