"""What we are called: the name of this host, and our address towards a peer before we are connected.

For hellos.  Asks the system and its routing table; nothing is sent, and no name is looked up.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Final

from engine.net.errors import ConnectFailed
from engine.net.interface import address_family, interface_for

if TYPE_CHECKING:
    from engine.net.options import ConnectOptions
    from engine.outcome import Peer

# RFC 5321 §4.1.2; the last label is no number, or it would be an address.
_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_QUALIFIED: Final = re.compile(
    rf"(?!localhost\.|.*\.localdomain\Z)(?:{_LABEL}\.)+(?![0-9]+\Z){_LABEL}", re.ASCII
)


def own_host_name() -> str | None:
    """Return the name of this host; `None` where it is not fully qualified (RFC 5321 §2.3.5)."""
    name = socket.gethostname()
    return name if _QUALIFIED.fullmatch(name) else None


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
