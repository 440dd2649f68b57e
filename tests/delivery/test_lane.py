from __future__ import annotations

from engine.delivery.attempt import Attempt
from engine.delivery.lane import Lane, Line
from engine.route import Candidate
from engine.security import MessageTls, Stance
from tests.delivery.helpers import message

HOST = Candidate("mx.test", "192.0.2.1")
ONE, TWO = (Lane(MessageTls.BY_POLICY, Stance(), domain) for domain in ("one.test", "two.test"))


def attempt(lane: Lane, sender: str = "s@me.test") -> Attempt:
    made = Attempt(message("a@x.test", sender=sender), (), lambda _: None, 0.0)
    made.lane = lane
    return made


def test_a_line_carries_its_own_lane_without_asking():
    def nobody(_lane: Lane) -> bool:
        raise AssertionError

    assert Line(HOST, ONE, nobody).carries(attempt(ONE))


def test_another_lane_is_carried_where_the_same_is_demanded_and_that_is_asked_once():
    asked = []

    def agrees(lane: Lane) -> bool:
        asked.append(lane.domain)
        return lane is TWO

    line = Line(HOST, ONE, agrees)
    other = Lane(MessageTls.REQUIRED, Stance(), "three.test")

    assert [line.carries(attempt(TWO)) for _ in range(3)] == [True] * 3
    assert [line.carries(attempt(other)) for _ in range(3)] == [False] * 3
    assert asked == ["two.test", "three.test"]


def test_what_is_not_known_is_asked_again():
    answers = iter([None, True])
    line = Line(HOST, ONE, lambda _: next(answers))

    assert not line.carries(attempt(TWO))
    assert line.carries(attempt(TWO))


def test_a_message_that_would_have_come_from_elsewhere_is_not_carried():
    line = Line(HOST, ONE, lambda _: True, lambda it: str(it.message.reverse_path) != "b@me.test")

    assert line.carries(attempt(ONE))
    assert not line.carries(attempt(ONE, sender="b@me.test"))
