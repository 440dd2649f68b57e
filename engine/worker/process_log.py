"""The log lines of a worker: what its modules have to say, and what happens to it, one line each.

Never holds up the delivery of mail: when nobody takes the lines, some are left out, and their number
is said once there is room again.  Recipients have no lines here; they have theirs in the log of
outcomes.  Not here: writing (`engine.worker.output`), and lines of events (`engine.report.log`).
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, get_args

from engine.report.events import ConnectionFailed, HostDeferred, SecurityAlert
from engine.report.log import LogWriter
from engine.smtp.reply import show
from engine.units import timestamp
from engine.worker.sections import LogFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.engine import Engine
    from engine.report.events import Event
    from engine.worker.output import Output

#: Lines are left out while so much waits to be written.
MAX_WAITING_OCTETS: Final = 4 * 1024 * 1024
# ASCII only: that escapes control characters of every kind.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True)

_log = logging.getLogger("engine.worker")


class ProcessLog:
    """Where the lines of a worker go.

    Attributes:
        form: `text` or `json`; may be changed at any time.
    """

    def __init__(self, output: Output, form: LogFormat = "text") -> None:
        self.form: LogFormat = form
        self._output = output
        self._left_out = 0

    def write(self, line: str) -> None:
        """Write a line with its end, if there is room for it."""
        if self._output.waiting > MAX_WAITING_OCTETS:
            self._left_out += 1
            return
        if self._left_out:
            # First, so that this is said once.
            count, self._left_out = self._left_out, 0
            _log.warning("%d log lines were left out: nobody took them", count)
        self._output.put(line)

    def watch(self, engine: Engine) -> None:
        """Write what an engine has to complain of."""
        writers = {form: LogWriter(self.write, form) for form in get_args(LogFormat)}

        def write(event: Event) -> None:
            writers[self.form](event)

        engine.events.watch(write, ConnectionFailed, HostDeferred, SecurityAlert)

    @contextmanager
    def hear_modules(self) -> Iterator[None]:
        """Write what the modules of the engine log, for the time of a block."""
        root, handler = logging.getLogger("engine"), _Handler(self)
        before = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.setLevel(before)
            root.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, log: ProcessLog) -> None:
        super().__init__(logging.INFO)
        self._log = log
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.write(self._line(record))
        except Exception:  # noqa: BLE001 - as every handler: a log line must not end a worker
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> str:
        time, level = timestamp(record.created), record.levelname.lower()
        text, trace = record.getMessage(), ""
        if record.exc_info:
            trace = self._formatter.formatException(record.exc_info)
        if self._log.form == "json":
            facts = {"time": time, "event": "log", "level": level, "logger": record.name}
            facts["text"] = text
            if trace:
                facts["traceback"] = trace
            return _ENCODER.encode(facts) + "\n"
        lines = [f"{time} level={level} logger={record.name} ({_printable(text)})"]
        lines += (f"    {_printable(line)}" for line in trace.splitlines())
        return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """Escape what could steer a terminal, or end a line."""
    return text if text.isprintable() else show(text.encode("utf-8", "backslashreplace"))
