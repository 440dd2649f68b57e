"""Which TCP port to connect to.  Called when options are made and for each connection; no waiting."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Final

from engine.errors import ConfigError
from engine.showing import show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.net.options import ConnectOptions
    from engine.route import Candidate

# Not int(): it takes "+25", " 25" and "2_5".  A leading zero is refused, because half the world
# reads 031 as 25.
_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,4}")


def resolve_port(port: int | str) -> int:
    """Return the number of a TCP port.

    Args:
        port: A number from 1 to 65535, the same in decimal digits, or the name of a TCP service
            that this machine knows (`smtp`, `submission`).

    Raises:
        ValueError: None of these; the text says what is allowed.
    """
    number = port if isinstance(port, int) else _number_of(port)
    if not 1 <= number <= 65535:
        raise ValueError(
            f"port {port!r}: neither a number from 1 to 65535"
            " nor the name of a TCP service known on this machine"
        )
    return number


def refuse_unknown_services(ports: Mapping[str, object]) -> None:
    """Refuse settings that name a service which this machine does not know.

    Args:
        ports: Where each is set, and what is; what is no text is passed over.

    Raises:
        ConfigError: A problem for each of them.
    """
    problems = []
    for place, port in ports.items():
        try:
            if isinstance(port, str):
                resolve_port(port)
        except ValueError:
            allowed = "a number from 1 to 65535 or a TCP service that this host knows"
            problems.append(f"{place}: found {show(port)}; allowed {allowed}")
    if problems:
        raise ConfigError(*problems)


def port_for(candidate: Candidate, options: ConnectOptions) -> int | None:
    """Return the port to reach a candidate at: its own where the route fixed one.

    `None` for a Unix socket, which has none.

    Raises:
        ValueError: As for `resolve_port`.
    """
    if candidate.address is None:
        return None
    return resolve_port(options.port if candidate.port is None else candidate.port)


def _number_of(port: str) -> int:
    if _DECIMAL.fullmatch(port):
        return int(port)
    try:
        return socket.getservbyname(port, "tcp")
    except (OSError, ValueError):  # unknown, or not even something that can be asked for
        return 0
