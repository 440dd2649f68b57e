"""Durations, moments and sizes as people write them.  Knows no I/O.

Settings, routes of the configuration file and retry steps read their times here.  Inside the engine
a duration is always a float of seconds, a moment a float of seconds since the epoch.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

MINUTES: Final = 60.0
HOURS: Final = 60 * MINUTES
DAYS: Final = 24 * HOURS

#: What `parse_duration` takes, for error texts.
DURATION_ALLOWED: Final = (
    'a time above 0: a number of seconds, or text such as "500ms", "30s", "5m", "1h30m", "4d"'
)

#: What `parse_moment` takes, for error texts.
MOMENT_ALLOWED: Final = (
    'a time with its zone such as "2026-08-23T10:00:00Z", seconds since the epoch, or how long '
    'from now, such as "30m" or "2d"'
)
#: What `parse_octets` takes, for error texts.
OCTETS_ALLOWED: Final = 'a number of octets above 0, or text such as "500 KiB", "50 MiB", "1 GiB"'

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


# ---- moments ------------------------------------------------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: The last second of the year 9999.
_LAST_MOMENT: Final = 253_402_300_799.0


def timestamp(at: float) -> str:
    """Return seconds since the epoch as RFC 3339 §5.6 has it, UTC: `2026-08-23T10:11:12.345Z`."""
    second, millisecond = divmod(round(at * 1000), 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


# The same second is written thousands of times; the memory holds a few, for clocks that differ.
@lru_cache(maxsize=8)
def _second(second: int) -> str:
    # Not `fromtimestamp`: the C library may know fewer years.
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


def parse_moment(value: object, now: float) -> float:
    """Read a moment: a time with its zone, seconds since the epoch, or a duration from now.

    Args:
        value: As people write it.
        now: The time, in seconds since the epoch.

    Returns:
        Seconds since the epoch, in whole milliseconds.

    Raises:
        ValueError: None of these; the text is `MOMENT_ALLOWED`.
    """
    if isinstance(value, str):
        duration = _written(value) if value else math.nan
        seconds = _dated(value) if math.isnan(duration) else now + duration
    else:
        seconds = _number(value)
    if not 0 <= seconds <= _LAST_MOMENT:
        raise ValueError(MOMENT_ALLOWED)
    return round(seconds * 1000) / 1000


def _dated(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        # Without its zone a time may mean any of two dozen.
        return math.nan if moment.tzinfo is None else (moment - _EPOCH).total_seconds()
    except (ValueError, OverflowError):
        return math.nan


# ---- sizes --------------------------------------------------------------------------------------

_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) ?(KiB|MiB|GiB)", re.ASCII)
_SIZES: Final = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def parse_octets(value: object) -> int:
    """Read a size: a number of octets, or text with a unit (`KiB` `MiB` `GiB`).

    Raises:
        ValueError: Not a size, or not above 0; the text is `OCTETS_ALLOWED`.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    octets = 0 if match is None else int(float(match[1]) * _SIZES[match[2]])
    if not 0 < octets < 2**63:
        raise ValueError(OCTETS_ALLOWED)
    return octets
