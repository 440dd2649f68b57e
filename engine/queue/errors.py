"""What can go wrong with a store; every error says what is lost, which is nothing that was accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import StoreError, SubmitError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ContentsDamagedError",
    "DuplicateIdError",
    "LeaseLostError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreReadOnlyError",
    "StoreUnusableError",
    "StoreVersionError",
]


class StoreUnusableError(StoreError):
    """The store cannot be opened: no such folder, no permission, or not a store at all."""


class StoreVersionError(StoreUnusableError):
    """The store was written by a later release, and is left as it is."""


class StoreDamagedError(StoreError):
    """Octets on disk are not those that were written; what can still be read can be exported."""


class ContentsDamagedError(StoreDamagedError):
    """The content of a message, or of several, cannot be read.

    Attributes:
        messages: The numbers of messages among which it is.
    """

    def __init__(self, messages: Sequence[int]) -> None:
        super().__init__(f"a content among those of the messages {list(messages)} is damaged")
        self.messages = tuple(messages)


class StoreFullError(StoreError):
    """There is no room on the disk, or only what is kept free for settling what is under way."""


class StoreReadOnlyError(StoreError):
    """The disk, the file or its folder must not be written to; reading still works."""


class StoreBusyError(StoreError):
    """Another process held the store for longer than we wait."""


class StoreClosedError(StoreError):
    """The store is closed, or closed before the operation's turn came."""


class LeaseLostError(StoreError):
    """The lease ran out and its recipients were given back: they must not be delivered under it."""


class DuplicateIdError(SubmitError, StoreError):
    """The id stands for another message already; the first one is kept, this one was not taken."""
