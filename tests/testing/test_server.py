from __future__ import annotations

import ssl

import pytest
import trio
import trustme
from trio.testing import memory_stream_pair

from engine.testing.script import ScriptMismatchError, parse_script
from engine.testing.server import play, serve_script

DIALOGUE = """
    S: 220 mx.example.net ESMTP
    C: EHLO client.example.org
    S+ 250-mx.exam
    S+ ple.net\\r\\n250 PIPELINING\\r\\n
    C~ MAIL FROM:<*@example.org> BODY=*
    C: RCPT TO:<[b]@example.net>
    C: DATA
    S: 250 ok
    S: 250 ok
    S: 354 go on
    C= DATA
    S: 250 queued
    C# 5
    S: 250 five
"""
SAID_BY_SERVER = (
    b"220 mx.example.net ESMTP\r\n250-mx.example.net\r\n250 PIPELINING\r\n"
    b"250 ok\r\n250 ok\r\n354 go on\r\n250 queued\r\n250 five\r\n221 2.0.0 bye\r\n"
)
SAID_BY_CLIENT = (
    b"EHLO client.example.org\r\nMAIL FROM:<a@example.org> BODY=7BIT\r\n"
    b"RCPT TO:<[b]@example.net>\r\nDATA\r\n..dot\r\nend\r\n.\r\na\r\n.\r"
    b"QUIT\r\n"
)


async def read_to_end(stream):
    heard = b""
    try:
        while data := await stream.receive_some():
            heard += data
    except trio.BrokenResourceError:
        heard += b"<broken>"
    return heard


async def play_against(script, *writes, hang_up=False, **options):
    """Play a one-connection script over memory; return its messages and what the client heard."""
    client, server = memory_stream_pair()
    heard = []

    async def talk():
        for octets in writes:
            await client.send_all(octets)
            await trio.testing.wait_all_tasks_blocked()
        if hang_up:
            await client.send_eof()
        heard.append(await read_to_end(client))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        failure = None
        try:
            messages = await play(parse_script(script)[0], server, **options)
        except ScriptMismatchError as error:
            failure, messages = error, None
    if failure is not None:
        raise failure
    return messages, heard[0]


@pytest.fixture
def contexts():
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("mx.example.net").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return client, server


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize("cut", ["whole", "octets"])
async def test_a_dialogue_plays_over_memory_however_it_is_cut(drip, cut):
    pieces = [SAID_BY_CLIENT]
    if cut == "octets":
        pieces = [SAID_BY_CLIENT[i : i + 1] for i in range(len(SAID_BY_CLIENT))]
    messages, heard = await play_against(DIALOGUE, *pieces, drip=drip)
    assert messages == [b".dot\r\nend\r\n", b"a\r\n.\r"]
    assert heard == SAID_BY_SERVER


@pytest.mark.parametrize("drip", [False, True])
async def test_a_dialogue_plays_over_a_socket(drip):
    async with serve_script(DIALOGUE, drip=drip) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(SAID_BY_CLIENT)
            assert await read_to_end(stream) == SAID_BY_SERVER
    assert server.messages == [b".dot\r\nend\r\n", b"a\r\n.\r"]
    assert (server.connections, server.refused, server.mismatches) == (1, 0, [])


@pytest.mark.parametrize(
    ("sent", "content"),
    [
        (b".\r\n", b""),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a\n.\nb\r\n.\r\n", b"a\n.\nb\r\n"),
        (b"..a\r\n...b\r\n.\r\n", b".a\r\n..b\r\n"),
    ],
)
async def test_content_ends_at_the_dot_alone_and_loses_its_stuffing(sent, content):
    messages, _ = await play_against("C= DATA", sent + b"QUIT\r\n")
    assert messages == [content]


@pytest.mark.parametrize(
    ("script", "said", "got"),
    [
        ("S: 220 hi\nC: QUIT", b"quit\r\n", "line 2: .* the client said b'quit'"),
        ("C~ MAIL *", b"RSET\r\n", "line 1: expected 'C~ MAIL \\*', but the client said b'RSET'"),
        ("C~ A*B", b"A\nC\r\n", "line 1: "),
        ("C: DATA", b"DAT", "line 1: .* the client hung up after b'DAT'"),
        ("C= DATA", b"a\r\n.\n", "line 1: .* the client hung up"),
        ("C# 4", b"abc", "line 1: .* the client hung up after b'abc'"),
        ("C: A", b"A\r\nRSET\r\n", "over: .* the client said b'RSET"),
        ("C: A", b"A\r\nQUI", "over: .* the client hung up after b'QUI'"),
        ("C: QUIT", b"QUIT\r\nRSET\r\n", "over: .* the client said b'RSET"),
        ("! expect-eof", b"QUIT\r\n", "line 1: expected '! expect-eof', but the client said"),
        ("C: A\n! expect-eof", b"A\r\nB", "line 2: .* the client said b'B'"),
        ("C: A", b"A" * 70_000, "line 1: .* octets came"),
    ],
)
async def test_a_deviation_names_the_line_of_the_script(script, said, got):
    with pytest.raises(ScriptMismatchError, match=f"script {got}"):
        await play_against(script, said, hang_up=True)


@pytest.mark.parametrize("script", ["S: 220 hi", "S: 220 hi\n! expect-eof"])
async def test_a_client_may_hang_up_when_the_script_is_over(script):
    assert await play_against(script, hang_up=True) == ([], b"220 hi\r\n")


async def test_quit_is_answered_when_the_script_is_over():
    assert await play_against("S: 220 hi", b"quit\r\n") == ([], b"220 hi\r\n221 2.0.0 bye\r\n")


async def test_a_script_that_ends_with_quit_closes_at_once():
    script = "C: QUIT\nS: 221 so long"
    assert await play_against(script, b"QUIT\r\n") == ([], b"221 so long\r\n")


async def test_close_ends_the_stream_in_the_middle_of_a_dialogue():
    script = "S: 220 hi\nC: EHLO x\n! close"
    assert await play_against(script, b"EHLO x\r\nMAIL") == ([], b"220 hi\r\n")


async def test_a_silent_client_is_a_mismatch_after_the_deadline(autojump_clock):
    with pytest.raises(ScriptMismatchError, match=r"line 1: .* nothing came for 7 s after b'X'"):
        await play_against("C: EHLO x", b"X", deadline=7)
    assert trio.current_time() == 7


async def test_a_client_that_does_not_read_is_a_mismatch(autojump_clock):
    client, server = trio.testing.lockstep_stream_pair()
    with pytest.raises(ScriptMismatchError, match=r"line 1: .* the client did not read it"):
        await play(parse_script("S: 220 hi")[0], server, deadline=3)
    await client.aclose()


async def test_a_sleep_lasts_as_long_as_it_says(autojump_clock):
    assert await play_against("! sleep 300\nS: 220 late", b"QUIT\r\n") == (
        [],
        b"220 late\r\n221 2.0.0 bye\r\n",
    )
    assert trio.current_time() == 300


async def test_a_stall_lasts_until_it_is_cancelled(autojump_clock):
    client, server = memory_stream_pair()
    with trio.move_on_after(1000) as scope:
        await play(parse_script("S: 220 hi\n! stall")[0], server)
    assert scope.cancelled_caught
    assert await read_to_end(client) == b"220 hi\r\n"


async def test_drip_writes_one_octet_at_a_time_from_there_on():
    client, server = trio.testing.lockstep_stream_pair()
    pieces = []

    async def read():
        while data := await client.receive_some():
            pieces.append(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await play(parse_script("S: 220 hi\n! drip\nS: no\n! close")[0], server)
    assert pieces == [b"220 hi\r\n", b"n", b"o", b"\r", b"\n"]


async def test_starttls_secures_the_rest_of_the_dialogue(contexts):
    client_context, server_context = contexts
    script = "C: STARTTLS\nS: 220 go\n! starttls\nC: EHLO x\nS: 250 secure"
    async with serve_script(script, ssl_context=server_context) as server:
        plain = await trio.open_tcp_stream("127.0.0.1", server.port)
        await plain.send_all(b"STARTTLS\r\n")
        assert await plain.receive_some() == b"220 go\r\n"
        tls = trio.SSLStream(plain, client_context, server_hostname="mx.example.net")
        await tls.send_all(b"EHLO x\r\n")
        assert await tls.receive_some() == b"250 secure\r\n"
        await tls.send_all(b"QUIT\r\n")
        # The end is a close_notify: a cut connection would raise here.
        assert await read_to_end(tls) == b"221 2.0.0 bye\r\n"
        await plain.aclose()


async def test_a_client_that_refuses_the_certificate_may_hang_up(contexts):
    async with serve_script("! starttls", ssl_context=contexts[1]) as server:
        plain = await trio.open_tcp_stream("127.0.0.1", server.port)
        tls = trio.SSLStream(plain, ssl.create_default_context(), server_hostname="mx.example.net")
        with pytest.raises(trio.BrokenResourceError):
            await tls.do_handshake()
        await plain.aclose()


async def test_octets_in_clear_behind_starttls_are_a_mismatch(contexts):
    script = "C: STARTTLS\nS: 220 go\n! starttls"
    with pytest.raises(ScriptMismatchError, match=r"line 3: .* in clear"):
        await play_against(script, b"STARTTLS\r\nEHLO x\r\n", ssl_context=contexts[1])


async def test_a_client_that_never_shakes_hands_is_a_mismatch(contexts, autojump_clock):
    with pytest.raises(ScriptMismatchError, match=r"line 1: .* did not shake hands"):
        await play_against("! starttls", ssl_context=contexts[1], deadline=5)


async def test_starttls_without_a_context_is_refused_before_anything_happens():
    _, stream = memory_stream_pair()
    with pytest.raises(ValueError, match="script line 2: ! starttls needs an ssl_context"):
        await play(parse_script("S: 220\n! starttls")[0], stream)
    with pytest.raises(ValueError, match="script line 1: ! starttls needs an ssl_context"):
        async with serve_script("! starttls"):
            pytest.fail("it must not start")


async def test_close_reads_as_an_end_of_file_even_when_the_client_said_more():
    async with serve_script("C: A\nS: 421 bye\n! close") as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        # More than one read takes, in a single call to the kernel.
        assert await stream.socket.send(b"A\r\n" + b"B" * 100_000) > 65_536
        assert await read_to_end(stream) == b"421 bye\r\n"
        await stream.aclose()


async def test_reset_reads_as_a_broken_connection():
    async with serve_script("C: A\n! reset") as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"A\r\n")
        assert await read_to_end(stream) == b"<broken>"
        await stream.aclose()


async def test_each_connection_plays_its_part_in_the_order_they_are_made():
    async with serve_script("S: 220 one\n! connection\nS: 220 two") as server:
        for wanted in (b"220 one\r\n", b"220 two\r\n"):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                assert await stream.receive_some() == wanted
    assert server.connections == 2
    assert repr(server) == (
        f"<ScriptedServer 127.0.0.1:{server.port} connections=2 messages=0 mismatches=0>"
    )


async def test_a_client_beyond_the_script_gets_a_421_and_is_counted():
    async with serve_script("") as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            assert await read_to_end(stream) == b"421 4.3.2 script has no more connections\r\n"
    assert (server.connections, server.refused) == (1, 1)


async def test_a_connection_that_was_never_made_fails_the_block():
    with pytest.raises(ScriptMismatchError, match="line 3: expected connection 2, but 1 of 2 were"):
        async with serve_script("S: 220\n! connection\nS: 220") as server:
            await (await trio.open_tcp_stream("127.0.0.1", server.port)).aclose()
    async with serve_script("S: 220", allow_unplayed=True) as server:
        pass
    assert server.connections == 0


async def test_leaving_the_block_raises_the_first_mismatch():
    with pytest.raises(ScriptMismatchError, match=r"line 1: .* b'X'"):
        async with serve_script("C: A\n! connection\nC: B") as server:
            for _ in range(2):
                async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                    await stream.send_all(b"X\r\n")
                    await read_to_end(stream)
    assert len(server.mismatches) == 2


async def test_an_error_in_the_block_is_the_cause_of_a_mismatch():
    with pytest.raises(ScriptMismatchError) as caught:
        async with serve_script("C: A") as server:
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                await stream.send_all(b"X\r\n")
                await read_to_end(stream)
            raise KeyError("what the client made of it")
    assert isinstance(caught.value.__cause__, KeyError)


async def test_an_error_in_the_block_comes_out_as_it_is_and_ends_the_server():
    with pytest.raises(KeyError, match="mine"):
        async with serve_script("S: 220\nC: A") as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            assert await stream.receive_some() == b"220\r\n"
            raise KeyError("mine")
    assert await read_to_end(stream) in {b"", b"<broken>"}
    await stream.aclose()


@pytest.mark.parametrize("script", ["S: 220\n! stall", "S: 220", "S: 220\n! sleep 3600"])
async def test_leaving_the_block_lets_go_of_a_client_that_nobody_waits_for(script):
    with trio.fail_after(5):
        async with serve_script(script) as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            assert await stream.receive_some() == b"220\r\n"
    await stream.aclose()


async def test_leaving_the_block_plays_a_dialogue_to_its_end():
    async with trio.open_nursery() as nursery:
        async with serve_script("S: 220\nC: A\nS: 250") as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            assert await stream.receive_some() == b"220\r\n"

            async def go_on():
                await stream.send_all(b"A\r\n")
                assert await read_to_end(stream) == b"250\r\n"
                await stream.aclose()

            nursery.start_soon(go_on)


async def test_cancelling_the_block_breaks_connections_off():
    with trio.CancelScope() as scope:
        async with serve_script("S: 220\n! stall") as server:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            assert await stream.receive_some() == b"220\r\n"
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert await read_to_end(stream) in {b"", b"<broken>"}
    await stream.aclose()
