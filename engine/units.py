"""Durations as people write them.  Knows no I/O.

Settings, routes of the configuration file and retry steps read their times here.  Inside the engine
a duration is always a float of seconds.
"""

from __future__ import annotations

import math
import re
from typing import Final

MINUTES: Final = 60.0
HOURS: Final = 60 * MINUTES
DAYS: Final = 24 * HOURS

#: What `parse_duration` takes, for error texts.
DURATION_ALLOWED: Final = (
    'a time above 0: a number of seconds, or text such as "500ms", "30s", "5m", "1h30m", "4d"'
)

# Larger units first and each at most once, as in "1h30m": "30m1h" is more likely a slip than a wish.
_NUMBER: Final = r"(\d+(?:\.\d+)?)"
_WRITTEN: Final = re.compile(
    rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m(?!s))?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?", re.ASCII
)
_UNITS: Final = (DAYS, HOURS, MINUTES, 1.0, 0.001)


def parse_duration(value: object) -> float:
    """Read a duration: a number of seconds, or text with units (`ms` `s` `m` `h` `d`).

    Text needs a unit: `"300"` is refused, so that a number in quotes is noticed.

    Raises:
        ValueError: Not a duration, not above 0, or not finite; the text is `DURATION_ALLOWED`.
    """
    seconds = _written(value) if isinstance(value, str) else _number(value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(DURATION_ALLOWED)
    return seconds


def _written(text: str) -> float:
    match = _WRITTEN.fullmatch(text)
    if match is None:
        return math.nan
    parts = zip(match.groups(), _UNITS, strict=True)
    return math.fsum(float(number) * unit for number, unit in parts if number is not None)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
