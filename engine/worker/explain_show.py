"""An explanation on a terminal: text that fits 80 columns.  Knows no I/O.

Called by `engine.worker.explain`.  All texts come safe to print (`engine.worker.explain_describe`);
rich's markup is off, for they are anybody's.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.routing.site import host_text
from engine.showing import show
from engine.worker.explain_facts import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from engine.worker.explain_certificate import Certificate
    from engine.worker.explain_facts import (
        Explanation,
        HostFact,
        PlaceFact,
        ProbeFact,
        SettingFact,
        StsFact,
        TlsaFact,
        TlsFact,
        WayFact,
    )
    from engine.worker.explain_gather import Memory

STYLES: Final = {
    Result.TRIED: "green",
    Result.DEFERRED: "yellow",
    Result.FORBIDDEN: "red",
    Result.FAILED: "red",
}
#: Columns of a label.
_LABEL: Final = 11
#: Items of a list that are shown; JSON has all.
_MOST: Final = 10
#: Characters that fit behind a label.
_LINE: Final = 66
#: Characters of a TLSA record.
_RECORD: Final = 24

_TROUBLE: Final = "TROUBLE"
_RULED_OUT: Final = "Ruled out"
_ALARMS: Final = (_TROUBLE, _RULED_OUT)
_JUDGES: Final = {"chain": "Chain", "name": "Name", "dane": "DANE", "mta-sts": "MTA-STS"}
_GOOD: Final = "good:"
_BAD: Final = "BAD:"

_Row = tuple[str, str]


def render(explanation: Explanation) -> RenderableType:
    """Return the explanation of one address."""
    line = Text(explanation.address, style="bold")
    line.append(f"  {explanation.result.value}", STYLES[explanation.result])
    parts: list[RenderableType] = [line, _rows(_about(explanation))]
    if explanation.hosts:
        parts += [Text(), Padding(_hosts(explanation.hosts), (0, 0, 0, 1))]
    if _has_equals(explanation.hosts) and explanation.way.kind == "mx":
        parts.append(Text(" Hosts of one preference are shuffled for each message.", "dim"))
    for host in explanation.hosts:
        parts += _host(host)
    return Group(*parts, Text())


def _rows(rows: Iterable[_Row], indent: int = 1) -> RenderableType:
    """Return labels with their texts; a label that repeats is written once."""
    table = Table.grid(padding=(0, 1))
    table.add_column(min_width=_LABEL, no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    last = ""
    for label, text in rows:
        table.add_row("" if label == last else label, _coloured(label, text))
        last = label
    return Padding(table, (0, 0, 0, indent))


def _coloured(label: str, text: str) -> Text:
    """Return the text with what decides in a colour."""
    if label in _ALARMS:
        return Text(text, "red")
    shown = Text(text)
    if label in _JUDGES.values():
        # Not red: what is bad by one judge may be asked of no host (`_TROUBLE` is where it is).
        style = "green" if text.startswith(_GOOD) else "yellow" if text.startswith(_BAD) else ""
        shown.stylize(style, 0, text.find(":"))
    return shown


# ---- the domain ---------------------------------------------------------------------------------


def _about(explanation: Explanation) -> Iterator[_Row]:
    code = f"{explanation.enhanced} " if explanation.enhanced is not None else ""
    yield "Mail", code + explanation.text
    yield "Domain", explanation.domain
    yield "Route", _way(explanation.way)
    if not explanation.is_validating:
        yield "DNSSEC", "no name server is trusted to validate: nothing counts as signed"
    if explanation.way.kind == "mx":
        yield from _records(explanation.way)
    if explanation.site is None:
        return
    site = explanation.site
    yield "Site", site if len(site) <= _LINE else _listed(site.split(","))
    for rule in explanation.rules:
        yield "Rules", rule
    yield from _settings(explanation.settings)
    limits = explanation.limits
    connections = ", one at a time to a host" if limits.serialize else ""
    yield "Limits", f"{limits.max_connections} connections to the site{connections}"
    yield "Limits", f"{_or_any(limits.max_messages_per_connection)} messages on a connection"
    yield "Limits", f"{_or_any(limits.max_recipients_per_transaction)} recipients a transaction"
    tried, hard = limits.max_hosts_tried, limits.max_hosts_tried_hard
    if explanation.way.kind == "static":
        yield "Limits", f"{min(tried, hard)} addresses tried"
    else:
        more = f"then one of each further preference, {hard} in all"
        yield "Limits", f"{tried} addresses tried, {more}"
    yield "Connecting", f"{_through(explanation.proxies)}; TCP Fast Open {explanation.fast_open}"
    for policy in explanation.mta_sts:
        yield from _sts(policy)


def _way(way: WayFact) -> str:
    parts = {
        "static": f'static route, match = "{way.rule}"',
        "literal": "the address itself",
        "mx": "MX records" if way.records else "MX records were asked for",
        "implicit": "the domain itself: it has no MX records",
    }[way.kind]
    if way.alias is not None and way.records:
        parts += f" of {way.alias}"
    if way.is_signed is not None:
        parts += f", {_signed(is_signed=way.is_signed)}"
    if way.seconds is not None:
        parts += f"; holds for {_seconds(way.seconds)}"
    return parts


def _records(way: WayFact) -> Iterator[_Row]:
    for record in way.records[:_MOST]:
        yield "MX", f"{record.preference:5} {record.host}"
    if way.count > _MOST:
        yield "MX", f"and {way.count - _MOST} more"


def _sts(policy: StsFact) -> Iterator[_Row]:
    if policy.mode is None:
        text = f"no policy of {policy.domain}"
    else:
        text = f"{policy.mode}, by {policy.domain}"
        if policy.max_age is not None:
            text += f", for {_seconds(policy.max_age)} once fetched"
    yield "MTA-STS", text
    if policy.mx:
        yield "MTA-STS", f"allows {_listed(policy.mx)}"
    if policy.trouble is not None:
        yield "MTA-STS", policy.trouble


def _settings(settings: Iterable[SettingFact]) -> Iterator[_Row]:
    for setting in settings:
        value = setting.value
        shown = f"{value:g}" if isinstance(value, float) else show(value)
        yield "Settings", f"{setting.name} = {shown} ({setting.source})"


# ---- hosts --------------------------------------------------------------------------------------


def _hosts(hosts: Sequence[HostFact]) -> Table:
    """Return a table of all addresses, in the order of preference."""
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Order", justify="right", no_wrap=True)
    table.add_column("Pref", justify="right", no_wrap=True)
    table.add_column("Host", overflow="fold", min_width=10)
    table.add_column("Address", overflow="fold", min_width=10)
    table.add_column("", overflow="fold", min_width=10)
    for host in hosts:
        name, preference = host.host, str(host.preference)
        for place in host.places or (None,):
            note = host.note or (place.note if place is not None else None) or ""
            order = str(place.order) if place is not None and place.order is not None else "-"
            if not note and place is not None and place.refused is not None:
                note = "ruled out"
            table.add_row(
                order,
                preference,
                Text(name),
                Text("-" if place is None else _address(place)),
                Text(note),
            )
            name = preference = ""
    return table


def _has_equals(hosts: Sequence[HostFact]) -> bool:
    """Whether two hosts that would be tried have one preference."""
    tried = [host.preference for host in hosts if any(place.order for place in host.places)]
    return len(tried) > len(set(tried))


def _address(place: PlaceFact) -> str:
    return "-" if place.address is None else host_text(place.address, place.port)


def _host(host: HostFact) -> Iterator[RenderableType]:
    """Yield what there is to say of a host's addresses; of those that are alike, once."""
    tried = [place for place in host.places if place.order is not None]
    for _, group in groupby(tried, key=lambda place: list(_terms(host, place))):
        places = list(group)
        yield Text()
        line = Text(" ").append(host.host, "bold")
        yield line.append(f"  {', '.join(map(_address, places))}")
        yield _rows(_terms(host, places[0]), 2)
        for place in places:
            if place.probe is not None:
                yield Text()
                yield Text(f"  Seen at {_address(place)}", "bold")
                yield _rows(_probe(place.probe), 2)


def _terms(host: HostFact, place: PlaceFact) -> Iterator[_Row]:
    if host.alias is not None:
        yield "Alias of", host.alias
    yield "Addresses", _signed(is_signed=host.is_signed)
    if place.local_address is not None:
        yield "From", place.local_address
    if place.hello_name is not None:
        yield "Hello", f"as {place.hello_name}"
    yield from _settings(place.settings)
    if place.tlsa is not None:
        yield from _tlsa(place.tlsa)
    if place.is_covered is not None:
        yield "MTA-STS", "names the host" if place.is_covered else "does not name the host"
    if place.tls is not None:
        yield "TLS", place.tls.text
    if place.refused is not None:
        refused = place.refused
        yield _RULED_OUT, f"{refused.enhanced} {refused.text}"
    if place.requiretls is not None and place.refused is None:
        yield "REQUIRETLS", place.requiretls.removeprefix("REQUIRETLS: ")
    if place.known is not None:
        for text in _known(place.known):
            yield "Known", text


def _tlsa(tlsa: TlsaFact) -> Iterator[_Row]:
    if tlsa.trouble is not None:
        yield "TLSA", tlsa.trouble
        return
    if tlsa.name is None:
        yield "TLSA", "no signed records"
        return
    yield "TLSA", tlsa.name
    rows = [*tlsa.usable, *(f"{_cut(text, _RECORD)} (of no use)" for text in tlsa.unusable)]
    for text in rows[:_MOST]:
        yield "TLSA", text if text.endswith(")") else _cut(text, _RECORD)
    if len(rows) > _MOST:
        yield "TLSA", f"and {len(rows) - _MOST} more"


def _known(known: Memory) -> Iterator[str]:
    if known.takes_streams is not None:
        yield (
            "takes several messages in flight"
            if known.takes_streams
            else ("takes one message at a time")
        )
    if known.takes_early:
        yield "takes commands before its greeting"
    if known.is_bad_at_chunking:
        yield "mishandled BDAT: it gets DATA"
    if known.has_broken_tls:
        yield "its TLS did not work lately"
    if known.avoids_fast_open:
        yield "no TCP Fast Open: there was trouble with it lately"


# ---- what was seen ------------------------------------------------------------------------------


def _probe(probe: ProbeFact) -> Iterator[_Row]:
    if probe.connect_seconds is not None:
        yield "Connected", _connection(probe, probe.connect_seconds)
    if probe.greeting is not None:
        yield "Greeting", f"{probe.greeting} ({_quick(probe.greeting_seconds or 0.0)})"
    if probe.hello is not None:
        yield "Offers", _keywords(probe.hello)
    if probe.tls is not None:
        yield from _tls(probe.tls)
    if probe.hello_over_tls is not None:
        yield "Over TLS", _keywords(probe.hello_over_tls)
    yield "Mail" if probe.is_good else _TROUBLE, probe.text


def _connection(probe: ProbeFact, seconds: float) -> str:
    parts = [f"in {_quick(seconds)}"]
    if probe.local_address is not None:
        parts[0] += f" from {probe.local_address}"
    if probe.proxy is not None:
        parts.append(f"through {probe.proxy}")
    if probe.round_trip is not None:
        parts.append(f"round trip {_quick(probe.round_trip)}")
    parts.append(f"TCP Fast Open {probe.fast_open}")
    return ", ".join(parts)


def _tls(tls: TlsFact) -> Iterator[_Row]:
    yield "TLS", f"{tls.version}, {tls.cipher}, in {_quick(tls.seconds)}"
    resumable = tls.resumable_seconds
    yield "TLS", "no resumption" if resumable is None else f"resumable for {_seconds(resumable)}"
    if tls.certificate is None:
        yield "Certificate", "none that can be read" if tls.certificates else "none"
    else:
        yield from _certificate(tls.certificate, tls.certificates)
    for judgement in tls.judgements:
        yield _JUDGES[judgement.by], f"{_GOOD if judgement.is_met else _BAD} {judgement.text}"


def _certificate(certificate: Certificate, count: int) -> Iterator[_Row]:
    yield "Certificate", certificate.subject or "(no subject)"
    if certificate.names:
        more = certificate.count - min(len(certificate.names), _MOST)
        listed = ", ".join(certificate.names[:_MOST])
        yield "Certificate", f"for {listed}{f' and {more} more' if more else ''}"
    yield "Certificate", f"by {certificate.issuer}"
    days = certificate.days_left
    left = f"{days} days left" if days >= 0 else "expired"
    yield "Certificate", f"until {certificate.not_after[:10]} ({left}); {certificate.key}"
    yield "Certificate", f"{count} sent" if count != 1 else "sent alone"
    for text in certificate.tlsa[:1]:
        kind, _, digest = text.rpartition(" ")
        yield f"TLSA {kind}", digest


def _keywords(offered: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {rest}".rstrip() for name, rest in offered.items()) or "nothing"


# ---- words --------------------------------------------------------------------------------------


def _signed(*, is_signed: bool) -> str:
    return "signed (DNSSEC)" if is_signed else "not signed"


def _through(proxies: Sequence[str]) -> str:
    return f"through {_listed(proxies)}" if proxies else "directly"


def _or_any(number: int) -> str:
    return "any number of" if number == 0 else f"{number}"


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MOST} more" if len(items) > _MOST else ""
    return ", ".join(items[:_MOST]) + more


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


def _quick(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _seconds(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
