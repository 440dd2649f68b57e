"""What `explain` tells of an address: one value, the same in JSON and as text.  Knows no I/O.

Made by `engine.worker.explain_describe`, put on the terminal by `engine.worker.explain_show`.  Field
names are the keys of the JSON object; absent facts are `None`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any

from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from engine.outcome import Cause, FastOpen, Status
    from engine.worker.explain_certificate import Certificate
    from engine.worker.explain_gather import Memory
    from engine.worker.explain_judge import Judgement


class Result(StrEnum):
    """What would become of mail for an address."""

    #: It would be tried.
    TRIED = "tried"
    #: It would wait.
    DEFERRED = "deferred"
    #: Every host is ruled out by a policy: it would wait for somebody to mend that.
    FORBIDDEN = "forbidden"
    #: It would bounce.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SettingFact:
    """A setting in force that is not the default.

    Attributes:
        name: Its name.
        value: Its value; of what may hold a secret no more than that it is set.
        source: Where it comes from.
    """

    name: str
    value: object
    source: str


@dataclass(frozen=True, slots=True)
class MxFact:
    """One MX record, as it was published."""

    preference: int
    host: str


@dataclass(frozen=True, slots=True)
class WayFact:
    """Where the hosts of a domain come from.

    Attributes:
        kind: `static`, `literal`, `mx` or `implicit`.
        rule: What the static route matches.
        records: The MX records, by preference; at most as many as there may be hosts.
        count: How many MX records there are.
        alias: The domain's name behind CNAMEs, where it is an alias.
        is_signed: Whether DNSSEC vouches for it; `None`: it does not come from the DNS.
        seconds: For how long it holds; `None`: for ever.
    """

    kind: str
    rule: str | None
    records: tuple[MxFact, ...]
    count: int
    alias: str | None
    is_signed: bool | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class LimitsFact:
    """What bounds delivery to the site; 0 is no limit."""

    max_connections: int
    max_messages_per_connection: int
    max_recipients_per_transaction: int
    max_hosts_tried: int
    max_hosts_tried_hard: int
    serialize: bool
    stream_depth: int | str


@dataclass(frozen=True, slots=True)
class StsFact:
    """An MTA-STS policy.

    Attributes:
        domain: Whose it is.
        mode: `enforce`, `testing` or `none`; `None`: there is no policy, as far as can be told.
        mx: The patterns for host names.
        max_age: Seconds for which it holds from when it was fetched.
        trouble: What went wrong with finding out.
    """

    domain: str
    mode: str | None
    mx: tuple[str, ...] = ()
    max_age: int | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class TlsaFact:
    """The search for TLSA records of a host.

    Attributes:
        name: Where the records are, `None` where there are none.
        usable: The records that can authenticate the host.
        unusable: Those that cannot.
        trouble: Why the search gave no answer to rely on, or was not made.
    """

    name: str | None = None
    usable: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class RefusedFact:
    """Why a host must not be used."""

    status: Status
    cause: Cause
    enhanced: EnhancedStatusCode
    text: str


@dataclass(frozen=True, slots=True)
class DemandFact:
    """What TLS a host must show.

    Attributes:
        level: `off`, `opportunistic`, `require` or `verify`.
        by: Who asks for it: `opportunistic`, `required`, `dane` or `mta-sts`.
        names: What the certificate must be for, where names count.
        server_name: What it is asked for.
        text: The same for a person.
    """

    level: str
    by: str
    names: tuple[str, ...]
    server_name: str | None
    text: str


@dataclass(frozen=True, slots=True)
class TlsFact:
    """TLS as a host does it: `engine.worker.explain_probe.TlsSight`, spread."""

    version: str
    cipher: str
    seconds: float
    resumable_seconds: float | None
    certificates: int
    certificate: Certificate | None
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class ProbeFact:
    """What was seen of a host.

    Attributes:
        is_good: Whether it would be given mail.
        text: Why not, or how.
        local_address: Our side.
        proxy: The proxy in between.
        fast_open: What TCP Fast Open did.
        connect_seconds: How long connecting took; `None`: there was no connection.
        round_trip: The kernel's estimate in seconds.
        greeting: What it greeted with.
        greeting_seconds: How long that took.
        hello: What it answered to our hello in clear; keywords with the rest of their lines.
        hello_over_tls: The same over TLS.
        tls: TLS, where there was any.
    """

    is_good: bool
    text: str
    local_address: str | None = None
    proxy: str | None = None
    fast_open: FastOpen = "off"
    connect_seconds: float | None = None
    round_trip: float | None = None
    greeting: str | None = None
    greeting_seconds: float | None = None
    hello: Mapping[str, str] | None = None
    hello_over_tls: Mapping[str, str] | None = None
    tls: TlsFact | None = None


@dataclass(frozen=True, slots=True)
class PlaceFact:
    """An address of a host.

    Attributes:
        address: The IP address; `None` for a Unix socket.
        port: The TCP port; the same.
        order: Its place among those that would be tried, from 1; `None`: it would not be.
        note: Why not.
        local_address: Where we would connect from, as far as that can be told.
        hello_name: What we would call ourselves, the same.
        settings: Settings that differ from those for the site.
        tlsa: Its TLSA records.
        is_covered: Whether the MTA-STS policy names the host; `None`: there is no policy.
        tls: What TLS it must show.
        refused: Why it must not be used.
        requiretls: Why a message with REQUIRETLS could not go there; `None`: no policy forbids it.
        known: What is remembered of it.
        probe: What was seen of it.
    """

    address: str | None
    port: int | None
    order: int | None
    note: str | None = None
    local_address: str | None = None
    hello_name: str | None = None
    settings: tuple[SettingFact, ...] = ()
    tlsa: TlsaFact | None = None
    is_covered: bool | None = None
    tls: DemandFact | None = None
    refused: RefusedFact | None = None
    requiretls: str | None = None
    known: Memory | None = None
    probe: ProbeFact | None = None


@dataclass(frozen=True, slots=True)
class HostFact:
    """A host of the domain.

    Attributes:
        host: Its name.
        preference: Its MX preference, or its place in the static route, from 0.
        alias: Its name behind CNAMEs, where it is an alias.
        is_signed: Whether DNSSEC vouches for its addresses.
        note: Why it is not used, if so.
        places: Its addresses.
    """

    host: str
    preference: int
    alias: str | None
    is_signed: bool
    note: str | None
    places: tuple[PlaceFact, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of mail for an address, and why.

    Attributes:
        address: As it was given.
        domain: What is routed: A-labels, or an address literal.
        result: What would become of it.
        text: The same on one line.
        enhanced: The enhanced status code of an outcome that is known now.
        is_validating: Whether a name server is trusted to validate with DNSSEC.
        way: Where its hosts come from.
        site: The receiver behind them.
        rules: The rules for paths that hold for the site, least specific first.
        settings: Settings that differ from the defaults.
        limits: What bounds delivery.
        proxies: What connections go through.
        fast_open: The setting.
        mta_sts: The MTA-STS policies that count.
        hosts: The hosts, the best first.
    """

    address: str
    domain: str
    result: Result
    text: str
    enhanced: EnhancedStatusCode | None
    is_validating: bool
    way: WayFact
    site: str | None
    rules: tuple[str, ...]
    settings: tuple[SettingFact, ...]
    limits: LimitsFact
    proxies: tuple[str, ...]
    fast_open: str
    mta_sts: tuple[StsFact, ...]
    hosts: tuple[HostFact, ...]


def as_json(value: object) -> Any:
    """Return a fact as what JSON has: objects, arrays, texts, numbers, `None`."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, EnhancedStatusCode):
        return str(value)
    if is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        # JSON has no infinity; and nobody needs picoseconds.
        return round(value, 6) if math.isfinite(value) else None
    return value
