"""The command `status`: whether workers run, what waits, and how that goes.

Called by the command line with options that were understood; its exit status is for those who watch
machines.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from engine.units import timestamp
from engine.worker.exits import Exit
from engine.worker.queue_command import run_on_queue
from engine.worker.queue_tables import backlog_table, counts_line, span
from engine.worker.screen import print_to
from engine.worker.summary import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from engine.worker.desk import Status
    from engine.worker.output import Output
    from engine.worker.shards import Shard, Shards

#: From well to not running at all.
_SEVERITY: Final = (Exit.DELIVERED, Exit.DEFERRED, Exit.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOptions:
    """The options of `status`.

    Attributes:
        config: The configuration file.
        as_json: One JSON object.
        stdout: Descriptor for results.
    """

    config: str | None
    as_json: bool = False
    stdout: int = 1


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of one process."""

    shard: Shard
    is_running: bool
    status: Status

    @property
    def health(self) -> Exit:
        if not self.is_running:
            return Exit.FAILED
        worker = self.status.worker or {}
        return Exit.DELIVERED if worker.get("healthy", True) else Exit.DEFERRED


def show_status(options: StatusOptions) -> int:
    """Run `status` and return its exit status."""

    async def do(shards: Shards, out: Output) -> int:
        looks = [
            _Look(shard, await shard.is_running(), await shard.status()) for shard in shards.shards
        ]
        health = max((look.health for look in looks), key=_SEVERITY.index)
        now = time.time()
        if options.as_json:
            record = {
                "healthy": health is Exit.DELIVERED,
                "processes": [_record(look) for look in looks],
            }
            out.put(json.dumps(record) + "\n")
        else:
            parts = [part for look in looks for part in _lines(look, now)]
            print_to(out.put, options.stdout, Group(*parts))
        return health

    return run_on_queue(options.config, "look", do, stdout=options.stdout)


def _record(look: _Look) -> dict[str, Any]:
    counts = asdict(look.status.counts)
    backlog = []
    for each in look.status.backlog:
        site = asdict(each.site)
        backlog.append({**asdict(each), "site": site.pop("name"), **site})
    return {
        "process": look.shard.number,
        "running": look.is_running,
        "file": str(look.shard.file),
        "socket": str(look.shard.socket),
        "counts": _dated(counts, "oldest", "next_due"),
        "backlog": [_dated(each, "not_before", "next_due") for each in backlog],
        "worker": look.status.worker,
    }


def _dated(facts: Mapping[str, Any], *moments: str) -> dict[str, Any]:
    """Return facts with moments as RFC 3339 §5.6 has them; 0 is none."""
    return {
        key: (timestamp(value) if value else None) if key in moments else value
        for key, value in facts.items()
    }


def _lines(look: _Look, now: float) -> list[RenderableType]:
    running = Text("running", "green") if look.is_running else Text("not running", "red")
    parts: list[RenderableType] = [Text(f" Process {look.shard.number}: ", "bold").append(running)]
    worker = look.status.worker or {}
    lines = (*worker_lines(worker), counts_line(look.status.counts, now))
    parts += [Padding(Text(line), (0, 0, 0, 3)) for line in lines if line]
    if not worker.get("healthy", True):
        problem = printable(str(worker.get("problem") or "its store fails at the moment"))
        parts.append(Padding(Text(problem, "red"), (0, 0, 0, 3)))
    parts.append(Text())
    if look.status.backlog:
        parts += [backlog_table(look.status.backlog, now), Text()]
    return parts


def worker_lines(worker: Mapping[str, object]) -> tuple[str, str]:
    """Say in two lines what a worker says of itself: how it is, and what it has done.

    Args:
        worker: As it says; what is missing, or is of another kind, is left out.
    """
    numbers = {
        key: value
        for key, value in worker.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    state = worker.get("state")
    now = [f"pid {numbers['pid']:g}"] if "pid" in numbers else []
    now += [f"up {span(numbers['seconds'])}"] if "seconds" in numbers else []
    now += [printable(state)] if isinstance(state, str) else []
    now += [
        f"{numbers[key]:,.0f} {words}"
        for key, words in (("in_flight", "in flight"), ("connections", "connections open"))
        if key in numbers
    ]
    done = [
        f"{numbers[key]:,.0f} {key}"
        for key in ("delivered", "deferred", "failed", "unknown")
        if numbers.get(key)
    ]
    return " · ".join(now), " · ".join(done) and f"so far {' · '.join(done)}"
