"""A fast SMTP server that takes every message, for tests, examples and benchmarks of senders.

`open_sink` runs it inside a test; `python -m engine.testing.sink --port 2525` runs it alone.  It
checks the order of commands and their syntax, keeps messages only when asked to, delivers nothing,
and misbehaves on demand.  The local part of a recipient says how; what stands behind a `+` makes it
another address (`reject+2@example.test`):

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

import errno
import ipaddress
import re
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeAlias

import click
import trio

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

#: What EHLO announces; STARTTLS joins them when there is a certificate.
EXTENSIONS: Final = (
    "PIPELINING",
    "SIZE 52428800",
    "8BITMIME",
    "SMTPUTF8",
    "DSN",
    "ENHANCEDSTATUSCODES",
    "CHUNKING",
)
#: RFC 5321 §4.5.3.1.4 asks for 512 octets with CRLF; parameters of extensions make lines longer.
MAX_LINE_OCTETS: Final = 2048
#: RFC 5321 §4.5.3.1.8 asks for 100 recipients; this bounds memory, not senders.
MAX_RECIPIENTS: Final = 10_000
#: Largest content where SIZE names none: 50 MiB.
MAX_CONTENT_OCTETS: Final = 52_428_800
#: How long a connection may be silent, in seconds (RFC 5321 §4.5.3.2.7).
IDLE_SECONDS: Final = 300.0

_READ_OCTETS: Final = 64 * 1024  # a larger buffer costs more to make than it saves in calls
_READS_IN_A_ROW: Final = 16  # before other connections get their turn
_STALL_SECONDS: Final = 3600.0
_DEADLINE_STEP: Final = 10.0  # how much sooner a silent connection may be ended
_GREYLIST_ENTRIES: Final = 100_000
_END_OF_CONTENT: Final = b"\r\n.\r\n"

# RFC 5321 §4.1.2, no stricter than needed to find the end of the path.  The possessive
# quantifiers (++, *+) keep hostile lines linear.
_PATH: Final = rb'<((?:[^\x00-\x20"<>\x7f]++|"(?:[^"\\\x00-\x1f]|\\[\x20-\x7e])*+")%b)>'
_PARAMETERS: Final = rb"((?: [!-~\x80-\xff]++)*+)"
_MAIL: Final = re.compile(rb"(?i:MAIL FROM):" + _PATH % b"*+" + _PARAMETERS)
_RCPT: Final = re.compile(rb"(?i:RCPT TO):" + _PATH % b"++" + _PARAMETERS)
_BDAT: Final = re.compile(rb"(?i:BDAT) ([0-9]{1,15})((?i: LAST)?)")
_SLOW: Final = re.compile(rb"slow-([0-9]{1,4}(?:\.[0-9]{1,3})?)")
#: Which extension allows a parameter (RFC 1870 §6, RFC 6152 §2, RFC 6531 §3.4, RFC 3461 §4);
#: one that is not here needs the extension of its own name.
_PARAMETER_OF: Final = {
    b"BODY": b"8BITMIME",
    b"RET": b"DSN",
    b"ENVID": b"DSN",
    b"NOTIFY": b"DSN",
    b"ORCPT": b"DSN",
    b"BY": b"DELIVERBY",
}

_MAIL_OK: Final = b"250 2.1.0 ok\r\n"
_RCPT_OK: Final = b"250 2.1.5 ok\r\n"
_CONTENT_OK: Final = b"250 2.0.0 accepted\r\n"
_TOO_LARGE: Final = b"552 5.3.4 content too large\r\n"
_NO_RECIPIENTS: Final = b"554 5.5.1 no valid recipients\r\n"
_SHUTTING_DOWN: Final = b"421 4.3.2 shutting down\r\n"
_TOO_SILENT: Final = b"421 4.4.2 nothing came for too long\r\n"


class Next(Enum):
    """What becomes of a connection."""

    CLOSE = auto()
    STALL = auto()
    TLS = auto()


@dataclass(frozen=True, slots=True)
class Received:
    """One message that was accepted.

    Attributes:
        reverse_path: From MAIL, without angle brackets; empty for the null path.
        recipients: The forward-paths that were accepted, in order, without angle brackets.
        content: Header section and body, without dot-stuffing and final dot.
        connection: Which connection of the sink it came over, from 1.
        transaction: Which mail transaction of that connection it was, from 1.
    """

    reverse_path: str
    recipients: tuple[str, ...]
    content: bytes
    connection: int
    transaction: int


@dataclass(frozen=True, slots=True)
class SinkStatistics:
    """What a sink has seen so far.

    Attributes:
        connections: Connections accepted.
        open: Connections open now.
        messages: Messages accepted.
        recipients: Recipients of those.
        octets: Octets of their contents as sent, with dot-stuffing, without the final dot.
        refused: Replies that began with 4 or 5.
    """

    connections: int
    open: int
    messages: int
    recipients: int
    octets: int
    refused: int


@dataclass(frozen=True, slots=True)
class _Interruption:
    """Something to be done before more of the input is looked at, in the order of the fields."""

    received: Received | None = None
    seconds: float = 0  # to wait before the reply, or before each octet of it
    drip: bool = False
    reply: bytes = b""
    next: Next | None = None


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a magic local part does; a `reply` of None is the one it would have got anyway."""

    reply: bytes | None = None
    next: Next | None = None
    seconds: float = 0
    drip: bool = False


_SLOW_FAULT: Final = _Fault(seconds=1)
_TARPIT: Final = _Fault(seconds=1, drip=True)
_UNAVAILABLE: Final = _Fault(b"421 4.3.2 go away\r\n", Next.CLOSE)
_DROP: Final = _Fault(b"", Next.CLOSE)
_STALL: Final = _Fault(b"", Next.STALL)
_GARBAGE: Final = _Fault(b"\x00\xff<html>Bad Gateway\r\n")
_GREYLIST: Final = _Fault(b"451 4.7.1 greylisted, come again\r\n")
_CLOSE_IN_CONTENT: Final = _Fault(b"", Next.CLOSE)

_RCPT_FAULTS: Final = {
    b"reject": _Fault(b"550 5.1.1 no such user\r\n"),
    b"defer": _Fault(b"451 4.2.0 mailbox busy\r\n"),
    b"greylist": _GREYLIST,
    b"full": _Fault(b"452 4.2.2 mailbox full\r\n"),
    b"toomany": _Fault(b"452 4.5.3 too many recipients\r\n"),
    b"421": _UNAVAILABLE,
    b"drop": _DROP,
    b"slow": _SLOW_FAULT,
    b"tarpit": _TARPIT,
    b"stall": _STALL,
    b"garbage": _GARBAGE,
}
_MAIL_FAULTS: Final = {
    b"reject": _Fault(b"550 5.7.1 sender refused\r\n"),
    b"defer": _Fault(b"451 4.3.0 try again later\r\n"),
    b"full": _Fault(b"452 4.3.1 no space left\r\n"),
    b"421": _UNAVAILABLE,
    b"drop": _DROP,
    b"slow": _SLOW_FAULT,
    b"tarpit": _TARPIT,
    b"stall": _STALL,
    b"garbage": _GARBAGE,
}
_CONTENT_FAULTS: Final = {
    b"data-reject": _Fault(b"554 5.6.0 content refused\r\n"),
    b"data-defer": _Fault(b"451 4.3.0 content not stored\r\n"),
    b"close-in-data": _CLOSE_IN_CONTENT,
    b"close-after-dot": _Fault(b"", Next.CLOSE),
}


def _fault_of(name: bytes, faults: dict[bytes, _Fault]) -> _Fault | None:
    fault = faults.get(name)
    if fault is None and name.startswith(b"slow-") and (match := _SLOW.fullmatch(name)):
        return _Fault(seconds=min(float(match[1]), 3600))
    return fault


def _local_part(address: bytes) -> bytes:
    return address.rpartition(b"@")[0].partition(b"+")[0].lower()


@dataclass(slots=True)
class _House:
    """What the sessions of one sink share."""

    greeting: bytes
    extensions: tuple[bytes, ...]
    lmtp: bool
    has_tls: bool
    #: Whether anybody wants to see the contents.
    is_curious: bool
    #: Whether they are handed over one by one, before they are acknowledged.
    hands_over: bool
    kept: deque[Received]
    max_octets: int = MAX_CONTENT_OCTETS
    messages: int = 0
    recipients: int = 0
    octets: int = 0
    refused: int = 0

    greylisted: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        for extension in self.extensions:
            keyword, _, limit = extension.partition(b" ")
            if keyword == b"SIZE" and limit.isdigit():
                self.max_octets = int(limit) or MAX_CONTENT_OCTETS

    def hello(self, *, is_secure: bool) -> bytes:
        lines = [b"sink.test", *self.extensions]
        if self.has_tls and not is_secure:
            lines.append(b"STARTTLS")
        return b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]


class _Session:
    """The server's side of one connection, without I/O: octets in, replies out.

    Whole reads are worked off at once and answered by one piece of output.
    """

    def __init__(self, house: _House, number: int) -> None:
        self._house = house
        self._number = number
        self._transaction = 0
        self._is_secure = False
        self.start_over()

    def start_over(self) -> None:
        """Forget everything the client said, as after a TLS handshake (RFC 3207 §4.2)."""
        self._out: list[bytes] = []
        self._rest = b""
        self._interruption: _Interruption | None = None
        self._take: Callable[[bytes, int], int] = self._take_line
        self._is_overlong = False
        self._has_greeted = False
        self._offered: frozenset[bytes] = frozenset()
        self._start_transaction()

    def _start_transaction(self) -> None:
        self._reverse_path: bytes | None = None
        self._is_utf8 = False
        self._has_tried_rcpt = False
        self._recipients: list[tuple[bytes, _Fault | None]] = []
        self._parts: list[bytes] = []
        self._octets = 0
        self._tail = b"\r\n"  # the end of what was read; a dot may follow at once
        self._chunk_left = 0
        self._is_last_chunk = False
        self._has_chunks = False
        self._chunk_problem: bytes | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it may be ended without loss: no transaction is open."""
        return self._reverse_path is None and not self._rest and not self._chunk_left

    def tls_started(self) -> None:
        self._is_secure = True
        self.start_over()

    def receive(self, data: bytes) -> tuple[bytes, _Interruption | None]:
        """Work off input; return the replies, and what must be done before the next call.

        After an interruption call it again, with nothing, for what was not looked at yet.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        position, end = 0, len(data)
        while position < end and self._interruption is None:
            taken = self._take(data, position)
            if taken == position:
                break
            position = taken
        self._rest = data[position:]
        replies = b"".join(self._out)
        self._out.clear()
        interruption, self._interruption = self._interruption, None
        return replies, interruption

    def _take_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position)
        if end < 0:
            if len(data) - position < MAX_LINE_OCTETS:
                return position
            self._is_overlong = True
            return len(data) - 1  # the last octet may be the CR
        if self._is_overlong or end - position > MAX_LINE_OCTETS - 2:
            self._is_overlong = False
            self._refuse(b"500 5.5.2 line too long\r\n")
            return end + 2
        line = data[position:end]
        handle = self._COMMANDS.get(line.partition(b" ")[0].upper())
        if handle is None:
            self._refuse(b"500 5.5.2 unknown command\r\n")
        elif not line.isascii() and not (self._is_utf8 or b"SMTPUTF8" in line.upper()):
            self._refuse(b"553 5.6.7 octets above 127 need SMTPUTF8\r\n")
        else:
            handle(self, line)
        return end + 2

    def _refuse(self, reply: bytes) -> None:
        self._house.refused += 1
        self._out.append(reply)

    def _misbehave(self, fault: _Fault, accepted: bytes) -> bool:
        """Do what a fault says; return whether the command was accepted."""
        reply = accepted if fault.reply is None else fault.reply
        self._house.refused += reply[:1] in {b"4", b"5"}
        if fault.seconds or fault.next:
            self._interruption = _Interruption(
                seconds=fault.seconds, drip=fault.drip, reply=reply, next=fault.next
            )
        else:
            self._out.append(reply)
        return fault.reply is None

    def _hello(self, line: bytes) -> None:
        verb, _, name = line.partition(b" ")
        verb = verb.upper()
        if (verb == b"LHLO") is not self._house.lmtp:  # RFC 2033 §4.1
            self._refuse(b"500 5.5.1 wrong protocol\r\n")
        elif not name.strip():
            self._refuse(b"501 5.5.4 a name must follow\r\n")
        else:
            self._start_transaction()
            self._has_greeted = True
            if verb == b"HELO":
                self._offered = frozenset()
                self._out.append(b"250 sink.test\r\n")
            else:
                names = (extension.partition(b" ")[0] for extension in self._house.extensions)
                self._offered = frozenset(names)
                self._out.append(self._house.hello(is_secure=self._is_secure))

    def _mail(self, line: bytes) -> None:
        match = _MAIL.fullmatch(line)
        if not self._has_greeted:
            return self._refuse(b"503 5.5.1 say hello first\r\n")
        if self._reverse_path is not None:
            return self._refuse(b"503 5.5.1 a transaction is open\r\n")
        if match is None:
            return self._refuse(b"501 5.5.4 expected MAIL FROM:<reverse-path>\r\n")
        if match[2] and (problem := self._check_parameters(match[2])):
            return self._refuse(problem)
        name = _local_part(match[1])
        if name.endswith(b"-mail") and (fault := _fault_of(name[:-5], _MAIL_FAULTS)):
            if not self._misbehave(fault, _MAIL_OK):
                return None
        else:
            self._out.append(_MAIL_OK)
        self._reverse_path = match[1]
        self._is_utf8 = b"SMTPUTF8" in match[2].upper().split()
        self._transaction += 1
        return None

    def _rcpt(self, line: bytes) -> None:
        if self._reverse_path is None:
            return self._refuse(b"503 5.5.1 MAIL first\r\n")
        self._has_tried_rcpt = True
        match = _RCPT.fullmatch(line)
        if match is None:
            return self._refuse(b"501 5.5.4 expected RCPT TO:<forward-path>\r\n")
        if match[2] and (problem := self._check_parameters(match[2])):
            return self._refuse(problem)
        if len(self._recipients) >= MAX_RECIPIENTS:
            return self._refuse(b"452 4.5.3 too many recipients\r\n")
        address = match[1]
        name = _local_part(address)
        fault = _fault_of(name, _RCPT_FAULTS)
        if fault is None or (fault is _GREYLIST and not self._is_new(address)):
            self._out.append(_RCPT_OK)
        elif not self._misbehave(fault, _RCPT_OK):
            return None
        self._recipients.append((address, _CONTENT_FAULTS.get(name)))
        return None

    def _is_new(self, address: bytes) -> bool:
        known = self._house.greylisted
        if address in known:
            return False
        if len(known) >= _GREYLIST_ENTRIES:
            known.clear()
        known.add(address)
        return True

    def _check_parameters(self, text: bytes) -> bytes | None:
        """Return the reply to parameters that were not offered or announce too much."""
        for word in text.split():
            keyword, _, value = word.partition(b"=")
            keyword = keyword.upper()
            if _PARAMETER_OF.get(keyword, keyword) not in self._offered:
                return b"555 5.5.4 parameter not offered: %b\r\n" % keyword[:40]
            if keyword == b"SIZE":
                if not (value.isdigit() and len(value) <= 20):
                    return b"501 5.5.4 SIZE takes a number\r\n"
                if int(value) > self._house.max_octets:
                    return _TOO_LARGE
        return None

    def _data(self, line: bytes) -> None:
        if len(line) > 4:
            self._refuse(b"501 5.5.4 DATA takes nothing behind it\r\n")
        elif not self._has_tried_rcpt or self._has_chunks:
            # RFC 3030 §2: DATA and BDAT do not go together.
            self._refuse(b"503 5.5.1 no DATA now\r\n")
        elif not self._recipients:
            self._refuse(_NO_RECIPIENTS)
        else:
            self._out.append(b"354 go on, end with a dot\r\n")
            self._take = self._take_content

    def _take_content(self, data: bytes, position: int) -> int:
        if self._closes_in_content():
            self._interruption = _Interruption(next=Next.CLOSE)
            return len(data)
        # The end mark may have begun in an earlier read.
        window = self._tail + data[position : position + 4]
        mark = window.find(_END_OF_CONTENT)
        if mark >= 0:
            end = position + mark + 5 - len(self._tail)
        elif (mark := data.find(_END_OF_CONTENT, position)) >= 0:
            end = mark + 5
        else:
            self._collect(data[position:])
            self._tail = window[-4:] if len(data) - position < 4 else data[-4:]
            return len(data)
        self._collect(data[position:end])
        self._take = self._take_line
        self._octets -= 3
        content = b""
        if self._parts:
            # RFC 5321 §4.5.2: the dot at the start of a line is taken away; the first line has
            # the CRLF of DATA before it.
            stuffed = b"\r\n" + b"".join(self._parts)[:-3]
            content = stuffed.replace(b"\r\n.", b"\r\n")[2:]
        self._finish(content)
        return end

    def _collect(self, part: bytes) -> None:
        self._octets += len(part)
        if not self._house.is_curious:
            return
        if self._octets > self._house.max_octets + 3:
            self._parts.clear()
        else:
            self._parts.append(part)

    def _closes_in_content(self) -> bool:
        return any(fault is _CLOSE_IN_CONTENT for _, fault in self._recipients)

    def _bdat(self, line: bytes) -> None:
        match = _BDAT.fullmatch(line)
        if match is None:
            return self._refuse(b"501 5.5.4 expected BDAT octets [LAST]\r\n")
        # The octets follow whatever the answer is (RFC 3030 §2), so a refusal comes behind them.
        if b"CHUNKING" not in self._offered:
            self._chunk_problem = b"502 5.5.1 CHUNKING is not offered\r\n"
        elif not self._has_tried_rcpt:
            self._chunk_problem = b"503 5.5.1 MAIL and RCPT first\r\n"
        elif not self._recipients:
            self._chunk_problem = _NO_RECIPIENTS
        self._has_chunks = True
        self._chunk_left, self._is_last_chunk = int(match[1]), bool(match[2])
        if self._closes_in_content():
            self._interruption = _Interruption(next=Next.CLOSE)
        elif self._chunk_left:
            self._take = self._take_chunk
        else:
            self._finish_chunk()
        return None

    def _take_chunk(self, data: bytes, position: int) -> int:
        end = min(position + self._chunk_left, len(data))
        self._chunk_left -= end - position
        if self._chunk_problem is None:
            self._collect(data[position:end])
        if not self._chunk_left:
            self._take = self._take_line
            self._finish_chunk()
        return end

    def _finish_chunk(self) -> None:
        problem, self._chunk_problem = self._chunk_problem, None
        if problem is not None:
            self._has_chunks = False
            self._refuse(problem)
        elif self._is_last_chunk:
            self._finish(b"".join(self._parts))
        else:
            self._out.append(b"250 2.0.0 chunk taken\r\n")

    def _finish(self, content: bytes) -> None:
        """Answer a whole content: once, or with LMTP for each recipient (RFC 2033 §4.2)."""
        accepted: list[bytes] = []
        replies: list[bytes] = []
        step: Next | None = None
        is_too_large = self._octets > self._house.max_octets
        groups = [[one] for one in self._recipients] if self._house.lmtp else [self._recipients]
        for group in groups:
            fault = next((fault for _, fault in group if fault is not None), None)
            if is_too_large:
                replies.append(_TOO_LARGE)
            elif fault is None:
                accepted += [address for address, _ in group]
                replies.append(_CONTENT_OK)
            else:
                replies.append(fault.reply or b"")
                step = fault.next
                if step is not None:
                    break
        self._house.refused += sum(reply[:1] in {b"4", b"5"} for reply in replies)
        received = self._accept(accepted, content) if accepted else None
        if received is not None or step is not None:
            reply = b"".join(replies)
            self._interruption = _Interruption(received=received, reply=reply, next=step)
        else:
            self._out += replies
        self._start_transaction()

    def _accept(self, recipients: list[bytes], content: bytes) -> Received | None:
        """Count a message; return it if it must be handed over before it is acknowledged."""
        house = self._house
        house.messages += 1
        house.recipients += len(recipients)
        house.octets += self._octets
        if not house.is_curious:
            return None
        received = Received(
            (self._reverse_path or b"").decode("utf-8", "backslashreplace"),
            tuple(address.decode("utf-8", "backslashreplace") for address in recipients),
            content,
            self._number,
            self._transaction,
        )
        house.kept.append(received)
        return received if house.hands_over else None

    def _rset(self, _: bytes) -> None:
        self._start_transaction()
        self._out.append(b"250 2.0.0 ok\r\n")

    def _noop(self, _: bytes) -> None:
        self._out.append(b"250 2.0.0 ok\r\n")

    def _vrfy(self, _: bytes) -> None:
        self._out.append(b"252 2.5.0 will see when mail comes\r\n")

    def _quit(self, _: bytes) -> None:
        self._interruption = _Interruption(reply=b"221 2.0.0 bye\r\n", next=Next.CLOSE)

    def _starttls(self, _: bytes) -> None:
        if not self._house.has_tls or self._is_secure or not self._has_greeted:
            self._refuse(b"503 5.5.1 no STARTTLS now\r\n")
        else:
            self._interruption = _Interruption(reply=b"220 2.0.0 go on\r\n", next=Next.TLS)

    _COMMANDS: ClassVar[dict[bytes, Callable[[_Session, bytes], None]]] = {
        b"EHLO": _hello,
        b"HELO": _hello,
        b"LHLO": _hello,
        b"MAIL": _mail,
        b"RCPT": _rcpt,
        b"DATA": _data,
        b"BDAT": _bdat,
        b"RSET": _rset,
        b"NOOP": _noop,
        b"VRFY": _vrfy,
        b"QUIT": _quit,
        b"STARTTLS": _starttls,
    }


class _Transport(Protocol):
    """The octets of one connection; errors are `OSError` or `trio.BrokenResourceError`."""

    async def receive(self) -> bytes:
        """Wait for input; empty once the client has closed."""
        ...

    async def send(self, octets: bytes) -> None:
        """Return when all of it is with the kernel."""
        ...


class _PlainTransport:
    """A socket, asked first and waited for only when it has nothing to say."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in_a_row = 0

    async def receive(self) -> bytes:
        self._in_a_row += 1
        if self._in_a_row > _READS_IN_A_ROW:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._sock.recv(_READ_OCTETS)
            except BlockingIOError:
                self._in_a_row = 0
                await trio.lowlevel.wait_readable(self._sock)

    async def send(self, octets: bytes) -> None:
        rest = memoryview(octets)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)


class _TlsTransport:
    """TLS over the same socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._stream = trio.SSLStream(stream, context, server_side=True)

    async def receive(self) -> bytes:
        return bytes(await self._stream.receive_some(_READ_OCTETS))

    async def send(self, octets: bytes) -> None:
        await self._stream.send_all(octets)


#: Called with each accepted message; a coroutine is awaited before the message is acknowledged.
OnMessage: TypeAlias = Callable[[Received], Awaitable[None] | None]


class _Connection:
    """One client, from its greeting to its end."""

    def __init__(self, sock: socket.socket, session: _Session, server: _Server) -> None:
        self._sock = sock
        self._session = session
        self._server = server
        self._transport: _Transport = _PlainTransport(sock)
        self._scope = trio.CancelScope()
        self._may_speak = True

    def end_if_idle(self) -> None:
        """End it now unless a transaction is open; then it ends itself behind that."""
        if self._session.is_idle:
            self._scope.cancel()

    async def serve(self) -> None:
        with suppress(OSError, trio.BrokenResourceError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._scope:
                await self._converse()
            if self._scope.cancelled_caught and self._may_speak:
                why = _SHUTTING_DOWN if self._server.is_draining else _TOO_SILENT
                self._sock.send(why)  # either it fits into the buffer or it does not matter
            # FIN before close(): unread octets would make close() send RST alone, and the client
            # lose the replies it has not read.
            self._sock.shutdown(socket.SHUT_WR)

    async def _converse(self) -> None:
        receive, session, server = self._transport.receive, self._session, self._server
        extended = trio.current_time()
        self._scope.deadline = extended + IDLE_SECONDS
        await self._transport.send(server.house.greeting)
        data: bytes | None = None
        while True:
            if data is None:
                now = trio.current_time()
                if now - extended >= _DEADLINE_STEP:
                    # Moving a deadline costs as much as parsing a message: not for every read.
                    extended, self._scope.deadline = now, now + IDLE_SECONDS
                if not (data := await receive()):
                    return
            replies, interruption = session.receive(data)
            data = None
            if interruption is not None:
                if await self._interrupt(replies, interruption):
                    return
                receive, data, extended = self._transport.receive, b"", -_DEADLINE_STEP
            elif replies:
                await self._transport.send(replies)
            if server.is_draining and session.is_idle:
                await self._transport.send(_SHUTTING_DOWN)
                return

    async def _interrupt(self, replies: bytes, what: _Interruption) -> bool:
        """Do what interrupts the session; return whether the connection is over."""
        if what.received is not None:
            await self._server.hand_over(what.received)
        if what.seconds:
            await self._transport.send(replies)
            await self._send_slowly(what)
        elif replies or what.reply:
            await self._transport.send(replies + what.reply)
        match what.next:
            case Next.STALL:
                self._may_speak = False
                self._scope.deadline = trio.current_time() + _STALL_SECONDS
                while await self._transport.receive():
                    pass
            case Next.TLS:
                assert self._server.tls is not None  # else the session would have refused
                self._transport = _TlsTransport(self._sock, self._server.tls)
                self._may_speak = False  # not in clear, behind TLS's back
                self._session.tls_started()
            case Next.CLOSE | None:
                pass
        return what.next in {Next.CLOSE, Next.STALL}

    async def _send_slowly(self, what: _Interruption) -> None:
        size = 1 if what.drip else len(what.reply)
        self._scope.deadline += what.seconds * (len(what.reply) // size)
        for start in range(0, len(what.reply), size):
            await trio.sleep(what.seconds)
            await self._transport.send(what.reply[start : start + size])


class _Server:
    """Accepts connections and keeps count of them."""

    def __init__(
        self, house: _House, tls: ssl.SSLContext | None, on_message: OnMessage | None
    ) -> None:
        self.house = house
        self.tls = tls
        self.is_draining = False
        self.connections = 0
        self.open: set[_Connection] = set()
        self._on_message = on_message
        self._accepting = trio.CancelScope()
        self._emptied = trio.Event()

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        with listener, self._accepting:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    while True:
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        nursery.start_soon(self._serve, sock)
                except (BlockingIOError, ConnectionAbortedError):
                    pass
                except OSError as error:
                    if error.errno not in {errno.EMFILE, errno.ENFILE}:
                        raise
                    await trio.sleep(0.1)  # no descriptor is free: one may be, soon

    async def _serve(self, sock: socket.socket) -> None:
        self.connections += 1
        connection = _Connection(sock, _Session(self.house, self.connections), self)
        self.open.add(connection)
        try:
            await connection.serve()
        finally:
            sock.close()
            self.open.discard(connection)
            if not self.open:
                self._emptied.set()

    async def hand_over(self, received: Received) -> None:
        if self._on_message is not None:
            result = self._on_message(received)
            if result is not None:
                await result

    async def drain(self, seconds: float) -> None:
        self.is_draining = True
        self._accepting.cancel()
        self._emptied = trio.Event()
        for connection in tuple(self.open):
            connection.end_if_idle()
        if self.open:
            with trio.move_on_after(seconds):
                await self._emptied.wait()


class Sink:
    """What a test sees of the server that `open_sink` runs.

    Attributes:
        host: The address it listens on.
        port: The port it listens on.
    """

    def __init__(self, host: str, port: int, server: _Server) -> None:
        self.host = host
        self.port = port
        self._server = server

    @property
    def messages(self) -> list[Received]:
        """The messages that were kept, oldest first; empty unless the sink keeps them."""
        return list(self._server.house.kept)

    def statistics(self) -> SinkStatistics:
        """Return the counts of this moment."""
        server, house = self._server, self._server.house
        return SinkStatistics(
            server.connections,
            len(server.open),
            house.messages,
            house.recipients,
            house.octets,
            house.refused,
        )

    async def drain(self, seconds: float = 5.0) -> None:
        """Accept no more connections, end the idle ones with a 421, wait for open transactions.

        Args:
            seconds: How long to wait.  What is open after that is broken off when the block of
                `open_sink` is left.
        """
        await self._server.drain(seconds)

    def __repr__(self) -> str:
        return f"<Sink {self.host}:{self.port} {self.statistics()}>"


@asynccontextmanager
async def open_sink(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    keep: bool = False,
    keep_limit: int = 10_000,
    extensions: Sequence[str] = EXTENSIONS,
    greeting: str = "sink.test ESMTP",
    tls: ssl.SSLContext | None = None,
    lmtp: bool = False,
    on_message: OnMessage | None = None,
) -> AsyncIterator[Sink]:
    """Run a sink for the time of a block; when it is left, open connections are broken off.

    Args:
        host: The IP address to listen on.
        port: The port to listen on; 0 for any that is free.
        keep: Whether to keep messages for `Sink.messages`.
        keep_limit: How many to keep; the oldest make room.
        extensions: What EHLO announces, one item a line.  The number behind SIZE is enforced.
        greeting: The text behind the 220.
        tls: The server's certificate; with it STARTTLS is offered.
        lmtp: Speak LMTP (RFC 2033) in place of SMTP.
        on_message: Called with each message before it is acknowledged, and awaited if it returns
            something to await.  What it raises ends the sink.

    Raises:
        ValueError: `host` is no IP address, or an extension or the greeting is no line of ASCII.
        OSError: The address cannot be listened on.
    """
    for line in (*extensions, greeting):
        if not (line and line.isascii() and line.isprintable()):
            raise ValueError(f"extensions and greeting are lines of printable ASCII, not {line!r}")
    house = _House(
        greeting=f"220 {greeting}\r\n".encode(),
        extensions=tuple(extension.upper().encode() for extension in extensions),
        lmtp=lmtp,
        has_tls=tls is not None,
        is_curious=keep or on_message is not None,
        hands_over=on_message is not None,
        kept=deque(maxlen=keep_limit if keep else 0),
    )
    server = _Server(house, tls, on_message)
    listener = _listen(host, port)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.accept, listener, nursery)
        try:
            yield Sink(host, listener.getsockname()[1], server)
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _listen(host: str, port: int) -> socket.socket:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise ValueError(f"a sink listens on an IP address, not {host!r}") from None
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = socket.create_server((host, port), family=family, backlog=1024)
    listener.setblocking(False)
    return listener


def _store_in(directory: Path) -> OnMessage:
    async def store(received: Received) -> None:
        name = f"{received.connection:06}-{received.transaction:06}.eml"
        await trio.to_thread.run_sync((directory / name).write_bytes, received.content)

    return store


async def _run(host: str, port: int, keep: Path | None, *, lmtp: bool, quiet: bool) -> None:
    on_message = None if keep is None else _store_in(keep)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_sink(host, port, lmtp=lmtp, on_message=on_message) as sink:
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"listening on {shown}:{sink.port}")
            async for _ in signals:
                break
            await sink.drain()
            total = sink.statistics()
    if not quiet:
        click.echo(
            f"connections={total.connections} messages={total.messages} "
            f"recipients={total.recipients} octets={total.octets} refused={total.refused}"
        )


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="IP address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=2525, show_default=True, help="0: any free."
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write every content to a file in this directory before it is acknowledged.",
)
@click.option("--lmtp", is_flag=True, help="Speak LMTP in place of SMTP.")
@click.option("--quiet", is_flag=True, help="No totals at the end.")
def main(host: str, port: int, keep: Path | None, *, lmtp: bool, quiet: bool) -> None:
    """Accept mail and forget it; drain and print totals on SIGINT and SIGTERM."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    try:
        trio.run(lambda: _run(host, port, keep, lmtp=lmtp, quiet=quiet))
    except* (OSError, ValueError) as errors:
        raise click.ClickException(str(errors.exceptions[0])) from None


if __name__ == "__main__":
    main()
