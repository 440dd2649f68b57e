"""TCP Fast Open as the kernel does it: whole connections over loopback, in a network of their own."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
from contextlib import suppress

import pytest
import trio

from engine.net.connector import Connector
from engine.net.errors import ConnectFailed
from engine.net.fastopen import SYN_FLAGS, judge
from engine.net.options import ConnectOptions
from engine.net.tcp_info import TcpState, read_tcp_info
from engine.outcome import Cause, Scope
from engine.queue.hints import MemoryHints
from engine.route import Candidate
from engine.setting_proxy import Proxy
from engine.smtp.stages import Stage

HERE = "127.0.0.1"
EARLY = b"EHLO a.test\r\n"

#: From Linux' <if_ether.h> and <linux/tcp.h>.
ETH_P_ALL = 0x0003
TCP_FASTOPEN_KEY = 33
SYN, ACK = 0x02, 0x10


@pytest.fixture(autouse=True)
def _network(fast_open_network):
    pass


def to(listener: socket.socket) -> Candidate:
    address, port, *_ = listener.getsockname()
    return Candidate("mx.test", address, port)


def using(mode: str, **options) -> ConnectOptions:
    return ConnectOptions(fast_open=mode, **options)


async def call(listener, mode="connect", early_data=b"", connector=None, **options):
    """Connect, and return both ends."""
    connection = await (connector or Connector()).connect(
        to(listener), using(mode, **options), early_data=early_data
    )
    peer, _ = listener.accept()
    peer.settimeout(5)
    return connection, peer


async def get_a_cookie(listener) -> None:
    """Connect once, which is how the kernel gets one."""
    connection, peer = await call(listener)
    assert connection.facts.fast_open == "asked"
    connection.stream.close()
    peer.close()


async def failure(candidate, options, connector=None, early_data=b"") -> ConnectFailed:
    with pytest.raises(ConnectFailed) as info:
        await (connector or Connector()).connect(candidate, options, early_data=early_data)
    return info.value


def read_all(peer: socket.socket) -> bytes:
    """Read to the end; the other side must have said its last."""
    octets = b""
    while more := peer.recv(1 << 20):
        octets += more
    return octets


def all_heard(connection, peer) -> bytes:
    """What a peer hears when nothing follows."""
    connection.stream.close()
    with peer:
        return read_all(peer)


class Wire:
    """Sees every packet on loopback."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self.socket.bind(("lo", ETH_P_ALL))
        self.socket.setblocking(False)

    def syns(self, port: int) -> list[int]:
        """Return how many octets each SYN to a port has carried, and forget what was seen."""
        sizes = []
        with suppress(BlockingIOError):
            while True:
                packet, about = self.socket.recvfrom(65536)
                segment = packet[4 * (packet[0] & 0x0F) :]
                # Each packet passes twice here: on its way out, and on its way in.
                is_ours = about[2] == socket.PACKET_OUTGOING
                is_to_port = struct.unpack_from("!H", segment, 2) == (port,)
                if is_ours and is_to_port and segment[13] & (SYN | ACK) == SYN:
                    sizes.append(len(segment) - 4 * (segment[12] >> 4))
        return sizes


@pytest.fixture
def wire():
    wire = Wire()
    with wire.socket:
        yield wire


# --- it works ---


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_the_first_connection_asks_for_a_cookie_and_the_next_one_uses_it(
    fast_listen, address
):
    listener = fast_listen(address)
    await get_a_cookie(listener)
    connection, peer = await call(listener)
    with peer:
        peer.sendall(b"220 mx.test\r\n")
        assert await connection.stream.receive_some() == b"220 mx.test\r\n"
    assert connection.facts.fast_open == "used"
    observed = connection.observe()
    assert observed.fast_open == "used"
    assert 0 < observed.round_trip_seconds < 1
    connection.stream.close()


async def test_switched_off_it_asks_for_nothing(fast_listen):
    listener = fast_listen()
    for _ in range(2):
        connection, peer = await call(listener, "off", EARLY)
        assert all_heard(connection, peer) == EARLY
        assert connection.facts.fast_open == "off"


async def test_early_data_rides_in_the_syn_once_there_is_a_cookie(fast_listen, wire):
    listener = fast_listen()
    port = listener.getsockname()[1]
    seen = []
    for _ in range(2):
        connection, peer = await call(listener, "commands", EARLY)
        assert all_heard(connection, peer) == EARLY
        seen.append((connection.facts.fast_open, wire.syns(port)))
    assert seen == [("asked", [0]), ("used-data", [len(EARLY)])]


async def test_early_data_never_rides_in_the_syn_of_mode_connect(fast_listen, wire):
    listener = fast_listen()
    port = listener.getsockname()[1]
    await get_a_cookie(listener)
    connection, peer = await call(listener, "connect", EARLY)
    assert all_heard(connection, peer) == EARLY
    assert connection.facts.fast_open == "used"
    assert wire.syns(port) == [0, 0]


async def test_mode_commands_without_early_data_is_mode_connect(fast_listen):
    listener = fast_listen()
    await get_a_cookie(listener)
    connection, peer = await call(listener, "commands")
    assert all_heard(connection, peer) == b""
    assert connection.facts.fast_open == "used"


async def test_what_does_not_fit_into_the_syn_follows_in_order(fast_listen, wire):
    listener = fast_listen()
    await get_a_cookie(listener)
    early = bytes(range(256)) * 20_000
    heard = []

    def serve():
        peer, _ = listener.accept()
        peer.settimeout(5)
        with peer:
            heard.append(read_all(peer))

    server = threading.Thread(target=serve)
    server.start()
    connection = await Connector().connect(to(listener), using("commands"), early_data=early)
    connection.stream.close()
    server.join()
    assert heard == [early]
    assert connection.facts.fast_open == "used-data"
    assert 0 < wire.syns(listener.getsockname()[1])[-1] < len(early)


async def test_it_works_from_an_interface(fast_listen):
    listener = fast_listen()
    await get_a_cookie(listener)
    connection, peer = await call(listener, "commands", EARLY, interface=("127.0.0.2",))
    assert peer.getpeername()[0] == "127.0.0.2"
    assert all_heard(connection, peer) == EARLY
    # The kernel keeps its cookies by the peer's address and ours.
    assert connection.facts.fast_open == "asked"
    connection, peer = await call(listener, "commands", EARLY, interface=("127.0.0.2",))
    assert all_heard(connection, peer) == EARLY
    assert connection.facts.fast_open == "used-data"


# --- it does not, and the mail goes out all the same ---


async def test_a_kernel_that_has_it_switched_off_connects_as_ever(fast_listen, fast_open_network):
    listener = fast_listen()
    fast_open_network.write_text("0")
    connection, peer = await call(listener, "commands", EARLY, interface=("127.0.0.2",))
    assert peer.getpeername()[0] == "127.0.0.2"
    assert all_heard(connection, peer) == EARLY
    assert connection.facts.fast_open == "off"


async def test_a_server_without_it_gets_early_data_behind_the_handshake(listen):
    listener = listen()
    for _ in range(2):
        connection, peer = await call(listener, "commands", EARLY)
        assert all_heard(connection, peer) == EARLY
        assert connection.facts.fast_open == "asked"


async def test_a_cookie_that_is_no_longer_good_loses_nothing_and_is_nobodys_fault(
    fast_listen, wire
):
    listener = fast_listen()
    hints = MemoryHints()
    await get_a_cookie(listener)
    listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_KEY, os.urandom(16))
    connector = Connector(hints=hints)
    connection, peer = await call(listener, "commands", EARLY, connector)
    assert all_heard(connection, peer) == EARLY
    assert connection.facts.fast_open == "asked"
    # It did ride; it was sent again behind the handshake.
    assert wire.syns(listener.getsockname()[1])[-1] == len(EARLY)
    assert len(hints) == 0
    connection, peer = await call(listener, "commands", EARLY, connector)
    assert all_heard(connection, peer) == EARLY
    assert connection.facts.fast_open == "used-data"


@pytest.mark.parametrize("mode", ["off", "connect", "commands"])
async def test_a_server_that_is_gone_has_refused_the_connection(fast_listen, descriptors, mode):
    listener = fast_listen()
    await get_a_cookie(listener)
    candidate = to(listener)
    listener.close()
    before = descriptors()
    failed = await failure(candidate, using(mode), early_data=EARLY)
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.REFUSED, Scope.HOST)
    assert failed.text == f"connect to mx.test [{HERE}]:{candidate.port}: Connection refused"
    assert failed.errno == errno.ECONNREFUSED
    assert descriptors() == before


def clog(listener: socket.socket, stack: list[socket.socket]) -> None:
    """Fill the queue of a listener with backlog 0, so that a SYN gets no answer."""
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        stack.append(filler)


@pytest.fixture
def fillers():
    stack: list[socket.socket] = []
    yield stack
    for sock in stack:
        sock.close()


@pytest.mark.parametrize("mode", ["connect", "commands"])
async def test_a_silent_server_has_not_connected_and_is_spared_for_a_day(
    fast_listen, fillers, descriptors, caplog, mode
):
    listener = fast_listen(backlog=0)
    await get_a_cookie(listener)
    clog(listener, fillers)
    hints = MemoryHints()
    connector = Connector(hints=hints)
    before = descriptors()
    options = using(mode, connect_timeout=0.1)
    with caplog.at_level(logging.INFO, "engine.net"):
        failed = await failure(to(listener), options, connector, EARLY)
    port = listener.getsockname()[1]
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.TIMEOUT, Scope.HOST)
    assert failed.text == f"connect to mx.test [{HERE}]:{port}: timed out after 0.1 s"
    assert descriptors() == before
    assert caplog.messages == [
        f"TCP Fast Open with mx.test [{HERE}]:{port}: timed out; left out there for a day"
    ]
    assert hints.get("fast-open", HERE) == b"timed out"


@pytest.mark.parametrize("mode", ["connect", "commands"])
async def test_a_cancelled_connect_leaves_no_socket_open(fast_listen, fillers, descriptors, mode):
    listener = fast_listen(backlog=0)
    await get_a_cookie(listener)
    clog(listener, fillers)
    before = descriptors()
    with trio.move_on_after(0.05) as scope:
        await Connector().connect(to(listener), using(mode), early_data=EARLY)
    assert scope.cancelled_caught
    assert descriptors() == before


async def accepted(listener: socket.socket, connection) -> socket.socket:
    """Accept until the other end of a connection comes, and close what came before."""
    listener.setblocking(False)
    with trio.fail_after(5):
        while True:
            await trio.lowlevel.wait_readable(listener)
            peer, (_, port, *_) = listener.accept()
            if port == connection.facts.local_port:
                peer.settimeout(5)
                return peer
            peer.close()


async def make_room(listener: socket.socket) -> None:
    """Empty the queue of a listener, before the kernel repeats its SYN after a second."""
    await trio.sleep(0.2)
    listener.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


@pytest.mark.parametrize("mode", ["connect", "commands"])
async def test_a_lost_syn_is_repeated_and_the_address_spared(fast_listen, fillers, caplog, mode):
    listener = fast_listen(backlog=0)
    await get_a_cookie(listener)
    clog(listener, fillers)
    connector = Connector(hints=MemoryHints())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_room, listener)
        with caplog.at_level(logging.INFO, "engine.net"):
            connection = await connector.connect(to(listener), using(mode), early_data=EARLY)
    assert all_heard(connection, await accepted(listener, connection)) == EARLY
    port = listener.getsockname()[1]
    (message,) = caplog.messages
    assert message == (
        f"TCP Fast Open with mx.test [{HERE}]:{port}: the SYN had to be repeated; "
        "left out there for a day"
    )
    again = await connector.connect(to(listener), using(mode), early_data=EARLY)
    assert all_heard(again, await accepted(listener, again)) == EARLY
    assert again.facts.fast_open == "off"


async def test_a_server_that_never_says_anything_is_spared_once_it_is_told(fast_listen, caplog):
    listener = fast_listen()
    hints = MemoryHints()
    connector = Connector(hints=hints)
    # Asking for a cookie is no reason to stay silent, and who was heard is not silent.
    for expected in ("asked", "used"):
        connection, peer = await call(listener, connector=connector)
        assert connection.facts.fast_open == expected
        if expected == "used":
            peer.sendall(b"220 ")
            assert await connection.stream.receive_some() == b"220 "
        connection.note_silence()
        connection.stream.close()
        peer.close()
    assert len(hints) == 0
    connection, peer = await call(listener, connector=connector)
    with caplog.at_level(logging.INFO, "engine.net"):
        connection.note_silence()
    connection.stream.close()
    peer.close()
    assert len(caplog.messages) == 1
    assert "nothing was heard after the handshake" in caplog.messages[0]
    connection, peer = await call(listener, connector=connector)
    connection.stream.close()
    peer.close()
    assert connection.facts.fast_open == "off"


async def test_before_the_answer_the_segments_under_way_tell(fast_listen, fillers):
    """On a link with some delay this is the state right after the SYN; here nobody answers it."""
    listener = fast_listen(backlog=0)
    for expected in ("asked", "used"):
        clog(listener, fillers)
        with socket.socket() as sock:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.sendto(b"", SYN_FLAGS, listener.getsockname())
            info = read_tcp_info(sock)
        assert info.state == TcpState.SYN_SENT
        assert judge(info, 0) == expected
        await make_room(listener)
        connection = await Connector().connect(to(listener), using("connect"))
        connection.stream.close()
        (await accepted(listener, connection)).close()


# --- through a proxy ---


async def test_a_socks_greeting_rides_in_the_syn_and_early_data_behind_the_handshake(
    fast_listen, wire
):
    listener = fast_listen()
    port = listener.getsockname()[1]
    heard = []

    def serve():
        for _ in range(2):
            proxy, _ = listener.accept()
            proxy.settimeout(5)
            with proxy:
                assert proxy.recv(100) == b"\x05\x01\x00"
                proxy.sendall(b"\x05\x00")
                assert len(proxy.recv(100)) == 10
                proxy.sendall(b"\x05\x00\x00\x01" + bytes(6))
                heard.append(read_all(proxy))

    server = threading.Thread(target=serve)
    server.start()
    seen = []
    for _ in range(2):
        options = using("commands", proxies=(Proxy("socks5", HERE, port),))
        candidate = Candidate("mx.test", "192.0.2.25", 25)
        connection = await Connector().connect(candidate, options, early_data=EARLY)
        connection.stream.close()
        seen.append((connection.facts.fast_open, wire.syns(port)))
    server.join()
    assert seen == [("asked", [0]), ("used-data", [3])]
    assert heard == [EARLY, EARLY]


async def test_a_silent_proxy_is_spared_too(fast_listen):
    listener = fast_listen()
    await get_a_cookie(listener)
    hints = MemoryHints()
    proxy = Proxy("socks5", HERE, listener.getsockname()[1])
    options = using("commands", proxies=(proxy,), connect_timeout=0.1)
    failed = await failure(
        Candidate("mx.test", "192.0.2.25", 25), options, Connector(hints=hints), EARLY
    )
    assert (failed.stage, failed.cause) == (Stage.PROXY, Cause.TIMEOUT)
    assert hints.get("fast-open", HERE) == b"nothing was heard after the handshake"
