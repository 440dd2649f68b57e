"""What each SASL mechanism says, step by step (RFC 4422 §5).  Knows no I/O.

Run by `engine.smtp.sasl`, which has the doors; `engine.setting_types` asks which mechanisms exist.
Not here: which mechanism is taken when, and base64.

Nothing here shows a password or a token, nor what a challenge holds: not in an error, not in a
`repr()`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.smtp.errors import CredentialsError, LocalProtocolError, SaslError, ServerProofError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Rounds of key derivation done at a server's wish: about a second of CPU.  RFC 5802 §5.1 asks
#: servers for 4096 or more, OWASP for 600,000.
MAX_ITERATIONS: Final = 1_000_000

# What RFC 4616 §2 keeps out of PLAIN, and what UTF-8 cannot encode.
_NEVER: Final = re.compile(r"[\0\ud800-\udfff]")
_CONTROL: Final = re.compile(r"[\0-\x1f\x7f]")
# RFC 6750 §2.1 allows less, but a token is its issuer's: only separators must be kept out.
_TOKEN: Final = re.compile(r"[!-~]+")
_NONCE: Final = re.compile(r"[!-+\--~]+")  # RFC 5802 §7: printable, no comma
_ITERATIONS: Final = re.compile(r",i=([0-9]{1,20})(?=,|\Z)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are, and what proves it.

    Attributes:
        username: The authentication identity, or `None`.
        secret: A password or a token, or `None` where something else proves who we are
            (EXTERNAL); never shown.
        is_token: Whether the secret is a bearer token (RFC 6750 §1.2); decides which mechanisms
            are taken where none are named.

    Raises:
        CredentialsError: A NUL or a surrogate in either.
    """

    username: str | None
    secret: str | None = field(default=None, repr=False)
    is_token: bool = False

    def __post_init__(self) -> None:
        for text in (self.username, self.secret):
            if text is not None and _NEVER.search(text):
                raise CredentialsError("a NUL or a surrogate in a user name, password or token")


class Facts(NamedTuple):
    """What an exchange may depend on besides the credentials; `engine.smtp.sasl.start` tells."""

    nonce: str
    host: str | None
    port: int | None


#: A mechanism at work.  It yields its initial response, or `None` when the server speaks first; is
#: sent each challenge and yields the response to it; is sent `None` when the server reports
#: success.  Where it returns, it knows of no more challenges.
Steps = Generator[bytes | None, bytes | None, None]


def _plain(credentials: Credentials, _facts: Facts) -> Steps:
    # RFC 4616 §2 has the server prepare both strings, so they go as they are.
    username, password = _pair(credentials)
    yield b"\0%b\0%b" % (username.encode(), password.encode())


def _login(credentials: Credentials, _facts: Facts) -> Steps:
    # draft-murchison-sasl-login-00: the server speaks first; what its prompts say is for show.
    username, password = _pair(credentials)
    yield None
    yield username.encode()
    yield password.encode()


def _cram_md5(credentials: Credentials, _facts: Facts) -> Steps:
    import hmac

    username, password = _pair(credentials)
    challenge = yield None
    if not challenge:
        raise SaslError("CRAM-MD5 without a challenge (RFC 2195 §2)")
    try:
        digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
    except ValueError:
        raise SaslError("MD5 is switched off on this machine") from None
    yield f"{username} {digest}".encode()


def _scram(mechanism: str, credentials: Credentials, facts: Facts) -> Steps:
    # RFC 5802 §3, without channel binding.  The library applies SASLprep to both strings.
    from scramp import ScramClient, ScramException

    username, password = _pair(credentials)
    if not _NONCE.fullmatch(facts.nonce):
        raise LocalProtocolError("SCRAM needs a nonce of printable ASCII without commas")
    try:
        client = ScramClient([mechanism], username, password, c_nonce=facts.nonce)
        client_first: str = client.get_client_first()
    except ScramException:
        raise CredentialsError("a user name or password outside SASLprep (RFC 4013 §2)") from None
    server_first = _proof((yield client_first.encode()))
    rounds = _ITERATIONS.search(server_first)
    if rounds and int(rounds[1]) > MAX_ITERATIONS:
        raise SaslError(f"the server asks for over {MAX_ITERATIONS} rounds of key derivation")
    try:
        client.set_server_first(server_first)
        client_final: str = client.get_client_final()
    except ScramException:
        raise SaslError("a challenge that is no server-first-message (RFC 5802 §7)") from None
    server_final = _proof((yield client_final.encode()))
    if server_final.startswith("e="):
        raise SaslError("the server refused our proof")
    try:
        client.set_server_final(server_final)
    except ScramException:
        raise ServerProofError("the server does not prove that it knows the password") from None
    # RFC 4954 §4 has no place for data beside a success, so this came as a challenge.
    yield b""


def _xoauth2(credentials: Credentials, _facts: Facts) -> Steps:
    # Google's, and Microsoft's too; in no RFC.
    username, token = _pair(credentials)
    _check_bearer(username, token)
    yield f"user={username}\x01auth=Bearer {token}\x01\x01".encode()
    # A challenge holds the reason of a refusal; the refusal comes when we have taken note of it.
    yield b""


def _oauthbearer(credentials: Credentials, facts: Facts) -> Steps:
    # RFC 7628 §3.1; RFC 5801 §4 says how the identity is written.
    token = _secret(credentials)
    _check_bearer(credentials.username or "", token)
    identity = (credentials.username or "").replace("=", "=3D").replace(",", "=2C")
    header = f"n,a={identity}," if identity else "n,,"
    host = "" if facts.host is None else f"host={facts.host}\x01"
    port = "" if facts.port is None else f"port={facts.port}\x01"
    yield f"{header}\x01{host}{port}auth=Bearer {token}\x01\x01".encode()
    # RFC 7628 §3.2.3: the reason of a refusal is acknowledged by a lone separator.
    yield b"\x01"


def _external(credentials: Credentials, _facts: Facts) -> Steps:
    # RFC 4422 Appendix A: an empty identity asks for the one that goes with the certificate.
    yield (credentials.username or "").encode()


def _secret(credentials: Credentials) -> str:
    if credentials.secret is None:
        raise CredentialsError("no password or token")
    return credentials.secret


def _pair(credentials: Credentials) -> tuple[str, str]:
    if not credentials.username:
        raise CredentialsError("no user name")
    return credentials.username, _secret(credentials)


def _check_bearer(username: str, token: str) -> None:
    if _CONTROL.search(username):
        raise CredentialsError("a control character in the user name")
    if not _TOKEN.fullmatch(token):
        raise CredentialsError("a token that is not of printable ASCII without spaces")


def _proof(challenge: bytes | None) -> str:
    """Read a message of SCRAM; a success in its place proves nothing (RFC 5802 §9)."""
    if challenge is None:
        raise ServerProofError("success without proof that the server knows the password")
    try:
        return challenge.decode()
    except UnicodeDecodeError:
        raise SaslError("a challenge that is no UTF-8") from None


class Mechanism(NamedTuple):
    """A mechanism, and what there is to know before it is taken.

    Attributes:
        steps: Begins an exchange.
        takes_token: Whether its secret is a bearer token; `None`: it has no secret.
        needs_username: Whether it is of no use without a user name.
        shows_secret: Whether who reads along learns the password or token.
        is_one_step: Whether the AUTH command and its reply are all there is to it (RFC 4954 §4).
        derives_keys: Whether a response may take up to a second of CPU.
    """

    steps: Callable[[Credentials, Facts], Steps]
    takes_token: bool | None = False
    needs_username: bool = True
    shows_secret: bool = False
    is_one_step: bool = False
    derives_keys: bool = False


#: Every mechanism there is here by its name, strongest first.
MECHANISMS: Final[Mapping[str, Mechanism]] = MappingProxyType(
    {
        "SCRAM-SHA-256": Mechanism(partial(_scram, "SCRAM-SHA-256"), derives_keys=True),
        "SCRAM-SHA-1": Mechanism(partial(_scram, "SCRAM-SHA-1"), derives_keys=True),
        "CRAM-MD5": Mechanism(_cram_md5),
        "PLAIN": Mechanism(_plain, shows_secret=True, is_one_step=True),
        "LOGIN": Mechanism(_login, shows_secret=True),
        "OAUTHBEARER": Mechanism(
            _oauthbearer, takes_token=True, needs_username=False, shows_secret=True
        ),
        "XOAUTH2": Mechanism(_xoauth2, takes_token=True, shows_secret=True),
        "EXTERNAL": Mechanism(_external, takes_token=None, needs_username=False, is_one_step=True),
    }
)
