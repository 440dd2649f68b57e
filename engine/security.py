"""What a host must show before mail goes to it over TLS.  Values only; knows no I/O.

Made by `engine.routing` from the settings, DANE and MTA-STS; read by `engine.net`, which makes the
handshake and holds the certificate against it, and by delivery, which says what became of it.
What was reached is `engine.outcome.TlsFacts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

#: Who asks for TLS, as the outcome record names it.
PolicyName: TypeAlias = Literal["opportunistic", "required", "dane", "mta-sts"]


class TlsLevel(IntEnum):
    """How much is asked for; a higher level includes the lower ones."""

    #: STARTTLS is not used, even where it is offered.
    OFF = 0
    #: TLS where it is offered, whatever the certificate (RFC 7435 §3).
    OPPORTUNISTIC = 1
    #: Encrypted, whatever the certificate.
    REQUIRE = 2
    #: Encrypted, and the certificate is the host's: by TLSA records where there are any, else by
    #: its chain and one of the names.
    VERIFY = 3


class Tlsa(NamedTuple):
    """One TLSA record (RFC 6698 §2.1).

    Attributes:
        usage: Certificate usage; only 2 (DANE-TA) and 3 (DANE-EE) serve SMTP (RFC 7672 §3.1).
        selector: 0 the whole certificate, 1 its public key.
        matching: 0 the octets themselves, 1 SHA-256, 2 SHA-512.
        data: What to match.
    """

    usage: int
    selector: int
    matching: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TlsDemand:
    """What TLS with one host must be; connections are shared only where it is equal.

    Attributes:
        level: How much is asked for.
        policy: Who asks for it.
        names: Reference identifiers, A-labels in lower case: one of them must be in the
            certificate where names count (RFC 7672 §3.2, RFC 8461 §4.1).
        sni: The server name to ask for (RFC 6066 §3), `None` for none.
        tlsa: Usable records, empty without DANE.  With the level `REQUIRE` and none of them DANE
            found only unusable ones: TLS without authentication (RFC 7672 §2.2).
        is_fresh: Whether the certificate must be seen itself, not a resumed session.
    """

    level: TlsLevel = TlsLevel.OPPORTUNISTIC
    policy: PolicyName = "opportunistic"
    names: tuple[str, ...] = ()
    sni: str | None = None
    tlsa: tuple[Tlsa, ...] = ()
    is_fresh: bool = False
