"""Any octets give replies, the wish for more, or a protocol error; and the same ones however cut."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from engine.smtp import command as commands
from engine.smtp.capabilities import Capabilities
from engine.smtp.command import Answers, Kind
from engine.smtp.connection import Answered, ClientConnection, Closed, Closing
from engine.smtp.errors import LocalProtocolError, RemoteProtocolError
from engine.smtp.reply import MAX_REPLY_OCTETS, ReplyParser
from tests.fuzzing import Mutator, by_octet

#: With those of `tests.delivery.test_fuzz` 100,000 inputs.  Each part has its own seed.
PARTS = range(10)
OF_THE_PARSER, OF_THE_CONNECTION = 6500, 2500
#: Above it an input is not read octet by octet: nothing but time is in it.
LONG = 300


@contextmanager
def naming(number, octets):
    """Say which input it was."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"input {number}: {octets!r}") from error


# ---- the parser ----------------------------------------------------------------------------------


def read(pieces):
    """Return the replies, and how they ended: an error, or octets that are no reply yet."""
    parser, replies = ReplyParser(), []
    for piece in pieces:
        parser.feed(piece)
        try:
            while (reply := parser.next_reply()) is not None:
                replies.append(reply)
        except RemoteProtocolError:
            return replies, "error"
        assert parser.unread <= MAX_REPLY_OCTETS + len(piece)
    return replies, parser.unread


def check_reply(reply):
    assert 200 <= reply.code <= 599
    assert reply.lines
    assert not any(b"\n" in line for line in reply.lines)
    assert reply.text.isprintable()
    assert reply.enhanced is None or reply.enhanced.severity == reply.severity
    capabilities = Capabilities.parse(reply)
    assert capabilities.size is None or capabilities.size >= 0


@pytest.mark.parametrize("part", PARTS)
def test_any_octets_are_replies_or_the_beginning_of_one_or_an_error(part):
    mutator = Mutator(part)
    for number in range(OF_THE_PARSER):
        octets = mutator.stream()
        with naming(number, octets):
            found = read([octets])
            for reply in found[0]:
                check_reply(reply)
            assert read(mutator.cut(octets)) == found
            if len(octets) < LONG:
                assert read(by_octet(octets)) == found


def test_the_inputs_are_of_every_kind():
    """Or the test above would prove little."""
    mutator = Mutator(0)
    found = [read([mutator.stream()]) for _ in range(2000)]
    assert 0.1 < sum(ending == "error" for _, ending in found) / 2000 < 0.6
    assert sum(ending == 0 for _, ending in found) / 2000 > 0.1
    assert sum(ending not in ("error", 0) for _, ending in found) / 2000 > 0.1
    assert sum(len(replies) > 1 for replies, _ in found) / 2000 > 0.2
    assert {reply.severity for replies, _ in found for reply in replies} == {2, 3, 4, 5}


# ---- the connection ------------------------------------------------------------------------------

MAIL, RCPT = commands.mail(b"s@me.test"), commands.rcpt(b"a@x.test")
HELLO = (commands.hello(Kind.EHLO, "me.test"),)
QUIT = ((commands.QUIT,),)


def transactions(answers):
    """What a client may say of a message, window by window, where it is answered in this way."""
    text = commands.bdat(b"text\r\n", True, answers)
    dot = (commands.content(b".\r\n", answers),)
    return (
        ((MAIL, RCPT, commands.DATA), dot),
        ((MAIL,), (RCPT,), (RCPT,), (commands.DATA,), dot),
        ((MAIL, RCPT, RCPT, commands.DATA), (commands.content(b"x", answers, is_last=False),), dot),
        ((MAIL, RCPT, RCPT, text),),
        ((MAIL, RCPT, text, MAIL, RCPT, RCPT), (text,)),
        (
            (MAIL, RCPT),
            (commands.bdat_head(4, answers),),
            (commands.bdat_piece(b"te", answers, is_last=False),),
            (commands.bdat_piece(b"xt", answers, is_last=True),),
        ),
        ((MAIL, RCPT), (commands.RSET, MAIL)),
    )


TRANSACTIONS = {answers: transactions(answers) for answers in Answers}


def _good_reply_to(command):
    if command is commands.DATA:
        return b"354 go\r\n"
    if not command.is_last:
        return b""
    if command.kind in commands.ENDS_OF_CONTENT and command.answers is Answers.FOR_EACH_AND_ALL:
        return b"353 each\r\n250 one\r\n250 all\r\n"
    return b"250 ok\r\n"


def plan(mutator):
    """Make up a session: windows, and what comes after each."""
    random = mutator.random
    answers = random.choice((*Answers, Answers.ONCE))
    steps = [((), mutator.dialogue()[0])] if random.random() < 0.9 else []
    steps += [(HELLO, b"250 mx.test\r\n")] if random.random() < 0.9 else []
    windows = [
        window
        for _ in range(random.randrange(1, 4))
        for window in random.choice(TRANSACTIONS[answers])
        if random.random() < 0.9
    ]
    for window in (*windows, *QUIT):
        octets = b"250 ok\r\n" * (len(window) - 1) + _good_reply_to(window[-1])
        if not window[-1].is_last and random.random() < 0.2:
            octets = b"552 5.3.4 too much\r\n"
        elif random.random() < 0.2:
            octets = mutator.garble(octets)
        elif random.random() < 0.1:
            octets = b"".join(mutator.replies()[: len(window)])
        elif random.random() < 0.2:
            octets = b""  # it is slow, or the client is quick
        steps.append((window, octets))
    return answers, random.random() < 0.2, steps


def hold(answers, early, steps, divide, take):
    """Hold a session; return what it said of each octet that came, and its end."""
    connection = ClientConnection(early=early)
    connection.counts_recipients = answers is not Answers.ONCE
    story = []
    for window, octets in steps:
        try:
            if window:
                connection.send_window(window)
        except LocalProtocolError:
            story.append("not now")
            continue
        try:
            for piece in divide(octets):
                story += take(connection, piece)
        except RemoteProtocolError:
            assert connection.is_spoiled
            return [*story, "error"]
    try:
        story += take(connection, b"")
    except RemoteProtocolError:
        return [*story, "error"]
    assert type(story[-1]) is Closed
    assert connection.is_spoiled
    assert not connection.is_ready
    return story


def whole(octets):
    return [octets] if octets else []


def one_by_one(connection, octets):
    connection.receive(octets)
    yield from events_of(connection)


def events_of(connection):
    while (event := connection.next_event()) is not None:
        yield event


def in_runs(connection, octets):
    """As the session takes them."""
    run = connection.receive_run(octets)
    yield from events_of(connection) if run is None else run.answers()


@pytest.mark.parametrize("part", PARTS)
def test_any_octets_are_answers_or_an_end_or_an_error(part):
    mutator = Mutator(1000 + part)
    for number in range(OF_THE_CONNECTION):
        answers, early, steps = plan(mutator)
        with naming(number, [octets for _, octets in steps]):
            story = hold(answers, early, steps, whole, one_by_one)
            for event in story:
                assert event in ("error", "not now") or type(event) in (Answered, Closing, Closed)
            assert hold(answers, early, steps, whole, in_runs) == story
            assert hold(answers, early, steps, mutator.cut, in_runs) == story
            if sum(len(octets) for _, octets in steps) < LONG:
                assert hold(answers, early, steps, by_octet, one_by_one) == story


def test_the_sessions_are_of_every_kind():
    """Or the test above would prove little."""
    mutator = Mutator(1000)
    stories = [hold(*plan(mutator), whole, in_runs) for _ in range(2000)]
    ends = [story[-1] for story in stories]
    assert 0.1 < ends.count("error") / 2000 < 0.6
    assert sum(type(end) is Closed for end in ends) / 2000 > 0.2
    contents = [
        event
        for story in stories
        for event in story
        if type(event) is Answered and event.command.kind in commands.ENDS_OF_CONTENT
    ]
    assert len(contents) > 400
    assert sum(event.is_early for event in contents) > 5
