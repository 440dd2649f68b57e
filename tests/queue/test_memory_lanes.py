from __future__ import annotations

from engine.queue.memory_lanes import LaneKey, Lanes, Waiting
from engine.queue.turns import Share
from engine.queue.values import SiteState

MAIL = Share(0, "", "")


def lanes_with(*waiting, overdue=50):
    lanes = Lanes(overdue)
    for number, (site, due) in enumerate(waiting):
        lanes.put(LaneKey(site, MAIL), Waiting(due, number))
    return lanes


def taken(lanes, now, seats=100, site_seats=100):
    lanes.line_up(now)
    return [number for number, _ in lanes.harvest(now, seats, site_seats)]


def test_lanes_give_what_is_due_and_remember_when_the_rest_is():
    lanes = lanes_with(("a", 10), ("a", 30), ("b", 20))

    assert taken(lanes, 20) == [0, 2]
    assert lanes.first_due() == 30
    assert taken(lanes, 29) == []
    assert taken(lanes, 30) == [1]
    assert lanes.first_due() is None
    assert lanes.out == {"a": 2, "b": 1}


def test_who_was_taken_out_is_not_given():
    lanes = lanes_with(("a", 10), ("a", 20))
    lanes.remove(0)

    assert lanes.first_due() == 20
    assert taken(lanes, 10) == []
    assert taken(lanes, 20) == [1]
    lanes.put(LaneKey("a", MAIL), Waiting(30, 0))
    lanes.put(LaneKey("a", MAIL), Waiting(25, 0))  # anew, and earlier
    assert taken(lanes, 25) == [0]
    assert taken(lanes, 30) == []


def test_a_lane_in_the_line_whose_site_is_full_stays_there():
    lanes = lanes_with(("a", 1), ("a", 1), ("b", 1))

    assert taken(lanes, 1, site_seats=1) == [0, 2]
    assert lanes.is_anybody_in_line()
    lanes.out["a"] -= 1
    assert taken(lanes, 1, site_seats=1) == [1]
    assert not lanes.is_anybody_in_line()


def test_sites_that_are_backed_off_step_aside_until_then():
    lanes = lanes_with(("a", 1), ("a", 1))
    lanes.line_up(1)
    lanes.note_site(SiteState(name="a", not_before=0.040))

    assert taken(lanes, 39) == []
    assert lanes.first_due() == 40
    assert taken(lanes, 40) == [0, 1]
    lanes.note_site(SiteState(name="a"))
    assert lanes.sites == {}


def test_what_moves_to_another_site_waits_there():
    lanes = lanes_with(("a", 1), ("a", 9), ("b", 1))
    assert taken(lanes, 1, seats=1) == [0]
    lanes.move("a", "b")

    assert lanes.out == {"b": 1}
    assert sorted(taken(lanes, 9)) == [1, 2]
    assert lanes.out["b"] == 3
