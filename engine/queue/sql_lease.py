"""Leases in a SQL store: who is next, who is out, who was left behind by a worker that died.

Called in the thread of the store.  Not here: the arithmetic of turns (`engine.queue.turns`), and
what becomes of leased recipients (`engine.queue.sql_settle`).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import apsw

from engine.queue.errors import ContentsDamagedError, LeaseLostError
from engine.queue.sql_contents import content_of, read_contents, read_envelopes
from engine.queue.sql_lanes import leave_lanes
from engine.queue.sql_rows import Envelope, Taken, make_leased
from engine.queue.sql_settle import Changes, Standing
from engine.queue.turns import Share, Turns, allowance, eligible_at
from engine.queue.values import LeasedMessage, Owner, Recovered, SiteState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from engine.queue.database import Database
    from engine.queue.sql_contents import ReadPieces

#: Lanes that are put into the line at a time, and looked at for one lease.
_LANES_AT_ONCE: Final = 500
#: Recipients one lane gives before others have their turn, where there are others.
_QUANTUM: Final = 10
#: How often the line is walked for one lease.
_ROUNDS: Final = 8
_EXPIRED_AT_ONCE: Final = 100

DAMAGED: Final = "its content on disk is not what was written; see `queue export`"
UNREADABLE: Final = "its envelope on disk is not what was written: {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leasing:
    """What a call of `lease` asks for; times in milliseconds."""

    owner: str
    now: int
    seats: int
    deadline: int
    retry_at: int
    site_seats: int
    overdue: int
    read: ReadPieces


class _Lane(NamedTuple):
    """A lane at the head of the line, see `lanes_next`."""

    number: int
    priority: int
    tenant: str
    job: str
    turn: float
    site: int
    name: str
    not_before: int
    failures: int
    reason: str

    @property
    def share(self) -> Share:
        """Whose lane it is."""
        return Share(self.priority, self.tenant, self.job)


@dataclass(slots=True)
class Harvest:
    """What a lease has gathered: rows, of which whoever asked makes values (`leased`).

    Attributes:
        number: The lease, 0 as long as nobody is under it.
        taken: Recipients to be tried, as they were before, each with its site.
        expired: The same of those who are past their deadline.
        read: Messages that were looked at.
        envelopes: The rows of messages by number.
        contents: Small contents by the number of their message.
        unreadable: Recipients of whose rows no message could be made, by number: why not, and how
            many attempts that takes back.
        sites: As `Lease.sites`.
        next_due: As `Lease.next_due`.
        is_clogged: As `Lease.is_clogged`.
    """

    number: int = 0
    taken: list[tuple[Taken, str]] = field(default_factory=list)
    expired: list[tuple[Taken, str]] = field(default_factory=list)
    read: set[int] = field(default_factory=set)
    envelopes: dict[int, Envelope] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    unreadable: dict[int, tuple[str, int]] = field(default_factory=dict)
    sites: dict[str, SiteState] = field(default_factory=dict)
    next_due: float | None = None
    is_clogged: bool = False


def lease(db: Database, request: Leasing) -> Harvest:
    """Take what is due."""
    return _Leaser(db, request).run()


def leased(
    harvest: Harvest,
    taken: Iterable[tuple[Taken, str]],
    *,
    read: ReadPieces,
    now: int,
    counted: int,
) -> Iterator[LeasedMessage]:
    """Yield what was taken, message by message; what cannot be read is noted in `unreadable`.

    Not in the thread of the store, where others wait for what takes a moment each.

    Args:
        harvest: What a lease has gathered.
        taken: Its `taken` or its `expired`.
        read: Reads what is not in `Harvest.contents`.
        now: The time of the lease, in milliseconds.
        counted: 1 where the lease counts as an attempt, else 0.
    """
    by_message: dict[int, list[tuple[Taken, str]]] = {}
    for row, site in taken:
        by_message.setdefault(row.message, []).append((row, site))
    for number, rows in by_message.items():
        envelope = harvest.envelopes[number]
        content = content_of(envelope, harvest.contents.get(number), read)
        try:
            message = make_leased(
                envelope, rows, content, lease=harvest.number, now=now, counted=counted
            )
        except (ValueError, TypeError) as error:  # anything may stand in a damaged row
            reason = UNREADABLE.format(error)
            harvest.unreadable |= {row.number: (reason, counted) for row, _ in rows}
        else:
            yield message


def hold_unreadable(db: Database, harvest: Harvest, *, now: int, overdue: int) -> None:
    """Hold for a person whom no message could be made of; others are not kept waiting by them."""
    changes = Changes()
    for number, (reason, uncounted) in harvest.unreadable.items():
        changes.hold(number, reason, uncounted=uncounted)
    changes.write(db, now=now, overdue=overdue)


class _Leaser:
    """One call of `lease`."""

    def __init__(self, db: Database, request: Leasing) -> None:
        self._db = db
        self._request = request
        self._seats = request.seats
        self._turns = Turns()
        self._jobs: dict[Share, int] = {}
        # How many recipients a lane gives: a guess at first.
        self._yield = 4
        self._out: dict[int, int] = {}
        self._harvest = Harvest()

    def run(self) -> Harvest:
        self._turns.clocks = dict(self._db.rows("clocks"))
        self._take_expired()
        is_more = self._line_up()
        if self._seats > 0:
            self._out = dict(self._db.rows("sites_out"))
            for _ in range(_ROUNDS):
                is_found = self._take_some()
                if not is_found or self._seats <= 0:
                    break
        self._look_ahead(is_more=is_more)
        return self._harvest

    def _look_ahead(self, *, is_more: bool) -> None:
        harvest, request = self._harvest, self._request
        *coming, is_ready = self._db.row("outlook") or (None, None, 0)
        dues = [due for due in coming if due is not None]
        is_short = bool(is_ready) and self._seats <= 0
        if is_more or is_short:
            dues.append(request.now)
        harvest.next_due = min(dues) / 1000 if dues else None
        harvest.is_clogged = bool(is_ready) and not is_short

    # -- what is past its deadline ------------------------------------------------------------

    def _take_expired(self) -> None:
        rows = self._db.rows("recipients_expired", now=self._request.now, limit=_EXPIRED_AT_ONCE)
        found = [Taken._make(row) for row in rows]
        if found:
            # Their contents may be as they like: these are not delivered any more.
            wanted = list({row.message for row in found})
            self._harvest.envelopes |= read_envelopes(self._db, wanted)
            self._take(found, count=0)
            lanes = {row.lane for row in found if row.lane is not None}
            leave_lanes(self._db, lanes, overdue=self._request.overdue)
            self._harvest.expired += [(row, row.domain) for row in found]

    # -- the line -------------------------------------------------------------------------------

    def _line_up(self) -> bool:
        """Put lanes whose time has come into the line; return whether there may be more."""
        rows = self._db.rows("lanes_come_due", now=self._request.now, limit=_LANES_AT_ONCE)
        if rows:
            self._place([(row[0], Share(*row[1:]), 1) for row in rows])
        return len(rows) == _LANES_AT_ONCE

    def _place(self, lanes: Sequence[tuple[int, Share, int]]) -> None:
        """Give lanes places at the end of their jobs' in the line: number, whose, cost."""
        self._learn(share for _, share, _ in lanes)
        rows = [
            (number, self._turns.place(share, cost, self._jobs[share]))
            for number, share, cost in lanes
        ]
        self._db.run("lines_up", rows=json.dumps(rows))
        shares = {share: self._turns.shares[share] for _, share, _ in lanes}
        self._db.run(
            "set_shares", rows=json.dumps([(*share, turn) for share, turn in shares.items()])
        )

    def _learn(self, shares: Iterable[Share]) -> None:
        """Read what is not known yet of whose lanes these are."""
        unknown = [share for share in dict.fromkeys(shares) if share not in self._jobs]
        if not unknown:
            return
        found = self._db.rows("shares_of", rows=json.dumps(unknown))
        coming: Counter[tuple[int, str]] = Counter()
        for share, (turn, jobs, weight) in zip(unknown, found, strict=True):
            self._jobs[share] = jobs
            if turn is None or turn <= self._turns.clocks.get(share.priority, 0.0):
                coming[share.priority, share.tenant] += 1
            if turn is not None:
                self._turns.shares[share] = turn
            if weight != 1.0:
                self._turns.weights[share.tenant, share.job] = weight
        for share in unknown:
            self._jobs[share] += coming[share.priority, share.tenant]

    # -- taking ---------------------------------------------------------------------------------

    def _take_some(self) -> bool:
        """Walk along the line once; return whether there was anything in it."""
        request = self._request
        full = [site for site, out in self._out.items() if self._allowance(out) == 0]
        lanes = [
            _Lane._make(row)
            for row in self._db.rows(
                "lanes_next",
                full=json.dumps(full),
                limit=min(-(-self._seats // self._yield), _LANES_AT_ONCE),
            )
        ]
        if not lanes:
            return False
        offers: dict[int, list[Taken]] = {each.number: [] for each in lanes}
        for most, group in self._shares_of(lanes).items():
            befores = [
                (each.number, request.now - (each.not_before > request.now) * request.overdue)
                for each in group
            ]
            for row in self._db.rows("recipients_next", rows=json.dumps(befores), limit=most):
                offers[row[0]].append(Taken._make(row))
        chosen = {each.number: self._choose(each, offers[each.number]) for each in lanes}
        everybody = [row for rows in chosen.values() for row in rows]
        damaged = self._read(everybody)
        sound = [row for row in everybody if row.message not in damaged]
        if sound:
            self._take(sound, count=1)
        served = 0
        for each in lanes:
            rows = [row for row in chosen[each.number] if row.message not in damaged]
            self._harvest.taken += [(row, each.name) for row in rows]
            if rows and (each.failures or each.not_before):
                self._harvest.sites[each.name] = _site_state(each)
            served += len(rows)
        self._leave(lanes, {number: len(rows) for number, rows in chosen.items()})
        self._yield = max(1, served // len(lanes))
        return True

    def _shares_of(self, lanes: Sequence[_Lane]) -> dict[int, list[_Lane]]:
        """Return the lanes by how many recipients to look at: what the site of many may have is little."""
        most = max(_QUANTUM, -(-self._seats // len(lanes)))
        of_site = Counter(each.site for each in lanes)
        groups: dict[int, list[_Lane]] = {}
        for each in lanes:
            share = -(-self._allowance(self._out.get(each.site, 0)) // of_site[each.site])
            # In powers of two, so that there are few groups.
            groups.setdefault(min(most, 1 << (share - 1).bit_length()), []).append(each)
        return groups

    def _allowance(self, out: int) -> int:
        return allowance(out, self._seats, self._request.site_seats)

    def _choose(self, lane: _Lane, offers: list[Taken]) -> list[Taken]:
        out = self._out.get(lane.site, 0)
        count = min(len(offers), self._allowance(out))
        self._out[lane.site] = out + count
        self._seats -= count
        return offers[:count]

    def _take(self, rows: Sequence[Taken], *, count: int) -> None:
        request = self._request
        if not self._harvest.number:
            self._db.run("insert_lease", owner=request.owner, deadline=request.deadline)
            self._harvest.number = self._db.last_number()
        self._db.run(
            "take_recipients",
            numbers=json.dumps([row.number for row in rows]),
            lease=self._harvest.number,
            count=count,
            now=request.now,
            retry_at=request.retry_at,
        )

    def _leave(self, lanes: Sequence[_Lane], taken: dict[int, int]) -> None:
        """Let lanes go back to the end of the line, step aside, or end."""
        request, turns = self._request, self._turns
        for each in lanes:
            if taken[each.number]:
                turns.serve(each.priority, each.turn)
        by_number = {each.number: each for each in lanes}
        ended, aside, staying = [], [], []
        numbers = json.dumps(list(by_number))
        for number, head, not_before in self._db.rows("lanes_left", lanes=numbers):
            if head is None:
                ended.append(number)
                continue
            due = eligible_at(head, not_before, request.overdue)
            if due > request.now:
                aside.append((number, due))
            elif taken[number]:
                staying.append((number, by_number[number].share, taken[number]))
        if ended:
            self._db.run("close_lanes", lanes=json.dumps(ended))
        if aside:
            self._db.run("steps_aside", rows=json.dumps(aside))
        if staying:
            self._place(staying)
        if any(taken.values()):
            self._db.run("set_clocks", rows=json.dumps(list(turns.clocks.items())))

    def _read(self, rows: Sequence[Taken]) -> set[int]:
        """Read the messages of recipients; hold those whose content is damaged, and name them."""
        harvest = self._harvest
        wanted = [
            number
            for number in dict.fromkeys(row.message for row in rows)
            if number not in harvest.read
        ]
        harvest.read.update(wanted)
        if not wanted:
            return set()
        envelopes = read_envelopes(self._db, wanted)
        try:
            contents = read_contents(self._db, envelopes)
        except apsw.CorruptError:
            raise ContentsDamagedError(wanted) from None
        damaged = {
            number
            for number, envelope in envelopes.items()
            if envelope.upload is None and number not in contents
        }
        if damaged:
            hold_damaged(self._db, list(damaged))
        harvest.envelopes |= envelopes
        harvest.contents |= contents
        return damaged


def hold_damaged(db: Database, messages: Sequence[int]) -> None:
    """Hold what is queued of messages whose content cannot be used, for a person."""
    db.run("hold_damaged", messages=json.dumps(messages), reason=DAMAGED)


def _site_state(lane: _Lane) -> SiteState:
    return SiteState(
        name=lane.name,
        not_before=lane.not_before / 1000,
        failures=lane.failures,
        reason=lane.reason,
    )


# -- while leases hold --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marking:
    """What a call of `mark` asks for."""

    lease: int
    recipients: tuple[int, ...]


def mark(db: Database, calls: Sequence[Marking]) -> list[LeaseLostError | None]:
    """Mark recipients for many calls at once."""
    numbers = [number for call in calls for number in call.recipients]
    leases = dict(db.rows("leases_of", numbers=json.dumps(numbers)))
    results: list[LeaseLostError | None] = []
    rows = []
    for call in calls:
        if all(leases.get(number) == call.lease for number in call.recipients):
            rows += [(call.lease, number) for number in call.recipients]
            results.append(None)
        else:
            results.append(LeaseLostError(f"lease {call.lease} was lost"))
    if rows:
        db.run("insert_marks", rows=json.dumps(rows))
    return results


def extend(db: Database, owner: str, deadline: int) -> int:
    """Put off the deadline of an owner's leases, and close those with nobody left."""
    db.run("close_leases", owner=owner)
    db.run("drop_marks")
    db.run("extend_leases", owner=owner, deadline=deadline)
    return int((db.row("count_out", owner=owner) or (0,))[0])


def owners(db: Database) -> tuple[Owner, ...]:
    """Return who holds leases of anybody."""
    return tuple(
        Owner(name, deadline / 1000, count) for name, deadline, count in db.rows("owners") if count
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovering:
    """What a call of `recover` asks for; times in milliseconds."""

    owner: str
    now: int
    deadline: int
    dead: tuple[str, ...]
    overdue: int
    read: ReadPieces


def recover(db: Database, request: Recovering) -> Recovered:
    """Take over what the owners of lost leases left."""
    lost = db.rows(
        "lost_leases", owner=request.owner, now=request.now, dead=json.dumps(request.dead)
    )
    if not lost:
        return Recovered()
    leases = json.dumps(lost)
    doubtful = _adopt(db, request, leases)
    changes, released = Changes(), db.rows("recipients_lost", leases=leases)
    for *standing, due in released:
        changes.release(Standing(*standing), due)
    changes.write(db, now=request.now, overdue=request.overdue)
    db.run("delete_leases", leases=leases)
    db.run("delete_marks", leases=leases)
    return Recovered(len(released), doubtful)


def _adopt(db: Database, request: Recovering, leases: str) -> tuple[LeasedMessage, ...]:
    """Put recipients that were marked under a lease of ours, marks and all."""
    rows = [Taken._make(row) for row in db.rows("recipients_doubtful", leases=leases)]
    if not rows:
        return ()
    db.run("insert_lease", owner=request.owner, deadline=request.deadline)
    lease = db.last_number()
    numbers = [row.number for row in rows]
    db.run("adopt_recipients", lease=lease, numbers=json.dumps(numbers))
    db.run("insert_marks", rows=json.dumps([(lease, number) for number in numbers]))
    harvest = Harvest(number=lease)
    wanted = list(dict.fromkeys(row.message for row in rows))
    # Their contents are not read: a damaged one must not keep the others from being recovered.
    harvest.envelopes = read_envelopes(db, wanted)
    doubtful = [(row, row.domain) for row in rows]
    made = tuple(leased(harvest, doubtful, read=request.read, now=request.now, counted=0))
    if harvest.unreadable:
        hold_unreadable(db, harvest, now=request.now, overdue=request.overdue)
    return made


def set_weight(db: Database, tenant: str, job: str | None, weight: float) -> None:
    """Set the weight of a tenant, or of one of its jobs."""
    bindings: dict[str, Any] = {"tenant": tenant, "job": job or "", "is_job": job is not None}
    db.run("set_weight", **bindings, weight=weight)
