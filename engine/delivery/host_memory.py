"""What is remembered of a host between connections, kept in the hints; losing it costs only speed.

Asked when a session with the host begins, told when something was learned.  Keyed by address and
port: what stands behind a name may be many machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.smtp.capabilities import Capabilities
from engine.smtp.reply import Reply
from engine.units import DAYS, HOURS

if TYPE_CHECKING:
    from engine.hints import Hints
    from engine.outcome import Peer

#: How long a host is believed to be as it was.
_SECONDS: Final = 7.0 * DAYS
#: How long mail goes in clear to a host whose TLS does not work.
_CLEAR_SECONDS: Final = 1.0 * HOURS
#: Octets of an EHLO reply beyond which it is not worth keeping.
_MOST_HELLO: Final = 4096


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

    def hello(self, *, has_tls: bool) -> Capabilities | None:
        """Return what it offered, if it takes commands before its greeting; over TLS or in clear."""
        octets = self._hints.get(_hello(has_tls=has_tls), self._key)
        if not octets:
            return None
        offered = Capabilities.parse(Reply(250, tuple(octets.split(b"\n"))))
        return offered if offered.pipeconnect and offered.pipelining else None

    def note_hello(self, reply: Reply, *, has_tls: bool) -> None:
        """Take note of its answer to EHLO; kept where it takes commands before its greeting."""
        octets, kind = b"\n".join(reply.lines), _hello(has_tls=has_tls)
        offered = Capabilities.parse(reply) if reply.is_positive else None
        if offered is None or not (offered.pipeconnect and offered.pipelining):
            self.forget_hello(has_tls=has_tls)
        elif len(octets) <= _MOST_HELLO:
            self._hints.put(kind, self._key, octets, seconds=_SECONDS)

    def forget_hello(self, *, has_tls: bool) -> None:
        """Forget what it offered: it did not do as expected."""
        kind = _hello(has_tls=has_tls)
        if self._hints.get(kind, self._key) is not None:
            self._hints.forget(kind, self._key)

    @property
    def has_broken_tls(self) -> bool:
        """Whether its TLS did not work lately."""
        return self._hints.get("no-tls", self._key) is not None

    def note_broken_tls(self) -> None:
        """Take note that its TLS does not work."""
        self._hints.put("no-tls", self._key, b"", seconds=_CLEAR_SECONDS)


def _hello(*, has_tls: bool) -> str:
    return "ehlo-tls" if has_tls else "ehlo"
