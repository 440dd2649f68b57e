"""Handshakes over memory streams: with proxies that agree, refuse, babble, stall and hang up."""

from __future__ import annotations

import socket
import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from engine.net.errors import ConnectFailed
from engine.net.haproxy import Haproxy, header
from engine.net.proxy import Tunnel, handshake
from engine.net.socks5 import ProxyRefused, Socks5
from engine.net.stream import SocketStream
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage

TARGET = ("192.0.2.1", 25)
DOING = "connect to mx.test [192.0.2.1]:25 through 192.0.2.9:1080"
GREETING = b"220 mx.test ESMTP\r\n"
LOGIN = ("anna", "s3cretW0rd")

HELLO, HELLO_LOGIN = b"\5\1\0", b"\5\1\2"
AUTH = b"\1\4anna\x0as3cretW0rd"
REQUEST = bytes.fromhex("05 01 00 01 c0000201 0019")
REPLY = bytes.fromhex("05 00 00 01 c6336407 9c40")
REPLY_NAME = bytes.fromhex("05 00 00 03 0a") + b"egress.net" + bytes.fromhex("9c40")
BOUND = ("198.51.100.7", 40000)


async def read_exactly(stream, size):
    octets = b""
    while len(octets) < size:
        more = await stream.receive_some(size - len(octets))
        assert more, f"ended after {octets!r}"
        octets += more
    return octets


async def drip(stream, octets):
    for octet in octets:
        await stream.send_all(bytes([octet]))
        await wait_all_tasks_blocked()


async def whole(stream, octets):
    await stream.send_all(octets)


async def play(stream, script, send):
    """Be the proxy: expect exactly these octets, then say those, pair by pair."""
    for expected, answer in script:
        assert await read_exactly(stream, len(expected)) == expected
        await send(stream, answer)


async def through(dialogue, script, send=whole, seconds=5, *, hang_up=False):
    """Run a handshake against a scripted proxy; return what it left behind."""
    ours, theirs = memory_stream_pair()

    async def proxy():
        await play(theirs, script, send)
        if hang_up:
            await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy)
        try:
            return await handshake(ours, dialogue, seconds, doing=DOING)
        except ConnectFailed as failure:
            return failure


def check(failure, cause, text):
    assert isinstance(failure, ConnectFailed)
    assert (failure.stage, failure.scope) == (Stage.PROXY, Scope.SOURCE)
    assert failure.cause is cause
    assert failure.text == f"{DOING}: {text}"


both_ways = pytest.mark.parametrize("send", [whole, drip])


# -- it works -----------------------------------------------------------------------------------


@both_ways
async def test_socks5_without_a_login_gets_through(send):
    script = [(HELLO, b"\5\0"), (REQUEST, REPLY)]
    assert await through(Socks5(*TARGET), script, send) == Tunnel(b"", BOUND)


@both_ways
async def test_socks5_with_a_login_gets_through(send):
    script = [(HELLO_LOGIN, b"\5\2"), (AUTH, b"\1\0"), (REQUEST, REPLY)]
    assert await through(Socks5(*TARGET, *LOGIN), script, send) == Tunnel(b"", BOUND)


@both_ways
async def test_a_reply_with_a_name_leaves_the_stream_at_the_right_octet(send):
    script = [(HELLO, b"\5\0"), (REQUEST, REPLY_NAME)]
    assert await through(Socks5(*TARGET), script, send) == Tunnel(b"", ("egress.net", 40000))


async def test_a_greeting_in_one_segment_with_the_reply_is_handed_on():
    script = [(HELLO, b"\5\0"), (REQUEST, REPLY + GREETING)]
    assert await through(Socks5(*TARGET), script) == Tunnel(GREETING, BOUND)


async def test_leftover_and_stream_together_are_all_the_target_said():
    ours, theirs = memory_stream_pair()
    greeting = GREETING * 100
    async with trio.open_nursery() as nursery:
        script = [(HELLO, b"\5\0"), (REQUEST, REPLY + greeting)]
        nursery.start_soon(play, theirs, script, whole)
        tunnel = await handshake(ours, Socks5(*TARGET), 5, doing=DOING)
    assert len(tunnel.leftover) < len(greeting)
    rest = await read_exactly(ours, len(greeting) - len(tunnel.leftover))
    assert tunnel.leftover + rest == greeting


async def test_the_proxy_protocol_sends_its_header_in_one_piece_and_reads_nothing():
    ours, theirs = memory_stream_pair()
    await theirs.send_all(GREETING)
    source = ("192.0.2.9", 0)
    tunnel = await handshake(ours, Haproxy(source, TARGET), 5, doing=DOING)
    assert tunnel == Tunnel(b"", None)
    assert await theirs.receive_some() == header(source, TARGET)
    assert await ours.receive_some() == GREETING


@pytest.mark.parametrize("sent", [0, 1, 2, 3])
async def test_what_rode_in_the_syn_is_not_sent_again(sent):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        script = [(HELLO[sent:], b"\5\0"), (REQUEST, REPLY)]
        nursery.start_soon(play, theirs, script, whole)
        tunnel = await handshake(ours, Socks5(*TARGET), 5, doing=DOING, sent=sent)
    assert tunnel == Tunnel(b"", BOUND)


# -- it does not --------------------------------------------------------------------------------


@both_ways
async def test_a_refusal_is_the_sources_with_the_proxys_words(send):
    script = [(HELLO, b"\5\0"), (REQUEST, b"\5\4\0\1" + bytes(6))]
    failure = await through(Socks5(*TARGET), script, send)
    check(failure, Cause.UNREACHABLE, "the proxy answered: host unreachable (reply 4)")
    assert isinstance(failure.__cause__, ProxyRefused)


@both_ways
async def test_a_refused_login_is_our_configuration_and_is_not_shown(send):
    script = [(HELLO_LOGIN, b"\5\2"), (AUTH, b"\1\1")]
    failure = await through(Socks5(*TARGET, *LOGIN), script, send)
    check(failure, Cause.CONFIG, "the proxy refused the login (status 1)")
    assert "s3cretW0rd" not in repr(failure) + repr(failure.__cause__)


async def test_a_web_server_is_no_proxy():
    failure = await through(Socks5(*TARGET), [(HELLO, b"HTTP/1.1 400 Bad Request\r\n")])
    text = "the proxy does not speak SOCKS5 as it should: version 72 in place of 5"
    check(failure, Cause.MALFORMED_REPLY, text)


@pytest.mark.parametrize("octets", [b"", b"\5", b"\5\0", b"\5\0" + REPLY[:1], b"\5\0" + REPLY[:9]])
async def test_an_end_before_the_end_is_closed(octets):
    failure = await through(Socks5(*TARGET), [(HELLO, octets)], hang_up=True)
    text = "the proxy closed the connection: in the middle of the handshake"
    check(failure, Cause.CLOSED, text)
    assert failure.errno is None


@pytest.mark.parametrize(
    "script",
    [[], [(HELLO, b"\5")], [(HELLO, b"\5\0")], [(HELLO, b"\5\0"), (REQUEST, REPLY[:9])]],
)
async def test_a_proxy_that_goes_quiet_times_out_on_the_second(autojump_clock, script):
    started = trio.current_time()
    failure = await through(Socks5(*TARGET), script, seconds=7.5)
    check(failure, Cause.TIMEOUT, "the proxy timed out after 7.5 s")
    assert trio.current_time() - started == pytest.approx(7.5)


async def test_dripping_does_not_move_the_deadline(autojump_clock):
    async def slowly(stream, octets):
        for octet in octets:
            await trio.sleep(1)
            await stream.send_all(bytes([octet]))

    started = trio.current_time()
    name = b"\5\0\0\3\xff" + b"n" * 255 + b"\0\0"
    script = [(HELLO, b"\5\0"), (REQUEST, name[:20])]
    failure = await through(Socks5(*TARGET), script, slowly, seconds=10)
    check(failure, Cause.TIMEOUT, "the proxy timed out after 10 s")
    assert trio.current_time() - started == pytest.approx(22)  # the script plays to its end


async def test_a_relay_that_takes_nothing_times_out(autojump_clock):
    ours, _theirs = lockstep_stream_pair()
    with pytest.raises(ConnectFailed) as caught:
        await handshake(ours, Haproxy(None, TARGET), 3, doing=DOING)
    check(caught.value, Cause.TIMEOUT, "the proxy timed out after 3 s")


async def test_a_reset_is_closed_and_keeps_the_number_of_the_system():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = SocketStream(socket.create_connection(listener.getsockname(), timeout=5))
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with pytest.raises(ConnectFailed) as caught:
        await handshake(ours, Socks5(*TARGET), 5, doing=DOING)
    ours.close()
    assert (caught.value.stage, caught.value.cause) == (Stage.PROXY, Cause.CLOSED)
    assert caught.value.scope is Scope.SOURCE
    assert caught.value.text.startswith(f"{DOING}: the proxy closed the connection: ")
    assert caught.value.errno is not None


async def test_failed_or_cancelled_it_leaves_the_stream_to_its_owner(autojump_clock):
    ours, theirs = memory_stream_pair()
    with trio.move_on_after(1) as scope:
        await handshake(ours, Socks5(*TARGET), 5, doing=DOING)
    assert scope.cancelled_caught
    with pytest.raises(ConnectFailed):
        await handshake(ours, Socks5(*TARGET), 1, doing=DOING)
    assert await theirs.receive_some() == HELLO * 2
    await ours.send_all(b"still open")
    assert await theirs.receive_some() == b"still open"


# -- whatever a proxy may send ------------------------------------------------------------------


class OctetByOctet:
    """A stream that hands over one octet at a time."""

    def __init__(self, stream):
        self.send_all = stream.send_all
        self._receive_some = stream.receive_some

    async def receive_some(self, max_octets):
        return await self._receive_some(1)


async def outcome_of(dialogue, octets, wrap):
    """What a handshake comes to with a proxy that says this, unasked, and hangs up."""
    ours, theirs = memory_stream_pair()
    await theirs.send_all(octets)
    await theirs.send_eof()
    try:
        tunnel = await handshake(wrap(ours), dialogue, 5, doing=DOING)
    except ConnectFailed as failure:
        return failure.stage, failure.scope, failure.cause, failure.text
    return tunnel.bound


heads = st.sampled_from([b"", b"\5\0", b"\5\2\1\0", b"\5\0\5\0\0\3", b"\5\0\5\0\0\1", b"\5\0\5\5"])


@given(st.sampled_from([(), LOGIN]), heads, st.binary(max_size=300))
async def test_any_octets_make_a_tunnel_or_a_failed_connect(login, head, octets):
    outcome = await outcome_of(Socks5(*TARGET, *login), head + octets, lambda stream: stream)
    if len(outcome) > 2:
        stage, scope, cause, text = outcome
        assert (stage, scope) == (Stage.PROXY, Scope.SOURCE)
        assert cause is not Cause.TIMEOUT
        assert text.isprintable()
    dripped = await outcome_of(Socks5(*TARGET, *login), head + octets, OctetByOctet)
    assert dripped == outcome
