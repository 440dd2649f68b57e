"""The engine that commands make of the configuration they are given.

Not here: what a command then does with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.hints import Hints
    from engine.queue.store import Store
    from engine.stored import QueueOptions
    from engine.worker.config import Config


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
