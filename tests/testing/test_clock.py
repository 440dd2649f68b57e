from __future__ import annotations

from engine.testing.clock import FakeClock


def test_the_fake_clock_moves_only_when_told():
    clock = FakeClock(100.0)
    assert clock() == clock() == 100.0
    clock.advance(2.5)
    assert clock() == 102.5
    clock.time = 50.0
    assert clock() == 50.0
