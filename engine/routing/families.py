"""Which IP address families are used, and which first.  Knows no I/O."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.choices import AddressFamily
    from engine.routing.resolver import Family

_FAMILIES: Final[dict[AddressFamily, tuple[Family, ...]]] = {
    "any": ("ipv6", "ipv4"),
    "ipv4": ("ipv4",),
    "ipv6": ("ipv6",),
    "prefer-ipv4": ("ipv4", "ipv6"),
    "prefer-ipv6": ("ipv6", "ipv4"),
}


def families(policy: AddressFamily) -> tuple[Family, ...]:
    """Return the families a policy allows, the preferred one first.

    `any` puts IPv6 first, as RFC 6724 §2.1 and Exim do.

    Raises:
        ValueError: There is no such policy.
    """
    try:
        return _FAMILIES[policy]
    except KeyError:
        allowed = ", ".join(_FAMILIES)
        raise ValueError(f"address_family is {policy!r}; allowed: {allowed}") from None


def family_of(address: str) -> Family:
    """Return the family of an IP address in text form."""
    return "ipv6" if ":" in address else "ipv4"


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
