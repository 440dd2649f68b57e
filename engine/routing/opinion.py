"""What one policy says of a host before anybody connects to it, and what all of them say together.

Made by `engine.routing.dane`, `engine.routing.mta_sts` and `engine.routing.policy`, which combines
them.  Knows no I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from engine.outcome import Cause, Status
from engine.security import HostRefused, TlsDemand, TlsLevel
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.security import ReportedPolicy

#: What a policy demands that does not apply: nothing, so that the others decide.
NOTHING: Final = TlsDemand(TlsLevel.OFF)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one policy says of a host.

    Attributes:
        verdict: What TLS must be, or why the host must not be used at all.
        is_certain: Whether it vouches that the host serves the domain: a forged MX record would
            have been noticed.
        seconds: How long this holds.
        is_unknown: Whether more might be asked for: who was to say so could not be reached.
    """

    verdict: TlsDemand | HostRefused
    is_certain: bool = False
    seconds: float = math.inf
    is_unknown: bool = False

    @property
    def settles_it(self) -> bool:
        """Whether no other policy could ask for more: it is the right host, and it proves it."""
        verdict = self.verdict
        is_verified = isinstance(verdict, TlsDemand) and verdict.level is TlsLevel.VERIFY
        return is_verified and self.is_certain


def combine(opinions: Iterable[Opinion]) -> TlsDemand | HostRefused:
    """Return what all say together.

    Each may refuse the host or raise what is asked for, none can lower it.  Among those that ask
    for equally much, who is certain of the host counts, then who comes first.  Behind one that
    settles it the rest has no say.

    Args:
        opinions: In order of precedence, at least one.
    """
    heard: list[tuple[TlsDemand, bool]] = []
    reported: tuple[ReportedPolicy, ...] = ()
    for opinion in opinions:
        reported += opinion.verdict.reported
        if isinstance(opinion.verdict, HostRefused):
            return replace(opinion.verdict, reported=reported)
        heard.append((opinion.verdict, opinion.is_certain))
        if opinion.settles_it:
            break
    best, _ = max(heard, key=lambda pair: (pair[0].level, pair[1]))
    trials = (demand.trial_names for demand, _ in heard)
    return replace(best, trial_names=next(filter(None, trials), ()), reported=reported)


def forbidden(text: str, *reported: ReportedPolicy) -> HostRefused:
    """A policy forbids the host, for now: its owner may mend it, so the mail waits."""
    return HostRefused(Status.DEFERRED, Cause.POLICY, EnhancedStatusCode(4, 7, 1), text, reported)


def unknown(text: str, *reported: ReportedPolicy) -> HostRefused:
    """What a policy says could not be looked up; nothing is sent on a guess."""
    return HostRefused(Status.DEFERRED, Cause.DNS, EnhancedStatusCode(4, 4, 3), text, reported)
