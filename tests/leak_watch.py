"""Looks at all that the engine told in every test, and fails the test that told a secret.

A pytest plugin, loaded by `tests/conftest.py`.  What it looks for is `tests.secrets_used`.  A test
that has a secret of its own, such as a response to a challenge, asks for the fixture `leaks`.

The line is between what the engine tells and what a test knows.  The engine tells:

- events, outcomes, transcripts and log lines, whoever listens;
- log records of every logger, with their errors;
- standard output and standard error, of this process and of commands that a test runs;
- its errors, even those that are caught, with all that a traceback would show as their cause;
- files in the test's folder, but for those that are there to hold a secret (`HOLDERS`).

A test, and the servers and proxies that play its peers, must know the secret to do their work.  So
nobody looks at the source of tests, which tracebacks quote; at an assertion that failed; at
scripts, and what a server was told; nor at an error that a test raised itself, unless the engine
logs it or names it as the cause of its own.

Warnings are errors in these tests, and seen as such.
"""

from __future__ import annotations

import functools
import logging
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result

from engine.outcome import Outcome
from engine.report import log
from engine.report.stream import EventStream
from engine.report.transcript import Transcript
from tests.leaks import forms, search
from tests.secrets_used import EXAMPLES, KEYS, MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeGuard

FORMS = {
    form: name
    for secret, name in [
        (MARK.encode(), "a secret of the tests"),
        *((example.encode(), "a secret of an example") for example in EXAMPLES),
        *((key, "a private key") for key in KEYS),
    ]
    for form in forms(secret)
}
#: Files that are there to hold a secret.
HOLDERS = ("*.toml", "*.pem", "*.key", "*password*")
#: Octets; only queues are larger.
MOST_OF_A_FILE = 1 << 20
#: Characters that wait to be looked at.
ENOUGH = 1 << 20

TESTS = Path(__file__).parent
#: Code that plays the part of tests and of peers.
OF_TESTS = (f"{TESTS}/", f"{TESTS.parent}/engine/testing/")


def pytest_configure(config: pytest.Config) -> None:
    """Listen from before the first test is read."""
    config.pluginmanager.register(Watch(FORMS))


class Watch:
    """Listens to the engine, and judges each test at its end."""

    def __init__(self, secrets: dict[str, str]) -> None:
        """Listen.

        Args:
            secrets: What is looked for, in lower case, and what it is.
        """
        self._secrets = secrets
        self._texts: list[tuple[str, str]] = []
        self._size = 0
        self._found: list[str] = []
        self._patches = pytest.MonkeyPatch()
        self._make_record = logging.getLogRecordFactory()
        self._listen()

    def tell(self, place: str, *texts: str) -> None:
        """Take what was told, and where."""
        self._texts.extend([(place, text) for text in texts])
        self._size += sum(map(len, texts))
        if self._size > ENOUGH:
            self._look()

    def end(self) -> list[str]:
        """Return where secrets were told since the last end."""
        self._look()
        found, self._found = self._found, []
        return found

    def _look(self) -> None:
        texts, self._texts, self._size = self._texts, [], 0
        # Nearly always there is nothing: all at once is quickest, and much is told many times.
        whole = "\n".join({text for _, text in texts}).lower()
        if any(form in whole for form in self._secrets):
            self._found += search(texts, self._secrets)

    # ---- hooks -----------------------------------------------------------------------------------

    def pytest_collection_finish(self) -> None:
        """Listen to the engine's errors, of all modules that tests use."""
        for name, module in list(sys.modules.items()):
            if name.startswith("engine.") and not name.startswith("engine.testing"):
                for value in list(vars(module).values()):
                    if is_error(value) and value.__module__ == name:
                        self._hear(value, "__init__", lambda _, it, *__: ("error", repr(it)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        """Judge a test by all it told, when nothing of it is left to run."""
        report = yield
        if call.excinfo is not None:
            self.tell("error of the test", *texts_of(call.excinfo.value))
            self.tell("report", *entries_of(report.longrepr))
        if call.when == "teardown":
            for title, text in report.sections:
                if "std" in title:
                    self.tell(title, text)
            if "tmp_path" in getattr(item, "funcargs", ()):
                self._files(item.funcargs["tmp_path"])
            if found := self.end():
                text = "\n".join(["Secrets were told:", *found])
                if report.passed:
                    report.longrepr = text
                else:
                    report.sections.append(("Leaks", text))
                report.outcome = "failed"
        return report

    def pytest_unconfigure(self) -> None:
        """Listen no more."""
        self._patches.undo()
        logging.setLogRecordFactory(self._make_record)

    # ---- doors -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        logging.setLogRecordFactory(self._record)
        self._hear(EventStream, "publish", lambda _, __, event: (event.name, repr(event)))
        self._hear(Outcome, "__new__", lambda outcome, *_: ("outcome", repr(outcome)))
        self._hear(Transcript, "since", lambda lines, *_: ("transcript", *lines))
        for name in ("log_line", "json_line", "_event_line"):
            self._hear(log, name, lambda line, *_: ("log line", line))
        # What a test reads of the output is not in its report any more.
        self._hear(pytest.CaptureFixture, "readouterr", lambda read, _: ("output", *map(str, read)))
        self._hear(CompletedProcess, "__init__", lambda _, done, *__: ("command", *outputs(done)))
        self._hear(Result, "__init__", lambda _, done, *__: ("command", done.output))
        for context in (pytest.RaisesExc, pytest.RaisesGroup):
            self._hear(
                context, "__exit__", lambda *seen: ("error a test expects", *texts_of(seen[3]))
            )

    def _hear(self, owner: Any, name: str, told: Callable[..., Sequence[str]]) -> None:
        """Let `told` say what a function told, and where, of its result and its arguments."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def heard(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.tell(*told(result, *args))
            return result

        self._patches.setattr(owner, name, heard)

    def _record(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make_record(*args, **kwargs)
        with suppress(TypeError, ValueError):  # `logging` says so itself when it writes the record
            self.tell(f"log record of {record.name}", record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            self.tell(f"log record of {record.name}", shown(record.exc_info[1]))
        return record

    def _files(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and not any(map(path.match, HOLDERS)):
                with path.open("rb") as file:
                    octets = file.read(MOST_OF_A_FILE)
                self.tell(f"file {path.relative_to(folder)}", octets.decode("latin-1"))


def outputs(done: CompletedProcess[Any]) -> Iterator[str]:
    """Yield what a command wrote, as far as it was caught."""
    for output in (done.stdout, done.stderr):
        yield output.decode("latin-1") if isinstance(output, bytes) else output or ""


def is_error(value: object) -> TypeGuard[type[BaseException]]:
    """Whether it is a class of errors."""
    return isinstance(value, type) and issubclass(value, BaseException)


def texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield what an error tells, unless a test made it; of a group, what its members tell."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from texts_of(each)
    elif error is not None and not is_of_tests(error):
        yield shown(error)


def shown(error: BaseException) -> str:
    """Return an error as a traceback shows it, with its causes, but without lines of source."""
    return "".join(traceback.format_exception(error, limit=0)) + repr(error)


def is_of_tests(error: BaseException) -> bool:
    """Whether an error was raised by a test, or by who plays its peer."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(OF_TESTS)


def entries_of(report: object) -> Iterator[str]:
    """Yield how a failed test's report shows the engine's own frames, with their arguments."""
    for shown_trace, *_ in getattr(report, "chain", ()):
        for entry in shown_trace.reprentries:
            place = getattr(entry, "reprfileloc", None)
            if place is not None and not str(TESTS.parent / place.path).startswith(OF_TESTS):
                yield f"{entry}\n{entry.reprfuncargs}"
