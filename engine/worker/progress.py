"""What is shown while a run lasts: numbers, their pace, and how they look.  Knows no I/O.

`measure` is called a few times a second; `render` is for a live terminal, `plain` for one line in
a log.  Not here: where it is shown (`engine.worker.screen`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.outcome import Status
from engine.worker.summary import STYLES, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engine.report.statistics import SiteStatistics, Statistics

#: Seconds over which the pace is taken: long enough to be steady, short enough to follow.
_WINDOW: Final = 10.0
_MAX_SITES: Final = 3


class Pace:
    """Recipients settled a second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def measure(self, now: float, settled: int) -> float:
        """Note how many are settled now (seconds of any clock), return how many a second."""
        self._seen.append((now, settled))
        while self._seen[0][0] < now - _WINDOW:
            self._seen.popleft()
        first, before = self._seen[0]
        return (settled - before) / (now - first) if now > first else 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run.

    Attributes:
        statistics: The engine's numbers.
        total: Recipients there will be in all, `None` where nobody knows.
        is_guess: Whether `total` is one.
        rate: Recipients settled a second.
    """

    statistics: Statistics
    total: int | None
    is_guess: bool
    rate: float

    @property
    def settled(self) -> int:
        """Recipients that have an outcome."""
        return self.statistics.submitted - self.statistics.in_flight

    @property
    def seconds_left(self) -> float | None:
        """How long it will last at this pace, `None` where nobody can tell."""
        if self.total is None or self.rate <= 0:
            return None
        return (self.total - self.settled) / self.rate


def counts(statistics: Statistics) -> dict[Status, int]:
    """Return how many recipients have each status."""
    return {
        Status.DELIVERED: statistics.delivered,
        Status.DEFERRED: statistics.deferred,
        Status.FAILED: statistics.failed,
        Status.UNKNOWN: statistics.unknown,
    }


def render(progress: Progress) -> RenderableType:
    """Return the three lines of a live display; they fit 80 columns."""
    bar = ProgressBar(
        total=progress.total, completed=progress.settled, pulse=progress.total is None
    )
    first = Table.grid(padding=(0, 2), expand=True)
    first.add_column(ratio=1)
    for _ in range(3):
        first.add_column(justify="right", no_wrap=True)
    left = progress.seconds_left
    first.add_row(
        bar,
        f"{progress.settled:,}{_of_total(progress)}",
        Text(f"{progress.rate:,.0f}/s", "bold"),
        Text("" if left is None else f"{clock(left)} left", "cyan"),
    )
    return Group(first, _counts(progress.statistics), _sites(progress.statistics))


def plain(progress: Progress) -> str:
    """Return the same in one line without colours."""
    numbers = ", ".join(f"{number:,} {status}" for status, number in _shown(progress.statistics))
    left = progress.seconds_left
    words = [
        f"{progress.settled:,}{_of_total(progress)} recipients settled",
        numbers,
        f"{progress.rate:,.0f}/s",
        f"{progress.statistics.connections_open:,} connections",
    ]
    return "; ".join([*words, f"{clock(left)} left"] if left is not None else words)


def clock(seconds: float) -> str:
    """Write seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:,}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _of_total(progress: Progress) -> str:
    if progress.total is None:
        return ""
    return f" of {'~' if progress.is_guess else ''}{progress.total:,}"


def _shown(statistics: Statistics) -> list[tuple[Status, int]]:
    """Return the statuses worth showing: delivered always, trouble where there is some."""
    return [
        (status, number)
        for status, number in counts(statistics).items()
        if number or status is Status.DELIVERED
    ]


def _counts(statistics: Statistics) -> Text:
    parts = [Text(f"{number:,} {status}", STYLES[status]) for status, number in _shown(statistics)]
    parts.append(Text(f"{statistics.in_flight:,} in flight", "dim"))
    return Text(" · ", no_wrap=True, overflow="ellipsis").join(parts)


def _sites(statistics: Statistics) -> Text:
    opened = statistics.connections_open
    busiest = sorted(statistics.sites, key=_connections, reverse=True)[:_MAX_SITES]
    parts = [f"{_short(site.site)} {site.connections}" for site in busiest if site.connections]
    text = f"{opened:,} connection{'' if opened == 1 else 's'}"
    if parts:
        text += f": {', '.join(parts)}"
    more = sum(1 for site in statistics.sites if site.connections) - len(parts)
    if more > 0:
        text += f", {more:,} more sites"
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def _connections(site: SiteStatistics) -> int:
    return site.connections


def _short(site: str) -> str:
    # A site is all its hosts; one of them is enough to know it by.
    first, _, others = site.partition(",")
    return printable(first if len(first) <= 30 else first[:29] + "…") + ("+" if others else "")
