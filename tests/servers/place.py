"""Where a server runs: on this machine's loopback interface, or at one end of a long-distance link.

Used by the modules that start servers; `engine.testing.link.End` is a `Place` as it is.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path

HOST: Final = "127.0.0.1"


class Place(Protocol):
    """A place with an address, where commands run and sockets are opened."""

    @property
    def address(self) -> str:
        """The IPv4 address to listen on."""

    def command(self, *words: str | Path) -> list[str]:
        """The command line that runs a command there."""

    def make_socket(self, family: int, kind: int) -> socket.socket:
        """A socket that is there."""


@dataclass(frozen=True, slots=True)
class Loopback:
    """The loopback interface of this machine."""

    address: str = HOST

    def command(self, *words: str | Path) -> list[str]:
        """The command itself."""
        return list(map(str, words))

    def make_socket(self, family: int, kind: int) -> socket.socket:
        """Any socket."""
        return socket.socket(family, kind)


LOOPBACK: Final = Loopback()
