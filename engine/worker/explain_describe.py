"""Put what was found out about a domain, and seen of its hosts, into facts.  Knows no I/O.

Called by `engine.worker.explain`.  Name servers, policy hosts and mail hosts had a say in most of it,
so every text of theirs is bounded and made printable here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from engine.delivery.host_session import own_name
from engine.outcome import Cause, Status
from engine.route import Candidate, HostFailure, Route
from engine.routing.dane import usable
from engine.routing.families import families, family_of
from engine.routing.mx import MAX_HOSTS
from engine.security import HostRefused, TlsDemand, TlsLevel
from engine.settings import SECRET, Settings
from engine.smtp.reply import show
from engine.worker.explain_facts import (
    DemandFact,
    Explanation,
    HostFact,
    LimitsFact,
    MxFact,
    PlaceFact,
    ProbeFact,
    RefusedFact,
    Result,
    SettingFact,
    StsFact,
    TlsaFact,
    TlsFact,
    WayFact,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.paths import SettingsTable
    from engine.routing.mta_sts import StsFinding
    from engine.routing.mx import Host
    from engine.routing.router import Survey
    from engine.security import Tlsa
    from engine.smtp.capabilities import Capabilities
    from engine.smtp.status import EnhancedStatusCode
    from engine.worker.explain_gather import Finding, Lead
    from engine.worker.explain_probe import Sight

#: Characters of one text of somebody else's.
MAX_TEXT: Final = 300
#: Patterns of an MTA-STS policy.
_MAX_PATTERNS: Final = 100
_FACTORY: Final = Settings()


class Describer:
    """Makes facts; one serves any number of domains.

    Args:
        table: The settings of every path.
        sources: Where each key of the configuration was set, as `engine.worker.config.Config` has
            it.
        is_validating: Whether a name server is trusted to validate with DNSSEC.
    """

    def __init__(
        self, table: SettingsTable, sources: Mapping[str, str], *, is_validating: bool = True
    ) -> None:
        self._table = table
        self._sources = sources
        self._is_validating = is_validating

    def describe(
        self, address: str, finding: Finding, sights: Mapping[Candidate, Sight] | None = None
    ) -> Explanation:
        """Return what would become of mail for an address.

        Args:
            address: As it was given.
            finding: What was found out about its domain.
            sights: What was seen of its hosts; `None`: nobody looked.
        """
        survey, settings = finding.survey, finding.settings
        route = survey.verdict
        result, text, enhanced = conclude(finding, sights)
        return Explanation(
            bounded(address),
            finding.domain,
            result,
            text,
            enhanced,
            self._is_validating,
            _way(finding.domain, survey),
            route.site if isinstance(route, Route) else None,
            tuple(map(self._rule, finding.rules)),
            self._settings(settings, _FACTORY, finding.rules),
            LimitsFact(
                settings.max_connections,
                settings.max_messages_per_connection,
                settings.max_recipients_per_transaction,
                settings.max_hosts_tried,
                settings.max_hosts_tried_hard,
                settings.serialize,
                settings.stream_depth,
            ),
            tuple(proxy.name for proxy in settings.proxy),
            settings.fast_open,
            tuple(_sts(owner, found) for owner, found in finding.policies),
            self._hosts(finding, sights or {}),
        )

    # -- settings ---------------------------------------------------------------------------

    def _rule(self, index: int) -> str:
        match = self._table.rules[index].match
        place = self._sources.get(f"paths[{index}].match")
        return f'[[paths]] {index + 1} "{bounded(match)}"' + (f" ({place})" if place else "")

    def _settings(
        self, settings: Settings, base: Settings, rules: Sequence[int]
    ) -> tuple[SettingFact, ...]:
        names = Settings.model_fields
        return tuple(
            SettingFact(name, _shown(name, getattr(settings, name)), self._source(name, rules))
            for name in names
            if getattr(settings, name) != getattr(base, name)
        )

    def _source(self, name: str, rules: Sequence[int]) -> str:
        for index in reversed(rules):
            if name in self._table.rules[index].overrides:
                return self._sources.get(f"paths[{index}].{name}", f"[[paths]] {index + 1}")
        return self._sources.get(f"defaults.{name}", "default")

    # -- hosts ------------------------------------------------------------------------------

    def _hosts(self, finding: Finding, sights: Mapping[Candidate, Sight]) -> tuple[HostFact, ...]:
        survey, route = finding.survey, finding.survey.verdict
        found = route.candidates if isinstance(route, Route) else ()
        candidates = {(each.host, each.address): each for each in found}
        tried = [step for step in finding.steps if isinstance(step, Candidate)]
        leads = dict(zip(tried, finding.leads, strict=True))
        orders = {candidate: order for order, candidate in enumerate(tried, 1)}
        hosts = []
        for host in survey.hosts:
            places = []
            for address in (None,) if host.is_unix else host.addresses:
                candidate = candidates.get((host.name, address))
                if candidate in leads:
                    lead = leads[candidate]
                    sight = sights.get(candidate)
                    places.append(self._place(finding, lead, orders[candidate], sight))
                else:
                    note = None if host not in survey.kept else _why_not(candidate, finding)
                    places.append(PlaceFact(address, host.port, None, note))
            alias = host.canonical if host.canonical not in ("", host.name) else None
            hosts.append(
                HostFact(
                    host.name,
                    host.preference,
                    alias,
                    host.is_secure,
                    _note(host, survey),
                    tuple(places),
                )
            )
        return tuple(hosts)

    def _place(self, finding: Finding, lead: Lead, order: int, sight: Sight | None) -> PlaceFact:
        settings, verdict = lead.path.settings, lead.verdict
        policy = dict(finding.policies).get(lead.owner or "")
        refused = None
        if isinstance(verdict, HostRefused):
            text = bounded(verdict.text)
            refused = RefusedFact(verdict.status, verdict.cause, verdict.enhanced, text)
        return PlaceFact(
            lead.peer.address,
            lead.peer.port,
            order,
            bounded(lead.barred) if lead.barred else None,
            lead.peer.local_address,
            _hello_name(lead),
            self._settings(settings, finding.settings, lead.rules),
            _tlsa(lead),
            policy.policy.covers(lead.candidate.host)
            if policy is not None and policy.policy is not None and policy.policy.mode != "none"
            else None,
            _demand(verdict, settings) if isinstance(verdict, TlsDemand) else None,
            refused,
            bounded(lead.strict.text) if isinstance(lead.strict, HostRefused) else None,
            lead.memory,
            None if sight is None else _probe(sight, lead),
        )


def bounded(text: str, most: int = MAX_TEXT) -> str:
    """Return a text of somebody else's on one line, printable and not too long."""
    shown = text if text.isprintable() else show(text.encode("utf-8", "backslashreplace"))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


# ---- what it comes to ---------------------------------------------------------------------------


def conclude(
    finding: Finding, sights: Mapping[Candidate, Sight] | None = None
) -> tuple[Result, str, EnhancedStatusCode | None]:
    """Return what would become of mail for a domain, and why; the arguments are `describe`'s."""
    route = finding.survey.verdict
    if not isinstance(route, Route):
        result = Result.FAILED if route.status is Status.FAILED else Result.DEFERRED
        return result, bounded(route.text), route.enhanced
    usable_leads = [
        lead for lead in finding.leads if isinstance(lead.verdict, TlsDemand) and not lead.barred
    ]
    if not usable_leads:
        return _ruled_out(finding)
    if sights is None:
        count = len(usable_leads)
        return Result.TRIED, f"would be tried at {_counted(count, 'address', 'addresses')}", None
    seen = [(lead, sights[lead.candidate]) for lead in usable_leads if lead.candidate in sights]
    for lead, sight in seen:
        if sight.trouble is None or sight.is_clear_next:
            return Result.TRIED, f"would be sent to {lead.peer}, {_how(lead, sight)}", None
    troubles = [sight.trouble for _, sight in seen if sight.trouble is not None]
    # As an outcome of several hosts: a refusal is final only when every host refused.
    is_final = all(trouble.status is Status.FAILED for trouble in troubles)
    first = troubles[0]
    result = Result.FAILED if is_final else Result.DEFERRED
    return result, bounded(first.text), first.enhanced


def _ruled_out(finding: Finding) -> tuple[Result, str, EnhancedStatusCode | None]:
    refusals = [lead.verdict for lead in finding.leads if isinstance(lead.verdict, HostRefused)]
    barred = [lead.barred for lead in finding.leads if lead.barred]
    is_passing = (
        bool(barred)
        or any(refusal.cause is Cause.DNS for refusal in refusals)
        or any(step.is_temporary for step in finding.steps if isinstance(step, HostFailure))
    )
    result = Result.DEFERRED if is_passing else Result.FORBIDDEN
    if refusals:
        return result, bounded(refusals[0].text), refusals[0].enhanced
    return result, bounded(barred[0]), None


def _how(lead: Lead, sight: Sight) -> str:
    """Say how mail would go to a host that takes it."""
    if sight.tls is None or sight.is_clear_next:
        return "in clear"
    demand, version = lead.verdict, sight.tls.facts.version
    if not isinstance(demand, TlsDemand) or demand.level < TlsLevel.VERIFY:
        return f"over {version} with a certificate that nobody checks"
    return f"over {version}, verified by {'TLSA records' if demand.tlsa else 'authorities'}"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# ---- single facts -------------------------------------------------------------------------------


def _shown(name: str, value: object) -> object:
    """Return the value of a setting for people and JSON; no secret is in it."""
    if name == "proxy":
        assert isinstance(value, tuple)
        return [proxy.name for proxy in value]
    if name in SECRET:
        return "set" if value is not None else "off"
    if isinstance(value, tuple):
        return list(value)
    return bounded(value) if isinstance(value, str) else value


def _way(domain: str, survey: Survey) -> WayFact:
    answer, rule = survey.answer, survey.rule
    records: list[MxFact] = []
    alias = None
    if answer is not None:
        ranked = sorted(answer.records, key=lambda record: record.preference)
        records = [MxFact(each.preference, bounded(each.exchange)) for each in ranked]
        alias = answer.canonical if answer.canonical not in ("", domain) else None
    return WayFact(
        survey.kind,
        None if rule is None else bounded(rule.match),
        tuple(records[:MAX_HOSTS]),
        len(records),
        alias,
        None if answer is None else answer.authentic,
        None if math.isinf(survey.seconds) else survey.seconds,
    )


def _note(host: Host, survey: Survey) -> str | None:
    if host in survey.own:
        return "this machine: cut off, with all of equal or worse preference"
    if host not in survey.kept:
        return "cut off: not better than this machine"
    return None if host.failure is None else bounded(host.failure.text)


def _why_not(candidate: Candidate | None, finding: Finding) -> str:
    """Say why an address that could be used is not among those that would be tried."""
    if candidate is None or any(_is_one_place(candidate, step) for step in finding.steps):
        return "the same address as that of a host before it"
    settings = finding.settings
    if candidate.address is not None:
        family, allowed = family_of(candidate.address), families(settings.address_family)
        if family not in allowed:
            return f"address_family is {settings.address_family}"
    return f"beyond max_hosts_tried ({settings.max_hosts_tried})"


def _is_one_place(candidate: Candidate, step: Candidate | HostFailure) -> bool:
    place = candidate.address, candidate.port
    return (
        isinstance(step, Candidate) and place[0] is not None and place == (step.address, step.port)
    )


def _sts(owner: str, found: StsFinding) -> StsFact:
    trouble = bounded(found.reason) if found.reason else None
    if trouble is None and found.is_unknown:
        trouble = "the DNS gave no answer"
    policy = found.policy
    if policy is None:
        return StsFact(owner, None, trouble=trouble)
    return StsFact(owner, policy.mode, policy.mx[:_MAX_PATTERNS], policy.max_age, trouble)


def _hello_name(lead: Lead) -> str | None:
    name, address = lead.path.settings.helo_name, lead.peer.local_address
    if name is None and address is None and lead.peer.address is not None:
        return None  # our address, as the proxy says it
    return own_name(name, address)


def _tlsa(lead: Lead) -> TlsaFact:
    settings, finding = lead.path.settings, lead.tlsa
    if finding is None:
        if settings.tls == "off" or settings.dane == "off":
            which = "tls" if settings.tls == "off" else "dane"
            return TlsaFact(trouble=f"not looked for: {which} is off")
        return TlsaFact(trouble="not looked for: the host's addresses are not signed")
    if finding.failure:
        return TlsaFact(trouble=bounded(finding.failure))
    if not finding.records:
        return TlsaFact()
    good = usable(finding.records)
    rest = (record for record in finding.records if record not in good)
    name = f"_{lead.peer.port}._tcp.{finding.base}"
    return TlsaFact(name, tuple(map(_record, good)), tuple(map(_record, rest)))


def _record(record: Tlsa) -> str:
    usage, selector, matching, data = record
    return f"{usage} {selector} {matching} {data.hex()}"


def _demand(demand: TlsDemand, settings: Settings) -> DemandFact:
    return DemandFact(
        demand.level.name.lower(),
        demand.policy,
        demand.names if demand.level is TlsLevel.VERIFY else (),
        demand.sni,
        _demand_text(demand, settings),
    )


def _demand_text(demand: TlsDemand, settings: Settings) -> str:
    asker = {"dane": "DANE", "mta-sts": "MTA-STS"}.get(demand.policy, f'tls = "{settings.tls}"')
    match demand.level:
        case TlsLevel.OFF:
            return 'none: tls = "off"'
        case TlsLevel.OPPORTUNISTIC:
            if settings.tls_fallback_to_clear:
                return "where it can be had, with any certificate; else in clear"
            return "where it is offered, with any certificate; else in clear"
        case TlsLevel.REQUIRE:
            if demand.policy == "required" and settings.tls == "opportunistic":
                return "from the first octet, with any certificate"
            return f"needed, with any certificate ({asker})"
        case TlsLevel.VERIFY:
            if demand.tlsa:
                return f"needed, with a certificate that the TLSA records match ({asker})"
            names = " or ".join(demand.names)
            return bounded(f"needed, with a trusted certificate for {names} ({asker})")


def _probe(sight: Sight, lead: Lead) -> ProbeFact:
    trouble, facts, tls = sight.trouble, sight.connection, sight.tls
    text = f"would be sent {_how(lead, sight)}"
    if trouble is not None:
        text = bounded(trouble.text) + ("; mail would go in clear" if sight.is_clear_next else "")
    return ProbeFact(
        trouble is None or sight.is_clear_next,
        text,
        None if facts is None else facts.local_address,
        None if facts is None else facts.proxy,
        sight.fast_open,
        None if facts is None else facts.connect_seconds,
        sight.round_trip,
        None if sight.greeting is None else bounded(sight.greeting.text),
        None if sight.greeting is None else sight.greeting_seconds,
        _keywords(sight.offered),
        _keywords(sight.offered_over_tls),
        None
        if tls is None
        else TlsFact(
            tls.facts.version,
            tls.facts.cipher,
            tls.seconds,
            tls.resumable,
            tls.chain,
            tls.certificate,
            tls.judgements,
        ),
    )


def _keywords(offered: Capabilities | None) -> dict[str, str] | None:
    if offered is None:
        return None
    return {bounded(name, 64): bounded(rest, 200) for name, rest in offered.keywords.items()}
