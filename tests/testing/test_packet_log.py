"""The log of a link: what is written is read back."""

from __future__ import annotations

import itertools

import pytest

from engine.testing.impairments import Direction, Fate
from engine.testing.packet_log import LARGEST_RECORD, Passage, read_records, write_record
from engine.testing.segment import parse_segment
from tests.testing.packets import ACK, CLIENT, SERVER, SYN, packet

HELLO = packet(CLIENT, SERVER, SYN, 7, 0, b"EHLO x\r\n")
ANSWER = packet(SERVER, CLIENT, SYN | ACK, 9, 16)
RECORDS = [
    (1.5, 1.55, Direction.OUT, Fate.PASS, HELLO),
    (1.6, None, Direction.BACK, Fate.LOSE, ANSWER),
    (1.7, 1.75, Direction.OUT, Fate.STRIP, HELLO),
]


def test_records_are_read_back_in_order():
    written = itertools.starmap(write_record, RECORDS)
    assert list(read_records(b"".join(written))) == [
        Passage(entered, left, direction, fate, parse_segment(octets))
        for entered, left, direction, fate, octets in RECORDS
    ]


def test_what_arrived_is_not_always_what_was_sent():
    sent, lost, stripped = read_records(b"".join(itertools.starmap(write_record, RECORDS)))
    assert sent.payload == b"EHLO x\r\n"
    assert (lost.segment.payload, lost.payload) == (b"", b"")
    assert (stripped.segment.payload, stripped.payload) == (b"EHLO x\r\n", b"")


def test_a_record_that_is_being_written_ends_the_log():
    first, second = (write_record(*record) for record in RECORDS[:2])
    for end in range(len(second)):
        assert len(list(read_records(first + second[:end]))) == 1


def test_packets_without_a_segment_are_passed_over():
    other = write_record(1.0, 1.0, Direction.OUT, Fate.PASS, b"\x60 something else")
    known = write_record(*RECORDS[0])
    assert len(list(read_records(other + known))) == 1


def test_no_record_is_larger_than_the_largest():
    largest = write_record(1.0, 1.0, Direction.OUT, Fate.PASS, bytes(65_535))
    assert len(largest) == LARGEST_RECORD


@pytest.mark.parametrize(
    ("fate", "shown"),
    [
        (Fate.PASS, "1.500000 out  198.18.0.1:40000 > 198.18.0.2:25 SYN seq 7, 8 octets"),
        (Fate.LOSE, "1.500000 out  198.18.0.1:40000 > 198.18.0.2:25 SYN seq 7, 8 octets (lose)"),
    ],
)
def test_a_passage_shows_on_one_line(fate, shown):
    (passage,) = read_records(write_record(1.5, None, Direction.OUT, fate, HELLO))
    assert str(passage) == shown
