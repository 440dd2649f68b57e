"""The middle of a link: a process that holds every IP packet between two TUN devices for a while.

`engine.testing.link` starts it and tells it over standard input what to do.  It is a process of its
own so that a test that is busy, or collects garbage, does not delay packets any further; it also
asks for real-time priority.  It makes the two namespaces and takes them away when standard input
closes, and that happens whatever becomes of the test: nothing is left behind.

Both ways every message is its length (4 octets) and a pickle: first a `Plan`, then `Impair` and
`Forget`; each is answered with `None` or with a text that says what went wrong.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.testing import netns
from engine.testing.impairments import Direction, Fate, Impairment
from engine.testing.packet_log import LARGEST_RECORD, write_record
from engine.testing.segment import parse_segment, without_payload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import FileIO

#: What the device is called inside each namespace.
DEVICE: Final = "link"
_LENGTH: Final = struct.Struct("!I")
_LARGEST_PACKET: Final = 65_535
#: Packets on their way in one direction; more are lost, as in any queue of a router.
_MOST_HELD: Final = 50_000
#: So that a device that is never empty cannot keep packets from being delivered.
_READS_IN_A_ROW: Final = 64
#: Below the priorities of the kernel's own threads, above every ordinary process.
_REAL_TIME: Final = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make.

    Attributes:
        addresses: Namespace, and the addresses with prefix of the device in it: near, then far.
        one_way: Seconds that a packet is held.
        rate: Octets a second in each direction; `None`: no limit.
        impairments: Asked about each segment.
        log: Descriptor of the file to log to.
        log_octets: How large it may become.
    """

    addresses: Mapping[str, tuple[str, ...]]
    one_way: float
    rate: float | None
    impairments: tuple[Impairment, ...]
    log: int
    log_octets: int


@dataclass(frozen=True, slots=True)
class Impair:
    """Replace the impairments."""

    impairments: tuple[Impairment, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Empty the log."""


def frame(message: object) -> bytes:
    """Return a message as it travels.

    Raises:
        TypeError: Something in it cannot be pickled.
    """
    try:
        pickled = pickle.dumps(message)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"cannot be sent to the process that forwards: {error}; "
            "an impairment is made of functions and classes that stand in a module"
        ) from error
    return _LENGTH.pack(len(pickled)) + pickled


def length_of(head: bytes) -> int:
    """Return how long the message is that the first `LENGTH_OCTETS` of a frame announce."""
    (length,) = _LENGTH.unpack(head)
    return int(length)


LENGTH_OCTETS: Final = _LENGTH.size


class _Log:
    def __init__(self, descriptor: int, limit: int) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._size = 0

    def write(self, record: bytes) -> None:
        # A full one stays as it is: whoever reads it is told so.
        if self._size + LARGEST_RECORD <= self._limit:
            self._size += os.pwrite(self._descriptor, record, self._size)

    def forget(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._size = 0


class _Lane:
    """One direction."""

    def __init__(
        self, direction: Direction, source: int, target: int, plan: Plan, log: _Log
    ) -> None:
        self.source = source
        self.impairments = plan.impairments
        self._direction = direction
        self._target = target
        self._one_way = plan.one_way
        self._rate = plan.rate
        self._log = log
        self._held: deque[tuple[float, float, Fate, bytes]] = deque()
        self._is_free_at = 0.0

    @property
    def due(self) -> float | None:
        """When the next packet is to be delivered."""
        return self._held[0][0] if self._held else None

    def take(self) -> None:
        """Take what waits in the device."""
        for _ in range(_READS_IN_A_ROW):
            try:
                packet = os.read(self.source, _LARGEST_PACKET)
            except BlockingIOError:
                return
            self._hold(packet, time.monotonic())

    def _hold(self, packet: bytes, entered: float) -> None:
        fate = self._judge(packet)
        if fate is Fate.LOSE or len(self._held) >= _MOST_HELD:
            self._note(entered, None, Fate.LOSE, packet)
            return
        begun = max(entered, self._is_free_at)
        self._is_free_at = begun + (len(packet) / self._rate if self._rate else 0.0)
        self._held.append((self._is_free_at + self._one_way, entered, fate, packet))

    def _judge(self, packet: bytes) -> Fate:
        segment = parse_segment(packet) if self.impairments else None
        if segment is not None:
            for impairment in self.impairments:
                fate = impairment(self._direction, segment)
                if fate is not Fate.PASS:
                    return fate
        return Fate.PASS

    def deliver(self) -> None:
        """Give away what has been held long enough."""
        while self._held and self._held[0][0] <= time.monotonic():
            _, entered, fate, packet = self._held.popleft()
            arriving = without_payload(packet) if fate is Fate.STRIP else packet
            try:
                os.write(self._target, arriving)
            except OSError:  # the device was set down
                self._note(entered, None, Fate.LOSE, packet)
            else:
                self._note(entered, time.monotonic(), fate, packet)

    def _note(self, entered: float, left: float | None, fate: Fate, packet: bytes) -> None:
        self._log.write(write_record(entered, left, self._direction, fate, packet))


def forward(plan: Plan, devices: list[int], commands: FileIO, answers: FileIO) -> None:
    """Forward packets until `commands` ends.

    Raises:
        Exception: An impairment raised it.
    """
    near, far = devices
    log = _Log(plan.log, plan.log_octets)
    lanes = (
        _Lane(Direction.OUT, near, far, plan, log),
        _Lane(Direction.BACK, far, near, plan, log),
    )
    while True:
        for lane in lanes:
            lane.deliver()
        due = [lane.due for lane in lanes if lane.due is not None]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select([near, far, commands.fileno()], [], [], wait)
        for lane in lanes:
            if lane.source in readable:
                lane.take()
        if commands.fileno() in readable:
            match read_frame(commands):
                case Impair(impairments):
                    for lane in lanes:
                        lane.impairments = impairments
                case Forget():
                    log.forget()
                case _:
                    return
            answer(answers, None)


def read_frame(commands: FileIO) -> object:
    """Return the next message, `None` when there is no other."""
    head = _read(commands, LENGTH_OCTETS)
    message = _read(commands, length_of(head)) if len(head) == LENGTH_OCTETS else b""
    return pickle.loads(message) if message else None


def _read(commands: FileIO, size: int) -> bytes:
    """Read so many octets, fewer at the end.

    Nothing is read ahead: `select` would not see it.
    """
    octets = b""
    while len(octets) < size and (more := commands.read(size - len(octets))):
        octets += more
    return octets


def answer(answers: FileIO, problem: str | None) -> None:
    """Say what became of a message."""
    answers.write(frame(problem))


def main() -> int:
    """Make a link, and forward over it until standard input closes; returns an exit status."""
    # Ctrl-C is for the tests, and the link ends when they let go of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        open(0, "rb", buffering=0, closefd=False) as commands,
        open(1, "wb", buffering=0, closefd=False) as answers,
    ):
        plan = read_frame(commands)
        if not isinstance(plan, Plan):
            return 1
        with contextlib.ExitStack() as stack:
            try:
                devices = _make(plan, stack)
            except OSError as error:
                answer(answers, str(error))
                return 1
            _hurry()
            answer(answers, None)
            forward(plan, devices, commands, answers)
    return 0


def _make(plan: Plan, stack: contextlib.ExitStack) -> list[int]:
    """Make namespaces and devices; the stack takes them away."""
    devices = []
    for name, addresses in plan.addresses.items():
        netns.add(name)
        stack.callback(netns.delete, name)
        with netns.inside(name):
            device = netns.open_tun(DEVICE)
        stack.callback(os.close, device)
        netns.bring_up(name, DEVICE, addresses)
        devices.append(device)
    return devices


def _hurry() -> None:
    """Be woken before everybody else, where we may ask for it, and never pause for garbage."""
    with contextlib.suppress(OSError):
        os.nice(-20)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REAL_TIME))
    gc.disable()
