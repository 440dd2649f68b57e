"""What commands are given: the configuration, and where hints are kept.

Apart from the engine that some of them make of it (`engine.worker.setup`): those that only look at
a queue, or put mail into it, start sooner without.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.worker.config import load_config
from engine.worker.exits import Exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.hints import Hints
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
