"""Dialogues played without a socket: what is written, what is heard, and what ends a session."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.smtp import command as commands
from engine.smtp.command import Command, Kind
from engine.smtp.connection import Answered, ClientConnection, Closed, Closing
from engine.smtp.errors import LocalProtocolError, RemoteProtocolError
from engine.smtp.reply import Reply
from engine.smtp.state import State

EHLO = commands.hello(Kind.EHLO, "out.example.org")
MAIL = commands.mail(b"a@b.test")
RCPT = commands.rcpt(b"c@d.test")
OTHER = commands.rcpt(b"e@d.test")
DATA, QUIT, RSET, NOOP = commands.DATA, commands.QUIT, commands.RSET, commands.NOOP
CONTENT = commands.content(b"Subject: x\r\n\r\n.\r\n")
SECRET = b"AGpvZQBzM2NyZXRXMHJk"


def take_events(connection):
    events = []
    while (event := connection.next_event()) is not None:
        events.append(event)
    return events


def feed(connection, octets, *, by_octet=False):
    """Feed octets and return the answers as (command, code) and other events as they are."""
    events = []
    for piece in [bytes([value]) for value in octets] if by_octet else [octets]:
        connection.receive(piece)
        events += take_events(connection)
    return events


def answers(events):
    assert all(type(event) is Answered for event in events)
    return [(event.command, event.reply.code) for event in events]


def opened(*exchanges, early=False):
    """A connection after greeting and EHLO, then window and replies in turn."""
    connection = ClientConnection(early=early)
    feed(connection, b"220 mx.test ESMTP\r\n")
    for window, octets in [((EHLO,), b"250 mx.test\r\n"), *exchanges]:
        for command in window:
            connection.send(command)
        feed(connection, octets)
    return connection


ENVELOPE = ((MAIL, RCPT, DATA), b"250 ok\r\n250 ok\r\n354 go\r\n")

# -- dialogues ----------------------------------------------------------------------------------

#: Windows, what the server says after each, and the codes in the order they answer.
DIALOGUES = {
    "a message in lockstep": [
        ((), b"220 mx.test\r\n", [220]),
        ((EHLO,), b"250-mx.test\r\n250 SIZE 1000\r\n", [250]),
        ((MAIL,), b"250 2.1.0 ok\r\n", [250]),
        ((RCPT,), b"251 will forward\r\n", [251]),
        ((OTHER,), b"550 5.1.1 no such user\r\n", [550]),
        ((DATA,), b"354 go\r\n", [354]),
        ((CONTENT,), b"250 queued\r\n", [250]),
        ((QUIT,), b"221 bye\r\n", [221]),
    ],
    "pipelined": [
        ((), b"220-mx.test\r\n220 \r\n", [220]),
        ((EHLO,), b"250-mx.test\r\n250 PIPELINING\r\n", [250]),
        (
            (MAIL, RCPT, OTHER, DATA),
            b"250\r\n452 full\r\n250 ok\r\n354 go\r\n",
            [250, 452, 250, 354],
        ),
        ((CONTENT, QUIT), b"250 queued\r\n221 bye\r\n", [250, 221]),
    ],
    "everything refused, then a lone dot": [
        ((), b"220 mx.test\r\n", [220]),
        ((EHLO,), b"250 mx.test\r\n", [250]),
        ((MAIL, RCPT, DATA), b"250 ok\r\n550 no\r\n354 go\r\n", [250, 550, 354]),
        ((commands.LONE_DOT,), b"554 no valid recipients\r\n", [554]),
        ((MAIL,), b"250 ok\r\n", [250]),
    ],
    "the next envelope behind the dot": [
        ((), b"220 mx.test\r\n", [220]),
        ((EHLO,), b"250 mx.test\r\n", [250]),
        ((MAIL, RCPT, DATA), b"250 ok\r\n250 ok\r\n354 go\r\n", [250, 250, 354]),
        (
            (CONTENT, MAIL, RCPT, DATA),
            b"451 later\r\n250 a\r\n250 b\r\n354 c\r\n",
            [451, 250, 250, 354],
        ),
        ((CONTENT,), b"250 queued\r\n", [250]),
    ],
    "chunks": [
        ((), b"220 mx.test\r\n", [220]),
        ((EHLO,), b"250 mx.test\r\n", [250]),
        (
            (
                MAIL,
                RCPT,
                commands.bdat(b"Subject: x\r\n\r\n", False),
                commands.bdat(b"text\r\n", True),
                MAIL,
                RCPT,
                commands.bdat(b"\r\n", True),
            ),
            b"250 a\r\n250 b\r\n250 14 octets\r\n250 queued\r\n250 a\r\n550 no\r\n503 why\r\n",
            [250, 250, 250, 250, 250, 550, 503],
        ),
        ((RSET,), b"250 ok\r\n", [250]),
    ],
    "lmtp": [
        ((), b"220 mx.test LMTP\r\n", [220]),
        ((commands.hello(Kind.LHLO, "out"),), b"250 mx.test\r\n", [250]),
        ((MAIL, RCPT, DATA), b"250 a\r\n250 b\r\n354 c\r\n", [250, 250, 354]),
        ((CONTENT,), b"250 queued\r\n", [250]),
    ],
    "helo after a refused ehlo": [
        ((), b"220 mx.test\r\n", [220]),
        ((EHLO,), b"502 what\r\n", [502]),
        ((commands.hello(Kind.HELO, "out"),), b"250 mx.test\r\n", [250]),
    ],
    "auth with a challenge": [
        ((), b"220 mx.test\r\n", [220]),
        ((EHLO,), b"250 AUTH LOGIN\r\n", [250]),
        ((commands.auth("LOGIN"),), b"334 VXNlcm5hbWU6\r\n", [334]),
        ((commands.auth_step(SECRET),), b"334 UGFzc3dvcmQ6\r\n", [334]),
        ((commands.auth_step(SECRET),), b"235 2.7.0 in\r\n", [235]),
        ((MAIL,), b"250 ok\r\n", [250]),
    ],
    "a refused greeting": [
        ((), b"554 no service\r\n", [554]),
        ((QUIT,), b"221 bye\r\n", [221]),
    ],
}


@pytest.mark.parametrize("by_octet", [False, True], ids=["whole", "octet by octet"])
@pytest.mark.parametrize("dialogue", DIALOGUES.values(), ids=DIALOGUES)
def test_a_dialogue_pairs_every_reply_with_its_command(dialogue, by_octet):
    connection = ClientConnection()
    for window, octets, codes in dialogue:
        owed = window or (commands.CONNECT,)
        assert [connection.send(command) for command in window] == [c.octets for c in window]
        assert len(connection.unanswered) == len(owed)
        assert connection.oldest_owed == owed[0]

        heard = feed(connection, octets, by_octet=by_octet)

        assert answers(heard) == list(zip(owed, codes, strict=True))
        assert not any(event.is_early for event in heard)
        assert (len(connection.unanswered), connection.oldest_owed) == (0, None)
        assert connection.unread == 0
        assert not connection.is_spoiled


def test_replies_come_before_all_commands_are_answered():
    connection = opened()
    for command in (MAIL, RCPT, DATA):
        connection.send(command)
    assert answers(feed(connection, b"250 ok\r\n550-no")) == [(MAIL, 250)]
    assert connection.oldest_owed == RCPT
    assert connection.unread == 6
    assert not connection.is_ready
    assert answers(feed(connection, b"\r\n550 really\r\n")) == [(RCPT, 550)]


def test_early_pipelining_speaks_before_the_greeting():
    connection = ClientConnection(early=True)
    for command in (EHLO, MAIL, RCPT, DATA):
        connection.send(command)
    heard = feed(connection, b"220 hi\r\n250 hello\r\n250 a\r\n250 b\r\n354 c\r\n")
    assert [command.kind for command, _ in answers(heard)] == [
        Kind.CONNECT,
        Kind.EHLO,
        Kind.MAIL,
        Kind.RCPT,
        Kind.DATA,
    ]


def test_without_early_pipelining_the_greeting_comes_first():
    with pytest.raises(LocalProtocolError, match="EHLO before the reply to CONNECT"):
        ClientConnection().send(EHLO)


def test_a_command_out_of_place_is_neither_owed_nor_written():
    connection = opened()
    with pytest.raises(LocalProtocolError):
        connection.send(RCPT)
    assert len(connection.unanswered) == 0
    connection.send(MAIL)


# -- what a session is good for -----------------------------------------------------------------


def test_a_session_is_ready_between_transactions_only():
    assert not ClientConnection().is_ready
    connection = opened()
    assert connection.is_ready
    connection.send(MAIL)
    assert not connection.is_ready
    feed(connection, b"250 ok\r\n")
    assert not connection.is_ready
    assert connection.is_transaction_open
    connection.send(RSET)
    feed(connection, b"250 ok\r\n")
    assert connection.is_ready
    assert not connection.is_transaction_open


@pytest.mark.parametrize(
    ("exchanges", "is_open"),
    [
        ([((MAIL,), b"550 no\r\n")], False),
        ([((MAIL, RCPT), b"250 ok\r\n550 no\r\n")], True),
        ([((MAIL, RCPT, DATA), b"250 ok\r\n250 ok\r\n451 no\r\n")], True),
        ([ENVELOPE, ((CONTENT,), b"554 no\r\n")], False),
        ([ENVELOPE, ((CONTENT,), b"250 ok\r\n")], False),
        ([((MAIL, RCPT, commands.bdat(b"", False)), b"250 a\r\n250 b\r\n250 c\r\n")], True),
    ],
)
def test_rset_is_due_where_a_transaction_is_open(exchanges, is_open):
    assert opened(*exchanges).is_transaction_open is is_open


def test_a_failed_write_spoils_the_session_but_last_words_are_heard():
    connection = opened()
    connection.send(MAIL)
    connection.send_failed()
    assert connection.is_spoiled
    assert not connection.is_ready
    assert answers(feed(connection, b"550 5.7.1 blocked\r\n")) == [(MAIL, 550)]
    with pytest.raises(LocalProtocolError, match="spoiled"):
        connection.send(QUIT)


# -- content ------------------------------------------------------------------------------------


def test_content_in_pieces_is_one_thing_that_is_owed_one_reply():
    connection = opened(ENVELOPE)
    first, last = commands.content(b"a\r\n", is_last=False), commands.content(b".\r\n")
    assert connection.send(first) == b"a\r\n"
    assert connection.is_content_open
    assert connection.send(commands.content(b"b\r\n", is_last=False)) == b"b\r\n"
    assert connection.send(last) == b".\r\n"
    assert not connection.is_content_open
    assert len(connection.unanswered) == 1
    assert answers(feed(connection, b"250 queued\r\n")) == [(last, 250)]


def test_the_last_piece_stands_for_the_content():
    """Whoever waits knows by it that the time of the final reply runs from now on."""
    connection = opened(ENVELOPE)
    connection.send(commands.content(b"a\r\n", is_last=False))
    last = commands.content(b".\r\n")
    connection.send(last)
    assert connection.oldest_owed is last


@pytest.mark.parametrize("command", [MAIL, RSET, NOOP, QUIT, commands.bdat(b"", True)])
def test_nothing_but_content_goes_into_the_content(command):
    connection = opened(ENVELOPE)
    connection.send(commands.content(b"a\r\n", is_last=False))
    with pytest.raises(LocalProtocolError, match="inside the content"):
        connection.send(command)


def test_after_the_go_ahead_quit_would_be_a_line_of_the_content():
    connection = opened(ENVELOPE)
    with pytest.raises(LocalProtocolError, match="QUIT is not allowed in state CONTENT"):
        connection.send(QUIT)


def test_a_refusal_while_the_content_is_open_is_early_and_ends_the_sending():
    connection = opened(ENVELOPE)
    piece = commands.content(b"a\r\n", is_last=False)
    connection.send(piece)
    (event,) = feed(connection, b"552 5.3.4 too large\r\n")
    assert event == Answered(piece, Reply(552, (b"5.3.4 too large",)), True)
    assert connection.is_spoiled
    with pytest.raises(LocalProtocolError, match="spoiled"):
        connection.send(commands.content(b".\r\n"))


def test_a_421_while_the_content_is_open_is_early_too():
    connection = opened(ENVELOPE)
    connection.send(commands.content(b"a\r\n", is_last=False))
    (event,) = feed(connection, b"421 4.3.2 going down\r\n")
    assert event.is_early
    assert connection.is_spoiled
    assert connection.state is State.CLOSED


def test_nobody_accepts_a_content_before_its_end():
    connection = opened(ENVELOPE)
    connection.send(commands.content(b"a\r\n", is_last=False))
    connection.receive(b"250 queued\r\n")
    with pytest.raises(RemoteProtocolError, match="content accepted before its end"):
        connection.next_event()
    assert connection.is_spoiled


# -- out of step --------------------------------------------------------------------------------


def test_a_reply_nobody_asked_for_spoils_the_session():
    connection = opened()
    connection.receive(b"250 surprise\r\n")
    with pytest.raises(RemoteProtocolError, match="nothing that was asked") as caught:
        connection.next_event()
    assert caught.value.octets == b"250 surprise"
    assert connection.is_spoiled
    assert not connection.is_ready
    with pytest.raises(LocalProtocolError, match="spoiled"):
        connection.send(MAIL)


def test_one_reply_too_many_is_not_taken_for_the_next_command():
    connection = opened()
    connection.send(MAIL)
    connection.receive(b"250 ok\r\n250 ok\r\n")
    assert connection.next_event() == Answered(MAIL, Reply(250, (b"ok",)))
    with pytest.raises(RemoteProtocolError):
        connection.next_event()
    with pytest.raises(LocalProtocolError):
        connection.send(RCPT)


def test_an_unsolicited_421_says_that_the_peer_closes():
    connection = opened()
    assert feed(connection, b"421 4.4.2 idle too long\r\n") == [
        Closing(Reply(421, (b"4.4.2 idle too long",)))
    ]
    assert connection.is_spoiled
    assert connection.state is State.CLOSED
    with pytest.raises(LocalProtocolError):
        connection.send(MAIL)


@pytest.mark.parametrize(
    "exchanges",
    [
        [],
        [((MAIL,), b"")],
        [((MAIL, RCPT, DATA), b"250 ok\r\n")],
        [((MAIL, RCPT, DATA), b"250 ok\r\n250 ok\r\n")],
        [ENVELOPE, ((CONTENT,), b"")],
        [((commands.STARTTLS,), b"")],
        [((commands.auth("LOGIN"),), b"")],
        [((MAIL,), b"250 ok\r\n"), ((RSET,), b"")],
        [((QUIT,), b"")],
    ],
)
def test_a_421_ends_the_session_wherever_it_comes(exchanges):
    connection = opened(*exchanges)
    owed = connection.oldest_owed
    (event,) = feed(connection, b"421 4.3.2 going down\r\n")
    reply = Reply(421, (b"4.3.2 going down",))
    assert event == (Closing(reply) if owed is None else Answered(owed, reply))
    assert connection.is_spoiled
    assert connection.state is State.CLOSED
    with pytest.raises(LocalProtocolError):
        connection.send(QUIT)


def test_a_421_for_a_greeting_ends_the_session():
    connection = ClientConnection()
    assert answers(feed(connection, b"421 too busy\r\n")) == [(commands.CONNECT, 421)]
    assert connection.is_spoiled


def test_replies_that_still_come_behind_a_421_are_given():
    connection = opened()
    for command in (MAIL, RCPT):
        connection.send(command)
    heard = feed(connection, b"421 bye\r\n503 sorry\r\n")
    assert answers(heard) == [(MAIL, 421), (RCPT, 503)]


@pytest.mark.parametrize(
    ("window", "octets"),
    [
        ((MAIL,), b"354 go\r\n"),
        ((MAIL, RCPT), b"550 no\r\n250 ok\r\n"),
        ((MAIL, RCPT, DATA), b"250 ok\r\n250 ok\r\n250 ok\r\n"),
        ((RSET,), b"354 go\r\n"),
        ((commands.STARTTLS,), b"334 go\r\n"),
        ((MAIL,), b"hello\r\n"),
        ((MAIL,), b"\r\n"),
        ((MAIL,), b"850 ok\r\n"),
    ],
)
def test_a_reply_that_smtp_does_not_know_spoils_the_session(window, octets):
    connection = opened()
    for command in window:
        connection.send(command)
    connection.receive(octets)
    with pytest.raises(RemoteProtocolError) as caught:
        take_events(connection)
    assert caught.value.octets == octets.splitlines()[-1]
    assert connection.is_spoiled
    assert not connection.is_ready


# -- the end of the stream ----------------------------------------------------------------------


@pytest.mark.parametrize("octets", [b"", b"250-half a reply\r\n", b"25"])
def test_hanging_up_is_told_once_and_the_reply_stays_owed(octets):
    connection = opened()
    connection.send(MAIL)
    assert feed(connection, octets) == [] if octets else True
    connection.receive(b"")
    assert connection.next_event() == Closed()
    assert connection.next_event() is None
    assert connection.oldest_owed == MAIL
    assert connection.is_spoiled
    assert connection.state is State.CLOSED


def test_replies_before_the_end_of_the_stream_are_heard_first():
    connection = opened()
    connection.send(MAIL)
    connection.receive(b"554 go away\r\n")
    connection.receive(b"")
    assert take_events(connection) == [Answered(MAIL, Reply(554, (b"go away",))), Closed()]


def test_hanging_up_after_quit_is_just_the_end():
    connection = opened()
    connection.send(QUIT)
    assert answers(feed(connection, b"221 bye\r\n")) == [(QUIT, 221)]
    assert feed(connection, b"") == [Closed()]


# -- TLS ----------------------------------------------------------------------------------------


def test_after_the_handshake_the_session_starts_over():
    connection = opened(((commands.STARTTLS,), b"220 go\r\n"))
    assert connection.state is State.TLS
    with pytest.raises(LocalProtocolError):
        connection.send(EHLO)
    connection.tls_started()
    assert connection.state is State.HELLO
    connection.send(EHLO)
    assert answers(feed(connection, b"250 mx.test\r\n")) == [(EHLO, 250)]


@pytest.mark.parametrize("octets", [b"250", b"250 injected\r\n", b"250-a\r\n", b"\x16\x03"])
def test_octets_in_clear_behind_the_starttls_reply_are_not_believed(octets):
    """RFC 3207 §6; a man in the middle would have us take them for the server's, over TLS."""
    connection = opened()
    connection.send(commands.STARTTLS)
    connection.receive(b"220 go\r\n" + octets)
    assert connection.next_event() == Answered(commands.STARTTLS, Reply(220, (b"go",)))
    assert connection.unread == len(octets)
    with pytest.raises(RemoteProtocolError, match="in clear behind the reply to STARTTLS"):
        connection.tls_started()
    assert connection.is_spoiled
    with pytest.raises(LocalProtocolError):
        connection.send(EHLO)


def test_no_handshake_without_starttls():
    with pytest.raises(LocalProtocolError, match="no TLS handshake was due"):
        opened().tls_started()


# -- secrets ------------------------------------------------------------------------------------


def test_secrets_do_not_show_in_what_is_owed_or_heard():
    connection = opened()
    connection.send(commands.auth("PLAIN", SECRET))
    shown = repr(connection.oldest_owed)
    (event,) = feed(connection, b"334 \r\n")
    connection.send(commands.auth_step(SECRET))
    shown += repr(event) + repr(connection.oldest_owed) + repr(feed(connection, b"535 no\r\n"))
    assert SECRET.decode() not in shown
    assert "****" in shown


# -- anything a peer may do ---------------------------------------------------------------------

SAMPLES = [
    EHLO,
    commands.hello(Kind.HELO, "out"),
    commands.hello(Kind.LHLO, "out"),
    commands.STARTTLS,
    commands.auth("PLAIN", SECRET),
    commands.auth_step(SECRET),
    MAIL,
    RCPT,
    DATA,
    CONTENT,
    commands.content(b"a\r\n", is_last=False),
    commands.bdat(b"a", False),
    commands.bdat(b"a", True),
    RSET,
    NOOP,
    QUIT,
]
GOOD_CODES = {Kind.DATA: b"354", Kind.AUTH: b"334"}
#: A command to try, octets to receive, or `None`: the reply that lets the dialogue go on.
ACTIONS = st.one_of(
    st.sampled_from(SAMPLES),
    st.none(),
    st.none(),
    st.sampled_from([b"421 bye\r\n", b"550 no\r\n", b"250 ok\r\n", b"354 go\r\n", b"250-a\r\n"]),
    st.sampled_from([b"", b"\r\n", b"\n", b"\0", b"2", b"999 x\r\n", b"250 \xff\r\n"]),
    st.binary(max_size=12),
)


@given(st.lists(ACTIONS, max_size=40), st.booleans())
@settings(max_examples=300)
def test_whatever_a_peer_says_is_an_event_or_nothing_or_a_protocol_error(actions, early):
    connection = ClientConnection(early=early)
    sent: list[Command] = [commands.CONNECT]
    heard: list[Command] = []
    for action in actions:
        if isinstance(action, Command):
            was_open = connection.is_content_open
            try:
                assert connection.send(action) == action.octets
            except LocalProtocolError:
                continue
            assert not connection.is_spoiled
            if was_open:
                sent[-1] = action
            else:
                sent.append(action)
            continue
        octets = action
        if octets is None:
            oldest = connection.oldest_owed
            octets = b"" if oldest is None else GOOD_CODES.get(oldest.kind, b"250") + b" x\r\n"
            if not octets:
                continue
        connection.receive(octets)
        try:
            for event in take_events(connection):
                assert type(event) in (Answered, Closing, Closed)
                if isinstance(event, Answered):
                    heard.append(event.command)
                if not isinstance(event, Answered) or event.reply.code == 421 or event.is_early:
                    assert connection.is_spoiled
        except RemoteProtocolError:
            assert connection.is_spoiled
            assert not connection.is_ready
            return
        if connection.state is State.TLS:
            connection.tls_started()
        assert len(connection.unanswered) == len(sent) - len(heard)
        # First in, first out, however the octets came.
        assert all(one is other for one, other in zip(sent, heard, strict=False))


@given(st.binary(max_size=200))
def test_any_first_octets_give_a_greeting_nothing_or_a_protocol_error(octets):
    connection = ClientConnection()
    connection.receive(octets)
    try:
        events = take_events(connection)
    except RemoteProtocolError:
        assert connection.is_spoiled
    else:
        assert [type(event) for event in events] in ([], [Answered], [Closed])
