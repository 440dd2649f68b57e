"""The wire between the command line and the running worker: octets in, heads and contents out.

Both ends of the control socket use it (`engine.worker.control_server`, `engine.worker.control_client`).
Knows no I/O.  Not here: what requests and answers hold (`engine.worker.control_values`).

What goes over the wire is a run of *heads*.  A head is a JSON object in UTF-8, and before it its
length in octets, as four octets, the first the most significant.  A head may be followed by contents:
as many octets as it says, as they are.  Each side begins with a greeting, `{"control": 1}`, whose
number is the version; who does not speak the other's version closes.  Then the client sends requests,
each with a number of its choice, without waiting for answers; the server sends an answer to each, with
its number, in any order.  What is cut short has not been asked.
"""

from __future__ import annotations

import json
from typing import Any, Final

#: The version of all this.
VERSION: Final = 1
#: Octets of one head: room for an envelope of 100,000 recipients.
MAX_HEAD_OCTETS: Final = 32 * 1024 * 1024
#: Octets of the greeting.
MAX_GREETING_OCTETS: Final = 4096
#: Contents of one request may have as many octets together, unless there is but one.
MAX_GROUP_OCTETS: Final = 4 * 1024 * 1024
#: A content with more is streamed, never held.
MAX_HELD_OCTETS: Final = 256 * 1024

_LENGTH_OCTETS: Final = 4


class WireError(ValueError):
    """The other end does not speak as agreed; the connection is of no use any more."""


class HeadBuffer:
    """Cuts what arrives into heads and contents."""

    def __init__(self, limit: int = MAX_HEAD_OCTETS) -> None:
        """Make an empty buffer.

        Args:
            limit: Octets of a head at most; it may be changed between heads.
        """
        self.limit = limit
        self._octets = bytearray()

    def feed(self, octets: bytes | bytearray) -> None:
        """Take the next octets."""
        self._octets += octets

    def next_head(self) -> bytes | None:
        """Return the octets of the next head, or `None` when more are needed.

        Raises:
            WireError: It has no octets, or more than are allowed.
        """
        if len(self._octets) < _LENGTH_OCTETS:
            return None
        length = int.from_bytes(self._octets[:_LENGTH_OCTETS])
        if not 0 < length <= self.limit:
            raise WireError(f"a head of {length} octets; allowed are 1 to {self.limit}")
        end = _LENGTH_OCTETS + length
        if len(self._octets) < end:
            return None
        head = bytes(self._octets[_LENGTH_OCTETS:end])
        del self._octets[:end]
        return head

    def take(self, most: int) -> bytes:
        """Return octets of a content: at most so many, as many as are there."""
        octets = bytes(self._octets[:most])
        del self._octets[:most]
        return octets

    @property
    def is_empty(self) -> bool:
        """Whether nothing has begun."""
        return not self._octets


def frame(head: bytes) -> bytes:
    """Return a head as it is sent.

    Raises:
        WireError: It is too large.
    """
    if len(head) > MAX_HEAD_OCTETS:
        raise WireError(f"a head of {len(head)} octets; allowed are 1 to {MAX_HEAD_OCTETS}")
    return len(head).to_bytes(_LENGTH_OCTETS) + head


def greeting() -> bytes:
    """Return what each side says first."""
    return frame(json.dumps({"control": VERSION}).encode())


def check_greeting(head: bytes) -> None:
    """Look at what the other side said first.

    Raises:
        WireError: It speaks another version, or something else altogether.
    """
    try:
        found: Any = json.loads(head)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("control"), int):
        raise WireError("what answers on the socket is no worker")
    if found["control"] != VERSION:
        raise WireError(
            f"the other end speaks version {found['control']} of the control socket; "
            f"allowed is {VERSION}: worker and command line must be of one release"
        )
