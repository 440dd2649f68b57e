"""The command `send`: deliver now, once, and say what became of every recipient.

Called by the command line with options that were understood.  Not here: the run itself
(`engine.worker.run`), the input (`engine.worker.intake`) and the configuration
(`engine.worker.config`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import trio

from engine.worker.exits import Exit, Incidents
from engine.worker.given import open_state, read_config
from engine.worker.hosts import read_hosts
from engine.worker.intake import STDIN, Batch, CommandLine
from engine.worker.run import Manner, run
from engine.worker.setup import make_engine

if TYPE_CHECKING:
    from engine.worker.config import Config
    from engine.worker.intake import Say, Source

Routes: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class SendOptions:
    """The options of `send`, as `engine.worker.cli` describes them.

    Attributes:
        recipients: Forward-paths; empty with `batch`.
        sender: The reverse-path; `None` with `batch`.
        message: The content's file or `-`; `None`: `-`.
        batch: The batch file or `-`; `None`: there is none.
        hosts: Where to send instead of by MX.
        config: The configuration file; `None`: there is none.
        sets: `KEY=VALUE` over the configuration's defaults.
        state: The file that keeps hints; `None`: they are forgotten at the end.
        manner: How to report.
    """

    recipients: tuple[str, ...] = ()
    sender: str | None = None
    message: str | None = None
    batch: str | None = None
    hosts: tuple[str, ...] = ()
    config: str | None = None
    sets: tuple[str, ...] = ()
    state: str | None = None
    manner: Manner = field(default_factory=Manner)


def send(options: SendOptions) -> int:
    """Run `send` and return its exit status.

    Raises:
        ValueError: One of `hosts` is no host.
    """
    routes = read_hosts(options.hosts)
    config = read_config(options.config, options.sets)
    if isinstance(config, Exit):
        return config
    return trio.run(deliver, options, config, routes or config.routes)


async def deliver(options: SendOptions, config: Config, routes: Routes) -> Exit:
    """Run `send` with a configuration that was read.

    Args:
        options: Those of the input and the manner are used.
        config: Settings, name servers and who we are.
        routes: Static routes, first match wins.
    """

    def open_source(say: Say, incidents: Incidents) -> Source:
        if options.batch is not None:
            return Batch(options.batch, say, incidents)
        file = STDIN if options.message is None else options.message
        return CommandLine(options.sender or "", options.recipients, file, say, incidents)

    async with open_state(options.state) as hints:
        engine = make_engine(config, routes, hints, transcripts=options.manner.transcripts)
        return await run(engine, open_source, options.manner)
