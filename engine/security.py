"""What a host must show before mail goes to it over TLS.  Values only; knows no I/O.

Made by `engine.routing` from the settings, DANE and MTA-STS; read by `engine.net`, which makes the
handshake and holds the certificate against it, by delivery, which says what became of it, and by
`engine.report.tlsrpt`, which counts that.  What was reached is `engine.outcome.TlsFacts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from engine.outcome import Cause, Status
    from engine.smtp.status import EnhancedStatusCode

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


#: How a session under a policy can fail, in the words of RFC 8460 §4.3.
TlsFailure: TypeAlias = Literal[
    "starttls-not-supported",
    "certificate-host-mismatch",
    "certificate-expired",
    "certificate-not-trusted",
    "validation-failure",
    "tlsa-invalid",
    "dnssec-invalid",
    "dane-required",
    "sts-policy-fetch-error",
    "sts-policy-invalid",
    "sts-webpki-invalid",
]


@dataclass(frozen=True, slots=True)
class ReportedPolicy:
    """A policy under which sessions with a host are counted for the receiver (RFC 8460 §4.4).

    Attributes:
        kind: DANE, MTA-STS, or that there is neither.
        domain: The policy domain (RFC 8460 §1.1): the TLSA base domain, the recipient domain, or
            the smart host.
        strings: The policy itself: a TLSA record or a line of the MTA-STS policy each.
        mx_hosts: The `mx` patterns of an MTA-STS policy.
        failure: What is wrong before anybody connects, `None` where nothing is.
        reason: More about the failure, a few words.
        receiver: Whose `_smtp._tls` record says where reports go: the recipient domain, or the
            smart host.  A TLSA base domain has hardly ever one.
    """

    kind: Literal["tlsa", "sts", "no-policy-found"]
    domain: str
    strings: tuple[str, ...] = ()
    mx_hosts: tuple[str, ...] = ()
    failure: TlsFailure | None = None
    reason: str = ""
    receiver: str = ""


class MessageTls(Enum):
    """What a message asks of TLS on its way (RFC 8689 §4.2)."""

    #: Nothing: the host's policies and ours decide.
    BY_POLICY = "by policy"
    #: REQUIRETLS: only to hosts which are known to be the right ones, and prove it.
    REQUIRED = "required"
    #: `TLS-Required: No`: what the receiver's policies ask for does not count.
    OPTIONAL = "optional"


class Stance(NamedTuple):
    """What domains of one site may differ in as far as TLS is concerned.

    Where it is equal, every host of theirs must show the same.

    Attributes:
        is_secure: As of the route.
        aliases: The same.
        sts: Mode and patterns of the MTA-STS policy; empty where none holds.
    """

    is_secure: bool = False
    aliases: tuple[str, ...] = ()
    sts: tuple[str, ...] = ()


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
        trial_names: As `names`, of an MTA-STS policy in testing mode: whether the certificate would
            have been good enough is told to its owner, and has no other effect (RFC 8461 §5).
        reported: Under which policies the session is counted.  Like `trial_names` it makes no
            difference to whom a connection is shared with: who opened it is counted.
    """

    level: TlsLevel = TlsLevel.OPPORTUNISTIC
    policy: PolicyName = "opportunistic"
    names: tuple[str, ...] = ()
    sni: str | None = None
    tlsa: tuple[Tlsa, ...] = ()
    is_fresh: bool = False
    trial_names: tuple[str, ...] = field(default=(), compare=False)
    reported: tuple[ReportedPolicy, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class HostRefused:
    """Why a host must not be connected to for a message; the next one may do.

    The host is to blame, and a failure says nothing about other hosts.

    Attributes:
        status: `deferred`, or `failed` where waiting would not help.
        cause: `policy`, or `dns` where a policy could not be looked up.
        enhanced: Our status code: 4.4.3 name server trouble, 4.7.1 forbidden by a policy, 5.7.10
            and 5.7.30 REQUIRETLS cannot be met (RFC 8689 §4.2.1).
        text: One line for a person.
        reported: Under which policies the failed session is counted.
        stage: Where it was decided.
    """

    status: Status
    cause: Cause
    enhanced: EnhancedStatusCode
    text: str
    reported: tuple[ReportedPolicy, ...] = ()
    stage: Stage = Stage.POLICY
