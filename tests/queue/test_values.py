from __future__ import annotations

import pytest

from engine.queue.values import Result, check_weight, to_milliseconds
from tests.queue.mail import START


def test_results_say_what_becomes_of_the_recipient():
    assert [r.value for r in Result if r.is_final] == ["delivered", "failed"]
    assert [r.value for r in Result if r.is_queued] == ["deferred", "released"]


def test_times_are_kept_in_milliseconds():
    assert to_milliseconds(START + 0.0014) == 1_700_000_000_001
    assert to_milliseconds(0.0) == 0


def test_weights_are_checked():
    check_weight(0.001)
    with pytest.raises(ValueError, match="weight -1"):
        check_weight(-1)
