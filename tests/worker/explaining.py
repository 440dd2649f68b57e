"""Scouts with a DNS in memory, for the tests of `explain`."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from engine.paths import PathRule, SettingsTable
from engine.queue.hints import MemoryHints
from engine.routing.cache import CachingResolver
from engine.routing.mta_sts import StsPolicy
from engine.routing.router import Router
from engine.routing.sts_store import HINT_KIND, _Kept, _to_octets
from engine.routing.table import RouteTable
from engine.settings import Settings
from engine.testing.dns import FakeDns
from engine.worker.explain_describe import Describer
from engine.worker.explain_gather import Scout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.worker.explain_facts import Explanation

TLSA = "3 1 1 " + "ab" * 32
ZONE = {
    "x.test": {"MX": ["10 mx1.x.test", "10 mx2.x.test", "20 backup.test"]},
    "mx1.x.test": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]},
    "mx2.x.test": {"A": ["192.0.2.2"]},
    "backup.test": {"A": ["192.0.2.3"]},
    "one.test": {"MX": ["0 mx.one.test"]},
    "mx.one.test": {"A": ["192.0.2.9"]},
    "implicit.test": {"A": ["192.0.2.4"]},
    "alias.test": {"CNAME": ["x.test"]},
    "closed.test": {"MX": ["0 ."]},
    "broken.test": {"MX": "SERVFAIL"},
    "ours.test": {"MX": ["10 mx1.x.test", "20 us.test", "20 mx2.x.test"]},
    "us.test": {"A": ["192.0.2.99"]},
    "half.test": {"MX": ["10 gone.test", "20 mx.one.test"]},
    "unsure.test": {"MX": ["10 lost.test", "20 mx.one.test"]},
    "lost.test": {"A": "SERVFAIL"},
}


def policy(
    mode: str, *mx: str, domain: str = "one.test", hints: MemoryHints | None = None
) -> tuple[MemoryHints, dict[str, Any]]:
    """Hints with an MTA-STS policy, and the DNS that says it still holds."""
    hints = hints if hints is not None else MemoryHints()
    kept = _Kept("1", 2e9, StsPolicy(mode, 86_400, mx))
    hints.put(HINT_KIND, domain, _to_octets(kept), seconds=86_400)
    return hints, {**ZONE, f"_mta-sts.{domain}": {"TXT": ["v=STSv1; id=1"]}}


def scout(
    zone: Mapping[str, Any] = ZONE,
    *,
    authentic: bool | Sequence[str] = False,
    routes: Sequence[tuple[str, Sequence[str]]] = (),
    rules: Sequence[PathRule] = (),
    hints: MemoryHints | None = None,
    own_names: Sequence[str] = (),
    **settings: Any,
) -> tuple[Scout, Describer, FakeDns]:
    """Make what finds out and what describes, and the DNS they ask."""
    dns = FakeDns(zone, authentic=authentic)
    resolver = CachingResolver(dns)
    router = Router(resolver, table=RouteTable(routes), own_names=own_names)
    table = SettingsTable(Settings(**settings), rules)
    found = Scout(resolver, router, table, hints if hints is not None else MemoryHints(), Random(1))
    return found, Describer(table, {}), dns


async def explained(domain: str, zone: Mapping[str, Any] = ZONE, **more: Any) -> Explanation:
    """Explain a domain to which nobody connects."""
    finder, describer, _ = scout(zone, **more)
    return describer.describe(f"a@{domain}", await finder.find(domain))
