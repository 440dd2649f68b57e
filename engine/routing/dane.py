"""DANE: what TLSA records demand of a mail host (RFC 7672 §2.2, RFC 7671 §9).

`usable`, `base_domains`, `reference_names` and `judge` are the rules and know no I/O; `find_tlsa`
asks the DNS in their order.  Only what DNSSEC vouches for counts, and a lookup that fails is never
taken for "no records".  Not here: certificates, which `engine.net` holds against the records.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from engine.routing.families import is_address
from engine.routing.opinion import NOTHING, Opinion, forbidden, unknown
from engine.security import ReportedPolicy, Tlsa, TlsDemand, TlsLevel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.choices import DaneMode
    from engine.route import Candidate, Route
    from engine.routing.resolver import Answer, Record, Resolver

#: Seconds for all lookups of one host; a resolver of the user's own may know no limit.
DEFAULT_TIMEOUT: Final = 30.0
#: How many records of a host are considered.  Who rolls keys over has four.
MAX_RECORDS: Final = 50

_DANE_TA, _DANE_EE = 2, 3
_FULL: Final = 0
#: Matching types that are digests, and their octets: SHA-256, SHA-512.
_DIGESTS: Final = {1: 32, 2: 64}


# ---- rules --------------------------------------------------------------------------------------


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """Return the records that can authenticate a mail host.

    RFC 7672 §3.1.3: the usages 0 and 1 cannot.  RFC 7671 §9: of the digests for one usage and
    selector only the strongest kind counts; whole certificates and keys always do.
    """
    good = [record for record in dict.fromkeys(records) if _is_usable(record)]
    best: dict[tuple[int, int], int] = {}
    for usage, selector, matching, _ in good:
        # SHA-512 counts as stronger than SHA-256, and its number is the greater one.
        best[usage, selector] = max(matching, best.get((usage, selector), _FULL))
    return tuple(r for r in good if r.matching in (_FULL, best[r.usage, r.selector]))


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in (_DANE_TA, _DANE_EE) or record.selector not in (0, 1):
        return False
    if record.matching == _FULL:
        return _is_der_sequence(record.data)
    return _DIGESTS.get(record.matching) == len(record.data)


def _is_der_sequence(data: bytes) -> bool:
    """Whether these are the octets of one SEQUENCE, as certificates and keys are (X.690 §8.1)."""
    if len(data) < 2 or data[0] != 0x30:
        return False
    size, rest = data[1], data[2:]
    if size >= 0x80:
        count = size & 0x7F
        size, rest = int.from_bytes(rest[:count], "big"), rest[count:]
    return len(rest) == size > 0


def base_domains(candidate: Candidate, *, is_alias_secure: bool = False) -> tuple[str, ...]:
    """Return under which names a host may have TLSA records, the preferred one first.

    RFC 7672 §2.2.2: the name behind CNAMEs where everything up to the addresses is secure, then
    the host's own; its own alone where only its CNAME record is secure.

    Args:
        candidate: The host.
        is_alias_secure: Whether the host's name is an alias in a zone that is signed.
    """
    host = candidate.host
    if is_address(host):
        # RFC 7672 §2.2: DANE does not apply to address literals.
        return ()
    if candidate.is_secure:
        return tuple(dict.fromkeys((candidate.canonical or host, host)))
    return (host,) if is_alias_secure else ()


def reference_names(base: str, route: Route, candidate: Candidate) -> tuple[str, ...]:
    """Return the names of which a certificate under usage 2 must have one (RFC 7672 §3.2.2)."""
    if route.aliases:
        return tuple(dict.fromkeys((base, *route.aliases)))
    if route.is_secure:
        # No MX record was used.
        return tuple(dict.fromkeys((base, candidate.host)))
    # Despite insecure MX records; the domain's name would prove nothing.
    return (base,)


class TlsaFinding(NamedTuple):
    """What the search for TLSA records of a host came to.

    Attributes:
        base: The TLSA base domain, where there are records.
        records: The records there, all secure.
        failure: Why the search gave no answer to rely on, empty where it did.
        seconds: How long this holds.
    """

    base: str = ""
    records: tuple[Tlsa, ...] = ()
    failure: str = ""
    seconds: float = math.inf


def judge(finding: TlsaFinding, route: Route, candidate: Candidate, mode: DaneMode) -> Opinion:
    """Return what DANE says of a host (RFC 7672 §2.2)."""
    host = candidate.host
    if finding.failure:
        policy = ReportedPolicy("tlsa", host, failure="dnssec-invalid", reason="TLSA lookup failed")
        return Opinion(unknown(finding.failure, policy), seconds=finding.seconds)
    good = usable(finding.records)
    if mode == "require" and not (good and route.is_secure):
        # RFC 7672 §2.2.1 and §6: the mail waits.
        text = f"DANE is required for {host}, and {_lack(finding, route)}"
        policy = ReportedPolicy("tlsa", finding.base or host, failure="dane-required")
        return Opinion(forbidden(text, policy), seconds=finding.seconds)
    if not finding.records:
        return Opinion(NOTHING, is_certain=route.is_secure, seconds=finding.seconds)
    texts = tuple(f"{u} {s} {m} {data.hex()}" for u, s, m, data in finding.records)
    if not good:
        # The host has said that it does TLS; there is nothing to authenticate it by.
        policy = ReportedPolicy("tlsa", finding.base, texts, (), "tlsa-invalid", "none is usable")
        demand = TlsDemand(TlsLevel.REQUIRE, "dane", sni=finding.base, reported=(policy,))
    else:
        demand = TlsDemand(
            TlsLevel.VERIFY,
            "dane",
            reference_names(finding.base, route, candidate),
            finding.base,
            good,
            reported=(ReportedPolicy("tlsa", finding.base, texts),),
        )
    return Opinion(demand, is_certain=route.is_secure, seconds=finding.seconds)


def _lack(finding: TlsaFinding, route: Route) -> str:
    if not route.is_secure:
        return "the MX records that name it are not signed"
    return "none of its TLSA records is usable" if finding.records else "it has no TLSA records"


# ---- lookups ------------------------------------------------------------------------------------


def needs_lookup(candidate: Candidate) -> bool:
    """Whether a host could have TLSA records that count.

    RFC 7672 §2.2.2: one whose address is not secure is not asked for; there would be none, and name
    servers that know no TLSA records would fail.
    """
    return candidate.is_secure or candidate.canonical not in ("", candidate.host)


async def find_tlsa(
    resolver: Resolver, candidate: Candidate, port: int, *, timeout: float = DEFAULT_TIMEOUT
) -> TlsaFinding:
    """Look for the TLSA records of a host, for connections to a port."""
    with trio.move_on_after(timeout):
        return await _search(resolver, candidate, port)
    failure = f"TLSA lookup for {candidate.host} took over {timeout:g} s"
    return TlsaFinding(failure=failure, seconds=0.0)


async def _search(resolver: Resolver, candidate: Candidate, port: int) -> TlsaFinding:
    seconds = math.inf
    is_alias_secure = False
    if not candidate.is_secure and candidate.canonical not in ("", candidate.host):
        # RFC 7672 §2.1.3: from the whole chain nobody can tell whether its first link is secure.
        alias = await resolver.cname(candidate.host)
        seconds = alias.ttl
        if alias.status == "failed":
            return TlsaFinding(failure=_failure("CNAME", candidate.host, alias), seconds=seconds)
        is_alias_secure = alias.authentic and alias.status == "ok"
    for base in base_domains(candidate, is_alias_secure=is_alias_secure):
        name = f"_{port}._tcp.{base}"
        answer = await resolver.tlsa(name)
        if answer.status == "failed":
            return TlsaFinding(failure=_failure("TLSA", name, answer), seconds=answer.ttl)
        seconds = min(seconds, answer.ttl)
        if answer.authentic and answer.records:
            return TlsaFinding(base, answer.records[:MAX_RECORDS], seconds=seconds)
    return TlsaFinding(seconds=seconds)


def _failure(rdtype: str, name: str, answer: Answer[Record]) -> str:
    return f"{rdtype} lookup of {name} failed: {answer.text}"
