"""What is remembered of a host between connections, kept in the hints; losing it costs only speed.

Asked when a session with the host begins, told when something was learned.  Keyed by address and
port: what stands behind a name may be many machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.units import DAYS

if TYPE_CHECKING:
    from engine.hints import Hints
    from engine.outcome import Peer

#: How long a host is believed to be as it was.
_SECONDS: Final = 7.0 * DAYS


class HostMemory:
    """The memory of one host."""

    __slots__ = ("_hints", "_key")

    def __init__(self, hints: Hints, peer: Peer) -> None:
        self._hints = hints
        self._key = peer.host if peer.address is None else f"{peer.address}:{peer.port}"

    @property
    def takes_streams(self) -> bool | None:
        """Whether it takes several transactions in flight; `None`: that was never tried."""
        known = self._hints.get("stream", self._key)
        return None if known is None else known == b"yes"

    def note_stream(self, *, is_taken: bool) -> None:
        """Take note of whether it took several transactions in flight."""
        if self.takes_streams is not is_taken:
            value = b"yes" if is_taken else b"no"
            self._hints.put("stream", self._key, value, seconds=_SECONDS)

    @property
    def is_bad_at_chunking(self) -> bool:
        """Whether it offered CHUNKING and then mishandled a chunk."""
        return self._hints.get("no-chunking", self._key) is not None

    def note_bad_chunking(self) -> None:
        """Take note that it mishandled a chunk: it gets DATA from now on."""
        self._hints.put("no-chunking", self._key, b"", seconds=_SECONDS)
