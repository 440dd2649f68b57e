from __future__ import annotations

from engine.delivery.host_memory import HostMemory
from engine.outcome import Peer
from engine.queue.hints import MemoryHints

MX = Peer("mx.test", "192.0.2.1", 25)


def test_of_an_unknown_host_nothing_is_known():
    memory = HostMemory(MemoryHints(), MX)

    assert memory.takes_streams is None
    assert not memory.is_bad_at_chunking


def test_what_was_learned_is_known_under_every_name_of_the_address():
    hints = MemoryHints()
    HostMemory(hints, MX).note_stream(is_taken=True)
    HostMemory(hints, MX).note_bad_chunking()

    other_name = HostMemory(hints, Peer("mail.test", "192.0.2.1", 25, "198.51.100.1", 7))
    assert other_name.takes_streams is True
    assert other_name.is_bad_at_chunking


def test_another_port_or_address_is_another_host():
    hints = MemoryHints()
    HostMemory(hints, MX).note_stream(is_taken=True)

    for other in (Peer("mx.test", "192.0.2.1", 2525), Peer("mx.test", "192.0.2.2", 25)):
        assert HostMemory(hints, other).takes_streams is None


def test_the_last_word_counts():
    memory = HostMemory(MemoryHints(), MX)
    memory.note_stream(is_taken=True)
    memory.note_stream(is_taken=False)

    assert memory.takes_streams is False


def test_a_unix_socket_is_remembered_by_its_path():
    hints = MemoryHints()
    HostMemory(hints, Peer("unix:/a")).note_bad_chunking()

    assert HostMemory(hints, Peer("unix:/a")).is_bad_at_chunking
    assert not HostMemory(hints, Peer("unix:/b")).is_bad_at_chunking


def test_what_is_known_is_forgotten_after_a_week():
    now = [0.0]
    memory = HostMemory(MemoryHints(clock=lambda: now[0]), MX)
    memory.note_stream(is_taken=True)
    now[0] = 6.9 * 86400
    assert memory.takes_streams

    now[0] = 7.1 * 86400
    assert memory.takes_streams is None
