"""SASL on the client's side: which mechanisms to try, and one exchange at a time.  Knows no I/O.

The conversation asks `choose` once it has the server's list (RFC 4954 §3), and for each mechanism
in turn makes an `Exchange` with `start`, feeds it challenges and sends what it answers.  A bad
challenge is a `SaslError`: it sends `CANCEL`, reads the reply and takes the next mechanism.
Not here: what each mechanism says (`engine.smtp.mechanisms`), where passwords and tokens come from
(`engine.delivery.credentials`), the commands (`engine.smtp.command`), and security layers: that is
the job of TLS.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Final

from engine.smtp.errors import LocalProtocolError, SaslError
from engine.smtp.mechanisms import MECHANISMS, Facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.smtp.mechanisms import Credentials, Steps
    from engine.smtp.reply import Reply

#: The line that cancels an exchange; the server answers it with 501 (RFC 4954 §4).
CANCEL: Final = b"*"
#: RFC 5321 §4.5.3.1.4, CRLF included.
MAX_COMMAND_OCTETS: Final = 512


def choose(
    offered: Sequence[str],
    wanted: Sequence[str],
    *,
    has_tls: bool,
    in_clear_allowed: bool,
    credentials: Credentials,
) -> list[str]:
    """Return the mechanisms to try, in order; empty when none will do.

    A server that offers nothing of use and one that would need TLS first are told apart by asking
    again with `in_clear_allowed`.

    Args:
        offered: The server's list, in any case.
        wanted: Those that may be used, in the order to try them, in any case.  Empty: all that
            fit the kind of secret, strongest first, but not EXTERNAL: only who set up our
            certificate knows whether it is one to log in with.
        has_tls: Whether the connection is encrypted.
        in_clear_allowed: Whether a mechanism that shows the secret will do without TLS.
        credentials: What there is to show.
    """
    theirs = {name.upper() for name in offered}
    order = [name.upper() for name in wanted] or [
        name for name, facts in MECHANISMS.items() if facts.takes_token is credentials.is_token
    ]
    return [
        name
        for name in dict.fromkeys(order)
        if name in theirs
        and (facts := MECHANISMS.get(name))
        and (has_tls or in_clear_allowed or not facts.shows_secret)
        and (credentials.username or not facts.needs_username)
        and (credentials.secret is not None or facts.takes_token is None)
    ]


class Exchange:
    """One try to authenticate: an initial response, a response to each challenge, an end.

    Attributes:
        mechanism: Its name, for AUTH.
        is_one_step: Whether AUTH and its reply are all there is to it when all goes well, so that
            other commands may follow in the same group (RFC 4954 §4).
        derives_keys: Whether `respond` may take up to a second of CPU, so that it belongs in a
            thread.
    """

    def __init__(self, mechanism: str, steps: Steps) -> None:
        facts = MECHANISMS[mechanism]
        self.mechanism = mechanism
        self._steps = steps
        self._initial = next(steps)
        # RFC 4954 §4: one that would make the command too long waits for a challenge without data.
        self._is_held = self._initial is not None and (
            len(f"AUTH {mechanism} \r\n") + len(encode_initial(self._initial)) > MAX_COMMAND_OCTETS
        )
        self.is_one_step = facts.is_one_step and not self._is_held
        self.derives_keys = facts.derives_keys

    def __repr__(self) -> str:
        return f"<Exchange {self.mechanism}>"

    def initial_response(self) -> bytes | None:
        """Return what goes with AUTH, by way of `encode_initial`; `None`: nothing."""
        return None if self._is_held else self._initial

    def respond(self, challenge: bytes) -> bytes:
        """Return the response to a challenge, to be sent by way of `encode`.

        Raises:
            ServerProofError: The server does not prove who it is; the session should end.
            SaslError: The challenge is none of this mechanism's, or one too many.  The exchange
                is of no use any more and must be cancelled.
        """
        if self._is_held and self._initial is not None:
            self._is_held = False
            if challenge:
                raise SaslError("a challenge with data where the server waits for us to begin")
            return self._initial
        try:
            response = self._steps.send(challenge)
        except StopIteration:
            response = None
        if response is None:
            raise SaslError(f"a challenge more than {self.mechanism} has")
        return response

    def finish(self) -> None:
        """Take note that the server reported success.

        Raises:
            SaslError: It should not have been able to yet; a `ServerProofError` where it still
                owes its proof.  The session should end, for to the server we are authenticated.
        """
        try:
            self._steps.send(None)
        except StopIteration:
            return
        self._steps.close()


def start(
    mechanism: str,
    credentials: Credentials,
    *,
    nonce: str = "",
    host: str | None = None,
    port: int | None = None,
) -> Exchange:
    """Begin an exchange.

    Args:
        mechanism: One of `MECHANISMS`.
        credentials: Who we are.
        nonce: For SCRAM: printable ASCII without commas that nobody can guess and that was never
            used before.
        host: For OAUTHBEARER: the name of the server that we are connected to.
        port: The same: its TCP port.

    Raises:
        CredentialsError: The mechanism cannot carry these credentials; another one may.
        LocalProtocolError: No such mechanism, or no usable nonce.
    """
    if mechanism not in MECHANISMS:
        raise LocalProtocolError("a SASL mechanism that is not known here")
    facts = Facts(nonce, host, port)
    return Exchange(mechanism, MECHANISMS[mechanism].steps(credentials, facts))


def encode(response: bytes) -> bytes:
    """Return a response as its line, without CRLF (RFC 4954 §4)."""
    return binascii.b2a_base64(response, newline=False)


def encode_initial(response: bytes) -> bytes:
    """Return an initial response as the argument of AUTH; an empty one is `=` (RFC 4954 §4)."""
    return encode(response) or b"="


def read_challenge(reply: Reply) -> bytes:
    """Return the challenge that a 334 holds.

    Raises:
        SaslError: Its text is not one line of nothing but base64 (RFC 4954 §4); the exchange must
            be cancelled.
    """
    if len(reply.lines) != 1:
        raise SaslError("a challenge of more than one line")
    (line,) = reply.lines
    try:
        challenge = binascii.a2b_base64(line, strict_mode=True)
    except ValueError:
        challenge = None
    # Python 3.11 lets a padding pass that nothing calls for.
    if challenge is None or len(line) % 4:
        raise SaslError("a challenge that is no base64")
    return challenge
