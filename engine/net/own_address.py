"""Our address towards a peer, before there is a connection: for a hello that is said first.

Asks the routing table; nothing is sent.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from engine.net.errors import ConnectFailed
from engine.net.interface import address_family, interface_for

if TYPE_CHECKING:
    from engine.net.options import ConnectOptions
    from engine.outcome import Peer


def own_address_towards(peer: Peer, options: ConnectOptions) -> str | None:
    """Return the IP address that a connection to a peer would come from; `None`: nobody can tell.

    Args:
        peer: An IP address and a port.
        options: How it would be connected to, and not through a proxy.
    """
    assert peer.address is not None
    try:
        interface = interface_for(peer, options)
    except ConnectFailed:
        return None
    if interface is not None:
        return interface
    try:
        # Connecting a datagram socket sends nothing: the system looks up the route and the source.
        with socket.socket(address_family(peer.address), socket.SOCK_DGRAM) as sock:
            sock.connect((peer.address, peer.port or 25))
            return str(sock.getsockname()[0])
    except OSError:
        return None
