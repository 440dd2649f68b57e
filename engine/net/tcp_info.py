"""What the kernel knows about a TCP connection: TCP_INFO of Linux, read and taken apart.

Used by whoever connects and by `engine.net.link`.  Where it cannot be had, or is not whole, there
is nothing: no caller depends on it.
"""

from __future__ import annotations

import socket
import struct
import sys
from enum import IntEnum
from typing import Final, NamedTuple

# From <linux/tcp.h>: octets for state, options and bit fields, then counters of 32 bits and, behind
# the segments sent again, of 64.
_INFO: Final = struct.Struct("=B4xBxB16xI40xI28xI24xQ")
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)

#: TCPI_OPT_SYN_DATA: the SYN-ACK acknowledged the data that rode in the SYN.
_SYN_DATA: Final = 32


class TcpState(IntEnum):
    """The states that matter here; their numbers are those of <net/tcp_states.h>."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    CLOSE = 7


class SynFailure(IntEnum):
    """Why Fast Open came to nothing, `enum tcp_fastopen_client_fail`; since Linux 5.5."""

    #: Nothing to tell, or a kernel that does not tell.
    UNKNOWN = 0
    #: There was no cookie yet, so the SYN asked for one.
    NO_COOKIE = 1
    #: The SYN arrived, its data was not taken.
    DATA_NOT_TAKEN = 2
    #: The SYN with the data got no answer, a repeated one without did.
    SYN_REPEATED = 3


class TcpInfo(NamedTuple):
    """A connection at one moment.

    Attributes:
        state: A `TcpState`, or another number of the kernel's.
        is_syn_data_acked: Whether the SYN-ACK acknowledged data that rode in the SYN.
        syn_failure: A `SynFailure`.
        unacked: Segments that are under way; until the SYN-ACK comes an empty Fast Open with a
            cookie counts as two.
        rtt: The smoothed round-trip time in seconds, 0.0 where there is none yet.
        repeated: Segments sent again since the beginning.
        received: Octets that came from the peer; since Linux 4.1.
    """

    state: int
    is_syn_data_acked: bool
    syn_failure: int
    unacked: int
    rtt: float
    repeated: int
    received: int

    @property
    def is_answered(self) -> bool:
        """Whether the peer has answered the SYN and the connection was not aborted since."""
        return self.state not in _UNANSWERED


_UNANSWERED: Final = frozenset({0, TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.CLOSE})


def parse_tcp_info(octets: bytes) -> TcpInfo | None:
    """Take apart what `getsockopt` returned; `None` when it is too short to be whole."""
    if len(octets) < _INFO.size:
        return None
    state, options, bits, unacked, rtt, repeated, received = _INFO.unpack_from(octets)
    # The order of bit fields in an octet goes with the order of octets.
    failure = bits >> 1 if sys.byteorder == "little" else bits >> 5
    is_acked = bool(options & _SYN_DATA)
    return TcpInfo(state, is_acked, failure & 3, unacked, rtt / 1e6, repeated, received)


def read_tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Ask the kernel; `None` where it does not say: another system, no TCP, a closed socket."""
    if _TCP_INFO is None:
        return None
    try:
        return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO.size))
    except OSError:
        return None
