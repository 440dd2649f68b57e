"""The steps of a retry rule: their notation, and the wait each of them gives.  Knows no I/O.

    5m                     one wait
    1h x1.5 until 16h      waits that grow, until so long after the first try
    4h ~20% until 4d       waits of one length, each up to 20 % shorter or longer

Read from `[[retry]]` tables by `engine.queue.retry`, which knows which step is whose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from engine.units import DAYS, HOURS, MINUTES, parse_duration

if TYPE_CHECKING:
    from random import Random

STEP_ALLOWED: Final = (
    'a wait as in "5m", "1h x1.5 until 16h" or "4h ~20% until 4d": a time, then a factor above 1 '
    'up to 100, a jitter of 1 % to 90 %, and "until" an age, each where it is wanted'
)
#: No wait grows beyond this: mail that is four days old is to be tried on each of them.
MAX_WAIT: Final = DAYS

_STEP: Final = re.compile(
    r"(?P<wait>\S+)"
    r"(?:\s+x(?P<factor>\d{1,3}(?:\.\d{1,3})?))?"
    r"(?:\s+~(?P<jitter>\d{1,2}(?:\.\d{1,3})?)%)?"
    r"(?:\s+until\s+(?P<until>\S+))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        wait: Seconds; of a step that grows, the first wait.
        factor: By what the wait grows each time; 1.0 for not at all.
        jitter: By what part of it a wait may be shorter or longer, from 0.0 to 0.9.
        until: Up to which age the step is used, in seconds since the first try; `None` for a
            single wait.
        text: As it was written.
    """

    wait: float
    factor: float = 1.0
    jitter: float = 0.0
    until: float | None = None
    text: str = ""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read a step.

        Raises:
            ValueError: None of the allowed forms; the text is `STEP_ALLOWED`, or says which two
                parts do not go together.
        """
        match = _STEP.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None or not isinstance(text, str):
            raise ValueError(STEP_ALLOWED)
        factor, jitter = float(match["factor"] or 1), float(match["jitter"] or 0) / 100
        try:
            wait = parse_duration(match["wait"])
            until = None if match["until"] is None else parse_duration(match["until"])
        except ValueError:
            raise ValueError(STEP_ALLOWED) from None
        if (match["factor"] and not 1 < factor <= 100) or (
            match["jitter"] and not 0.01 <= jitter <= 0.9
        ):
            raise ValueError(STEP_ALLOWED)
        if wait > MAX_WAIT:
            raise ValueError(f"a wait of {show_span(MAX_WAIT)} at most")
        if match["factor"] and until is None:
            raise ValueError('an "until" behind a factor: a wait that grows is used more than once')
        return cls(wait, factor, jitter, until, " ".join(text.split()))

    def next_wait(self, last: float) -> float:
        """Return the wait that follows another, before jitter.

        Args:
            last: The wait before, before jitter; 0.0 for none.
        """
        if self.factor == 1.0 or last < self.wait:
            return self.wait
        return min(last * self.factor, MAX_WAIT)

    def spread(self, wait: float, rng: Random) -> float:
        """Return a wait with its jitter.

        Messages that were deferred together must not come back together.
        """
        return wait * (1 + self.jitter * rng.uniform(-1, 1)) if self.jitter else wait


def show_span(seconds: float) -> str:
    """Return a span of time for a person: its two largest units, as in `2d 3h`."""
    rest = round(seconds)
    if rest < 1:
        return f"{max(seconds, 0):.1f}s"
    parts = []
    for unit, length in (("d", DAYS), ("h", HOURS), ("m", MINUTES), ("s", 1)):
        count, rest = divmod(rest, int(length))
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2])
