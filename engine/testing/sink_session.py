"""The server's side of one connection to a sink, without I/O: octets in, replies out.

`engine.testing.sink` feeds it what a client sends, writes what it answers, and does what interrupts
it.  It checks the order of commands and their syntax, and looks up in `engine.testing.faults` which
of them go wrong on purpose.  Knows no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from engine.testing.faults import (
    CLOSE_IN_CONTENT,
    CONTENT_FAULTS,
    GREYLIST,
    MAIL_FAULTS,
    RCPT_FAULTS,
    Next,
    fault_of,
    local_part,
)
from engine.testing.sink_house import Received

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.testing.faults import Fault
    from engine.testing.sink_house import House

#: RFC 5321 §4.5.3.1.4 asks for 512 octets with CRLF; parameters of extensions make lines longer.
MAX_LINE_OCTETS: Final = 2048
#: RFC 5321 §4.5.3.1.8 asks for 100 recipients; this bounds memory, not senders.
MAX_RECIPIENTS: Final = 10_000

_END_OF_CONTENT: Final = b"\r\n.\r\n"

# RFC 5321 §4.1.2, no stricter than needed to find the end of the path.  The possessive
# quantifiers (++, *+) keep hostile lines linear.
_PATH: Final = rb'<((?:[^\x00-\x20"<>\x7f]++|"(?:[^"\\\x00-\x1f]|\\[\x20-\x7e])*+")%b)>'
_PARAMETERS: Final = rb"((?: [!-~\x80-\xff]++)*+)"
_MAIL: Final = re.compile(rb"(?i:MAIL FROM):" + _PATH % b"*+" + _PARAMETERS)
_RCPT: Final = re.compile(rb"(?i:RCPT TO):" + _PATH % b"++" + _PARAMETERS)
_BDAT: Final = re.compile(rb"(?i:BDAT) ([0-9]{1,15})((?i: LAST)?)")
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


@dataclass(frozen=True, slots=True)
class Interruption:
    """Something to be done before more of the input is looked at, in the order of the fields.

    Attributes:
        received: A message to hand over; its acknowledgement is the reply.
        seconds: To wait before the reply, or before each octet of it.
        drip: Whether the reply is sent octet by octet.
        reply: What is sent then, behind the replies that came with the interruption.
        next: What becomes of the connection after that; None if it goes on.
    """

    received: Received | None = None
    seconds: float = 0
    drip: bool = False
    reply: bytes = b""
    next: Next | None = None


class SinkSession:
    """What a sink says to one client.

    Whole reads are worked off at once and answered by one piece of output.

    Args:
        house: What it shares with the other sessions of the sink.
        number: Which connection of the sink it is, from 1.
    """

    def __init__(self, house: House, number: int) -> None:
        self._house = house
        self._number = number
        self._transaction = 0
        self._is_secure = False
        self.start_over()

    def start_over(self) -> None:
        """Forget everything the client said, as after a TLS handshake (RFC 3207 §4.2)."""
        self._out: list[bytes] = []
        self._rest = b""
        self._interruption: Interruption | None = None
        self._take: Callable[[bytes, int], int] = self._take_line
        self._is_overlong = False
        self._has_greeted = False
        self._offered: frozenset[bytes] = frozenset()
        self._start_transaction()

    def _start_transaction(self) -> None:
        self._reverse_path: bytes | None = None
        self._is_utf8 = False
        self._has_tried_rcpt = False
        self._recipients: list[tuple[bytes, Fault | None]] = []
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
        """Go on over TLS, with nothing known of the client; it cannot be started again."""
        self._is_secure = True
        self.start_over()

    def receive(self, data: bytes) -> tuple[bytes, Interruption | None]:
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

    def _misbehave(self, fault: Fault, accepted: bytes) -> bool:
        """Do what a fault says; return whether the command was accepted."""
        reply = accepted if fault.reply is None else fault.reply
        self._house.refused += reply[:1] in {b"4", b"5"}
        if fault.seconds or fault.next:
            self._interruption = Interruption(
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
        name = local_part(match[1])
        if name.endswith(b"-mail") and (fault := fault_of(name[:-5], MAIL_FAULTS)):
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
        name = local_part(address)
        fault = fault_of(name, RCPT_FAULTS)
        if fault is None or (fault is GREYLIST and not self._house.is_new(address)):
            self._out.append(_RCPT_OK)
        elif not self._misbehave(fault, _RCPT_OK):
            return None
        self._recipients.append((address, CONTENT_FAULTS.get(name)))
        return None

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
            self._interruption = Interruption(next=Next.CLOSE)
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
        return any(fault is CLOSE_IN_CONTENT for _, fault in self._recipients)

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
            self._interruption = Interruption(next=Next.CLOSE)
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
            self._interruption = Interruption(received=received, reply=reply, next=step)
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
        self._interruption = Interruption(reply=b"221 2.0.0 bye\r\n", next=Next.CLOSE)

    def _starttls(self, _: bytes) -> None:
        if not self._house.has_tls or self._is_secure or not self._has_greeted:
            self._refuse(b"503 5.5.1 no STARTTLS now\r\n")
        else:
            self._interruption = Interruption(reply=b"220 2.0.0 go on\r\n", next=Next.TLS)

    _COMMANDS: ClassVar[dict[bytes, Callable[[SinkSession, bytes], None]]] = {
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
