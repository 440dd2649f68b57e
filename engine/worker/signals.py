"""The signals of a process that serves: the first TERM or INT drains, the second stops, HUP reloads.

USR1 has the log say how it goes; what else it could mean to whoever sends it, as to open logs anew, is
done already.  Used by one worker, and by the parent of several.  Not here: what draining and
reloading are.
"""

from __future__ import annotations

import signal
from typing import Protocol

import trio


class Steered(Protocol):
    """What signals are for; its methods do not wait."""

    def drain(self) -> None:
        """Begin to end: finish what is in flight."""
        ...

    def stop(self) -> None:
        """End now."""
        ...

    def reload(self) -> None:
        """Read the configuration again."""
        ...

    def tell(self) -> None:
        """Say in the log how it goes."""
        ...


class Signals:
    """Tells what is steered what each signal means.

    Attributes:
        ends: How many signals to end there were.
    """

    def __init__(self, steered: Steered) -> None:
        self.ends = 0
        self._steered = steered

    def take(self, number: int) -> None:
        """Act on a signal."""
        if number == signal.SIGUSR1:
            self._steered.tell()
            return
        if number == signal.SIGHUP:
            # Too late for another configuration once the end has begun.
            if not self.ends:
                self._steered.reload()
            return
        self.ends += 1
        if self.ends == 1:
            self._steered.drain()
        else:
            self._steered.stop()


async def heed_signals(
    steered: Steered,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Act on signals; returns after the second to end: the third has its usual effect again.

    Args:
        steered: What is told.
        task_status: Started when signals are heard.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    with trio.open_signal_receiver(*numbers) as received:
        task_status.started()
        signals = Signals(steered)
        async for number in received:
            signals.take(number)
            if signals.ends > 1:
                return
