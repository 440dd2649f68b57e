"""What a certificate says of itself, for a person who looks at it.  Knows no I/O.

Called by `engine.worker.explain_probe`.  Peers make certificates: everything is bounded here, what
cannot be read is left out, and nothing is verified.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from engine.net.dane import key_of
from engine.net.pkix import UNREADABLE, load_certificate
from engine.net.tls_errors import Unverified
from engine.smtp.reply import show

if TYPE_CHECKING:
    from datetime import datetime

#: Names that are shown; some certificates are for a hundred.
MAX_NAMES: Final = 100
#: Characters of a name.
MAX_TEXT: Final = 255


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate.

    Attributes:
        subject: Its subject (RFC 4514 §2).
        issuer: Who signed it.
        names: DNS names and IP addresses it is for, at most `MAX_NAMES`.
        count: How many there are.
        not_before: When it begins to be valid, RFC 3339 §5.6.
        not_after: When it ends to be.
        days_left: Whole days until then; negative when that is over.
        key: Kind and size of its key.
        tlsa: The TLSA records that would match it: `3 1 1` and the digest of its key, `3 0 1` and
            that of itself (RFC 6698 §2.1).
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    count: int
    not_before: str
    not_after: str
    days_left: int
    key: str
    tlsa: tuple[str, ...]


def read_certificate(octets: bytes, now: datetime) -> Certificate | None:
    """Read a certificate in DER; `None` where that cannot be done."""
    try:
        parsed = load_certificate(octets)
        begins, ends = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    except (Unverified, *UNREADABLE):
        return None
    names = _names(parsed)
    digests = [f"3 0 1 {hashlib.sha256(octets).hexdigest()}"]
    with suppress(Unverified):
        digests.insert(0, f"3 1 1 {hashlib.sha256(key_of(octets)).hexdigest()}")
    return Certificate(
        _distinguished(parsed, "subject"),
        _distinguished(parsed, "issuer"),
        tuple(_bounded(name) for name in names[:MAX_NAMES]),
        len(names),
        begins.isoformat(),
        ends.isoformat(),
        (ends - now).days,
        _key(parsed),
        tuple(digests),
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = map(str, found.get_values_for_type(x509.IPAddress))
        return [*found.get_values_for_type(x509.DNSName), *addresses]
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []


def _distinguished(certificate: x509.Certificate, whose: str) -> str:
    try:
        name: x509.Name = getattr(certificate, whose)
        return _bounded(name.rfc4514_string())
    except UNREADABLE:
        return "(cannot be read)"


def _key(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except UNREADABLE:
        return "of an unknown kind"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA, {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"elliptic curve {_bounded(key.curve.name)}"
    return type(key).__name__.removesuffix("PublicKey").removeprefix("_")


def _bounded(text: str) -> str:
    shown = show(text.encode("utf-8", "backslashreplace"))
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"
