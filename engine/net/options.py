"""What a connection is made with, and the plan of its socket options.  Pure; the connector applies it."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.net.interface import choose_interface
from engine.net.port import resolve_port

if TYPE_CHECKING:
    from typing import TypeAlias

    from engine.choices import FastOpenMode
    from engine.setting_proxy import Proxy

#: Arguments of `setsockopt`: level, option, value.
SocketOption: TypeAlias = "tuple[int, int, int]"

#: IP_BIND_ADDRESS_NO_PORT of Linux.  Binding to an address takes a port at once, and so at most one
#: connection per port whatever the peer; with this the kernel waits for connect() and picks a port
#: that only has to be free towards this peer.  It is one option for both families.
BIND_OPTIONS: Final[tuple[SocketOption, ...]] = ((socket.IPPROTO_IP, 24, 1),)

#: The most that an option can hold: a C int.  What is within it and still too much for the kernel
#: is refused by the kernel, and that is a log line.
_MOST: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How to connect; the same for every candidate of a path.

    Attributes:
        port: TCP port for candidates without one.  A service name is looked up once, here, for
            the look-up reads a file; afterwards this is a number.
        interface: Our addresses to connect from; the first of the candidate's family is bound.
            Empty: the operating system chooses.
        interface_strict: Whether a candidate is skipped when `interface` is not empty but has no
            address of its family; otherwise the operating system chooses.
        connect_timeout: Seconds for everything up to TLS: connection and proxy handshake.
        dscp: The octet of the IP header with the traffic class in its six high bits (RFC 2474 §3);
            `None`: the system's.  On TCP sockets Linux keeps the two low bits, which are those of
            ECN, for itself.
        keepalive: Whether the kernel probes a silent peer (RFC 9293 §3.8.4).
        keepalive_idle: Seconds of silence before the first probe; `None`: the system's.  This and
            the interval are rounded up to whole seconds, for the kernel counts in those.
        keepalive_interval: Seconds between two probes; `None`: the system's.
        keepalive_count: Probes without an answer that end the connection; `None`: the system's.
        user_timeout: Seconds that sent octets may stay unacknowledged before the kernel ends the
            connection (RFC 5482 §1), exact to the millisecond; `None`: the system's.  Where it is
            set, Linux also goes by it, not by `keepalive_count`, to give a silent peer up.
        fast_open: What TCP Fast Open may do (RFC 7413 §3): `off`; `connect`, the SYN carries a
            cookie and nothing else; `commands`, it may carry early data, too.
        proxies: What connections go through, whichever can be reached; empty: nothing.

    Raises:
        ValueError: A value is out of range; the text says which and what is allowed.
    """

    port: int | str = 25
    interface: tuple[str, ...] = ()
    interface_strict: bool = False
    connect_timeout: float = 300.0
    dscp: int | None = None
    keepalive: bool = True
    keepalive_idle: float | None = None
    keepalive_interval: float | None = None
    keepalive_count: int | None = None
    user_timeout: float | None = None
    fast_open: FastOpenMode = "connect"
    proxies: tuple[Proxy, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "port", resolve_port(self.port))
        choose_interface(self.interface, is_ipv6=False)
        if not self.connect_timeout > 0:  # said this way round, it also refuses NaN
            raise ValueError(
                f"connect_timeout {self.connect_timeout!r}: allowed are seconds above 0"
            )
        if self.dscp is not None and not 0 <= self.dscp <= 0xFF:
            raise ValueError(f"dscp {self.dscp!r}: allowed is an octet, from 0 to 255")
        for name, seconds in (
            ("keepalive_idle", self.keepalive_idle),
            ("keepalive_interval", self.keepalive_interval),
            ("user_timeout", self.user_timeout),
        ):
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{name} {seconds!r}: allowed are finite seconds above 0")
        if self.keepalive_count is not None and self.keepalive_count < 1:
            raise ValueError(f"keepalive_count {self.keepalive_count!r}: allowed are 1 and more")


def socket_options(
    options: ConnectOptions, family: socket.AddressFamily
) -> tuple[SocketOption, ...]:
    """Return what is set before connect, so that it holds for the SYN too, in order."""
    return (
        # We write whole windows of commands; Nagle's algorithm would only hold the last one back
        # until the peer's delayed acknowledgment comes (RFC 9293 §3.7.4).
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        *_traffic_class(options.dscp, family),
    )


def options_after_connect(options: ConnectOptions) -> tuple[SocketOption, ...]:
    """Return what is set once the connection is up, in order."""
    # TCP_USER_TIMEOUT is here because before connect it would also bound the handshake, which
    # `connect_timeout` does.
    return (*_keepalive(options), *_user_timeout(options.user_timeout))


def _traffic_class(octet: int | None, family: socket.AddressFamily) -> tuple[SocketOption, ...]:
    if octet is None:
        return ()
    tos = (socket.IPPROTO_IP, socket.IP_TOS, octet)
    if family == socket.AF_INET6:
        # An IPv6 socket speaks IPv4 to a peer with a mapped address (RFC 4291 §2.5.5.2).
        return ((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, octet), tos)
    return (tos,)


def _keepalive(options: ConnectOptions) -> tuple[SocketOption, ...]:
    if not options.keepalive:
        return ()
    knobs = (
        (socket.TCP_KEEPIDLE, options.keepalive_idle),
        (socket.TCP_KEEPINTVL, options.keepalive_interval),
        (socket.TCP_KEEPCNT, options.keepalive_count),
    )
    return (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *(
            (socket.IPPROTO_TCP, name, min(math.ceil(value), _MOST))
            for name, value in knobs
            if value is not None
        ),
    )


def _user_timeout(seconds: float | None) -> tuple[SocketOption, ...]:
    if seconds is None:
        return ()
    # 0 would mean the system's own; and seconds first, for a float times 1000 may be infinite.
    milliseconds = max(1, round(min(seconds, _MOST) * 1000))
    return ((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(milliseconds, _MOST)),)
