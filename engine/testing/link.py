"""A long-distance link on one machine: two network namespaces, and a wire of 100 ms between them.

`open_link` joins them by a pair of TUN devices and a process that holds every IP packet for a while
(`engine.testing.forwarder`), so real SYNs cross it, with TCP Fast Open and all; a TCP proxy would
end the connection, and netem is not in every kernel.  Programs run inside either end, sockets of
this process can be opened there, and every segment is logged with its times.  Real time only: no
virtual clock makes packets faster.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import secrets
import socket
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from engine.errors import EngineError
from engine.nursery import tasks_beside
from engine.testing import netns
from engine.testing.forwarder import LENGTH_OCTETS, Forget, Impair, Plan, frame, length_of
from engine.testing.packet_log import LARGEST_RECORD, read_records

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import BinaryIO

    from engine.testing.impairments import Impairment
    from engine.testing.packet_log import Passage

#: Seconds a packet is held by default: a round trip takes 100 ms.
ONE_WAY: Final = 0.05
#: net.ipv4.tcp_fastopen: clients may use it, and servers that ask for it.
FAST_OPEN_BOTH: Final = 3
#: How large the log of a link may become, in octets.
LOG_OCTETS: Final = 64 * 1024 * 1024

# The networks set aside for benchmarks: no machine routes them anywhere.
_IPV4: Final = ("198.18.0.1", "198.18.0.2")
_IPV6: Final = ("2001:2::1", "2001:2::2")
_IPV6_OF_THIS_KERNEL: Final = Path("/proc/sys/net/ipv6")
# Not `-m`: the classes of its messages would be those of `__main__` then, and not the ones we send.
_FORWARD: Final = "import sys; from engine.testing.forwarder import main; sys.exit(main())"
_ANSWER_SECONDS: Final = 30.0
_END_SECONDS: Final = 10.0
_BACKLOG: Final = 128
#: How a container says that kernel parameters are not ours to set.
_FORBIDDEN: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class LinkUnavailable(EngineError):  # noqa: N818 - an expected result, read aloud: "link unavailable"
    """This machine, or this process on it, can have no link; the text says what is needed."""


class LinkBrokenError(EngineError):
    """The process that forwards has ended; the text has its last words."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link: a network namespace.

    Attributes:
        name: Of the namespace, for `ip netns exec`.
        address: Its IPv4 address.
        address6: Its IPv6 address; `None` where this kernel has no IPv6.
    """

    name: str
    address: str
    address6: str | None

    def command(self, *words: str | Path) -> list[str]:
        """Return a command that runs another one inside, for whatever starts processes."""
        return [netns.find_ip() or "ip", "netns", "exec", self.name, *map(str, words)]

    async def run(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside to its end; options are those of `trio.run_process`.

        Cancelled, it is terminated.

        Raises:
            subprocess.CalledProcessError: As from `trio.run_process`.
        """
        return await trio.run_process(self.command(*words), **options)

    def make_socket(self, family: int, kind: int) -> socket.socket:
        """Make a socket inside; it stays there whoever uses it.

        Serves as `Connector(socket_factory=...)`.

        Raises:
            OSError: It cannot be made.
        """
        with netns.inside(self.name):
            return socket.socket(family, kind)

    def listen(
        self, port: int = 0, *, ipv6: bool = False, fast_open: bool = False
    ) -> trio.SocketListener:
        """Listen inside, with TCP Fast Open if asked for; whoever holds the listener closes it.

        Args:
            port: 0: one that is free; `listener.socket.getsockname()` tells.
            ipv6: Listen on `address6` in place of `address`.
            fast_open: Take data in SYNs with a valid cookie (RFC 7413 §4.2).

        Raises:
            OSError: The port is taken.
        """
        address, family = self.address, socket.AF_INET
        if ipv6:
            assert self.address6 is not None, "this kernel has no IPv6"
            address, family = self.address6, socket.AF_INET6
        sock = self.make_socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if fast_open:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, _BACKLOG)
            sock.bind((address, port))
            sock.listen(_BACKLOG)
            return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        except BaseException:
            sock.close()
            raise

    def set_sysctl(self, name: str, value: str | int) -> None:
        """Set a kernel parameter of this namespace, such as `net.ipv4.tcp_fastopen`.

        Raises:
            OSError: There is none of this name, or it takes no such value.
        """
        with netns.inside(self.name):
            netns.set_sysctl(name, str(value))


class Link:
    """A link that is up.

    Attributes:
        near: Where the client is, by custom.
        far: Where the server is.
        one_way: Seconds that a packet is held.
    """

    def __init__(self, near: End, far: End, one_way: float, control: _Control) -> None:
        self.near = near
        self.far = far
        self.one_way = one_way
        self._control = control

    @property
    def round_trip(self) -> float:
        """Seconds from one end to the other and back."""
        return 2 * self.one_way

    async def impair(self, *impairments: Impairment) -> None:
        """From now on treat segments so, in place of what was said before; nothing: let all pass.

        Raises:
            TypeError: One of them cannot be pickled.
            LinkBrokenError: The link is gone.
        """
        await self._control.ask(Impair(impairments))

    def log(self) -> list[Passage]:
        """Return what has passed so far, in the order it left the link or was lost.

        Segments that are still held are not in it.

        Raises:
            BufferError: The log is full and so has a hole: `clear_log` now and then.
        """
        return list(self._control.read_log())

    async def clear_log(self) -> None:
        """Forget what has passed so far.

        Raises:
            LinkBrokenError: The link is gone.
        """
        await self._control.ask(Forget())


class _Control:
    """Talks to the process that forwards, and reads what it logs."""

    def __init__(
        self, process: trio.Process, log: int, log_octets: int, last_words: BinaryIO
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._commands = process.stdin
        self._answers = process.stdout
        self._log = log
        self._log_octets = log_octets
        self._last_words = last_words
        self._asking = trio.Lock()

    async def ask(self, message: object) -> None:
        problem = await self._exchange(frame(message))
        assert problem is None  # all but the plan is done at once

    async def begin(self, octets: bytes) -> None:
        """Send the plan.

        Raises:
            LinkUnavailable: It could not be carried out.
        """
        problem = await self._exchange(octets)
        if problem is not None:
            raise LinkUnavailable(f"no long-distance link: {problem}")

    async def _exchange(self, octets: bytes) -> str | None:
        # An answer that is not waited for would be taken for that to the next question.
        async with self._asking:
            with trio.fail_after(_ANSWER_SECONDS, shield=True):
                try:
                    await self._commands.send_all(octets)
                    length = length_of(await self._receive(LENGTH_OCTETS))
                    answer = pickle.loads(await self._receive(length))
                except trio.BrokenResourceError as error:
                    raise self.broken() from error
        assert answer is None or isinstance(answer, str)
        return answer

    async def _receive(self, size: int) -> bytes:
        octets = b""
        while len(octets) < size:
            more = await self._answers.receive_some(size - len(octets))
            if not more:
                raise trio.BrokenResourceError("it hung up")
            octets += more
        return octets

    async def watch(self) -> None:
        """Wait for the end that nobody asked for.

        Raises:
            LinkBrokenError: It came.
        """
        await self._process.wait()
        raise self.broken()

    def broken(self) -> LinkBrokenError:
        self._last_words.seek(0)
        words = self._last_words.read().decode(errors="replace").strip()
        return LinkBrokenError(f"the process that forwards has ended\n{words}".rstrip())

    async def end(self) -> None:
        """Have everything taken away; by force if need be."""
        with trio.move_on_after(_END_SECONDS, shield=True):
            await self._commands.aclose()
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            with trio.move_on_after(_END_SECONDS, shield=True):
                await self._process.wait()
        with trio.move_on_after(_END_SECONDS, shield=True):
            await self._answers.aclose()

    def read_log(self) -> list[Passage]:
        size = os.fstat(self._log).st_size
        if size + LARGEST_RECORD > self._log_octets:
            raise BufferError(f"the log of the link is full: {size} octets")
        return list(read_records(os.pread(self._log, size, 0)))


@asynccontextmanager
async def open_link(
    *,
    one_way: float = ONE_WAY,
    rate: float | None = None,
    impairments: Sequence[Impairment] = (),
    fast_open: int = FAST_OPEN_BOTH,
    sysctls: Mapping[str, str | int] | None = None,
    log_octets: int = LOG_OCTETS,
) -> AsyncIterator[Link]:
    """Make a link for the time of a block; nothing of it is left afterwards.

    Any number of them can be open.  What still runs inside an end when the block is left keeps
    running, without a network.

    Args:
        one_way: Seconds that each packet is held.
        rate: Octets a second in each direction, as on a wire of that width; `None`: no limit.
        impairments: What is done to segments besides; see `engine.testing.impairments`.
        fast_open: `net.ipv4.tcp_fastopen` of both ends: 1 for clients, 2 for servers, 3 for both,
            0 for nobody.
        sysctls: Other kernel parameters of both ends.
        log_octets: How large the log may become.

    Raises:
        LinkUnavailable: This machine or process cannot have one; the text says what is needed.
        OSError: There is no kernel parameter of a name, or it takes no such value.
        TypeError: An impairment cannot be pickled.
        ValueError: A number is out of range.
        ExceptionGroup: The forwarding process ended by itself: a `LinkBrokenError` is in it.
    """
    if not 0 <= one_way < math.inf:
        raise ValueError(f"one_way {one_way!r}: allowed is a number of seconds from 0")
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate {rate!r}: allowed is a number of octets a second above 0, or None")
    missing = netns.what_is_missing()
    if missing is not None:
        raise LinkUnavailable(f"no long-distance link: {missing}")
    near, far = _name_ends()
    parameters = {"net.ipv4.tcp_fastopen": fast_open} | dict(sysctls or {})
    log = os.memfd_create(near.name)
    try:
        plan = Plan(
            addresses={end.name: _prefixed(end) for end in (near, far)},
            one_way=one_way,
            rate=rate,
            impairments=tuple(impairments),
            log=log,
            log_octets=log_octets,
        )
        async with _forwarding(plan) as control, tasks_beside() as nursery:
            for end in (near, far):
                _set_sysctls(end, parameters)
            nursery.start_soon(control.watch, name="link watcher")
            yield Link(near, far, one_way, control)
    finally:
        os.close(log)


@asynccontextmanager
async def _forwarding(plan: Plan) -> AsyncIterator[_Control]:
    octets = frame(plan)
    with tempfile.TemporaryFile() as last_words:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _FORWARD],
            stdin=-1,
            stdout=-1,
            stderr=last_words,
            pass_fds=[plan.log],
            start_new_session=True,
            # It finds the impairments of tests where we do.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        control = _Control(process, plan.log, plan.log_octets, last_words)
        try:
            await control.begin(octets)
            yield control
        finally:
            await control.end()
            # It does this itself, unless it was killed.
            with trio.move_on_after(_END_SECONDS, shield=True):
                for name in plan.addresses:
                    await trio.to_thread.run_sync(netns.delete, name)


def _set_sysctls(end: End, parameters: Mapping[str, str | int]) -> None:
    for name, value in parameters.items():
        try:
            end.set_sysctl(name, value)
        except OSError as error:
            if error.errno in _FORBIDDEN:
                raise LinkUnavailable(f"no long-distance link: {error.strerror}") from error
            raise


def _name_ends() -> tuple[End, End]:
    common = f"engine-{os.getpid()}-{secrets.token_hex(4)}"
    has_ipv6 = _IPV6_OF_THIS_KERNEL.is_dir()
    near, far = (
        End(f"{common}-{side}", ipv4, ipv6 if has_ipv6 else None)
        for side, ipv4, ipv6 in zip(("near", "far"), _IPV4, _IPV6, strict=True)
    )
    return near, far


def _prefixed(end: End) -> tuple[str, ...]:
    return (f"{end.address}/24", *([f"{end.address6}/64"] if end.address6 else []))
