"""Where a person looks while a run lasts: standard error, with or without a live display.

All lines for a person go through `say`, so that they stand above the live display and not in it.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Final, Protocol, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from engine.worker.progress import plain, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from engine.worker.output import Output
    from engine.worker.progress import Progress

#: Seconds between two looks at the numbers: a display at this pace is smooth and costs little.
LIVE_SECONDS: Final = 0.2
#: Seconds between two lines where there is no live display.
PLAIN_SECONDS: Final = 10.0


class Screen(Protocol):
    """What a run needs of it."""

    def say(self, text: str) -> None:
        """Write a line for a person, without its line end."""
        ...

    def show(self, progress: Progress, now: float) -> None:
        """Take the numbers of a moment; `now` is in seconds of any one clock."""
        ...

    def close(self) -> None:
        """Show no more progress; `say` goes on."""
        ...


class PlainScreen:
    """Lines only: for a log file, a pipe, or a program that reads the results.

    Args:
        output: Standard error.
        seconds: The least time between two lines of progress; `None`: there are none.
    """

    def __init__(self, output: Output, seconds: float | None = PLAIN_SECONDS) -> None:
        self._output = output
        self._seconds = seconds
        self._due: float | None = None

    def say(self, text: str) -> None:
        """Write a line."""
        self._output.put(text + "\n")

    def show(self, progress: Progress, now: float) -> None:
        """Write a line of progress if the last one is long enough ago; a short run has none."""
        if self._seconds is None:
            return
        if self._due is None:
            self._due = now + self._seconds
        elif now >= self._due:
            self._due = now + self._seconds
            self.say(plain(progress))

    def close(self) -> None:
        """Do nothing; there is nothing to take down."""


class LiveScreen:
    """A display on the last lines of a terminal, with what is said above it."""

    def __init__(self, console: Console) -> None:
        """Prepare a display; it appears with the first numbers.

        Args:
            console: On the terminal.
        """
        self._console = console
        # It is refreshed by `show` alone: a thread of its own would draw while we write.
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def say(self, text: str) -> None:
        """Write a line above the display."""
        self._console.print(Text(text), soft_wrap=True)

    def show(self, progress: Progress, now: float) -> None:  # noqa: ARG002 - `Live` has its own clock
        """Draw the numbers."""
        self._live.start()
        self._live.update(render(progress), refresh=True)

    def close(self) -> None:
        """Take the display down and give the cursor back."""
        self._live.stop()


def can_be_live(descriptor: int) -> bool:
    """Whether a descriptor is a terminal that can move its cursor."""
    return os.isatty(descriptor) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def open_console(put: Callable[[str], None], descriptor: int) -> Console:
    """Return a console that hands its text to `put`, and looks as the descriptor would have it.

    Colours only on a terminal and unless NO_COLOR is set; the width is that of the terminal, of
    COLUMNS, or 80.
    """
    writer = cast("IO[str]", _Writer(put, descriptor))
    return Console(file=writer, highlight=False, markup=False, emoji=False)


def print_to(put: Callable[[str], None], descriptor: int, what: RenderableType) -> None:
    """Print something once; to what is no terminal, without spaces at the ends of lines."""
    pieces: list[str] = []
    open_console(pieces.append, descriptor).print(what)
    text = "".join(pieces)
    if not os.isatty(descriptor):
        text = "".join(f"{line.rstrip(' ')}\n" for line in text.splitlines())
    put(text)


class _Writer:
    """As much of a text file as a console needs."""

    def __init__(self, put: Callable[[str], None], descriptor: int) -> None:
        self.encoding = "utf-8"
        self.write = put
        self._descriptor = descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def flush(self) -> None:
        """Do nothing: who takes the text writes it soon."""
