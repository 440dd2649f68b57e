"""The memory of Fast Open: what it keeps, for how long, and what it says."""

from __future__ import annotations

import logging

from engine.net.fastopen_memory import FastOpenMemory
from engine.outcome import Peer
from engine.queue.hints import MemoryHints

PEER = Peer("mx.test", "192.0.2.1", 25)
DAY = 86_400


def test_an_address_is_avoided_for_a_day():
    now = [1000.0]
    memory = FastOpenMemory(MemoryHints(clock=lambda: now[0]))
    assert not memory.avoids("192.0.2.1")
    memory.blame(PEER, "timed out")
    assert memory.avoids("192.0.2.1")
    assert not memory.avoids("192.0.2.2")
    now[0] += DAY - 1
    assert memory.avoids("192.0.2.1")
    now[0] += 1
    assert not memory.avoids("192.0.2.1")


def test_the_memory_of_two_connectors_is_one_where_they_share_hints():
    hints = MemoryHints()
    FastOpenMemory(hints).blame(PEER, "timed out")
    assert FastOpenMemory(hints).avoids("192.0.2.1")


def test_the_log_says_what_happened_and_what_follows(caplog):
    with caplog.at_level(logging.INFO, "engine.net"):
        FastOpenMemory(MemoryHints()).blame(PEER, "timed out")
    assert caplog.messages == [
        "TCP Fast Open with mx.test [192.0.2.1]:25: timed out; left out there for a day"
    ]


def test_without_hints_nothing_is_avoided_and_nothing_is_promised(caplog):
    memory = FastOpenMemory()
    with caplog.at_level(logging.INFO, "engine.net"):
        memory.blame(PEER, "timed out")
    assert not memory.avoids("192.0.2.1")
    assert caplog.messages == ["TCP Fast Open with mx.test [192.0.2.1]:25: timed out"]
