from __future__ import annotations

import pytest

from engine.delivery.streaming import MOST, Depth


def depth(setting, *, is_known=True, round_trip=0.05, is_possible=True):
    made = Depth(setting, is_known=is_known, round_trip=round_trip, is_possible=is_possible)
    assert made.limit == 1
    made.delivered()
    return made


def test_every_connection_begins_in_lockstep():
    assert Depth(8, is_known=True, round_trip=0.05, is_possible=True).limit == 1


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("round_trip", [None, 0.0001, 0.2])
def test_a_number_streams_to_any_host_over_any_link(is_known, round_trip):
    made = depth(8, is_known=is_known, round_trip=round_trip)

    assert made.limit == 8


def test_one_is_lockstep():
    assert depth(1).limit == 1


@pytest.mark.parametrize(
    ("is_known", "round_trip", "may_stream"),
    [
        (True, 0.05, True),
        (True, 0.001, True),
        (True, None, True),
        (True, 0.0009, False),
        (False, 0.05, False),
        (False, None, False),
    ],
)
def test_auto_streams_to_servers_that_take_it_over_links_that_are_worth_it(
    is_known, round_trip, may_stream
):
    made = depth("auto", is_known=is_known, round_trip=round_trip)

    assert made.limit == (MOST if may_stream else 1)


@pytest.mark.parametrize("setting", ["auto", 8])
def test_without_pipelining_nothing_is_streamed(setting):
    assert depth(setting, is_possible=False).limit == 1


def test_a_server_that_refuses_is_not_asked_again():
    made = depth(8)
    made.refused()
    made.delivered()

    assert made.limit == 1
