from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trustme

from engine.testing.sink import MAX_LINE_OCTETS, Received, SinkStatistics, open_sink

ENVELOPE = b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
BUSY = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n"
GO_ON = b"354 go on, end with a dot\r\n"
ACCEPTED = b"250 2.0.0 accepted\r\n"


class Client:
    """A client that knows how many replies it wants."""

    def __init__(self, stream):
        self.stream = stream
        self.buffer = b""

    async def ask(self, octets, replies=1):
        await self.stream.send_all(octets)
        return await self.hear(replies)

    async def hear(self, replies):
        """Return that many whole replies, or what came before the connection ended."""
        last_line = re.compile(rb"^\d{3} [^\n]*\n", re.MULTILINE)
        while len(ends := [m.end() for m in last_line.finditer(self.buffer)]) < replies:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                heard, self.buffer = self.buffer, b""
                return heard
            self.buffer += data
        heard, self.buffer = self.buffer[: ends[replies - 1]], self.buffer[ends[replies - 1] :]
        return heard

    async def codes(self, octets, replies=1):
        heard = await self.ask(octets, replies)
        return [int(code) for code in re.findall(rb"^(\d{3}) ", heard, re.MULTILINE)]

    async def rest(self):
        return await self.hear(1_000_000)


class Connected:
    """`async with Connected(sink) as client`: a connection whose greeting was read."""

    def __init__(self, sink, *said):
        self.sink = sink
        self.said = said

    async def __aenter__(self):
        stream = await trio.open_tcp_stream(self.sink.host, self.sink.port)
        self.client = Client(stream)
        assert (await self.client.hear(1)).startswith(b"220 ")
        for octets in self.said:
            await self.client.ask(octets)
        return self.client

    async def __aexit__(self, *_):
        await trio.aclose_forcefully(self.client.stream)


async def test_a_message_is_taken_kept_and_counted():
    async with open_sink(keep=True) as sink:
        async with Connected(sink) as client:
            assert await client.ask(b"EHLO c\r\n") == (
                b"250-sink.test\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n"
                b"250-SMTPUTF8\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n250 CHUNKING\r\n"
            )
            assert await client.ask(b"MAIL FROM:<a@b.test>\r\n") == b"250 2.1.0 ok\r\n"
            assert await client.ask(b"RCPT TO:<c@d.test>\r\n") == b"250 2.1.5 ok\r\n"
            assert await client.ask(b"DATA\r\n") == GO_ON
            assert await client.ask(b"x\r\n..y\r\n.\r\n") == ACCEPTED
            assert sink.statistics() == SinkStatistics(1, 1, 1, 1, 8, 0)
            assert await client.ask(b"QUIT\r\n") == b"221 2.0.0 bye\r\n"
            assert await client.rest() == b""
        assert sink.messages == [Received("a@b.test", ("c@d.test",), b"x\r\n.y\r\n", 1, 1)]


async def test_nothing_is_kept_unless_asked_for():
    async with open_sink() as sink, Connected(sink) as client:
        await client.ask(ENVELOPE + b"DATA\r\n", 4)
        assert await client.ask(b"x\r\n.\r\n") == ACCEPTED
        assert (sink.messages, sink.statistics().octets) == ([], 3)


async def test_the_oldest_kept_messages_make_room():
    async with open_sink(keep=True, keep_limit=2) as sink, Connected(sink, b"EHLO c\r\n") as client:
        one = b"MAIL FROM:<>\r\nRCPT TO:<c@d.test>\r\nBDAT 1 LAST\r\n%d"
        await client.ask(one % 1 + one % 2 + one % 3, 9)
        assert [(m.content, m.transaction) for m in sink.messages] == [(b"2", 2), (b"3", 3)]


CONTENTS = [b"", b".", b"x", b".x\r\n", b"a\r\n.b\r\n..\r\n.\r\nc\n.\nd\r.\r\r\n", b"\r\n"]


def stuffed(content):
    content = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    return content, (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


@pytest.mark.parametrize("content", CONTENTS)
async def test_content_split_at_every_position_comes_out_the_same(content):
    content, sent = stuffed(content)
    async with open_sink(keep=True) as sink, Connected(sink, b"EHLO c\r\n") as client:
        whole = sent + b"MAIL FROM:<n@b.test>\r\n"
        for position in range(1, len(whole)):
            await client.ask(b"RSET\r\n" + ENVELOPE[8:] + b"DATA\r\n", 4)
            await client.stream.send_all(whole[:position])
            await trio.testing.wait_all_tasks_blocked()
            assert await client.ask(whole[position:], 2) == ACCEPTED + b"250 2.1.0 ok\r\n"
        assert {message.content for message in sink.messages} == {content}
        assert len(sink.messages) == len(whole) - 1


async def test_content_octet_by_octet_comes_out_the_same():
    content, sent = stuffed(CONTENTS[4])
    async with open_sink(keep=True) as sink, Connected(sink) as client:
        await client.ask(ENVELOPE + b"DATA\r\n", 4)
        for octet in sent:
            await client.stream.send_all(bytes([octet]))
            await trio.testing.wait_all_tasks_blocked()
        assert await client.hear(1) == ACCEPTED
        assert sink.messages[0].content == content


async def test_a_large_content_comes_out_the_same():
    content = b"".join(b".%d\r\n" % number for number in range(100_000))
    async with open_sink(keep=True) as sink, Connected(sink) as client:
        await client.ask(ENVELOPE + b"DATA\r\n", 4)
        assert await client.ask(stuffed(content)[1]) == ACCEPTED
        assert sink.messages[0].content == content


async def test_pipelined_groups_in_one_write_are_answered_in_order():
    async with open_sink(keep=True) as sink, Connected(sink) as client:
        group = ENVELOPE[8:] + b"RCPT TO:<reject@d.test>\r\nDATA\r\n"
        heard = await client.ask(b"EHLO c\r\n" + group, 5)
        assert heard.endswith(BUSY + b"550 5.1.1 no such user\r\n" + GO_ON)
        # RFC 2920 §3.1: the next envelope may follow the dot, and QUIT the last of them.
        heard = await client.ask(b"1\r\n.\r\n" + group, 5)
        assert heard == ACCEPTED + BUSY + b"550 5.1.1 no such user\r\n" + GO_ON
        assert await client.ask(b"2\r\n.\r\nQUIT\r\n", 2) == ACCEPTED + b"221 2.0.0 bye\r\n"
        assert [message.content for message in sink.messages] == [b"1\r\n", b"2\r\n"]


async def test_bdat_takes_chunks_and_many_transactions_in_one_write():
    async with open_sink(keep=True) as sink, Connected(sink, b"EHLO c\r\n") as client:
        one = ENVELOPE[8:] + b"BDAT 4\r\n.\r\n.bdat 3 last\r\n\r\nxBDAT 0\r\n"
        first = await client.ask(one, 5)
        assert first == BUSY + b"250 2.0.0 chunk taken\r\n" + ACCEPTED + (
            b"503 5.5.1 MAIL and RCPT first\r\n"
        )
        many = (ENVELOPE[8:] + b"BDAT 2 LAST\r\nhi") * 20
        assert await client.ask(many, 60) == (BUSY + ACCEPTED) * 20
        assert [m.content for m in sink.messages] == [b".\r\n.\r\nx"] + [b"hi"] * 20


async def test_an_empty_last_chunk_ends_the_content():
    async with open_sink(keep=True) as sink, Connected(sink, b"EHLO c\r\n") as client:
        await client.ask(ENVELOPE[8:] + b"BDAT 2\r\nhi", 3)
        assert await client.ask(b"BDAT 0 LAST\r\n") == ACCEPTED
        assert sink.messages[0].content == b"hi"


@pytest.mark.parametrize("position", range(1, 18))
async def test_a_chunk_may_be_split_anywhere(position):
    octets = b"BDAT 5 LAST\r\nhello"
    async with open_sink(keep=True) as sink, Connected(sink) as client:
        await client.ask(ENVELOPE, 3)
        await client.stream.send_all(octets[:position])
        await trio.testing.wait_all_tasks_blocked()
        assert await client.ask(octets[position:]) == ACCEPTED
        assert sink.messages[0].content == b"hello"


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
async def test_order_and_syntax_of_commands_are_checked(said, codes):
    async with open_sink() as sink, Connected(sink) as client:
        assert await client.codes(said, len(codes)) == codes
        assert sink.statistics().refused == sum(code >= 400 for code in codes)


async def test_a_content_beyond_the_limit_is_refused_and_the_next_is_not():
    async with open_sink(keep=True, extensions=["SIZE 10", "CHUNKING"]) as sink:
        async with Connected(sink, b"EHLO c\r\n") as client:
            assert await client.codes(ENVELOPE[8:] + b"DATA\r\n", 3) == [250, 250, 354]
            assert await client.codes(b"123456789\r\n.\r\n") == [552]
            assert await client.codes(ENVELOPE[8:] + b"BDAT 11 LAST\r\n" + b"x" * 11, 3) == [
                *(250, 250, 552)
            ]
            assert await client.codes(ENVELOPE[8:] + b"BDAT 10 LAST\r\n" + b"x" * 10, 3) == [
                *(250, 250, 250)
            ]
        assert [message.content for message in sink.messages] == [b"x" * 10]


async def test_extensions_that_are_not_offered_are_not_understood():
    async with open_sink(extensions=()) as sink, Connected(sink) as client:
        assert await client.ask(b"EHLO c\r\n") == b"250 sink.test\r\n"
        assert await client.codes(b"MAIL FROM:<a@b> SMTPUTF8\r\nBDAT 4\r\nRSET", 2) == [555, 502]


@pytest.mark.parametrize("bad", ["SIZE\r\n250 X", "", "É"])
async def test_an_extension_that_is_no_line_is_refused(bad):
    with pytest.raises(ValueError, match="lines of printable ASCII"):
        async with open_sink(extensions=[bad]):
            pytest.fail("it must not start")


async def test_a_host_name_is_refused():
    with pytest.raises(ValueError, match="an IP address, not 'localhost'"):
        async with open_sink("localhost"):
            pytest.fail("it must not start")


async def test_it_listens_on_ipv6_too():
    async with open_sink("::1", greeting="mx.test ESMTP Exim") as sink:
        async with await trio.open_tcp_stream("::1", sink.port) as stream:
            assert await stream.receive_some() == b"220 mx.test ESMTP Exim\r\n"


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
async def test_a_recipient_is_refused_by_name_and_the_others_are_not(name, reply):
    async with open_sink(keep=True) as sink, Connected(sink, b"EHLO c\r\n") as client:
        envelope = b"MAIL FROM:<>\r\nRCPT TO:<%b@d.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n" % name
        replies = 3 if name == b"garbage" else 4
        heard = await client.ask(envelope, replies)
        assert heard == b"250 2.1.0 ok\r\n" + reply + b"250 2.1.5 ok\r\n" + GO_ON
        assert await client.ask(b"x\r\n.\r\n") == ACCEPTED
        assert sink.messages[0].recipients == ("c@d.test",)
        assert sink.statistics().refused == (name != b"garbage")


async def test_a_greylisted_address_is_taken_the_second_time():
    async with open_sink() as sink:
        one = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<greylist@d>\r\nRCPT TO:<greylist+2@d>\r\n"
        async with Connected(sink) as client:
            assert await client.codes(one, 4) == [250, 250, 451, 451]
        async with Connected(sink) as client:
            assert await client.codes(one, 4) == [250, 250, 250, 250]


@pytest.mark.parametrize(("name", "last"), [(b"drop", b""), (b"421", b"421 4.3.2 go away\r\n")])
async def test_a_recipient_ends_the_connection(name, last):
    async with open_sink() as sink, Connected(sink) as client:
        await client.stream.send_all(ENVELOPE + b"RCPT TO:<%b@d>\r\nDATA\r\n" % name)
        assert (await client.rest()).endswith(BUSY + last)
        assert sink.statistics().open == 0


async def test_a_closing_sink_lets_the_client_read_its_last_reply():
    async with open_sink() as sink, Connected(sink, b"EHLO c\r\n", b"MAIL FROM:<>\r\n") as client:
        # More than one read takes, in a single call to the kernel.
        taken = await client.stream.socket.send(b"RCPT TO:<421@d>\r\n" + b"x" * 100_000)
        assert taken > 65_536
        assert await client.stream.receive_some() == b"421 4.3.2 go away\r\n"
        # An end of file, and not the reset that unread octets would cause.
        assert await client.stream.receive_some() == b""


async def test_a_stalled_connection_never_answers_again(autojump_clock):
    async with open_sink() as sink, Connected(sink, b"EHLO c\r\n", b"MAIL FROM:<>\r\n") as client:
        await client.stream.send_all(b"RCPT TO:<stall@d>\r\nRSET\r\n")
        with trio.move_on_after(1800) as scope:
            await client.rest()
        assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("name", "seconds"), [(b"slow", 1), (b"slow-90", 90), (b"slow-0.5", 0.5), (b"slow-400", 400)]
)
async def test_a_slow_recipient_is_taken_late(name, seconds, autojump_clock):
    async with open_sink() as sink, Connected(sink, b"EHLO c\r\n") as client:
        assert await client.codes(b"MAIL FROM:<>\r\nRCPT TO:<%b@d>\r\nDATA\r\n" % name, 3) == [
            *(250, 250, 354)
        ]
        assert trio.current_time() == pytest.approx(seconds)
        assert await client.ask(b"x\r\n.\r\n") == ACCEPTED


async def test_a_tarpit_answers_one_octet_a_second(autojump_clock):
    async with open_sink() as sink, Connected(sink, b"EHLO c\r\n", b"MAIL FROM:<>\r\n") as client:
        assert await client.ask(b"RCPT TO:<tarpit@d>\r\n") == b"250 2.1.5 ok\r\n"
        assert trio.current_time() == pytest.approx(len(b"250 2.1.5 ok\r\n"))


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
async def test_a_recipient_speaks_against_the_content(name, reply, ending):
    async with open_sink(keep=True) as sink, Connected(sink, b"EHLO c\r\n") as client:
        envelope = b"MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nRCPT TO:<%b@d>\r\n" % name
        assert await client.codes(envelope, 3) == [250, 250, 250]
        if ending == b"DATA":
            assert await client.ask(b"DATA\r\n") == GO_ON
            await client.stream.send_all(b"x\r\n.\r\n")
        else:
            await client.stream.send_all(b"BDAT 3 LAST\r\nx\r\n")
        assert await client.hear(1) == reply
        assert sink.messages == []
        assert sink.statistics().refused == bool(reply)
        if reply:
            assert await client.codes(b"MAIL FROM:<>\r\n") == [250]
        else:
            assert await client.rest() == b""


async def test_close_in_data_does_not_wait_for_the_whole_content():
    async with open_sink() as sink, Connected(sink) as client:
        await client.ask(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<close-in-data@d>\r\nDATA\r\n", 4)
        await client.stream.send_all(b"x")
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        (b"reject", b"550 5.7.1 sender refused\r\n"),
        (b"defer", b"451 4.3.0 try again later\r\n"),
        (b"full", b"452 4.3.1 no space left\r\n"),
    ],
)
async def test_a_sender_is_refused_by_name(name, reply):
    async with open_sink() as sink, Connected(sink, b"EHLO c\r\n") as client:
        said = b"MAIL FROM:<%b-mail@d>\r\nRCPT TO:<c@d>\r\n" % name
        assert await client.ask(said, 2) == reply + b"503 5.5.1 MAIL first\r\n"
        # Without the suffix it is a sender like any other.
        assert await client.codes(b"MAIL FROM:<%b@d>\r\n" % name) == [250]


@pytest.mark.parametrize(("name", "last"), [(b"drop", b""), (b"421", b"421 4.3.2 go away\r\n")])
async def test_a_sender_ends_the_connection(name, last):
    async with open_sink() as sink, Connected(sink, b"EHLO c\r\n") as client:
        await client.stream.send_all(b"MAIL FROM:<%b-mail@d>\r\nRCPT TO:<c@d>\r\n" % name)
        assert await client.rest() == last


async def test_a_sender_can_stall_be_slow_and_get_garbage(autojump_clock):
    async with open_sink() as sink:
        async with Connected(sink, b"EHLO c\r\n") as client:
            assert await client.ask(b"MAIL FROM:<slow-7-mail@d>\r\n") == b"250 2.1.0 ok\r\n"
            assert trio.current_time() == pytest.approx(7)
        async with Connected(sink, b"EHLO c\r\n") as client:
            assert await client.ask(b"MAIL FROM:<garbage-mail@d>\r\nRCPT TO:<c@d>\r\n", 1) == (
                b"\x00\xff<html>Bad Gateway\r\n503 5.5.1 MAIL first\r\n"
            )
        async with Connected(sink, b"EHLO c\r\n") as client:
            assert await client.ask(b"MAIL FROM:<tarpit-mail@d>\r\n") == b"250 2.1.0 ok\r\n"
        async with Connected(sink, b"EHLO c\r\n") as client:
            with trio.move_on_after(1000) as scope:
                await client.ask(b"MAIL FROM:<stall-mail@d>\r\nRSET\r\n")
            assert scope.cancelled_caught


# LMTP, TLS, hand-over, ending ---------------------------------------------------------------------


async def test_lmtp_answers_each_recipient():
    async with open_sink(keep=True, lmtp=True) as sink, Connected(sink) as client:
        assert await client.codes(b"EHLO c\r\nLHLO c\r\n", 2) == [500, 250]
        names = (b"a", b"data-defer", b"reject", b"b", b"data-reject")
        rcpts = b"".join(b"RCPT TO:<%b@d>\r\n" % name for name in names)
        assert await client.codes(b"MAIL FROM:<>\r\n" + rcpts + b"DATA\r\n", 7) == [
            *(250, 250, 250, 550, 250, 250, 354)
        ]
        assert await client.codes(b"x\r\n.\r\n", 4) == [250, 451, 250, 554]
        assert sink.messages == [Received("", ("a@d", "b@d"), b"x\r\n", 1, 1)]


async def test_lmtp_can_lose_the_connection_between_two_recipients():
    async with open_sink(lmtp=True) as sink, Connected(sink) as client:
        rcpts = b"RCPT TO:<a@d>\r\nRCPT TO:<close-after-dot@d>\r\nRCPT TO:<b@d>\r\n"
        await client.ask(b"LHLO c\r\nMAIL FROM:<>\r\n" + rcpts + b"DATA\r\n", 6)
        await client.stream.send_all(b"x\r\n.\r\n")
        assert await client.rest() == ACCEPTED
        assert sink.statistics().recipients == 1


async def test_starttls_forgets_what_was_said_in_clear():
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("sink.test").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with open_sink(keep=True, tls=server_context) as sink, Connected(sink) as client:
        assert (await client.ask(b"EHLO c\r\n")).endswith(b"250 STARTTLS\r\n")
        # What follows STARTTLS in clear must not be answered (RFC 3207 §4.2).
        assert await client.ask(b"STARTTLS\r\nNOOP\r\n") == b"220 2.0.0 go on\r\n"
        client.stream = trio.SSLStream(
            client.stream, client_context, server_hostname="sink.test", https_compatible=True
        )
        assert await client.codes(b"MAIL FROM:<>\r\n") == [503]
        assert b"STARTTLS" not in await client.ask(b"EHLO c\r\n")
        await client.ask(ENVELOPE[8:] + b"DATA\r\n", 3)
        assert await client.ask(b"x\r\n.\r\n") == ACCEPTED
        assert await client.ask(b"QUIT\r\n") == b"221 2.0.0 bye\r\n"
        assert await client.rest() == b""
        assert sink.messages[0].content == b"x\r\n"


async def test_a_message_is_handed_over_before_it_is_acknowledged():
    seen = []
    async with open_sink(on_message=seen.append) as sink, Connected(sink) as client:
        await client.ask(ENVELOPE + b"DATA\r\n", 4)
        assert await client.ask(b"x\r\n.\r\nNOOP\r\n", 2) == ACCEPTED + b"250 2.0.0 ok\r\n"
        assert seen == [Received("a@b.test", ("c@d.test",), b"x\r\n", 1, 1)]
        assert sink.messages == []


async def test_a_slow_hand_over_holds_the_acknowledgement_back(autojump_clock):
    async def store(received):
        await trio.sleep(60)

    async with open_sink(on_message=store) as sink, Connected(sink) as client:
        await client.ask(ENVELOPE + b"DATA\r\n", 4)
        assert await client.ask(b"x\r\n.\r\n") == ACCEPTED
        assert trio.current_time() == pytest.approx(60)


async def test_a_silent_connection_is_ended(autojump_clock):
    async with open_sink() as sink, Connected(sink) as client:
        assert await client.rest() == b"421 4.4.2 nothing came for too long\r\n"
        assert trio.current_time() == pytest.approx(300)


async def test_a_drain_ends_idle_connections_and_waits_for_the_others():
    async with open_sink() as sink, Connected(sink) as idle, Connected(sink) as busy:
        await busy.ask(ENVELOPE + b"DATA\r\n", 4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.drain)
            assert await idle.rest() == b"421 4.3.2 shutting down\r\n"
            with pytest.raises(OSError, match=r"refused|all attempts"):
                await trio.open_tcp_stream(sink.host, sink.port)
            await busy.stream.send_all(b"x\r\n.\r\n")
            assert await busy.rest() == ACCEPTED + b"421 4.3.2 shutting down\r\n"
        assert sink.statistics().open == 0


async def test_a_drain_gives_up_after_its_time(autojump_clock):
    async with open_sink() as sink, Connected(sink, b"EHLO c\r\n", b"MAIL FROM:<>\r\n"):
        await sink.drain(7)
        assert trio.current_time() == pytest.approx(7)
        assert sink.statistics().open == 1


async def test_leaving_the_block_breaks_connections_off_and_frees_the_port():
    async with open_sink() as sink:
        stream = await trio.open_tcp_stream(sink.host, sink.port)
        assert (await stream.receive_some()).startswith(b"220 ")
    assert await Client(stream).rest() == b""
    await stream.aclose()
    async with open_sink(port=sink.port) as again:
        assert again.port == sink.port


async def test_an_error_in_the_block_comes_out_as_it_is():
    with pytest.raises(KeyError, match="mine"):
        async with open_sink() as sink, Connected(sink):
            raise KeyError("mine")


async def test_a_client_that_resets_harms_nobody():
    async with open_sink() as sink:
        async with Connected(sink, b"EHLO c\r\n") as client:
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        async with Connected(sink) as client:
            assert await client.codes(b"NOOP\r\n") == [250]
            assert sink.statistics().open == 1
        assert repr(sink).startswith(f"<Sink 127.0.0.1:{sink.port} SinkStatistics(connections=2,")


async def test_a_client_that_reads_nothing_blocks_only_itself():
    async with open_sink() as sink, Connected(sink) as greedy:
        with trio.move_on_after(0.2) as scope:
            while True:
                await greedy.stream.send_all(b"EHLO c\r\n" * 10_000)
        assert scope.cancelled_caught
        async with Connected(sink) as client:
            assert await client.codes(b"NOOP\r\n") == [250]


def test_the_command_line_serves_keeps_and_drains(tmp_path):
    command = [sys.executable, "-m", "engine.testing.sink", "--port", "0", "--keep", tmp_path / "d"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        ready = process.stdout.readline()
        port = int(re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", ready)[1])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(ENVELOPE + b"BDAT 2 LAST\r\nhiQUIT\r\n")
            while sock.recv(4096):
                pass
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == (
                "connections=1 messages=1 recipients=1 octets=2 refused=0\n"
            )
    assert process.returncode == 0
    assert [path.read_bytes() for path in (tmp_path / "d").iterdir()] == [b"hi"]
