"""Which of several proxies is tried first."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.net.proxy_choice import ProxyMemory, in_order
from engine.queue.hints import MemoryHints
from engine.setting_proxy import Proxy


def proxy(name: str, priority: int = 1, weight: int = 1) -> Proxy:
    return Proxy("socks5", name, 1080, priority=priority, weight=weight)


A, B, C = proxy("a.test", 2), proxy("b.test", 2), proxy("c.test")


def order(proxies, seed=1, resting=()) -> list[str]:
    found = in_order(proxies, Random(seed), lambda proxy: proxy in resting)
    return [each.host for each in found]


@pytest.mark.parametrize("seed", range(10))
def test_the_higher_priority_goes_first(seed):
    low, high, middle = proxy("low", 0), proxy("high", 9), proxy("middle", 5)
    assert order([low, high, middle], seed) == ["high", "middle", "low"]


def test_equals_go_in_the_order_of_chance():
    orders = {tuple(order([A, B, C], seed)) for seed in range(50)}
    assert orders == {("a.test", "b.test", "c.test"), ("b.test", "a.test", "c.test")}


def test_the_same_chance_gives_the_same_order():
    proxies = [proxy(str(number)) for number in range(10)]
    assert order(proxies, 7) == order(proxies, 7)


def test_weights_say_how_often_each_comes_first():
    heavy, light = proxy("heavy", weight=3), proxy("light", weight=1)
    rng = Random(1)
    first = Counter(in_order([light, heavy], rng, lambda _: False)[0].host for _ in range(4000))
    assert 2850 < first["heavy"] < 3150


def test_those_that_rest_come_last_whatever_their_priority():
    assert order([A, C], resting=[A]) == ["c.test", "a.test"]
    assert order([A, C], resting=[A, C]) == ["a.test", "c.test"]


proxies = st.lists(
    st.builds(proxy, st.sampled_from("abcd"), st.integers(0, 3), st.integers(1, 65535)), max_size=6
)


@given(proxies, st.integers(), st.sets(st.sampled_from("abcd")))
def test_each_proxy_comes_exactly_once(given_ones, seed, resting):
    found = in_order(given_ones, Random(seed), lambda proxy: proxy.host in resting)
    assert Counter(found) == Counter(given_ones)
    ranks = [(each.host in resting, -each.priority) for each in found]
    assert ranks == sorted(ranks)


def test_a_proxy_that_was_out_of_reach_rests_for_a_minute():
    now = [1000.0]
    memory = ProxyMemory(MemoryHints(clock=lambda: now[0]))
    assert not memory.is_resting(A)
    memory.rest(A)
    assert memory.is_resting(A)
    assert not memory.is_resting(B)
    now[0] += 60
    assert not memory.is_resting(A)


def test_without_hints_none_rests():
    memory = ProxyMemory()
    memory.rest(A)
    assert not memory.is_resting(A)


def test_no_login_is_kept_in_the_hints():
    seen = []

    class Hints(MemoryHints):
        def put(self, kind, key, value, *, seconds):
            seen.append((kind, key, value))

    ProxyMemory(Hints()).rest(Proxy.parse("socks5://me:s3cretW0rd@a.test"))
    assert seen == [("proxy", "socks5://a.test:1080", b"unreachable")]
