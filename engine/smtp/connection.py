"""One SMTP session as values: commands become octets, octets become events.  Knows no I/O.

The caller owns the socket, the clock and the log.  It asks `send()` for the octets of each command
in order, feeds what it reads to `receive()` and takes events from `next_event()` until there is
none.  When octets did not all leave, it says so with `send_failed()`; when the peer hung up, it
feeds `b""`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.smtp.command import CONNECT, ENDS_OF_CONTENT, Answers, Command, Kind
from engine.smtp.errors import LocalProtocolError, RemoteProtocolError
from engine.smtp.reply import Reply, ReplyParser
from engine.smtp.state import MOST_REMEMBERED, SessionState, State, after_run

if TYPE_CHECKING:
    from collections.abc import Sequence


#: Makes a named tuple of all its fields in half the time that calling its class takes.
_new: Final = tuple.__new__
_READY: Final = State.READY
_kind_of: Final = attrgetter("kind")
_code_of: Final = attrgetter("code")
_octets_of: Final = attrgetter("octets")


class Answered(NamedTuple):
    """The peer answered the oldest command in flight.

    Attributes:
        command: What it answered.
        reply: The answer.
        is_early: The reply came before the content was written to its end; the content must not
            be finished, or the peer might still take it.
    """

    command: Command
    reply: Reply
    is_early: bool = False


class Run(NamedTuple):
    """Replies that came together, with the commands they answer, in order.

    Attributes:
        commands: What was answered.
        replies: The answers, as many.
        is_smooth: Whether every command has the reply that it was sent for: a positive one, and to
            DATA that it go on.
        is_early: Whether the last reply, and those before it to the same content, came before that
            was written to its end.
    """

    commands: Sequence[Command]
    replies: Sequence[Reply]
    is_smooth: bool = False
    is_early: bool = False

    def answers(self) -> list[Answered]:
        """Return them one by one."""
        return [
            Answered(command, reply, self.answers_early(command))
            for command, reply in zip(self.commands, self.replies, strict=True)
        ]

    def answers_early(self, command: Command) -> bool:
        """Whether a command is a content that was answered before it was written to its end."""
        return self.is_early and command is self.commands[-1]


@dataclass(frozen=True, slots=True)
class Closing:
    """The peer said 421 although nothing was owed: it closes (RFC 5321 §3.8)."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer hung up."""


Event = Answered | Closing | Closed


class ClientConnection:
    """The client's side of one SMTP or LMTP session.

    Attributes:
        unanswered: Commands whose reply is owed, the oldest first.  A content counts once, however
            many pieces it is sent in and however many replies it has.
        is_spoiled: Whether the two sides are, or may be, out of step: only closing is left.
        counts_recipients: Whether contents may be answered once for each recipient (LMTP, PRDR).
        contents_answered: How many contents had the last reply to their end.
    """

    def __init__(self, *, early: bool = False) -> None:
        """Begin with the greeting owed; `early` allows commands before it (early pipelining)."""
        self._parser = ReplyParser()
        self._machine = SessionState(early=early)
        self.unanswered: deque[Command] = deque([CONNECT])
        self._eof = False
        self.is_spoiled = False
        self.counts_recipients = False
        self.contents_answered = 0
        self._content_open = False
        self._accepted = 0  # recipients of the transaction that replies are heard of
        self._more = 0  # replies that the content at the head of `unanswered` has still to have

    @property
    def state(self) -> State:
        """Where the replies heard so far have put the session."""
        return self._machine.confirmed

    @property
    def oldest_owed(self) -> Command | None:
        """The command whose reply comes next."""
        return self.unanswered[0] if self.unanswered else None

    @property
    def is_content_open(self) -> bool:
        """Whether content was begun and its last piece has not been sent."""
        return self._content_open

    @property
    def is_content_due(self) -> bool:
        """Whether the peer waits for a content that was not begun."""
        return self._machine.confirmed is State.CONTENT

    @property
    def has_said_quit(self) -> bool:
        """Whether it is over, or will be when QUIT is answered."""
        return self._machine.assumed is State.CLOSED

    @property
    def is_ready(self) -> bool:
        """Whether a new transaction may begin: all heard, none open, not spoiled."""
        return self._machine.confirmed is _READY and not self.unanswered and not self.is_spoiled

    @property
    def is_transaction_open(self) -> bool:
        """Whether RSET is due before the next MAIL."""
        return self._machine.confirmed in (State.MAIL, State.RCPT, State.CHUNKS)

    @property
    def unread(self) -> int:
        """Octets received that are no reply yet; none may be there when TLS starts."""
        return self._parser.unread

    def send(self, command: Command) -> bytes:
        """Account for a command and return the octets to write.

        Raises:
            LocalProtocolError: SMTP does not allow it now, or the session is spoiled.
        """
        if self.is_spoiled:
            raise LocalProtocolError("the session is spoiled; it can only be closed")
        if self._content_open:
            if command.kind is not self.unanswered[-1].kind:
                raise LocalProtocolError(f"{command.kind.name} inside the content")
            # Its last piece stands for the content: what is owed is the reply to its end.
            self.unanswered[-1] = command
        else:
            self._machine.sent(command.kind)
            self.unanswered.append(command)
        self._content_open = not command.is_last
        return command.octets

    def send_window(self, window: Sequence[Command]) -> bytes:
        """Account for a window, and return the octets to write.

        Raises:
            LocalProtocolError: SMTP does not allow it now, or the session is spoiled; none of it
                counts as sent.
        """
        if len(window) == 1:
            return self.send(window[0])
        if self._content_open:
            return b"".join([self.send(command) for command in window])
        if self.is_spoiled:
            raise LocalProtocolError("the session is spoiled; it can only be closed")
        self._machine.sent(*map(_kind_of, window))
        self.unanswered += window
        self._content_open = not window[-1].is_last
        return b"".join(map(_octets_of, window))

    def send_failed(self) -> None:
        """Account for octets that did not, or did not all, leave: the session is spoiled."""
        self.is_spoiled = True

    def receive(self, octets: bytes) -> None:
        """Take octets from the peer; `b""` when it hung up."""
        if octets:
            self._parser.feed(octets)
        else:
            self._eof = True

    def receive_run(self, octets: bytes) -> Run | None:
        """Take octets from the peer, and return the replies in them where there is nothing else.

        It gives what `next_event` would give one by one, for the path where every message passes.
        With a 421, anything out of turn, or less than whole replies in them, or before them, it is
        `None`, and all is left for `next_event`.
        """
        unanswered, replies = self.unanswered, None
        if not (self._content_open or self.counts_recipients):
            replies = self._parser.read_lines(octets)
        if not replies or (count := len(replies)) > len(unanswered):
            self.receive(octets)
            return None
        is_all = count == len(unanswered)
        commands = list(unanswered) if is_all else list(islice(unanswered, count))
        walk = after_run if count <= MOST_REMEMBERED else after_run.__wrapped__
        found = walk(
            self._machine.confirmed, tuple(map(_kind_of, commands)), tuple(map(_code_of, replies))
        )
        if found is None:
            self.receive(octets)
            return None
        if is_all:
            unanswered.clear()
        else:
            for _ in commands:
                unanswered.popleft()
        state, ends, is_smooth = found
        self._machine.heard_all(state, is_all)
        self.contents_answered += ends
        return _new(Run, (commands, replies, is_smooth, False))

    def next_event(self) -> Event | None:
        """Return what happened next, `None` when more octets are needed to tell.

        Raises:
            RemoteProtocolError: The peer broke the protocol; the session is spoiled.
        """
        try:
            reply = self._parser.next_reply()
        except RemoteProtocolError:
            self.is_spoiled = True
            raise
        if reply is not None:
            try:
                return self._heard(reply)
            except RemoteProtocolError as error:
                self.is_spoiled = True
                raise RemoteProtocolError(str(error), reply.encode()) from None
        if self._eof:
            self._eof = False  # told once, so that taking events comes to an end
            self.is_spoiled = True
            self._machine.closed()
            return Closed()
        return None

    def tls_started(self) -> None:
        """Forget the session in clear; a new hello is due (RFC 3207 §4.2).

        Raises:
            LocalProtocolError: No handshake was due.
            RemoteProtocolError: Octets came in clear behind the reply to STARTTLS.
        """
        if self._parser.unread:
            self.is_spoiled = True
            raise RemoteProtocolError("octets in clear behind the reply to STARTTLS")
        self._machine.tls_started()

    def _heard(self, reply: Reply) -> Event:
        unanswered = self.unanswered
        if not unanswered:
            if reply.code == 421:
                self.is_spoiled = True
                self._machine.closed()
                return Closing(reply)
            raise RemoteProtocolError("a reply to nothing that was asked")
        command = unanswered[0]
        is_early = self._content_open and len(unanswered) == 1
        if is_early:
            self.is_spoiled = True
            if reply.is_positive:
                raise RemoteProtocolError("content accepted before its end")
        if reply.code == 421:
            # RFC 5321 §3.8: the peer closes.  Replies to what is still in flight will not come.
            self.is_spoiled = True
            self._machine.closed()
        elif self.counts_recipients and self._has_more(command, reply):
            return Answered(command, reply, is_early)
        elif self._machine.confirmed is not State.CLOSED:
            self._machine.heard(command.kind, reply.severity, is_last=len(unanswered) == 1)
        unanswered.popleft()
        if command.kind in ENDS_OF_CONTENT:
            self.contents_answered += 1
        return Answered(command, reply, is_early)

    def _has_more(self, command: Command, reply: Reply) -> bool:
        """Count recipients, and the replies to a content; whether this one has more to come."""
        if command.kind is Kind.MAIL:
            self._accepted = 0
        elif command.kind is Kind.RCPT:
            self._accepted += reply.is_positive
        elif command.kind in ENDS_OF_CONTENT:
            if self._more:
                self._more -= 1
            elif command.answers is Answers.FOR_EACH:
                self._more = max(self._accepted, 1) - 1
            elif command.answers is Answers.FOR_EACH_AND_ALL and reply.code == 353:
                self._more = self._accepted + 1
                return True  # the only intermediate reply a content has
            if reply.severity == 3:
                raise RemoteProtocolError(f"a 3yz reply to {command.kind.name}")
            return self._more > 0
        return False
