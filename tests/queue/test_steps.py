from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.queue.steps import MAX_WAIT, Step, show_span

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("5m", Step(5 * MINUTE, text="5m")),
        ("1h30m", Step(1.5 * HOUR, text="1h30m")),
        ("10m ~20%", Step(10 * MINUTE, jitter=0.2, text="10m ~20%")),
        ("1h x1.5 until 16h", Step(HOUR, 1.5, 0.0, 16 * HOUR, "1h x1.5 until 16h")),
        ("4h ~20% until 4d", Step(4 * HOUR, 1.0, 0.2, 4 * DAY, "4h ~20% until 4d")),
        ("1h x2 ~12.5% until 2d", Step(HOUR, 2.0, 0.125, 2 * DAY, "1h x2 ~12.5% until 2d")),
        (" 1h   until  2h ", Step(HOUR, until=2 * HOUR, text="1h until 2h")),
    ],
)
def test_steps_are_read(text, step):
    assert Step.parse(text) == step


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5 m",
        "soon",
        "-5m",
        "0s",
        "5m x",
        "5m x1.5",  # a wait that grows is used more than once
        "5m x1 until 1h",
        "5m x0.5 until 1h",
        "5m x101 until 1h",
        "5m 1.5 until 1h",
        "5m ~20",
        "5m ~0%",
        "5m ~91%",
        "5m ~20% x2 until 1h",
        "5m until",
        "5m until never",
        "5m until 1h x2",
        "25h",
        "5m,10m",
        "\uff15m",
        None,
        5,
        ["5m"],
        "5m\nuntil 4d \x00",
    ],
)
def test_what_is_no_step_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"wait|until"):
        Step.parse(text)


def test_a_wait_of_one_length_stays():
    step = Step.parse("4h until 4d")

    assert [step.next_wait(last) for last in (0.0, HOUR, 4 * HOUR, 9 * HOUR)] == [4 * HOUR] * 4


def test_a_wait_that_grows_begins_with_its_length_and_grows_from_the_last():
    step = Step.parse("1h x1.5 until 16h")

    waits, last = [], 20 * MINUTE
    for _ in range(4):
        last = step.next_wait(last)
        waits.append(last / HOUR)

    assert waits == [1.0, 1.5, 2.25, 3.375]


def test_no_wait_grows_beyond_a_day():
    assert Step.parse("20h x10 until 90d").next_wait(20 * HOUR) == MAX_WAIT


@given(st.integers(), st.floats(1, 1e5))
def test_jitter_stays_within_its_bounds(seed, wait):
    step = Step(wait, jitter=0.2)

    assert 0.8 * wait * 0.999 <= step.spread(wait, Random(seed)) <= 1.2 * wait * 1.001


def test_jitter_spreads_to_both_sides_and_none_is_exact():
    step, rng = Step.parse("10m ~20%"), Random(1)
    waits = [step.spread(600.0, rng) for _ in range(100)]

    assert min(waits) < 520
    assert max(waits) > 680
    assert Step.parse("10m").spread(600.0, rng) == 600.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (-5, "0.0s"),
        (0.25, "0.2s"),
        (1, "1s"),
        (59.6, "1m"),
        (90, "1m 30s"),
        (3600, "1h"),
        (3661, "1h 1m"),
        (3601, "1h"),
        (90000, "1d 1h"),
        (4 * DAY, "4d"),
        (4 * DAY + 59, "4d"),
    ],
)
def test_spans_are_shown_by_their_two_largest_units(seconds, text):
    assert show_span(seconds) == text
