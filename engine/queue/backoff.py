"""When a whole site is left alone for a while: after 421, refused and failing connections.  Knows no I/O.

Called by the scheduler with each outcome.  A site that is backed off costs its mail no attempts: it
waits, and is leased again when the back-off ends (or when it has been due for too long, see
`engine.queue.store`).  Not here: when a single recipient is tried again (`engine.queue.retry`), and
hosts that a pool passes over for a moment (`engine.delivery.pool`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from engine.outcome import Cause, Scope, Status
from engine.queue.steps import show_span
from engine.queue.values import SiteState
from engine.smtp.stages import Stage
from engine.units import MINUTES

if TYPE_CHECKING:
    from random import Random

    from engine.outcome import Outcome

#: How the connection, not the mail, came to its end.
_TROUBLE: Final = frozenset({Cause.REFUSED, Cause.UNREACHABLE, Cause.TIMEOUT, Cause.CLOSED})
_MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long a site is left alone.

    Attributes:
        first: Seconds, at its first failure.
        factor: By what the time grows with each failure in a row.
        limit: Seconds at most.
        jitter: By what part of it a time may be shorter or longer.
    """

    first: float = MINUTES
    factor: float = 2.0
    limit: float = 15 * MINUTES
    jitter: float = 0.2

    def judge(
        self, state: SiteState, outcome: Outcome, now: float, rng: Random
    ) -> SiteState | None:
        """Return what an outcome makes of the state of its site; `None` where that stays as it is.

        Args:
            state: How the site has been doing.
            outcome: What became of one of its recipients.
            now: Wall clock, seconds since the epoch.
            rng: For jitter.
        """
        if is_trouble(outcome):
            # Those who were under way when it began say nothing new.
            if now < state.not_before:
                return None
            failures = state.failures + 1
            # Beyond this the limit holds in any case, and powers of two do not overflow.
            seconds = min(self.first * self.factor ** min(failures - 1, 30), self.limit)
            seconds *= 1 + self.jitter * rng.uniform(-1, 1)
            reason = f"backed off for {show_span(seconds)} after {_story(failures)}: {outcome.text}"
            return SiteState(
                name=state.name,
                not_before=now + seconds,
                failures=failures,
                reason=reason[:_MAX_REASON],
            )
        if state.failures and is_sign_of_life(outcome):
            if now < state.not_before:
                # It is kept to: "too many connections" is said by hosts that live.
                return replace(state, failures=0)
            return SiteState(name=state.name)
        return None


def is_trouble(outcome: Outcome) -> bool:
    """Whether an outcome speaks against all mail to its site for a while."""
    if outcome.status is Status.DELIVERED or outcome.scope is not Scope.HOST:
        return False
    if any(_was_served(tried.code, tried.stage) for tried in outcome.attempts):
        # One of its hosts works, and the others may be down for long: mail need not wait for them.
        return False
    if outcome.reply is not None:
        # RFC 5321 §3.8: 421 may come at any time, when the host must or will not go on.
        return outcome.reply.code == 421 or outcome.stage in (Stage.GREETING, Stage.HELLO)
    return outcome.stage.is_setup and outcome.cause in _TROUBLE


def is_sign_of_life(outcome: Outcome) -> bool:
    """Whether the host took part in a mail transaction, however that ended."""
    return _was_served(outcome.reply.code if outcome.reply else None, outcome.stage)


def _was_served(code: int | None, stage: Stage) -> bool:
    return code is not None and code != 421 and not stage.is_setup


def _story(failures: int) -> str:
    return "1 failure" if failures == 1 else f"{failures} failures in a row"
