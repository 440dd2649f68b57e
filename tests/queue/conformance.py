"""What every store of hints does, whatever it is made of; run by `test_hints` over each of them.

A check takes the hints, which hold `MAX_ENTRIES` entries, and the clock they read.
"""

from __future__ import annotations

import math

from engine.queue.hints import MAX_KEY, MAX_KIND, MAX_SECONDS, MAX_VALUE

MAX_ENTRIES = 4


def a_value_is_returned_as_it_was_put(hints, clock):
    hints.put("ehlo", "mx.test", b"\x00\xff\r\n", seconds=60)

    assert hints.get("ehlo", "mx.test") == b"\x00\xff\r\n"


def an_empty_value_is_a_value(hints, clock):
    hints.put("ehlo", "mx.test", b"", seconds=60)

    assert hints.get("ehlo", "mx.test") == b""


def what_was_never_put_is_none(hints, clock):
    assert hints.get("ehlo", "mx.test") is None


def kinds_and_keys_are_apart(hints, clock):
    hints.put("ehlo", "mx.test", b"1", seconds=60)
    hints.put("tls", "mx.test", b"2", seconds=60)
    hints.put("ehlo", "MX.test", b"3", seconds=60)

    assert hints.get("ehlo", "mx.test") == b"1"
    assert hints.get("tls", "mx.test") == b"2"
    assert hints.get("ehlo", "MX.test") == b"3"


def a_second_put_replaces_value_and_expiry(hints, clock):
    hints.put("ehlo", "mx.test", b"1", seconds=60)
    hints.put("ehlo", "mx.test", b"2", seconds=10)

    assert hints.get("ehlo", "mx.test") == b"2"
    clock.advance(10)
    assert hints.get("ehlo", "mx.test") is None


def a_value_holds_for_its_seconds_and_no_longer(hints, clock):
    hints.put("ehlo", "mx.test", b"1", seconds=60)

    clock.advance(59.9)
    assert hints.get("ehlo", "mx.test") == b"1"
    clock.advance(0.1)
    assert hints.get("ehlo", "mx.test") is None


def nothing_holds_for_longer_than_the_most(hints, clock):
    hints.put("policy", "a.test", b"1", seconds=math.inf)
    hints.put("policy", "b.test", b"1", seconds=10 * MAX_SECONDS)

    clock.advance(MAX_SECONDS - 1)
    assert hints.get("policy", "a.test") == hints.get("policy", "b.test") == b"1"
    clock.advance(1)
    assert hints.get("policy", "a.test") is hints.get("policy", "b.test") is None


def no_time_left_is_to_forget(hints, clock):
    for seconds in (0, -1, -math.inf, math.nan):
        hints.put("ehlo", "mx.test", b"1", seconds=60)
        hints.put("ehlo", "mx.test", b"2", seconds=seconds)

        assert hints.get("ehlo", "mx.test") is None


def what_is_forgotten_is_gone(hints, clock):
    hints.put("ehlo", "mx.test", b"1", seconds=60)
    hints.forget("ehlo", "mx.test")

    assert hints.get("ehlo", "mx.test") is None


def to_forget_what_is_not_there_is_no_error(hints, clock):
    hints.put("ehlo", "mx.test", b"1", seconds=60)
    hints.forget("tls", "mx.test")

    assert hints.get("ehlo", "mx.test") == b"1"


def the_largest_hint_fits(hints, clock):
    kind, key, value = "k" * MAX_KIND, "\N{SNOWMAN}" * MAX_KEY, b"v" * MAX_VALUE
    hints.put(kind, key, value, seconds=60)

    assert hints.get(kind, key) == value


def a_value_too_large_leaves_nothing_outdated(hints, clock):
    hints.put("policy", "a.test", b"1", seconds=60)
    hints.put("policy", "a.test", b"v" * (MAX_VALUE + 1), seconds=60)

    assert hints.get("policy", "a.test") is None


def a_kind_or_a_key_too_long_is_not_kept(hints, clock):
    hints.put("k" * (MAX_KIND + 1), "a.test", b"1", seconds=60)
    hints.put("policy", "k" * (MAX_KEY + 1), b"1", seconds=60)

    assert hints.get("k" * (MAX_KIND + 1), "a.test") is None
    assert hints.get("policy", "k" * (MAX_KEY + 1)) is None


def a_key_that_is_no_unicode_is_not_kept(hints, clock):
    hints.put("policy", "\udcff.test", b"1", seconds=60)
    hints.forget("policy", "\udcff.test")

    assert hints.get("policy", "\udcff.test") is None


def the_least_recently_used_makes_room(hints, clock):
    for number in range(MAX_ENTRIES):
        hints.put("ehlo", f"mx{number}.test", b"1", seconds=60)
    assert hints.get("ehlo", "mx0.test") == b"1"
    hints.put("ehlo", "new.test", b"1", seconds=60)

    assert hints.get("ehlo", "mx0.test") == b"1"
    assert hints.get("ehlo", "new.test") == b"1"
    assert hints.get("ehlo", "mx1.test") is None


CHECKS = (
    a_value_is_returned_as_it_was_put,
    an_empty_value_is_a_value,
    what_was_never_put_is_none,
    kinds_and_keys_are_apart,
    a_second_put_replaces_value_and_expiry,
    a_value_holds_for_its_seconds_and_no_longer,
    nothing_holds_for_longer_than_the_most,
    no_time_left_is_to_forget,
    what_is_forgotten_is_gone,
    to_forget_what_is_not_there_is_no_error,
    the_largest_hint_fits,
    a_value_too_large_leaves_nothing_outdated,
    a_kind_or_a_key_too_long_is_not_kept,
    a_key_that_is_no_unicode_is_not_kept,
    the_least_recently_used_makes_room,
)
