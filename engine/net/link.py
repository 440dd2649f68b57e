"""The TCP connection beneath a stream, for those who want to know how it fares.

The connector makes it and hands it out with the connection; nothing that TLS or a proxy adds above
changes it.  It does not own the socket, and learns nothing more once that is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.net.facts import LinkFacts
from engine.net.tcp_info import read_tcp_info

if TYPE_CHECKING:
    import socket

    from engine.net.fastopen_memory import FastOpenMemory
    from engine.outcome import FastOpen, Peer


class Link:
    """One TCP connection that the peer has answered.

    Attributes:
        fast_open: What TCP Fast Open did.
    """

    __slots__ = ("_memory", "_peer", "_socket", "fast_open")

    def __init__(
        self, sock: socket.socket, peer: Peer, fast_open: FastOpen, memory: FastOpenMemory
    ) -> None:
        self.fast_open = fast_open
        self._socket = sock
        self._peer = peer
        self._memory = memory

    def observe(self) -> LinkFacts:
        """Ask the kernel how the connection fares; one system call."""
        info = read_tcp_info(self._socket)
        return LinkFacts(self.fast_open, (info.rtt or None) if info is not None else None)

    def note_silence(self) -> None:
        """Take notice that nothing was heard over the connection, if the kernel agrees.

        Where a cookie went out, a box in between may have been at a loss with what the peer sent
        before the handshake was complete; the next connection goes without Fast Open.
        """
        if self.fast_open not in {"used", "used-data"}:
            return
        info = read_tcp_info(self._socket)
        if info is None or not info.received:
            self._memory.blame(self._peer, "nothing was heard after the handshake")
