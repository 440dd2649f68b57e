"""The events of a delivery: one frozen value for each thing worth telling.  Knows no I/O.

Made by the engine's rooms and handed to `engine.report.stream.EventStream`; log lines, progress and
metrics are made from them.  Not here: who listens, and what a line looks like.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, get_args

from engine.outcome import Peer

if TYPE_CHECKING:
    from engine.outcome import Cause, Outcome
    from engine.smtp.stages import Stage


@dataclass(frozen=True, slots=True)
class _Timed:
    """What all events share.

    Attributes:
        name: The kind of event, dotted lower case: `connection.opened`.
        time: When it happened, in seconds since the epoch; the publisher's clock.
    """

    name: ClassVar[str]
    time: float

    def as_dict(self) -> dict[str, Any]:
        """Return the event as a JSON-ready object: `time`, `event`, then its own facts.

        A peer is spread over `host`, `address`, `port`, `local_address` and `connection`, the keys
        of the outcome record, so that one query finds a host in both.
        """
        record: dict[str, Any] = {"time": self.time, "event": self.name}
        for each in fields(self):
            record |= _facts(each.name, getattr(self, each.name))
        return record


@dataclass(frozen=True, slots=True)
class MessageSubmitted(_Timed):
    """A message was taken; every one of its recipients will have an outcome.

    Attributes:
        message: Its id.
        recipients: How many it has.
        octets: Size of its content.
    """

    name: ClassVar[str] = "message.submitted"
    message: str
    recipients: int
    octets: int


@dataclass(frozen=True, slots=True)
class RecipientsRouted(_Timed):
    """It is known where mail for a domain goes.

    Attributes:
        domain: The recipients' domain.
        site: The receiver it leads to.
        seconds: How long it took to find out.
    """

    name: ClassVar[str] = "recipients.routed"
    domain: str
    site: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionOpened(_Timed):
    """A TCP connection is established; the peer has said nothing yet.

    Attributes:
        peer: Both ends.
        site: The receiver it belongs to.
        seconds: From the first step to the established connection.
        interface: The address we were told to connect from, `None` where the system chose.
        proxy: The proxy it goes through, without credentials.
        fast_open: What TCP Fast Open did, as in `engine.outcome.Features`.
        round_trip: The kernel's estimate in seconds, `None` where it has none.
    """

    name: ClassVar[str] = "connection.opened"
    peer: Peer
    site: str
    seconds: float
    interface: str | None = None
    proxy: str | None = None
    fast_open: str = "off"
    round_trip: float | None = None


@dataclass(frozen=True, slots=True)
class ConnectionFailed(_Timed):
    """A connection was asked for and could not be had.

    Attributes:
        site: The receiver it was for.
        host: The candidate's name.
        address: Its IP address, `None` where it has none.
        port: The TCP port, `None` where it was not known yet.
        stage: Where it ended.
        cause: What happened there.
        text: One line for a person.
        interface: The addresses we were told to connect from, `None` where the system chooses.
        proxy: The proxies on the way, without credentials.
        seconds: How long it took to find out.
    """

    name: ClassVar[str] = "connection.failed"
    site: str
    host: str
    address: str | None
    port: int | None
    stage: Stage
    cause: Cause
    text: str
    interface: str | None = None
    proxy: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Greeted(_Timed):
    """A host has greeted, or refused to.

    Attributes:
        peer: Both ends.
        site: The receiver it belongs to.
        text: The greeting on one line, its code in front.
    """

    name: ClassVar[str] = "session.greeted"
    peer: Peer
    site: str
    text: str


@dataclass(frozen=True, slots=True)
class HelloAnswered(_Timed):
    """A host has answered EHLO, HELO or LHLO.

    Attributes:
        peer: Both ends.
        site: The receiver it belongs to.
        text: The reply on one line, its code in front.
    """

    name: ClassVar[str] = "session.hello"
    peer: Peer
    site: str
    text: str


@dataclass(frozen=True, slots=True)
class TlsStarted(_Timed):
    """A session goes on over TLS, which is as it must be.

    Attributes:
        peer: Both ends.
        site: The receiver it belongs to.
        version: As in `engine.outcome.TlsFacts`, like the next three.
        cipher: The cipher suite.
        verified: By what the certificate was verified, if at all.
        policy: What asked for TLS.
        seconds: How long the handshake took.
    """

    name: ClassVar[str] = "tls.started"
    peer: Peer
    site: str
    version: str
    cipher: str
    verified: str
    policy: str
    seconds: float


@dataclass(frozen=True, slots=True)
class AuthFailed(_Timed):
    """A host has refused our credentials, by one mechanism.

    Attributes:
        peer: Both ends.
        site: The receiver it belongs to.
        mechanism: The SASL mechanism.
        text: The reply on one line.
    """

    name: ClassVar[str] = "auth.failed"
    peer: Peer
    site: str
    mechanism: str
    text: str


@dataclass(frozen=True, slots=True)
class SessionReady(_Timed):
    """Greeting, hello, TLS and authentication are done: the session can take mail.

    Attributes:
        peer: Both ends.
        site: The receiver.
        keywords: The EHLO keywords in force, in the server's order; empty after HELO.
        seconds: From the established connection to here.
    """

    name: ClassVar[str] = "session.ready"
    peer: Peer
    site: str
    keywords: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class TransactionStarted(_Timed):
    """A mail transaction begins (RFC 5321 §3.3).

    Attributes:
        peer: Both ends.
        message: The message's id.
        recipients: How many of its recipients this transaction carries.
        transaction: Its number on the connection, from 1.
    """

    name: ClassVar[str] = "transaction.started"
    peer: Peer
    message: str
    recipients: int
    transaction: int


@dataclass(frozen=True, slots=True)
class RecipientSettled(_Timed):
    """One recipient's outcome in one attempt is known; the log line is made from it.

    Attributes:
        outcome: The same value that goes to whoever submitted the message.
    """

    name: ClassVar[str] = "recipient.settled"
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome record, with `time` and `event` in front."""
        return {"time": self.time, "event": self.name, **self.outcome.as_dict()}


@dataclass(frozen=True, slots=True)
class RecipientDeferred(_Timed):
    """A host will not take a message for one recipient now; the next one may be asked.

    Attributes:
        peer: Both ends.
        message: The message's id.
        recipient: The forward-path as given.
        stage: Where it was decided.
        cause: What happened there.
        text: One line for a person.
    """

    name: ClassVar[str] = "recipient.deferred"
    peer: Peer
    message: str
    recipient: str
    stage: Stage
    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class HostDeferred(_Timed):
    """One host is given up before any mail; the next one may be tried.

    Attributes:
        peer: Both ends.
        site: The receiver it belongs to.
        stage: Where it failed.
        cause: What happened there.
        text: One line for a person.
    """

    name: ClassVar[str] = "host.deferred"
    peer: Peer
    site: str
    stage: Stage
    cause: Cause
    text: str


@dataclass(frozen=True, slots=True)
class SecurityAlert(_Timed):
    """A peer did what only an attack or a grave fault explains.

    For example octets behind the STARTTLS reply (RFC 3207 §6).

    Attributes:
        peer: Both ends.
        text: One line for a person.
    """

    name: ClassVar[str] = "security.alert"
    peer: Peer
    text: str


@dataclass(frozen=True, slots=True)
class ConnectionClosed(_Timed):
    """An established connection is gone.

    Attributes:
        peer: Both ends.
        site: The receiver.
        reason: Why, for a person: `idle`, `message limit`, `lost`.
        transactions: How many mail transactions were begun on it.
        seconds: How long it was open.
    """

    name: ClassVar[str] = "connection.closed"
    peer: Peer
    site: str
    reason: str
    transactions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SiteOpened(_Timed):
    """There is mail for a site that had none: its pool is made.

    Attributes:
        site: The receiver.
    """

    name: ClassVar[str] = "site.opened"
    site: str


@dataclass(frozen=True, slots=True)
class SiteClosed(_Timed):
    """A site has neither mail nor connections any more: its pool is gone.

    Attributes:
        site: The receiver.
    """

    name: ClassVar[str] = "site.closed"
    site: str


Event = (
    MessageSubmitted
    | RecipientsRouted
    | ConnectionOpened
    | ConnectionFailed
    | Greeted
    | HelloAnswered
    | TlsStarted
    | AuthFailed
    | SessionReady
    | TransactionStarted
    | RecipientSettled
    | RecipientDeferred
    | HostDeferred
    | SecurityAlert
    | ConnectionClosed
    | SiteOpened
    | SiteClosed
)


#: Every class of event.
ALL_EVENTS: Final[tuple[type[Event], ...]] = get_args(Event)


def _facts(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, Peer):
        return {
            "host": value.host,
            "address": value.address,
            "port": value.port,
            "local_address": value.local_address,
            "connection": value.connection,
        }
    if isinstance(value, Enum):
        return {name: value.value}
    return {name: list(value) if isinstance(value, tuple) else value}
