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

from engine.testing.sink import Received, SinkStatistics, open_sink

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


async def test_a_large_content_comes_out_the_same():
    content = b"0\r\n" + b"".join(b".%d\r\n" % number for number in range(100_000))
    async with open_sink(keep=True) as sink, Connected(sink) as client:
        await client.ask(ENVELOPE + b"DATA\r\n", 4)
        assert await client.ask(content.replace(b"\r\n.", b"\r\n..") + b".\r\n") == ACCEPTED
        assert sink.messages[0].content == content


async def test_it_announces_what_it_is_told_to_in_upper_case():
    async with open_sink(extensions=["dsn"], greeting="hello") as sink:
        stream = await trio.open_tcp_stream(sink.host, sink.port)
        async with stream:
            client = Client(stream)
            assert await client.hear(1) == b"220 hello\r\n"
            assert await client.ask(b"EHLO c\r\n") == b"250-sink.test\r\n250 DSN\r\n"


async def test_it_speaks_lmtp_when_told_to():
    async with open_sink(lmtp=True) as sink, Connected(sink) as client:
        assert await client.codes(b"EHLO c\r\nLHLO c\r\n", 2) == [500, 250]
        rcpts = b"RCPT TO:<a@d>\r\nRCPT TO:<data-defer@d>\r\nRCPT TO:<b@d>\r\n"
        assert await client.codes(b"MAIL FROM:<>\r\n" + rcpts + b"DATA\r\n", 5) == [
            *(250, 250, 250, 250, 354)
        ]
        assert await client.codes(b"x\r\n.\r\n", 3) == [250, 451, 250]
        assert sink.statistics().recipients == 2


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


async def test_a_greylisted_address_is_known_to_every_connection():
    async with open_sink() as sink:
        one = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<greylist@d>\r\nRCPT TO:<greylist+2@d>\r\n"
        async with Connected(sink) as client:
            assert await client.codes(one, 4) == [250, 250, 451, 451]
        async with Connected(sink) as client:
            assert await client.codes(one, 4) == [250, 250, 250, 250]


@pytest.mark.parametrize("name", [b"close-in-data", b"close-after-dot"])
async def test_a_content_ends_the_connection(name):
    async with open_sink(keep=True) as sink, Connected(sink, b"EHLO c\r\n") as client:
        envelope = b"MAIL FROM:<>\r\nRCPT TO:<%b@d>\r\nDATA\r\n" % name
        assert await client.codes(envelope, 3) == [250, 250, 354]
        await client.stream.send_all(b"x\r\n.\r\n")
        assert await client.rest() == b""
        assert sink.messages == []


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


# TLS, hand-over, ending ---------------------------------------------------------------------------


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
