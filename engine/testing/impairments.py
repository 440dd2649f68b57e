"""What a link may do to packets besides holding them: lose them, or strip a SYN of its data.

A link (`engine.testing.link`) asks its impairments about every TCP segment, in order; the first
that does not let it pass decides.  An impairment is any callable that can be pickled, for a process
of its own asks it: a function of a module, an instance of a class of a module, a `functools.partial`
of those.  Knows no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import TypeAlias

from engine.testing.segment import Flags, Segment


class Direction(StrEnum):
    """Which way a packet goes."""

    #: From the near end to the far end.
    OUT = "out"
    #: From the far end to the near end.
    BACK = "back"


class Fate(StrEnum):
    """What becomes of a packet."""

    PASS = "pass"
    LOSE = "lose"
    #: The segment arrives without the octets it carried.
    STRIP = "strip"


Impairment: TypeAlias = Callable[[Direction, Segment], Fate]
Predicate: TypeAlias = Callable[[Direction, Segment], bool]


@dataclass(slots=True)
class Loss:
    """Loses segments at random, the same ones for the same seed and the same traffic.

    Attributes:
        probability: From 0 to 1.
        seed: Of the random numbers.

    Raises:
        ValueError: The probability is none.
    """

    probability: float
    seed: int = 0
    _random: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability {self.probability!r}: allowed is 0 to 1")
        self._random = Random(self.seed)

    def __call__(self, _direction: Direction, _segment: Segment) -> Fate:
        """Draw a number for the segment."""
        return Fate.LOSE if self._random.random() < self.probability else Fate.PASS


@dataclass(slots=True)
class When:
    """Does something to the segments that a predicate picks.

    Attributes:
        predicate: Picks them; it has to be picklable.
        fate: What is done to them.
        times: To how many of them; `None`: to all.
    """

    predicate: Predicate
    fate: Fate = Fate.LOSE
    times: int | None = None
    _done: int = field(default=0, init=False, repr=False)

    def __call__(self, direction: Direction, segment: Segment) -> Fate:
        """Ask the predicate, as long as there is something left to do."""
        if self._done == self.times or not self.predicate(direction, segment):
            return Fate.PASS
        self._done += 1
        return self.fate


def lose_syn_with_data(direction: Direction, segment: Segment) -> Fate:
    """Lose every SYN that carries data, as firewalls do that know no Fast Open (RFC 7413 §7.1)."""
    return Fate.LOSE if has_syn_data(direction, segment) else Fate.PASS


def strip_syn_data(direction: Direction, segment: Segment) -> Fate:
    """Take the data out of every SYN, as some middleboxes do; the cookie stays."""
    return Fate.STRIP if has_syn_data(direction, segment) else Fate.PASS


def has_syn_data(_direction: Direction, segment: Segment) -> bool:
    """Whether a segment is a SYN with data, whichever way it goes."""
    return Flags.SYN in segment.flags and bool(segment.payload)
