"""Connecting: over loopback, and with sockets that fail as told."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct

import pytest
import trio
import trio.testing

from engine.net.connector import Connector
from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts
from engine.net.options import ConnectOptions
from engine.outcome import Cause, Scope
from engine.route import Candidate
from engine.smtp.stages import Stage

HERE = "127.0.0.1"


def candidate(address: str = HERE, port: int | None = None) -> Candidate:
    return Candidate("mx.test", address, port)


async def failure(connector=None, to=None, options=None) -> ConnectFailed:
    """Connect, and return how that failed."""
    with pytest.raises(ConnectFailed) as info:
        await (connector or Connector()).connect(to or candidate(), options or ConnectOptions())
    return info.value


# --- it works ---


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_octets_go_both_ways_over_ipv4_and_ipv6(listen, address):
    listener = listen(address)
    port = listener.getsockname()[1]
    connection = await Connector().connect(candidate(address, port), ConnectOptions())
    async with connection.stream:
        peer, ours = listener.accept()
        with peer:
            await connection.stream.send_all(b"EHLO a\r\n")
            assert peer.recv(100) == b"EHLO a\r\n"
            peer.sendall(b"250 b\r\n")
            assert await connection.stream.receive_some() == b"250 b\r\n"
    facts = connection.facts
    assert facts.connect_seconds >= 0
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


async def test_the_steps_come_in_order(listen, scripted):
    port = listen().getsockname()[1]
    factory, calls = scripted()
    options = ConnectOptions(interface=("127.0.0.2",))
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


@pytest.mark.parametrize("when", ["connect", "later"])
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
    scripted, number, cause, scope, when
):
    factory, _ = scripted(**{when: number})
    failed = await failure(Connector(factory))
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
    assert not any(call.startswith("connect") for call in calls)


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


async def test_an_unknown_local_address_is_a_failure(listen, scripted):
    factory, _ = scripted(getsockname=errno.ECONNRESET)
    failed = await failure(Connector(factory), candidate(port=listen().getsockname()[1]))
    assert (failed.cause, failed.scope) == (Cause.IO, Scope.HOST)
    assert failed.text.startswith("find our address towards mx.test [127.0.0.1]:")


@pytest.mark.parametrize("address", ["mx.test", "[::1]", "fe80::1%lo", ""])
async def test_a_name_in_place_of_an_address_never_reaches_the_resolver(scripted, address):
    factory, calls = scripted()
    with pytest.raises(ValueError, match="not an IP address"):
        await Connector(factory).connect(candidate(address), ConnectOptions())
    assert calls == []


# --- nothing stays open ---


@pytest.mark.parametrize("step", ["socket", "bind", "connect", "later", "getsockname"])
async def test_a_failing_step_leaves_no_socket_open(listen, scripted, descriptors, step):
    factory, _ = scripted(**{step: errno.EIO})
    to = candidate(port=listen().getsockname()[1])
    before = descriptors()
    failed = await failure(Connector(factory), to, ConnectOptions(interface=("127.0.0.2",)))
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
    assert any(call.startswith("connect") for call in calls)
    assert descriptors() == before


async def test_who_is_already_cancelled_sends_no_syn(listen, scripted, descriptors):
    factory, calls = scripted()
    to = candidate(port=listen().getsockname()[1])
    before = descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        await Connector(factory).connect(to, ConnectOptions())
    assert scope.cancelled_caught
    assert not any(call.startswith("connect") for call in calls)
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
