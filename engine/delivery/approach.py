"""What stands before a connection: whether a host may be used, from where, and what TLS it must show.

Called by delivery tasks; asks the policies and whoever has a veto.  It opens nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from engine.delivery.lane import Line
from engine.delivery.verdict import Verdict
from engine.net.errors import ConnectFailed
from engine.net.port import port_for
from engine.outcome import Cause, Peer, Scope, Status
from engine.security import HostRefused, TlsDemand
from engine.setting_types import ip_text
from engine.smtp.reply import show
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from engine.delivery.attempt import Attempt
    from engine.delivery.lane import Lane
    from engine.delivery.pool import SitePool
    from engine.delivery.shared import Path
    from engine.route import Candidate

_BY_POLICY: Final = EnhancedStatusCode(4, 7, 1)
_NO_ANSWER: Final = EnhancedStatusCode(4, 4, 1)
_OUR_SIDE: Final = EnhancedStatusCode(4, 3, 5)


class Barred(ConnectFailed):
    """A host that is not to be connected to.

    Attributes:
        verdict: What that means for a recipient.
    """

    def __init__(self, verdict: Verdict) -> None:
        scope = verdict.scope or Scope.HOST
        super().__init__(verdict.stage, verdict.cause, scope, verdict.text)
        self.verdict = verdict


@dataclass(frozen=True, slots=True, eq=False)
class Approach:
    """The way to a host that may be used.

    Attributes:
        candidate: The host.
        peer: The same, as it is named in outcomes; our side is not known yet.
        path: The settings towards it, with the addresses to connect from.
        demand: What TLS with it must be.
        line: What a connection to it can carry.
    """

    candidate: Candidate
    peer: Peer
    path: Path
    demand: TlsDemand
    line: Line


async def approach(pool: SitePool, candidate: Candidate, attempt: Attempt) -> Approach:
    """Find out whether and how a host is to be connected to for an attempt.

    Raises:
        Barred: It is not.
    """
    shared = pool.shared
    path = pool.path_to(candidate)
    peer = Peer(candidate.host, candidate.address, port_for(candidate, path.options))
    if (verdict := pool.resting(candidate)) is not None:
        raise Barred(verdict)
    demand = await _demand(pool, candidate, peer, path, attempt.lane)
    if shared.veto is not None:
        reason = shared.veto(peer, pool.site)
        if reason is not None:
            raise Barred(_vetoed(peer, reason))
    suits = None
    choose = path.settings.interface
    if callable(choose):
        addresses = _interface(choose(candidate.host, attempt.message), peer)
        path = replace(path, options=replace(path.options, interface=addresses))

        def suits(other: Attempt) -> bool:
            return _interface(choose(candidate.host, other.message), peer) == addresses

    def agrees(lane: Lane) -> bool | None:
        known = _known(pool, candidate, peer, path, lane)
        return None if known is None else known == demand

    return Approach(candidate, peer, path, demand, Line(candidate, attempt.lane, agrees, suits))


def _known(
    pool: SitePool, candidate: Candidate, peer: Peer, path: Path, lane: Lane
) -> TlsDemand | HostRefused | None:
    return pool.shared.policies.known(
        lane.domain, pool.route, candidate, peer.port or 0, path.settings, lane.message
    )


async def _demand(
    pool: SitePool, candidate: Candidate, peer: Peer, path: Path, lane: Lane
) -> TlsDemand:
    known = _known(pool, candidate, peer, path, lane)
    if known is None:
        known = await pool.shared.policies.demand(
            lane.domain, pool.route, candidate, peer.port or 0, path.settings, lane.message
        )
    if isinstance(known, TlsDemand):
        return known
    if pool.shared.tls_counters is not None:
        pool.shared.tls_counters.count(pool.shared.clock(), known.reported)
    # What a policy says of one host says nothing about the next.
    raise Barred(
        Verdict(
            known.status,
            known.stage,
            known.cause,
            known.text,
            Scope.HOST,
            None,
            known.enhanced,
            is_here_only=known.status is Status.FAILED,
        )
    )


def _interface(addresses: object, peer: Peer) -> tuple[str, ...]:
    """Check what a program's own function chose to connect from."""
    items = [addresses] if isinstance(addresses, str) else addresses
    found = tuple(map(ip_text, items)) if isinstance(items, list | tuple) else (None,)
    if None in found:
        text = f"connect to {peer}: the function for interface did not return IP addresses"
        verdict = Verdict(
            Status.DEFERRED, Stage.CONNECT, Cause.CONFIG, text, Scope.SOURCE, None, _OUR_SIDE
        )
        raise Barred(verdict)
    return tuple(address for address in found if address is not None)


def _vetoed(peer: Peer, reason: str) -> Verdict:
    text = f"{peer} is not to be connected to now: {show(reason.encode())}"
    return Verdict(Status.DEFERRED, Stage.CONNECT, Cause.EVENT, text, Scope.HOST, None, _BY_POLICY)


def unconnected(failure: ConnectFailed) -> Verdict:
    """Return what a connection that could not be had means for a recipient."""
    if isinstance(failure, Barred):
        return failure.verdict
    enhanced = _NO_ANSWER if failure.scope is Scope.HOST else _OUR_SIDE
    return Verdict(
        Status.DEFERRED, failure.stage, failure.cause, failure.text, failure.scope, None, enhanced
    )
