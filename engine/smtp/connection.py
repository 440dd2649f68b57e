"""One SMTP session as values: commands become octets, octets become events.  Knows no I/O.

The caller owns the socket, the clock and the log.  It asks `send()` for the octets of each command
in order, feeds what it reads to `receive()` and takes events from `next_event()` until there is
none.  When octets did not all leave, it says so with `send_failed()`; when the peer hung up, it
feeds `b""`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine.smtp.command import CONNECT, ENDS_OF_CONTENT, Command, Kind
from engine.smtp.errors import LocalProtocolError, RemoteProtocolError
from engine.smtp.reply import Reply, ReplyParser
from engine.smtp.state import SessionState, State

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        is_spoiled: Whether the two sides are, or may be, out of step: only closing is left.
        contents_answered: How many contents had the reply to their end.
    """

    def __init__(self, *, early: bool = False) -> None:
        """Begin with the greeting owed; `early` allows commands before it (early pipelining)."""
        self._parser = ReplyParser()
        self._machine = SessionState(early=early)
        self._owed: deque[Command] = deque([CONNECT])
        self._eof = False
        self.is_spoiled = False
        self.contents_answered = 0
        self._content_open = False

    @property
    def state(self) -> State:
        """Where the replies heard so far have put the session."""
        return self._machine.confirmed

    @property
    def owed(self) -> int:
        """How many replies the peer owes."""
        return len(self._owed)

    @property
    def oldest_owed(self) -> Command | None:
        """The command whose reply comes next."""
        return self._owed[0] if self._owed else None

    @property
    def is_content_open(self) -> bool:
        """Whether content was begun and its last piece has not been sent."""
        return self._content_open

    @property
    def is_ready(self) -> bool:
        """Whether a new transaction may begin: all heard, none open, not spoiled."""
        return self._machine.confirmed is State.READY and not self._owed and not self.is_spoiled

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
            if command.kind is not Kind.CONTENT:
                raise LocalProtocolError(f"{command.kind.name} inside the content")
            # Its last piece stands for the content: what is owed is the reply to the final dot.
            self._owed[-1] = command
        else:
            self._machine.sent(command.kind)
            self._owed.append(command)
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
        self._machine.sent(*[command.kind for command in window])
        self._owed += window
        self._content_open = not window[-1].is_last
        return b"".join([command.octets for command in window])

    def send_failed(self) -> None:
        """Account for octets that did not, or did not all, leave: the session is spoiled."""
        self.is_spoiled = True

    def receive(self, octets: bytes) -> None:
        """Take octets from the peer; `b""` when it hung up."""
        if octets:
            self._parser.feed(octets)
        else:
            self._eof = True

    @property
    def is_all_heard(self) -> bool:
        """Whether all that was received has been told."""
        return not self._eof and self._parser.is_empty

    def take_run(self) -> list[Answered]:
        """Return the replies that are ready, if all of them are as expected.

        It gives what `next_event` would give one by one, for the path where every message passes.
        With a 421 or anything out of turn among them, all are left for `next_event`.
        """
        ready, owed = self._parser.ready, self._owed
        if self._content_open or not 0 < len(ready) <= len(owed):
            return []
        run = list(map(Answered, owed, ready))
        severities = tuple([421 if reply.code == 421 else reply.code // 100 for reply in ready])
        kinds = tuple([answer.command.kind for answer in run])
        if not self._machine.heard_run(kinds, severities, is_last=len(run) == len(owed)):
            return []
        ready.clear()
        for _ in run:
            if owed.popleft().kind in ENDS_OF_CONTENT:
                self.contents_answered += 1
        return run

    def next_event(self) -> Event | None:
        """Return what happened next, `None` when more octets are needed to tell.

        Raises:
            RemoteProtocolError: The peer broke the protocol; the session is spoiled.
        """
        try:
            reply = self._parser.next_reply()
            if reply is not None:
                return self._heard(reply)
        except RemoteProtocolError:
            self.is_spoiled = True
            raise
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
        owed = self._owed
        if not owed:
            if reply.code == 421:
                self.is_spoiled = True
                self._machine.closed()
                return Closing(reply)
            raise RemoteProtocolError("a reply to nothing that was asked", reply.encode())
        command = owed.popleft()
        is_early = self._content_open and command.kind is Kind.CONTENT
        if command.kind in ENDS_OF_CONTENT:
            self.contents_answered += 1
        if is_early:
            self.is_spoiled = True
            if reply.is_positive:
                raise RemoteProtocolError("content accepted before its end", reply.encode())
        if reply.code == 421:
            # RFC 5321 §3.8: the peer closes.  Replies to what is still in flight will not come.
            self.is_spoiled = True
            self._machine.closed()
        elif self._machine.confirmed is not State.CLOSED:
            self._machine.heard(command.kind, reply.severity, is_last=not owed)
        return Answered(command, reply, is_early)
