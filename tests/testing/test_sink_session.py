from __future__ import annotations

import re
from collections import deque

import pytest

from engine.testing.faults import Next
from engine.testing.sink import EXTENSIONS
from engine.testing.sink_house import House, Received
from engine.testing.sink_session import (
    MAX_LINE_OCTETS,
    MAX_RECIPIENTS,
    Interruption,
    SinkSession,
)

ENVELOPE = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
BUSY = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n"
GO_ON = b"354 go on, end with a dot\r\n"
ACCEPTED = b"250 2.0.0 accepted\r\n"
HELLO = b"EHLO c\r\n"


class Dialogue:
    """A session, and what it was interrupted for; waits and hand-overs take no time here."""

    def __init__(self, *said, keep=True, extensions=EXTENSIONS, lmtp=False, **options):
        self.house = House(
            greeting=b"220 sink.test\r\n",
            extensions=tuple(extension.encode() for extension in extensions),
            lmtp=lmtp,
            has_tls=options.get("has_tls", False),
            is_curious=keep,
            hands_over=options.get("hands_over", False),
            kept=deque(),
        )
        self.session = SinkSession(self.house, 1)
        self.interruptions = []
        for octets in said:
            self.ask(octets)

    def ask(self, octets):
        """Return all the replies; a connection that is over says nothing more."""
        heard = b""
        while not self.is_over:
            replies, interruption = self.session.receive(octets)
            heard += replies
            if interruption is None:
                break
            heard += interruption.reply
            self.interruptions.append(interruption)
            octets = b""
        return heard

    def codes(self, octets):
        return [int(code) for code in re.findall(rb"^(\d{3}) ", self.ask(octets), re.MULTILINE)]

    @property
    def is_over(self):
        return bool(self.interruptions) and self.interruptions[-1].next in (Next.CLOSE, Next.STALL)

    @property
    def contents(self):
        return [message.content for message in self.house.kept]


# Content ------------------------------------------------------------------------------------------

CONTENTS = [b"", b".", b"x", b".x\r\n", b"a\r\n.b\r\n..\r\n.\r\nc\n.\nd\r.\r\r\n", b"\r\n"]


def stuffed(content):
    content = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    return content, (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


@pytest.mark.parametrize("content", CONTENTS)
def test_content_split_at_every_position_comes_out_the_same(content):
    content, sent = stuffed(content)
    dialogue = Dialogue(HELLO)
    whole = sent + b"MAIL FROM:<n@b.test>\r\n"
    for position in range(1, len(whole)):
        dialogue.ask(b"RSET\r\n" + ENVELOPE + b"DATA\r\n")
        heard = dialogue.ask(whole[:position]) + dialogue.ask(whole[position:])
        assert heard == ACCEPTED + b"250 2.1.0 ok\r\n"
    assert dialogue.contents == [content] * (len(whole) - 1)


@pytest.mark.parametrize("content", CONTENTS)
def test_content_octet_by_octet_comes_out_the_same(content):
    content, sent = stuffed(content)
    dialogue = Dialogue(HELLO, ENVELOPE + b"DATA\r\n")
    replies = [dialogue.ask(bytes([octet])) for octet in sent]
    assert replies == [b""] * (len(sent) - 1) + [ACCEPTED]
    assert dialogue.contents == [content]


def test_content_nobody_wants_to_see_is_counted_and_not_kept():
    dialogue = Dialogue(HELLO, keep=False)
    assert dialogue.ask(ENVELOPE + b"DATA\r\n.." + b"x\r\n.\r\n") == BUSY + GO_ON + ACCEPTED
    assert (dialogue.contents, dialogue.house.octets, dialogue.house.messages) == ([], 5, 1)


def test_pipelined_groups_in_one_write_are_answered_in_order():
    dialogue = Dialogue()
    group = ENVELOPE + b"RCPT TO:<reject@d.test>\r\nDATA\r\n"
    heard = dialogue.ask(HELLO + group)
    assert heard.endswith(BUSY + b"550 5.1.1 no such user\r\n" + GO_ON)
    # RFC 2920 §3.1: the next envelope may follow the dot, and QUIT the last of them.
    heard = dialogue.ask(b"1\r\n.\r\n" + group)
    assert heard == ACCEPTED + BUSY + b"550 5.1.1 no such user\r\n" + GO_ON
    assert dialogue.ask(b"2\r\n.\r\nQUIT\r\nNOOP\r\n") == ACCEPTED + b"221 2.0.0 bye\r\n"
    assert dialogue.contents == [b"1\r\n", b"2\r\n"]


def test_bdat_takes_chunks_and_many_transactions_in_one_write():
    dialogue = Dialogue(HELLO)
    first = dialogue.ask(ENVELOPE + b"BDAT 4\r\n.\r\n.bdat 3 last\r\n\r\nxBDAT 0\r\n")
    assert first == BUSY + b"250 2.0.0 chunk taken\r\n" + ACCEPTED + (
        b"503 5.5.1 MAIL and RCPT first\r\n"
    )
    assert dialogue.ask((ENVELOPE + b"BDAT 2 LAST\r\nhi") * 20) == (BUSY + ACCEPTED) * 20
    assert dialogue.contents == [b".\r\n.\r\nx"] + [b"hi"] * 20


def test_an_empty_last_chunk_ends_the_content():
    dialogue = Dialogue(HELLO, ENVELOPE + b"BDAT 2\r\nhi")
    assert dialogue.ask(b"BDAT 0 LAST\r\n") == ACCEPTED
    assert dialogue.contents == [b"hi"]


@pytest.mark.parametrize("position", range(1, 18))
def test_a_chunk_may_be_split_anywhere(position):
    octets = b"BDAT 5 LAST\r\nhello"
    dialogue = Dialogue(HELLO, ENVELOPE)
    assert dialogue.ask(octets[:position]) == b""
    assert dialogue.ask(octets[position:]) == ACCEPTED
    assert dialogue.contents == [b"hello"]


def test_a_content_beyond_the_limit_is_refused_and_the_next_is_not():
    dialogue = Dialogue(HELLO, extensions=["SIZE 10", "CHUNKING"])
    assert dialogue.codes(ENVELOPE + b"DATA\r\n") == [250, 250, 354]
    assert dialogue.codes(b"123456789\r\n.\r\n") == [552]
    assert dialogue.codes(ENVELOPE + b"BDAT 11 LAST\r\n" + b"x" * 11) == [250, 250, 552]
    assert dialogue.codes(ENVELOPE + b"BDAT 10 LAST\r\n" + b"x" * 10) == [250, 250, 250]
    assert dialogue.contents == [b"x" * 10]


def test_a_session_is_idle_between_its_transactions():
    dialogue = Dialogue()
    steps = [HELLO, ENVELOPE, b"DATA\r\n", b"x\r\n", b".\r\n", b"NO", b"OP\r\n", b"BDAT 2\r\nh"]
    idle = []
    for octets in steps:
        dialogue.ask(octets)
        idle.append(dialogue.session.is_idle)
    assert idle == [True, False, False, False, True, False, True, False]


# Commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        (b"MAIL FROM:<a@b.test>\r\n", [503]),
        (b"RCPT TO:<a@b.test>\r\n", [503]),
        (b"DATA\r\n", [503]),
        (b"BDAT 2 LAST\r\nhi", [502]),
        (b"EHLO c\r\nBDAT 2 LAST\r\nhiNOOP\r\n", [250, 503, 250]),
        (b"EHLO c\r\nBDAT x\r\n", [250, 501]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\n", [250, 250, 503]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nDATA\r\n", [250, 250, 503]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nRSET\r\nRCPT TO:<a@b>\r\n", [250, 250, 250, 503]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nEHLO c\r\nRCPT TO:<a@b>\r\n", [250, 250, 250, 503]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<reject@b>\r\nDATA\r\n", [250, 250, 550, 554]),
        (
            b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<reject@b>\r\nBDAT 4\r\nRSETNOOP\r\n",
            [250, 250, 550, 554, 250],
        ),
        (
            b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 1\r\nxDATA\r\n",
            [250, 250, 250, 250, 503],
        ),
        (b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA now\r\n", [250, 250, 250, 501]),
        (b"HELO c\r\nMAIL FROM:<a@b> SIZE=3\r\n", [250, 555]),
        (b"EHLO c\r\nMAIL FROM:<a@b> SIZE=3 BODY=8BITMIME RET=HDRS ENVID=x\r\n", [250, 250]),
        (b"EHLO c\r\nMAIL FROM:<a@b> SIZE=x\r\n", [250, 501]),
        (b"EHLO c\r\nMAIL FROM:<a@b> SIZE=52428801\r\n", [250, 552]),
        (b"EHLO c\r\nMAIL FROM:<a@b> REQUIRETLS\r\n", [250, 555]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b> NOTIFY=NEVER\r\n", [250, 250, 250]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b> BY=3;R\r\n", [250, 250, 555]),
        (b"EHLO c\r\nMAIL FROM: <a@b>\r\n", [250, 501]),
        (b"EHLO c\r\nMAIL FROM:<a b>\r\n", [250, 501]),
        (b"EHLO c\r\nMAIL FROM:<a@b>\nRCPT TO:<c@d>\r\n", [250, 501]),
        (b'EHLO c\r\nMAIL FROM:<"a> \\"b"@b> SIZE=1\r\n', [250, 250]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<>\r\n", [250, 250, 501]),
        (b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<\xc3\xa9@b>\r\n", [250, 250, 553]),
        (b"EHLO c\r\nMAIL FROM:<> SMTPUTF8\r\nRCPT TO:<\xc3\xa9@b>\r\n", [250, 250, 250]),
        (
            b"mail from:<a@b>\r\nehlo c\r\nmail from:<a@b>\r\nrcpt to:<a@b>\r\n",
            [503, 250, 250, 250],
        ),
        (b"EHLO \r\nLHLO c\r\nHELO c\r\n", [501, 500, 250]),
        (b"VRFY a\r\nNOOP x\r\nHELP\r\n\r\n", [252, 250, 500, 500]),
        (b"EHLO c\r\nSTARTTLS\r\n", [250, 503]),
        (b"NOOP " + b"x" * (MAX_LINE_OCTETS - 7) + b"\r\nNOOP\r\n", [250, 250]),
        (b"NOOP " + b"x" * (MAX_LINE_OCTETS - 6) + b"\r\nNOOP\r\n", [500, 250]),
        (b"x" * 300_000 + b"\r\nNOOP\r\n", [500, 250]),
        (b'EHLO c\r\nMAIL FROM:<"' + b"a" * 1900 + b"\r\n", [250, 501]),
    ],
)
def test_order_and_syntax_of_commands_are_checked(said, codes):
    dialogue = Dialogue()
    assert dialogue.codes(said) == codes
    assert dialogue.house.refused == sum(code >= 400 for code in codes)


def test_extensions_that_are_not_offered_are_not_understood():
    dialogue = Dialogue(extensions=())
    assert dialogue.ask(HELLO) == b"250 sink.test\r\n"
    assert dialogue.codes(b"MAIL FROM:<a@b> SMTPUTF8\r\nBDAT 4\r\nRSET") == [555, 502]


@pytest.mark.parametrize("step", [1, 7, 2047, 2048, 2049])
def test_a_line_that_never_ends_is_not_kept(step):
    dialogue = Dialogue()
    for _ in range(0, 10_000, step):
        assert dialogue.ask(b"x" * step) == b""
        assert len(dialogue.session._rest) < MAX_LINE_OCTETS
    assert dialogue.codes(b"\r\nNOOP\r\n") == [500, 250]


def test_the_end_of_a_long_line_may_be_split():
    dialogue = Dialogue(b"x" * 3000 + b"\r")
    assert dialogue.codes(b"\nNOOP\r\n") == [500, 250]


def test_a_refused_chunk_leaves_the_choice_of_data():
    dialogue = Dialogue(HELLO, b"MAIL FROM:<>\r\nRCPT TO:<reject@d>\r\nBDAT 2\r\nhi")
    assert dialogue.codes(b"RCPT TO:<c@d>\r\nDATA\r\n") == [250, 354]


def test_one_recipient_too_many_is_put_off():
    dialogue = Dialogue(HELLO, b"MAIL FROM:<>\r\n", keep=False)
    assert dialogue.ask(b"RCPT TO:<c@d>\r\n" * (MAX_RECIPIENTS + 1)) == (
        b"250 2.1.5 ok\r\n" * MAX_RECIPIENTS + b"452 4.5.3 too many recipients\r\n"
    )


def test_starttls_forgets_what_was_said_in_clear():
    dialogue = Dialogue(has_tls=True)
    assert dialogue.ask(HELLO).endswith(b"250 STARTTLS\r\n")
    # What follows STARTTLS in clear must not be answered (RFC 3207 §4.2).
    replies, interruption = dialogue.session.receive(b"STARTTLS\r\nNOOP\r\n")
    assert (replies, interruption) == (
        *(b"", Interruption(reply=b"220 2.0.0 go on\r\n", next=Next.TLS)),
    )
    dialogue.session.tls_started()
    assert dialogue.codes(b"MAIL FROM:<>\r\n") == [503]
    assert b"STARTTLS" not in dialogue.ask(HELLO)
    assert dialogue.codes(b"STARTTLS\r\n") == [503]


# Faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        (b"reject", b"550 5.1.1 no such user\r\n"),
        (b"defer", b"451 4.2.0 mailbox busy\r\n"),
        (b"full", b"452 4.2.2 mailbox full\r\n"),
        (b"toomany", b"452 4.5.3 too many recipients\r\n"),
        (b"greylist", b"451 4.7.1 greylisted, come again\r\n"),
        (b"garbage", b"\x00\xff<html>Bad Gateway\r\n"),
        (b"Reject+17", b"550 5.1.1 no such user\r\n"),
    ],
)
def test_a_recipient_is_refused_by_name_and_the_others_are_not(name, reply):
    dialogue = Dialogue(HELLO)
    envelope = b"MAIL FROM:<>\r\nRCPT TO:<%b@d.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n" % name
    assert dialogue.ask(envelope) == b"250 2.1.0 ok\r\n" + reply + b"250 2.1.5 ok\r\n" + GO_ON
    assert dialogue.ask(b"x\r\n.\r\n") == ACCEPTED
    assert dialogue.house.kept[0].recipients == ("c@d.test",)
    assert dialogue.house.refused == (name != b"garbage")


def test_a_greylisted_address_is_taken_the_second_time():
    dialogue = Dialogue(HELLO, b"MAIL FROM:<>\r\n")
    both = b"RCPT TO:<greylist@d>\r\nRCPT TO:<greylist+2@d>\r\n"
    assert dialogue.codes(both) == [451, 451]
    dialogue.session = SinkSession(dialogue.house, 2)
    assert dialogue.codes(HELLO + b"MAIL FROM:<>\r\n" + both) == [250, 250, 250, 250]


@pytest.mark.parametrize(
    ("name", "interruption"),
    [
        (b"drop", Interruption(next=Next.CLOSE)),
        (b"421", Interruption(reply=b"421 4.3.2 go away\r\n", next=Next.CLOSE)),
        (b"stall", Interruption(next=Next.STALL)),
        (b"slow", Interruption(seconds=1, reply=b"250 2.1.5 ok\r\n")),
        (b"slow-0.5", Interruption(seconds=0.5, reply=b"250 2.1.5 ok\r\n")),
        (b"tarpit", Interruption(seconds=1, drip=True, reply=b"250 2.1.5 ok\r\n")),
    ],
)
def test_a_recipient_interrupts_behind_the_replies_to_what_came_before(name, interruption):
    dialogue = Dialogue(HELLO)
    said = ENVELOPE + b"RCPT TO:<%b@d>\r\nNOOP\r\n" % name
    assert dialogue.session.receive(said) == (BUSY, interruption)
    # What was not looked at is still there.
    assert dialogue.session.receive(b"") == (b"250 2.0.0 ok\r\n", None)


@pytest.mark.parametrize("ending", [b"DATA", b"BDAT"])
@pytest.mark.parametrize(
    ("name", "reply"),
    [
        (b"data-reject", b"554 5.6.0 content refused\r\n"),
        (b"data-defer", b"451 4.3.0 content not stored\r\n"),
        (b"close-after-dot", b""),
        (b"close-in-data", b""),
    ],
)
def test_a_recipient_speaks_against_the_content(name, reply, ending):
    dialogue = Dialogue(HELLO)
    envelope = b"MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nRCPT TO:<%b@d>\r\n" % name
    assert dialogue.codes(envelope) == [250, 250, 250]
    if ending == b"DATA":
        assert dialogue.ask(b"DATA\r\n") == GO_ON
        assert dialogue.ask(b"x\r\n.\r\n") == reply
    else:
        assert dialogue.ask(b"BDAT 3 LAST\r\nx\r\n") == reply
    assert dialogue.contents == []
    assert dialogue.house.refused == bool(reply)
    assert dialogue.is_over == (not reply)
    if reply:
        assert dialogue.codes(b"MAIL FROM:<>\r\n") == [250]


def test_close_in_data_does_not_wait_for_the_whole_content():
    dialogue = Dialogue(HELLO, b"MAIL FROM:<>\r\nRCPT TO:<close-in-data@d>\r\nDATA\r\n")
    assert dialogue.session.receive(b"x") == (b"", Interruption(next=Next.CLOSE))


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        (b"reject", b"550 5.7.1 sender refused\r\n"),
        (b"defer", b"451 4.3.0 try again later\r\n"),
        (b"full", b"452 4.3.1 no space left\r\n"),
        (b"garbage", b"\x00\xff<html>Bad Gateway\r\n"),
    ],
)
def test_a_sender_is_refused_by_name(name, reply):
    dialogue = Dialogue(HELLO)
    said = b"MAIL FROM:<%b-mail@d>\r\nRCPT TO:<c@d>\r\n" % name
    assert dialogue.ask(said) == reply + b"503 5.5.1 MAIL first\r\n"
    # Without the suffix it is a sender like any other.
    assert dialogue.codes(b"MAIL FROM:<%b@d>\r\n" % name) == [250]


# LMTP, hand-over ----------------------------------------------------------------------------------


def test_lmtp_answers_each_recipient():
    dialogue = Dialogue(lmtp=True)
    assert dialogue.codes(b"EHLO c\r\nLHLO c\r\n") == [500, 250]
    names = (b"a", b"data-defer", b"reject", b"b", b"data-reject")
    rcpts = b"".join(b"RCPT TO:<%b@d>\r\n" % name for name in names)
    assert dialogue.codes(b"MAIL FROM:<>\r\n" + rcpts + b"DATA\r\n") == [
        *(250, 250, 250, 550, 250, 250, 354)
    ]
    assert dialogue.codes(b"x\r\n.\r\n") == [250, 451, 250, 554]
    assert list(dialogue.house.kept) == [Received("", ("a@d", "b@d"), b"x\r\n", 1, 1)]


def test_lmtp_can_lose_the_connection_between_two_recipients():
    dialogue = Dialogue(b"LHLO c\r\n", lmtp=True)
    rcpts = b"RCPT TO:<a@d>\r\nRCPT TO:<close-after-dot@d>\r\nRCPT TO:<b@d>\r\n"
    dialogue.ask(b"MAIL FROM:<>\r\n" + rcpts + b"DATA\r\n")
    assert dialogue.ask(b"x\r\n.\r\n") == ACCEPTED
    assert dialogue.is_over
    assert dialogue.house.recipients == 1


def test_a_message_is_handed_over_with_its_acknowledgement():
    dialogue = Dialogue(HELLO, ENVELOPE + b"DATA\r\n", hands_over=True)
    received = Received("a@b.test", ("c@d.test",), b"x\r\n", 1, 1)
    assert dialogue.session.receive(b"x\r\n.\r\nNOOP\r\n") == (
        *(b"", Interruption(received=received, reply=ACCEPTED)),
    )
    assert dialogue.session.receive(b"") == (b"250 2.0.0 ok\r\n", None)


def test_addresses_that_are_no_utf_8_are_shown_with_escapes():
    dialogue = Dialogue(HELLO)
    said = b"MAIL FROM:<\xff@b> SMTPUTF8\r\nRCPT TO:<\xc3\xa9@d>\r\nBDAT 0 LAST\r\n"
    assert dialogue.codes(said) == [250, 250, 250]
    assert list(dialogue.house.kept) == [Received("\\xff@b", ("é@d",), b"", 1, 1)]
