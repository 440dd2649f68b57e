from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.delivery.walk import Walk
from engine.route import Candidate, HostFailure


def hosts(text):
    """`10a 10b 20c`: preference and the last part of an IP address; `!` marks one without."""
    steps = []
    for item in text.split():
        preference, name = int(item[:2]), item[2:]
        if name.endswith("!"):
            steps.append(HostFailure(name[:-1], preference, True, "no address"))
        else:
            steps.append(Candidate("mx.test", f"2001:db8::{name}", None, preference))
    return steps


def walk_over(text, *, limit=0, hard_limit=0):
    steps = hosts(text)
    return Walk(
        [step for step in steps if isinstance(step, Candidate)],
        [step for step in steps if isinstance(step, HostFailure)],
        limit=limit,
        hard_limit=hard_limit,
    )


def took(walk):
    """Walk to the end."""
    steps = []
    while (step := walk.peek()) is not None:
        walk.take(step)
        steps.append(step)
    return steps


@pytest.mark.parametrize(
    ("route", "limit", "hard_limit", "expected"),
    [
        ("", 5, 50, ""),
        ("10a", 5, 50, "10a"),
        ("10a 10b 20c", 5, 50, "10a 10b 20c"),
        # By preference, and as they came among equals.
        ("20c 10b 10a", 5, 50, "10b 10a 20c"),
        # At the limit: the first of each further preference.
        ("10a 10b 10c 20d 20e 30f 30a", 2, 50, "10a 10b 20d 30f"),
        ("10a 10b 10c 10d", 1, 50, "10a"),
        ("10a 20b 30c", 1, 50, "10a 20b 30c"),
        # The limit falls between two preferences.
        ("10a 10b 20c 20d", 2, 50, "10a 10b 20c"),
        ("10a 10b 20c 20d", 3, 50, "10a 10b 20c"),
        # The hard limit ends it all.
        ("10a 10b 10c 20d 20e 30f", 2, 3, "10a 10b 20d"),
        ("10a 10b 10c", 5, 2, "10a 10b"),
        ("10a 10b", 5, 1, "10a"),
        # 0 is no limit.
        ("10a 10b 10c 20d 20e 30f", 0, 0, "10a 10b 10c 20d 20e 30f"),
        ("10a 10b 10c 20d 20e 30f", 2, 0, "10a 10b 20d 30f"),
        ("10a 10b 10c 20d 20e 30f", 0, 4, "10a 10b 10c 20d"),
        # Hosts without an address come up with their preference, behind their equals.
        ("10a 10x! 20c 05y!", 5, 50, "05y! 10a 10x! 20c"),
        # They are no addresses that were tried.
        ("10x! 10y! 20a 20b 20c", 2, 2, "10x! 10y! 20a 20b"),
        ("10a 20x! 30b 30c", 1, 50, "10a 20x! 30b"),
        ("10x! 20y!", 1, 1, "10x! 20y!"),
        ("10a 10b 10x! 20c", 1, 50, "10a 20c"),
    ],
)
def test_who_is_tried_and_in_what_order(route, limit, hard_limit, expected):
    assert took(walk_over(route, limit=limit, hard_limit=hard_limit)) == hosts(expected)


def test_looking_at_the_next_step_takes_nothing():
    walk = walk_over("10a 10b 20c", limit=1, hard_limit=50)
    (a,) = hosts("10a")
    assert walk.peek() == walk.peek() == a
    walk.take(a)
    assert walk.peek() == walk.peek() == hosts("20c")[0]


def test_an_equal_of_the_next_step_is_accepted_in_its_place():
    walk = walk_over("10a 10b 20c", limit=5, hard_limit=50)
    a, b, c = hosts("10a 10b 20c")
    assert walk.accepts(a)
    assert walk.accepts(b)
    assert not walk.accepts(c)
    walk.take(b)
    assert not walk.accepts(b)
    assert took(walk) == [a, c]


def test_a_stranger_is_not_accepted():
    walk = walk_over("10a", limit=5, hard_limit=50)
    assert not walk.accepts(Candidate("other.test", "192.0.2.1", None, 10))
    # The port counts: another port is another host.
    assert not walk.accepts(Candidate("mx.test", "2001:db8::a", 2525, 10))


def test_at_the_limit_any_of_the_next_preference_is_accepted_and_one_only():
    walk = walk_over("10a 10b 20c 20d 30e", limit=1, hard_limit=50)
    a, b, c, d, e = hosts("10a 10b 20c 20d 30e")
    walk.take(a)
    assert not walk.accepts(b)
    assert walk.accepts(c)
    assert walk.accepts(d)
    walk.take(d)
    assert not walk.accepts(c)
    assert walk.accepts(e)


def test_at_the_hard_limit_nobody_is_accepted():
    walk = walk_over("10a 10b", limit=5, hard_limit=1)
    a, b = hosts("10a 10b")
    walk.take(a)
    assert walk.peek() is None
    assert not walk.accepts(b)


def test_a_host_without_address_keeps_its_equals_from_nothing():
    walk = walk_over("10x! 20a", limit=5, hard_limit=50)
    x, a = hosts("10x! 20a")
    # A better host comes first, even though it is only to be reported.
    assert not walk.accepts(a)
    walk.take(x)
    assert walk.accepts(a)


def test_a_host_that_was_tried_out_of_turn_does_not_come_up_again():
    walk = walk_over("10a 10b 20c", limit=5, hard_limit=2)
    a, b, c = hosts("10a 10b 20c")
    walk.strike(b)
    walk.strike(b)  # once more on a new connection: it counts as one
    assert not walk.accepts(b)
    assert walk.accepts(a)
    walk.strike(Candidate("other.test", "192.0.2.1", None, 10))  # not of this walk
    assert walk.peek() == a
    walk.take(a)
    assert walk.peek() is None  # two were tried
    assert not walk.accepts(c)


@given(
    st.lists(st.tuples(st.sampled_from([10, 20, 30]), st.booleans()), max_size=12),
    st.integers(0, 6),
    st.integers(0, 8),
)
def test_a_walk_ends_within_its_limits_and_never_goes_back(shape, limit, hard_limit):
    route = " ".join(f"{p}{i:x}{'!' if bad else ''}" for i, (p, bad) in enumerate(shape))
    steps = took(walk_over(route, limit=limit, hard_limit=hard_limit))
    tried = [step for step in steps if isinstance(step, Candidate)]
    preferences = [step.preference for step in tried]
    assert preferences == sorted(preferences)
    assert len(set(steps)) == len(steps)
    assert len(tried) <= (hard_limit or len(shape))
    if limit:
        beyond = preferences[limit - 1 :]
        assert len(set(beyond)) == len(beyond)
    if not hard_limit:
        # A backup host is reached however many addresses the best ones have.
        assert set(preferences) == {p for p, bad in shape if not bad}


def test_a_static_list_ends_at_the_limit_for_it_has_no_preferences_to_jump_to():
    listed = [Candidate(f"h{place}.test", f"192.0.2.{place}", 25, place) for place in range(5)]

    walk = Walk(listed, limit=2, hard_limit=50, is_static=True)

    assert took(walk) == listed[:2]


MX1 = Candidate("mx1.test", "192.0.2.1", None, 0)
MX2 = Candidate("mx2.test", "192.0.2.1", None, 1)
MX3 = Candidate("mx3.test", "192.0.2.1", 2525, 1)


def test_an_address_under_another_name_is_passed_over():
    assert took(Walk([MX1, MX2, MX3], limit=5, hard_limit=50)) == [MX1, MX3]


def test_an_address_is_tried_under_another_name_where_the_name_was_to_blame():
    walk = Walk([MX1, MX2, MX3], limit=5, hard_limit=50)

    walk.take(MX1)
    walk.blame_name(MX1)
    walk.blame_name(MX1)

    assert took(walk) == [MX3, MX2]


def test_what_was_given_back_still_stands_for_its_other_names():
    walk = Walk([MX1, MX2], limit=5, hard_limit=50)

    walk.take(MX1)
    walk.give_back(MX1)
    assert took(walk) == [MX1]
    walk.blame_name(MX1)

    assert took(walk) == [MX2]


def test_unix_sockets_are_not_one_place():
    sockets = [Candidate(f"unix:/run/{name}", None) for name in "ab"]

    assert took(Walk(sockets, limit=5, hard_limit=50)) == sockets
