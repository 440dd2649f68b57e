"""What a connection is made with, and the plan of its socket options.  Pure; the connector applies it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.net.interface import choose_interface
from engine.net.port import resolve_port

if TYPE_CHECKING:
    from typing import TypeAlias

#: Arguments of `setsockopt`: level, option, value.
SocketOption: TypeAlias = "tuple[int, int, int]"

#: IP_BIND_ADDRESS_NO_PORT of Linux.  Binding to an address takes a port at once, and so at most one
#: connection per port whatever the peer; with this the kernel waits for connect() and picks a port
#: that only has to be free towards this peer.  It is one option for both families.
BIND_OPTIONS: Final[tuple[SocketOption, ...]] = ((socket.IPPROTO_IP, 24, 1),)


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
        keepalive: Whether the kernel probes a silent peer (RFC 9293 §3.8.4).

    Raises:
        ValueError: A value is out of range; the text says which and what is allowed.
    """

    port: int | str = 25
    interface: tuple[str, ...] = ()
    interface_strict: bool = False
    connect_timeout: float = 300.0
    keepalive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "port", resolve_port(self.port))
        choose_interface(self.interface, is_ipv6=False)
        if not self.connect_timeout > 0:  # said this way round, it also refuses NaN
            raise ValueError(
                f"connect_timeout {self.connect_timeout!r}: allowed are seconds above 0"
            )


def socket_options(
    options: ConnectOptions,  # noqa: ARG001 - DSCP will be read from it
    family: socket.AddressFamily,  # noqa: ARG001 - DSCP is another option for each family
) -> tuple[SocketOption, ...]:
    """Return what is set before connect, so that it holds for the SYN too, in order."""
    return (
        # We write whole windows of commands; Nagle's algorithm would only hold the last one back
        # until the peer's delayed acknowledgment comes (RFC 9293 §3.7.4).
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    )


def options_after_connect(options: ConnectOptions) -> tuple[SocketOption, ...]:
    """Return what is set once the connection is up, in order."""
    return ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),) if options.keepalive else ()
