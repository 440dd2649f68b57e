"""Why a worker does not begin, or cannot go on: the line for a person, and the exit status.

The statuses are those of sysexits.h, so that a service manager can tell what a restart may mend.
Knows no I/O.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from engine.errors import ConfigError, EngineError
from engine.queue.errors import (
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreVersionError,
)
from engine.worker.lock import LockedError


class RunExit(IntEnum):
    """The exit statuses of `run`."""

    #: It was told to end and did, or there was nothing left to do.
    ENDED = 0
    #: The store or the configuration cannot be read: it is damaged, no store, or not permitted.
    NO_INPUT = 66
    #: The lock, the socket, the log of outcomes or the store cannot be made or written to.
    CANNOT_CREATE = 73
    #: Another worker is at the store, or its disk is full: later it may work.
    TRY_LATER = 75
    #: The configuration cannot be used, or not with this release.
    CONFIG = 78


#: A worker that ends with one of these before it was ready would do so again.
REFUSALS: Final = frozenset(RunExit) - {RunExit.ENDED}


#: What to do about a store that is damaged.
SAVE: Final = "what can still be read can be saved: queue export"


def explain_refusal(error: EngineError | OSError) -> tuple[RunExit, str]:
    """Return the exit status that an error ends a worker with, and the text for a person."""
    match error:
        case ConfigError() | StoreVersionError():
            return RunExit.CONFIG, str(error)
        case LockedError() | StoreBusyError() | StoreFullError():
            return RunExit.TRY_LATER, str(error)
        case StoreReadOnlyError():
            return RunExit.CANNOT_CREATE, str(error)
        case StoreDamagedError():
            return RunExit.NO_INPUT, f"{error}\n{SAVE}"
        case StoreError():
            return RunExit.NO_INPUT, str(error)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return RunExit.CANNOT_CREATE, f"{where}{error.strerror or error}"
        case _:
            return RunExit.CONFIG, str(error)
