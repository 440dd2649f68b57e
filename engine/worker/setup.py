"""What commands that deliver have in common: the configuration they are given, the engine made of it.

Not here: what a command then does with it.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.engine import Engine
from engine.errors import ConfigError
from engine.worker.config import load_config
from engine.worker.exits import Exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.hints import Hints
    from engine.queue.store import Store
    from engine.stored import QueueOptions
    from engine.worker.config import Config


def read_config(file: str | None, sets: Sequence[str]) -> Config | Exit:
    """Read the configuration; what is wrong with it goes to standard error.

    Args:
        file: The configuration file; `None`: there is none.
        sets: `KEY=VALUE` over its defaults.
    """
    try:
        return load_config(None if file is None else Path(file), sets)
    except OSError as error:
        print(f"{file}: {error.strerror}", file=sys.stderr)
        return Exit.NO_INPUT
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return Exit.CONFIG


@asynccontextmanager
async def open_state(file: str | None) -> AsyncIterator[Hints | None]:
    """Keep hints in a file for the time of a block; without one nobody keeps them."""
    if file is None:
        yield None
        return
    from engine.queue.hints import open_hints

    async with open_hints(file) as hints:
        yield hints


def make_engine(
    config: Config,
    routes: Sequence[tuple[str, Sequence[str]]],
    hints: Hints | None,
    *,
    transcripts: bool = False,
    store: Store | None = None,
    queue: QueueOptions | None = None,
) -> Engine:
    """Make an engine of a configuration.

    Args:
        config: Settings, name servers and who we are.
        routes: Static routes, first match wins.
        hints: Where hints are kept.
        transcripts: Whether dialogues are kept with the outcomes.
        store: Where mail is kept; with one the engine is a worker's: with its seats, and it
            reports on TLS.
        queue: How the store is dealt with.

    Raises:
        ConfigError: Settings or routes cannot be used.
    """
    worker = {} if store is None else _of_a_worker(config)
    return Engine(
        config.table,
        routes=routes,
        name_servers=config.name_servers,
        dns_timeout=config.dns_timeout,
        trusted_name_servers=config.trusted,
        own_addresses=config.own_addresses,
        own_names=config.own_names,
        transcripts=transcripts,
        hints=hints,
        store=store,
        queue=queue,
        **worker,
    )


def _of_a_worker(config: Config) -> dict[str, Any]:
    return {"max_in_flight": config.worker.seats, "tls_reporter": config.tls_reporter}
