"""The socket stream: Trio's own conformance checks, then what is particular to it."""

from __future__ import annotations

import errno
import operator
import socket
import struct

import pytest
import trio
import trio.testing

from engine.net.stream import RECEIVE_OCTETS, SocketStream


@pytest.fixture
def pair():
    """Two ends of a TCP connection over loopback: our stream, and the peer's blocking socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=5)
        theirs, _ = listener.accept()
    theirs.settimeout(5)
    with ours, theirs:
        yield SocketStream(ours), theirs


def fill(stream: SocketStream) -> int:
    """Send until the kernel takes no more; return how many octets it took."""
    total = 0
    while taken := stream.send_nowait(bytes(RECEIVE_OCTETS)):
        total += taken
    return total


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Conforming(SocketStream):
    """The stream plus the two promises of Trio's that it does not make.

    Every send is a checkpoint, and a wrong type is refused before any waiting.
    """

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        await super().send_all(data)

    async def receive_some(self, max_octets=None):
        return await super().receive_some(max_octets and operator.index(max_octets))


async def test_it_is_a_half_closeable_stream_as_trio_defines_it():
    async def connected():
        left, right = socket.socketpair()
        return Conforming(left), Conforming(right)

    async def clogged():
        left, right = await connected()
        fill(left)
        fill(right)
        return left, right

    await trio.testing.check_half_closeable_stream(connected, clogged)


async def test_it_is_a_two_way_stream_over_tcp():
    async def connected():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname(), timeout=5)
            theirs, _ = listener.accept()
        return Conforming(ours), Conforming(theirs)

    await trio.testing.check_half_closeable_stream(connected, None)


async def test_a_send_that_fits_does_not_wait(pair):
    stream, peer = pair
    with trio.testing.assert_no_checkpoints():
        await stream.send_all(b"MAIL FROM:<>\r\n")
    assert peer.recv(100) == b"MAIL FROM:<>\r\n"


async def test_a_send_that_does_not_fit_waits_and_sends_every_octet_in_order(pair):
    stream, peer = pair
    filled = fill(stream)
    content = bytes(range(256)) * 4096
    received = bytearray()

    async def drain():
        await trio.testing.wait_all_tasks_blocked()
        while len(received) < filled + len(content):
            received.extend(await trio.to_thread.run_sync(peer.recv, 1 << 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await stream.send_all(memoryview(content))
    assert received[filled:] == content


async def test_send_nowait_tells_how_many_octets_were_taken(pair):
    stream, peer = pair
    assert stream.send_nowait(b"QUIT\r\n") == 6
    assert peer.recv(100) == b"QUIT\r\n"
    fill(stream)
    assert stream.send_nowait(b"x") == 0


async def test_receiving_is_a_checkpoint_even_when_octets_are_there(pair):
    stream, peer = pair
    peer.sendall(b"250 ok\r\n")
    with trio.testing.assert_checkpoints():
        assert await stream.receive_some() == b"250 ok\r\n"


@pytest.mark.parametrize("wanted", [None, RECEIVE_OCTETS, 1 << 20])
async def test_never_more_than_the_limit_is_read_at_once(wanted):
    asked = []

    class Asked(socket.socket):
        def recv(self, size):
            asked.append(size)
            return super().recv(size)

    left, right = socket.socketpair()
    with right, Asked(fileno=left.detach()) as sock:
        right.sendall(b"x")
        assert await SocketStream(sock).receive_some(wanted) == b"x"
    assert asked == [64 * 1024]


async def test_receive_some_returns_at_most_what_was_asked_for(pair):
    stream, peer = pair
    peer.sendall(b"250 ok\r\n")
    assert await stream.receive_some(3) == b"250"
    assert await stream.receive_some() == b" ok\r\n"


@pytest.mark.parametrize("wanted", [0, -1])
async def test_asking_for_nothing_is_refused(pair, wanted):
    with pytest.raises(ValueError, match="allowed are 1 and more"):
        await pair[0].receive_some(wanted)


async def test_a_vain_wake_up_waits_again():
    class Fickle(socket.socket):
        vain = 2

        def recv(self, size):
            if self.vain:
                self.vain -= 1
                raise BlockingIOError(errno.EAGAIN, "not yet")
            return super().recv(size)

    left, right = socket.socketpair()
    with right, Fickle(fileno=left.detach()) as sock:
        right.sendall(b"x")
        assert await SocketStream(sock).receive_some() == b"x"
        assert sock.vain == 0


class Counting(socket.socket):
    """A socket that knows how often it was read in vain."""

    vain = 0

    def recv(self, size):
        try:
            return super().recv(size)
        except BlockingIOError:
            self.vain += 1
            raise


async def test_what_is_there_after_a_turn_is_read_without_watching_the_socket(monkeypatch):
    async def watch(_sock):
        raise AssertionError("watched")

    left, right = socket.socketpair()
    with right, left:
        stream = SocketStream(left)
        monkeypatch.setattr(trio.lowlevel, "wait_readable", watch)
        for _ in range(3):
            right.sendall(b"x")
            assert await stream.receive_some() == b"x"


async def test_reading_in_vain_is_tried_less_and_less():
    left, right = socket.socketpair()
    with right, Counting(fileno=left.detach()) as sock:
        stream = SocketStream(sock)
        for number in range(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                right.sendall(b"x")
            if number == 10:
                assert sock.vain == 3
        assert sock.vain <= 22


async def test_a_receiver_that_has_its_turn_after_the_close_learns_of_it(pair):
    stream, _ = pair
    refused = []

    async def receive():
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        refused.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.lowlevel.checkpoint()
        stream.close()
    assert refused == [1]


async def test_the_end_of_the_peer_is_no_octets(pair):
    stream, peer = pair
    peer.close()
    assert await stream.receive_some() == b""
    assert await stream.receive_some() == b""


async def test_after_send_eof_the_peer_reads_the_end_and_we_still_receive(pair):
    stream, peer = pair
    await stream.send_eof()
    await stream.send_eof()
    assert peer.recv(1) == b""
    peer.sendall(b"221 bye\r\n")
    assert await stream.receive_some() == b"221 bye\r\n"
    with pytest.raises(trio.ClosedResourceError):
        stream.send_nowait(b"x")


async def test_a_cancelled_send_eof_did_nothing(pair):
    stream, peer = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.send_eof()
    await stream.send_all(b"x")
    assert peer.recv(1) == b"x"


async def test_a_cancelled_receive_loses_nothing(pair):
    stream, peer = pair
    peer.sendall(b"250 ok\r\n")
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert scope.cancelled_caught
    assert await stream.receive_some() == b"250 ok\r\n"


async def test_a_second_sender_is_refused_even_when_its_octets_would_fit(pair):
    stream, _ = pair
    fill(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"x")
        await trio.testing.wait_all_tasks_blocked()
        for call in (stream.send_all(b"y"), stream.send_all(b""), stream.send_eof()):
            with pytest.raises(trio.BusyResourceError):
                await call
        with pytest.raises(trio.BusyResourceError):
            stream.send_nowait(b"y")
        nursery.cancel_scope.cancel()
    assert stream.send_nowait(b"") == 0  # the cancelled sender is out of the way


async def test_a_second_receiver_is_refused_and_the_first_goes_on(pair):
    stream, peer = pair
    received = []

    async def receive():
        received.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some()
        peer.sendall(b"x")
    assert received == [b"x"]
    peer.sendall(b"y")
    assert await stream.receive_some() == b"y"


async def test_a_reset_breaks_the_stream_with_the_cause_attached(pair):
    stream, peer = pair
    reset(peer)
    with pytest.raises(trio.BrokenResourceError, match="reset by peer") as info:
        await stream.receive_some()
    assert info.value.__cause__.errno == errno.ECONNRESET
    with pytest.raises(trio.BrokenResourceError) as info:
        await stream.send_all(b"x")
    assert info.value.__cause__.errno == errno.EPIPE
    with pytest.raises(trio.BrokenResourceError):
        stream.send_nowait(b"x")
    with pytest.raises(trio.BrokenResourceError) as info:
        await stream.send_eof()
    assert info.value.__cause__.errno == errno.ENOTCONN


async def test_everything_is_refused_after_close_and_closing_again_is_fine(pair):
    stream, _ = pair
    stream.close()
    stream.close()
    await stream.aclose()
    for call in (stream.send_all(b"x"), stream.send_all(b""), stream.receive_some()):
        with pytest.raises(trio.ClosedResourceError):
            await call
    for call in (stream.send_eof(), stream.wait_send_all_might_not_block()):
        with pytest.raises(trio.ClosedResourceError):
            await call
    with pytest.raises(trio.ClosedResourceError):
        stream.send_nowait(b"x")
    assert stream.socket.fileno() == -1


async def test_close_wakes_a_sender_and_a_receiver(pair):
    stream, _ = pair
    fill(stream)
    woken = []

    async def expect_closed(call, *args):
        with pytest.raises(trio.ClosedResourceError):
            await call(*args)
        woken.append(call.__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, stream.send_all, b"x")
        nursery.start_soon(expect_closed, stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        stream.close()
    assert sorted(woken) == ["receive_some", "send_all"]


async def test_a_receiver_that_woke_up_just_before_the_close_learns_of_it(pair):
    stream, peer = pair

    original = trio.lowlevel.wait_readable

    async def refused():
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()

    async def wait_then_close(sock):
        await original(sock)
        stream.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.lowlevel, "wait_readable", wait_then_close)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused)
            await trio.testing.wait_all_tasks_blocked()
            peer.sendall(b"x")


async def test_a_cancelled_aclose_has_closed(pair):
    stream, peer = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
    assert scope.cancelled_caught
    assert stream.socket.fileno() == -1
    assert peer.recv(1) == b""


async def test_the_socket_is_made_non_blocking():
    left, right = socket.socketpair()
    with right:
        stream = SocketStream(left)
        assert left.getblocking() is False
        stream.close()
