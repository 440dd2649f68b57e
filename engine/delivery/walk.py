"""The walk over a route's hosts: who is tried next, and when it ends.  Knows no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.route import Candidate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.route import HostFailure


class Walk:
    """Where one message stands among the candidates of its route.

    The rule is the reference client's: `limit` addresses are tried; from then on only the first
    address of each further MX preference, so that a backup host is reached however many addresses
    the best hosts have; `hard_limit` addresses in all.  A static list of hosts has no preferences
    to jump to, so `limit` ends it.  An address that is met again under another name is passed over,
    except where it was the name that failed.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        failures: Sequence[HostFailure] = (),
        *,
        limit: int,
        hard_limit: int,
        is_static: bool = False,
    ) -> None:
        """Begin a walk.

        Args:
            candidates: In the order to try them.
            failures: Hosts without an address; each comes up when its preference does.
            limit: `max_hosts_tried`, 0 for no limit.
            hard_limit: `max_hosts_tried_hard`, 0 for no limit.
            is_static: The order is a list's, and no MX preference stands behind it.
        """
        # sorted() is stable: the order among equals stays, and failures come behind their equals.
        steps: list[Candidate | HostFailure] = [*candidates, *failures]
        self._steps = sorted(steps, key=lambda step: step.preference)
        self._limit = limit or len(self._steps)
        self._hard_limit = hard_limit or len(self._steps)
        if is_static:
            self._hard_limit = min(self._hard_limit, self._limit)
        self._tried = 0
        self._last_preference: int | None = None
        self._passed_over: dict[Candidate, list[Candidate]] = {}

    def peek(self) -> Candidate | HostFailure | None:
        """Return who is next, `None` at the end of the walk."""
        if self._tried >= self._hard_limit:
            return None
        if self._tried >= self._limit:
            while self._steps and self._steps[0].preference == self._last_preference:
                del self._steps[0]
        return self._steps[0] if self._steps else None

    def accepts(self, candidate: Candidate) -> bool:
        """Whether this candidate is as good a next step as any: not tried, of the best preference."""
        step = self.peek()
        return (
            step is not None
            and step.preference == candidate.preference
            and candidate in self._steps
        )

    def has_equals(self, candidate: Candidate) -> bool:
        """Whether others of its preference may be tried at the same time."""
        return self.rival_of(candidate) is not None

    def rival_of(self, candidate: Candidate) -> Candidate | None:
        """Return who of the same preference may be tried beside it, if anybody.

        The other address family first: where one is broken, all its addresses are (RFC 8305 §4).
        """
        step = self.peek()
        if not isinstance(step, Candidate) or step.preference != candidate.preference:
            return None
        for other in self._steps:
            if (
                isinstance(other, Candidate)
                and other.preference == candidate.preference
                and other.is_ipv6 is not candidate.is_ipv6
            ):
                return other
        return step

    def give_back(self, candidate: Candidate) -> None:
        """Account for a candidate that was tried and neither answered nor failed."""
        self._steps.append(candidate)
        self._steps.sort(key=lambda step: step.preference)
        self._tried -= 1

    def strike(self, candidate: Candidate) -> None:
        """Account for a candidate that was tried out of turn, or is tried once more."""
        if candidate in self._steps:
            self.take(candidate)

    def take(self, step: Candidate | HostFailure) -> None:
        """Account for a step that is being tried."""
        self._steps.remove(step)
        if isinstance(step, Candidate):
            self._tried += 1
            self._last_preference = step.preference
            self._pass_over(step)

    def _pass_over(self, candidate: Candidate) -> None:
        place = candidate.address, candidate.port
        others = [
            other
            for other in self._steps
            if isinstance(other, Candidate)
            and (other.address, other.port) == place
            and other.host != candidate.host
            and other.address is not None
        ]
        if others:
            self._steps = [step for step in self._steps if step not in others]
            self._passed_over.setdefault(candidate, []).extend(others)

    def blame_name(self, candidate: Candidate) -> None:
        """Account for a candidate that failed for its name: its address may do under another one.

        Policies and certificates are a name's.
        """
        self._steps += self._passed_over.pop(candidate, ())
        self._steps.sort(key=lambda step: step.preference)
