"""What a link does to segments besides holding them."""

from __future__ import annotations

import pickle

import pytest

from engine.testing.impairments import (
    Direction,
    Fate,
    Loss,
    When,
    has_syn_data,
    lose_syn_with_data,
    strip_syn_data,
)
from engine.testing.segment import Segment
from tests.testing.packets import ACK, CLIENT, FIN, SERVER, SYN

SYN_WITH_DATA = Segment(CLIENT, SERVER, SYN, 7, 0, b"EHLO x\r\n", b"12345678")
BARE_SYN = Segment(CLIENT, SERVER, SYN, 7, 0, b"", b"12345678")
DATA = Segment(CLIENT, SERVER, ACK, 8, 9, b"EHLO x\r\n")
LAST = Segment(CLIENT, SERVER, FIN | ACK, 16, 9)


def fates(impairment, segments):
    return [impairment(Direction.OUT, segment) for segment in segments]


def test_loss_hits_its_share():
    lost = fates(Loss(0.25, seed=1), [DATA] * 4000).count(Fate.LOSE)
    assert 900 < lost < 1100
    assert fates(Loss(0), [DATA] * 100) == [Fate.PASS] * 100
    assert fates(Loss(1), [DATA] * 100) == [Fate.LOSE] * 100


def test_the_same_seed_loses_the_same_segments():
    first, again, other = (fates(Loss(0.5, seed), [DATA] * 100) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_a_probability_that_is_none_is_refused(probability):
    with pytest.raises(ValueError, match=r"probability .*: allowed is 0 to 1"):
        Loss(probability)


@pytest.mark.parametrize(
    ("impairment", "fate"), [(lose_syn_with_data, Fate.LOSE), (strip_syn_data, Fate.STRIP)]
)
def test_a_syn_with_data_is_told_from_all_others(impairment, fate):
    expected = [fate, Fate.PASS, Fate.PASS, Fate.PASS]
    assert fates(impairment, [SYN_WITH_DATA, BARE_SYN, DATA, LAST]) == expected


def test_a_predicate_picks_segments():
    closing = When(is_last)
    assert fates(closing, [DATA, LAST, LAST]) == [Fate.PASS, Fate.LOSE, Fate.LOSE]
    assert closing(Direction.BACK, LAST) is Fate.PASS


def test_a_predicate_can_be_limited_to_the_first_few():
    once = When(has_syn_data, Fate.STRIP, times=1)
    expected = [Fate.PASS, Fate.STRIP, Fate.PASS]
    assert fates(once, [DATA, SYN_WITH_DATA, SYN_WITH_DATA]) == expected


@pytest.mark.parametrize("made", [Loss(0.5, 3), When(has_syn_data, times=1), strip_syn_data])
def test_an_impairment_can_travel_to_another_process(made):
    there = pickle.loads(pickle.dumps(made))
    segments = [SYN_WITH_DATA, DATA] * 10
    assert fates(there, segments) == fates(made, segments)


def is_last(direction, segment):
    return direction is Direction.OUT and FIN in segment.flags
