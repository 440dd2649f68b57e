"""TLS as a byte stream: Trio's conformance checks, OpenSSL at the other end, and what is particular."""

from __future__ import annotations

import contextlib
import operator
import socket
import ssl
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from engine.net.stream import RECEIVE_OCTETS, SocketStream
from engine.net.tls_errors import AnsweredInClear
from engine.net.tls_stream import TlsStream
from tests.certificates import make, server_context
from tests.net.streams import memory_pair

ROOT = make("root", is_ca=True)
MX = make("mx", ROOT, names=["mx.test"])
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
SERVERS = {version: server_context([MX], version=version) for version in VERSIONS}
CLIENT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CLIENT.check_hostname = False
CLIENT.verify_mode = ssl.CERT_NONE
CLIENT.options |= ssl.OP_NO_RENEGOTIATION

each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)


def client(transport, kind=TlsStream, **options):
    return kind(transport, partial(CLIENT.wrap_bio, server_hostname="mx.test", **options))


def server(transport, version=ssl.TLSVersion.TLSv1_3, kind=TlsStream):
    return kind(transport, partial(SERVERS[version].wrap_bio, server_side=True))


async def shake_hands(*streams):
    """Run the handshake at both ends until nothing of it is on its way."""

    async def finish(stream):
        await stream.handshake()
        stream._say_own()

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(finish, stream)
    return streams


async def connect(version=ssl.TLSVersion.TLSv1_3, **options):
    """Both ends of TLS over memory, and the two transports."""
    left, right = memory_pair(**options)
    ours, theirs = await shake_hands(client(left), server(right, version))
    return ours, theirs, left, right


async def receive_exactly(stream, count):
    octets = b""
    while len(octets) < count:
        more = await stream.receive_some()
        assert more, f"ended after {len(octets)} of {count}"
        octets += more
    return octets


# -- conformance --------------------------------------------------------------------------------


class Conforming(TlsStream):
    """The stream plus the promises of Trio's that it does not make."""

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        await super().send_all(data)

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()
        self._check_sendable()
        self._is_sending = True
        try:
            await self._transport.wait_send_all_might_not_block()
        finally:
            self._is_sending = False

    async def receive_some(self, max_octets=None):
        return await super().receive_some(max_octets and operator.index(max_octets))


trio.abc.Stream.register(Conforming)


async def sockets(version):
    left, right = socket.socketpair()
    return await shake_hands(
        client(SocketStream(left), Conforming), server(SocketStream(right), version, Conforming)
    )


@each_version
async def test_it_is_a_two_way_stream_as_trio_defines_it(version):
    async def clogged():
        ours, theirs = await sockets(version)
        for stream in (ours, theirs):
            while stream.send_nowait(bytes(RECEIVE_OCTETS)) == RECEIVE_OCTETS:
                pass
        return ours, theirs

    await trio.testing.check_two_way_stream(partial(sockets, version), clogged)


# -- sending ------------------------------------------------------------------------------------


@each_version
async def test_a_small_send_is_one_write_and_no_checkpoint(version):
    ours, theirs, left, _ = await connect(version)
    await ours.send_all(b"EHLO a\r\n")
    left.sent.clear()
    with trio.testing.assert_no_checkpoints():
        await ours.send_all(b"MAIL FROM:<>\r\n")
        assert ours.send_nowait(b"RCPT TO:<a@b>\r\n") == 15
    assert len(left.sent) == 2
    assert await receive_exactly(theirs, 37) == b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\n"


async def test_a_block_of_many_records_is_one_write_still():
    ours, theirs, left, _ = await connect()
    left.sent.clear()
    assert ours.send_nowait(bytes(60_000)) == 60_000
    assert len(left.sent) == 1
    assert await receive_exactly(theirs, 60_000) == bytes(60_000)


async def test_our_last_flight_leaves_with_the_first_command():
    left, right = memory_pair()
    ours, theirs = client(left), server(right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.handshake)
        await ours.handshake()
        flights = len(left.sent)
        assert flights == 1  # the ClientHello alone
        await trio.testing.wait_all_tasks_blocked()
        await ours.send_all(b"EHLO a\r\n")
        assert len(left.sent) == 2
    assert await theirs.receive_some() == b"EHLO a\r\n"


async def test_our_last_flight_leaves_before_the_peer_is_waited_for():
    left, right = memory_pair()
    ours, theirs = client(left), server(right)

    async def greet():
        await theirs.handshake()
        await theirs.send_all(b"220 mx.test\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet)
        await ours.handshake()
        assert await ours.receive_some() == b"220 mx.test\r\n"


async def test_our_last_flight_leaves_even_where_the_way_is_narrow():
    left, right = memory_pair()
    ours, theirs = client(left), server(right)
    received = []

    async def greet():
        await theirs.handshake()
        await theirs.send_all(b"220 mx.test\r\n")
        received.append(await theirs.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet)
        await ours.handshake()
        left.room = 7
        assert await ours.receive_some() == b"220 mx.test\r\n"
        await ours.send_all(b"QUIT\r\n")
    assert received == [b"QUIT\r\n"]


async def test_sending_before_the_handshake_is_refused():
    left, _ = memory_pair()
    with pytest.raises(trio.BrokenResourceError):
        client(left).send_nowait(b"x")


@pytest.mark.parametrize("room", [1, 100, 5000, 20_000, 100_000])
@each_version
async def test_what_the_transport_does_not_take_is_not_taken(room, version):
    ours, theirs, left, right = await connect(version)
    await ours.send_all(b"x")
    await receive_exactly(theirs, 1)
    content = pattern(150_000 if room > 1 else 2000)
    left.room = room
    taken = ours.send_nowait(content)
    assert taken < len(content)
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, content[taken:])
        received = await receive_exactly(theirs, len(content))
    assert received == content
    assert not right.arrived


async def test_the_last_octet_does_not_arrive_before_it_was_to_be_sent():
    """Whoever sends all but the end of a content relies on that the peer cannot have it all."""
    ours, theirs, left, _ = await connect()
    content = bytes(1000) + b"\r\n.\r\n"
    left.room = 500
    assert ours.send_nowait(content) == 0
    left.room = 100_000
    await ours.send_all(content[:700])
    await ours.send_all(content[700:-1])
    received = b""
    with trio.move_on_after(0.1):
        while True:
            received += await theirs.receive_some()
    assert len(received) < len(content)
    await ours.send_all(content[-1:])
    assert received + await receive_exactly(theirs, len(content) - len(received)) == content


async def test_a_hard_close_amid_a_content_leaves_it_unfinished_and_unmarked():
    ours, theirs, left, _ = await connect()
    await ours.send_all(b"x")
    await receive_exactly(theirs, 1)
    left.room = 300
    assert ours.send_nowait(bytes(1000)) == 0
    await ours.aclose()
    assert await theirs.receive_some() == b""


async def test_a_second_sender_is_refused():
    ours, _, left, _ = await connect()
    left.room = 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, bytes(1000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            ours.send_nowait(b"x")
        with pytest.raises(trio.BusyResourceError):
            await ours.send_eof()
        nursery.cancel_scope.cancel()


# -- receiving ----------------------------------------------------------------------------------


@each_version
async def test_a_read_returns_all_that_is_decrypted(version):
    ours, theirs, _, right = await connect(version)
    for _ in range(3):
        await theirs.send_all(bytes(RECEIVE_OCTETS // 4))
    await theirs.send_all(b"250 ok\r\n")
    assert len(right.sent) >= 4
    assert await ours.receive_some() == bytes(RECEIVE_OCTETS // 4 * 3) + b"250 ok\r\n"


@each_version
async def test_records_larger_than_the_read_stall_nothing(version):
    ours, theirs, _, _ = await connect(version)
    await theirs.send_all(b"a" * 16384 + b"end")
    octets = b""
    while not octets.endswith(b"end"):
        octets += await ours.receive_some(100)
        assert len(octets) % 100 in (0, (16384 + 3) % 100)
    assert len(octets) == 16387


async def test_receiving_is_a_checkpoint_even_when_octets_are_there():
    ours, theirs, _, _ = await connect()
    await theirs.send_all(b"250 ok\r\n")
    await ours.receive_some(1)
    with trio.testing.assert_checkpoints():
        assert await ours.receive_some() == b"50 ok\r\n"


async def test_a_cancelled_receive_loses_nothing():
    ours, theirs, _, _ = await connect()
    await theirs.send_all(b"250 ok\r\n")
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.receive_some()
        assert scope.cancelled_caught
    assert await ours.receive_some(3) == b"250"
    with trio.CancelScope() as scope:
        scope.cancel()
        await ours.receive_some()
    assert await ours.receive_some() == b" ok\r\n"


@each_version
async def test_what_has_arrived_is_read_without_waiting(version):
    ours, theirs, _, _ = await connect(version)
    assert ours.receive_nowait() is None
    await theirs.send_all(b"250 ok\r\n")
    assert ours.receive_nowait() == b"250 ok\r\n"
    assert ours.receive_nowait() is None
    await theirs.aclose()
    assert ours.receive_nowait() == b""
    ours.close()
    with pytest.raises(trio.ClosedResourceError):
        ours.receive_nowait()


async def test_half_a_record_is_nothing_to_read_yet():
    ours, theirs, _, right = await connect()
    right.room = 10
    assert theirs.send_nowait(b"250 ok\r\n") == 0
    assert ours.receive_nowait() is None
    right.room = 1000
    assert theirs.send_nowait(b"250 ok\r\n") == 8
    assert ours.receive_nowait() == b"250 ok\r\n"


async def test_a_second_receiver_is_refused():
    ours, theirs, _, _ = await connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await ours.receive_some()
        with pytest.raises(trio.BusyResourceError):
            ours.receive_nowait()
        await theirs.send_all(b"x")


@pytest.mark.parametrize("wanted", [0, -1])
async def test_asking_for_nothing_is_refused(wanted):
    ours, *_ = await connect()
    with pytest.raises(ValueError, match="allowed are 1 and more"):
        await ours.receive_some(wanted)


@each_version
async def test_the_first_read_is_told_once_and_the_session_is_there_by_then(version):
    ours, theirs, _, _ = await connect(version)
    told = []
    ours.on_first_read = lambda: told.append(ours.tls.session)
    await ours.send_all(b"EHLO a\r\n")
    for _ in range(2):
        await theirs.send_all(b"250 ok\r\n")
        await ours.receive_some()
    (session,) = told
    assert session.has_ticket


# -- the end ------------------------------------------------------------------------------------


@each_version
@pytest.mark.parametrize("is_polite", [True, False])
async def test_the_end_of_the_peer_is_no_octets_whether_it_says_so_or_not(version, is_polite):
    ours, theirs, _, right = await connect(version)
    await ours.send_all(b"QUIT\r\n")
    await theirs.receive_some()
    await theirs.send_all(b"221 bye\r\n")
    if is_polite:
        await theirs.aclose()
    else:
        right.close()
    assert await ours.receive_some() == b"221 bye\r\n"
    assert await ours.receive_some() == b""
    assert await ours.receive_some() == b""


@each_version
async def test_an_end_amid_a_record_is_an_end(version):
    ours, theirs, left, right = await connect(version)
    await ours.send_all(b"x")
    await theirs.receive_some()
    await theirs.send_all(b"250 ok\r\n")
    await theirs.send_all(b"250 more\r\n")
    del left.arrived[-5:]
    right.close()
    assert await ours.receive_some() == b"250 ok\r\n"
    assert await ours.receive_some() == b""


@each_version
async def test_aclose_says_goodbye_and_waits_for_no_answer(version):
    ours, theirs, left, _ = await connect(version)
    await ours.send_all(b"QUIT\r\n")
    await ours.aclose()
    assert left.is_closed
    assert await theirs.receive_some() == b"QUIT\r\n"
    assert theirs.tls.read(1) == b""  # in TLS's own words, before the transport ended
    await ours.aclose()


async def test_a_cancelled_aclose_has_closed():
    ours, _, left, _ = await connect()
    with trio.CancelScope() as scope:
        scope.cancel()
        await ours.aclose()
    assert scope.cancelled_caught
    assert left.is_closed


async def test_aclose_of_a_broken_connection_is_quiet():
    ours, _, left, right = await connect()
    right.close()
    await ours.aclose()
    assert left.is_closed


async def test_what_the_peer_said_before_it_left_is_read_though_we_cannot_answer():
    ours, theirs, _, right = await connect()
    await theirs.send_all(b"421 bye\r\n")
    right.close()
    ours._outgoing.write(b"as a refusal of a new handshake would be")
    assert await ours.receive_some() == b"421 bye\r\n"
    assert await ours.receive_some() == b""


async def test_everything_is_refused_after_close_and_closing_again_is_fine():
    ours, *_ = await connect()
    ours.close()
    ours.close()
    await ours.aclose()
    for call in (ours.send_all(b"x"), ours.receive_some(), ours.send_eof()):
        with pytest.raises(trio.ClosedResourceError):
            await call
    with pytest.raises(trio.ClosedResourceError):
        ours.send_nowait(b"x")


async def test_close_wakes_a_sender_and_a_receiver():
    left, right = socket.socketpair()
    ours, _ = await shake_hands(client(SocketStream(left)), server(SocketStream(right)))
    woken = []

    async def expect_closed(call, *args):
        with pytest.raises(trio.ClosedResourceError):
            await call(*args)
        woken.append(call.__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, ours.send_all, bytes(10_000_000))
        nursery.start_soon(expect_closed, ours.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        ours.close()
    assert sorted(woken) == ["receive_some", "send_all"]
    right.close()


async def test_with_tls_13_the_peer_reads_our_end_and_we_still_receive():
    ours, theirs, left, _ = await connect()
    await ours.send_all(b"QUIT\r\n")
    await theirs.send_all(b"250 ok\r\n")
    assert await ours.receive_some() == b"250 ok\r\n"
    await ours.send_eof()
    await ours.send_eof()
    assert await theirs.receive_some() == b"QUIT\r\n"
    assert await theirs.receive_some() == b""
    assert not left.is_closed
    await theirs.send_all(b"221 bye\r\n")
    assert await ours.receive_some() == b"221 bye\r\n"
    with pytest.raises(trio.ClosedResourceError):
        ours.send_nowait(b"x")


async def test_with_tls_12_or_unread_octets_the_end_is_said_on_closing():
    ours, theirs, _, _ = await connect(ssl.TLSVersion.TLSv1_2)
    await ours.send_eof()
    await theirs.send_all(b"221 bye\r\n")
    assert await ours.receive_some() == b"221 bye\r\n"
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")

    ours, theirs, _, _ = await connect()
    await theirs.send_all(b"250 ok\r\n221 bye\r\n")
    assert await ours.receive_some(8) == b"250 ok\r\n"
    await ours.send_eof()
    assert await ours.receive_some() == b"221 bye\r\n"
    await ours.aclose()
    assert await theirs.receive_some() == b""


# -- hostile peers ------------------------------------------------------------------------------


@each_version
async def test_what_is_not_tls_breaks_the_stream_behind_what_was(version):
    ours, theirs, left, _ = await connect(version)
    await ours.send_all(b"x")
    await theirs.receive_some()
    await theirs.send_all(b"250 ok\r\n")
    left.arrived += b"250 in clear\r\n"
    assert await ours.receive_some() == b"250 ok\r\n"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="TLS: ") as info:
            await ours.receive_some()
        assert isinstance(info.value.__cause__, ssl.SSLError)
        assert "in clear" not in str(info.value)
    with pytest.raises(trio.BrokenResourceError, match="TLS: "):
        ours.send_nowait(b"x")


async def test_a_changed_record_breaks_the_stream():
    ours, theirs, left, _ = await connect()
    await ours.send_all(b"x")
    await theirs.receive_some()
    await theirs.send_all(b"250 ok\r\n")
    left.arrived[-1] ^= 1
    with pytest.raises(trio.BrokenResourceError, match="TLS: "):
        await ours.receive_some()
    # It was told: an alert of our own, which breaks the peer's end in turn.
    with pytest.raises(trio.BrokenResourceError, match="bad record mac"):
        await theirs.receive_some()


async def test_key_updates_without_end_are_answered_at_leisure():
    # OpenSSL's object has no key update in Python; what it does with them, `tests/servers` shows.
    ours, theirs, left, right = await connect(ssl.TLSVersion.TLSv1_2)
    await ours.send_all(b"x")
    await theirs.receive_some()
    left.room = 0
    # As a peer does that asks for new handshakes and reads none of our refusals.
    ours._outgoing.write(bytes(70_000))
    with pytest.raises(trio.BrokenResourceError, match="reads no answer"):
        await ours.receive_some()
    assert not right.arrived


async def test_refusals_of_ours_do_not_grow_while_a_sender_waits():
    ours, _, left, _ = await connect()
    left.room = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, bytes(1000))
        await trio.testing.wait_all_tasks_blocked()
        ours._outgoing.write(bytes(70_000))
        with pytest.raises(trio.BrokenResourceError, match="reads no answer"):
            await ours.receive_some()
        nursery.cancel_scope.cancel()


# -- fuzz against OpenSSL -----------------------------------------------------------------------

sizes = st.one_of(st.integers(1, 60), st.sampled_from([16383, 16384, 16385, 65536, 65537, 200_000]))


@given(
    version=st.sampled_from(VERSIONS),
    sent=st.lists(sizes, min_size=1, max_size=6),
    answered=st.lists(sizes, min_size=1, max_size=6),
    room=st.one_of(st.integers(1, 40), st.integers(1000, 100_000)),
    at_once=st.one_of(st.integers(1, 7), st.integers(1000, 70_000)),
    wanted=st.one_of(st.none(), st.integers(50, 70_000)),
)
async def test_every_octet_arrives_in_order_however_the_way_cuts_them(
    version, sent, answered, room, at_once, wanted
):
    if room < 40 or at_once < 8:  # octet by octet takes its time
        sent, answered = [min(each, 500) for each in sent], [min(each, 500) for each in answered]
    outward, back = pattern(sum(sent)), pattern(sum(answered))
    # The peer is the standard library alone.
    left, right = memory_pair(room, at_once)
    ours = client(left)
    seen = {}

    async def say(stream, octets, cuts):
        for cut in cuts:
            part, octets = octets[:cut], octets[cut:]
            taken = stream.send_nowait(part) if cut % 2 else 0
            if taken < len(part):
                await stream.send_all(part[taken:])

    async def hear(stream, count):
        octets = b""
        while len(octets) < count:
            octets += await stream.receive_some(wanted)
        seen[stream] = octets

    async def answer():
        peer = StandardPeer(right, version)
        await peer.run(partial(say, peer, back, answered), partial(hear, peer, len(outward)))
        seen["peer"] = seen[peer]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await ours.handshake()
        nursery.start_soon(say, ours, outward, sent)
        nursery.start_soon(hear, ours, len(back))
    assert seen[ours] == back
    assert seen["peer"] == outward


def pattern(count: int) -> bytes:
    return (bytes(range(251)) * (count // 251 + 1))[:count]


class StandardPeer:
    """The other end by `ssl.SSLObject` in its plainest use, one lock round everything."""

    def __init__(self, transport, version):
        self._transport = transport
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = SERVERS[version].wrap_bio(self._in, self._out, server_side=True)
        self._sending = trio.Lock()

    async def run(self, say, hear):
        await self._do(self._tls.do_handshake)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            nursery.start_soon(hear)

    async def _do(self, call, *args):
        while True:
            try:
                result = call(*args)
            except ssl.SSLWantReadError:
                await self._flush()
                self._in.write(await self._transport.receive_some())
            else:
                await self._flush()
                return result

    async def _flush(self):
        async with self._sending:
            await self._transport.send_all(self._out.read())

    def send_nowait(self, _):
        return 0

    async def send_all(self, octets):
        self._tls.write(octets)
        await self._flush()

    async def receive_some(self, wanted=None):
        return await self._do(self._tls.read, wanted or 65536)


@given(octets=st.binary(max_size=300))
async def test_any_octets_in_place_of_a_handshake_are_an_error_or_an_end(octets):
    left, right = memory_pair()
    right.send_nowait(octets)
    await right.send_eof()
    with pytest.raises(AnsweredInClear if octets[:1] == b"2" else ssl.SSLError):
        await client(left).handshake()


@given(data=st.data(), version=st.sampled_from(VERSIONS))
async def test_a_handshake_that_is_changed_or_cut_anywhere_fails_or_succeeds_whole(data, version):
    left, right = memory_pair()
    ours, theirs = client(left), server(right, version)
    kind = data.draw(st.sampled_from(["cut", "changed"]))
    original = right.send_nowait
    place = data.draw(st.integers(0, 1500))

    def tamper(octets):
        octets = bytearray(octets)
        nonlocal place
        if place < len(octets):
            if kind == "cut":
                original(octets[:place])
                right.close()
                return len(octets)
            octets[place] ^= 1 << place % 8
        place -= min(place, len(octets)) if place < len(octets) else len(octets)
        return original(octets)

    right.send_nowait = tamper

    async def serve():
        with contextlib.suppress(ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError):
            await theirs.handshake()
            await theirs.send_all(b"250 ok\r\n")
            await theirs.receive_some()
        right.close()

    async def end_waiting(scope):
        # A length that was changed may leave each waiting for the other; sessions have deadlines.
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(end_waiting, nursery.cancel_scope)
        try:
            await ours.handshake()
            assert await ours.receive_some() in (b"250 ok\r\n", b"")
        except (ssl.SSLError, trio.BrokenResourceError):
            pass
        ours.close()
