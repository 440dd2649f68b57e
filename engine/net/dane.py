"""Whether a chain of certificates is what the TLSA records say.  Knows no I/O.

`engine.net.tls` calls it after a handshake that looked at no certificate, before the first octet
of SMTP.  Which records there are, and whether DNSSEC vouches for them, `engine.routing` knows.

For DANE-EE(3), which nearly everybody has, the certificate is not even parsed: a digest is compared
(RFC 7672 §3.1.1).  DANE-TA(2) needs a path to the authority, and the names count (§3.1.2).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.net.tls_errors import Unverified

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from cryptography import x509

    from engine.security import Tlsa

_DANE_TA: Final = 2
_DANE_EE: Final = 3
_WHOLE: Final = 0
_KEY: Final = 1
_EXACT: Final = 0

#: How the data of a record comes from what it matches (RFC 6698 §2.1.3).
_MATCHINGS: Final[Mapping[int, Callable[[bytes], bytes]]] = {
    _EXACT: lambda octets: octets,
    1: lambda octets: hashlib.sha256(octets).digest(),
    2: lambda octets: hashlib.sha512(octets).digest(),
}


class DaneMatch(NamedTuple):
    """How a chain was found to be right.

    Attributes:
        record: The record that decided.
        name: The reference identifier in the certificate, `None` where names do not count.
    """

    record: Tlsa
    name: str | None


def verify_dane(
    records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: datetime
) -> DaneMatch:
    """Check a chain against TLSA records; one that matches is enough.

    Args:
        records: Those of the usages 2 and 3; what else is among them matches nothing.
        chain: Certificates in DER as the peer sent them, its own first.
        names: Reference identifiers for DANE-TA(2) (RFC 7672 §3.2.2).
        now: The time that DANE-TA(2) is held against.

    Raises:
        Unverified: None matches.
    """
    for record in records:
        if record.usage == _DANE_EE and is_match(record, chain[0]):
            return DaneMatch(record, None)
    anchoring = [record for record in records if record.usage == _DANE_TA]
    if not anchoring:
        raise _mismatch(records)
    return _verify_anchored(anchoring, chain, names, now, records)


def is_match(record: Tlsa, certificate: bytes) -> bool:
    """Whether a record's selector and matching type lead from a certificate to its data."""
    matching = _MATCHINGS.get(record.matching)
    if matching is None or record.selector not in (_WHOLE, _KEY):
        return False
    return (
        matching(certificate if record.selector == _WHOLE else key_of(certificate)) == record.data
    )


def _verify_anchored(
    anchoring: Sequence[Tlsa],
    chain: Sequence[bytes],
    names: Sequence[str],
    now: datetime,
    records: Sequence[Tlsa],
) -> DaneMatch:
    # Imported by those who need it: most hosts never do, and it takes 50 ms.
    from engine.net import pkix
    from engine.net.names import match_name

    certificates = pkix.load_chain(chain)
    failure = None
    for record in anchoring:
        anchors = _anchors(record, chain, certificates)
        if not anchors:
            continue
        try:
            pkix.verify_path(certificates, anchors, now)
            return DaneMatch(record, match_name(certificates[0], names, takes_common_name=True))
        except Unverified as error:
            failure = failure or error
    raise failure or _mismatch(records)


def _anchors(
    record: Tlsa, chain: Sequence[bytes], certificates: Sequence[x509.Certificate]
) -> Sequence[x509.Certificate]:
    """Return the certificates that a record makes trust anchors (RFC 7671 §5.2)."""
    from engine.net.pkix import load_certificate

    own, *others = chain
    # A key may be in several: an authority's own certificate, and one by which another vouches.
    matching = []
    for octets in others:
        with suppress(Unverified):  # what cannot be read is no anchor
            if is_match(record, octets):
                matching.append(load_certificate(octets))
    if matching or record.matching != _EXACT:
        return matching
    # The only kinds that need not be in the chain: DNS has all of it.
    if record.selector == _KEY:
        return _signed_by(record.data, certificates)
    if record.data == own:
        return []  # an authority is above the peer's own certificate, here as in the chain
    try:
        return [load_certificate(record.data)]
    except Unverified:
        return []


def _signed_by(key: bytes, certificates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Return those certificates that a bare key has signed: it stands behind them.

    RFC 7671 §5.2.3 speaks of the topmost certificate of the chain; which that is, the path tells.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    from engine.net.pkix import UNREADABLE, verify_signature

    try:
        public_key = serialization.load_der_public_key(key)
    except UNREADABLE:
        return []
    signed = []
    for certificate in certificates:
        try:
            verify_signature(certificate, public_key)
        except (InvalidSignature, *UNREADABLE):
            continue
        signed.append(certificate)
    return signed


def _mismatch(records: Sequence[Tlsa]) -> Unverified:
    kinds = sorted({f"{each.usage} {each.selector} {each.matching}" for each in records})
    text = f"no TLSA record matches the certificate ({', '.join(kinds)})"
    return Unverified(text, "tlsa-invalid")


# ---- the public key in a certificate ------------------------------------------------------------


def key_of(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a certificate, octet for octet (RFC 5280 §4.1).

    A digest is of the octets as they stand there; a key that is read and written again may look
    different (RSA without parameters, points in compressed form) or be of a kind no library reads.

    Raises:
        Unverified: It is no certificate.
    """
    try:
        place, _ = _content(certificate, 0)  # Certificate
        place, _ = _content(certificate, place)  # TBSCertificate
        if certificate[place] == _VERSION_TAG:
            _, place = _content(certificate, place)
        for _ in _BEFORE_KEY:
            _, place = _content(certificate, place)
        _, end = _content(certificate, place)
    except IndexError:
        raise Unverified("a certificate cannot be read", "certificate-not-trusted") from None
    return certificate[place:end]


_VERSION_TAG: Final = 0xA0
_BEFORE_KEY: Final = ("serialNumber", "signature", "issuer", "validity", "subject")


def _content(octets: bytes, place: int) -> tuple[int, int]:
    """Return where the content of a DER element begins and ends (X.690 8.1.3)."""
    length = octets[place + 1]
    start = place + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(octets[place + 2 : start], "big")
    if start + length > len(octets):
        raise IndexError("an element that is longer than the whole")
    return start, start + length
