"""The commands that steer the queue: `retry`, `hold`, `release`, `cancel`, `purge` and `weight`.

Called by the command line with options that were understood.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.queue.values import Action, Selection
from engine.worker.exits import Exit
from engine.worker.queue_command import run_on_queue, tell_no_such_message
from engine.worker.summary import printable

if TYPE_CHECKING:
    from engine.queue.values import State
    from engine.worker.output import Output
    from engine.worker.shards import Shards

_DONE: Final = {
    Action.RETRY: "due now",
    Action.HOLD: "held",
    Action.RELEASE: "released",
    Action.CANCEL: "cancelled",
    Action.PURGE: "deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """The options of a command that does something to recipients.

    Attributes:
        config: The configuration file.
        action: What to do.
        selection: To whom.
        reason: Why, for `queue show`; empty: by hand.
        as_json: A JSON object, in place of a line.
        stdout: Descriptor for results.
    """

    config: str | None
    action: Action
    selection: Selection
    reason: str = ""
    as_json: bool = False
    stdout: int = 1


def apply(options: ApplyOptions) -> int:
    """Run the command and return its exit status."""

    async def do(shards: Shards, out: Output) -> int:
        count = await shards.apply(options.action, options.selection, options.reason)
        message, why = options.selection.message, ""
        if not count and message is not None:
            states = await _states_of(shards, message)
            if not states:
                return tell_no_such_message(message)
            found = ", ".join(f"{number:,} {state}" for state, number in sorted(states.items()))
            why = f"; message {printable(message)} has {found}"
        if options.as_json:
            out.put(json.dumps({"action": options.action.value, "recipients": count}) + "\n")
        else:
            noun = "recipient" if count == 1 else "recipients"
            out.put(f"{count:,} {noun} {_DONE[options.action]}{why}\n")
        return Exit.DELIVERED

    return run_on_queue(options.config, "steer", do, stdout=options.stdout)


async def _states_of(shards: Shards, message: str) -> Counter[State]:
    async with aclosing(shards.entries(Selection(message=message))) as entries:
        return Counter([entry.state async for entry in entries])


def set_weight(
    config: str | None, tenant: str, weight: float, job: str | None, *, stdout: int = 1
) -> int:
    """Run `queue weight` and return its exit status."""

    async def do(shards: Shards, out: Output) -> int:
        try:
            await shards.set_weight(tenant, weight, job)
        except ValueError as error:
            print(error, file=sys.stderr)
            return Exit.USAGE
        out.put(f"{'tenant' if job is None else 'job'} has weight {weight:g}\n")
        return Exit.DELIVERED

    # To give a weight before the first mail is there makes the file, as submitting does.
    return run_on_queue(config, "submit", do, stdout=stdout)
