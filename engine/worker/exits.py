"""What the command line says with its exit status: one table, one order of precedence.

The values are those of sysexits.h where it has one.  Knows no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """The exit statuses of commands; each says in its help which it has and what they mean there."""

    #: All were delivered, or accepted: what was asked is done.
    DELIVERED = 0
    #: The command line cannot be understood.
    USAGE = 64
    #: A malformed batch line, address or content; the rest was sent.
    DATA = 65
    #: A named file cannot be read.
    NO_INPUT = 66
    #: Something failed for good.
    FAILED = 69
    #: The queue cannot be opened, or is damaged.
    IO_ERROR = 74
    #: Something is deferred or unknown, nothing failed.
    DEFERRED = 75
    #: The configuration cannot be used; nothing was sent.
    CONFIG = 78
    #: Interrupted, after a clean drain.
    INTERRUPTED = 130


@dataclass(slots=True)
class Incidents:
    """What happened to a run apart from its outcomes.

    Attributes:
        is_interrupted: A signal ended it.
        has_bad_data: Something in the input was malformed.
        has_unreadable_file: A named file could not be read.
        is_unheard: Nobody reads the results any more, so some are known to nobody.
    """

    is_interrupted: bool = False
    has_bad_data: bool = False
    has_unreadable_file: bool = False
    is_unheard: bool = False


def exit_status(incidents: Incidents, *, failed: int, unfinished: int) -> Exit:
    """Return the exit status of a run.

    Args:
        incidents: What happened apart from outcomes.
        failed: How many recipients failed for good.
        unfinished: How many are deferred or unknown.
    """
    if incidents.is_interrupted:
        return Exit.INTERRUPTED
    if incidents.has_bad_data:
        return Exit.DATA
    if incidents.has_unreadable_file:
        return Exit.NO_INPUT
    if failed:
        return Exit.FAILED
    # Results that reached nobody are as good as unknown to whoever started us.
    if unfinished or incidents.is_unheard:
        return Exit.DEFERRED
    return Exit.DELIVERED
