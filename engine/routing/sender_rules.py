"""What our own side asks of TLS with a host: the settings, and the message.  Knows no I/O.

Called by `engine.routing.policy` only, except `message_tls`, which who knows the message calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.outcome import Cause, Status
from engine.routing.families import is_address
from engine.routing.opinion import NOTHING, Opinion, unknown
from engine.security import HostRefused, MessageTls, TlsDemand, TlsLevel
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine import choices
    from engine.route import Candidate, Route
    from engine.settings import Settings

_LEVELS: Final[Mapping[choices.TlsLevel, TlsLevel]] = {
    "off": TlsLevel.OFF,
    "opportunistic": TlsLevel.OPPORTUNISTIC,
    "require": TlsLevel.REQUIRE,
    "verify": TlsLevel.VERIFY,
}


def message_tls(*, require_tls: bool, has_null_path: bool, is_optional: bool) -> MessageTls:
    """Return what a message asks of TLS on its way.

    Args:
        require_tls: Whether it was submitted with REQUIRETLS.
        has_null_path: Whether its reverse-path is null.
        is_optional: Whether its header says `TLS-Required: No`.
    """
    if require_tls:
        # RFC 8689 §4.1: the header field does not count then.  §4.2.1: bounces are exempt.
        return MessageTls.BY_POLICY if has_null_path else MessageTls.REQUIRED
    return MessageTls.OPTIONAL if is_optional else MessageTls.BY_POLICY


def policy_domain(domain: str, route: Route, candidate: Candidate) -> str | None:
    """Return whose MTA-STS and TLSRPT policies count for a host; `None` where nobody's can.

    RFC 8461 §3.4: the recipient domain's, or the smart host's where the route names one.  Address
    literals and Unix sockets have none, nor have names without a dot: no authority would sign for
    the host of their policy.
    """
    name = candidate.host if route.is_static else domain
    return None if "." not in name or name[0] == "[" or "/" in name or is_address(name) else name


def judge_settings(candidate: Candidate, settings: Settings) -> Opinion:
    """Return what the settings ask of a host."""
    level = _LEVELS[settings.tls]
    if level is TlsLevel.OFF:
        return Opinion(NOTHING)
    if settings.protocol == "smtps":
        level = max(level, TlsLevel.REQUIRE)  # there is nothing else to be had (RFC 8314 §3.3)
    return Opinion(
        TlsDemand(
            level,
            "opportunistic" if level is TlsLevel.OPPORTUNISTIC else "required",
            _names(candidate, settings) if level is TlsLevel.VERIFY else (),
            _server_name(candidate, settings),
        )
    )


def judge_message(
    message: MessageTls,
    route: Route,
    candidate: Candidate,
    settings: Settings,
    opinions: Sequence[Opinion] = (),
) -> Opinion:
    """Return what a message asks of a host (RFC 8689 §4.2.1).

    Args:
        message: What it asks for.
        route: The route.
        candidate: The host.
        settings: Those for the host.
        opinions: What was said before: it must be certain that the host is the right one.
    """
    if message is not MessageTls.REQUIRED:
        return Opinion(NOTHING)
    host = candidate.host
    if settings.tls == "off":
        return Opinion(_refused(10, f"REQUIRETLS: TLS with {host} is switched off"))
    if route.is_secure or any(opinion.is_certain for opinion in opinions):
        names, server_name = _names(candidate, settings), _server_name(candidate, settings)
        demand = TlsDemand(TlsLevel.VERIFY, "required", names, server_name)
        return Opinion(demand, is_certain=True)
    if any(opinion.is_unknown for opinion in opinions):
        return Opinion(
            unknown(f"REQUIRETLS: nobody could be asked whether {host} is the right host")
        )
    return Opinion(_refused(30, f"REQUIRETLS: neither DNSSEC nor MTA-STS vouches for {host}"))


def _refused(detail: int, text: str) -> HostRefused:
    # RFC 8689 §4.2.1: the sender is told at once when no host is left.
    return HostRefused(Status.FAILED, Cause.POLICY, EnhancedStatusCode(5, 7, detail), text)


def _names(candidate: Candidate, settings: Settings) -> tuple[str, ...]:
    """Return what a certificate may be for: the host, and whom the operator asks for there."""
    return tuple(dict.fromkeys(filter(None, (candidate.host, settings.tls_sni))))


def _server_name(candidate: Candidate, settings: Settings) -> str | None:
    # RFC 6066 §3: an IP address is no server name.
    return settings.tls_sni or (None if is_address(candidate.host) else candidate.host)
