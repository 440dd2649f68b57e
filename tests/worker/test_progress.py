from __future__ import annotations

import io

import pytest
from rich.console import Console

from engine.report.statistics import SiteStatistics, Statistics
from engine.worker.progress import Pace, Progress, clock, plain, render

STATISTICS = Statistics(
    submitted=3500,
    in_flight=400,
    delivered=3000,
    deferred=70,
    failed=30,
    connections_open=57,
    sites=(
        SiteStatistics("a.test", connections=1),
        SiteStatistics("b.test:2525", connections=30),
        SiteStatistics("c.test,d.test", connections=20),
        SiteStatistics("e.test", connections=6),
        SiteStatistics("idle.test", waiting=7),
    ),
)


def draw(progress: Progress, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=True).print(render(progress))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_live_display_has_three_lines_that_fit_80_columns():
    first, second, third = draw(Progress(STATISTICS, 5000, is_guess=True, rate=1204.4))

    assert first.endswith("3,100 of ~5,000  1,204/s  0:02 left")
    assert first.startswith("━━━")
    assert len(first) <= 80
    assert second == "3,000 delivered · 70 deferred · 30 failed · 400 in flight"
    assert third == "57 connections: b.test:2525 30, c.test+ 20, e.test 6, 1 more sites"


def test_a_total_that_is_known_is_not_marked_as_a_guess():
    assert "3,100 of 5,000 " in draw(Progress(STATISTICS, 5000, is_guess=False, rate=1.0))[0]


def test_without_a_total_there_is_no_time_left():
    first = draw(Progress(STATISTICS, None, is_guess=True, rate=10.0))[0]
    assert first.rstrip().endswith("3,100  10/s")


def test_the_start_of_a_run_can_be_drawn():
    first, second, third = draw(Progress(Statistics(), None, is_guess=True, rate=0.0))
    assert first.endswith("0  0/s")
    assert (second, third) == ("0 delivered · 0 in flight", "0 connections")


@pytest.mark.parametrize("width", [30, 40, 80])
def test_a_long_site_is_cut(width: int):
    site = SiteStatistics(",".join(f"a-long-host-name-{n}.example.net" for n in range(9)), 0, 5)
    lines = draw(Progress(Statistics(connections_open=5, sites=(site,)), 10, False, 1.0), width)
    assert len(lines) == 3
    assert max(map(len, lines)) <= width


def test_a_plain_line_says_the_same():
    assert plain(Progress(STATISTICS, 5000, is_guess=True, rate=100.0)) == (
        "3,100 of ~5,000 recipients settled; 3,000 delivered, 70 deferred, 30 failed; 100/s; "
        "57 connections; 0:19 left"
    )
    assert plain(Progress(Statistics(), None, is_guess=True, rate=0.0)) == (
        "0 recipients settled; 0 delivered; 0/s; 0 connections"
    )


def test_the_pace_is_that_of_the_last_seconds():
    pace = Pace()
    assert pace.measure(0.0, 0) == 0.0
    assert pace.measure(1.0, 100) == 100.0
    for second in range(2, 30):
        pace.measure(float(second), 100)
    assert pace.measure(30.0, 100) == 0.0
    assert pace.measure(35.0, 200) == 10.0
    assert len(pace._seen) < 15


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (1e7, "2,777:46:40"),
    ],
)
def test_a_clock_reads_like_one(seconds: float, text: str):
    assert clock(seconds) == text
