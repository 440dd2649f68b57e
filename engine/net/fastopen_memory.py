"""Which addresses TCP Fast Open has had trouble with, so that it is left out there for a day.

RFC 7413 §4.1.3 wants a client to remember failures.
Asked by `engine.net.dial` before each connection and told afterwards.  It is kept in the hints:
losing it costs a second the next time, and nothing else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.hints import Hints
    from engine.outcome import Peer

_KIND: Final = "fast-open"
_SECONDS: Final = 86_400.0

_log = logging.getLogger("engine.net")


class FastOpenMemory:
    """The memory of one connector; without hints it forgets everything at once."""

    __slots__ = ("_hints",)

    def __init__(self, hints: Hints | None = None) -> None:
        self._hints = hints

    def avoids(self, address: str) -> bool:
        """Whether Fast Open is to be left out towards an IP address."""
        return self._hints is not None and self._hints.get(_KIND, address) is not None

    def blame(self, peer: Peer, what: str) -> None:
        """Leave Fast Open out towards a peer's address for a day, and say so in the log.

        Args:
            peer: Whom it happened with.
            what: What happened, for a person.
        """
        if self._hints is None or peer.address is None:
            _log.info("TCP Fast Open with %s: %s", peer, what)
            return
        self._hints.put(_KIND, peer.address, what.encode(), seconds=_SECONDS)
        _log.info("TCP Fast Open with %s: %s; left out there for a day", peer, what)
