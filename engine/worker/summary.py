"""What a run came to: counted as outcomes arrive, shown as a table at the end.

Holds a bounded amount however many recipients there are: the first rows while they are few, the
most frequent troubles when they are many.  Knows no I/O.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.outcome import Status
from engine.smtp.reply import show

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from engine.outcome import Outcome
    from engine.report.statistics import Statistics

#: Up to this many recipients each has a row of its own.
MAX_ROWS: Final = 20
#: Kinds of trouble shown, the most frequent first.
MAX_TROUBLES: Final = 10
#: Kinds of trouble told apart; a server that words each refusal differently must not fill memory.
_MAX_KINDS: Final = 1000
_MAX_TEXT: Final = 300
#: Columns a table needs so that its answers can be read.
_ROOM: Final = 64

#: How each status looks; the words alone say it too, for whoever sees no colours.
STYLES: Final = {
    Status.DELIVERED: "green",
    Status.DEFERRED: "yellow",
    Status.FAILED: "red",
    Status.UNKNOWN: "magenta",
    Status.ACCEPTED: "green",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of outcome other than delivered.

    Attributes:
        status: Deferred, failed or unknown.
        host: Who decided, or the domain where it did not come to a host.
        reason: Reply code and enhanced status code, or stage and cause.
    """

    status: Status
    host: str
    reason: str


@dataclass(slots=True)
class Summary:
    """Counts of a run so far.

    Attributes:
        counts: Recipients of each status.
        rows: All outcomes, as long as they are few; then empty.
        troubles: How often each kind of trouble came, and one text of it.
    """

    counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    rows: list[Outcome] = field(default_factory=list)
    troubles: Counter[Trouble] = field(default_factory=Counter)
    texts: dict[Trouble, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Recipients that have an outcome."""
        return sum(self.counts.values())

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.counts[outcome.status] += 1
        if self.total <= MAX_ROWS:
            self.rows.append(outcome)
        elif self.rows:
            self.rows.clear()
        if outcome.status is not Status.DELIVERED:
            self._add_trouble(outcome)

    def _add_trouble(self, outcome: Outcome) -> None:
        trouble = _trouble(outcome)
        if trouble not in self.texts:
            if len(self.texts) >= _MAX_KINDS:
                trouble = Trouble(outcome.status, "(others)", "")
            self.texts[trouble] = answer(outcome) if trouble.reason else "various"
        self.troubles[trouble] += 1


def answer(outcome: Outcome) -> str:
    """Return what decided, on one line that is safe to print: the reply, else the text."""
    reply = outcome.reply
    text = printable(outcome.text if reply is None else reply.text)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def printable(text: str) -> str:
    """Escape what could steer a terminal; peers and submitters choose these texts."""
    return text if text.isprintable() else show(text.encode("utf-8", "backslashreplace"))


def render(summary: Summary, statistics: Statistics, seconds: float) -> RenderableType:
    """Return the table a run ends with.

    Args:
        summary: What became of the recipients.
        statistics: The engine's numbers; only connections are taken from them.
        seconds: How long the run took.
    """
    if not summary.total:
        return Text("No message was sent.")
    parts: list[RenderableType] = []
    if summary.rows:
        parts += [_recipients(summary), *_transcripts(summary), Text()]
    else:
        parts += [_counts(summary), *_troubles(summary)]
    parts.append(Padding(_last_line(summary, statistics, seconds), (0, 0, 0, 1)))
    return Group(*parts)


def _trouble(outcome: Outcome) -> Trouble:
    peer, reply = outcome.peer, outcome.reply
    host = outcome.recipient.rpartition("@")[2].rstrip(">") if peer is None else peer.host
    if reply is None:
        return Trouble(outcome.status, host, f"{outcome.stage.value} {outcome.cause.value}")
    return Trouble(outcome.status, host, f"{reply.code} {outcome.enhanced or ''}")


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=True, padding=(0, 1), highlight=False)


def _status(status: Status) -> Text:
    return Text(status.value, style=STYLES[status])


class Fitting:
    """A table where there is room for one, else its rows one below the other.

    Attributes:
        table: For a terminal that is wide enough.
        rows: What each row is about, and the rest of it.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.rows: list[tuple[Text, tuple[Text, ...]]] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= _ROOM:
            yield self.table
            return
        for title, rest in self.rows:
            yield Padding(title, (0, 0, 0, 1))
            yield Padding(Text(" · ").join(rest), (0, 0, 0, 3))


def _recipients(summary: Summary) -> Fitting:
    fitting = Fitting(table := _table())
    table.add_column("Recipient", overflow="fold", min_width=12)
    table.add_column("Status", no_wrap=True)
    table.add_column("Host", overflow="fold", min_width=8)
    table.add_column("Answer", overflow="fold", min_width=20)
    table.add_column("Seconds", justify="right", no_wrap=True)
    for outcome in summary.rows:
        recipient, status = Text(printable(outcome.recipient)), _status(outcome.status)
        host = Text("-" if outcome.peer is None else printable(outcome.peer.host))
        words = Text(answer(outcome))
        table.add_row(recipient, status, host, words, f"{outcome.timings.total:.2f}")
        fitting.rows.append((recipient, (status, host, words)))
    return fitting


def _transcripts(summary: Summary) -> list[RenderableType]:
    # Recipients of one transaction have one dialogue between them.
    sharing: dict[tuple[str, ...], list[str]] = {}
    for outcome in summary.rows:
        if outcome.transcript is not None:
            sharing.setdefault(outcome.transcript, []).append(printable(outcome.recipient))
    parts: list[RenderableType] = []
    for lines, recipients in sharing.items():
        parts += [Text(), Text(f" {', '.join(recipients)}", style="bold")]
        parts += (Padding(Text(printable(line)), (0, 0, 0, 3)) for line in lines)
    return parts


def _counts(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=10)
    table.add_column(justify="right")
    table.add_column(justify="right", style="dim")
    for status, count in summary.counts.items():
        if count:
            share = 100 * count / summary.total
            table.add_row(Text(f" {status.value}", STYLES[status]), f"{count:,}", f"{share:.1f} %")
    return table


def _troubles(summary: Summary) -> list[RenderableType]:
    if not summary.troubles:
        return [Text()]
    fitting = Fitting(table := _table())
    table.add_column("Count", justify="right", no_wrap=True)
    table.add_column("Status", no_wrap=True)
    table.add_column("Host", overflow="fold", min_width=8)
    table.add_column("Most frequent answers", overflow="fold", min_width=20)
    for trouble, count in summary.troubles.most_common(MAX_TROUBLES):
        number, status = Text(f"{count:,}"), _status(trouble.status)
        host, words = Text(printable(trouble.host)), Text(summary.texts[trouble])
        table.add_row(number, status, host, words)
        fitting.rows.append((Text(" ").join((number, status)), (host, words)))
    rest = len(summary.troubles) - MAX_TROUBLES
    more = [Text(f" and {rest:,} more kinds of answers", "dim")] if rest > 0 else []
    return [Text(), fitting, *more, Text()]


def _last_line(summary: Summary, statistics: Statistics, seconds: float) -> Text:
    few = [f"{count:,} {status.value}" for status, count in summary.counts.items() if count]
    parts = [f"{summary.total:,} recipient{'' if summary.total == 1 else 's'} in {seconds:.1f} s"]
    if summary.rows:
        parts.append(", ".join(few))
    else:
        parts.append(f"{summary.total / max(seconds, 0.001):,.0f}/s")
    opened = statistics.connections_opened
    parts.append(f"{opened:,} connection{'' if opened == 1 else 's'}")
    return Text(" · ".join(parts), style="bold")
