"""What our side of TLS is made of: files, ciphers, versions; and what may be wrong with them.

The worker and the engine check it at start; `engine.net.tls_contexts` makes contexts of it.  Reads
files, so call it in a thread.  It knows no peer.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.settings import Problem
from engine.showing import show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engine.choices import TlsVersion
    from engine.settings import Settings

_VERSIONS: Final[Mapping[str, ssl.TLSVersion]] = {
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
_CERTIFICATE_ALLOWED: Final = "a PEM file with our certificate and its chain, ours first"
_KEY_ALLOWED: Final = "a PEM file with the key of tls_certificate, without a password"


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the settings say about our side of TLS; the same for every host of a path.

    Attributes:
        ca_file: File of trusted certificates, PEM; `None`: those of the system.
        certificate: File with our certificate and its chain, PEM; it may hold the key as well.
        private_key: File with the key of our certificate, PEM.
        ciphers: Cipher list for TLS 1.2 in OpenSSL's notation; `None`: Python's, which has forward
            secrecy only.
        min_version: Oldest version accepted.
    """

    ca_file: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    ciphers: str | None = None
    min_version: TlsVersion = "1.2"

    @classmethod
    def from_settings(cls, settings: Settings) -> TlsMaterial:
        """Take what concerns TLS out of the settings of a path."""
        return cls(
            settings.tls_ca_file,
            settings.tls_certificate,
            settings.tls_private_key,
            settings.tls_ciphers,
            settings.tls_min_version,
        )


def make_context(material: TlsMaterial, *, verifies: bool) -> ssl.SSLContext:
    """Make a context; it reads files and takes some 40 ms for those of the system.

    Names are not compared by it: a host may be known by several, and OpenSSL would be told one.

    Args:
        material: What to make it of.
        verifies: Whether the peer's chain must lead to a trusted certificate.

    Raises:
        OSError: A file cannot be read, or is not what it should be (`ssl.SSLError`).
        ValueError: The key is encrypted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = _VERSIONS[material.min_version]
    # RFC 9325 §3.3 and §3.5: no compression, no renegotiation.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if material.ciphers is not None:
        context.set_ciphers(material.ciphers)
    if material.certificate is not None:
        context.load_cert_chain(material.certificate, material.private_key, _no_password)
    if not verifies:
        context.verify_mode = ssl.CERT_NONE
    elif material.ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.load_verify_locations(material.ca_file)
        # Whoever lists an intermediate, or a server's own certificate, trusts it as it is.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _no_password() -> str:
    # Without this OpenSSL would ask at the terminal.
    raise ValueError("the key is encrypted")


# ---- problems -----------------------------------------------------------------------------------


def material_problems(material: TlsMaterial) -> list[Problem]:
    """Find what would keep TLS from working; each under the name of its setting.

    File names are shown; nothing of what is in the files is.
    """
    return [
        *_cipher_problems(material.ciphers),
        *_authority_problems(material.ca_file),
        *_certificate_problems(material.certificate, material.private_key),
    ]


def _cipher_problems(ciphers: str | None) -> Iterator[Problem]:
    if ciphers is None:
        return
    allowed = "a list of ciphers for TLS 1.2, as `openssl ciphers` takes it"
    # OpenSSL passes over what it does not know as long as the rest selects something.
    unknown = [word for word in _selecting_words(ciphers) if not _selects(word)]
    if unknown:
        found = f"{', '.join(map(show, unknown))}, which selects no cipher"
        yield Problem("tls_ciphers", found, allowed)
    elif not _selects(ciphers):
        yield Problem("tls_ciphers", f"{show(ciphers)}, which selects no cipher", allowed)


def _selecting_words(ciphers: str) -> Iterator[str]:
    """Yield those words of a cipher list that add ciphers."""
    for word in ciphers.replace(",", ":").replace(" ", ":").split(":"):
        # `!RC4` is right where no RC4 is built in, and `@SECLEVEL=2` selects nothing.
        if word and word[0] not in "!-+@":
            yield word


def _selects(ciphers: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(ciphers)
    except ssl.SSLError:
        return False
    return True


def _authority_problems(name: str | None) -> Iterator[Problem]:
    if name is None:
        return
    allowed = "a PEM file with trusted certificates"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(name)
    except ssl.SSLError:
        yield Problem("tls_ca_file", f"{show(name)} without a certificate", allowed)
    except OSError as error:
        yield Problem("tls_ca_file", _unreadable(name, error), allowed)
    else:
        if not context.cert_store_stats()["x509"]:
            yield Problem("tls_ca_file", f"{show(name)} without a certificate", allowed)


def _certificate_problems(certificate: str | None, private_key: str | None) -> Iterator[Problem]:
    if certificate is None:
        if private_key is not None:
            found = "nothing, though there is a tls_private_key"
            yield Problem("tls_certificate", found, _CERTIFICATE_ALLOWED)
        return
    unreadable = [
        Problem(key, _unreadable(name, error), allowed)
        for key, name, allowed in (
            ("tls_certificate", certificate, _CERTIFICATE_ALLOWED),
            ("tls_private_key", private_key, _KEY_ALLOWED),
        )
        if name is not None and (error := _reading_error(name)) is not None
    ]
    if unreadable:
        yield from unreadable
        return
    yield from _pair_problems(certificate, private_key)


def _pair_problems(certificate: str, private_key: str | None) -> Iterator[Problem]:
    """Say what is wrong with two files that can be read."""
    if not _has_certificate(certificate):
        found = f"{show(certificate)} without a certificate"
        yield Problem("tls_certificate", found, _CERTIFICATE_ALLOWED)
        return
    key_place = show(private_key or certificate)
    if private_key is None and b"PRIVATE KEY-----" not in Path(certificate).read_bytes():
        yield Problem("tls_private_key", "nothing, though there is a tls_certificate", _KEY_ALLOWED)
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(certificate, private_key, _no_password)
    except ValueError:
        yield Problem("tls_private_key", f"an encrypted key in {key_place}", _KEY_ALLOWED)
    except ssl.SSLError as error:
        key, found, allowed = "tls_private_key", f"no usable key in {key_place}", _KEY_ALLOWED
        if error.reason == "KEY_VALUES_MISMATCH":
            found = f"{key_place} with the key of another certificate"
        elif error.reason in _TOO_WEAK:
            key, allowed = "tls_certificate", _CERTIFICATE_ALLOWED
            found = f"{show(certificate)}, too weak for OpenSSL ({_TOO_WEAK[error.reason]})"
        yield Problem(key, found, allowed)


_TOO_WEAK: Final[Mapping[str | None, str]] = {
    "EE_KEY_TOO_SMALL": "key too small",
    "CA_KEY_TOO_SMALL": "an issuer's key too small",
    "CA_MD_TOO_WEAK": "signed with an old digest",
}


def _has_certificate(name: str) -> bool:
    # A store takes certificates of all kinds, and wants no key with them.
    try:
        store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        store.load_verify_locations(name)
    except ssl.SSLError:
        return False
    return bool(store.cert_store_stats()["x509"])


def _reading_error(name: str) -> OSError | None:
    try:
        Path(name).read_bytes()
    except OSError as error:
        return error
    return None


def _unreadable(name: str, error: OSError) -> str:
    return f"{show(name)}, which cannot be read: {error.strerror}"
