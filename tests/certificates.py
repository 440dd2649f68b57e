"""Certificates of every sort, made on the fly: good ones, and all that is wrong with others.

Used by the tests of TLS and by the benchmark of handshakes.  trustme makes good ones only.
"""

from __future__ import annotations

import hashlib
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.security import Tlsa

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER
CLIENTS_ONLY = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVERS = (ExtendedKeyUsageOID.SERVER_AUTH,)
NOT_SIGNING = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
    encipher_only=False, decipher_only=False,
)  # fmt: skip


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and who issued it (`None`: itself)."""

    certificate: x509.Certificate
    key: Any
    issuer: Issued | None = None

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    @property
    def key_pem(self) -> bytes:
        return self.private_pem()

    def private_pem(self, password: bytes | None = None) -> bytes:
        encryption = (
            serialization.NoEncryption()
            if password is None
            else serialization.BestAvailableEncryption(password)
        )
        return self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)

    @property
    def spki(self) -> bytes:
        return self.certificate.public_key().public_bytes(
            DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def path(self) -> list[Issued]:
        """This one, its issuer, and so on up to the root."""
        return [self, *(self.issuer.path if self.issuer is not None else [])]

    def tlsa(self, usage: int, selector: int = 0, matching: int = 1) -> Tlsa:
        """The record that matches this certificate."""
        octets = self.spki if selector else self.der
        digests = {0: lambda it: it, 1: hashlib.sha256, 2: hashlib.sha512}
        digest = digests[matching](octets)
        return Tlsa(usage, selector, matching, digest if matching == 0 else digest.digest())


def make(
    subject: str,
    issuer: Issued | None = None,
    *,
    is_ca: bool = False,
    names: Iterable[str] = (),
    days: tuple[float, float] = (-1, 90),
    key: Any = None,
    usages: Sequence[x509.ObjectIdentifier] | None = None,
    path_length: int | None = None,
    permitted: str | None = None,
    is_bare: bool = False,
    key_usage: x509.KeyUsage | None = None,
    alternatives: Sequence[x509.GeneralName] = (),
    digest: hashes.HashAlgorithm | None = None,
    serial_number: int | None = None,
) -> Issued:
    """Make a certificate; `names` are DNS names and IP addresses, `is_bare` is without extensions."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer is not None else key
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer.certificate.subject if issuer is not None else _name(subject))
        .public_key(key.public_key())
        .serial_number(serial_number or x509.random_serial_number())
        .not_valid_before(now + timedelta(days[0]))
        .not_valid_after(now + timedelta(days[1]))
    )
    if not is_bare:
        builder = builder.add_extension(x509.BasicConstraints(is_ca, path_length), critical=True)
    general = [*map(_general_name, names), *alternatives]
    if general:
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    if permitted is not None:
        constraint = x509.NameConstraints([x509.DNSName(permitted)], None)
        builder = builder.add_extension(constraint, critical=True)
    if isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return Issued(builder.sign(signer, None), key, issuer)
    return Issued(builder.sign(signer, digest or hashes.SHA256()), key, issuer)


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def write_chain(folder: Path, chain: Sequence[Issued], stem: str = "server") -> tuple[Path, Path]:
    """Write the certificates, first one's key in a file of its own; return both paths."""
    certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    certificate.write_bytes(b"".join(each.pem for each in chain))
    key.write_bytes(chain[0].key_pem)
    return certificate, key


def server_context(
    chain: Sequence[Issued], *, version: ssl.TLSVersion | None = None, ciphers: str | None = None
) -> ssl.SSLContext:
    """A server's context that shows these certificates, whatever they are worth."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Weak keys are to be shown, too.
    context.set_ciphers(ciphers or "DEFAULT@SECLEVEL=0")
    if version is not None:
        context.minimum_version = context.maximum_version = version
    with tempfile.TemporaryDirectory() as folder:
        context.load_cert_chain(*write_chain(Path(folder), chain))
    return context
