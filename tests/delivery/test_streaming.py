from __future__ import annotations

import pytest

from engine.delivery.streaming import MOST, Depth


def depth(setting, *, is_known=True, is_possible=True):
    made = Depth(setting, is_known=is_known, is_possible=is_possible)
    assert made.limit == 1
    made.delivered()
    return made


def test_every_connection_begins_in_lockstep():
    assert Depth(8, is_known=True, is_possible=True).limit == 1


@pytest.mark.parametrize("is_known", [True, False])
def test_a_number_streams_to_any_host(is_known):
    assert depth(8, is_known=is_known).limit == 8


def test_one_is_lockstep():
    assert depth(1).limit == 1


@pytest.mark.parametrize(("is_known", "limit"), [(True, MOST), (False, 1)])
def test_auto_streams_to_servers_that_are_known_to_take_it(is_known, limit):
    assert depth("auto", is_known=is_known).limit == limit


@pytest.mark.parametrize("setting", ["auto", 8])
def test_without_pipelining_nothing_is_streamed(setting):
    assert depth(setting, is_possible=False).limit == 1


def test_a_server_that_refuses_is_not_asked_again():
    made = depth(8)
    made.refused()
    made.delivered()

    assert made.limit == 1
