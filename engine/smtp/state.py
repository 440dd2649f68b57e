"""The SMTP client state machine: one table, walked by two cursors.  Knows no I/O.

Rule 1: every state and every transition stands in this file.
Rule 2: this file sees kinds of commands and first digits of replies, never octets.

Theory of operation
-------------------
With PIPELINING we speak before we hear.  So one table drives two copies of the state:

* *assumed*: where we will be if every command in flight succeeds.  `sent()` checks each command
  against it, so that no command goes out that SMTP forbids there.
* *confirmed*: where the replies heard so far have put us.  `heard()` moves it.

The connection pairs replies with commands, first in, first out (RFC 2920 §3.1).  When nothing is
owed any more, *assumed* becomes *confirmed*: what we bet on and lost is forgotten.

A window is a run of commands of which only the last may be a barrier, a command whose reply must be
heard before anything else is said.  The content is none: the next MAIL may follow the final dot
(RFC 2920 §3.1).  Early pipelining takes the barriers of the session's opening away.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from engine.smtp.command import ENDS_OF_CONTENT, Kind
from engine.smtp.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    """Where the session stands, as far as the client knows."""

    GREETING = auto()
    #: Greeted, not yet introduced.
    HELLO = auto()
    #: No transaction open.
    READY = auto()
    #: A 334 waits for our answer.
    AUTH = auto()
    #: STARTTLS was agreed to; nothing but a handshake may follow.
    TLS = auto()
    #: MAIL accepted, no recipient yet.
    MAIL = auto()
    #: At least one recipient accepted.
    RCPT = auto()
    #: 354 heard: content goes out.
    CONTENT = auto()
    #: Some chunks accepted, the last one not sent.
    CHUNKS = auto()
    #: Greeted with a refusal; the server waits for QUIT (RFC 5321 §3.1).
    MUST_QUIT = auto()
    CLOSED = auto()

    __hash__ = object.__hash__


S, K = State, Kind
OK, GO_ON, NO = 2, 3, 0  # first digits; NO stands for 4 and 5

#: TRANSITIONS[state][kind, first digit] -> new state.  What is missing is a violation.
TRANSITIONS: Final[Mapping[State, Mapping[tuple[Kind, int], State]]] = {
    S.GREETING: {(K.CONNECT, OK): S.HELLO, (K.CONNECT, NO): S.MUST_QUIT},
    S.HELLO: {
        (K.EHLO, OK): S.READY,
        (K.EHLO, NO): S.HELLO,  # RFC 5321 §3.2: HELO may be tried
        (K.HELO, OK): S.READY,
        (K.HELO, NO): S.HELLO,
        (K.LHLO, OK): S.READY,
        (K.LHLO, NO): S.HELLO,
        # Early pipelining: refused with a transaction in flight behind it.
        (K.AUTH, NO): S.HELLO,
        (K.STARTTLS, NO): S.HELLO,
        (K.MAIL, NO): S.HELLO,
        (K.RCPT, NO): S.HELLO,
        (K.DATA, NO): S.HELLO,
        (K.BDAT, NO): S.HELLO,
        (K.BDAT_LAST, NO): S.HELLO,
    },
    S.READY: {
        (K.EHLO, OK): S.READY,
        (K.EHLO, NO): S.READY,
        (K.STARTTLS, OK): S.TLS,
        (K.STARTTLS, NO): S.READY,
        (K.AUTH, OK): S.READY,
        (K.AUTH, GO_ON): S.AUTH,
        (K.AUTH, NO): S.READY,
        (K.MAIL, OK): S.MAIL,
        (K.MAIL, NO): S.READY,
        # MAIL was refused with these in flight behind it.
        (K.RCPT, NO): S.READY,
        (K.DATA, NO): S.READY,
        (K.BDAT, NO): S.READY,
        (K.BDAT_LAST, NO): S.READY,
        # A server that goes on all the same is given a lone dot.
        (K.DATA, GO_ON): S.CONTENT,
        # A chunk that was taken although there is no transaction: nothing was delivered.
        (K.BDAT_LAST, OK): S.READY,
    },
    S.AUTH: {
        (K.AUTH_STEP, GO_ON): S.AUTH,
        (K.AUTH_STEP, OK): S.READY,
        (K.AUTH_STEP, NO): S.READY,
    },
    S.TLS: {},  # left through tls_started() alone
    S.MAIL: {
        # In flight behind a transaction that no content has ended: the server may say that it is
        # still open, or open the new one.
        (K.MAIL, NO): S.MAIL,
        (K.MAIL, OK): S.MAIL,
        (K.RCPT, OK): S.RCPT,
        (K.RCPT, NO): S.MAIL,
        (K.DATA, NO): S.MAIL,
        # RFC 2920 §3.1: 354 although every RCPT failed; a lone dot is due.
        (K.DATA, GO_ON): S.CONTENT,
        (K.BDAT, NO): S.MAIL,
        (K.BDAT_LAST, NO): S.MAIL,
        # Accepted for nobody: that delivers nothing and ends the transaction.
        (K.BDAT, OK): S.CHUNKS,
        (K.BDAT_LAST, OK): S.READY,
    },
    S.RCPT: {
        # In flight behind a last chunk that was refused, as above.
        (K.MAIL, NO): S.RCPT,
        (K.MAIL, OK): S.MAIL,
        (K.RCPT, OK): S.RCPT,
        (K.RCPT, NO): S.RCPT,
        (K.DATA, GO_ON): S.CONTENT,
        (K.DATA, NO): S.RCPT,
        (K.BDAT, OK): S.CHUNKS,
        (K.BDAT, NO): S.RCPT,
        (K.BDAT_LAST, OK): S.READY,
        # Most servers end the transaction with it; one that does not know the command does not.
        (K.BDAT_LAST, NO): S.RCPT,
    },
    # RFC 5321 §4.1.1.4: the end of data clears the buffers whatever the reply says.
    S.CONTENT: {(K.CONTENT, OK): S.READY, (K.CONTENT, NO): S.READY},
    S.CHUNKS: {
        (K.BDAT, OK): S.CHUNKS,
        (K.BDAT, NO): S.RCPT,  # RFC 3030 §2: what was sent is discarded, RSET is due
        (K.BDAT_LAST, OK): S.READY,
        (K.BDAT_LAST, NO): S.RCPT,
    },
    # Early pipelining: what was in flight behind a refused greeting gets 503 (RFC 5321 §3.1).
    S.MUST_QUIT: {
        (K.EHLO, NO): S.MUST_QUIT,
        (K.STARTTLS, NO): S.MUST_QUIT,
        (K.AUTH, NO): S.MUST_QUIT,
        (K.MAIL, NO): S.MUST_QUIT,
        (K.RCPT, NO): S.MUST_QUIT,
        (K.DATA, NO): S.MUST_QUIT,
        (K.BDAT, NO): S.MUST_QUIT,
        (K.BDAT_LAST, NO): S.MUST_QUIT,
    },
    S.CLOSED: {},
}

#: Allowed wherever a command may be sent at all, with the state they lead to (`None`: none new).
ANYTIME: Final[Mapping[Kind, State | None]] = {
    K.NOOP: None,
    K.RSET: State.READY,
    K.QUIT: State.CLOSED,
}
_COMMAND_STATES: Final = frozenset({S.HELLO, S.READY, S.MAIL, S.RCPT, S.CHUNKS})
#: Not after 354, where QUIT would be a line of the content, nor after 334 or a STARTTLS agreed to.
_QUIT_STATES: Final = _COMMAND_STATES | {S.MUST_QUIT}

#: Nothing may follow these until their reply is heard (RFC 2920 §3.1, RFC 3207 §4, RFC 4954 §4).
BARRIERS: Final = frozenset(
    {K.CONNECT, K.EHLO, K.HELO, K.LHLO, K.STARTTLS, K.AUTH, K.AUTH_STEP, K.DATA, K.NOOP, K.QUIT}
)
#: With early pipelining these are none: the server said before that it takes what follows them.
EARLY_BARRIERS: Final = BARRIERS - {K.CONNECT, K.EHLO}

#: Rows for servers that answer so; we never ask there.
_HEARD_ONLY: Final = frozenset(
    {
        (S.READY, K.DATA),
        (S.READY, K.BDAT_LAST),
        (S.MAIL, K.MAIL),
        (S.MAIL, K.DATA),
        (S.MAIL, K.BDAT),
        (S.MAIL, K.BDAT_LAST),
        (S.RCPT, K.MAIL),
    }
)


def _step(state: State, kind: Kind, severity: int) -> State | None:
    new = TRANSITIONS[state].get((kind, severity if severity < 4 else NO))
    if new is None and kind in ANYTIME:
        return _step_anytime(state, kind, severity)
    return new


def _step_anytime(state: State, kind: Kind, severity: int) -> State | None:
    if kind is Kind.QUIT:
        return State.CLOSED if state in _QUIT_STATES and severity != GO_ON else None
    if state in _COMMAND_STATES and severity != GO_ON:
        # RSET before a hello changes nothing that it could reset.
        target = ANYTIME[kind] if state is not State.HELLO else None
        return state if severity >= 4 or target is None else target
    return None


def _sendable(state: State) -> dict[Kind, State]:
    """Where *assumed* goes with each command: it bets on success, and on 354 for DATA."""
    bets = {kind: _step(state, kind, GO_ON if kind is K.DATA else OK) for kind in Kind}
    return {
        kind: new
        for kind, new in bets.items()
        if new is not None and (state, kind) not in _HEARD_ONLY
    }


# The table unrolled, one look-up a step: this is on the path of every command and reply.
_SENT: Final[Mapping[State, Mapping[Kind, State]]] = {state: _sendable(state) for state in State}
#: HEARD[state][kind][first digit]: where *confirmed* goes; `None`: no such reply exists there.
HEARD: Final[Mapping[State, Mapping[Kind, tuple[State | None, ...]]]] = {
    state: {
        kind: (None, None, *(_step(state, kind, severity) for severity in (2, 3, 4, 5)))
        for kind in Kind
    }
    for state in State
}


#: Windows and runs up to this length are walked once and remembered: nearly all mail is alike.
MOST_REMEMBERED: Final = 64


@lru_cache(maxsize=256)
def _after_window(
    state: State, last: Kind | None, kinds: tuple[Kind, ...], barriers: frozenset[Kind]
) -> State:
    for kind in kinds:
        if last in barriers:
            raise LocalProtocolError(f"{kind.name} before the reply to {last.name}")
        new = _SENT[state].get(kind)
        if new is None:
            raise LocalProtocolError(f"{kind.name} is not allowed in state {state.name}")
        state, last = new, kind
    return state


@lru_cache(maxsize=1024)
def after_run(
    state: State, kinds: tuple[Kind, ...], codes: tuple[int, ...]
) -> tuple[State, int, bool] | None:
    """Walk replies to the oldest commands in flight.

    Args:
        state: Where the replies before them led.
        kinds: Of the commands.
        codes: Of the replies, as many.

    Returns:
        Where they lead, how many of them decide on a content, and whether each is the one that the
        command was sent for; `None` where one of them may not stand there, or is a 421.
    """
    ends, is_smooth = 0, True
    for kind, code in zip(kinds, codes, strict=True):
        new = HEARD[state][kind][code // 100]
        if new is None or code == 421:
            return None
        state = new
        ends += kind in ENDS_OF_CONTENT
        is_smooth = is_smooth and code // 100 == (GO_ON if kind is K.DATA else OK)
    return state, ends, is_smooth


class SessionState:
    """Both cursors over the table.

    Attributes:
        assumed: Where we will be if all in flight succeeds.
        confirmed: Where the replies have put us.
    """

    __slots__ = ("_barriers", "_last", "assumed", "confirmed")

    def __init__(self, *, early: bool = False) -> None:
        self.assumed = self.confirmed = State.GREETING
        self._last: Kind | None = Kind.CONNECT  # the newest command in flight
        self._barriers = EARLY_BARRIERS if early else BARRIERS
        if early:
            self.assumed = State.HELLO

    def sent(self, *kinds: Kind) -> None:
        """Account for commands about to go out, all or none of them.

        Raises:
            LocalProtocolError: SMTP does not allow one of them now.
        """
        walk = _after_window if len(kinds) <= MOST_REMEMBERED else _after_window.__wrapped__
        self.assumed = walk(self.assumed, self._last, kinds, self._barriers)
        self._last = kinds[-1]

    def heard_all(self, state: State, is_last: bool) -> None:
        """Account for replies to the oldest commands in flight that were found to lead to `state`.

        Args:
            state: By `HEARD`, from *confirmed*.
            is_last: Whether nothing is in flight any more.
        """
        self.confirmed = state
        if is_last:
            self.assumed = state
            self._last = None

    def heard(self, kind: Kind, severity: int, *, is_last: bool) -> None:
        """Account for the reply to the oldest command in flight.

        Args:
            kind: That command's kind.
            severity: The reply's first digit, 2 to 5.
            is_last: Whether nothing is in flight any more.

        Raises:
            RemoteProtocolError: No such reply exists to such a command, here.
        """
        new = HEARD[self.confirmed][kind][severity]
        if new is None:
            raise RemoteProtocolError(f"a {severity}yz reply to {kind.name}")
        self.heard_all(new, is_last)

    def closed(self) -> None:
        """Account for the end: 421, or the connection is gone."""
        self.assumed = self.confirmed = State.CLOSED

    def tls_started(self) -> None:
        """Start over: what was said before TLS does not count (RFC 3207 §4.2)."""
        if self.confirmed is not State.TLS:
            raise LocalProtocolError("no TLS handshake was due")
        self.assumed = self.confirmed = State.HELLO
