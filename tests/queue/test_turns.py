from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine.queue.turns import Share, Turns, allowance, eligible_at


def serve(turns, lanes, rounds, jobs=None):
    """Serve one recipient of the lane with the lowest turn, and let it queue up again."""
    served = Counter()
    for _ in range(rounds):
        share = min(lanes, key=lanes.get)
        turns.serve(share.priority, lanes[share])
        served[share] += 1
        lanes[share] = turns.place(share, 1, (jobs or {}).get(share, 1))
    return served


def line(turns, *shares, jobs=None):
    return {share: turns.place(share, 1, (jobs or {}).get(share, 1)) for share in shares}


def test_equals_take_turns():
    turns, a, b = Turns(), Share(0, "a", ""), Share(0, "b", "")

    served = serve(turns, line(turns, a, b), 100)

    assert abs(served[a] - served[b]) <= 1


def test_weights_make_shares():
    turns, a, b = Turns(weights={("a", ""): 3.0}), Share(0, "a", ""), Share(0, "b", "")

    served = serve(turns, line(turns, a, b), 400)

    assert abs(served[a] - 3 * served[b]) <= 4


def test_a_tenant_with_many_jobs_has_one_share():
    many = [Share(0, "many", f"j{n}") for n in range(4)]
    few = Share(0, "few", "j")
    turns, jobs = Turns(), dict.fromkeys(many, 4)

    served = serve(turns, line(turns, *many, few, jobs=jobs), 800, jobs)

    assert abs(served[few] - 400) <= 8
    assert max(served[share] for share in many) - min(served[share] for share in many) <= 2


def test_who_was_away_gains_nothing_by_it():
    turns, a, b = Turns(), Share(0, "a", ""), Share(0, "b", "")
    lanes = line(turns, a)
    serve(turns, lanes, 1000)

    lanes |= line(turns, b)
    served = serve(turns, lanes, 100)

    assert abs(served[a] - served[b]) <= 2


def test_who_comes_with_much_waits_for_its_own():
    turns, large, small = Turns(), Share(0, "large", ""), Share(0, "small", "")
    places = [turns.place(large, 1) for _ in range(1000)]
    turns.serve(0, places[9])

    assert turns.place(small, 1) < places[11]


def test_what_was_taken_is_paid_for():
    turns, a, b = Turns(), Share(0, "a", ""), Share(0, "b", "")
    line(turns, a, b)

    assert turns.place(a, 10) == turns.place(b, 1) + 9


def test_priorities_have_lines_of_their_own():
    turns = Turns()
    serve(turns, line(turns, Share(5, "a", "")), 1000)

    assert turns.place(Share(0, "a", ""), 1) == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=50),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 100)),
)
def test_turns_of_a_job_only_grow(steps, weights):
    turns = Turns(weights={(tenant, ""): weight for tenant, weight in weights.items()})
    last = {}
    for number, cost in steps:
        share = Share(0, "abcd"[number], "")
        turn = turns.place(share, cost)
        assert turn > last.get(share, 0.0)
        last[share] = turn


# -- back-offs and seats ------------------------------------------------------------------------


def test_what_is_due_is_eligible_when_its_site_is_not_backed_off():
    assert eligible_at(100, 0, 50) == 100


def test_a_back_off_keeps_what_is_due_until_it_ends():
    assert eligible_at(100, 130, 50) == 130
    assert eligible_at(100, 90, 50) == 100


def test_a_back_off_keeps_nothing_for_longer_than_it_may():
    assert eligible_at(100, 10_000, 50) == 150


def test_one_site_alone_gets_half_of_the_seats():
    out, seats = 0, 1200
    while found := allowance(out, seats, 10_000):
        out, seats = out + found, seats - found

    assert 599 <= out <= 600


def test_many_clogged_sites_leave_seats():
    seats, left = 1000, []
    for _ in range(12):
        out = 0
        while found := allowance(out, seats, 200):
            out, seats = out + found, seats - found
        left.append(seats)

    assert left[:5] == [800, 600, 400, 200, 100]
    assert left[9] > 0


def test_a_site_without_any_gets_one_as_long_as_there_is_a_seat():
    assert allowance(0, 1, 10) == 1
    assert allowance(0, 0, 10) == 0
    assert allowance(1, 1, 10) == 0


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 500))
def test_nobody_gets_more_than_there_is(out, seats, site_seats):
    found = allowance(out, seats, site_seats)

    assert 0 <= found <= seats
    assert found == 0 or out + found <= site_seats
