"""Read an outcome back from its record, the JSON object of `Outcome.as_dict`.  Knows no I/O.

For whoever kept a record and has to tell somebody about it later, as after a crash.  Records may
have been cut short when they were kept, and may be of another release: what is missing or unknown is
left out.  Not read back: who was tried before, TLS, timings and transcripts; records do not
say whether a host offered DSN.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from engine.outcome import Cause, Features, Outcome, Peer, Scope, Status
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

_Word = TypeVar("_Word", bound=Enum)


def read_record(record: Mapping[str, Any]) -> Outcome:
    """Return the outcome that a record was made of.

    Raises:
        ValueError: It does not name a message, a recipient and a status.
    """
    status = _word(Status, record.get("status"))
    message, recipient = record.get("message"), record.get("recipient")
    if status is None or not isinstance(message, str) or not isinstance(recipient, str):
        raise ValueError(
            "no record of an outcome: it must have a message, a recipient and a status, one of "
            f"{', '.join(Status)}"
        )
    return Outcome(
        message=message,
        recipient=recipient,
        status=status,
        stage=_word(Stage, record.get("stage")) or Stage.ROUTE,
        cause=_word(Cause, record.get("cause")) or Cause.INTERNAL,
        text=_text(record.get("text")) or "",
        scope=_word(Scope, record.get("scope")),
        reply=_reply(record.get("reply")),
        enhanced=_enhanced(record.get("enhanced")),
        peer=_peer(record),
        source=_text(record.get("source")),
        transaction=_number(record.get("transaction")),
        features=_features(record.get("features")),
    )


def _word(words: type[_Word], value: object) -> _Word | None:
    return next((word for word in words if word.value == value), None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _reply(value: object) -> Reply | None:
    if not isinstance(value, Mapping):
        return None
    code, lines = _number(value.get("code")), value.get("lines")
    if code is None or not 200 <= code <= 599 or not isinstance(lines, list):
        return None
    # Octets that were no UTF-8 stay the escapes that the record shows them as.
    texts = [line.encode("utf-8", "backslashreplace") for line in lines if isinstance(line, str)]
    return Reply(code, tuple(texts) or (b"",))


def _enhanced(value: object) -> EnhancedStatusCode | None:
    try:
        return EnhancedStatusCode.parse(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _peer(record: Mapping[str, Any]) -> Peer | None:
    host = _text(record.get("host"))
    if host is None:
        return None
    return Peer(
        host,
        _text(record.get("address")),
        _number(record.get("port")),
        _text(record.get("local_address")),
        _number(record.get("connection")),
    )


def _features(value: object) -> Features:
    found: Mapping[str, object] = value if isinstance(value, Mapping) else {}
    return Features(
        pipelining=found.get("pipelining") is True,
        early_pipelining=found.get("early_pipelining") is True,
        chunking=found.get("chunking") is True,
        prdr=found.get("prdr") is True,
        lmtp=found.get("lmtp") is True,
        proxy=_text(found.get("proxy")),
        auth=_text(found.get("auth")),
    )
