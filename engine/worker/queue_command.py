"""What commands on the queue have in common: the configuration, the queues, output and exit status.

Not here: what a command then does with them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeAlias

import trio

from engine.queue.errors import StoreDamagedError, StoreError, StoreUnusableError
from engine.worker.exits import Exit
from engine.worker.given import read_config
from engine.worker.output import open_output
from engine.worker.refusals import SAVE
from engine.worker.shards import open_shards
from engine.worker.summary import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.worker.config import Config
    from engine.worker.output import Output
    from engine.worker.shards import Purpose, Shards

Do: TypeAlias = "Callable[[Shards, Output], Awaitable[int]]"


def run_on_queue(file: str | None, purpose: Purpose, do: Do, *, stdout: int = 1) -> int:
    """Do something with the queues of a configuration file, and return the exit status.

    What goes wrong is said on standard error.

    Args:
        file: The configuration file.
        purpose: What files are opened for, where no worker runs.
        do: Does it; what it puts out is written before this returns.
        stdout: Descriptor for results.
    """
    config = read_config(file, ())
    if isinstance(config, Exit):
        return config
    return trio.run(_run, config, purpose, do, stdout)


async def _run(config: Config, purpose: Purpose, do: Do, stdout: int) -> int:
    async with open_output(stdout) as out, open_shards(config, purpose) as shards:
        try:
            status = await do(shards, out)
        except StoreError as error:
            status = tell(error)
        await out.flush()
        if out.complaint is not None:
            # Half a list must not pass for the whole.
            print(out.complaint, file=sys.stderr)
            status = status or Exit.DEFERRED
        return status


def tell_no_such_message(message: str) -> Exit:
    """Say that a message that was named is not there, and return the exit status for it."""
    print(f"no message {printable(message)} is in the queue", file=sys.stderr)
    return Exit.NO_INPUT


def tell(error: StoreError) -> Exit:
    """Say what is wrong with a store, and return the exit status for it."""
    print(error, file=sys.stderr)
    if isinstance(error, StoreDamagedError):
        print(SAVE, file=sys.stderr)
    is_lasting = isinstance(error, StoreUnusableError | StoreDamagedError)
    return Exit.IO_ERROR if is_lasting else Exit.DEFERRED
