"""One socket: with Fast Open where it goes, as ever where it does not, and over Unix sockets."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack, suppress

import pytest
import trio

from engine.net import dial as dialing
from engine.net.dial import Dialer
from engine.net.errors import ConnectFailed
from engine.net.fastopen_memory import FastOpenMemory
from engine.net.options import ConnectOptions
from engine.net.tcp_info import TcpInfo, TcpState
from engine.outcome import Cause, Peer, Scope
from engine.queue.hints import MemoryHints
from engine.smtp.stages import Stage

HERE = "127.0.0.1"
EARLY = b"EHLO a.test\r\n"


def peer_of(listener: socket.socket) -> Peer:
    return Peer("mx.test", *listener.getsockname()[:2])


def dialer(factory=socket.socket, hints=None) -> Dialer:
    return Dialer(factory, FastOpenMemory(hints))


def syns(calls) -> list[str]:
    """The calls that send a SYN, without what they say."""
    return [call.split()[0] for call in calls if call.startswith(("sendto", "connect"))]


# --- with Fast Open, and without ---


@pytest.mark.parametrize(
    ("mode", "early_data", "expected"),
    [("off", EARLY, "connect"), ("connect", EARLY, "sendto 0"), ("commands", EARLY, "sendto 13")],
)
async def test_the_mode_decides_on_the_syn(listen, scripted, mode, early_data, expected):
    listener = listen()
    factory, calls = scripted()
    options = ConnectOptions(fast_open=mode)
    dialed = await dialer(factory).dial(peer_of(listener), None, options, 5, early_data)
    dialed.socket.close()
    where = listener.getsockname()
    call, _, size = expected.partition(" ")
    assert f"{call} {where}" + (f" {size} octets" if size else "") in calls
    assert syns(calls)[0] == call


@pytest.mark.parametrize("name", ["EOPNOTSUPP", "EPIPE", "ENOTCONN", "EINVAL", "EPERM"])
@pytest.mark.parametrize("mode", ["connect", "commands"])
async def test_where_it_does_not_go_the_same_socket_connects_as_ever(listen, scripted, mode, name):
    listener = listen()
    factory, calls = scripted(sendto=getattr(errno, name))
    options = ConnectOptions(fast_open=mode)
    dialed = await dialer(factory).dial(peer_of(listener), "127.0.0.2", options, 5, EARLY)
    theirs, ours = listener.accept()
    theirs.close()
    dialed.socket.close()
    assert syns(calls) == ["sendto", "connect"]
    assert calls.count("socket") == 1
    assert (dialed.sent, dialed.link.fast_open) == (0, "off")
    assert ours == dialed.local
    assert ours[0] == "127.0.0.2"


@pytest.mark.parametrize("name", ["ECONNREFUSED", "ENETUNREACH", "ENOBUFS"])
async def test_a_syn_that_was_answered_or_cannot_be_sent_is_not_sent_again(scripted, name):
    factory, calls = scripted(sendto=getattr(errno, name))
    with pytest.raises(ConnectFailed) as info:
        await dialer(factory).dial(Peer("mx.test", HERE, 25), None, ConnectOptions(), 5)
    assert info.value.errno == getattr(errno, name)
    assert syns(calls) == ["sendto"]


async def test_an_address_that_had_trouble_gets_an_ordinary_syn(listen, scripted):
    listener = listen()
    hints = MemoryHints()
    FastOpenMemory(hints).blame(peer_of(listener), "timed out")
    factory, calls = scripted()
    dialed = await dialer(factory, hints).dial(peer_of(listener), None, ConnectOptions(), 5)
    dialed.socket.close()
    assert syns(calls) == ["connect"]
    assert dialed.link.fast_open == "off"


@pytest.mark.parametrize("mode", ["off", "connect"])
async def test_a_timeout_is_remembered_only_where_fast_open_was_tried(
    clogged_port, autojump_clock, mode
):
    hints = MemoryHints()
    options = ConnectOptions(fast_open=mode)
    with pytest.raises(ConnectFailed) as info:
        await dialer(hints=hints).dial(Peer("mx.test", HERE, clogged_port), None, options, 30)
    assert info.value.cause is Cause.TIMEOUT
    assert info.value.text == f"connect to mx.test [{HERE}]:{clogged_port}: timed out after 30 s"
    assert FastOpenMemory(hints).avoids(HERE) is (mode == "connect")


async def test_a_refusal_is_not_remembered(listen):
    listener = listen()
    peer = peer_of(listener)
    listener.close()
    hints = MemoryHints()
    with pytest.raises(ConnectFailed):
        await dialer(hints=hints).dial(peer, None, ConnectOptions(), 5)
    assert len(hints) == 0


# --- the wait for the answer ---


async def test_writable_is_not_connected(listen, monkeypatch):
    """The system may wake us for nothing; what counts is the state of the connection."""
    states = [TcpState.SYN_SENT, TcpState.SYN_SENT, TcpState.ESTABLISHED]
    facts = (False, 0, 0, 0.25, 0, 0)
    monkeypatch.setattr(dialing, "read_tcp_info", lambda _: TcpInfo(states.pop(0), *facts))
    options = ConnectOptions(fast_open="off")
    dialed = await dialer().dial(peer_of(listen()), None, options, 5)
    dialed.socket.close()
    assert states == []
    assert dialed.round_trip == 0.25


@pytest.mark.parametrize("known", [None, TcpInfo(0, False, 0, 0, 0.0, 0, 0)])
async def test_where_the_kernel_does_not_tell_its_error_number_decides(
    listen, monkeypatch, descriptors, known
):
    monkeypatch.setattr(dialing, "read_tcp_info", lambda _: known)
    listener = listen()
    dialed = await dialer().dial(peer_of(listener), None, ConnectOptions(), 5)
    dialed.socket.close()
    assert dialed.round_trip is None
    peer = peer_of(listener)
    listener.close()
    before = descriptors()
    with pytest.raises(ConnectFailed) as info:
        await dialer().dial(peer, None, ConnectOptions(), 5)
    assert info.value.errno == errno.ECONNREFUSED
    assert descriptors() == before


@pytest.mark.parametrize("flags", [0, socket.SOCK_NONBLOCK])
async def test_the_socket_never_blocks_whatever_the_factory_makes_of_its_type(listen, flags):
    def factory(family, kind):
        return socket.socket(family, kind & ~socket.SOCK_NONBLOCK | flags)

    dialed = await dialer(factory).dial(peer_of(listen()), None, ConnectOptions(), 5)
    assert dialed.socket.gettimeout() == 0
    assert not os.get_blocking(dialed.socket.fileno())
    dialed.socket.close()


# --- Unix sockets ---


@pytest.fixture
def listen_at(tmp_path):
    """Make listening Unix sockets, by name."""
    with ExitStack() as stack:

        def make(name: str = "lmtp", backlog: int = 8) -> tuple[socket.socket, str]:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            path = str(tmp_path / name)
            sock.bind(path)
            sock.listen(backlog)
            sock.settimeout(5)
            return sock, path

        yield make


async def dial_unix(path, seconds=5.0, factory=socket.socket):
    return await dialer(factory).dial_unix(path, Peer(f"unix:{path}"), seconds)


async def test_a_unix_socket_is_connected_to(listen_at, scripted):
    listener, path = listen_at()
    factory, calls = scripted()
    dialed = await dial_unix(path, factory=factory)
    theirs, _ = listener.accept()
    with dialed.socket as ours, theirs:
        theirs.sendall(b"220 here\r\n")
        await trio.lowlevel.wait_readable(ours)
        assert ours.recv(100) == b"220 here\r\n"
    assert (dialed.local, dialed.sent, dialed.link, dialed.round_trip) == (None, 0, None, None)
    # No option of TCP's is set on it.
    assert calls == ["socket", f"connect {path}"]


@pytest.mark.parametrize("is_there", [True, False])
async def test_nobody_who_listens_has_refused(tmp_path, descriptors, is_there):
    path = str(tmp_path / "lmtp")
    if is_there:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    before = descriptors()
    with pytest.raises(ConnectFailed) as info:
        await dial_unix(path)
    failed = info.value
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.REFUSED, Scope.HOST)
    why = "Connection refused" if is_there else "No such file or directory"
    assert failed.text == f"connect to unix:{path}: {why}"
    assert descriptors() == before


async def fill(path: str, stack: ExitStack) -> None:
    """Connect until the queue of a listener is full."""
    with suppress(BlockingIOError):
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            sock.connect(path)


async def test_a_full_queue_is_waited_for(listen_at, autojump_clock):
    listener, path = listen_at(backlog=0)
    with ExitStack() as stack:
        await fill(path, stack)

        async def make_room():
            await trio.sleep(3)
            stack.enter_context(listener.accept()[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_room)
            dialed = await dial_unix(path, 10)
        dialed.socket.close()
    assert 3 <= trio.current_time() < 3.6


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_a_queue_that_stays_full_is_given_up(listen_at, autojump_clock, descriptors, how):
    _, path = listen_at(backlog=0)
    with ExitStack() as stack:
        await fill(path, stack)
        before = descriptors()
        if how == "late":
            with pytest.raises(ConnectFailed) as info:
                await dial_unix(path, 7.5)
            assert (info.value.cause, info.value.scope) == (Cause.TIMEOUT, Scope.HOST)
            assert info.value.text == f"connect to unix:{path}: timed out after 7.5 s"
        else:
            with trio.move_on_after(7.5) as scope:
                await dial_unix(path, 10)
            assert scope.cancelled_caught
        assert descriptors() == before
