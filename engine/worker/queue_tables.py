"""How the queue looks to a person: tables that fit the terminal.  Knows no I/O.

Called by the commands that list and show.  All that peers or submitters have chosen is escaped.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.queue.values import State
from engine.units import DAYS, HOURS, MINUTES, timestamp
from engine.worker.summary import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from engine.queue.entries import Backlog, Counts, Entry

#: How each state looks; the words alone say it too, for whoever sees no colours.
STYLES: Final = {
    State.QUEUED: "yellow",
    State.LEASED: "green",
    State.HELD: "magenta",
    State.ENDED: "dim",
}
_UNTRIED: Final = {
    State.LEASED: "tried for the first time",
    State.HELD: "submitted to be held",
}
_MAX_TEXT: Final = 300


def span(seconds: float) -> str:
    """Write a duration in two or three characters and its unit: `45 s`, `12 m`, `3.5 h`, `4 d`."""
    for unit, letter in ((DAYS, "d"), (HOURS, "h"), (MINUTES, "m"), (1.0, "s")):
        if seconds >= unit or unit == 1.0:
            amount = seconds / unit
            return (
                f"{amount:.1f} {letter}"
                if unit > MINUTES and amount < 10
                else f"{amount:.0f} {letter}"
            )
    raise AssertionError


def when(at: float | None, now: float) -> str:
    """Say when something is due: `now`, `in 5 m`, or `-` for never."""
    if at is None:
        return "-"
    return "now" if at <= now else f"in {span(at - now)}"


def entry_table(entries: Sequence[Entry], now: float, *, of_one: bool = False) -> Table:
    """Return a table of recipients.

    Args:
        entries: They.
        now: The time, in seconds since the epoch.
        of_one: Whether all are of one message, which need not be named then.
    """
    table = _table()
    table.add_column("Recipient" if of_one else "Recipient, message", overflow="fold", min_width=20)
    table.add_column("State", no_wrap=True)
    table.add_column("Tries", justify="right", no_wrap=True)
    table.add_column("Next try", no_wrap=True)
    table.add_column("Why", overflow="fold", min_width=20)
    for entry in entries:
        name = Text(printable(entry.recipient))
        if not of_one:
            name.append(f"\n{printable(entry.message)}", "dim")
        table.add_row(
            name,
            Text(entry.state.value, STYLES[entry.state]),
            str(entry.attempts),
            when(next_try(entry), now) if entry.state is not State.LEASED else "under way",
            Text(why(entry, now)),
        )
    return table


def next_try(entry: Entry) -> float | None:
    """Return when a recipient is tried, in seconds since the epoch; `None`: nobody knows."""
    if entry.state is not State.QUEUED or entry.next_attempt is None:
        return entry.next_attempt
    # Who has been due for very long goes earlier: in doubt this promises too little.
    return max(entry.next_attempt, entry.left_alone_until)


def why(entry: Entry, now: float = math.inf) -> str:
    """Say in one line why a recipient is where it is."""
    text = entry.reason or last_text(entry) or _UNTRIED.get(entry.state, "not tried yet")
    if entry.left_alone_until > now and next_try(entry) == entry.left_alone_until:
        text = f"its site is left alone: {entry.left_alone_for}; {text}"
    text = printable(text)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def last_text(entry: Entry) -> str:
    """Return the text of a recipient's last outcome; empty where there is none."""
    if entry.last is None:
        return ""
    try:
        return str(json.loads(entry.last).get("text") or "")
    except (ValueError, AttributeError):
        return ""


def message_head(entries: Sequence[Entry], now: float) -> RenderableType:
    """Return what is known about the message of some recipients."""
    first = entries[0]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = [
        ("message", first.message),
        ("sender", first.sender or "<>"),
        ("submitted", f"{timestamp(first.submitted_at)}, {span(now - first.submitted_at)} ago"),
        ("tenant", first.tenant),
        ("job", first.job),
        ("priority", str(first.priority) if first.priority else ""),
    ]
    if first.deadline is not None:
        rows.append(("deadline", f"{timestamp(first.deadline)}, {when(first.deadline, now)}"))
    for name, value in rows:
        if value:
            grid.add_row(Text(f" {name}"), Text(printable(value)))
    return Group(grid, Text())


def last_outcomes(entries: Sequence[Entry]) -> list[RenderableType]:
    """Return the last outcome of each recipient that has one, where it says more than the reason."""
    parts: list[RenderableType] = []
    for entry in entries:
        text = last_text(entry)
        if text and text not in entry.reason:
            parts.append(Text(f" {printable(entry.recipient)}", "bold"))
            parts.append(Padding(Text(printable(text)), (0, 0, 0, 3)))
    return [Text(" Last outcomes", "dim"), *parts] if parts else []


def counts_line(counts: Counts, now: float) -> str:
    """Say in one line how much there is."""
    parts = [f"{counts.messages:,} message{'' if counts.messages == 1 else 's'}"]
    for name in ("queued", "due", "leased", "held", "ended"):
        number = getattr(counts, name)
        if number:
            words = {"queued": "queued", "due": "due now", "ended": "to be reported"}
            parts.append(f"{number:,} {words.get(name, name)}")
    if counts.oldest is not None:
        parts.append(f"oldest {span(now - counts.oldest)}")
    if counts.queued and counts.next_due is not None and counts.next_due > now:
        parts.append(f"next {when(counts.next_due, now)}")
    return " · ".join(parts)


def backlog_table(backlog: Sequence[Backlog], now: float) -> Table:
    """Return a table of sites with mail that waits."""
    table = _table()
    table.add_column("Site", overflow="fold", min_width=16)
    for name in ("Queued", "Due", "Leased"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Left alone", no_wrap=True)
    table.add_column("Why", overflow="fold", min_width=16)
    for each in backlog:
        site = each.site
        is_left_alone = site.not_before > now
        table.add_row(
            Text(printable(site.name)),
            f"{each.queued:,}",
            f"{each.due:,}",
            f"{each.leased:,}",
            f"for {span(site.not_before - now)}" if is_left_alone else "-",
            Text(printable(site.reason)[:_MAX_TEXT] if is_left_alone else ""),
        )
    return table


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=True, padding=(0, 1), highlight=False)
