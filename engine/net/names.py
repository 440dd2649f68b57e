"""Whether a certificate is for one of the names we would accept.  Knows no I/O.

Called once the chain is known to be good, whoever found it so.  What names are accepted is decided
by `engine.routing`.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import NameOID

from engine.net.pkix import UNREADABLE
from engine.net.tls_errors import Unverified
from engine.showing import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def match_name(
    certificate: x509.Certificate, accepted: Sequence[str], *, takes_common_name: bool = False
) -> str:
    """Return the first of the accepted names that the certificate is for.

    Args:
        certificate: The peer's own.
        accepted: Reference identifiers: A-labels in lower case, or IP addresses.
        takes_common_name: Whether the subject's common name counts where there is no DNS name.
            DANE says so (RFC 7672 §3.2.3); MTA-STS wants a DNS name (RFC 8461 §4.2), and so does
            today's use of certificates in general.

    Raises:
        Unverified: It is for none of them, or its names cannot be read.
    """
    try:
        dns_names, addresses = _subject_alternatives(certificate)
        common_names = _common_names(certificate) if takes_common_name and not dns_names else []
    except UNREADABLE:
        text = "the names in the certificate cannot be read"
        raise Unverified(text, "certificate-host-mismatch") from None
    for name in accepted:
        if _as_address(name) in addresses or _is_named(name, [*dns_names, *common_names]):
            return name
    found = show([*dns_names, *common_names, *addresses]) if dns_names or addresses else "no host"
    text = f"the certificate is for {found}, not for {' or '.join(accepted)}"
    raise Unverified(text, "certificate-host-mismatch")


def _subject_alternatives(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    addresses = names.get_values_for_type(x509.IPAddress)
    return names.get_values_for_type(x509.DNSName), [str(address) for address in addresses]


def _common_names(certificate: x509.Certificate) -> list[str]:
    attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [str(attribute.value) for attribute in attributes]


def _as_address(name: str) -> str | None:
    try:
        return str(ip_address(name))
    except ValueError:
        return None


def _is_named(name: str, presented: Iterable[str]) -> bool:
    if _as_address(name) is not None or "*" in name:
        return False
    return any(_is_match(each.lower().removesuffix("."), name) for each in presented)


def _is_match(presented: str, name: str) -> bool:
    """Compare as RFC 7672 §3.2.3: a wildcard is the whole first label and stands for one."""
    if not presented.startswith("*."):
        return presented == name
    label, _, parent = name.partition(".")
    # As OpenSSL does, leave out whoever claims all of a top-level domain.
    return bool(label) and "." in parent and parent == presented[2:]
