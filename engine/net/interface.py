"""Which of our addresses a connection comes from.  Called by options and connector; opens nothing."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from engine.net.errors import ConnectFailed
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.net.options import ConnectOptions
    from engine.outcome import Peer


def address_family(address: str) -> socket.AddressFamily:
    """Return the family of an IP address.

    Exactly what passes here can be given to `bind` and `connect` without waking the system's
    resolver, which would block: names, brackets and zones (`fe80::1%eth0`) do not pass.

    Raises:
        ValueError: Not an IP address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
    except (OSError, ValueError):
        raise ValueError(
            f"{address!r} is not an IP address; allowed are IPv4 and IPv6 addresses"
            " without brackets and zone"
        ) from None
    return family


def choose_interface(addresses: Sequence[str], is_ipv6: bool) -> str | None:
    """Return the first address of the peer's family, or `None` when there is none.

    Every item is looked at, also those behind the first match: a typing error should not wait
    for the day the list is reordered.

    Args:
        addresses: Our own IP addresses, in order of preference.
        is_ipv6: Whether the peer's address is of the IPv6 family.

    Raises:
        ValueError: An item is not an IP address; the text names it.
    """
    wanted = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    chosen = None
    for address in addresses:
        try:
            family = address_family(address)
        except ValueError as error:
            raise ValueError(f"interface: {error}") from None
        if chosen is None and family is wanted:
            chosen = address
    return chosen


def interface_for(peer: Peer, options: ConnectOptions) -> str | None:
    """Return our address to connect to a peer from; `None`: the system chooses.

    Raises:
        ConnectFailed: There is none of its family, and `interface_strict` says there must be.
    """
    if not options.interface:
        return None
    assert peer.address is not None
    is_ipv6 = address_family(peer.address) is socket.AF_INET6
    interface = choose_interface(options.interface, is_ipv6)
    if interface is None and options.interface_strict:
        wanted = "IPv6" if is_ipv6 else "IPv4"
        text = (
            f"connect to {peer}: no {wanted} address among interface {', '.join(options.interface)}"
        )
        raise ConnectFailed(Stage.CONNECT, Cause.CONFIG, Scope.SOURCE, text)
    return interface
