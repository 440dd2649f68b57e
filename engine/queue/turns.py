"""Whose turn it is: fair shares of the seats among tenants, and among the jobs of a tenant.  Knows no I/O.

Used by every store.  Lanes stand in a line for each priority; a lane's place is a *turn*, a number,
and the lowest is served next.  This is self-clocked fair queueing (Golestani, INFOCOM 1994): the
clock of a line is the turn served last, and a job's next turn lies so far behind its last one, or
behind the clock if that is later, as what it takes costs it.  Whoever was away gains nothing by it,
and whoever comes with a million recipients waits for its own, not others for it.

The cost of a recipient is 1 divided by the weights of its tenant and its job, times the number of
jobs that its tenant has in the line: so tenants share evenly whatever number of jobs each has.
That number changes while lanes wait, so between tenants with many jobs shares are nearly even.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Share(NamedTuple):
    """Whose share of a line something is part of."""

    priority: int
    tenant: str
    job: str


@dataclass(slots=True)
class Turns:
    """The clocks of the lines, as far as they are known here.

    Attributes:
        clocks: The turn served last, by priority; one that is missing stands at 0.0.
        shares: The last turn of each job; one that is missing lies behind the clock.
        weights: The product of the weights of tenant and job, where it is not 1.0.
    """

    clocks: dict[int, float] = field(default_factory=dict)
    shares: dict[Share, float] = field(default_factory=dict)
    weights: dict[tuple[str, str], float] = field(default_factory=dict)

    def place(self, share: Share, cost: int, jobs: int = 1) -> float:
        """Return the turn of a lane that takes its place at the end of its job's.

        Args:
            share: Whose lane it is.
            cost: How many recipients it just got, 1 for one that is new in the line.
            jobs: How many jobs its tenant has in the line.
        """
        start = max(self.clocks.get(share.priority, 0.0), self.shares.get(share, 0.0))
        weight = self.weights.get((share.tenant, share.job), 1.0)
        turn = start + cost * max(jobs, 1) / weight
        self.shares[share] = turn
        return turn

    def serve(self, priority: int, turn: float) -> None:
        """Move the clock of a line on to the turn that is served."""
        if turn > self.clocks.get(priority, 0.0):
            self.clocks[priority] = turn


def eligible_at(due: int, not_before: int, overdue: int) -> int:
    """Return when what is due first in a lane may be leased; all times in one unit.

    Args:
        due: When it is due.
        not_before: Until when its site is backed off.
        overdue: For how long that may keep what is due.
    """
    return max(due, min(not_before, due + overdue))


def allowance(out: int, seats: int, site_seats: int) -> int:
    """Return how many recipients of a site may be leased.

    A site may have as many out as there are free seats, so the fewer are free the fewer it may
    have: a dynamic threshold (Choudhury and Hahne, IEEE/ACM Transactions on Networking 1998).  One
    site alone gets half the seats, and each that is clogged as well half of the rest.

    Args:
        out: How many of it are out.
        seats: How many seats are free.
        site_seats: How many may be out in any case.
    """
    room = (seats - out) // 2
    if out == 0 and seats > 0:
        room = max(room, 1)
    return max(0, min(room, site_seats - out, seats))
