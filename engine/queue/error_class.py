"""The classes of errors that retry rules tell apart.  Knows no I/O.

What the reference client's retry rules can name, mapped from outcomes; `engine.queue.retry` looks
for the first rule whose class an outcome has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from engine.outcome import Cause, Scope, Status
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.outcome import Outcome
    from engine.smtp.reply import Reply

#: The classes with a plain name, and what each stands for.
CLASSES: Final = {
    "any": "whatever it is",
    "connect": "no connection was made",
    "refused": "the connection was refused",
    "unreachable": "there was no way to the host",
    "timeout": "something took too long",
    "connect_timeout": "connecting took too long",
    "lost": "the connection broke off, or what came was no SMTP",
    "dns": "the domain or a host could not be looked up",
    "tls": "TLS failed, or was not what it has to be",
    "auth": "authentication failed",
    "policy": "a policy of ours or of the domain's forbade it",
    "quota": "the mailbox is full",
    "unknown": "the content was sent and no reply to it came",
    "ours": "it was our own fault: our address, proxy, credentials or configuration, or a bug",
}
CLASSES_ALLOWED: Final = (
    f"{', '.join(CLASSES)}, or a reply as in rcpt_4xx, rcpt_45x or rcpt_452, "
    "with setup, mail, rcpt or data in front"
)
_REPLY_CLASS: Final = re.compile(r"(?:setup|mail|rcpt|data)_[45](?:\d\d|\dx|xx)", re.ASCII)

_OURS: Final = frozenset({Scope.LOCAL, Scope.SOURCE})
_CONNECTING: Final = frozenset({Stage.CONNECT, Stage.PROXY})
_GROUPS: Final = {
    Stage.MAIL: "mail",
    Stage.RCPT: "rcpt",
    Stage.DATA: "data",
    Stage.CONTENT: "data",
    Stage.FINAL: "data",
}
_BY_CAUSE: Final = {
    Cause.REFUSED: "refused",
    Cause.UNREACHABLE: "unreachable",
    Cause.TIMEOUT: "timeout",
    Cause.CLOSED: "lost",
    Cause.MALFORMED_REPLY: "lost",
    Cause.DNS: "dns",
    Cause.TLS: "tls",
    Cause.POLICY: "policy",
    Cause.EVENT: "policy",
    Cause.UNSUPPORTED: "policy",
}


def parse_class(text: object) -> str:
    """Read the name of a class.

    Raises:
        ValueError: There is none of this name; the text is `CLASSES_ALLOWED`.
    """
    if isinstance(text, str) and (text in CLASSES or _REPLY_CLASS.fullmatch(text)):
        return text
    raise ValueError(CLASSES_ALLOWED)


def is_ours(outcome: Outcome) -> bool:
    """Whether it was our own fault; mail must never be given up for that."""
    return outcome.scope in _OURS


def classes_of(outcome: Outcome) -> tuple[str, ...]:
    """Return the classes an outcome has, the most telling first; `any` is always the last."""
    return tuple(dict.fromkeys(_classes(outcome)))


def _classes(outcome: Outcome) -> Iterator[str]:
    if outcome.status is Status.UNKNOWN:
        yield "unknown"
    if is_ours(outcome):
        yield "ours"
    reply = outcome.reply
    if reply is not None and _is_full(outcome):
        yield "quota"
    if reply is not None:
        yield from _reply_classes(outcome.stage, reply)
    if outcome.stage in _CONNECTING and outcome.cause is Cause.TIMEOUT:
        yield "connect_timeout"
    if outcome.cause in _BY_CAUSE:
        yield _BY_CAUSE[outcome.cause]
    if outcome.stage is Stage.AUTH:
        yield "auth"
    if outcome.stage in (Stage.STARTTLS, Stage.TLS):
        yield "tls"
    if outcome.stage in _CONNECTING:
        yield "connect"
    yield "any"


def _reply_classes(stage: Stage, reply: Reply) -> Iterator[str]:
    group, code = _GROUPS.get(stage, "setup"), str(reply.code)
    yield from (f"{group}_{code}", f"{group}_{code[:2]}x", f"{group}_{code[0]}xx")


def _is_full(outcome: Outcome) -> bool:
    # RFC 3463 §3.3: X.2.2 is a full mailbox.  452 and 552 alone do not say whose storage is short.
    enhanced = outcome.enhanced
    return enhanced is not None and (enhanced.subject, enhanced.detail) == (2, 2)
