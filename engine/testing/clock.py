"""A wall clock that stands still until a test moves it; for whatever takes a `clock` argument."""

from __future__ import annotations


class FakeClock:
    """Call it for the time, as one would call `time.time`.

    It has nothing to do with Trio's clock: deadlines and sleeps follow `trio.testing.MockClock`.

    Attributes:
        time: Seconds since the epoch; assign to it to set the clock, backwards too.
    """

    __slots__ = ("time",)

    def __init__(self, time: float = 1_700_000_000.0) -> None:
        self.time = time

    def __call__(self) -> float:
        """Return the time that was set."""
        return self.time

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds`."""
        self.time += seconds
