"""MTA-STS: what a domain's policy demands of its mail hosts (RFC 8461 §3).  Knows no I/O.

`read_record` reads the TXT record that announces a policy, `read_policy` the policy, `judge` applies
it to a host.  Not here: where policies come from (`engine.routing.sts_fetch`) and how long they are
kept (`engine.routing.sts_store`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from engine.routing.opinion import NOTHING, Opinion, forbidden
from engine.security import ReportedPolicy, TlsDemand, TlsLevel
from engine.txt_fields import read_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.security import TlsFailure

StsMode: TypeAlias = Literal["enforce", "testing", "none"]

#: RFC 8461 §3.3 suggests the limit.
MAX_POLICY_OCTETS: Final = 64 * 1024
#: RFC 8461 §3.2: about a year.
MAX_SECONDS: Final = 31_557_600
_VERSION: Final = "STSv1"

# RFC 8461 §3.1: no "=", ";", blanks or control characters.
_RECORD_VALUE: Final = re.compile(r"[\x21-\x3a\x3c\x3e-\x7e]+")
_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_MAX_AGE: Final = re.compile(r"[0-9]{1,10}")
# RFC 8461 §3.2: a domain of A-labels, with "*." before it or not.
_PATTERN: Final = re.compile(
    r"(?=.{1,255}\Z)(?:\*\.)?(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)",
)


class StsPolicyError(ValueError):
    """A policy that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A domain's policy (RFC 8461 §3.2).

    Attributes:
        mode: Whether hosts that do not comply are refused, only reported, or nothing at all.
        max_age: Seconds for which it holds from when it was fetched, 0 to `MAX_SECONDS`.
        mx: The patterns of which a host's name must match one, lower-case.
    """

    mode: StsMode
    max_age: int
    mx: tuple[str, ...] = ()

    def covers(self, host: str) -> bool:
        """Whether a host may receive the domain's mail (RFC 8461 §4.1).

        `*` stands for the whole leftmost label and for one label only.
        """
        host = host.lower().removesuffix(".")
        _, dot, parent = host.partition(".")
        return host in self.mx or (bool(dot) and f"*.{parent}" in self.mx)

    @property
    def lines(self) -> tuple[str, ...]:
        """The policy as its fields, a line each (RFC 8460 §4.5)."""
        patterns = (f"mx: {pattern}" for pattern in self.mx)
        return (
            f"version: {_VERSION}",
            f"mode: {self.mode}",
            *patterns,
            f"max_age: {self.max_age}",
        )


def read_record(texts: Iterable[str]) -> str | None:
    """Return the `id` of the policy that a domain's TXT records announce.

    Args:
        texts: The TXT records of `_mta-sts.` and the domain.

    Returns:
        The id; `None` where not exactly one valid record is there (RFC 8461 §3.1).
    """
    fields = read_fields(texts, f"v={_VERSION}", _RECORD_VALUE) or {}
    identity = fields.get("id", "")
    return identity if _ID.fullmatch(identity) else None


def read_policy(octets: bytes) -> StsPolicy:
    """Read a policy as it is served.

    Unknown fields are ignored, and of a field that is repeated the first counts, except `mx`.  Empty
    lines are passed over: many policies end with some.

    Raises:
        StsPolicyError: It is none, or not one that can be followed.
    """
    if len(octets) > MAX_POLICY_OCTETS:
        raise StsPolicyError(f"longer than {MAX_POLICY_OCTETS} octets")
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise StsPolicyError("not UTF-8") from None
    fields: dict[str, str] = {}
    patterns: dict[str, None] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r").rstrip(" \t")
        if not line:
            continue
        key, colon, value = line.partition(":")
        value = value.lstrip(" \t")
        if not colon or not _KEY.fullmatch(key):
            raise StsPolicyError(f"line {number} is no field: {line[:60]!r}")
        if key == "mx":
            patterns[_read_pattern(number, value)] = None
        else:
            fields.setdefault(key, value)
    return _make_policy(fields, tuple(patterns))


def _read_pattern(number: int, value: str) -> str:
    pattern = value.lower()
    if not _PATTERN.fullmatch(pattern):
        raise StsPolicyError(f"line {number}: mx is no host name: {value[:60]!r}")
    return pattern


def _make_policy(fields: dict[str, str], patterns: tuple[str, ...]) -> StsPolicy:
    missing = [key for key in ("version", "mode", "max_age") if key not in fields]
    if missing:
        raise StsPolicyError(f"without {' and '.join(missing)}")
    if fields["version"] != _VERSION:
        raise StsPolicyError(f"version is {fields['version'][:60]!r}, not {_VERSION!r}")
    mode, max_age = fields["mode"], fields["max_age"]
    if mode not in get_args(StsMode):
        raise StsPolicyError(f"mode is {mode[:60]!r}, none of enforce, testing and none")
    if not _MAX_AGE.fullmatch(max_age) or int(max_age) > MAX_SECONDS:
        raise StsPolicyError(f"max_age is {max_age[:60]!r}, not 0 to {MAX_SECONDS} seconds")
    if not patterns and mode != "none":
        raise StsPolicyError("without mx")
    return StsPolicy(cast("StsMode", mode), int(max_age), patterns)


@dataclass(frozen=True, slots=True)
class StsFinding:
    """What is known of a domain's policy.

    Attributes:
        policy: The policy that holds, `None` where there is none.
        failure: What went wrong with finding out, in the words of RFC 8460 §4.3.2.2.
        reason: The same for a person.
        seconds: How long this holds.
        is_unknown: Whether there may be a policy all the same: the DNS gave no answer.
    """

    policy: StsPolicy | None = None
    failure: TlsFailure | None = None
    reason: str = ""
    seconds: float = 0.0
    is_unknown: bool = False


def judge(domain: str, finding: StsFinding, host: str) -> Opinion:
    """Return what MTA-STS says of a domain's host (RFC 8461 §4 and §5).

    Args:
        domain: The policy domain.
        finding: What is known of its policy.
        host: The name in the MX record.
    """
    policy, seconds = finding.policy, finding.seconds
    if policy is None or policy.mode == "none":
        # RFC 8461 §3.3: a policy that cannot be had is none; its owner is told.
        troubles = _troubles(domain, finding) if policy is None else ()
        demand = replace(NOTHING, reported=troubles)
        return Opinion(demand, seconds=seconds, is_unknown=finding.is_unknown)
    if not policy.covers(host):
        mismatch = _report(domain, policy, "validation-failure", "MX host is not in the policy")
        if policy.mode == "testing":
            return Opinion(replace(NOTHING, reported=(mismatch,)), seconds=seconds)
        text = f"{host} is none of the MX hosts that the MTA-STS policy of {domain} allows"
        return Opinion(forbidden(text, mismatch), seconds=seconds)
    reported = (_report(domain, policy), *_troubles(domain, finding))
    if policy.mode == "testing":
        demand = replace(NOTHING, trial_names=(host,), reported=reported)
    else:
        # RFC 8461 §4.2 and §7.1: the certificate is valid for the MX host, which is asked for.
        demand = TlsDemand(TlsLevel.VERIFY, "mta-sts", (host,), host, reported=reported)
    return Opinion(demand, is_certain=True, seconds=seconds)


def _troubles(domain: str, finding: StsFinding) -> tuple[ReportedPolicy, ...]:
    if finding.failure is None:
        return ()
    return (ReportedPolicy("sts", domain, (), (), finding.failure, finding.reason),)


def _report(
    domain: str, policy: StsPolicy, failure: TlsFailure | None = None, reason: str = ""
) -> ReportedPolicy:
    return ReportedPolicy("sts", domain, policy.lines, policy.mx, failure, reason)
