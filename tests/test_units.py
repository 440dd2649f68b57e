from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.units import DURATION_ALLOWED, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("4d", 345600.0),
        ("1h30m", 5400.0),
        ("1d2h3m4s5ms", 93784.005),
        ("0.5s", 0.5),
        ("1m5ms", 60.005),
        (7, 7.0),
        (0.25, 0.25),
    ],
)
def test_durations_are_read_as_seconds(written: object, seconds: float):
    assert parse_duration(written) == pytest.approx(seconds)
    assert isinstance(parse_duration(written), float)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "5",
        "m",
        "5 m",
        "5M",
        "-5m",
        "+5m",
        "30m1h",
        "1m1m",
        "5m\n",
        ".5s",
        "1e3s",
        "\u0665m",
        "0s",
        "0h0m",
        0,
        -1,
        -0.5,
        math.inf,
        math.nan,
        10**400,
        "9" * 400 + "d",
        True,
        None,
        ["5m"],
        b"5m",
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(written: object):
    with pytest.raises(ValueError, match=f"^{re.escape(DURATION_ALLOWED)}$"):
        parse_duration(written)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_units_add_up(hours: int, minutes: int, seconds: int):
    written = f"{hours}h{minutes}m{seconds}s"
    assert parse_duration(written) == 3600 * hours + 60 * minutes + seconds


@given(st.text() | st.floats() | st.integers())
def test_any_value_gives_a_finite_time_above_zero_or_a_value_error(value: object):
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert 0 < seconds < math.inf
