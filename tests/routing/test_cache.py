from __future__ import annotations

import math

import pytest
import trio

from engine.routing.cache import CachingResolver, TtlCache
from engine.routing.resolver import Answer, Resolver
from engine.testing.dns import FakeDns

ZONE = {
    "example.test": {"MX": ["10 mx.example.test"]},
    "broken.test": {"MX": "SERVFAIL"},
}


class Fixed(Resolver):
    """Gives one answer to everything."""

    def __init__(self, answer):
        self.answer = answer
        self.count = 0

    async def query(self, name, rdtype):
        self.count += 1
        await trio.lowlevel.checkpoint()
        return self.answer


async def test_a_second_question_is_answered_from_memory():
    inner = FakeDns(ZONE, authentic=True)
    resolver = CachingResolver(inner)

    first = await resolver.mx("example.test")
    second = await resolver.mx("EXAMPLE.test")

    assert first.records == second.records
    assert second.authentic
    assert inner.asked == {("example.test", "MX"): 1}


async def test_record_types_of_a_name_are_remembered_apart():
    inner = FakeDns(ZONE)
    resolver = CachingResolver(inner)

    assert (await resolver.mx("example.test")).status == "ok"
    assert (await resolver.addresses("example.test", "ipv4")).status == "no-data"


async def test_an_answer_from_memory_holds_for_what_is_left(autojump_clock):
    resolver = CachingResolver(FakeDns(ZONE, ttl=60))

    await resolver.mx("example.test")
    await trio.sleep(20)

    assert (await resolver.mx("example.test")).ttl == 40


@pytest.mark.parametrize(
    ("status", "ttl", "kept"),
    [
        pytest.param("ok", 60, 60, id="positive"),
        pytest.param("ok", 0, 1, id="positive, at least a second"),
        pytest.param("ok", 10**9, 86_400, id="positive, at most a day"),
        pytest.param("no-data", 60, 60, id="no data"),
        pytest.param("no-data", 86_400, 300, id="no data, at most 5 minutes"),
        pytest.param("no-such-name", 86_400, 300, id="no such name, at most 5 minutes"),
        pytest.param("no-such-name", 0, 1, id="no such name, at least a second"),
        pytest.param("failed", 0, 5, id="failure, at least 5 seconds"),
        pytest.param("failed", 3600, 30, id="failure, at most 30 seconds"),
    ],
)
async def test_answers_are_kept_for_their_ttl_within_bounds(status, ttl, kept, autojump_clock):
    inner = Fixed(Answer(status, ttl=ttl))
    resolver = CachingResolver(inner)

    assert (await resolver.query("example.test", "A")).ttl == kept
    await trio.sleep(kept - 0.5)
    await resolver.query("example.test", "A")
    assert inner.count == 1
    await trio.sleep(0.5)
    await resolver.query("example.test", "A")
    assert inner.count == 2


async def test_one_question_is_in_flight_at_a_time(autojump_clock):
    inner = FakeDns(ZONE, delay=1)
    resolver = CachingResolver(inner)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(resolver.mx, "example.test")

    assert inner.asked.total() == 1


async def test_a_cancelled_asker_leaves_the_question_to_another(autojump_clock):
    inner = FakeDns(ZONE, delay=1)
    resolver = CachingResolver(inner)
    answers = []

    async def ask():
        answers.append(await resolver.mx("example.test"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled_after, 0.5, resolver)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask)

    assert [answer.status for answer in answers] == ["ok"]
    assert inner.asked.total() == 2


async def cancelled_after(seconds, resolver):
    with trio.move_on_after(seconds):
        await resolver.mx("example.test")


async def test_the_memory_is_bounded():
    inner = FakeDns({})
    resolver = CachingResolver(inner, max_entries=2)

    for name in ("a.test", "b.test", "c.test", "c.test", "b.test", "a.test"):
        await resolver.query(name, "A")

    assert inner.asked == {("a.test", "A"): 2, ("b.test", "A"): 1, ("c.test", "A"): 1}


class TestTtlCache:
    def test_an_entry_expires(self):
        now = [100.0]
        cache = TtlCache(10, lambda: now[0])
        cache.put("key", "value", 5)

        now[0] = 104.9
        assert cache.get("key") == "value"
        assert cache.seconds_left("key") == pytest.approx(0.1)
        now[0] = 105.0
        assert cache.get("key") is None
        assert cache.seconds_left("key") == 0

    def test_an_unknown_key_has_no_value_and_no_time(self):
        cache = TtlCache(10, lambda: 0.0)

        assert cache.get("key") is None
        assert cache.seconds_left("key") == 0

    def test_infinity_is_for_ever(self):
        now = [0.0]
        cache = TtlCache(10, lambda: now[0])
        cache.put("key", "value", math.inf)
        now[0] = 1e12

        assert cache.get("key") == "value"

    def test_when_full_the_entry_stored_first_makes_room(self):
        cache = TtlCache(2, lambda: 0.0)
        cache.put("a", 1, 5)
        cache.put("b", 2, 5)
        cache.put("a", 3, 5)
        cache.put("c", 4, 5)

        assert [cache.get(key) for key in "abc"] == [3, None, 4]
        assert len(cache) == 2

    def test_a_cache_without_room_is_refused(self):
        with pytest.raises(ValueError, match="1 entry or more, not 0"):
            TtlCache(0, lambda: 0.0)
