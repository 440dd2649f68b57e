"""The commands `queue list` and `queue show`: who is in the queue, and why.

Called by the command line with options that were understood.
"""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.text import Text

from engine.queue.values import EVERYBODY, Selection, State, is_text
from engine.worker.exits import Exit
from engine.worker.queue_command import run_on_queue, tell_no_such_message
from engine.worker.queue_tables import entry_table, last_outcomes, message_head
from engine.worker.screen import print_to

if TYPE_CHECKING:
    from engine.queue.entries import Entry
    from engine.worker.output import Output
    from engine.worker.shards import Shards

#: Rows of a table, unless somebody says otherwise.
DEFAULT_ROWS: Final = 100
#: What is still there, as the contract of `queue list` has it; who ended is only yet to be reported.
_STILL_THERE: Final = frozenset({State.QUEUED, State.LEASED, State.HELD})
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """The options of `queue list`, as `engine.worker.cli_queue` describes them.

    Attributes:
        config: The configuration file.
        selection: Which recipients; without a state those that are still there.
        as_json: One JSON object a recipient.
        limit: Recipients at most; `None`: all as JSON, and 100 in a table.
        stdout: Descriptor for results.
    """

    config: str | None
    selection: Selection = field(default=EVERYBODY)
    as_json: bool = False
    limit: int | None = None
    stdout: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowOptions:
    """The options of `queue show`.

    Attributes:
        config: The configuration file.
        message: The message's id.
        as_json: One JSON object.
        stdout: Descriptor for results.
    """

    config: str | None
    message: str
    as_json: bool = False
    stdout: int = 1


def list_queue(options: ListOptions) -> int:
    """Run `queue list` and return its exit status."""

    async def do(shards: Shards, out: Output) -> int:
        await _list(options, shards, out)
        return Exit.DELIVERED

    return run_on_queue(options.config, "look", do, stdout=options.stdout)


async def _list(options: ListOptions, shards: Shards, out: Output) -> None:
    selection = options.selection
    if not selection.states:
        selection = replace(selection, states=_STILL_THERE)
    limit = options.limit
    if limit is None and not options.as_json:
        limit = DEFAULT_ROWS
    rows: list[Entry] = []
    count = 0
    async with aclosing(shards.entries(selection)) as entries:
        async for entry in entries:
            count += 1
            if limit is not None and count > limit:
                break
            if options.as_json:
                out.put(_ENCODER.encode(entry.as_dict()) + "\n")
                await out.room()
                if out.broken.is_set():
                    return
            else:
                rows.append(entry)
    if options.as_json:
        return
    if not rows:
        is_all = selection == Selection(states=_STILL_THERE)
        out.put("The queue is empty.\n" if is_all else "The queue has nobody like that.\n")
        return
    parts = [entry_table(rows, time.time())]
    more = (
        [Text(f" and more; --limit shows more than {limit:,}", "dim")] if count > len(rows) else []
    )
    print_to(out.put, options.stdout, Group(*parts, *more))


def show_message(options: ShowOptions) -> int:
    """Run `queue show` and return its exit status."""
    if not is_text(options.message):
        return tell_no_such_message(options.message)

    async def do(shards: Shards, out: Output) -> int:
        found = shards.entries(Selection(message=options.message))
        async with aclosing(found) as entries:
            recipients = [entry async for entry in entries]
        if not recipients:
            return tell_no_such_message(options.message)
        if options.as_json:
            out.put(_ENCODER.encode(_record(recipients)) + "\n")
        else:
            now = time.time()
            table = entry_table(recipients, now, of_one=True)
            what = Group(message_head(recipients, now), table, *last_outcomes(recipients))
            print_to(out.put, options.stdout, what)
        return Exit.DELIVERED

    return run_on_queue(options.config, "look", do, stdout=options.stdout)


#: What all recipients of a message have in common.
_OF_MESSAGE: Final = ("message", "sender", "submitted_at", "deadline", "tenant", "job", "priority")


def _record(entries: list[Entry]) -> dict[str, object]:
    records = [entry.as_dict() for entry in entries]
    common = {name: records[0][name] for name in _OF_MESSAGE}
    recipients = [
        {name: value for name, value in record.items() if name not in _OF_MESSAGE}
        for record in records
    ]
    return {**common, "recipients": recipients}
