"""A link between two namespaces: its time, what it loses, what it logs, and that nothing stays."""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from engine.net.connector import Connector
from engine.net.options import ConnectOptions
from engine.route import Candidate
from engine.testing import link as module
from engine.testing.impairments import (
    Direction,
    Fate,
    Loss,
    When,
    lose_syn_with_data,
    strip_syn_data,
)
from engine.testing.link import LinkBrokenError, LinkUnavailable
from engine.testing.segment import Flags
from engine.testing.wire import traces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from engine.testing.link import Link

    OpenLink = Callable[..., AbstractAsyncContextManager[Link]]

pytestmark = pytest.mark.servers

PORT = 25
ONE_WAY = 0.03
FASTOPEN_CONNECT = 30  # linux/tcp.h
SYN_DATA = 32  # linux/tcp.h: TCPI_OPT_SYN_DATA of tcpi_options
HELLO = b"EHLO client.test\r\n"


@asynccontextmanager
async def serving(link: Link, *, ipv6: bool = False) -> AsyncIterator[None]:
    """Greet, then say everything again, at the far end."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220\r\n")
            async for octets in stream:
                await stream.send_all(octets)

    listener = link.far.listen(PORT, ipv6=ipv6, fast_open=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield
        nursery.cancel_scope.cancel()


def client(link: Link, *options: tuple[int, int, int]) -> trio.socket.SocketType:
    sock = link.near.make_socket(socket.AF_INET, socket.SOCK_STREAM)
    for option in options:
        sock.setsockopt(*option)
    return trio.socket.from_stdlib_socket(sock)


async def read(sock: trio.socket.SocketType, size: int) -> bytes:
    octets = b""
    while len(octets) < size:
        more = await sock.recv(size - len(octets))
        assert more
        octets += more
    return octets


async def hear_greeting(link: Link) -> float:
    """Connect with an empty Fast Open; returns the seconds until the greeting was there."""
    with client(link) as sock:
        started = trio.current_time()
        await sock.sendto(b"", socket.MSG_FASTOPEN, (link.far.address, PORT))
        assert await read(sock, 5) == b"220\r\n"
        return trio.current_time() - started


async def say_first(link: Link) -> tuple[float, bool]:
    """Connect so that the first write may ride in the SYN.

    Returns the seconds until it was answered, and whether the system says it did.
    """
    with client(link, (socket.IPPROTO_TCP, FASTOPEN_CONNECT, 1)) as sock:
        started = trio.current_time()
        await sock.connect((link.far.address, PORT))
        await sock.send(HELLO)
        assert await read(sock, 5 + len(HELLO)) == b"220\r\n" + HELLO
        seconds = trio.current_time() - started
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return seconds, bool(info[5] & SYN_DATA)


def assert_takes(seconds: float, round_trips: float, link: Link) -> None:
    # On a busy machine the two ends, which are this process, are slow to wake up.
    assert round_trips <= seconds / link.round_trip < round_trips + 0.9


@contextmanager
def busy_process() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


# ---- time ---------------------------------------------------------------------------------------


async def test_by_default_a_round_trip_takes_100_ms(open_link: OpenLink) -> None:
    async with open_link() as link, serving(link):
        assert link.round_trip == pytest.approx(0.1)
        with client(link) as sock:
            started = trio.current_time()
            await sock.connect((link.far.address, PORT))
            assert_takes(trio.current_time() - started, 1, link)
            assert await read(sock, 5) == b"220\r\n"
            assert_takes(trio.current_time() - started, 2, link)


async def test_a_busy_machine_delays_packets_no_further(open_link: OpenLink) -> None:
    with ExitStack() as stack:
        async with open_link(one_way=ONE_WAY) as link, serving(link):
            for _ in range(2 * (os.cpu_count() or 1)):
                stack.enter_context(busy_process())
            with client(link) as sock:
                await sock.connect((link.far.address, PORT))
                for _ in range(10):
                    await sock.send(bytes(2000))
                    await read(sock, 2000)
            held = sorted(each.left - each.entered for each in link.log() if each.left)
    assert held[0] >= ONE_WAY
    # Most of them: a virtual machine itself may be stopped at times.
    assert held[len(held) * 8 // 10] < ONE_WAY + 0.001


async def test_a_narrow_link_takes_its_time(open_link: OpenLink) -> None:
    async with open_link(one_way=0.0, rate=100_000) as link, serving(link):
        with client(link) as sock:
            await sock.connect((link.far.address, PORT))
            started = trio.current_time()
            await sock.send(bytes(10_000))
            await read(sock, 10_005)
            assert 0.1 < trio.current_time() - started < 0.3


async def test_ipv6_crosses_too(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as link, serving(link, ipv6=True):
        if link.far.address6 is None:
            pytest.skip("this kernel has no IPv6")
        sock = trio.socket.from_stdlib_socket(
            link.near.make_socket(socket.AF_INET6, socket.SOCK_STREAM)
        )
        with sock:
            started = trio.current_time()
            await sock.connect((link.far.address6, PORT))
            assert_takes(trio.current_time() - started, 1, link)
        assert link.log()[0].segment.destination == (link.far.address6, PORT)


# ---- who is inside ------------------------------------------------------------------------------


async def test_a_command_runs_inside_an_end(open_link: OpenLink) -> None:
    show = "import os, socket, sys; print(socket.if_nameindex()); sys.exit(os.getuid() != 0)"
    async with open_link() as link:
        done = await link.near.run(sys.executable, "-c", show, capture_stdout=True)
        assert {name for _, name in eval(done.stdout)} == {"lo", "link"}
        with pytest.raises(subprocess.CalledProcessError):
            await link.near.run("false")


async def test_the_connector_connects_through_the_link(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as link, serving(link):
        connector = Connector(link.near.make_socket)
        started = trio.current_time()
        candidate = Candidate("far.test", link.far.address, PORT)
        connection = await connector.connect(candidate, ConnectOptions())
        try:
            assert_takes(trio.current_time() - started, 1, link)
            assert connection.facts.local_address == link.near.address
        finally:
            connection.stream.close()


async def test_two_links_do_not_meet(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as first, open_link(one_way=ONE_WAY) as second:
        assert len({first.near.name, first.far.name, second.near.name, second.far.name}) == 4
        async with serving(first):
            with client(second) as sock, pytest.raises(ConnectionRefusedError):
                await sock.connect((second.far.address, PORT))
            assert await hear_greeting(first)
        assert {each.direction for each in second.log()} == set(Direction)


async def test_kernel_parameters_are_those_that_were_asked_for(open_link: OpenLink) -> None:
    fast_open = "/proc/sys/net/ipv4/tcp_fastopen"
    outside = await trio.Path(fast_open).read_text()
    async with open_link(fast_open=1, sysctls={"net.ipv4.tcp_syn_retries": 2}) as link:
        link.far.set_sysctl("net.ipv4.tcp_fastopen", 2)
        for end, expected in ((link.near, b"1\n2\n"), (link.far, b"2\n2\n")):
            retries = "/proc/sys/net/ipv4/tcp_syn_retries"
            done = await end.run("cat", fast_open, retries, capture_stdout=True)
            assert done.stdout == expected
    assert await trio.Path(fast_open).read_text() == outside


# ---- Fast Open ----------------------------------------------------------------------------------


async def test_a_greeting_comes_a_round_trip_sooner_with_a_cookie(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as link, serving(link):
        assert_takes(await hear_greeting(link), 2, link)
        assert_takes(await hear_greeting(link), 1, link)
        asked, used = traces(link.log())
    assert asked.syn.segment.fast_open == b""
    assert used.syn.segment.fast_open
    assert (used.syn.segment.payload, used.syn_octets) == (b"", 0)


async def test_a_first_write_rides_in_the_syn_with_a_cookie(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as link, serving(link):
        seconds, is_in_syn = await say_first(link)
        assert_takes(seconds, 2, link)
        assert not is_in_syn
        seconds, is_in_syn = await say_first(link)
        assert_takes(seconds, 1, link)
        assert is_in_syn
        asked, used = traces(link.log())
    assert (asked.syn.segment.fast_open, asked.syn.segment.payload) == (b"", b"")
    assert (used.syn.segment.payload, used.syn_octets) == (HELLO, len(HELLO))


async def test_fast_open_is_off_where_the_system_says_so(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY, fast_open=0) as link, serving(link):
        with client(link) as sock:
            with pytest.raises(OSError, match="not supported"):
                sock.setsockopt(socket.IPPROTO_TCP, FASTOPEN_CONNECT, 1)
            with pytest.raises(OSError, match="not supported"):
                await sock.sendto(b"", socket.MSG_FASTOPEN, (link.far.address, PORT))
            await sock.connect((link.far.address, PORT))
        assert {each.segment.fast_open for each in link.log()} == {None}


async def test_a_server_without_it_gives_no_cookie(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as link:
        link.far.set_sysctl("net.ipv4.tcp_fastopen", 0)
        async with serving(link):
            for _ in range(2):
                assert_takes(await hear_greeting(link), 2, link)
            assert {each.syn.segment.fast_open for each in traces(link.log())} == {b""}


@pytest.mark.parametrize("impairment", [lose_syn_with_data, strip_syn_data])
async def test_a_syn_with_data_is_lost_or_stripped(
    open_link: OpenLink, impairment: Callable[..., Fate]
) -> None:
    async with open_link(one_way=ONE_WAY) as link, serving(link):
        await say_first(link)
        await link.clear_log()
        await link.impair(impairment)
        seconds, is_in_syn = await say_first(link)
        (trace,) = traces(link.log())
    assert not is_in_syn
    assert trace.syn.segment.payload == HELLO
    assert trace.syn_octets == 0
    if impairment is strip_syn_data:
        assert trace.syn.fate is Fate.STRIP
        assert_takes(seconds, 2, link)
    else:
        assert trace.syn.fate is Fate.LOSE
        # The kernel waits a second and sends a SYN that carries nothing.
        assert 1 < seconds < 1.5 + 2 * link.round_trip


# ---- loss ---------------------------------------------------------------------------------------


async def test_lost_segments_are_sent_again(open_link: OpenLink) -> None:
    async with open_link(one_way=0.001, impairments=[Loss(0.2, seed=5)]) as link, serving(link):
        with client(link) as sock:
            await sock.connect((link.far.address, PORT))
            for _ in range(20):
                await sock.send(bytes(3000))
                await read(sock, 3000)
        fates = [each.fate for each in link.log()]
    assert 0.05 < fates.count(Fate.LOSE) / len(fates) < 0.4
    assert fates.count(Fate.STRIP) == 0


async def test_a_predicate_says_what_is_lost(open_link: OpenLink) -> None:
    refuse = When(functools.partial(is_from, Direction.BACK), times=1)
    async with open_link(one_way=ONE_WAY, impairments=[refuse]) as link, serving(link):
        with client(link) as sock:
            await sock.connect((link.far.address, PORT))
        (lost,) = [each for each in link.log() if each.fate is Fate.LOSE]
    assert (lost.direction, lost.left) == (Direction.BACK, None)
    assert lost.segment.flags == Flags.SYN | Flags.ACK


def is_from(wanted, direction, segment):
    return direction is wanted


async def test_an_impairment_that_fails_ends_the_link_and_says_so(open_link: OpenLink) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(LinkBrokenError, match="ZeroDivisionError: oh")):
        async with open_link(impairments=[fail]) as link:
            with client(link) as sock:
                await sock.connect((link.far.address, PORT))


def fail(direction, segment):
    raise ZeroDivisionError("oh")


async def test_an_impairment_that_cannot_travel_is_refused(open_link: OpenLink) -> None:
    async with open_link() as link:
        with pytest.raises(TypeError, match="stand in a module"):
            await link.impair(lambda direction, segment: Fate.PASS)
    with pytest.raises(TypeError, match="stand in a module"):
        async with open_link(impairments=[lambda direction, segment: Fate.PASS]):
            pass


# ---- the log ------------------------------------------------------------------------------------


async def test_the_log_tells_who_sent_what_when(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as link, serving(link):
        with client(link) as sock:
            await sock.connect((link.far.address, PORT))
            await sock.send(HELLO)
            await read(sock, 5 + len(HELLO))
            port = sock.getsockname()[1]
        log = link.log()
    assert [each.direction for each in log[:2]] == [Direction.OUT, Direction.BACK]
    assert log[0].segment.source == (link.near.address, port)
    assert log[0].segment.destination == (link.far.address, PORT)
    assert log[0].segment.flags == Flags.SYN
    assert log[1].segment.flags == Flags.SYN | Flags.ACK
    assert log[1].segment.ack == (log[0].segment.seq + 1) % 2**32
    (trace,) = traces(log)
    assert trace.read(Direction.OUT).octets == HELLO
    assert trace.read(Direction.BACK).octets == b"220\r\n" + HELLO


async def test_the_log_can_be_emptied(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY) as link:
        with client(link) as sock, pytest.raises(ConnectionRefusedError):
            await sock.connect((link.far.address, PORT))
        assert len(link.log()) == 2
        await link.clear_log()
        assert link.log() == []


async def test_a_full_log_is_not_taken_for_a_whole_one(open_link: OpenLink) -> None:
    async with open_link(one_way=ONE_WAY, log_octets=70_000) as link, serving(link):
        with client(link) as sock:
            await sock.connect((link.far.address, PORT))
            await sock.send(bytes(10_000))
            await read(sock, 10_005)
        with pytest.raises(BufferError, match="the log of the link is full"):
            link.log()
        await link.clear_log()
        assert link.log() == []


# ---- the end ------------------------------------------------------------------------------------


def namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {each.name for each in folder.iterdir()} if folder.is_dir() else set()


def left_by_us() -> set[str]:
    """Namespaces of this process; those of other test runs come and go."""
    return {name for name in namespaces() if f"-{os.getpid()}-" in name}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_stays_behind(open_link: OpenLink) -> None:
    async with open_link() as link:
        names = {link.near.name, link.far.name}
        assert names <= namespaces()
    assert not names & namespaces()
    before = descriptors()
    async with open_link():
        assert descriptors() > before
    assert descriptors() == before


async def test_nothing_stays_behind_an_error_or_a_cancellation(open_link: OpenLink) -> None:
    names: set[str] = set()
    with pytest.raises(ZeroDivisionError):
        async with open_link() as link:
            names |= {link.near.name, link.far.name}
            raise ZeroDivisionError
    with trio.move_on_after(0.5) as scope:
        async with open_link() as link:
            names |= {link.near.name, link.far.name}
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert len(names) == 4
    assert not names & namespaces()


async def test_cancelled_while_it_opens_nothing_stays_behind(open_link: OpenLink) -> None:
    had = descriptors()
    for seconds in (0.0, 0.03, 0.06):
        with trio.move_on_after(seconds):
            async with open_link():
                pass
    assert not left_by_us()
    assert descriptors() == had


async def test_nothing_stays_behind_when_the_forwarder_is_killed(open_link: OpenLink) -> None:
    names: set[str] = set()
    with pytest.RaisesGroup(LinkBrokenError):
        async with open_link() as link:
            names |= {link.near.name, link.far.name}
            os.kill(link._control._process.pid, signal.SIGKILL)
            await trio.sleep_forever()
    assert names
    assert not names & namespaces()


async def test_a_link_that_broke_says_so_when_it_is_asked(open_link: OpenLink) -> None:
    with pytest.RaisesGroup(LinkBrokenError):
        async with open_link() as link:
            os.kill(link._control._process.pid, signal.SIGKILL)
            with pytest.raises(LinkBrokenError):
                await link.clear_log()
            await trio.sleep_forever()


def test_nothing_stays_behind_a_process_that_is_killed(open_link: OpenLink) -> None:
    script = (
        "import trio\nfrom engine.testing.link import open_link\n"
        "async def main():\n    async with open_link() as link:\n"
        "        print(link.near.name, flush=True)\n        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert name in namespaces()
        process.kill()
    for _ in range(100):
        if name not in namespaces():
            break
        select.select([], [], [], 0.05)
    assert name not in namespaces()


# ---- where there can be none --------------------------------------------------------------------


async def test_without_root_or_device_it_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.netns, "what_is_missing", lambda: "root is needed")
    with pytest.raises(LinkUnavailable, match="no long-distance link: root is needed"):
        async with module.open_link():
            pass


async def test_what_the_system_forbids_makes_it_unavailable(
    open_link: OpenLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, value: str) -> None:
        raise OSError(errno.EROFS, f"sysctl {name} = {value}: Read-only file system")

    monkeypatch.setattr(module.netns, "set_sysctl", refuse)
    with pytest.raises(LinkUnavailable, match=r"no long-distance link: sysctl .*: Read-only"):
        async with open_link():
            pass
    assert not left_by_us()


async def test_namespaces_that_cannot_be_made_make_it_unavailable(
    open_link: OpenLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_link() as link:
        monkeypatch.setattr(module, "_name_ends", lambda: (link.near, link.far))
        with pytest.raises(LinkUnavailable, match=r"no long-distance link: ip netns add .*exists"):
            async with open_link():
                pass


async def test_a_kernel_parameter_that_there_is_not_is_an_error(open_link: OpenLink) -> None:
    with pytest.raises(FileNotFoundError, match=r"sysctl net.ipv4.no_such = 1: No such file"):
        async with open_link(sysctls={"net.ipv4.no_such": 1}):
            pass
    assert not left_by_us()


@pytest.mark.parametrize(
    "wrong", [{"one_way": -1}, {"one_way": float("nan")}, {"rate": 0}, {"rate": float("inf")}]
)
async def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} .*: allowed is"):
        async with module.open_link(**wrong):
            pass


async def test_a_port_that_is_taken_leaves_no_socket(open_link: OpenLink) -> None:
    async with open_link() as link:
        listener = link.far.listen()
        port = listener.socket.getsockname()[1]
        before = descriptors()
        with pytest.raises(OSError, match="already in use"):
            link.far.listen(port)
        assert descriptors() == before
        await listener.aclose()
