"""Counts of TLS reports that outlive the process."""

from __future__ import annotations

import logging
from datetime import date

import pytest

from engine.outcome import Peer
from engine.queue.hints import MemoryHints, open_hints
from engine.report.tlsrpt import TlsCounters
from engine.report.tlsrpt_store import HINT_KIND, TlsrptStore
from engine.security import ReportedPolicy

NOON = 1_795_867_200.0
DAY = 86_400.0
PEER = Peer("mx.test", "192.0.2.1", 25, "198.51.100.1")


def policy(receiver, *, text="version: STSv1"):
    return ReportedPolicy("sts", receiver, (text,), ("mx.test",), receiver=receiver)


def all_of(counters):
    return {r: counters.reports(r) for r in sorted(counters.receivers())}


def counted(*receivers):
    counters = TlsCounters()
    for receiver in receivers:
        counters.count(NOON, [policy(receiver)])
        counters.count(NOON + DAY, [policy(receiver)])
        counters.count(
            NOON, [policy(receiver)], failure="certificate-expired", reason="x", peer=PEER
        )
    return counters


def save(store, counters):
    return len(list(store.save(counters)))


def restored(hints, name="1"):
    counters = TlsCounters()
    TlsrptStore(hints, name).load(counters)
    return counters


def test_counts_are_restored_as_they_were():
    hints = MemoryHints(clock=lambda: NOON)
    counters = counted(*(f"d{number}.test" for number in range(200)))
    save(TlsrptStore(hints), counters)

    assert all_of(restored(hints)) == all_of(counters)


async def test_counts_survive_in_the_file_of_hints(tmp_path):
    counters = counted("a.test", "b.test")
    async with open_hints(tmp_path / "hints.sqlite") as hints:
        save(TlsrptStore(hints), counters)
    async with open_hints(tmp_path / "hints.sqlite") as hints:
        assert all_of(restored(hints)) == all_of(counters)


def test_only_what_changed_is_saved():
    hints = MemoryHints(clock=lambda: NOON)
    store, counters = TlsrptStore(hints), counted("a.test", "b.test")

    assert save(store, counters) == 2
    assert save(store, counters) == 0
    counters.count(NOON, [policy("b.test")])
    assert save(store, counters) == 1
    assert all_of(restored(hints)) == all_of(counters)


def test_what_was_sent_does_not_come_back():
    hints = MemoryHints(clock=lambda: NOON)
    store, counters = TlsrptStore(hints), counted("a.test")
    save(store, counters)
    for report in counters.reports("a.test"):
        counters.drop("a.test", report.day)
    save(store, counters)

    assert all_of(restored(hints)) == {}
    assert len(hints) == 0


def test_engines_that_share_hints_keep_their_own_counts():
    hints = MemoryHints(clock=lambda: NOON)
    save(TlsrptStore(hints, "1"), counted("a.test"))
    save(TlsrptStore(hints, "2"), counted("b.test"))

    assert restored(hints, "1").receivers() == ["a.test"]
    assert restored(hints, "2").receivers() == ["b.test"]


@pytest.mark.parametrize(
    "octets",
    [
        b"junk",
        b"[]",
        b"{}",
        b"5",
        b"[1]",
        b'[["a.test"]]',
        b'[["a.test", "yesterday", []]]',
        b'[["a.test", "2026-11-28", [[["sts"], 1, 2, []]]]]',
        b'[["a.test", "2026-11-28", [[["sts", "x", [], []], "many", 2, []]]]]',
        b'[["a.test", "2026-11-28", [[["sts", "x", [], []], 1, 2, [[]]]]]]',
        b"\xff",
    ],
)
def test_a_hint_that_is_broken_is_as_good_as_lost(octets):
    hints = MemoryHints(clock=lambda: NOON)
    for shard in range(64):
        hints.put(HINT_KIND, f"1/{shard}", octets, seconds=DAY)

    assert all_of(restored(hints)) == {}


def test_of_what_is_too_much_the_smallest_is_left_out(caplog):
    hints = MemoryHints(clock=lambda: NOON)
    counters = TlsCounters()
    for number in range(1500):
        counters.count(NOON, [policy(f"d{number}.test", text="x" * 5000)])
    counters.count(NOON, [policy("tiny.test", text="")])

    save(TlsrptStore(hints), counters)

    kept = restored(hints).receivers()
    assert 500 < len(kept) < 1000
    assert all(len(hints.get(HINT_KIND, f"1/{shard}")) <= 65536 for shard in range(64))
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_days_are_kept_apart():
    hints = MemoryHints(clock=lambda: NOON)
    save(TlsrptStore(hints), counted("a.test"))

    days = [report.day for report in restored(hints).reports("a.test")]
    assert sorted(days) == [date(2026, 11, 28), date(2026, 11, 29)]
