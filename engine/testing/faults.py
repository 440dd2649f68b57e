"""The faults a sink shows on demand: which address asks for which, and what each one does.

`engine.testing.sink_session` looks here for every MAIL, RCPT and content; acting on what it finds
is its own affair.  Knows no I/O.  The local part of a recipient says what goes wrong; what stands
behind a `+` makes it another address (`reject+2@example.test`):

======================= =====================================================================
`reject@`               550 5.1.1
`defer@`                451 4.2.0
`greylist@`             451 4.7.1 the first time for this address, then accepted
`full@`                 452 4.2.2
`toomany@`              452 4.5.3
`421@`                  421 4.3.2, and the connection is closed
`drop@`                 the connection is closed without a reply
`slow@` `slow-N@`       accepted after 1 or N seconds (`slow-0.5@`; at most an hour)
`tarpit@`               accepted, one octet of the reply a second
`stall@`                no reply, now or to anything that follows
`garbage@`              a line that is no SMTP reply
`data-reject@`          accepted, but 554 5.6.0 to the content
`data-defer@`           accepted, but 451 4.3.0 to the content
`close-in-data@`        accepted, but the connection is closed when content arrives
`close-after-dot@`      accepted, but the connection is closed instead of a reply to the content
======================= =====================================================================

The local part of the reverse-path does the same to MAIL: `reject-mail@`, `defer-mail@`,
`full-mail@`, `421-mail@`, `drop-mail@`, `slow-mail@`, `slow-N-mail@`, `tarpit-mail@`,
`stall-mail@`, `garbage-mail@`.  With LMTP each recipient has its own reply to the content; with
SMTP the first recipient that has something to say about the content speaks for all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_SLOW: Final = re.compile(rb"slow-([0-9]{1,4}(?:\.[0-9]{1,3})?)")


class Next(Enum):
    """What becomes of a connection.

    Attributes:
        CLOSE: It is closed.
        STALL: It stays open, but nothing is answered any more.
        TLS: The handshake that follows STARTTLS; no fault asks for it.
    """

    CLOSE = auto()
    STALL = auto()
    TLS = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """What a magic local part does.

    Attributes:
        reply: What is answered; None for the reply it would have got anyway, which accepts.
        next: What becomes of the connection then; None if it goes on.
        seconds: To wait before the reply, or before each octet of it.
        drip: Whether the reply is sent octet by octet.
    """

    reply: bytes | None = None
    next: Next | None = None
    seconds: float = 0
    drip: bool = False


_SLOW_FAULT: Final = Fault(seconds=1)
_TARPIT: Final = Fault(seconds=1, drip=True)
_UNAVAILABLE: Final = Fault(b"421 4.3.2 go away\r\n", Next.CLOSE)
_DROP: Final = Fault(b"", Next.CLOSE)
_STALL: Final = Fault(b"", Next.STALL)
_GARBAGE: Final = Fault(b"\x00\xff<html>Bad Gateway\r\n")
#: The session forgives it to an address that asks again.
GREYLIST: Final = Fault(b"451 4.7.1 greylisted, come again\r\n")
#: The session acts on it as soon as content arrives, whole or not.
CLOSE_IN_CONTENT: Final = Fault(b"", Next.CLOSE)

#: For RCPT, by the local part of the forward-path.
RCPT_FAULTS: Final = {
    b"reject": Fault(b"550 5.1.1 no such user\r\n"),
    b"defer": Fault(b"451 4.2.0 mailbox busy\r\n"),
    b"greylist": GREYLIST,
    b"full": Fault(b"452 4.2.2 mailbox full\r\n"),
    b"toomany": Fault(b"452 4.5.3 too many recipients\r\n"),
    b"421": _UNAVAILABLE,
    b"drop": _DROP,
    b"slow": _SLOW_FAULT,
    b"tarpit": _TARPIT,
    b"stall": _STALL,
    b"garbage": _GARBAGE,
}
#: For MAIL, by the local part of the reverse-path without its `-mail`.
MAIL_FAULTS: Final = {
    b"reject": Fault(b"550 5.7.1 sender refused\r\n"),
    b"defer": Fault(b"451 4.3.0 try again later\r\n"),
    b"full": Fault(b"452 4.3.1 no space left\r\n"),
    b"421": _UNAVAILABLE,
    b"drop": _DROP,
    b"slow": _SLOW_FAULT,
    b"tarpit": _TARPIT,
    b"stall": _STALL,
    b"garbage": _GARBAGE,
}
#: For the content, by the local part of a forward-path that RCPT accepted.
CONTENT_FAULTS: Final = {
    b"data-reject": Fault(b"554 5.6.0 content refused\r\n"),
    b"data-defer": Fault(b"451 4.3.0 content not stored\r\n"),
    b"close-in-data": CLOSE_IN_CONTENT,
    b"close-after-dot": Fault(b"", Next.CLOSE),
}


def fault_of(name: bytes, faults: dict[bytes, Fault]) -> Fault | None:
    """Return what a local part does by one of the tables above, or by its number of seconds.

    Args:
        name: As `local_part` returns it.
        faults: The table to look in; `slow-N` needs no entry.
    """
    fault = faults.get(name)
    if fault is None and name.startswith(b"slow-") and (match := _SLOW.fullmatch(name)):
        return Fault(seconds=min(float(match[1]), 3600))
    return fault


def local_part(address: bytes) -> bytes:
    """Return the local part of an address, in lower case and without what follows a `+`."""
    return address.rpartition(b"@")[0].partition(b"+")[0].lower()
