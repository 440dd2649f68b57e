"""The process in the middle of a link: how it treats packets, with sockets in place of TUN devices."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO

import pytest

from engine.testing.forwarder import (
    LENGTH_OCTETS,
    Forget,
    Impair,
    Plan,
    forward,
    frame,
    length_of,
    read_frame,
)
from engine.testing.impairments import Direction, Fate, Loss, When, has_syn_data, strip_syn_data
from engine.testing.packet_log import LARGEST_RECORD, read_records
from engine.testing.segment import parse_segment
from tests.testing.packets import ACK, CLIENT, SERVER, SYN, packet

HELLO = packet(CLIENT, SERVER, SYN, 7, 0, b"EHLO x\r\n")
ANSWER = packet(SERVER, CLIENT, SYN | ACK, 9, 16)
ONE_WAY = 0.02
PLAN = Plan({}, ONE_WAY, None, (), -1, 1 << 20)


class Wire:
    """A forwarder in a thread; `near` and `far` are where the devices' other sides would be."""

    def __init__(self, plan):
        self.log_file = os.memfd_create("log")
        self.plan = replace(plan, log=self.log_file)
        self.near, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._devices = [near, far]
        for device in self._devices:
            device.setblocking(False)
        for end in (self.near, self.far):
            end.settimeout(5)
        commands, send = os.pipe()
        hear, answers = os.pipe()
        self._commands, self._send = FileIO(commands, "rb"), FileIO(send, "wb")
        self._hear, self._answers = FileIO(hear, "rb"), FileIO(answers, "wb")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with self._commands, self._answers:
            devices = [each.fileno() for each in self._devices]
            forward(self.plan, devices, self._commands, self._answers)

    def say(self, message):
        self._send.write(frame(message))
        assert self._hear.read(100) == frame(None)

    def log(self):
        return list(read_records(os.pread(self.log_file, 1 << 20, 0)))

    def close(self):
        self._send.close()
        self._thread.join(5)
        assert not self._thread.is_alive()
        self._hear.close()
        os.close(self.log_file)
        for each in (self.near, self.far, *self._devices):
            each.close()


@contextmanager
def forwarding(**changes):
    wire = Wire(replace(PLAN, **changes))
    try:
        yield wire
    finally:
        wire.close()


def test_packets_are_held_in_both_directions_and_logged():
    with forwarding() as wire:
        sent = time.monotonic()
        wire.near.send(HELLO)
        wire.far.send(ANSWER)
        assert wire.far.recv(2000) == HELLO
        assert time.monotonic() - sent >= ONE_WAY
        assert wire.near.recv(2000) == ANSWER
        time.sleep(0.01)  # written to the log behind the device
        out, back = sorted(wire.log(), key=lambda each: each.direction, reverse=True)
    assert (out.direction, out.segment) == (Direction.OUT, parse_segment(HELLO))
    assert (back.direction, back.segment) == (Direction.BACK, parse_segment(ANSWER))
    for passage in (out, back):
        assert sent <= passage.entered <= passage.left - ONE_WAY


def test_packets_keep_their_order_and_their_distance():
    with forwarding() as wire:
        times = []
        for number in range(5):
            wire.near.send(packet(CLIENT, SERVER, ACK, number, 1, b"x"))
            time.sleep(0.005)
        for number in range(5):
            assert parse_segment(wire.far.recv(2000)).seq == number
            times.append(time.monotonic())
    assert times[-1] - times[0] > 0.004 * 4 - ONE_WAY


def test_what_is_no_segment_passes_and_is_judged_by_nobody():
    with forwarding(impairments=(Loss(1),)) as wire:
        wire.near.send(b"\x60 something else")
        assert wire.far.recv(2000) == b"\x60 something else"
        assert wire.log() == []


def test_a_narrow_wire_takes_its_time():
    octets = packet(CLIENT, SERVER, ACK, 1, 1, bytes(960))
    assert len(octets) == 1000
    with forwarding(rate=20_000) as wire:  # 50 ms each
        sent = time.monotonic()
        for _ in range(3):
            wire.near.send(octets)
        wire.far.send(ANSWER)
        wire.near.recv(2000)
        assert time.monotonic() - sent < 0.05  # the other direction has a width of its own
        for _ in range(3):
            wire.far.recv(2000)
        assert time.monotonic() - sent >= 0.15 + ONE_WAY


def test_lost_packets_are_logged_and_do_not_arrive():
    with forwarding(impairments=(When(has_syn_data, times=1),)) as wire:
        wire.near.send(HELLO)
        wire.near.send(HELLO)
        assert wire.far.recv(2000) == HELLO
        time.sleep(0.01)
        lost, passed = wire.log()
    assert (lost.fate, lost.left) == (Fate.LOSE, None)
    assert (passed.fate, passed.segment) == (Fate.PASS, lost.segment)


def test_the_first_impairment_that_objects_decides():
    with forwarding(impairments=(strip_syn_data, Loss(1))) as wire:
        wire.near.send(HELLO)
        segment = parse_segment(wire.far.recv(2000))
        assert (segment.seq, segment.payload) == (7, b"")


def test_impairments_can_be_replaced_while_packets_flow():
    with forwarding(impairments=(Loss(1),)) as wire:
        wire.near.send(HELLO)
        time.sleep(0.01)
        wire.say(Impair(()))
        wire.near.send(HELLO)
        assert wire.far.recv(2000) == HELLO
        time.sleep(0.01)
        assert [each.fate for each in wire.log()] == [Fate.LOSE, Fate.PASS]


def test_the_log_can_be_emptied_and_goes_on():
    with forwarding(impairments=(Loss(1),)) as wire:
        wire.near.send(HELLO)
        time.sleep(0.01)
        wire.say(Forget())
        assert wire.log() == []
        wire.far.send(ANSWER)
        time.sleep(0.01)
        assert [each.segment for each in wire.log()] == [parse_segment(ANSWER)]


def test_a_full_log_grows_no_further_and_packets_still_pass():
    with forwarding(log_octets=LARGEST_RECORD + 100) as wire:
        for _ in range(5):
            wire.near.send(HELLO)
        for _ in range(5):
            assert wire.far.recv(2000) == HELLO
        time.sleep(0.01)
        assert 1 <= len(wire.log()) < 5


def test_packets_for_a_device_that_takes_none_are_lost():
    with forwarding() as wire:
        wire.far.shutdown(socket.SHUT_RD)
        wire.near.send(HELLO)
        time.sleep(2 * ONE_WAY)
        assert [each.fate for each in wire.log()] == [Fate.LOSE]


def test_messages_travel_whole():
    impair = Impair((Loss(0.5, 3),))
    octets = frame(impair)
    assert length_of(octets[:LENGTH_OCTETS]) == len(octets) - LENGTH_OCTETS
    ours, theirs = os.pipe()
    with FileIO(ours, "rb") as commands:
        for start in range(0, len(octets), 7):
            os.write(theirs, octets[start : start + 7])
        os.close(theirs)
        assert read_frame(commands).impairments[0].probability == 0.5
        assert read_frame(commands) is None


def test_what_cannot_travel_is_refused_before_it_is_sent():
    with pytest.raises(TypeError, match=r"cannot be sent to the process that forwards.*a module"):
        frame(Impair((lambda direction, segment: Fate.PASS,)))
