"""When to try again, and when to give up: the retry rules, and what they say.  Knows no I/O.

Called by `engine.queue.decision` with the outcome of an attempt that did not deliver.  Rules are
data, `[[retry]]` tables; the first that matches the domain (or the host that decided) and the kind
of error counts.  What they can say is what the reference client's can, with one difference: nothing
is given up before it was tried, however long a host has been failing for others.

A rule begins with single waits, the first after the first failure and so on, and goes on with steps
that are used until an age.  An age is counted from the message's first try, so a worker that was
down for a week has not used up anybody's time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Final, TypeAlias

from engine.errors import ConfigError
from engine.outcome import Cause, Status
from engine.paths import MATCH_ALLOWED, Match, MatchKind
from engine.queue.error_class import CLASSES_ALLOWED, classes_of, is_ours, parse_class
from engine.queue.steps import Step, show_span
from engine.settings import Problem
from engine.showing import show, show_key, suggest
from engine.units import MINUTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from engine.outcome import Outcome

#: Precedents: Postfix 5 m doubling to 67 m for 5 d; Exim's default rule 15 m for 2 h, growing to
#: 16 h, 6 h for 4 d; RFC 5321 §4.5.4.1 asks for 30 m, and 4 to 5 days before giving up.
#: The first wait has no jitter: servers that greylist mostly ask for 300 s, and a try a little
#: before is one for nothing.
DEFAULT_STEPS: Final = (
    "5m",
    "10m ~20%",
    "20m ~20%",
    "40m ~20%",
    "1h ~20%",
    "2h ~20%",
    "4h ~20% until 4d",
)
#: The waits for a fault of ours, or while a program forbids a host.  They double: what is broken
#: here is tried seldom, but soon after it was mended.
_FIRST_OURS: Final = MINUTES
_MAX_OURS: Final = 30 * MINUTES
#: The last try before a deadline is so long before it that it can be finished.
_BEFORE_DEADLINE: Final = MINUTES

_KEYS: Final = ("match", "error", "steps")
_TABLE_ALLOWED: Final = "a table with match, steps and perhaps error"
_STEPS_ALLOWED: Final = "a list of waits, single ones first; an empty one gives up after one try"
_ERROR_ALLOWED: Final = f"one class of errors, or a list: {CLASSES_ALLOWED}"


@dataclass(frozen=True, slots=True)
class RetryRule:
    """One rule.

    Attributes:
        match: Which recipient domains, or which hosts that decided.
        errors: Which classes of errors, see `engine.queue.error_class`.
        steps: Its steps.
        text: How it is called: its number among the rules and its match.
    """

    match: Match
    steps: tuple[Step, ...]
    errors: tuple[str, ...] = ("any",)
    text: str = ""

    def applies(self, domain: str, outcome: Outcome, classes: Sequence[str]) -> bool:
        """Whether it speaks of this outcome of a recipient in this domain."""
        if not any(error in classes for error in self.errors):
            return False
        peer = outcome.peer
        names = [domain] if peer is None else [domain, peer.host.lower()]
        match self.match.kind:
            case MatchKind.ANY:
                return True
            case MatchKind.SUBDOMAINS:
                return any(name.endswith(f".{self.match.name}") for name in names)
            case MatchKind.EXACT:
                return self.match.name in names or (
                    peer is not None and peer.address == self.match.name
                )
            case MatchKind.NETWORK:
                return peer is not None and _is_within(peer.address, self.match.name)

    def step(self, attempts: int, age: float) -> Step | None:
        """Return the step that follows a failure; `None` where the rule has none left.

        Args:
            attempts: How many attempts were made, this one included.
            age: Seconds since the first of them began.
        """
        singles = [step for step in self.steps if step.until is None]
        if attempts <= len(singles):
            return singles[attempts - 1]
        return next((s for s in self.steps if s.until is not None and age < s.until), None)


def _is_within(address: str | None, network: str) -> bool:
    if address is None:
        return False
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network)
    except ValueError:
        return False


DEFAULT_RULE: Final = RetryRule(
    Match.parse("*"), tuple(map(Step.parse, DEFAULT_STEPS)), text="the default rule"
)


@dataclass(frozen=True, slots=True)
class RetryRules:
    """All rules, in the order of the file; what none of them speaks of follows the default rule."""

    rules: tuple[RetryRule, ...] = ()

    @classmethod
    def read(cls, *tables: Mapping[str, object]) -> RetryRules:
        """Read rules written in Python: `RetryRules.read({"match": "*", "steps": ["5m", "1h"]})`.

        Args:
            *tables: What `[[retry]]` tables have in a configuration file: `match`, `steps` and, if
                the rule is for some errors alone, `error`.  The first that matches counts.

        Raises:
            ConfigError: One of them cannot be used; the text names each place.
        """
        rules, problems = read_rules(tables, key="rules")
        if problems:
            raise ConfigError(*map(str, problems))
        return rules

    def find(self, domain: str, outcome: Outcome) -> RetryRule:
        """Return the first rule that speaks of this outcome of a recipient in this domain."""
        classes = classes_of(outcome)
        for rule in self.rules:
            if rule.applies(domain, outcome, classes):
                return rule
        return DEFAULT_RULE


# ---- decisions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class History:
    """What a recipient has been through.

    Attributes:
        attempts: How many attempts were made, the one that just ended included.
        first_attempt_at: When the first of them began, in seconds since the epoch.
        wait: What the last of them was waited for, before jitter; 0.0 for the first.
        deadline: When the message is to be given up; `None` where nobody said.
    """

    attempts: int
    first_attempt_at: float
    wait: float = 0.0
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Try again.

    Attributes:
        at: When, in seconds since the epoch.
        wait: The wait before jitter, to be remembered.
        text: Why, in one line.
        is_counted: Whether the attempt counts: what was stopped before it was tried does not, and
            what failed by our own fault does not.
    """

    at: float
    wait: float
    text: str
    is_counted: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Give up.

    Attributes:
        text: Why, in one line.
    """

    text: str


Decision: TypeAlias = RetryAt | GiveUp


def decide(
    rule: RetryRule, history: History, outcome: Outcome, now: float, rng: Random
) -> Decision:
    """Say what becomes of a recipient that an attempt did not deliver.

    Never gives up for a fault of ours, but for the deadline of the message: that is its sender's.

    Args:
        rule: The rule that speaks of it.
        history: What it has been through.
        outcome: How the attempt ended.
        now: Wall clock, seconds since the epoch.
        rng: For jitter; the same for all of a message, so that one transaction serves them again.
    """
    ours = is_ours(outcome)
    if outcome.status is Status.FAILED and not ours:
        return GiveUp("permanent: trying again would not help")
    if outcome.cause is Cause.CANCELLED:
        return RetryAt(now, history.wait, "stopped before it was tried; due at once", False)
    story = _tell(history, outcome, now)
    if ours or outcome.cause is Cause.EVENT:
        wait = min(max(_FIRST_OURS, 2 * history.wait), _MAX_OURS)
        step = Step(wait, jitter=0.2)
        text = f"{story}; not counted"
    else:
        found = rule.step(history.attempts, max(0.0, now - history.first_attempt_at))
        if found is None:
            return GiveUp(f"given up: {story}, and {rule.text} has no step left")
        step, wait = found, found.next_wait(history.wait)
        text = f'{story}; {rule.text}, step "{step.text}"'
    spread = step.spread(wait, rng)
    # In whole seconds, which make no difference to minutes: who is deferred in the same second
    # comes back in the same second.
    at = now + spread if wait < MINUTES else float(ceil(now) + ceil(spread))
    if history.deadline is not None and at >= history.deadline:
        last = history.deadline - _BEFORE_DEADLINE
        if last - now < wait / 2:
            return GiveUp(f"given up: {story}, and the next try would come after its deadline")
        at, text = last, f"{text}, cut short by its deadline"
    is_counted = not ours and outcome.cause is not Cause.EVENT
    return RetryAt(at, wait, f"{text}: next in {show_span(at - now)}", is_counted)


def _tell(history: History, outcome: Outcome, now: float) -> str:
    story = f"{classes_of(outcome)[0]} at attempt {history.attempts}"
    if history.attempts > 1:
        story += f", {show_span(max(0.0, now - history.first_attempt_at))} after the first"
    return story


# ---- reading rules ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reader:
    """Reads rules and collects what is wrong with them."""

    problems: list[Problem] = field(default_factory=list)

    def refuse(self, key: str, value: object, allowed: str) -> None:
        self.problems.append(Problem(key, show(value), allowed))

    def rule(self, key: str, number: int, table: object) -> RetryRule | None:
        if not isinstance(table, Mapping):
            self.refuse(key, table, _TABLE_ALLOWED)
            return None
        before = len(self.problems)
        for name in table:
            if name not in _KEYS:
                self.problems.append(
                    Problem(f"{key}.{show_key(name)}", "an unknown name", suggest(name, _KEYS))
                )
        match = self.match(f"{key}.match", table)
        errors = self.errors(f"{key}.error", table.get("error", "any"))
        steps = self.steps(f"{key}.steps", table)
        if match is None or len(self.problems) > before:
            return None
        return RetryRule(match, steps, errors, f'rule {number} ("{table["match"]}")')

    def match(self, key: str, table: Mapping[str, object]) -> Match | None:
        try:
            return Match.parse(table.get("match"))
        except ValueError:
            self.refuse(key, table.get("match"), MATCH_ALLOWED)
            return None

    def errors(self, key: str, value: object) -> tuple[str, ...]:
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values:
            self.refuse(key, value, _ERROR_ALLOWED)
        found = []
        for index, each in enumerate(values):
            place = f"{key}[{index}]" if isinstance(value, list | tuple) else key
            try:
                found.append(parse_class(each))
            except ValueError:
                self.refuse(place, each, _ERROR_ALLOWED)
        return tuple(found)

    def steps(self, key: str, table: Mapping[str, object]) -> tuple[Step, ...]:
        values = table.get("steps")
        if not isinstance(values, list | tuple):
            self.refuse(key, values, _STEPS_ALLOWED)
            return ()
        steps: list[Step] = []
        for index, value in enumerate(values):
            try:
                step = Step.parse(value)
                _check_order(steps, step)
            except ValueError as error:
                self.refuse(f"{key}[{index}]", value, str(error))
            else:
                steps.append(step)
        return tuple(steps)


def _check_order(before: Sequence[Step], step: Step) -> None:
    last = before[-1].until if before else None
    if last is None:
        return
    if step.until is None:
        raise ValueError('an "until", as the step before has: single waits come first')
    if step.until <= last:
        raise ValueError(f'an "until" above {show_span(last)}, where the step before ends')


def read_rules(
    tables: Sequence[Mapping[str, object]], key: str = "retry"
) -> tuple[RetryRules, tuple[Problem, ...]]:
    """Read `[[retry]]` tables: `match`, `error` (optional) and `steps`.

    Args:
        tables: The tables, in the order of the file.
        key: How they are called in problems: `retry[0].steps[2]`.

    Returns:
        The rules that can be used, and what is wrong with the others.
    """
    reader = _Reader()
    rules = [reader.rule(f"{key}[{index}]", index + 1, table) for index, table in enumerate(tables)]
    return RetryRules(tuple(rule for rule in rules if rule is not None)), tuple(reader.problems)
