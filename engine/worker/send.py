"""The command `send`: deliver now, once, and say what became of every recipient.

Called by the command line with options that were understood.  Not here: the run itself
(`engine.worker.run`), the input (`engine.worker.intake`) and the configuration
(`engine.worker.config`).
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import trio

from engine.engine import Engine
from engine.errors import ConfigError
from engine.worker.config import load_config
from engine.worker.exits import Exit, Incidents
from engine.worker.hosts import read_hosts
from engine.worker.intake import STDIN, Batch, CommandLine
from engine.worker.run import Manner, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.hints import Hints
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
    try:
        config = load_config(None if options.config is None else Path(options.config), options.sets)
    except OSError as error:
        print(f"{options.config}: {error.strerror}", file=sys.stderr)
        return Exit.NO_INPUT
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return Exit.CONFIG
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

    async with _hints(options.state) as hints:
        engine = Engine(
            config.table,
            routes=routes,
            name_servers=config.name_servers,
            dns_timeout=config.dns_timeout,
            trusted_name_servers=config.trusted,
            own_addresses=config.own_addresses,
            own_names=config.own_names,
            transcripts=options.manner.transcripts,
            hints=hints,
        )
        return await run(engine, open_source, options.manner)


@asynccontextmanager
async def _hints(file: str | None) -> AsyncIterator[Hints | None]:
    if file is None:
        yield None
        return
    from engine.queue.hints import open_hints

    async with open_hints(file) as hints:
        yield hints
