"""The store in memory: a queue for as long as the process lives.

For tests, for programs that need no durability, and as a second telling of what a store does: it
passes the same suite as the others (`tests/queue/store_conformance.py`).  Nothing waits here, so
it is at home under a virtual clock.
"""

from __future__ import annotations

from collections import Counter, deque
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from engine.content import MemoryContent
from engine.queue.entries import Backlog, Counts, Delayed, Page, StoredMessage
from engine.queue.errors import DuplicateIdError, LeaseLostError
from engine.queue.memory_lanes import LaneKey, Lanes, Waiting
from engine.queue.memory_records import (
    KeptMessage,
    KeptRecipient,
    entry_of,
    fingerprint,
    gather,
    is_delayed,
    is_selected,
    rounded,
)
from engine.queue.store import DEFAULT_OVERDUE, Store
from engine.queue.submission import Accepted
from engine.queue.values import (
    CUT_SHORT,
    EVERYBODY,
    Action,
    Lease,
    Owner,
    Recovered,
    Removal,
    Result,
    Selection,
    SiteState,
    State,
    check_reason,
    check_weight,
)
from engine.queue.values import to_milliseconds as ms

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from engine.message import Message
    from engine.queue.entries import Entry
    from engine.queue.submission import Submission
    from engine.queue.values import Settlement

_EXPIRED_AT_ONCE: Final = 100


class MemoryStore(Store):
    """A store in memory.

    Methods are described in `engine.queue.store.Store`.
    """

    def __init__(self, *, overdue: float = DEFAULT_OVERDUE) -> None:
        """Make an empty store; `overdue` is as in `engine.queue.sqlite.open_store`."""
        self._messages: dict[str, KeptMessage] = {}
        self._recipients: dict[int, KeptRecipient] = {}
        self._lanes = Lanes(ms(overdue))
        # Of the recipients: those with a deadline, and those that are leased.
        self._timed: dict[int, KeptRecipient] = {}
        self._out: dict[int, KeptRecipient] = {}
        self._finished: deque[KeptMessage] = deque()
        self._removals: dict[int, Removal] = {}
        self._last_removal = 0
        self._domains: dict[str, str] = {}
        self._leases: dict[int, tuple[str, int]] = {}
        self._marks: set[tuple[int, int]] = set()
        self._numbers = self._last_lease = self._last_message = 0
        self._changes = 0
        self._changed = trio.Event()

    # -- going in ---------------------------------------------------------------------------

    async def submit(
        self,
        submissions: Sequence[Submission],
        *,
        forget: Sequence[int] = (),
        warned: Sequence[int] = (),
    ) -> tuple[Accepted, ...]:
        """Take messages, all or none."""
        read = [(each, await _read(each.message)) for each in submissions]
        await trio.lowlevel.checkpoint()
        new: dict[str, tuple[Submission, Message, str]] = {}
        accepted = []
        for submission, octets in read:
            message, mark = submission.message, fingerprint(submission, octets)
            known = self._messages.get(message.id)
            there = (
                known.fingerprint if known else new[message.id][2] if message.id in new else None
            )
            if there is not None and there != mark:
                raise DuplicateIdError(f"message id {message.id!r} is known already")
            if there is None:
                content = MemoryContent(octets, message.content.facts)
                new[message.id] = (submission, replace(message, content=content), mark)
            accepted.append(Accepted(message.id, there is None))
        for submission, message, mark in new.values():
            self._insert(submission, message, mark)
        self._forget(forget)
        self._note_warned(warned, max((each.submitted_at for each in submissions), default=0.0))
        if new:
            self._note_change()
        return tuple(accepted)

    def _insert(self, submission: Submission, message: Message, mark: str) -> None:
        self._last_message += 1
        known = KeptMessage(self._last_message, message, submission, mark, [])
        self._messages[message.id] = known
        due = submission.submitted_at
        if submission.not_before is not None and not submission.is_held:
            due = max(due, submission.not_before)
        for recipient in message.recipients:
            self._numbers += 1
            each = KeptRecipient(self._numbers, known, recipient, ms(due))
            self._recipients[each.number] = each
            if submission.deadline is not None:
                self._timed[each.number] = each
            known.recipients.append(each.number)
            self._domains.setdefault(each.domain, each.domain)
            if submission.is_held:
                each.state = State.HELD
            else:
                self._queue(each, each.due)

    # -- leases -----------------------------------------------------------------------------

    async def lease(
        self,
        *,
        owner: str,
        now: float,
        seats: int,
        deadline: float,
        retry_at: float,
        site_seats: int,
    ) -> Lease:
        """Take recipients that are due, at most so many."""
        await trio.lowlevel.checkpoint()
        number, moment = self._last_lease + 1, ms(now)
        expired = self._expired(moment)
        for each in expired:
            self._lanes.remove(each.number)
            self._take(each, number, each.domain, moment, ms(retry_at), count=0)
            self._lanes.out[each.site] += 1
        self._lanes.line_up(moment)
        taken = []
        for found, site in self._lanes.harvest(moment, seats, site_seats):
            each = self._recipients[found]
            self._take(each, number, site, moment, ms(retry_at), count=1)
            taken.append(each)
        if taken or expired:
            self._last_lease = number
            self._leases[number] = (owner, ms(deadline))
        is_in_line = self._lanes.is_anybody_in_line()
        is_short = is_in_line and len(taken) >= seats
        dues = [due for due in (self._lanes.first_due(), self._next_deadline()) if due is not None]
        if is_short:
            dues.append(moment)
        sites = {each.site for each in taken} & self._lanes.sites.keys()
        return Lease(
            number=number if taken or expired else 0,
            messages=gather(taken, number),
            expired=gather(expired, number),
            sites={name: self._lanes.sites[name] for name in sites},
            next_due=min(dues) / 1000 if dues else None,
            is_clogged=is_in_line and not is_short,
        )

    def _expired(self, now: int) -> list[KeptRecipient]:
        found = [
            each
            for each in self._with_deadline()
            if ms(each.message.submission.deadline or 0) <= now
        ]
        return found[:_EXPIRED_AT_ONCE]

    def _next_deadline(self) -> int | None:
        return min(
            (ms(each.message.submission.deadline or 0) for each in self._with_deadline()),
            default=None,
        )

    def _with_deadline(self) -> Iterable[KeptRecipient]:
        return (each for each in self._timed.values() if each.state is State.QUEUED)

    def _take(
        self, each: KeptRecipient, lease: int, site: str, now: int, retry_at: int, *, count: int
    ) -> None:
        each.state, each.lease, each.site, each.wish = State.LEASED, lease, site, None
        each.due = retry_at
        self._out[each.number] = each
        each.attempts += count
        if each.first_attempt_at is None:
            each.first_attempt_at = now

    async def mark(self, lease: int, recipients: Sequence[int]) -> None:
        """Write down that a content is about to go out to its end."""
        await trio.lowlevel.checkpoint()
        for number in recipients:
            each = self._recipients.get(number)
            if each is None or each.state is not State.LEASED or each.lease != lease:
                raise LeaseLostError(f"lease {lease} was lost")
        self._marks.update((lease, number) for number in recipients)

    async def settle(
        self,
        settlements: Sequence[Settlement],
        *,
        now: float,
        sites: Sequence[SiteState] = (),
        routes: Mapping[str, str] | None = None,
    ) -> tuple[int, ...]:
        """Settle leased recipients."""
        await trio.lowlevel.checkpoint()
        for domain, site in (routes or {}).items():
            self._route(domain, site)
        ignored = []
        for each in settlements:
            found = self._recipients.get(each.recipient)
            if found is None or found.lease != each.lease or found.state is State.ENDED:
                ignored.append(each.recipient)
            elif found.state is State.LEASED or each.result.is_final:
                self._settle(found, each, ms(now))
        for state in sites:
            self._lanes.note_site(state)
        return tuple(ignored)

    def _settle(self, each: KeptRecipient, settlement: Settlement, now: int) -> None:
        result, reason = settlement.result, settlement.reason or each.reason
        wish = each.wish
        self._bring_back(each)
        if settlement.last is not None:
            each.last = settlement.last
        if result is Result.RELEASED:
            self._uncount(each)
        if result.is_final:
            if settlement.report:
                self._end(each, result, reason)
            else:
                self._delete(each, now)
        elif wish is not None:
            self._grant(each, wish, now)
        elif result is Result.HELD:
            each.state, each.reason = State.HELD, reason
        else:
            each.reason = reason
            if settlement.wait is not None:
                each.wait = ms(settlement.wait)
            self._queue(each, ms(settlement.due))

    def _grant(self, each: KeptRecipient, wish: Action, now: int) -> None:
        """Do to a recipient what a person wished while it was leased."""
        if wish in (Action.PURGE, Action.CANCEL):
            self._remove(each, wish, now)
        else:
            each.state = State.HELD

    async def extend(self, owner: str, *, deadline: float) -> int:
        """Put the deadline of all leases of an owner off."""
        await trio.lowlevel.checkpoint()
        held = {each.lease for each in self._out.values()}
        for number, (name, _) in list(self._leases.items()):
            if name == owner and number in held:
                self._leases[number] = (owner, ms(deadline))
            elif name == owner:
                del self._leases[number]
        self._marks = {mark for mark in self._marks if mark[0] in self._leases}
        return sum(self._owner(each) == owner for each in self._out.values())

    async def owners(self) -> tuple[Owner, ...]:
        """Return who holds leases."""
        await trio.lowlevel.checkpoint()
        counts: dict[str, int] = {}
        for each in self._out.values():
            counts[self._owner(each)] = counts.get(self._owner(each), 0) + 1
        deadlines = {
            name: max(end for owner, end in self._leases.values() if owner == name)
            for name in counts
        }
        return tuple(Owner(name, deadlines[name] / 1000, counts[name]) for name in sorted(counts))

    async def recover(
        self, *, owner: str, now: float, deadline: float, dead: Sequence[str] = ()
    ) -> Recovered:
        """Take over leases that were lost."""
        await trio.lowlevel.checkpoint()
        lost = {
            number
            for number, (name, end) in self._leases.items()
            if name != owner and (end <= ms(now) or name in dead)
        }
        doubtful: list[KeptRecipient] = []
        released = 0
        for each in [each for each in self._out.values() if each.lease in lost]:
            if (each.lease, each.number) in self._marks:
                doubtful.append(each)
                continue
            released += 1
            wish = each.wish
            self._bring_back(each, is_late_welcome=True)
            if wish is None:
                each.reason = CUT_SHORT
                self._queue(each, each.due)
            else:
                self._grant(each, wish, ms(now))
        number = 0
        if doubtful:
            number = self._last_lease = self._last_lease + 1
            self._leases[number] = (owner, ms(deadline))
            for each in doubtful:
                each.lease = number
                self._marks.add((number, each.number))
        for gone in lost:
            del self._leases[gone]
        self._marks = {mark for mark in self._marks if mark[0] in self._leases}
        if released:
            self._note_change()
        return Recovered(released, gather(doubtful, number))

    def _owner(self, each: KeptRecipient) -> str:
        return self._leases[each.lease or 0][0]

    # -- states -----------------------------------------------------------------------------

    def _queue(self, each: KeptRecipient, due: int) -> None:
        each.state, each.due = State.QUEUED, due
        site = self._domains[each.domain]
        self._lanes.put(LaneKey(site, each.message.share), Waiting(due, each.number))

    def _bring_back(self, each: KeptRecipient, *, is_late_welcome: bool = False) -> None:
        if self._out.pop(each.number, None) is not None:
            self._lanes.out[each.site] -= 1
            each.site = ""
        self._lanes.remove(each.number)
        each.wish = None
        if not is_late_welcome:
            each.lease = None

    @staticmethod
    def _uncount(each: KeptRecipient) -> None:
        each.attempts -= 1
        if each.attempts <= 0:
            each.first_attempt_at = None

    def _end(self, each: KeptRecipient, result: Result, reason: str) -> None:
        self._bring_back(each)
        each.state, each.result, each.reason = State.ENDED, result, reason

    def _remove(self, each: KeptRecipient, action: Action, now: int) -> None:
        if each.state is not State.ENDED:
            self._last_removal += 1
            self._removals[self._last_removal] = Removal(
                self._last_removal,
                each.message.message.id,
                each.recipient.address,
                each.attempts,
                action,
                each.reason,
                now / 1000,
            )
        if action is Action.PURGE:
            self._delete(each, now)
        else:
            self._end(each, Result.FAILED, each.reason)

    def _delete(self, each: KeptRecipient, now: int) -> None:
        self._bring_back(each)
        del self._recipients[each.number]
        self._timed.pop(each.number, None)
        message = each.message
        message.recipients.remove(each.number)
        if not message.recipients:
            message.finished_at = now
            self._finished.append(message)
            empty = MemoryContent(b"", message.message.content.facts)
            message.message = replace(message.message, content=empty)

    def _route(self, domain: str, site: str) -> None:
        old = self._domains.get(domain)
        if old is None or old == site:
            return
        self._domains[domain] = site
        if old == domain:
            self._lanes.move(old, site)
            for each in self._out.values():
                if each.site == old:
                    each.site = site

    # -- looking and steering ---------------------------------------------------------------

    async def entries(
        self, selection: Selection = EVERYBODY, *, after: int = 0, limit: int = 100
    ) -> Page:
        """List recipients."""
        await trio.lowlevel.checkpoint()
        found = [
            each
            for each in self._recipients.values()
            if each.number > after and is_selected(selection, each)
        ]
        entries = tuple(self._entry(each) for each in found[:limit])
        return Page(entries, entries[-1].number if len(found) > limit else None)

    def _entry(self, each: KeptRecipient) -> Entry:
        site = self._domains[each.domain]
        entry = entry_of(each, site)
        state = self._lanes.sites.get(site)
        if state is None:
            return entry
        return replace(entry, left_alone_until=state.not_before, left_alone_for=state.reason)

    async def counts(self, *, now: float) -> Counts:
        """Count what is there."""
        await trio.lowlevel.checkpoint()
        everybody = self._recipients.values()
        dues = [each.due for each in everybody if each.state is State.QUEUED]
        states = [each.state for each in everybody]
        messages = [each for each in self._messages.values() if each.recipients]
        first = min(messages, key=lambda each: each.number, default=None)
        return Counts(
            queued=states.count(State.QUEUED),
            due=sum(due <= ms(now) for due in dues),
            leased=states.count(State.LEASED),
            held=states.count(State.HELD),
            ended=states.count(State.ENDED),
            messages=len(messages),
            oldest=None if first is None else ms(first.submission.submitted_at) / 1000,
            next_due=min(dues) / 1000 if dues else None,
        )

    async def apply(
        self, action: Action, selection: Selection, *, now: float, reason: str = ""
    ) -> int:
        """Do something to all that is selected."""
        check_reason(reason)
        await trio.lowlevel.checkpoint()
        chosen = [
            each
            for each in self._recipients.values()
            if each.state in action.states and is_selected(selection, each)
        ]
        reason = reason or action.reason
        for each in chosen:
            each.reason = reason or each.reason
            if each.state is State.LEASED:
                each.wish = action
            else:
                self._steer(each, action, ms(now))
        if action is Action.RETRY:
            for site in {self._domains[each.domain] for each in chosen} & self._lanes.sites.keys():
                self._lanes.note_site(SiteState(name=site))
        if chosen:
            self._note_change()
        return len(chosen)

    def _steer(self, each: KeptRecipient, action: Action, now: int) -> None:
        self._bring_back(each)
        match action:
            case Action.RETRY:
                self._queue(each, min(each.due, now))
            case Action.RELEASE:
                self._queue(each, now)
            case Action.HOLD:
                each.state = State.HELD
            case Action.CANCEL | Action.PURGE:
                self._remove(each, action, now)

    async def messages(self, *, after: int = 0, limit: int = 100) -> tuple[StoredMessage, ...]:
        """Return whole messages."""
        await trio.lowlevel.checkpoint()
        found = [each for each in self._messages.values() if each.recipients]
        return tuple(self._stored(each, each.recipients) for each in found if each.number > after)[
            :limit
        ]

    async def ended(self, *, after: int = 0, limit: int = 100) -> tuple[StoredMessage, ...]:
        """Return messages with recipients that ended."""
        await trio.lowlevel.checkpoint()
        found = []
        for message in self._messages.values():
            states = {number: self._recipients[number].state for number in message.recipients}
            ended = [number for number, state in states.items() if state is State.ENDED]
            if ended and message.number > after:
                stored = self._stored(message, ended)
                found.append(replace(stored, is_at_work=State.LEASED in states.values()))
        return tuple(found[:limit])

    async def delayed(
        self, *, now: float, waits: Sequence[float], after: int = 0, limit: int = 100
    ) -> Delayed:
        """Return messages with recipients that wait, and whose sender is to hear of that."""
        await trio.lowlevel.checkpoint()
        milliseconds = tuple(map(ms, waits))
        found = [
            each
            for each in self._recipients.values()
            if each.number > after and is_delayed(each, ms(now), milliseconds)
        ]
        numbers: dict[str, list[int]] = {}
        for each in found[:limit]:
            numbers.setdefault(each.message.message.id, []).append(each.number)
        messages = tuple(self._stored(self._messages[id], group) for id, group in numbers.items())  # noqa: A001 - the field's word
        return Delayed(messages, found[limit - 1].number if len(found) > limit else None)

    async def note_warned(self, recipients: Sequence[int], *, now: float) -> None:
        """Note that a sender has heard of a delay."""
        await trio.lowlevel.checkpoint()
        self._note_warned(recipients, now)

    def _note_warned(self, recipients: Sequence[int], now: float) -> None:
        for number in recipients:
            each = self._recipients.get(number)
            if each is not None and each.state is not State.ENDED:
                each.warned_at = ms(now)

    def _stored(self, message: KeptMessage, numbers: Sequence[int]) -> StoredMessage:
        everybody = [self._recipients[number] for number in numbers]
        return StoredMessage(
            message.number,
            replace(message.message, recipients=tuple(each.recipient for each in everybody)),
            tuple(entry_of(each, self._domains[each.domain]) for each in everybody),
            not_before=rounded(message.submission.not_before),
        )

    async def forget(self, recipients: Sequence[int]) -> None:
        """Delete recipients that ended."""
        await trio.lowlevel.checkpoint()
        self._forget(recipients)

    def _forget(self, recipients: Sequence[int]) -> None:
        for number in recipients:
            each = self._recipients.get(number)
            if each is not None and each.state is State.ENDED:
                self._delete(each, ms(each.message.submission.submitted_at))

    async def removals(self, *, limit: int = 500) -> tuple[Removal, ...]:
        """Return who was taken out of the queue by hand."""
        await trio.lowlevel.checkpoint()
        return tuple(self._removals.values())[:limit]

    async def forget_removals(self, numbers: Sequence[int]) -> None:
        """Forget of these that they were taken out."""
        await trio.lowlevel.checkpoint()
        for number in numbers:
            self._removals.pop(number, None)

    async def sites(self) -> tuple[SiteState, ...]:
        """Return the sites that are not in good health."""
        await trio.lowlevel.checkpoint()
        return tuple(sorted(self._lanes.sites.values(), key=lambda state: state.name))

    async def backlog(self, *, now: float, limit: int = 20) -> tuple[Backlog, ...]:
        """Return the sites most recipients wait for, or are at."""
        await trio.lowlevel.checkpoint()
        dues: dict[str, list[int]] = {}
        out: Counter[str] = Counter()
        for each in self._recipients.values():
            if each.state is State.QUEUED:
                dues.setdefault(self._lanes.site_of(each.number), []).append(each.due)
            elif each.state is State.LEASED:
                out[each.site] += 1
        found = [
            Backlog(
                site=self._lanes.sites.get(name) or SiteState(name=name),
                queued=len(waiting := dues.get(name, [])),
                due=sum(due <= ms(now) for due in waiting),
                leased=out[name],
                next_due=min(waiting) / 1000 if waiting else None,
            )
            for name in dues.keys() | out.keys()
        ]
        found.sort(key=lambda each: (-each.queued - each.leased, each.site.name))
        return tuple(found[:limit])

    async def set_weight(self, tenant: str, weight: float, *, job: str | None = None) -> None:
        """Say how large a share a tenant or a job gets."""
        check_weight(weight)
        await trio.lowlevel.checkpoint()
        self._lanes.weights[tenant, job] = weight

    # -- upkeep -----------------------------------------------------------------------------

    async def sweep(self, *, now: float, remember: float) -> None:
        """Forget what nobody needs any more."""
        await trio.lowlevel.checkpoint()
        before = ms(now) - ms(remember)
        while self._finished and (self._finished[0].finished_at or 0) <= before:
            del self._messages[self._finished.popleft().message.id]
        self._removals = {n: each for n, each in self._removals.items() if ms(each.at) > before}
        self._lanes.tidy(ms(now))

    async def check(self) -> AsyncGenerator[str, None]:
        """Look at everything: there is nothing that could have been damaged."""
        await trio.lowlevel.checkpoint()
        problems: tuple[str, ...] = ()
        for problem in problems:
            yield problem

    @property
    def changes(self) -> int:
        """Counts what may have made something due."""
        return self._changes

    async def wait_changed(self, since: int) -> None:
        """Wait until `changes` is not `since` any more."""
        while self._changes == since:
            await self._changed.wait()

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()


async def _read(message: Message) -> bytes:
    if message.content.octets is not None:
        return message.content.octets
    async with aclosing(message.content.chunks()) as chunks:
        return b"".join([chunk async for chunk in chunks])
