"""TCP Fast Open (RFC 7413 §3): what a SYN carries, and what became of it.  The decisions only.

`engine.net.dial` sends and waits; here is what to send, what a refusal to send means, and how the
kernel's counters are read afterwards.

Theory of operation.  Linux offers two ways.  `sendto(data, MSG_FASTOPEN)` sends the SYN at once,
with a cookie and the data where the kernel has a cookie for the address, else with a request for
one.  `TCP_FASTOPEN_CONNECT` makes `connect()` return at once and holds the SYN back until the first
write; a server that speaks first is then never heard, and a refusal shows at that write or later.
Only the first way is used, for both cases:

* The server speaks first: nothing is sent with the SYN.  With the cookie alone the server may send
  its greeting right behind its SYN-ACK, which saves one round trip.
* We speak first: our first octets are sent with it.  What does not fit, or finds no cookie, goes
  out once the connection stands, at the same time as it would without Fast Open.

A socket that has sent its SYN this way becomes writable with the SYN-ACK, not before.  So waiting
for it costs no time (nothing can be heard before the SYN-ACK either), and a peer that refuses or
stays silent fails the connection attempt, as it does without Fast Open.  No connection is handed
out that was not answered.

The kernel repeats a lost SYN without cookie and data, so such a connection comes about a second
late.  That is what `is_harmful` finds, and what is remembered of an address for a day.
"""

from __future__ import annotations

import errno
import socket
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from engine.net.tcp_info import SynFailure, TcpState

if TYPE_CHECKING:
    from engine.choices import FastOpenMode
    from engine.net.tcp_info import TcpInfo
    from engine.outcome import FastOpen

#: Flags of the `sendto` that sends the SYN, `None` where the system has no such thing.  A kernel
#: that overlooks MSG_FASTOPEN takes this for writing to nobody: an error, and no signal.
SYN_FLAGS: Final[int | None] = (
    socket.MSG_FASTOPEN | socket.MSG_NOSIGNAL if hasattr(socket, "MSG_FASTOPEN") else None
)

#: Nothing was sent, and an ordinary connect is as good as before.
_UNAVAILABLE: Final = frozenset(
    {
        errno.EOPNOTSUPP,  # net.ipv4.tcp_fastopen says no
        errno.EPIPE,  # the kernel overlooked the flag: no Fast Open before Linux 3.7, 3.16 for IPv6
        errno.ENOTCONN,  # the same in other words
        errno.EINVAL,  # what filters of system calls say
        errno.EPERM,
    }
)


class Step(Enum):
    """What follows after the SYN was to be sent with Fast Open."""

    #: It is on its way: wait for the answer.
    WAIT = auto()
    #: There is no Fast Open here: connect as ever.
    CONNECT = auto()
    #: The connection failed.
    FAIL = auto()


def syn_payload(mode: FastOpenMode, early_data: bytes, *, is_avoided: bool = False) -> bytes | None:
    """Return what the SYN is to carry; `None`: an ordinary one.

    Args:
        mode: The setting.
        early_data: What is said first once the connection stands; `b""` where the peer speaks
            first.  A SYN may reach a server twice, and with it what it carries (RFC 7413 §2.1), so
            only what does no harm then may ride in it.
        is_avoided: Whether the address has had trouble with Fast Open.
    """
    if SYN_FLAGS is None or mode == "off" or is_avoided:
        return None
    return early_data if mode == "commands" else b""


def next_step(number: int) -> Step:
    """Say what follows on the error number of `sendto`, 0 for none."""
    # EINPROGRESS also stands for "there is no cookie": nothing of the data was taken then.
    if number in (0, errno.EINPROGRESS, errno.EAGAIN):
        return Step.WAIT
    return Step.CONNECT if number in _UNAVAILABLE else Step.FAIL


def judge(info: TcpInfo | None, sent: int) -> FastOpen:
    """Say how far Fast Open got.

    Before the SYN-ACK came an empty SYN is judged by the segments under way, afterwards by the
    kernel's reason for failure.  Kernels before 5.5 give none: there the first judgement counts.
    That a cookie went out with an empty SYN is all that can be known: whether the server liked it
    shows in nothing but time.

    Args:
        info: The connection now, `None` where that is not known.
        sent: Octets that were given to the kernel for the SYN.

    Returns:
        `used-data` when the SYN-ACK acknowledged the data, `used` when a cookie went out alone,
        else `asked`.
    """
    if info is None:
        return "asked"
    if sent:
        return "used-data" if info.is_syn_data_acked else "asked"
    if info.state == TcpState.SYN_SENT:
        return "used" if info.unacked > 1 else "asked"
    return "asked" if info.syn_failure == SynFailure.NO_COOKIE else "used"


def is_harmful(info: TcpInfo) -> bool:
    """Whether a connection that has just been answered was held up by its Fast Open SYN.

    Any loss of that SYN counts.  An honest one costs the address a day without Fast Open; taking
    one by a middlebox for honest would cost each connection a second.  Data that was merely not
    taken costs nothing: the kernel sends it again at once.
    """
    return info.repeated > 0 and info.syn_failure != SynFailure.DATA_NOT_TAKEN
