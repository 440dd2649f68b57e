"""Connecting: over loopback, and with sockets that fail as told."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from engine.net.connector import Connection, Connector
from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts, LinkFacts
from engine.net.options import ConnectOptions
from engine.net.stream import SocketStream
from engine.outcome import Cause, Scope
from engine.route import Candidate
from engine.setting_proxy import Proxy
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = "127.0.0.1"

#: From Linux' <if_ether.h> and <asm-generic/socket.h>.
ETH_P_ALL = 0x0003
SO_RCVBUFFORCE = 33


def candidate(address: str = HERE, port: int | None = None) -> Candidate:
    return Candidate("mx.test", address, port)


async def failure(connector=None, to=None, options=None) -> ConnectFailed:
    """Connect, and return how that failed."""
    with pytest.raises(ConnectFailed) as info:
        await (connector or Connector()).connect(to or candidate(), options or ConnectOptions())
    return info.value


def plainly(**options) -> ConnectOptions:
    """Options without Fast Open, so that the SYN is `connect`'s."""
    return ConnectOptions(fast_open="off", **options)


SYN = 0x02
#: The two low bits of the octet belong to congestion notification (RFC 3168 §5).
NOT_ECN = 0xFC


@pytest.fixture
def sniffer() -> Iterator[socket.socket]:
    """A socket that sees every IP packet on loopback; that takes root, or CAP_NET_RAW."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    except PermissionError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("capturing packets takes root or CAP_NET_RAW")
    with sock:
        # Other traffic on this machine should not push our packets out; containers may not ask.
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 * 1024 * 1024)
        sock.bind(("lo", ETH_P_ALL))
        sock.settimeout(5)
        yield sock


def packets_to(port: int, sniffer: socket.socket, *, until: bytes) -> list[tuple[int, int]]:
    """Return traffic class octet and TCP flags of each packet to a port, up to one that ends so."""
    seen = []
    while True:
        packet = sniffer.recv(65536)
        is_ipv6 = packet[0] >> 4 == 6
        octet = (packet[0] & 0x0F) << 4 | packet[1] >> 4 if is_ipv6 else packet[1]
        protocol = packet[6 if is_ipv6 else 9]
        segment = packet[40 if is_ipv6 else 4 * (packet[0] & 0x0F) :]
        if protocol == socket.IPPROTO_TCP and struct.unpack_from("!H", segment, 2) == (port,):
            seen.append((octet, segment[13]))
            if segment.endswith(until):
                return seen


# --- it works ---


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_octets_go_both_ways_over_ipv4_and_ipv6(listen, address):
    listener = listen(address)
    port = listener.getsockname()[1]
    connection = await Connector().connect(candidate(address, port), plainly())
    async with connection.stream:
        peer, ours = listener.accept()
        with peer:
            await connection.stream.send_all(b"EHLO a\r\n")
            assert peer.recv(100) == b"EHLO a\r\n"
            peer.sendall(b"250 b\r\n")
            assert await connection.stream.receive_some() == b"250 b\r\n"
    facts = connection.facts
    assert facts.connect_seconds >= 0
    assert 0 < facts.round_trip_seconds < 1
    assert facts == ConnectionFacts(
        host="mx.test",
        address=address,
        port=port,
        local_address=ours[0],
        local_port=ours[1],
        is_ipv6=":" in address,
        interface=None,
        proxy=None,
        fast_open="off",
        connect_seconds=facts.connect_seconds,
        round_trip_seconds=facts.round_trip_seconds,
        through=None,
    )


async def test_the_candidates_port_wins_over_the_options(listen):
    port = listen().getsockname()[1]
    connection = await Connector().connect(candidate(port=port), ConnectOptions(port=1))
    connection.stream.close()
    assert connection.facts.port == port


async def test_the_options_port_serves_a_candidate_without_one(listen):
    port = listen().getsockname()[1]
    connection = await Connector().connect(candidate(), ConnectOptions(port=str(port)))
    connection.stream.close()
    assert connection.facts.port == port


async def test_the_peer_sees_the_interface(listen):
    listener = listen()
    options = ConnectOptions(interface=("::1", "127.0.0.2", "127.0.0.3"))
    to = candidate(port=listener.getsockname()[1])
    connection = await Connector().connect(to, options)
    peer, ours = listener.accept()
    peer.close()
    connection.stream.close()
    assert ours[0] == "127.0.0.2"
    facts = connection.facts
    assert (facts.interface, facts.local_address, facts.local_port) == ("127.0.0.2", *ours)


async def test_an_interface_of_another_family_leaves_the_choice_to_the_system(listen):
    to = candidate(port=listen().getsockname()[1])
    connection = await Connector().connect(to, ConnectOptions(interface=("::1",)))
    connection.stream.close()
    assert (connection.facts.interface, connection.facts.local_address) == (None, HERE)


async def test_strict_without_any_interface_means_nothing(listen):
    to = candidate(port=listen().getsockname()[1])
    connection = await Connector().connect(to, ConnectOptions(interface_strict=True))
    connection.stream.close()
    assert connection.facts.interface is None


@pytest.mark.parametrize("keepalive", [True, False])
async def test_keepalive_and_nodelay_show_on_the_socket(listen, keepalive):
    to = candidate(port=listen().getsockname()[1])
    connection = await Connector().connect(to, ConnectOptions(keepalive=keepalive))
    sock = connection.stream.socket
    assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is keepalive
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    connection.stream.close()


async def test_keepalive_knobs_and_user_timeout_show_on_the_socket(listen):
    to = candidate(port=listen().getsockname()[1])
    options = ConnectOptions(
        keepalive_idle=61, keepalive_interval=11.5, keepalive_count=4, user_timeout=90.25
    )
    connection = await Connector().connect(to, options)
    sock = connection.stream.socket
    names = (
        socket.TCP_KEEPIDLE,
        socket.TCP_KEEPINTVL,
        socket.TCP_KEEPCNT,
        socket.TCP_USER_TIMEOUT,
    )
    assert [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [61, 12, 4, 90_250]
    connection.stream.close()


async def test_knobs_and_user_timeout_are_set_after_connect(listen, scripted):
    port = listen().getsockname()[1]
    factory, calls = scripted()
    options = plainly(keepalive_idle=61, keepalive_interval=11, keepalive_count=4, user_timeout=90)
    connection = await Connector(factory).connect(candidate(port=port), options)
    connection.stream.close()
    assert calls[calls.index(f"connect ('127.0.0.1', {port})") + 1 :] == [
        f"setsockopt {(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)}",
        f"setsockopt {(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 61)}",
        f"setsockopt {(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 11)}",
        f"setsockopt {(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)}",
        f"setsockopt {(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000)}",
        "getsockname",
    ]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_dscp_shows_on_the_socket(listen, address):
    to = candidate(address, listen(address).getsockname()[1])
    connection = await Connector().connect(to, ConnectOptions(dscp=0xB8))
    sock = connection.stream.socket
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0xB8
    if address == "::1":
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 0xB8
    connection.stream.close()


TOS = f"setsockopt {(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)}"
TCLASS = f"setsockopt {(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xB8)}"


@pytest.mark.parametrize(("address", "expected"), [("127.0.0.1", [TOS]), ("::1", [TCLASS, TOS])])
async def test_dscp_is_set_before_connect(listen, scripted, address, expected):
    port = listen(address).getsockname()[1]
    factory, calls = scripted()
    connection = await Connector(factory).connect(candidate(address, port), plainly(dscp=0xB8))
    connection.stream.close()
    connect = calls.index(f"connect {(address, port)}")
    assert calls[2:connect] == expected


@pytest.mark.parametrize(
    ("listening", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")],
)
async def test_dscp_is_on_the_wire_from_the_first_syn_on(listen, sniffer, listening, address):
    port = listen(listening).getsockname()[1]
    connection = await Connector().connect(candidate(address, port), ConnectOptions(dscp=0xB8))
    async with connection.stream:
        await connection.stream.send_all(b"EHLO a\r\n")
        octets, flags = zip(*packets_to(port, sniffer, until=b"EHLO a\r\n"), strict=True)
    assert flags[0] & SYN
    assert {octet & NOT_ECN for octet in octets} == {0xB8}


async def test_the_steps_come_in_order(listen, scripted):
    port = listen().getsockname()[1]
    factory, calls = scripted()
    options = plainly(interface=("127.0.0.2",))
    connection = await Connector(factory).connect(candidate(port=port), options)
    connection.stream.close()
    assert calls == [
        "socket",
        f"setsockopt {(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)}",
        f"setsockopt {(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)}",
        "bind ('127.0.0.2', 0)",
        f"connect ('127.0.0.1', {port})",
        f"setsockopt {(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)}",
        "getsockname",
    ]


async def test_a_failing_socket_option_is_logged_and_the_connection_goes_on(
    listen, scripted, caplog
):
    factory, _ = scripted(setsockopt=errno.ENOPROTOOPT)
    to = candidate(port=listen().getsockname()[1])
    with caplog.at_level(logging.DEBUG, "engine.net"):
        connection = await Connector(factory).connect(to, ConnectOptions())
    connection.stream.close()
    assert len(caplog.messages) == 2
    assert all("Protocol not available" in message for message in caplog.messages)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_failing_dscp_or_knob_is_logged_and_the_connection_goes_on(
    listen, scripted, caplog, address
):
    factory, _ = scripted(setsockopt=errno.EPERM)
    to = candidate(address, listen(address).getsockname()[1])
    options = ConnectOptions(
        dscp=0xB8, keepalive_idle=1, keepalive_interval=1, keepalive_count=1, user_timeout=1
    )
    with caplog.at_level(logging.DEBUG, "engine.net"):
        connection = await Connector(factory).connect(to, options)
    connection.stream.close()
    # NODELAY, one or two for DSCP, keepalive, its three knobs, the user timeout.
    assert len(caplog.messages) == (8 if address == "::1" else 7)
    assert all("Operation not permitted" in message for message in caplog.messages)


async def test_what_the_kernel_finds_too_much_is_logged_and_the_connection_goes_on(listen, caplog):
    to = candidate(port=listen().getsockname()[1])
    options = ConnectOptions(
        keepalive_idle=1e12, keepalive_interval=1e12, keepalive_count=10**12, user_timeout=1e12
    )
    with caplog.at_level(logging.DEBUG, "engine.net"):
        connection = await Connector().connect(to, options)
    connection.stream.close()
    # The kernel takes any user timeout that fits the option.
    assert len(caplog.messages) == 3
    assert all("Invalid argument" in message for message in caplog.messages)


async def test_connect_seconds_are_the_time_it_took(listen, scripted, mock_clock):
    factory, _ = scripted()
    listener = listen()

    def slow_factory(family, kind):
        mock_clock.jump(1.5)
        return factory(family, kind)

    to = candidate(port=listener.getsockname()[1])
    connection = await Connector(slow_factory).connect(to, ConnectOptions())
    connection.stream.close()
    assert connection.facts.connect_seconds == pytest.approx(1.5)


# --- what is said first ---

EARLY = b"EHLO a.test\r\n"


@pytest.mark.parametrize("mode", ["off", "connect", "commands"])
async def test_early_data_follows_the_handshake_where_there_is_no_cookie(listen, mode):
    listener = listen()
    to = candidate(port=listener.getsockname()[1])
    options = ConnectOptions(fast_open=mode)
    connection = await Connector().connect(to, options, early_data=EARLY)
    peer, _ = listener.accept()
    with peer:
        peer.settimeout(5)
        assert peer.recv(100) == EARLY
        connection.stream.close()
        assert peer.recv(100) == b""


async def test_more_early_data_than_fits_goes_out_piece_by_piece(listen):
    listener = listen()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    to = candidate(port=listener.getsockname()[1])
    early = bytes(range(256)) * 20_000
    heard = bytearray()

    async def serve():
        await trio.lowlevel.wait_readable(listener)
        with trio.socket.from_stdlib_socket(listener.accept()[0]) as peer:
            while octets := await peer.recv(65536):
                heard.extend(octets)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        connection = await Connector().connect(to, ConnectOptions(), early_data=early)
        connection.stream.close()
    assert heard == early


async def test_a_peer_that_takes_nothing_has_the_time_to_connect(
    listen, autojump_clock, descriptors
):
    to = candidate(port=listen().getsockname()[1])
    before = descriptors()
    with pytest.raises(ConnectFailed) as info:
        await Connector().connect(
            to, ConnectOptions(connect_timeout=9), early_data=bytes(100_000_000)
        )
    failed = info.value
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.TIMEOUT, Scope.HOST)
    assert failed.text == (
        f"connect to mx.test [127.0.0.1]:{to.port}: timed out while the first octets were sent"
    )
    assert trio.current_time() == pytest.approx(9)
    assert descriptors() == before


async def test_cancelled_while_it_sends_first_it_leaves_no_socket_open(
    listen, autojump_clock, descriptors
):
    to = candidate(port=listen().getsockname()[1])
    before = descriptors()
    with trio.move_on_after(5) as scope:
        await Connector().connect(to, ConnectOptions(), early_data=bytes(100_000_000))
    assert scope.cancelled_caught
    assert descriptors() == before


async def test_what_a_peer_says_before_it_hangs_up_on_early_data_can_be_read(listen, monkeypatch):
    """Busy servers refuse and hang up without having read anything."""
    listener = listen()
    to = candidate(port=listener.getsockname()[1])

    def hang_up(stream, data):
        peer, _ = listener.accept()
        peer.sendall(b"421 busy\r\n")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        return send_nowait(stream, data)

    send_nowait = SocketStream.send_nowait
    monkeypatch.setattr(SocketStream, "send_nowait", hang_up)
    connection = await Connector().connect(to, ConnectOptions(), early_data=EARLY)
    assert await connection.stream.receive_some() == b"421 busy\r\n"
    connection.stream.close()


# --- Unix sockets ---


async def test_a_unix_socket_has_a_name_and_no_address(tmp_path):
    path = str(tmp_path / "lmtp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        # Nothing of the network applies: neither proxy nor interface.
        options = ConnectOptions(
            interface=("::1",), interface_strict=True, proxies=(Proxy("socks5", HERE, 1),)
        )
        to = Candidate(f"unix:{path}", None)
        connection = await Connector().connect(to, options, early_data=b"LHLO a\r\n")
        async with connection.stream:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                assert peer.recv(100) == b"LHLO a\r\n"
    facts = connection.facts
    assert facts == ConnectionFacts(
        host=f"unix:{path}",
        address=None,
        port=None,
        local_address=None,
        local_port=None,
        is_ipv6=False,
        interface=None,
        proxy=None,
        fast_open="off",
        connect_seconds=facts.connect_seconds,
        round_trip_seconds=None,
        through=None,
    )
    assert connection.observe() == LinkFacts("off", None)
    connection.note_silence()


async def test_a_unix_socket_that_is_not_there_is_named_in_the_failure(descriptors):
    before = descriptors()
    failed = await failure(to=Candidate("unix:/nowhere/lmtp", None))
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.REFUSED, Scope.HOST)
    assert failed.text == "connect to unix:/nowhere/lmtp: No such file or directory"
    assert descriptors() == before


# --- afterwards ---


async def test_a_connection_can_be_observed_later_and_not_once_it_is_closed(listen):
    to = candidate(port=listen().getsockname()[1])
    connection = await Connector().connect(to, plainly())
    assert connection.observe().round_trip_seconds > 0
    connection.stream.close()
    assert connection.observe() == LinkFacts("off", None)


async def test_a_connection_of_another_make_can_be_asked_the_same(listen):
    to = candidate(port=listen().getsockname()[1])
    made = await Connector().connect(to, plainly())
    made.stream.close()
    other = Connection(made.stream, made.facts)
    assert other.observe() == LinkFacts("off", made.facts.round_trip_seconds)
    other.note_silence()


# --- it fails ---


async def test_a_refused_connection_says_so(listen):
    listener = listen()
    port = listener.getsockname()[1]
    listener.close()
    failed = await failure(to=candidate(port=port))
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.REFUSED, Scope.HOST)
    assert failed.text == f"connect to mx.test [127.0.0.1]:{port}: Connection refused"
    assert failed.errno == errno.ECONNREFUSED


async def test_a_silent_peer_times_out_at_the_deadline(clogged_port, autojump_clock):
    started = trio.current_time()
    failed = await failure(
        to=candidate(port=clogged_port), options=ConnectOptions(connect_timeout=7.5)
    )
    assert trio.current_time() - started == pytest.approx(7.5)
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.TIMEOUT, Scope.HOST)
    assert failed.text == f"connect to mx.test [127.0.0.1]:{clogged_port}: timed out after 7.5 s"
    assert failed.errno is None


@pytest.mark.parametrize(
    ("when", "fast_open"),
    [("connect", "off"), ("later", "off"), ("sendto", "connect"), ("later", "connect")],
)
@pytest.mark.parametrize(
    ("number", "cause", "scope"),
    [
        (errno.ECONNREFUSED, Cause.REFUSED, Scope.HOST),
        (errno.ECONNRESET, Cause.REFUSED, Scope.HOST),
        (errno.EHOSTUNREACH, Cause.UNREACHABLE, Scope.HOST),
        (errno.ENETUNREACH, Cause.UNREACHABLE, Scope.HOST),
        (errno.EADDRNOTAVAIL, Cause.UNREACHABLE, Scope.HOST),
        (errno.EACCES, Cause.UNREACHABLE, Scope.HOST),
        (errno.EPERM, Cause.UNREACHABLE, Scope.HOST),
        (errno.ETIMEDOUT, Cause.TIMEOUT, Scope.HOST),
        (errno.EPROTO, Cause.IO, Scope.HOST),
        (errno.ENOBUFS, Cause.IO, Scope.LOCAL),
    ],
)
async def test_each_connect_error_has_its_cause_at_once_and_later(
    scripted, number, cause, scope, when, fast_open
):
    # EPERM from sendto is told from a filter of system calls by connecting as ever.
    factory, _ = scripted(**{when: number, "connect": number})
    failed = await failure(Connector(factory), options=ConnectOptions(fast_open=fast_open))
    assert (failed.cause, failed.scope, failed.errno) == (cause, scope, number)
    assert failed.text == f"connect to mx.test [127.0.0.1]:25: {os.strerror(number)}"


async def test_an_interface_that_is_not_ours_is_the_sources_fault(scripted):
    factory, calls = scripted()
    options = ConnectOptions(interface=("192.0.2.1",))
    failed = await failure(Connector(factory), options=options)
    assert (failed.stage, failed.cause, failed.scope) == (
        Stage.CONNECT,
        Cause.CONFIG,
        Scope.SOURCE,
    )
    assert failed.errno == errno.EADDRNOTAVAIL
    assert failed.text == (
        "bind to 192.0.2.1 for mx.test [127.0.0.1]:25: Cannot assign requested address"
    )
    assert not any(call.startswith(("connect", "sendto")) for call in calls)


async def test_another_bind_error_is_the_sources_too(scripted):
    factory, _ = scripted(bind=errno.EADDRINUSE)
    failed = await failure(Connector(factory), options=ConnectOptions(interface=("127.0.0.2",)))
    assert (failed.cause, failed.scope) == (Cause.IO, Scope.SOURCE)


@pytest.mark.parametrize(
    ("address", "interface", "family"),
    [("127.0.0.1", "::1", "IPv4"), ("::1", "127.0.0.1", "IPv6")],
)
async def test_strict_without_an_interface_of_the_family_attempts_nothing(
    scripted, address, interface, family
):
    factory, calls = scripted()
    options = ConnectOptions(interface=(interface,), interface_strict=True)
    failed = await failure(Connector(factory), candidate(address), options)
    assert (failed.stage, failed.cause, failed.scope) == (
        Stage.CONNECT,
        Cause.CONFIG,
        Scope.SOURCE,
    )
    assert failed.text == (
        f"connect to mx.test [{address}]:25: no {family} address among interface {interface}"
    )
    assert calls == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_no_descriptor_left_is_our_own_fault(scripted, number):
    factory, _ = scripted(socket=number)
    failed = await failure(Connector(factory))
    assert (failed.cause, failed.scope, failed.errno) == (Cause.IO, Scope.LOCAL, number)
    assert failed.text.startswith("make a socket for mx.test [127.0.0.1]:25: ")


@pytest.mark.parametrize(
    ("name", "cause", "scope", "level"),
    [
        ("ECONNRESET", Cause.REFUSED, Scope.HOST, logging.INFO),
        ("ENOTCONN", Cause.REFUSED, Scope.HOST, logging.INFO),
        ("ENOBUFS", Cause.IO, Scope.LOCAL, logging.ERROR),
        ("EIO", Cause.IO, Scope.LOCAL, logging.ERROR),
        ("EBADF", Cause.IO, Scope.LOCAL, logging.ERROR),
    ],
)
async def test_an_unknown_local_address_is_a_failure_and_a_log_line(
    listen, scripted, caplog, name, cause, scope, level
):
    number = getattr(errno, name)
    factory, _ = scripted(getsockname=number)
    to = candidate(port=listen().getsockname()[1])
    with caplog.at_level(logging.INFO, "engine.net"):
        failed = await failure(Connector(factory), to)
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, cause, scope)
    assert failed.text.startswith("find our address towards mx.test [127.0.0.1]:")
    assert failed.errno == number
    (record,) = caplog.records
    assert record.levelno == level
    assert record.message.startswith("getsockname() failed for the connection to mx.test [127.0.0.")


@pytest.mark.parametrize("address", ["mx.test", "[::1]", "fe80::1%lo", ""])
async def test_a_name_in_place_of_an_address_never_reaches_the_resolver(scripted, address):
    factory, calls = scripted()
    for proxies in ((), (Proxy("socks5", HERE, 1),), (Proxy("haproxy", HERE, 1),)):
        with pytest.raises(ValueError, match="not an IP address"):
            await Connector(factory).connect(candidate(address), ConnectOptions(proxies=proxies))
    assert calls == []


# --- nothing stays open ---


@pytest.mark.parametrize("fast_open", ["off", "connect", "commands"])
@pytest.mark.parametrize("step", ["socket", "bind", "syn", "later", "getsockname"])
async def test_a_failing_step_leaves_no_socket_open(listen, scripted, descriptors, step, fast_open):
    if step == "syn":
        step = "connect" if fast_open == "off" else "sendto"
    factory, _ = scripted(**{step: errno.EIO})
    to = candidate(port=listen().getsockname()[1])
    before = descriptors()
    options = ConnectOptions(interface=("127.0.0.2",), fast_open=fast_open)
    failed = await failure(Connector(factory), to, options)
    # The exception is still held, and with it every local variable on its way.
    assert failed.errno == errno.EIO
    assert descriptors() == before


async def test_a_surprise_leaves_no_socket_open(listen, scripted, descriptors):
    factory, _ = scripted()
    kept = []

    def broken(family, kind):
        sock = factory(family, kind)
        kept.append(sock)
        sock.fails = None  # `in None` is a TypeError
        return sock

    before = descriptors()
    with pytest.raises(TypeError):
        await Connector(broken).connect(candidate(), ConnectOptions())
    assert len(kept) == 1
    assert descriptors() == before


async def test_a_timeout_leaves_no_socket_open(clogged_port, descriptors, autojump_clock):
    before = descriptors()
    failed = await failure(to=candidate(port=clogged_port))
    assert failed.cause is Cause.TIMEOUT
    assert descriptors() == before


async def test_a_cancelled_connect_leaves_no_socket_open(clogged_port, scripted, descriptors):
    factory, calls = scripted()
    kept = []

    def keep(family, kind):
        kept.append(factory(family, kind))
        return kept[-1]

    before = descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connector(keep).connect, candidate(port=clogged_port), ConnectOptions())
        await trio.testing.wait_all_tasks_blocked()
        assert descriptors() == before + 1
        nursery.cancel_scope.cancel()
    assert any(call.startswith("sendto") for call in calls)
    assert descriptors() == before


async def test_who_is_already_cancelled_sends_no_syn(listen, scripted, descriptors):
    factory, calls = scripted()
    to = candidate(port=listen().getsockname()[1])
    before = descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        await Connector(factory).connect(to, ConnectOptions())
    assert scope.cancelled_caught
    assert not any(call.startswith(("connect", "sendto")) for call in calls)
    assert descriptors() == before


async def test_a_reset_after_connect_is_seen_by_the_first_read(listen):
    listener = listen()
    to = candidate(port=listener.getsockname()[1])
    connection = await Connector().connect(to, ConnectOptions())
    peer, _ = listener.accept()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with pytest.raises(trio.BrokenResourceError) as info:
        await connection.stream.receive_some()
    assert info.value.__cause__.errno == errno.ECONNRESET
    connection.stream.close()
