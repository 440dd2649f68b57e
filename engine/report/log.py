"""Make log lines of outcomes and events.  Knows no I/O: who makes a `LogWriter` says where lines go.

A recipient's line is `time key=value ... (text)`, with every key always there and `-` for what is
absent.  A value with a space, a quote or a control character stands in double quotes, with
backslash escapes.  The text in parentheses comes last and may hold anything printable, so nothing
in it can be taken for a key by a reader that stops at ` (`.  No raw control character is ever in a
line, whatever a peer or a submitter says.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Literal, get_args

from engine.outcome import Status
from engine.report.events import ConnectionFailed, HostDeferred, RecipientSettled, SecurityAlert
from engine.smtp.reply import show
from engine.units import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.outcome import Features, Outcome, Peer
    from engine.report.events import Event

Form = Literal["text", "json", "off"]
Level = Literal["info", "debug"]

#: A reply may have 64 KiB; a line of the log need not.
MAX_TEXT: Final = 1000
_ABSENT: Final = "-"
# RFC 3463 §3.1: x.0.0 is "other undefined status", all that a status alone can say.
_DEFAULT_ENHANCED: Final = {
    Status.DELIVERED: "2.0.0",
    Status.DEFERRED: "4.0.0",
    Status.FAILED: "5.0.0",
    Status.UNKNOWN: "4.0.0",
}
# ASCII only: that escapes control characters of every kind.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True)


def log_line(outcome: Outcome, *, at: float) -> str:
    """Return one recipient's line for one attempt, without a line end.

    Args:
        outcome: What became of the recipient.
        at: When it was settled, seconds since the epoch.
    """
    peer, timings = outcome.peer, outcome.timings
    connection = peer.connection if peer is not None else None
    transaction = outcome.transaction
    reply = outcome.reply if outcome.status is Status.DELIVERED else None
    return (
        f"{timestamp(at)} msg={_value(outcome.message)} to={_path(outcome.recipient)}"
        f" relay={_relay(peer)} source={_value(outcome.source)}"
        f" conn={_ABSENT if connection is None else connection}"
        f" txn={_ABSENT if transaction is None else transaction}"
        f" tls={_tls(outcome.features)} tfo={outcome.features.fast_open}"
        f" delay={timings.total:.3f}"
        f" delays={timings.route:.3f}/{timings.connect + timings.tls:.3f}"
        f"/{timings.hello:.3f}/{timings.transaction:.3f}"
        f" dsn={outcome.enhanced or _DEFAULT_ENHANCED[outcome.status]}"
        f" status={outcome.status.value}"
        f" scope={_ABSENT if outcome.scope is None else outcome.scope.value}"
        f" stage={outcome.stage.value} cause={outcome.cause.value}"
        f" ({_free_text(outcome.text if reply is None else reply.text)})"
    )


def json_line(record: Outcome | Event, *, at: float) -> str:
    """Return an outcome or an event as one JSON object, without a line end.

    Its keys are those of `as_dict`, and `time` in the form of RFC 3339 §5.6.

    Args:
        record: What to write.
        at: When it happened, seconds since the epoch.
    """
    facts = {"time": 0.0} | record.as_dict()
    facts["time"] = timestamp(at)
    return _ENCODER.encode(facts)


class LogWriter:
    """Writes events as lines; an instance is a watcher for `EventStream.watch`.

    Recipients' outcomes are always written, and so are failed connections, hosts given up and
    security alerts, as warnings; every other event only at level `debug`.
    """

    __slots__ = ("_form", "_level", "_write")

    def __init__(
        self, write: Callable[[str], object], form: Form = "text", level: Level = "info"
    ) -> None:
        """Decide where lines go and what they look like.

        Args:
            write: Called with one whole line and its line end; it must not block for long.
            form: `text`, `json`, or `off`: nothing is written.
            level: `info` or `debug`.

        Raises:
            ValueError: No such form or level.
        """
        if form not in get_args(Form):
            raise ValueError(f"log form {form!r}: allowed are text, json and off")
        if level not in get_args(Level):
            raise ValueError(f"log level {level!r}: allowed are info and debug")
        self._write = write
        self._form = form
        self._level = level

    def __call__(self, event: Event) -> None:
        """Write the event, if this log is to have it."""
        if self._form == "off":
            return
        level = _level(event)
        if level == "debug" and self._level != "debug":
            return
        if self._form == "json":
            line = json_line(event, at=event.time)
        elif isinstance(event, RecipientSettled):
            line = log_line(event.outcome, at=event.time)
        else:
            line = _event_line(event, level)
        self._write(line + "\n")


def _level(event: Event) -> Literal["info", "warning", "debug"]:
    match event:
        case RecipientSettled():
            return "info"
        case ConnectionFailed() | HostDeferred() | SecurityAlert():
            return "warning"
        case _:
            return "debug"


def _event_line(event: Event, level: str) -> str:
    facts = event.as_dict()
    del facts["time"]
    text = facts.pop("text", None)
    words = [timestamp(event.time), f"level={level}"]
    words += (f"{key}={_any_value(value)}" for key, value in facts.items())
    if text is not None:
        words.append(f"({_free_text(text)})")
    return " ".join(words)


def _relay(peer: Peer | None) -> str:
    if peer is None:
        return _ABSENT
    if peer.address is None:
        return _value(peer.host)
    return _value(f"{peer.host}[{peer.address}]:{peer.port}")


def _path(recipient: str) -> str:
    # Submitters may write the angle brackets themselves.
    return _value(recipient if recipient[:1] == "<" else f"<{recipient}>")


def _tls(features: Features) -> str:
    tls = features.tls
    return _value(f"{tls.version}/{tls.cipher}/{tls.verified}" if tls is not None else None)


def _any_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return _value(",".join(value))
    return _value(None if value is None else str(value))


def _value(text: str | None) -> str:
    if text is None:
        return _ABSENT
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "…"
    if text.isprintable() and " " not in text and '"' not in text and text not in ("", _ABSENT):
        return text
    return '"' + _printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _free_text(text: str) -> str:
    return _printable(text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…")


def _printable(text: str) -> str:
    return text if text.isprintable() else show(text.encode("utf-8", "backslashreplace"))
