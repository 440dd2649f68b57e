"""The table, row by row, as legal dialogues reach it; nothing here looks into the table to expect."""

from __future__ import annotations

from copy import copy
from itertools import product

import pytest

from engine.smtp.command import Kind
from engine.smtp.errors import LocalProtocolError, RemoteProtocolError
from engine.smtp.state import ANYTIME, BARRIERS, EARLY_BARRIERS, TRANSITIONS, SessionState, State

K, S = Kind, State
OK, GO_ON, LATER, NEVER = 2, 3, 4, 5

#: state, kind, first digit (N: 4 and 5 alike), new state.  By RFC 5321 §4.3.2, RFC 2920 §3.1,
#: RFC 3030 §2, RFC 3207 §4, RFC 4954 §4 and RFC 2033 §4.
ROWS = """
    GREETING  CONNECT    2  HELLO
    GREETING  CONNECT    N  MUST_QUIT

    HELLO     EHLO       2  READY
    HELLO     EHLO       N  HELLO
    HELLO     HELO       2  READY
    HELLO     HELO       N  HELLO
    HELLO     LHLO       2  READY
    HELLO     LHLO       N  HELLO
    HELLO     STARTTLS   N  HELLO
    HELLO     AUTH       N  HELLO
    HELLO     MAIL       N  HELLO
    HELLO     RCPT       N  HELLO
    HELLO     DATA       N  HELLO
    HELLO     BDAT       N  HELLO
    HELLO     BDAT_LAST  N  HELLO

    READY     EHLO       2  READY
    READY     EHLO       N  READY
    READY     STARTTLS   2  TLS
    READY     STARTTLS   N  READY
    READY     AUTH       2  READY
    READY     AUTH       3  AUTH
    READY     AUTH       N  READY
    READY     MAIL       2  MAIL
    READY     MAIL       N  READY
    READY     RCPT       N  READY
    READY     DATA       3  CONTENT
    READY     DATA       N  READY
    READY     BDAT       N  READY
    READY     BDAT_LAST  2  READY
    READY     BDAT_LAST  N  READY

    AUTH      AUTH_STEP  2  READY
    AUTH      AUTH_STEP  3  AUTH
    AUTH      AUTH_STEP  N  READY

    MAIL      RCPT       2  RCPT
    MAIL      RCPT       N  MAIL
    MAIL      DATA       3  CONTENT
    MAIL      DATA       N  MAIL
    MAIL      BDAT       2  CHUNKS
    MAIL      BDAT       N  MAIL
    MAIL      BDAT_LAST  2  READY
    MAIL      BDAT_LAST  N  MAIL
    MAIL      MAIL       2  MAIL
    MAIL      MAIL       N  MAIL

    RCPT      MAIL       2  MAIL
    RCPT      MAIL       N  RCPT
    RCPT      RCPT       2  RCPT
    RCPT      RCPT       N  RCPT
    RCPT      DATA       3  CONTENT
    RCPT      DATA       N  RCPT
    RCPT      BDAT       2  CHUNKS
    RCPT      BDAT       N  RCPT
    RCPT      BDAT_LAST  2  READY
    RCPT      BDAT_LAST  N  RCPT

    CONTENT   CONTENT    2  READY
    CONTENT   CONTENT    N  READY

    CHUNKS    BDAT       2  CHUNKS
    CHUNKS    BDAT       N  RCPT
    CHUNKS    BDAT_LAST  2  READY
    CHUNKS    BDAT_LAST  N  RCPT

    MUST_QUIT EHLO       N  MUST_QUIT
    MUST_QUIT STARTTLS   N  MUST_QUIT
    MUST_QUIT AUTH       N  MUST_QUIT
    MUST_QUIT MAIL       N  MUST_QUIT
    MUST_QUIT RCPT       N  MUST_QUIT
    MUST_QUIT DATA       N  MUST_QUIT
    MUST_QUIT BDAT       N  MUST_QUIT
    MUST_QUIT BDAT_LAST  N  MUST_QUIT
"""
ANYTIME_ROWS = """
    HELLO     NOOP       2  HELLO
    HELLO     NOOP       N  HELLO
    HELLO     RSET       2  HELLO
    HELLO     RSET       N  HELLO
    HELLO     QUIT       2  CLOSED
    HELLO     QUIT       N  CLOSED
    READY     NOOP       2  READY
    READY     NOOP       N  READY
    READY     RSET       2  READY
    READY     RSET       N  READY
    READY     QUIT       2  CLOSED
    READY     QUIT       N  CLOSED
    MAIL      NOOP       2  MAIL
    MAIL      NOOP       N  MAIL
    MAIL      RSET       2  READY
    MAIL      RSET       N  MAIL
    MAIL      QUIT       2  CLOSED
    MAIL      QUIT       N  CLOSED
    RCPT      NOOP       2  RCPT
    RCPT      NOOP       N  RCPT
    RCPT      RSET       2  READY
    RCPT      RSET       N  RCPT
    RCPT      QUIT       2  CLOSED
    RCPT      QUIT       N  CLOSED
    CHUNKS    NOOP       2  CHUNKS
    CHUNKS    NOOP       N  CHUNKS
    CHUNKS    RSET       2  READY
    CHUNKS    RSET       N  CHUNKS
    CHUNKS    QUIT       2  CLOSED
    CHUNKS    QUIT       N  CLOSED
    MUST_QUIT QUIT       2  CLOSED
    MUST_QUIT QUIT       N  CLOSED
"""


def read(rows):
    table = {}
    for row in rows.split("\n"):
        if row.strip():
            state, kind, digit, new = row.split()
            for severity in (LATER, NEVER) if digit == "N" else (int(digit),):
                table[S[state], K[kind], severity] = S[new]
    return table


def explore(*, early, most_in_flight):
    """Let a legal client and any server talk in every way, and return the moves they make."""
    moves = {}
    seen, todo = set(), [(SessionState(early=early), (K.CONNECT,))]
    while todo:
        machine, owed = todo.pop()
        key = (machine.assumed, machine.confirmed, owed)
        if key in seen:
            continue
        seen.add(key)
        for kind in K if len(owed) < most_in_flight else ():
            after = copy(machine)
            try:
                after.sent(kind)
            except LocalProtocolError:
                continue
            todo.append((after, (*owed, kind)))
        for severity in (OK, GO_ON, LATER, NEVER) if owed else ():
            after, move = copy(machine), (machine.confirmed, owed[0], severity)
            try:
                after.heard(owed[0], severity, is_last=len(owed) == 1)
            except RemoteProtocolError:
                continue
            assert moves.setdefault(move, after.confirmed) is after.confirmed
            todo.append((after, owed[1:]))
    return moves


def test_legal_dialogues_move_exactly_along_the_rows_of_the_rfcs():
    moves = explore(early=False, most_in_flight=3) | explore(early=True, most_in_flight=5)
    assert moves == read(ROWS) | read(ANYTIME_ROWS)


def test_the_table_has_no_row_that_no_dialogue_reaches():
    rows = {
        (state, kind, severity)
        for state, row in TRANSITIONS.items()
        for kind, digit in row
        for severity in ((LATER, NEVER) if digit == 0 else (digit,))
    }
    assert rows == set(read(ROWS))


def test_every_state_has_its_rows_and_the_closed_ones_none():
    assert set(TRANSITIONS) == set(State)
    assert TRANSITIONS[S.TLS] == TRANSITIONS[S.CLOSED] == {}
    assert set(ANYTIME) == {K.NOOP, K.RSET, K.QUIT}


# -- dialogues in words -------------------------------------------------------------------------

HELLO = [(K.CONNECT, OK)]
READY = [*HELLO, (K.EHLO, OK)]
MAIL = [*READY, (K.MAIL, OK)]
RCPT = [*MAIL, (K.RCPT, OK)]
CONTENT = [*RCPT, (K.DATA, GO_ON)]
CHUNKS = [*RCPT, (K.BDAT, OK)]
PATHS = {
    S.GREETING: [],
    S.HELLO: HELLO,
    S.READY: READY,
    S.AUTH: [*READY, (K.AUTH, GO_ON)],
    S.TLS: [*READY, (K.STARTTLS, OK)],
    S.MAIL: MAIL,
    S.RCPT: RCPT,
    S.CONTENT: CONTENT,
    S.CHUNKS: CHUNKS,
    S.MUST_QUIT: [(K.CONNECT, NEVER)],
    S.CLOSED: [*READY, (K.QUIT, OK)],
}


def play(dialogue, *, early=False):
    """Speak in lockstep."""
    machine = SessionState(early=early)
    for kind, severity in dialogue:
        if kind is not K.CONNECT:
            machine.sent(kind)
        machine.heard(kind, severity, is_last=True)
    return machine


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_in_lockstep(state):
    machine = play(PATHS[state])
    assert machine.confirmed is machine.assumed is state


#: What a client may say where, when nothing is in flight.
MAY_SAY = {
    S.GREETING: set(),
    S.HELLO: {K.EHLO, K.HELO, K.LHLO, K.NOOP, K.RSET, K.QUIT},
    S.READY: {K.EHLO, K.STARTTLS, K.AUTH, K.MAIL, K.NOOP, K.RSET, K.QUIT},
    S.AUTH: {K.AUTH_STEP},
    S.TLS: set(),
    S.MAIL: {K.RCPT, K.NOOP, K.RSET, K.QUIT},
    S.RCPT: {K.RCPT, K.DATA, K.BDAT, K.BDAT_LAST, K.NOOP, K.RSET, K.QUIT},
    S.CONTENT: {K.CONTENT},
    S.CHUNKS: {K.BDAT, K.BDAT_LAST, K.NOOP, K.RSET, K.QUIT},
    S.MUST_QUIT: {K.QUIT},
    S.CLOSED: set(),
}


@pytest.mark.parametrize(("state", "kind"), [*product(State, Kind)])
def test_a_client_says_what_it_may_and_nothing_else(state, kind):
    machine = play(PATHS[state])
    if kind in MAY_SAY[state]:
        machine.sent(kind)
    else:
        with pytest.raises(LocalProtocolError, match=f"^{kind.name} "):
            machine.sent(kind)
        assert machine.assumed is state  # a refused command leaves no trace


BARRIER_PATHS = {
    K.CONNECT: [],
    K.EHLO: HELLO,
    K.HELO: HELLO,
    K.LHLO: HELLO,
    K.STARTTLS: READY,
    K.AUTH: READY,
    K.AUTH_STEP: [*READY, (K.AUTH, GO_ON)],
    K.DATA: RCPT,
    K.NOOP: READY,
    K.QUIT: READY,
}


@pytest.mark.parametrize("barrier", BARRIER_PATHS)
def test_nothing_follows_a_barrier_until_its_reply_is_heard(barrier):
    machine = play(BARRIER_PATHS[barrier])
    if barrier is not K.CONNECT:
        machine.sent(barrier)
    for kind in Kind:
        with pytest.raises(LocalProtocolError, match=f"before the reply to {barrier.name}"):
            machine.sent(kind)


def test_the_barriers_are_those_of_the_rfcs():
    assert set(BARRIER_PATHS) == BARRIERS


def test_after_the_reply_to_a_barrier_the_client_goes_on():
    machine = play(READY)
    machine.sent(K.NOOP)
    machine.heard(K.NOOP, OK, is_last=True)
    machine.sent(K.MAIL)
    assert machine.assumed is S.MAIL


@pytest.mark.parametrize(
    "window",
    [
        (K.RSET, K.MAIL, K.RCPT, K.RCPT, K.DATA),
        (K.MAIL, K.RCPT, K.BDAT, K.BDAT, K.BDAT_LAST, K.MAIL, K.RCPT, K.BDAT_LAST, K.QUIT),
        (K.MAIL, K.RCPT, K.RSET, K.MAIL, K.RSET, K.NOOP),
    ],
)
def test_what_is_no_barrier_may_be_followed(window):
    machine = play(READY)
    for kind in window:
        machine.sent(kind)
    assert machine.confirmed is S.READY


def test_early_pipelining_takes_the_barriers_of_the_opening_away_and_no_others():
    assert EARLY_BARRIERS | {K.CONNECT, K.EHLO} == BARRIERS
    assert not EARLY_BARRIERS & {K.CONNECT, K.EHLO}

    machine = SessionState(early=True)
    for kind in (K.EHLO, K.MAIL, K.RCPT, K.DATA):
        machine.sent(kind)
    with pytest.raises(LocalProtocolError, match="before the reply to DATA"):
        machine.sent(K.CONTENT)
    for kind in (K.CONNECT, K.EHLO, K.MAIL, K.RCPT):
        machine.heard(kind, OK, is_last=False)
    machine.heard(K.DATA, GO_ON, is_last=True)
    assert machine.confirmed is machine.assumed is S.CONTENT


def test_early_commands_behind_a_refused_greeting_leave_quit_alone():
    machine = SessionState(early=True)
    for kind in (K.EHLO, K.MAIL):
        machine.sent(kind)
    for kind in (K.CONNECT, K.EHLO, K.MAIL):
        machine.heard(kind, NEVER, is_last=kind is K.MAIL)
    assert machine.assumed is S.MUST_QUIT
    machine.sent(K.QUIT)


# -- both cursors -------------------------------------------------------------------------------


def expected_end(mail, first, second, data):
    """Where MAIL, RCPT, RCPT, DATA in one window end up; `None` where the server broke SMTP."""
    if GO_ON in (mail, first, second) or data == OK:
        return None
    if mail != OK and OK in (first, second):
        return None  # a recipient in no transaction
    if data == GO_ON:
        return S.CONTENT
    if mail != OK:
        return S.READY
    return S.RCPT if OK in (first, second) else S.MAIL


@pytest.mark.parametrize("severities", [*product((OK, GO_ON, LATER, NEVER), repeat=4)])
def test_the_cursors_agree_whatever_is_answered_to_a_window(severities):
    machine, kinds = play(READY), (K.MAIL, K.RCPT, K.RCPT, K.DATA)
    for kind in kinds:
        machine.sent(kind)
    assert (machine.assumed, machine.confirmed) == (S.CONTENT, S.READY)

    def hear():
        for place, (kind, severity) in enumerate(zip(kinds, severities, strict=True)):
            machine.heard(kind, severity, is_last=place == 3)

    end = expected_end(*severities)
    if end is None:
        with pytest.raises(RemoteProtocolError, match=r"^a \dyz reply to "):
            hear()
    else:
        hear()
        assert machine.confirmed is machine.assumed is end


def test_a_violation_moves_neither_cursor():
    machine = play(RCPT)
    machine.sent(K.DATA)
    with pytest.raises(RemoteProtocolError, match="a 2yz reply to DATA"):
        machine.heard(K.DATA, OK, is_last=True)
    assert (machine.assumed, machine.confirmed) == (S.CONTENT, S.RCPT)


def test_what_was_bet_on_and_lost_is_forgotten():
    machine = play(READY)
    for kind in (K.MAIL, K.RCPT):
        machine.sent(kind)
    machine.heard(K.MAIL, LATER, is_last=False)
    assert machine.assumed is S.RCPT  # one reply is still to come
    machine.heard(K.RCPT, NEVER, is_last=True)
    assert machine.assumed is S.READY
    machine.sent(K.MAIL)


@pytest.mark.parametrize("final", [OK, LATER, NEVER])
def test_the_next_envelope_follows_the_final_dot_and_does_not_mind_its_fate(final):
    machine = play(CONTENT)
    for kind in (K.CONTENT, K.MAIL, K.RCPT, K.DATA):
        machine.sent(kind)
    machine.heard(K.CONTENT, final, is_last=False)
    machine.heard(K.MAIL, OK, is_last=False)
    machine.heard(K.RCPT, OK, is_last=False)
    machine.heard(K.DATA, GO_ON, is_last=True)
    assert machine.confirmed is machine.assumed is S.CONTENT


def test_a_server_may_refuse_each_command_that_came_behind_the_dot():
    machine = play(CONTENT)
    for kind in (K.CONTENT, K.MAIL, K.RCPT, K.DATA):
        machine.sent(kind)
    machine.heard(K.CONTENT, OK, is_last=False)
    for kind in (K.MAIL, K.RCPT, K.DATA):
        machine.heard(kind, NEVER, is_last=kind is K.DATA)
    assert machine.confirmed is machine.assumed is S.READY
    machine.sent(K.MAIL)  # again, in lockstep


def test_quit_may_follow_the_final_dot():
    machine = play(CONTENT)
    for kind in (K.CONTENT, K.QUIT):
        machine.sent(kind)
    machine.heard(K.CONTENT, NEVER, is_last=False)
    machine.heard(K.QUIT, OK, is_last=True)
    assert machine.confirmed is S.CLOSED


def test_a_go_ahead_for_nobody_leaves_room_for_the_lone_dot_only():
    machine = play(READY)
    for kind in (K.MAIL, K.RCPT, K.DATA):
        machine.sent(kind)
    machine.heard(K.MAIL, OK, is_last=False)
    machine.heard(K.RCPT, NEVER, is_last=False)
    machine.heard(K.DATA, GO_ON, is_last=True)
    for kind in set(Kind) - {K.CONTENT}:
        with pytest.raises(LocalProtocolError):
            machine.sent(kind)
    machine.sent(K.CONTENT)
    machine.heard(K.CONTENT, NEVER, is_last=True)
    assert machine.confirmed is S.READY


def test_a_refused_chunk_asks_for_rset():
    machine = play([*CHUNKS, (K.BDAT, NEVER)])
    with pytest.raises(LocalProtocolError, match="MAIL is not allowed in state RCPT"):
        machine.sent(K.MAIL)
    machine.sent(K.RSET)
    machine.heard(K.RSET, OK, is_last=True)
    machine.sent(K.MAIL)


# -- endings and TLS ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_when_closed_nothing_may_be_said(state):
    machine = play(PATHS[state])
    machine.closed()
    assert machine.confirmed is machine.assumed is S.CLOSED
    for kind in Kind:
        with pytest.raises(LocalProtocolError):
            machine.sent(kind)


def test_after_the_handshake_a_new_hello_is_due():
    machine = play(PATHS[S.TLS])
    machine.tls_started()
    assert machine.confirmed is machine.assumed is S.HELLO
    with pytest.raises(LocalProtocolError, match="MAIL is not allowed in state HELLO"):
        machine.sent(K.MAIL)
    machine.sent(K.EHLO)
    machine.heard(K.EHLO, OK, is_last=True)
    assert machine.confirmed is S.READY


@pytest.mark.parametrize("state", [state for state in State if state is not S.TLS])
def test_no_handshake_is_due_anywhere_else(state):
    with pytest.raises(LocalProtocolError, match="no TLS handshake was due"):
        play(PATHS[state]).tls_started()


def test_a_refused_starttls_lets_the_session_go_on_in_clear():
    machine = play([*READY, (K.STARTTLS, LATER), (K.MAIL, OK)])
    assert machine.confirmed is S.MAIL


def test_auth_may_take_several_steps():
    steps = [(K.AUTH, GO_ON), (K.AUTH_STEP, GO_ON), (K.AUTH_STEP, NEVER), (K.AUTH, OK)]
    assert play([*READY, *steps]).confirmed is S.READY


def test_helo_follows_a_refused_ehlo():
    assert play([*HELLO, (K.EHLO, NEVER), (K.HELO, OK)]).confirmed is S.READY
