"""One run: messages from a source through an engine, and what became of them to whoever asked.

Called by `send` and `demo`.  Owns the tasks of a run (intake, collector, display, signals) and
decides the exit status.  Not here: options, files, and what anything looks like.

The first SIGINT or SIGTERM stops the intake and lets the engine drain; the second stops the engine
at once; either way all that the engine had taken has its outcome.  A third ends the process.
"""

from __future__ import annotations

import json
import logging
import signal
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

import trio

from engine.nursery import tasks_beside
from engine.outcome import Status
from engine.report.log import LogWriter
from engine.worker.budget import Budget
from engine.worker.exits import Incidents, exit_status
from engine.worker.output import open_output
from engine.worker.progress import Pace, Progress
from engine.worker.screen import (
    LIVE_SECONDS,
    LiveScreen,
    PlainScreen,
    can_be_live,
    open_console,
    print_to,
)
from engine.worker.summary import Summary, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from engine.message import Message
    from engine.outcome import Outcome
    from engine.report.statistics import Statistics
    from engine.report.stream import EventStream
    from engine.worker.exits import Exit
    from engine.worker.intake import Say, Source
    from engine.worker.output import Output
    from engine.worker.screen import Screen

LogForm: TypeAlias = Literal["text", "json", "off"]
OpenSource: TypeAlias = "Callable[[Say, Incidents], Source]"

# ASCII only: that escapes control characters, and any locale can print it.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a run reports.

    Attributes:
        as_json: Outcome records on standard output, in place of progress and a table.
        transcripts: Each record has a `transcript`.
        log: What log lines look like; `None`: text, but none beside a live display.
        stdout: Descriptor for results.
        stderr: Descriptor for everything else.
    """

    as_json: bool = False
    transcripts: bool = False
    log: LogForm | None = None
    stdout: int = 1
    stderr: int = 2


class Deliverer(Protocol):
    """An engine, as far as a run is concerned; see `engine.engine.Engine`."""

    events: EventStream

    @property
    def outcomes(self) -> trio.abc.ReceiveChannel[Outcome]:
        """What became of recipients."""
        ...

    async def __aenter__(self) -> object:
        """Begin."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """Finish what was submitted, unless there is an error."""
        ...

    async def submit(self, message: Message) -> object:
        """Take a message."""
        ...

    def statistics(self) -> Statistics:
        """Return the numbers of this moment."""
        ...

    def cancel(self) -> None:
        """Stop at once."""
        ...


async def run(engine: Deliverer, open_source: OpenSource, manner: Manner) -> Exit:
    """Send all messages of a source and report what became of them.

    Args:
        engine: Not entered yet.
        open_source: Makes the source; gets where to say what is wrong, and where to note it.
        manner: How to report.

    Returns:
        The exit status, once everything is written.
    """
    async with open_output(manner.stderr) as stderr, open_output(manner.stdout) as stdout:
        with _open_screen(manner, stderr) as screen, _log_to(screen.say):
            log = manner.log or ("off" if isinstance(screen, LiveScreen) else "text")
            engine.events.watch(LogWriter(_without_end(screen.say), log))
            this = _Run(engine, open_source, _Desk(manner, screen, stdout, stderr))
            await this.to_the_end()
        # The display is down: on a terminal that shows both, the table comes after it.
        await stderr.flush()
        this.conclude()
        await stdout.flush()
        this.incidents.is_unheard = stdout.broken.is_set()
        if stdout.complaint is not None:
            screen.say(stdout.complaint)
    return this.exit_status()


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where a run reports."""

    manner: Manner
    screen: Screen
    stdout: Output
    stderr: Output


class _Run:
    """The tasks of a run and what they share."""

    def __init__(self, engine: Deliverer, open_source: OpenSource, desk: _Desk) -> None:
        self.incidents = Incidents()
        self._engine = engine
        self._source = open_source(desk.screen.say, self.incidents)
        self._manner = desk.manner
        self._screen = desk.screen
        self._stdout = desk.stdout
        self._stderr = desk.stderr
        self._intake = trio.CancelScope()
        self._summary = Summary()
        self._budget = Budget()
        self._started = trio.current_time()
        self._seconds = 0.0

    async def to_the_end(self) -> None:
        async with tasks_beside() as nursery:
            await nursery.start(self._heed_signals)
            nursery.start_soon(self._heed_reader)
            nursery.start_soon(self._show_progress)
            async with trio.open_nursery() as inner:
                inner.start_soon(self._collect)
                async with self._engine:
                    with self._intake:
                        await self._feed()
        self._seconds = trio.current_time() - self._started

    def conclude(self) -> None:
        """Print the table, where that is the manner."""
        if not self._manner.as_json:
            what = render(self._summary, self._engine.statistics(), self._seconds)
            print_to(self._stdout.put, self._manner.stdout, what)

    def exit_status(self) -> Exit:
        counts = self._summary.counts
        unfinished = counts[Status.DEFERRED] + counts[Status.UNKNOWN]
        return exit_status(self.incidents, failed=counts[Status.FAILED], unfinished=unfinished)

    # -- tasks

    async def _feed(self) -> None:
        async with aclosing(self._source.messages()) as messages:
            async for message in messages:
                # Each settled recipient may have a log line: who does not read those slows us too.
                await self._stderr.room()
                await self._budget.take(message)
                await self._engine.submit(message)

    async def _collect(self) -> None:
        async for outcome in self._engine.outcomes:
            self._summary.add(outcome)
            self._budget.settle(outcome)
            if self._manner.as_json:
                self._stdout.put(_ENCODER.encode(self._record(outcome)) + "\n")
                await self._stdout.room()

    def _record(self, outcome: Outcome) -> dict[str, object]:
        record = outcome.as_dict()
        if self._manner.transcripts:
            record.setdefault("transcript", None)
        return record

    async def _heed_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            await anext(signals)
            self.incidents.is_interrupted = True
            count = self._engine.statistics().in_flight
            self._screen.say(
                f"interrupted: finishing {count:,} in flight, taking no more; again: stop at once"
            )
            self._intake.cancel()
            await anext(signals)
            self._screen.say("interrupted again: stopping at once")
            self._engine.cancel()

    async def _heed_reader(self) -> None:
        # Nobody hears what becomes of further mail: send no more of it.
        await self._stdout.broken.wait()
        self._intake.cancel()

    async def _show_progress(self) -> None:
        pace = Pace()
        while True:
            await self._stderr.room()
            statistics, now = self._engine.statistics(), trio.current_time()
            total = self._source.expected(statistics.submitted)
            rate = pace.measure(now, statistics.submitted - statistics.in_flight)
            # Before the first message somebody may still be typing it.
            if statistics.submitted:
                is_guess = not self._source.is_exact
                self._screen.show(Progress(statistics, total, is_guess, rate), now)
            await trio.sleep(LIVE_SECONDS)


@contextmanager
def _open_screen(manner: Manner, stderr: Output) -> Iterator[Screen]:
    screen: Screen
    if manner.as_json:
        screen = PlainScreen(stderr, None)
    elif can_be_live(manner.stderr):
        screen = LiveScreen(open_console(stderr.put, manner.stderr))
    else:
        screen = PlainScreen(stderr)
    try:
        yield screen
    finally:
        screen.close()


class _SayHandler(logging.Handler):
    """Sends warnings of the engine's modules where all lines for a person go."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler: a log line must not end a run
            self.handleError(record)


@contextmanager
def _log_to(say: Callable[[str], None]) -> Iterator[None]:
    handler = _SayHandler(say)
    root = logging.getLogger("engine")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _without_end(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: say(line.removesuffix("\n"))
