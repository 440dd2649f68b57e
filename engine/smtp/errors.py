"""What can go wrong inside the protocol: we broke it, the peer broke it, or a value was never legal."""

from __future__ import annotations


class ProtocolError(Exception):
    """Root: SMTP was not followed."""


class LocalProtocolError(ProtocolError):
    """We tried something SMTP does not allow now: a bug of ours, the peer is not to blame."""


class RemoteProtocolError(ProtocolError):
    """The peer said something that is no SMTP reply, or no reply to what it was asked.

    Attributes:
        octets: What it said, without its last line end and cut to a showable length; empty for an
            empty line.
    """

    def __init__(self, problem: str, octets: bytes = b"") -> None:
        super().__init__(problem)
        self.octets = octets.removesuffix(b"\r\n")[:200]


class AddressSyntaxError(ValueError):
    """Not a mailbox or path of RFC 5321 §4.1.2; the text says where it breaks and what is allowed."""


class ContentError(ValueError):
    """Octets that may not stand in a message: NUL, or a bare CR or LF where repair was not asked for."""


class NotConvertibleError(ValueError):
    """An 8-bit content that cannot be made 7-bit, or must not be; the text says what stands against it."""


class CredentialsError(ValueError):
    """Credentials that a SASL mechanism cannot carry; the text shows nothing of them."""


class SaslError(ProtocolError):
    """An AUTH exchange cannot go on; the text shows nothing of a challenge or of credentials."""


class ServerProofError(SaslError):
    """The server does not prove who it is (RFC 5802 §9): no other mechanism may be tried with it."""
