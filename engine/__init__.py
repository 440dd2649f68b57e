"""Outbound mail delivery on Trio: every recipient gets an honest answer.

The public names; each is imported when it is first used, so that `python -m engine --help` need
not wait for Trio.  What is not listed here is not promised to stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine import errors as errors
    from engine.callout import Verification as Verification
    from engine.content import from_binary as from_binary
    from engine.content import from_file as from_file
    from engine.content import from_octets as from_octets
    from engine.content import from_text as from_text
    from engine.email_message import message_from_email as message_from_email
    from engine.engine import Engine as Engine
    from engine.message import Content as Content
    from engine.message import Message as Message
    from engine.message import Recipient as Recipient
    from engine.outcome import Cause as Cause
    from engine.outcome import Features as Features
    from engine.outcome import Outcome as Outcome
    from engine.outcome import Peer as Peer
    from engine.outcome import Scope as Scope
    from engine.outcome import Status as Status
    from engine.outcome import Timings as Timings
    from engine.outcome import Tried as Tried
    from engine.paths import PathRule as PathRule
    from engine.paths import SettingsTable as SettingsTable
    from engine.queue.decision import Policy as Policy
    from engine.queue.retry import RetryRules as RetryRules
    from engine.queue.retry import read_rules as read_rules
    from engine.queue.sqlite import open_store as open_store
    from engine.queue.submission import Submission as Submission
    from engine.report import events as events
    from engine.report.log import LogWriter as LogWriter
    from engine.report.statistics import Statistics as Statistics
    from engine.settings import Settings as Settings
    from engine.single import open_session as open_session
    from engine.smtp.stages import Stage as Stage
    from engine.stored import QueueOptions as QueueOptions

    __version__: str

#: Where each public name is defined.
_HOMES: Final = {
    "Engine": "engine.engine",
    "Message": "engine.message",
    "Recipient": "engine.message",
    "Content": "engine.message",
    "message_from_email": "engine.email_message",
    "Outcome": "engine.outcome",
    "Status": "engine.outcome",
    "Scope": "engine.outcome",
    "Cause": "engine.outcome",
    "Features": "engine.outcome",
    "Peer": "engine.outcome",
    "Timings": "engine.outcome",
    "Tried": "engine.outcome",
    "Stage": "engine.smtp.stages",
    "Settings": "engine.settings",
    "SettingsTable": "engine.paths",
    "PathRule": "engine.paths",
    "open_session": "engine.single",
    "open_store": "engine.queue.sqlite",
    "QueueOptions": "engine.stored",
    "Policy": "engine.queue.decision",
    "RetryRules": "engine.queue.retry",
    "read_rules": "engine.queue.retry",
    "Submission": "engine.queue.submission",
    "from_binary": "engine.content",
    "from_octets": "engine.content",
    "from_text": "engine.content",
    "from_file": "engine.content",
    "Statistics": "engine.report.statistics",
    "Verification": "engine.callout",
    "LogWriter": "engine.report.log",
}
#: Modules whose names are public, too.
_MODULES: Final = {"errors": "engine.errors", "events": "engine.report.events"}

__all__ = [  # noqa: PLE0604 - the names come from the tables above
    *_HOMES,
    *_MODULES,
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    from importlib import import_module, metadata

    value: object
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    elif name == "__version__":
        value = metadata.version("delivery-engine")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Found at once from now on.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
