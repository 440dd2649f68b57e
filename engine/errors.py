"""The errors a user of the engine can get; what a server or the network may do is an Outcome, not an error.

Where an error has kinds of its own, their root is here: those of a store are in `engine.queue.errors`.
"""

from __future__ import annotations

from engine.smtp.errors import AddressSyntaxError, ContentError

__all__ = [
    "AddressSyntaxError",
    "ConfigError",
    "ContentError",
    "EngineClosedError",
    "EngineError",
    "EngineFailedError",
    "SessionRefusedError",
    "StoreError",
    "SubmitError",
]


class EngineError(Exception):
    """Root of every error the engine raises on purpose."""


class ConfigError(EngineError):
    """The configuration cannot be used; nothing was sent.

    Attributes:
        problems: One line a problem, each naming the place (file and line, or key path), what was
            found and what is allowed.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SubmitError(EngineError, ValueError):
    """A message was not taken: its envelope or content breaks a rule; the text says which."""


class EngineClosedError(EngineError):
    """The engine is draining or closed and takes no more messages."""


class EngineFailedError(EngineError):
    """The engine has ended by an error of its own, which is the `__cause__`."""


class SessionRefusedError(EngineError):
    """There is no session: no address, no connection, or a refused greeting or hello."""


class StoreError(EngineError):
    """Root of what a store raises; the operation has not happened."""
