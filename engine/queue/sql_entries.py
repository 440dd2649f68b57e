"""Looking at a SQL store and steering it: what the command line shows and does.

Called in the thread of the store, a step at a time: no step looks at more than so many recipients,
however few it finds, so that leases and settlements never wait for long.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from engine.queue.entries import Backlog, Counts, Delayed, Entry, Page, StoredMessage
from engine.queue.errors import StoreDamagedError
from engine.queue.sql_contents import content_of, read_envelopes, read_what_can_be_read
from engine.queue.sql_lanes import note_sites
from engine.queue.sql_lease import UNREADABLE
from engine.queue.sql_rows import make_message, make_recipient
from engine.queue.sql_settle import Changes, Standing
from engine.queue.values import Action, Removal, Result, SiteState, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engine.queue.database import Database
    from engine.queue.sql_contents import ReadPieces
    from engine.queue.sql_rows import Envelope
    from engine.queue.values import Selection

#: Recipients one step looks at.
STEP: Final = 2000

UNTOLD: Final = "it has ended, and nobody can be told of that (see `queue purge`): {}"


def read_page(db: Database, selection: Selection, after: int, limit: int) -> Page:
    """Return the entries of one step."""
    step = max(limit, 1) if _is_everything(selection) else STEP
    rows, end = _step(db, selection, after, step)
    entries = tuple(_entry(row) for row in rows[:limit])
    if len(rows) > limit:
        return Page(entries, entries[-1].number)
    return Page(entries, end)


def _is_everything(selection: Selection) -> bool:
    return all(
        value is None
        for value in (
            selection.states or None,
            selection.recipient,
            selection.domain,
            selection.sender,
            selection.tenant,
            selection.job,
        )
    )


def _step(
    db: Database, selection: Selection, after: int, step: int
) -> tuple[list[Any], int | None]:
    """Return the selected rows of one step, and where the next step begins, if there is one."""
    domain, suffix = selection.domain, None
    if selection.domain is not None and selection.domain.startswith("*."):
        domain, suffix = None, selection.domain[1:]
    states = sorted(state.value for state in selection.states)
    bindings: dict[str, Any] = {
        "after": after,
        "step": step,
        "states": json.dumps(states) if states else None,
        "recipient": selection.recipient,
        "domain": domain,
        "suffix": suffix,
        "sender": selection.sender,
        "tenant": selection.tenant,
        "job": selection.job,
    }
    place: dict[str, Any] = {"after": after, "step": step}
    if selection.message is None:
        rows = db.rows("entries", **bindings)
        end = db.row("step_end", **place)
    else:
        rows = db.rows("entries_of_message", **bindings, message=selection.message)
        end = db.row("step_end_of_message", **place, message=selection.message)
    last, count = end or (None, 0)
    return rows, last if count == step else None


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(
        number=row[0],
        message=row[1],
        sender=row[2],
        recipient=row[3],
        state=State(row[4]),
        attempts=row[5],
        next_attempt=row[6] / 1000 if row[4] in (State.QUEUED, State.LEASED) else None,
        submitted_at=row[7] / 1000,
        deadline=None if row[8] is None else row[8] / 1000,
        tenant=row[9],
        job=row[10],
        priority=row[11],
        site=row[12] or row[16],
        result=None if row[13] is None else Result(row[13]),
        reason=row[14],
        last=row[15],
        left_alone_until=row[17] / 1000,
        left_alone_for=row[18],
    )


def count(db: Database, now: int) -> Counts:
    """Count what is there."""
    row = db.row("counts", now=now)
    assert row is not None
    total, queued, due, leased, ended, messages, oldest, next_due = row
    return Counts(
        queued=queued,
        due=due,
        leased=leased,
        held=total - queued - leased - ended,
        ended=ended,
        messages=messages,
        oldest=None if oldest is None else oldest / 1000,
        next_due=None if next_due is None else next_due / 1000,
    )


# -- whole messages -----------------------------------------------------------------------------


def read_stored(
    db: Database, after: int, limit: int, read: ReadPieces
) -> tuple[StoredMessage, ...]:
    """Return messages in the order they came."""
    numbers = db.rows("message_numbers", after=after, limit=limit)
    return tuple(_stored(db, _recipients_of(db, numbers), read, is_strict=True))


def read_ended(
    db: Database, after: int, limit: int, read: ReadPieces
) -> tuple[tuple[StoredMessage, ...], dict[int, str]]:
    """Return messages with recipients that ended, with these recipients only.

    And the recipients of whom no message can be made, each with the reason.
    """
    numbers = db.rows("ended_messages", after=after, limit=limit)
    at_work = set(db.rows("messages_at_work", messages=json.dumps(numbers)))
    unreadable: dict[int, str] = {}
    rows = _recipients_of(db, numbers, State.ENDED)
    messages = tuple(
        replace(message, is_at_work=message.number in at_work)
        for message in _stored(db, rows, read, unreadable=unreadable)
    )
    return messages, unreadable


def hold_ended(db: Database, unreadable: Mapping[int, str]) -> None:
    """Hold for a person who ended and cannot be reported on, so that he is seen."""
    changes = Changes()
    for number, _ in db.rows("ended_among", numbers=json.dumps(list(unreadable))):
        changes.hold(number, UNTOLD.format(unreadable[number]))
    changes.write(db, now=0, overdue=0)


def read_delayed(
    db: Database, now: int, waits: Sequence[int], after: int, limit: int, read: ReadPieces
) -> Delayed:
    """Return messages whose senders are to hear of a delay, of one step; contents are left there."""
    rows = db.rows(
        "recipients_delayed",
        now=now,
        waits=json.dumps(waits),
        after=after,
        step=STEP,
        limit=limit + 1,
    )
    last, count = db.row("step_end", after=after, step=STEP) or (None, 0)
    end = last if count == STEP else None
    if len(rows) > limit:
        rows, end = rows[:limit], rows[limit - 1][0]
    return Delayed(tuple(_stored(db, rows, read, with_contents=False)), end)


def _recipients_of(db: Database, numbers: Sequence[int], state: State | None = None) -> list[Any]:
    """Return the rows of the recipients of messages."""
    return db.rows("recipients_of", messages=json.dumps(numbers), state=state) if numbers else []


def _stored(
    db: Database,
    rows: Sequence[Any],
    read: ReadPieces,
    *,
    with_contents: bool = True,
    is_strict: bool = False,
    unreadable: dict[int, str] | None = None,
) -> Iterator[StoredMessage]:
    """Yield the messages that rows of recipients belong to, in their order, with just these.

    Those of which no message can be made are passed over, and their recipients noted in
    `unreadable`; or with `is_strict` that is an error.

    Raises:
        StoreDamagedError: There is one.
    """
    rows_of: dict[int, list[Any]] = {}
    for row in rows:
        rows_of.setdefault(row[1], []).append(row)
    envelopes = read_envelopes(db, list(rows_of)) if rows_of else {}
    contents = read_what_can_be_read(db, envelopes) if with_contents else {}
    for number, group in rows_of.items():
        envelope = envelopes.get(number)
        if envelope is None:
            continue
        octets = contents.get(number)
        content = content_of(envelope, octets, read)
        try:
            recipients = tuple(make_recipient(row[2], row[3], row[4]) for row in group)
            message = make_message(envelope, recipients, content)
        except (ValueError, TypeError) as error:  # anything may stand in a damaged row
            if is_strict:
                raise StoreDamagedError(f"message {envelope.id!r}: {error}") from None
            if unreadable is not None:
                unreadable |= {row[0]: UNREADABLE.format(error) for row in group}
            continue
        yield StoredMessage(
            number,
            message,
            tuple(_entry_of(envelope, row) for row in group),
            is_damaged=with_contents and envelope.upload is None and octets is None,
            not_before=None if envelope.not_before is None else envelope.not_before / 1000,
        )


def _entry_of(envelope: Envelope, row: Sequence[Any]) -> Entry:
    return _entry(
        (
            row[0], envelope.id, envelope.reverse_path, row[2], row[5], row[6], row[7],
            envelope.submitted_at, envelope.deadline, envelope.tenant, envelope.job,
            envelope.priority, row[8], row[9], row[10], row[11], "", 0, "",
        )
    )  # fmt: skip


# -- steering -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steering:
    """What one step of `apply` asks for; times in milliseconds."""

    action: Action
    selection: Selection
    after: int
    now: int
    overdue: int
    reason: str


def steer(db: Database, call: Steering) -> tuple[int, int | None]:
    """Do something to the selected of one step.

    Returns:
        To how many it was done, and where the next step begins, if there is one.
    """
    rows, end = _step(db, call.selection, call.after, STEP)
    chosen = {row[0]: row[16] for row in rows if row[4] in call.action.states}
    if not chosen:
        return 0, end
    changes, wishes = Changes(), []
    for *standing, due in db.rows("recipients_steered", numbers=json.dumps(list(chosen))):
        where = Standing(*standing)
        if where.state == State.LEASED:
            wishes.append(where.number)
        else:
            changes.leave(where)
            _steer_one(changes, where, call, due)
    changes.write(db, now=call.now, overdue=call.overdue)
    if wishes:
        numbers = json.dumps(wishes)
        reason = call.reason or call.action.reason or None
        db.run("wish_for", numbers=numbers, wish=call.action.value, reason=reason)
    if call.action is Action.RETRY:
        _end_back_off(db, chosen.values(), call)
    return len(chosen), end


def _steer_one(changes: Changes, where: Standing, call: Steering, due: int) -> None:
    reason = call.reason or call.action.reason or None
    match call.action:
        case Action.RETRY:
            changes.queue(where.number, where.place, min(due, call.now), reason=reason)
        case Action.HOLD:
            changes.hold(where.number, reason)
        case Action.RELEASE:
            changes.queue(where.number, where.place, call.now, reason=reason)
        case Action.CANCEL | Action.PURGE:
            changes.remove(where, call.action, reason)


def _end_back_off(db: Database, domains: Any, call: Steering) -> None:
    names = db.rows(
        "sites_backed_off", domains=json.dumps(list(dict.fromkeys(domains))), now=call.now
    )
    note_sites(db, [SiteState(name=name) for name in names], overdue=call.overdue)


def read_removals(db: Database, limit: int) -> tuple[Removal, ...]:
    """Return who was taken out by hand, the first first."""
    return tuple(
        Removal(number, message, recipient, attempts, Action(action), reason, at / 1000)
        for number, message, recipient, attempts, action, reason, at in db.rows(
            "removals", limit=limit
        )
    )


def forget_removals(db: Database, numbers: Sequence[int]) -> None:
    """Forget of these that they were taken out."""
    db.run("forget_removals", numbers=json.dumps(numbers))


def read_backlog(db: Database, now: int, limit: int) -> tuple[Backlog, ...]:
    """Return the sites most waits for."""
    return tuple(
        Backlog(
            site=_site_state(row[:4]),
            queued=row[4],
            due=row[5],
            leased=row[6],
            next_due=None if row[7] is None else row[7] / 1000,
        )
        for row in db.rows("backlog", now=now, limit=limit)
    )


def read_sites(db: Database) -> tuple[SiteState, ...]:
    """Return the sites that are not in good health."""
    return tuple(_site_state(row) for row in db.rows("sites_unwell"))


def _site_state(row: Sequence[Any]) -> SiteState:
    name, not_before, failures, reason = row
    return SiteState(name=name, not_before=not_before / 1000, failures=failures, reason=reason)
