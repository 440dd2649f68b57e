"""What comes out: one `Outcome` for each recipient that went in, exactly once.

The same values that the command line prints as JSON (`as_dict`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from engine.smtp.reply import Reply
    from engine.smtp.stages import Stage
    from engine.smtp.status import EnhancedStatusCode


class Status(StrEnum):
    """What became of a recipient."""

    #: The peer took responsibility (RFC 5321 §4.2.5).
    DELIVERED = "delivered"
    #: Not delivered; worth trying again.
    DEFERRED = "deferred"
    #: Not delivered; trying again would not help.
    FAILED = "failed"
    #: The content was sent in full and no reply to it came: it may or may not have been accepted.
    UNKNOWN = "unknown"
    #: No content was to be sent: the recipient was asked about, and the peer would take mail for it.
    ACCEPTED = "accepted"


class Scope(StrEnum):
    """Who is to blame, and so what is penalised."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    HOST = "host"
    DOMAIN = "domain"
    #: Our own address, proxy or credentials.
    SOURCE = "source"
    #: Our own fault.
    LOCAL = "local"


class Cause(StrEnum):
    """What happened; `REPLY` also when delivered."""

    REPLY = "reply"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    MALFORMED_REPLY = "malformed-reply"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    DNS = "dns"
    TLS = "tls"
    POLICY = "policy"
    UNSUPPORTED = "unsupported"
    EVENT = "event"
    CONFIG = "config"
    IO = "io"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


FastOpen = Literal["off", "asked", "used", "used-data"]


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What TLS reached on a connection.

    Attributes:
        version: For example `TLSv1.3`.
        cipher: The cipher suite's name.
        verified: By what the certificate was verified, if at all.
        policy: What asked for TLS.
    """

    version: str
    cipher: str
    verified: Literal["no", "pkix", "dane"]
    policy: Literal["opportunistic", "required", "dane", "mta-sts"]


@dataclass(frozen=True, slots=True)
class Features:
    """What was in force on the connection; all off where there was none.

    Attributes:
        dsn: Whether the host offered DSN, so that reports on success are its duty (RFC 3461
            §5.2.1); not part of the outcome record.
    """

    pipelining: bool = False
    early_pipelining: bool = False
    chunking: bool = False
    prdr: bool = False
    lmtp: bool = False
    fast_open: FastOpen = "off"
    proxy: str | None = None
    auth: str | None = None
    tls: TlsFacts | None = None
    dsn: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the `features` object of the outcome record."""
        tls = self.tls
        return {
            "pipelining": self.pipelining,
            "early_pipelining": self.early_pipelining,
            "chunking": self.chunking,
            "prdr": self.prdr,
            "lmtp": self.lmtp,
            "fast_open": self.fast_open,
            "proxy": self.proxy,
            "auth": self.auth,
            "tls": tls
            and {
                "version": tls.version,
                "cipher": tls.cipher,
                "verified": tls.verified,
                "policy": tls.policy,
            },
        }


NO_FEATURES = Features()


@dataclass(frozen=True, slots=True)
class Peer:
    """Both ends of a connection, or of an attempt to make one.

    Attributes:
        host: The name the route knows the peer by.
        address: Its IP address, `None` where the name has none.
        port: Its TCP port, `None` where it did not come to that.
        local_address: Our side, `None` where no connection was made.
        connection: The connection's number in this run, from 1; `None` where none was made.
        text: Host, address and port on one line; made once, for every outcome shows it.
    """

    host: str
    address: str | None = None
    port: int | None = None
    local_address: str | None = None
    connection: int | None = None
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = self.host if self.address is None else f"{self.host} [{self.address}]:{self.port}"
        object.__setattr__(self, "text", text)

    def __str__(self) -> str:
        return self.text


class Timings(NamedTuple):
    """Seconds each part took; a part that did not happen took 0.0."""

    route: float = 0.0
    connect: float = 0.0
    tls: float = 0.0
    hello: float = 0.0
    transaction: float = 0.0
    total: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the `timings` object of the outcome record."""
        # In whole microseconds; round() with digits goes by way of a text, and takes twice as long.
        parts = [round(seconds * 1e6) / 1e6 if seconds else 0.0 for seconds in self]
        return dict(zip(self._fields, parts, strict=True))


NO_TIMINGS = Timings()


@dataclass(frozen=True, slots=True)
class Tried:
    """A host that was tried before the one that decided, and how that ended."""

    host: str
    address: str | None
    port: int | None
    stage: Stage
    cause: Cause
    text: str
    #: Of the reply that decided; it is not in the record, where the text has it.
    code: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return one entry of the outcome record's `attempts`."""
        return {
            "host": self.host,
            "address": self.address,
            "port": self.port,
            "stage": self.stage.value,
            "cause": self.cause.value,
            "text": self.text,
        }


class Outcome(NamedTuple):
    """What became of one recipient in one delivery attempt.

    A named tuple because every recipient costs one; make it with keywords.

    Attributes:
        message: The message's id.
        recipient: The forward-path as it was given.
        status: Delivered, deferred, failed or unknown.
        scope: Who is to blame; `None` when delivered.
        stage: Where it was decided.
        cause: What happened there.
        text: One line for a person; names the command the peer refused.
        reply: The reply that decided, if one did.
        enhanced: The reply's enhanced status code, or our own where no reply decided.
        peer: The host that decided, if it got that far.
        source: The egress source's name, where it has one; the address that mail left from is
            `peer.local_address`.
        transaction: Which mail transaction of its connection it was, from 1.
        features: What was in force on the connection.
        timings: Seconds spent.
        attempts: The hosts tried before, in order.
        transcript: The SMTP dialogue in script notation, where it was asked for.
    """

    message: str
    recipient: str
    status: Status
    stage: Stage
    cause: Cause
    text: str
    scope: Scope | None = None
    reply: Reply | None = None
    enhanced: EnhancedStatusCode | None = None
    peer: Peer | None = None
    source: str | None = None
    transaction: int | None = None
    features: Features = NO_FEATURES
    timings: Timings = NO_TIMINGS
    attempts: tuple[Tried, ...] = ()
    transcript: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome record: every key always there, absent facts `None`."""
        # An outcome log has one for every outcome.  Hence `_value_`: `value` is looked for by a
        # descriptor that is written in Python.
        peer, reply = self.peer, self.reply
        enhanced = self.enhanced and str(self.enhanced)
        is_same = reply is not None and reply.enhanced is self.enhanced
        record: dict[str, Any] = {
            "message": self.message,
            "recipient": self.recipient,
            "status": self.status._value_,
            "scope": self.scope and self.scope._value_,
            "stage": self.stage._value_,
            "cause": self.cause._value_,
            "reply": reply and _reply_as_dict(reply, enhanced if is_same else None),
            "enhanced": enhanced,
            "text": self.text,
            "host": peer and peer.host,
            "address": peer and peer.address,
            "port": peer and peer.port,
            "local_address": peer and peer.local_address,
            "source": self.source,
            "transaction": self.transaction,
            "connection": peer and peer.connection,
            "features": self.features.as_dict(),
            "timings": self.timings.as_dict(),
            "attempts": [tried.as_dict() for tried in self.attempts] if self.attempts else [],
        }
        if self.transcript is not None:
            record["transcript"] = list(self.transcript)
        return record


def _reply_as_dict(reply: Reply, enhanced: str | None) -> dict[str, Any]:
    return {
        "code": reply.code,
        "enhanced": enhanced or (reply.enhanced and str(reply.enhanced)),
        "lines": [line.decode("utf-8", "backslashreplace") for line in reply.lines],
    }
