r"""The notation for an SMTP dialogue: one line, one step.  Parses it; `engine.testing.server` plays it.

The same text serves as fake server, as golden transcript and as bug report::

    S: 250 ok            the server sends this line, CRLF added; an empty `S:` sends CRLF alone
    S+ 250-par           the server sends exactly this, no CRLF: packets split anywhere;
                         understands the escapes \r \n \t \xNN and \\
    C: RCPT TO:<a@b.c>   the client must say exactly this line
    C~ MAIL FROM:<*> *   the client must say a line like this; only * is special
    C= DATA              the client must send a content, up to and with the final dot;
                         what stands behind C= is a remark
    C# 42                the client must send 42 octets, for example a BDAT chunk
    ! close              a verb, see `Verb`
    # a remark, on a line of its own

Indentation, trailing blanks and empty lines mean nothing (`S+ \x20` sends a blank).  The steps
behind `! connection` are played on the next connection the server accepts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias


class Kind(StrEnum):
    """What a line of a script does."""

    SEND_LINE = "S:"
    SEND_OCTETS = "S+"
    EXPECT_LINE = "C:"
    EXPECT_LIKE = "C~"
    EXPECT_CONTENT = "C="
    EXPECT_OCTETS = "C#"
    ACT = "!"


class Verb(StrEnum):
    """What can stand behind `!`.

    `close`, `reset`, `stall` and `expect-eof` end their connection's part of the script.
    """

    #: Close the connection in order (FIN; a close_notify first over TLS).
    CLOSE = "close"
    #: Break the connection off (TCP RST); a plain close where there is no socket.
    RESET = "reset"
    #: Neither read nor write any more, and keep the connection.
    STALL = "stall"
    #: The client must close now, without another octet.
    EXPECT_EOF = "expect-eof"
    #: `sleep N`: do nothing for N seconds.
    SLEEP = "sleep"
    #: Do the server's side of a TLS handshake.
    STARTTLS = "starttls"
    #: From here on, write one octet at a time.
    DRIP = "drip"
    #: The steps that follow belong to the next connection.
    CONNECTION = "connection"


#: What ends a connection's part of a script.
ENDINGS: Final = frozenset({Verb.CLOSE, Verb.RESET, Verb.STALL, Verb.EXPECT_EOF})
_BLANKS: Final = " \t\r\f\v"
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([rnt\\])|)")
_NAMED: Final = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a script.

    Attributes:
        number: Which line of the script, from 1.
        kind: What it does.
        text: What stands behind the kind, as written.
        octets: What to send, to expect, or the pattern to match; empty for `C=`, `C#` and verbs.
        verb: What to do, for `!` alone.
        amount: The octets of `C#`, the seconds of `! sleep`, else 0.
    """

    number: int
    kind: Kind
    text: str = ""
    octets: bytes = b""
    verb: Verb | None = None
    amount: float = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.text}".rstrip()


#: The steps of one connection.
ScriptConnection: TypeAlias = tuple[Step, ...]
#: A whole dialogue: its connections, in the order they are accepted.
Script: TypeAlias = tuple[ScriptConnection, ...]


class ScriptMismatchError(AssertionError):
    """The client did something the script did not foresee.

    Attributes:
        number: The line of the script, from 1; 0 when the script was over.
        expected: What should have happened.
        got: What did.
    """

    def __init__(self, number: int, expected: str, got: str) -> None:
        where = f"script line {number}" if number else "script over"
        super().__init__(f"{where}: expected {expected}, but {got}")
        self.number = number
        self.expected = expected
        self.got = got


def parse_script(text: str) -> Script:
    """Turn the text of a script into the steps of each connection.

    Args:
        text: Lines in the notation of this module; indented as a whole, if that reads better.

    Raises:
        ValueError: A line is no step; the message names the line and what is allowed.
    """
    connections: list[list[Step]] = []
    # Not splitlines(): text of a server may hold U+2028 and the like, which end no line in SMTP.
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(_BLANKS)
        if not line or line.startswith("#"):
            continue
        step = _parse_step(number, line)
        if step.verb is Verb.CONNECTION:
            connections.append([])
            continue
        if not connections:
            connections.append([])
        steps = connections[-1]
        if steps and steps[-1].verb in ENDINGS:
            raise ValueError(f"script line {number}: nothing but ! connection follows {steps[-1]}")
        steps.append(step)
    return tuple(map(tuple, connections))


def _parse_step(number: int, line: str) -> Step:
    mark, text = line[:2], line[3:]
    if line.startswith("!"):
        return _parse_act(number, line[1:].split())
    if mark not in set(Kind) or line[2:3].strip(_BLANKS):
        raise ValueError(
            f"script line {number}: unknown step {line[:40]!r}; "
            f"a step is one of {' '.join(Kind)} and a blank, or a # remark"
        )
    kind = Kind(mark)
    match kind:
        case Kind.SEND_LINE:
            return Step(number, kind, text, text.encode() + b"\r\n")
        case Kind.SEND_OCTETS:
            return Step(number, kind, text, _unescape(number, text))
        case Kind.EXPECT_LINE:
            return Step(number, kind, text, text.encode())
        case Kind.EXPECT_LIKE:
            return Step(number, kind, text, re.escape(text.encode()).replace(rb"\*", rb".*"))
        case Kind.EXPECT_OCTETS:
            if not (text.isascii() and text.isdigit()):
                raise ValueError(f"script line {number}: {line!r}: C# takes a number of octets")
            return Step(number, kind, text, amount=int(text))
        case Kind.EXPECT_CONTENT | Kind.ACT:
            return Step(number, kind, text)


def _parse_act(number: int, words: list[str]) -> Step:
    name, arguments = (words or [""])[0], words[1:]
    if name not in set(Verb):
        raise ValueError(
            f"script line {number}: unknown verb {name!r}; it is one of {', '.join(Verb)}"
        )
    verb, amount = Verb(name), 0.0
    if verb is Verb.SLEEP:
        amount = _seconds(arguments)
        if not 0 <= amount < math.inf:
            raise ValueError(f"script line {number}: ! sleep takes one number of seconds")
    elif arguments:
        raise ValueError(f"script line {number}: ! {verb} takes nothing behind it")
    return Step(number, Kind.ACT, " ".join(words), verb=verb, amount=amount)


def _seconds(arguments: list[str]) -> float:
    try:
        (argument,) = arguments
        return float(argument)
    except ValueError:
        return math.nan


def _unescape(number: int, text: str) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes.fromhex(match[1].decode())
        if match[2]:
            return _NAMED[match[2]]
        raise ValueError(
            f"script line {number}: unknown escape in {text!r}; "
            r"a backslash stands before r, n, t, xNN or a backslash"
        )

    return _ESCAPE.sub(replace, text.encode())
