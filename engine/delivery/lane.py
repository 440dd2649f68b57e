"""What keeps messages of one site apart: the TLS that each may and must go over.  Knows no I/O.

Policies belong to a receiver's domain and to a message, connections to a site.  So each attempt of a
pool stands in a lane; a `Line`, that is an open connection, was opened for one lane and serves
another one only where the same is demanded of its host, and a message only where it would have been
connected from the same address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from engine.security import MessageTls, Stance

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.delivery.attempt import Attempt
    from engine.route import Candidate, Route
    from engine.security import HostRefused, TlsDemand
    from engine.settings import Settings


@dataclass(frozen=True, eq=False)
class Lane:
    """Attempts whose hosts must all show the same; there is one object for each lane of a pool.

    Attributes:
        message: What the messages ask for.
        stance: What their domains ask for.
        domain: One of the domains, to ask the policies with.
    """

    message: MessageTls
    stance: Stance
    domain: str


#: Where there is no pool, there is one lane.
ANY_LANE: Final = Lane(MessageTls.BY_POLICY, Stance(), "")


class PoliciesLike(Protocol):
    """Who says what TLS a host must show; `engine.routing.policy.Policies` does."""

    def known(
        self,
        domain: str,
        route: Route,
        candidate: Candidate,
        port: int,
        settings: Settings,
        message: MessageTls = MessageTls.BY_POLICY,
    ) -> TlsDemand | HostRefused | None:
        """Return what is known already, `None` when `demand` must be asked."""
        ...

    async def demand(
        self,
        domain: str,
        route: Route,
        candidate: Candidate,
        port: int,
        settings: Settings,
        message: MessageTls = MessageTls.BY_POLICY,
    ) -> TlsDemand | HostRefused:
        """Return what TLS a host must show, or why it must not be used."""
        ...


class Line:
    """What a connection can carry.

    Attributes:
        candidate: Where it leads.
        lane: Which lane it was opened for.
        has_served: Whether the host has answered for mail over it, and went on.
    """

    __slots__ = ("_agrees", "_others", "_suits", "candidate", "has_served", "lane")

    def __init__(
        self,
        candidate: Candidate,
        lane: Lane,
        agrees: Callable[[Lane], bool | None],
        suits: Callable[[Attempt], bool] | None = None,
    ) -> None:
        """Make one.

        Args:
            candidate: Where it leads.
            lane: Which lane it was opened for.
            agrees: Says whether the same is demanded of the host for another lane; `None`: that
                is not known yet.
            suits: Says whether an attempt would have been connected from the same address;
                `None`: all would.
        """
        self.candidate = candidate
        self.lane = lane
        self.has_served = False
        self._suits = suits
        self._agrees = agrees
        self._others: dict[Lane, bool] = {}

    def carries(self, attempt: Attempt) -> bool:
        """Whether an attempt may go over it."""
        lane = attempt.lane
        if lane is not self.lane and not self._carries_lane(lane):
            return False
        return self._suits is None or self._suits(attempt)

    def _carries_lane(self, lane: Lane) -> bool:
        known = self._others.get(lane)
        if known is None:
            known = self._agrees(lane)
            if known is None:
                return False
            self._others[lane] = known
        return known
