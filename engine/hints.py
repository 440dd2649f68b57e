"""What is learned about hosts and domains and may be lost at any time: the protocol.  Knows no I/O.

Whoever learns something that saves work the next time (an EHLO, broken TLS, a policy) keeps it here
and asks before doing the work again.  `engine.queue.hints` has the memories that satisfy it.
"""

from __future__ import annotations

from typing import Protocol


class Hints(Protocol):
    """A bounded, expiring memory of octets by kind and key.

    All methods are quick, belong to the thread that runs Trio and never raise because of where the
    hints are kept.
    """

    def get(self, kind: str, key: str) -> bytes | None:
        """Return the value, or `None` when there is none, it expired or it was lost."""
        ...

    def put(self, kind: str, key: str, value: bytes, *, seconds: float) -> None:
        """Keep a value in place of the one before, as long as there is room.

        What is too large to keep is not kept, and the value before it is forgotten: it is outdated.

        Args:
            kind: What sort of hint it is, of 64 characters or fewer.
            key: What it is about, of 512 characters or fewer.
            value: 64 KiB or less.
            seconds: For how long it holds, a year at most; 0 or less is `forget`.
        """
        ...

    def forget(self, kind: str, key: str) -> None:
        """Drop the value; no error where there is none."""
        ...
