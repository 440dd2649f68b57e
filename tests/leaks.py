"""The fixture `leaks`: secrets that a test keeps must not be in anything it is shown.

A test gives it the secrets, and everything the engine tells: events, outcomes, errors, lines of a
log, files.  What goes to `logging`, standard output and standard error it sees for itself.  At the
end nothing may have had a secret in it, in clear or in any of the forms it takes on its way.

For secrets that come up as a test runs, and for whatever is shown on no way that every test shows
things: the passwords of all tests are looked for in all tests (`tests.leak_watch`).
"""

from __future__ import annotations

import binascii
import json
import traceback
from base64 import b64encode, urlsafe_b64encode
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from engine.report.events import RecipientSettled
from engine.report.log import LogWriter, json_line, log_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from engine.engine import Engine
    from engine.outcome import Outcome
    from engine.report.events import Event


class Leaks:
    """What must not be told, and what was.

    Attributes:
        found: Where a secret was, and in which form.
        told: What was looked at, by its kind: how many texts.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.told: dict[str, int] = {}
        self._forms: dict[str, str] = {}
        self._texts: list[tuple[str, str]] = []

    def keep(self, *secrets: str | bytes) -> None:
        """Take secrets; those of less than 6 octets would be found anywhere."""
        for secret in secrets:
            octets = secret.encode() if isinstance(secret, str) else secret
            assert len(octets) >= 6, secret
            self._forms |= dict.fromkeys(forms(octets), repr(secret))

    def look(self, kind: str, *things: object) -> None:
        """Look at values as a person or program would: in every way they can be written."""
        for thing in things:
            if isinstance(thing, BaseException):
                self._take(kind, "".join(traceback.format_exception(thing)))
            self._take(kind, str(thing), repr(thing))

    def file(self, path: Path) -> None:
        """Look at the octets of a file."""
        self._take("file", path.read_bytes().decode("latin-1"))

    def watch(self, engine: Engine) -> None:
        """Look at every event of an engine, and at the lines of its logs."""
        for form in ("text", "json"):
            engine.events.watch(LogWriter(lambda line: self._take("log", line), form, "debug"))
        engine.events.watch(self._event)

    def _event(self, event: Event) -> None:
        self.look(event.name, event)
        self._take(event.name, json.dumps(event.as_dict()))
        if isinstance(event, RecipientSettled):
            self.outcome(event.outcome)

    def outcome(self, outcome: Outcome) -> None:
        """Look at an outcome: itself, its record, the lines of logs, its transcript."""
        self.look("outcome", outcome)
        self._take("outcome", json_line(outcome, at=0.0), log_line(outcome, at=0.0), outcome.text)
        if outcome.transcript is not None:
            self._take("transcript", "\n".join(outcome.transcript))

    def check(self) -> list[str]:
        """Return where a secret is in what was told; secrets may have come after the telling."""
        return list(search(self._texts, self._forms))

    def _take(self, kind: str, *texts: str) -> None:
        self.told[kind] = self.told.get(kind, 0) + len(texts)
        self._texts += [(kind, text) for text in texts]


def search(texts: Iterable[tuple[str, str]], secrets: dict[str, str]) -> Iterator[str]:
    """Yield where a secret is in texts that were told.

    Args:
        texts: Kind of each text, and the text.
        secrets: By their forms in lower case, what they are.
    """
    for kind, text in texts:
        lower = text.lower()
        for form, secret in secrets.items():
            if form in lower:
                at = lower.index(form)
                yield f"{secret} as {form!r} in {kind}: {text[max(0, at - 200) : at + 200]!r}"


def forms(secret: bytes) -> set[str]:
    """Return what a secret may look like, in lower case."""
    found = {secret.decode("utf-8", "backslashreplace"), secret.hex(), quote(secret, safe="")}
    found |= {repr(secret)[2:-1], json.dumps(secret.decode("latin-1"))[1:-1]}
    found.add(json.dumps(secret.decode("utf-8", "replace"))[1:-1])
    # As `Leaks.file` reads it.
    found.add(secret.decode("latin-1"))
    found.add(binascii.b2a_qp(secret).decode())
    for before in range(3):
        # Within something else, its first and last characters depend on what is around it.
        whole = (len(secret) + before) // 3 * 3 - before
        for encode in (b64encode, urlsafe_b64encode):
            text = encode(b"\0" * before + secret[:whole]).decode()
            found.add(text[(before * 8 + 5) // 6 :])
    return {text.lower() for text in found if len(text) >= 6}


@pytest.fixture
def leaks(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Leaks]:
    """Find out at the end of a test whether a secret was told."""
    caplog.set_level("DEBUG")
    leaks = Leaks()
    yield leaks
    for record in caplog.get_records("call"):
        leaks.look("logging", record.getMessage(), caplog.handler.format(record))
    leaks.look("standard output and error", *capfd.readouterr())
    assert leaks.check() == []
