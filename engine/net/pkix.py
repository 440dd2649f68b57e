"""Whether a chain of certificates leads to one that is trusted (RFC 5280 §6.1).

For what OpenSSL's own verification in the handshake is no help with: trust anchors from TLSA
records, which are known to be right only once the chain is there, and the question whether a chain
*would* be trusted.  Names are not looked at (`engine.net.names`).
"""

from __future__ import annotations

import re
import ssl
import warnings
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from engine.net.tls_errors import Unverified

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.x509.verification import Policy

#: Certificates between the peer's own and the anchor.  Real chains have one or two.
_DEPTH: Final = 8
#: Octets of SHA-256, and bits of RSA: what is shorter can be forged, or soon will be.
_LEAST_DIGEST: Final = 32
_LEAST_RSA: Final = 2048
#: What the library raises, sooner or later, where a certificate is not as it should be; the last
#: where a program has warnings raised.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UserWarning,
)
#: Characters of the library's reason that are shown.
_SHOWN: Final = 160
#: Its words where no certificate is the issuer of another, which is nearly always.
_NO_ISSUER: Final = "no interior errors"
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def load_certificate(octets: bytes) -> x509.Certificate:
    """Read a certificate.

    Raises:
        Unverified: It cannot be read.
    """
    try:
        with _without_warnings():
            return x509.load_der_x509_certificate(octets)
    except UNREADABLE:
        raise Unverified("a certificate cannot be read", "certificate-not-trusted") from None


def load_chain(chain: Sequence[bytes]) -> list[x509.Certificate]:
    """Read a chain; what cannot be read behind the peer's own certificate is left out.

    Raises:
        Unverified: The peer's own cannot be read.
    """
    own, *others = chain
    certificates = [load_certificate(own)]
    for octets in others:
        with suppress(Unverified):
            certificates.append(load_certificate(octets))
    return certificates


def check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Check that a certificate is valid at this time.

    Raises:
        Unverified: It is not.
    """
    if now > certificate.not_valid_after_utc:
        text = f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise Unverified(text, "certificate-expired")
    if now < certificate.not_valid_before_utc:
        text = f"the certificate begins on {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise Unverified(text, "certificate-not-trusted")


def check_key(certificate: x509.Certificate) -> None:
    """Check that a certificate's own key is as long as OpenSSL wants it from who is verified.

    Raises:
        Unverified: It is not.
    """
    with suppress(*UNREADABLE):
        key = certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA:
            text = "the certificate is not trusted: its key is too short"
            raise Unverified(text, "certificate-not-trusted")


def verify_path(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> None:
    """Check that a chain leads to one of the anchors, and may be a TLS server's.

    Signatures, dates, basic constraints, name constraints and key usages are checked, and that no
    key of an authority and no digest is weak; as authorities only RSA and the curves of NIST count.
    The policy is not that of browsers, which no private authority satisfies.

    Args:
        chain: The peer's own certificate, then the others as they came.
        anchors: What is trusted; an intermediate may be, or the peer's own.
        now: The time it must be valid at.

    Raises:
        Unverified: It does not.
    """
    leaf, *others = chain
    check_dates(leaf, now)
    if not anchors:
        raise Unverified("no authority is trusted", "certificate-not-trusted")
    ca_policy, leaf_policy = _policies()
    builder = verification.PolicyBuilder().store(verification.Store(list(anchors)))
    builder = builder.time(now).max_chain_depth(_DEPTH)
    builder = builder.extension_policies(ca_policy=ca_policy, ee_policy=leaf_policy)
    try:
        # The client's verifier is the one that has no opinion about the names.
        builder.build_client_verifier().verify(leaf, others)
    except (verification.VerificationError, *UNREADABLE) as error:
        for certificate in others:
            check_dates(certificate, now)
        raise Unverified(_reason(error), "certificate-not-trusted") from None


def _reason(error: Exception) -> str:
    # The library's words, and object identifiers at most; still, only what is plain goes on.
    words = ascii(str(error))[1:-1].removeprefix("validation failed: ")
    if _NO_ISSUER in words:
        words = "its chain leads to no trusted authority"
    return f"the certificate is not trusted: {words[:_SHOWN]}"


@lru_cache(maxsize=1)
def _policies() -> tuple[verification.ExtensionPolicy, verification.ExtensionPolicy]:
    """Return what authorities and servers must have in their extensions."""
    either = verification.Criticality.AGNOSTIC
    anything = verification.ExtensionPolicy.permit_all()
    servers = anything.may_be_present(x509.ExtendedKeyUsage, either, _is_for_servers)
    authorities = servers.require_present(x509.BasicConstraints, either, None)
    authorities = authorities.may_be_present(x509.KeyUsage, either, _may_sign)
    return authorities, servers


def _is_for_servers(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise ValueError("it is not for TLS servers")


def _may_sign(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("it may not sign certificates")


def verify_signature(certificate: x509.Certificate, key: PublicKeyTypes) -> None:
    """Check that a key made a certificate's signature, by a digest that still holds.

    Raises:
        InvalidSignature: It did not, or with a digest that does not hold.
        Any of `UNREADABLE`: Key and signature are of different or unknown kinds.
    """
    digest = certificate.signature_hash_algorithm
    if digest is not None and digest.digest_size < _LEAST_DIGEST:
        raise InvalidSignature
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    parameters = certificate.signature_algorithm_parameters
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA and digest is not None:
        if not isinstance(parameters, padding.PSS | padding.PKCS1v15):
            raise InvalidSignature
        key.verify(signature, signed, parameters, digest)
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
        key.verify(signature, signed, parameters)
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(signature, signed)
    else:
        raise InvalidSignature


def load_anchors(ca_file: str | None) -> tuple[x509.Certificate, ...]:
    """Read trusted certificates; call it in a thread.

    Args:
        ca_file: A PEM file, `None` for those of the system.

    Raises:
        OSError: It cannot be read.
    """
    if ca_file is not None:
        return _read_anchors(Path(ca_file))
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return _read_anchors(Path(paths.cafile))
    # The names of the links in it are hashes, several of which may lead to one file.
    files = {file.resolve() for file in Path(paths.capath or "/nowhere").glob("*.[0-9]")}
    return tuple(anchor for file in sorted(files) for anchor in _read_anchors(file))


def _read_anchors(path: Path) -> tuple[x509.Certificate, ...]:
    anchors = []
    with _without_warnings():
        for text in _PEM.findall(path.read_bytes()):
            # One that cannot be read costs nobody the others.
            with suppress(*UNREADABLE):
                anchors.append(x509.load_pem_x509_certificate(text))
    return tuple(anchors)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave the library's warnings away: well-known authorities have the serial number 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield
