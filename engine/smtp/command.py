"""Commands as values: what is written, what kind it is, and how it may be shown.  Knows no I/O.

Only validated parts get in: the encoder refuses control octets whatever its caller promises, so no
address or parameter can ever smuggle a second command onto the wire.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.smtp.errors import LocalProtocolError
from engine.smtp.reply import show
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Makes a named tuple of all its fields in half the time that calling its class takes.
_new: Final = tuple.__new__
_find_control: Final = re.compile(rb"[\x00-\x1f\x7f]").search


class Kind(Enum):
    """What was sent, or `CONNECT` for the reply nobody asked for: the greeting."""

    CONNECT = auto()
    EHLO = auto()
    HELO = auto()
    LHLO = auto()
    STARTTLS = auto()
    AUTH = auto()
    AUTH_STEP = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    #: The content after DATA; its reply is the one to the final dot.
    CONTENT = auto()
    BDAT = auto()
    BDAT_LAST = auto()
    RSET = auto()
    NOOP = auto()
    QUIT = auto()

    # Members are singletons; the identity hash is much quicker than the one Enum defines.
    __hash__ = object.__hash__


#: The reply to these decides on a content.
ENDS_OF_CONTENT: Final = frozenset({Kind.CONTENT, Kind.BDAT_LAST})

#: Where a failure of each kind of command is counted.
STAGES: Final[Mapping[Kind, Stage]] = {
    Kind.CONNECT: Stage.GREETING,
    Kind.EHLO: Stage.HELLO,
    Kind.HELO: Stage.HELLO,
    Kind.LHLO: Stage.HELLO,
    Kind.STARTTLS: Stage.STARTTLS,
    Kind.AUTH: Stage.AUTH,
    Kind.AUTH_STEP: Stage.AUTH,
    Kind.MAIL: Stage.MAIL,
    Kind.RCPT: Stage.RCPT,
    Kind.DATA: Stage.DATA,
    Kind.CONTENT: Stage.FINAL,
    Kind.BDAT: Stage.CONTENT,
    Kind.BDAT_LAST: Stage.FINAL,
    # Between transactions: what fails here keeps the next MAIL from being asked.
    Kind.RSET: Stage.MAIL,
    Kind.NOOP: Stage.MAIL,
    Kind.QUIT: Stage.MAIL,
}


class Answers(Enum):
    """How a content is answered."""

    #: Once, like every command.
    ONCE = auto()
    #: Once for each recipient that was accepted (RFC 2033 §4.2); once where none was.
    FOR_EACH = auto()
    #: 353, then once for each recipient that was accepted and once for all, where the server likes
    #: it so; else once (PRDR).
    FOR_EACH_AND_ALL = auto()


# Every message asks for these; in Python 3.11 a member of an enum is found ten times as slowly as a name.
_MAIL, _RCPT, _CONTENT, _BDAT_LAST = Kind.MAIL, Kind.RCPT, Kind.CONTENT, Kind.BDAT_LAST
_ONCE: Final = Answers.ONCE


class Command(NamedTuple):
    """One thing to write, that the peer answers with one reply; a content maybe with several.

    A named tuple, as are the other values that every message makes several of: they cost a third.

    Attributes:
        kind: What it is.
        octets: What goes on the wire, line end included.
        shown: How it is named in errors, logs and transcripts where `octets` may not be shown
            (credentials) or would say too much (content); `None` shows the line itself.
        is_last: `False` for a piece of content that more pieces follow.
        answers: How a content is answered; on each of its pieces, for it may be refused early.
        head: How many of the octets are command line, where content follows in the same piece.
    """

    kind: Kind
    octets: bytes
    shown: str | None = None
    is_last: bool = True
    answers: Answers = Answers.ONCE
    head: int = 0

    @property
    def text(self) -> str:
        """The command for a person, secrets masked, control characters escaped."""
        return show(self.octets.removesuffix(b"\r\n")) if self.shown is None else self.shown

    def __repr__(self) -> str:
        return f"<{self.kind.name} {self.text!r}>"


#: Stands for what we wait for before anything was said.
CONNECT: Final = Command(Kind.CONNECT, b"", "initial connection")
STARTTLS: Final = Command(Kind.STARTTLS, b"STARTTLS\r\n")
DATA: Final = Command(Kind.DATA, b"DATA\r\n")
RSET: Final = Command(Kind.RSET, b"RSET\r\n")
NOOP: Final = Command(Kind.NOOP, b"NOOP\r\n")
QUIT: Final = Command(Kind.QUIT, b"QUIT\r\n")
#: RFC 2920 §3.1: the answer to a 354 that came although no recipient was accepted.
LONE_DOT: Final = Command(Kind.CONTENT, b".\r\n", "end of data")


def hello(kind: Kind, name: str) -> Command:
    """Make EHLO, HELO or LHLO with our name (RFC 5321 §4.1.1.1, RFC 2033 §4.1)."""
    return _line(kind, b"%b %b" % (kind.name.encode(), name.encode("ascii")))


def mail(reverse_path: bytes, parameters: Sequence[bytes] = ()) -> Command:
    """Make MAIL; an empty reverse-path is the null path (RFC 5321 §4.1.1.2)."""
    line = b"MAIL FROM:<%b>" % reverse_path
    if parameters:
        line = b" ".join((line, *parameters))
    if _find_control(line):
        raise _refusal(_MAIL)
    return _new(Command, (_MAIL, line + b"\r\n", None, True, _ONCE, 0))


def rcpt(forward_path: bytes, parameters: Sequence[bytes] = ()) -> Command:
    """Make RCPT (RFC 5321 §4.1.1.3)."""
    line = b"RCPT TO:<%b>" % forward_path
    if parameters:
        line = b" ".join((line, *parameters))
    if _find_control(line):
        raise _refusal(_RCPT)
    return _new(Command, (_RCPT, line + b"\r\n", None, True, _ONCE, 0))


def content(octets: bytes, answers: Answers = Answers.ONCE, *, is_last: bool = True) -> Command:
    """Make the content, or a piece of it: dot-stuffed, the last piece ending in the final dot."""
    return _new(Command, (_CONTENT, octets, "end of data", is_last, answers, 0))


def bdat(octets: bytes, is_last: bool, answers: Answers = Answers.ONCE) -> Command:
    """Make BDAT with its chunk behind it (RFC 3030 §2)."""
    if not is_last:
        head = b"BDAT %d\r\n" % len(octets)
        return Command(Kind.BDAT, head + octets, "sending data block", True, answers, len(head))
    head = b"BDAT %d LAST\r\n" % len(octets)
    octets = head + octets
    return _new(Command, (_BDAT_LAST, octets, "end of data", True, answers, len(head)))


def bdat_head(size: int, answers: Answers = Answers.ONCE) -> Command:
    """Make BDAT LAST for a chunk of so many octets that `bdat_piece` sends."""
    line = b"BDAT %d LAST\r\n" % size
    return Command(Kind.BDAT_LAST, line, "end of data", False, answers, len(line))


def bdat_piece(octets: bytes, answers: Answers = Answers.ONCE, *, is_last: bool) -> Command:
    """Make a piece of a chunk whose `bdat_head` was sent."""
    return Command(Kind.BDAT_LAST, octets, "end of data", is_last, answers)


def auth(mechanism: str, initial_response: bytes | None = None) -> Command:
    """Make AUTH (RFC 4954 §4); the response never shows, not even its length."""
    name = mechanism.encode("ascii")
    if initial_response is None:
        return _line(Kind.AUTH, b"AUTH " + name)
    return _line(Kind.AUTH, b"AUTH %b %b" % (name, initial_response), f"AUTH {mechanism} ****")


def auth_step(response: bytes) -> Command:
    """Make the answer to a 334 challenge (RFC 4954 §4)."""
    return _line(Kind.AUTH_STEP, response, "****")


def _line(kind: Kind, line: bytes, shown: str | None = None) -> Command:
    if _find_control(line):
        raise _refusal(kind)
    return Command(kind, line + b"\r\n", shown)


def _refusal(kind: Kind) -> LocalProtocolError:
    return LocalProtocolError(f"control octet in {kind.name} command")
