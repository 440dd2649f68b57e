"""What a link says of its connection, and when it takes notice of silence."""

from __future__ import annotations

import socket

import pytest

from engine.net.facts import LinkFacts
from engine.net.fastopen_memory import FastOpenMemory
from engine.net.link import Link
from engine.outcome import Peer
from engine.queue.hints import MemoryHints

PEER = Peer("mx.test", "192.0.2.1", 25)


@pytest.fixture
def pair(listen):
    listener = listen()
    with socket.create_connection(listener.getsockname(), timeout=5) as ours:
        theirs, _ = listener.accept()
        with theirs:
            yield ours, theirs


def test_it_knows_the_round_trip_time(pair):
    ours, _ = pair
    facts = Link(ours, PEER, "used", FastOpenMemory()).observe()
    assert facts.fast_open == "used"
    assert 0 < facts.round_trip_seconds < 1


def test_once_the_socket_is_closed_it_knows_no_more(pair):
    ours, _ = pair
    link = Link(ours, PEER, "used-data", FastOpenMemory())
    ours.close()
    assert link.observe() == LinkFacts("used-data", None)


def test_before_the_handshake_there_is_no_round_trip_time():
    with socket.socket() as sock:
        assert Link(sock, PEER, "off", FastOpenMemory()).observe() == LinkFacts("off", None)


@pytest.mark.parametrize(
    ("fast_open", "said", "is_blamed"),
    [
        ("off", b"", False),
        ("asked", b"", False),
        ("used", b"", True),
        ("used-data", b"", True),
        ("used", b"220 ", False),
        ("used-data", b"220 ", False),
    ],
)
def test_silence_is_blamed_on_fast_open_where_it_was_used_and_nothing_was_heard(
    pair, fast_open, said, is_blamed
):
    ours, theirs = pair
    memory = FastOpenMemory(MemoryHints())
    if said:
        theirs.sendall(said)
        assert ours.recv(100) == said
    Link(ours, PEER, fast_open, memory).note_silence()
    assert memory.avoids("192.0.2.1") is is_blamed


def test_silence_up_to_a_reset_is_silence(pair):
    ours, _ = pair
    memory = FastOpenMemory(MemoryHints())
    ours.close()
    Link(ours, PEER, "used", memory).note_silence()
    assert memory.avoids("192.0.2.1")
