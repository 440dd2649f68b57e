"""Say why a domain cannot be routed: who is to blame, and with which status code.  Knows no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.outcome import Cause, Scope, Status
from engine.route import Unroutable
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.route import HostFailure


def dns_trouble(text: str) -> Unroutable:
    """Name servers gave no answer to rely on: the mail waits (RFC 5321 §5.1)."""
    return _unroutable(Status.DEFERRED, "4.4.3", text)


def no_such_domain(text: str) -> Unroutable:
    """The domain is not there, or has nothing that could receive mail."""
    return _unroutable(Status.FAILED, "5.1.2", text)


def null_mx(domain: str) -> Unroutable:
    """The domain says that it takes no mail (RFC 7505 §3)."""
    return _unroutable(Status.FAILED, "5.1.10", f"{domain} takes no mail (null MX)")


def ruled_out(text: str) -> Unroutable:
    """Our own policy leaves no way to an address literal."""
    return _unroutable(Status.FAILED, "5.4.4", text, cause=Cause.CONFIG)


def no_usable_host(
    domain: str, failures: Sequence[HostFailure], *, was_cut: bool, is_implicit: bool
) -> Unroutable:
    """No MX host of a domain has an address.

    Args:
        domain: The domain.
        failures: Why not, for each of its hosts but those cut off.
        was_cut: Whether hosts were cut off because one of them is this host.
        is_implicit: Whether the domain has no MX records and is its own only host.
    """
    temporary = [failure for failure in failures if failure.is_temporary]
    if temporary:
        return dns_trouble(temporary[0].text)
    if was_cut:
        # Somebody's mistake, theirs or ours, and people mend it: the mail waits, as with Exim.
        text = f"{domain}: lowest numbered MX record points to this host"
        return _unroutable(Status.DEFERRED, "4.4.6", text, cause=Cause.CONFIG)
    if is_implicit:
        return no_such_domain(f"{domain} has no MX record, and {failures[0].text}")
    text = f"all MX hosts of {domain} point to names without addresses: {failures[0].text}"
    return _unroutable(Status.FAILED, "5.4.4", text)


def no_usable_static_host(domain: str, failures: Sequence[HostFailure]) -> Unroutable:
    """None of the hosts that the operator named has an address.

    A slip in our own configuration must not bounce anybody's mail: it waits.
    """
    text = f"no host of the static route for {domain} is usable: {failures[0].text}"
    if any(failure.is_temporary for failure in failures):
        return dns_trouble(text)
    return _unroutable(Status.DEFERRED, "4.3.5", text, scope=Scope.LOCAL, cause=Cause.CONFIG)


def _unroutable(
    status: Status, code: str, text: str, *, scope: Scope = Scope.DOMAIN, cause: Cause = Cause.DNS
) -> Unroutable:
    return Unroutable(status, scope, cause, EnhancedStatusCode.parse(code), text)
