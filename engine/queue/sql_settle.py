"""Settling recipients in a SQL store: out of the queue, back into it, or aside.

Called in the thread of the store, for many settlements at once.  Not here: what becomes of whom
(`engine.queue.decision`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.queue.sql_lanes import leave_lanes, move_domains, note_sites, open_lanes
from engine.queue.values import CUT_SHORT, Action, Result, State, to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.queue.database import Database
    from engine.queue.sql_lanes import Place
    from engine.queue.values import Settlement, SiteState


class Standing(NamedTuple):
    """Where a recipient stands, see `recipients_standing`."""

    number: int
    message: int
    lease: int | None
    state: str
    wish: str | None
    lane: int | None
    domain: str
    priority: int
    tenant: str
    job: str

    @property
    def place(self) -> Place:
        """Where it waits when it is queued."""
        return self.domain, self.priority, self.tenant, self.job


@dataclass(frozen=True, slots=True)
class Settling:
    """What one call of `settle` asks for; times in milliseconds."""

    settlements: tuple[Settlement, ...]
    now: int
    overdue: int
    sites: tuple[SiteState, ...] = ()
    routes: Mapping[str, str] = field(default_factory=dict)
    #: Whether contents stay although nobody needs them: they lie beside a page that is damaged.
    keeps_contents: bool = False


def settle(db: Database, calls: Sequence[Settling]) -> list[tuple[int, ...]]:
    """Settle what many calls ask for; return for each whom it could not settle any more."""
    everyone = [each.recipient for call in calls for each in call.settlements]
    found = db.rows("recipients_standing", numbers=json.dumps(everyone)) if everyone else []
    standing = {row[0]: Standing._make(row) for row in found}
    changes = Changes()
    results = []
    for call in calls:
        ignored = []
        for each in call.settlements:
            where = standing.get(each.recipient)
            if where is None or where.lease != each.lease or where.state == State.ENDED:
                ignored.append(each.recipient)
                continue
            # Gone for whoever settles it a second time within this very commit.
            del standing[each.recipient]
            changes.settle(where, each)
        results.append(tuple(ignored))
    now, overdue = max(call.now for call in calls), calls[0].overdue
    for call in calls:
        move_domains(db, call.routes, overdue=overdue)
    keeps_contents = any(call.keeps_contents for call in calls)
    changes.write(db, now=now, overdue=overdue, keeps_contents=keeps_contents)
    note_sites(db, [site for call in calls for site in call.sites], overdue=overdue)
    return results


class Changes:
    """Changes to recipients, gathered so that each kind costs one statement."""

    def __init__(self) -> None:
        self._deleted: list[int] = []
        self._ended: list[tuple[int, str, str | None, int]] = []
        self._queued: list[tuple[Any, ...]] = []
        self._held: list[tuple[int, str | None, int, bool]] = []
        self._removed: list[tuple[int, str, str | None, int]] = []
        self._records: list[tuple[int, str]] = []
        self._messages: set[int] = set()
        self._left: set[int] = set()

    def leave(self, where: Standing) -> None:
        """Note that a recipient leaves the lane in which it waits, if it does."""
        if where.lane is not None:
            self._left.add(where.lane)

    # -- what becomes of one ------------------------------------------------------------------

    def delete(self, number: int, message: int) -> None:
        """Delete a recipient."""
        self._deleted.append(number)
        self._messages.add(message)

    def end(self, number: int, result: Result, reason: str | None, *, uncounted: int = 0) -> None:
        """Let a recipient end, for somebody to be told; arguments as in `queue`."""
        self._ended.append((number, result.value, reason, uncounted))

    def remove(
        self, where: Standing, action: Action, reason: str | None, *, uncounted: int = 0
    ) -> None:
        """Cancel or purge a recipient; arguments as in `queue`."""
        self._removed.append((where.number, action.value, reason, uncounted))
        if action is Action.PURGE:
            self.delete(where.number, where.message)
        else:
            self.end(where.number, Result.FAILED, reason, uncounted=uncounted)

    def queue(
        self,
        number: int,
        place: Place,
        due: int,
        *,
        wait: int | None = None,
        reason: str | None = None,
        uncounted: int = 0,
        is_late_welcome: bool = False,
    ) -> None:
        """Queue a recipient.

        Args:
            number: It.
            place: Where it waits.
            due: When it is due, in milliseconds.
            wait: Its wait; `None` leaves the one before.
            reason: Why it waits; `None` leaves the one before.
            uncounted: Attempts to take back.
            is_late_welcome: Whether a settlement under the lease it had still counts.
        """
        self._queued.append((number, place, due, wait, reason, uncounted, is_late_welcome))

    def hold(
        self,
        number: int,
        reason: str | None,
        *,
        uncounted: int = 0,
        is_late_welcome: bool = False,
    ) -> None:
        """Hold a recipient; arguments as in `queue`."""
        self._held.append((number, reason, uncounted, is_late_welcome))

    def settle(self, where: Standing, settlement: Settlement) -> None:
        """Do what a settlement says, or what a person wished meanwhile."""
        number, result = where.number, settlement.result
        # What was held or given back since is not where the settlement thinks; only an end counts.
        if where.state != State.LEASED and not result.is_final:
            return
        self.leave(where)
        if settlement.last is not None and not (result.is_final and not settlement.report):
            self._records.append((number, settlement.last))
        uncounted = int(result is Result.RELEASED)
        if not result.is_final and where.wish is not None:
            self.wish(where, uncounted=uncounted)
        elif result.is_final:
            if settlement.report:
                self.end(number, result, settlement.reason or None)
            else:
                self.delete(number, where.message)
        elif result is Result.HELD:
            self.hold(number, settlement.reason or None)
        else:
            self.queue(
                number,
                where.place,
                to_milliseconds(settlement.due),
                wait=None if settlement.wait is None else to_milliseconds(settlement.wait),
                reason=settlement.reason or None,
                uncounted=uncounted,
            )

    def wish(self, where: Standing, *, uncounted: int = 0, is_late_welcome: bool = False) -> None:
        """Do to a recipient what a person wished while it was leased; the reason is noted."""
        if where.wish in (Action.PURGE, Action.CANCEL):
            self.remove(where, Action(where.wish), None, uncounted=uncounted)
        else:
            self.hold(where.number, None, uncounted=uncounted, is_late_welcome=is_late_welcome)

    def release(self, where: Standing, due: int) -> None:
        """Give a recipient back whose lease was lost; what its worker knows still counts."""
        if where.wish is not None:
            self.wish(where, is_late_welcome=True)
        else:
            self.queue(where.number, where.place, due, reason=CUT_SHORT, is_late_welcome=True)

    # -- all of it ------------------------------------------------------------------------------

    def write(self, db: Database, *, now: int, overdue: int, keeps_contents: bool = False) -> None:
        """Write the changes; `keeps_contents` as in `Settling`."""
        if self._removed:
            # Before they go.
            db.run("note_removals", rows=json.dumps(self._removed), now=now)
        if self._records:
            db.run("keep_outcomes", rows=json.dumps(self._records))
        if self._queued:
            self._write_queued(db, overdue)
        if self._held:
            db.run("hold_recipients", rows=json.dumps(self._held))
        if self._ended:
            db.run("end_recipients", rows=json.dumps(self._ended))
        if self._deleted:
            numbers = json.dumps(self._deleted)
            db.run("delete_recipients", numbers=numbers)
            db.run("delete_outcomes", numbers=numbers)
            messages = json.dumps(list(self._messages))
            if not keeps_contents:
                db.run("drop_contents", messages=messages)
                db.run("drop_pieces", messages=messages)
            db.run("finish_messages", messages=messages, now=now)
        if self._left:
            leave_lanes(db, self._left, overdue=overdue)

    def _write_queued(self, db: Database, overdue: int) -> None:
        places = [(place, due) for _, place, due, *_ in self._queued]
        lanes = open_lanes(db, places, overdue=overdue)
        rows = [(number, lanes[place], *rest) for number, place, *rest in self._queued]
        db.run("queue_recipients", rows=json.dumps(rows))


def forget(db: Database, recipients: Sequence[int], *, now: int) -> None:
    """Delete recipients that have ended; those that have not are left alone."""
    changes = Changes()
    for number, message in db.rows("ended_among", numbers=json.dumps(recipients)):
        changes.delete(number, message)
    changes.write(db, now=now, overdue=0)


def note_warned(db: Database, recipients: Sequence[int], *, now: int) -> None:
    """Note that the sender has heard of the delay of these."""
    db.run("note_warned", numbers=json.dumps(recipients), now=now)
