from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.units import (
    DURATION_ALLOWED,
    MOMENT_ALLOWED,
    OCTETS_ALLOWED,
    parse_duration,
    parse_moment,
    parse_octets,
    timestamp,
)


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


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1787479872.345, "2026-08-23T10:11:12.345Z"),
        (1787479872.9996, "2026-08-23T10:11:13.000Z"),
        (-0.001, "1969-12-31T23:59:59.999Z"),
    ],
)
def test_timestamp_is_utc_with_milliseconds(at, shown):
    assert timestamp(at) == shown


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T22:13:20.250Z", NOW + 0.25),
        ("2023-11-14 23:13:20+01:00", NOW),
        (NOW + 7, NOW + 7),
        (1_700_000_001, NOW + 1),
        ("30m", NOW + 1800),
        ("1h30m", NOW + 5400),
        (0, 0.0),
    ],
)
def test_moments_are_read_as_seconds_since_the_epoch(written: object, seconds: float):
    assert parse_moment(written, NOW) == seconds


@pytest.mark.parametrize(
    "written",
    [
        *("", "soon", "5", "2023-11-14", "2023-11-14T22:13:20", "0001-01-01T00:00:00Z"),
        *("9999999d", "2023-13-01T00:00:00Z", "+30m", -1, 1e300, math.nan, math.inf, True, None),
        [],
    ],
)
def test_what_is_no_moment_is_refused_with_what_is(written: object):
    with pytest.raises(ValueError, match=re.escape(MOMENT_ALLOWED)):
        parse_moment(written, NOW)


@given(st.text() | st.floats() | st.integers())
def test_anything_is_a_moment_that_can_be_shown_or_refused(written: object):
    try:
        at = parse_moment(written, NOW)
    except ValueError as error:
        assert str(error) == MOMENT_ALLOWED  # noqa: PT017 - either may come
    else:
        assert parse_moment(timestamp(at), NOW) == pytest.approx(at, abs=0.001)


@pytest.mark.parametrize(
    ("written", "octets"),
    [
        (7, 7),
        ("1 KiB", 1024),
        ("50 MiB", 50 * 1024 * 1024),
        ("1.5GiB", 3 * 512 * 1024 * 1024),
    ],
)
def test_sizes_are_read_as_octets(written: object, octets: int):
    assert parse_octets(written) == octets


@pytest.mark.parametrize(
    "written", ["", "50", "50 MB", "50mib", "0 KiB", "-1 KiB", "1e3 KiB", 0, -1, 1.5, True, None]
)
def test_what_is_no_size_is_refused_with_what_is(written: object):
    with pytest.raises(ValueError, match=re.escape(OCTETS_ALLOWED)):
        parse_octets(written)
