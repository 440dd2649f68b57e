"""Stores against a simple model, through whatever may happen in whatever order.

The model knows nothing of lanes, turns or tables: it says what a lease may take, not what it has to
take first, and follows what the store did.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from engine.queue.memory import MemoryStore
from engine.queue.sqlite import open_store
from engine.queue.values import (
    Action,
    Result,
    Selection,
    Settlement,
    SiteState,
    State,
)
from tests.queue.mail import START, leased_in, mail

OVERDUE = 1000
DOMAINS = ("one.test", "two.test", "three.test")
SITES = ("mx.test", "mx.other.test")
OWNERS = ("w1", "w2")


class OpenStore:
    """A store that lives in a Trio of its own, for callers without one."""

    def __init__(self, open_one):
        self._open = open_one
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._live,))
        self._thread.start()
        assert self._ready.wait(10)

    async def _live(self):
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with self._open() as self._store:
            self._ready.set()
            await self._stop.wait()

    def __getattr__(self, name):
        async def do(args, how):
            return await getattr(self._store, name)(*args, **how)

        return lambda *args, **how: trio.from_thread.run(do, args, how, trio_token=self._token)

    def problems(self):
        async def check():
            return [problem async for problem in self._store.check()]

        return trio.from_thread.run(check, trio_token=self._token)

    def close(self):
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@dataclass
class Known:
    """A recipient as the model has it."""

    message: str
    address: str
    due: float
    state: State = State.QUEUED
    attempts: int = 0
    deadline: float | None = None
    lease: int | None = None
    owner: str | None = None
    wish: Action | None = None
    is_marked: bool = False
    site: str = ""

    @property
    def domain(self):
        return self.address.partition("@")[2]

    def back(self, state, *, keeps_lease=False):
        self.state, self.wish, self.is_marked, self.owner = state, None, False, None
        if not keeps_lease:
            self.lease = None


@dataclass
class Model:
    """What there should be."""

    recipients: dict[int, Known] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    #: As the store says: what it knows of sites and routes it may forget while nobody needs it.
    sites: dict[str, float] = field(default_factory=dict)
    routes: dict[str, str] = field(default_factory=dict)
    #: Who was taken out by hand before he had ended.
    removed: Counter[tuple[str, str, Action]] = field(default_factory=Counter)
    now: float = START

    def is_due(self, known, sites):
        """Whether it may be leased, going by how these of its sites are."""
        if known.state is not State.QUEUED:
            return False
        return all(
            known.due <= (self.now if self.sites.get(site, 0.0) <= self.now else self.now - OVERDUE)
            for site in sites
        )

    def sites_of(self, known):
        """Where it may count: a domain that got another site leaves behind what waits."""
        return {known.site, self.routes.get(known.domain, known.domain)}

    def may_be_leased(self, known):
        return any(self.is_due(known, [site]) for site in self.sites_of(known))

    def must_be_leased(self, known):
        return self.is_due(known, self.sites_of(known))

    def has_expired(self, known):
        return (
            known.state is State.QUEUED
            and known.deadline is not None
            and known.deadline <= self.now
        )

    def grant(self, number, keeps_lease=False):
        """Do what a person wished while it was leased; return whether there was a wish."""
        known = self.recipients[number]
        match known.wish:
            case None:
                return False
            case Action.PURGE | Action.CANCEL:
                self.remove(number, known.wish)
            case _:
                known.back(State.HELD, keeps_lease=keeps_lease)
        return True

    def remove(self, number, action):
        """Let a person take it out."""
        known = self.recipients[number]
        if known.state is not State.ENDED:
            self.removed[known.message, known.address, action] += 1
        if action is Action.PURGE:
            del self.recipients[number]
        else:
            known.back(State.ENDED)


class StoreMachine(RuleBasedStateMachine):
    is_lasting = True

    def open_one(self):
        return open_store(self.folder / "spool.sqlite", overdue=OVERDUE, clock=lambda: START)

    @initialize()
    def open(self):
        self.folder = Path(tempfile.mkdtemp())
        self.store = OpenStore(self.open_one)
        self.model = Model()
        self.old = []

    def teardown(self):
        if hasattr(self, "store"):
            assert self.store.problems() == []
            self.store.close()
            shutil.rmtree(self.folder)

    def note_site(self, number):
        """Note where a recipient counts that has just been queued."""
        page = self.store.entries(after=number - 1, limit=1)
        self.model.recipients[number].site = page.entries[0].site

    def look_at_sites(self):
        model = self.model
        model.sites = {state.name: state.not_before for state in self.store.sites()}
        model.routes = {
            entry.recipient.partition("@")[2]: entry.site
            for entry in self.store.entries(limit=1000).entries
        }

    def with_state(self, *states):
        return [n for n, known in self.model.recipients.items() if known.state in states]

    # -- in and out -------------------------------------------------------------------------

    @rule(
        name=st.sampled_from([f"m{n}" for n in range(12)]),
        count=st.integers(1, 4),
        priority=st.sampled_from([0, 0, 5]),
        job=st.sampled_from(["", "j"]),
        wait=st.sampled_from([0, 0, 30]),
        lifetime=st.sampled_from([None, None, 40]),
        is_held=st.sampled_from([False, False, False, True]),
    )
    def submit(self, name, count, priority, job, wait, lifetime, is_held):
        # Of one id always the same, or it would be refused.
        start = int(name[1:])
        addresses = [f"u{k}@{DOMAINS[(start + k) % 3]}" for k in range(1 + start % 4)]
        model = self.model
        deadline = None if lifetime is None else model.now + lifetime
        submission = mail(
            *addresses,
            id=name,
            at=model.now,
            priority=priority,
            job=job,
            not_before=model.now + wait,
            deadline=deadline,
            is_held=is_held,
        )

        (accepted,) = self.store.submit([submission])

        assert accepted.is_new == (name not in model.ids)
        if accepted.is_new:
            model.ids.add(name)
            known = set(model.recipients)
            page = self.store.entries(Selection(message=name), limit=1000)
            new = [entry for entry in page.entries if entry.number not in known]
            assert [entry.recipient for entry in new] == addresses
            for entry in new:
                model.recipients[entry.number] = Known(
                    name,
                    entry.recipient,
                    model.now if is_held else model.now + wait,
                    State.HELD if is_held else State.QUEUED,
                    deadline=deadline,
                    site=entry.site,
                )

    @rule(
        owner=st.sampled_from(OWNERS),
        seats=st.integers(0, 12),
        site_seats=st.integers(1, 6),
    )
    def lease(self, owner, seats, site_seats):
        model = self.model
        self.look_at_sites()
        due = {n for n, known in model.recipients.items() if model.may_be_leased(known)}
        must = {n for n, known in model.recipients.items() if model.must_be_leased(known)}
        expired = {n for n, known in model.recipients.items() if model.has_expired(known)}
        out = Counter(
            known.site for known in model.recipients.values() if known.state is State.LEASED
        )

        lease = self.store.lease(
            owner=owner,
            now=model.now,
            seats=seats,
            deadline=model.now + 100,
            retry_at=model.now + 20,
            site_seats=site_seats,
        )

        taken = [r.number for message in lease.messages for r in message.recipients]
        gone = [r.number for message in lease.expired for r in message.recipients]
        assert set(gone) == expired
        assert len(taken) <= seats
        assert set(taken) <= due - expired
        assert len(set(taken)) == len(taken)
        for number, recipient in leased_in(lease):
            known = model.recipients[recipient.number]
            assert number == lease.number
            known.state, known.lease, known.owner = State.LEASED, number, owner
            known.wish, known.is_marked, known.due = None, False, model.now + 20
            known.site = recipient.site
            known.attempts += recipient.number in taken
            assert recipient.attempts == known.attempts
            out[recipient.site] += recipient.number in taken
            if recipient.number in taken:
                assert out[recipient.site] <= site_seats
        rest = must - expired - set(taken)
        if rest and seats and not lease.messages:
            # Something is due and nothing was given: its sites are full.
            assert lease.is_clogged
        if not due and not expired:
            assert not lease.is_clogged
            waiting = [k for k in model.recipients.values() if k.state is State.QUEUED]
            assert (lease.next_due is None) == (not waiting)
            assert lease.next_due is None or lease.next_due > model.now

    @precondition(lambda self: self.with_state(State.LEASED))
    @rule(data=st.data(), result=st.sampled_from(Result), report=st.booleans())
    def settle(self, data, result, report):
        numbers = data.draw(
            st.lists(st.sampled_from(self.with_state(State.LEASED)), min_size=1, unique=True)
        )
        settlements = [
            Settlement(
                lease=self.model.recipients[number].lease,
                recipient=number,
                result=result,
                due=self.model.now + 15,
                report=report,
            )
            for number in numbers
        ]

        assert self.store.settle(settlements, now=self.model.now) == ()

        self.old += settlements
        for number in numbers:
            self._settle(number, result, report)

    def _settle(self, number, result, report):
        model = self.model
        known = model.recipients[number]
        if result is Result.RELEASED:
            known.attempts -= 1
        if result.is_final and report:
            known.back(State.ENDED)
        elif result.is_final:
            del model.recipients[number]
        elif model.grant(number):
            pass
        elif result is Result.HELD:
            known.back(State.HELD)
        else:
            known.back(State.QUEUED)
            known.due = model.now + 15
            self.note_site(number)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def settle_once_more(self, data):
        settlement = data.draw(st.sampled_from(self.old))
        known = self.model.recipients.get(settlement.recipient)
        is_theirs = known is None or known.lease != settlement.lease

        ignored = self.store.settle([settlement], now=self.model.now)

        assert is_theirs
        assert ignored == (settlement.recipient,)

    @precondition(lambda self: self.with_state(State.LEASED))
    @rule(data=st.data())
    def mark(self, data):
        number = data.draw(st.sampled_from(self.with_state(State.LEASED)))

        self.store.mark(self.model.recipients[number].lease, [number])

        self.model.recipients[number].is_marked = True

    # -- lost leases ------------------------------------------------------------------------

    @rule(dead=st.sampled_from(OWNERS), is_known=st.booleans())
    def recover(self, dead, is_known):
        model = self.model
        # Leases last for 100 s and are never put off here; each is told by its recipients' due.
        lost = {
            n: known
            for n, known in model.recipients.items()
            if known.state is State.LEASED
            and known.owner != "rescuer"
            and ((is_known and known.owner == dead) or known.due + 80 <= model.now)
        }

        found = self.store.recover(
            owner="rescuer",
            now=model.now,
            deadline=model.now + 10**6,
            dead=[dead] if is_known else [],
        )

        doubtful = {r.number: m.lease for m in found.doubtful for r in m.recipients}
        assert set(doubtful) == {n for n, known in lost.items() if known.is_marked}
        assert found.released == len(lost) - len(doubtful)
        for number, known in lost.items():
            if number in doubtful:
                known.lease, known.owner = doubtful[number], "rescuer"
            elif not model.grant(number, keeps_lease=True):
                self.old.append(Settlement(lease=-1, recipient=number, result=Result.DELIVERED))
                known.back(State.QUEUED, keeps_lease=True)
                self.note_site(number)

    @precondition(
        lambda self: any(
            known.lease is not None and known.state in (State.QUEUED, State.HELD)
            for known in self.model.recipients.values()
        )
    )
    @rule(data=st.data(), result=st.sampled_from([Result.DELIVERED, Result.DEFERRED]))
    def settle_late(self, data, result):
        model = self.model
        number = data.draw(
            st.sampled_from(
                [
                    n
                    for n, known in model.recipients.items()
                    if known.lease is not None and known.state in (State.QUEUED, State.HELD)
                ]
            )
        )
        known = model.recipients[number]

        ignored = self.store.settle(
            [Settlement(lease=known.lease, recipient=number, result=result, due=model.now + 9)],
            now=model.now,
        )

        assert ignored == ()
        if result is Result.DELIVERED:
            del model.recipients[number]

    # -- a person ---------------------------------------------------------------------------

    @rule(action=st.sampled_from(Action), domain=st.sampled_from([*DOMAINS, None]))
    def steer(self, action, domain):
        allowed = {
            Action.RETRY: (State.QUEUED,),
            Action.HOLD: (State.QUEUED, State.LEASED),
            Action.RELEASE: (State.HELD,),
            Action.CANCEL: (State.QUEUED, State.LEASED, State.HELD),
            Action.PURGE: tuple(State),
        }[action]
        model = self.model
        chosen = [
            n for n in self.with_state(*allowed)
            if domain in (None, model.recipients[n].domain)
        ]  # fmt: skip

        count = self.store.apply(action, Selection(domain=domain), now=model.now)

        assert count == len(chosen)
        for number in chosen:
            known = model.recipients[number]
            if known.state is State.LEASED:
                known.wish = action
                continue
            match action:
                case Action.RETRY:
                    known.back(State.QUEUED)
                    known.due = min(known.due, model.now)
                    self.note_site(number)
                    backed_off = {s.name for s in self.store.sites() if s.not_before > model.now}
                    assert known.site not in backed_off
                case Action.RELEASE:
                    known.back(State.QUEUED)
                    known.due = model.now
                    self.note_site(number)
                case Action.HOLD:
                    known.back(State.HELD)
                case Action.CANCEL | Action.PURGE:
                    model.remove(number, action)

    @precondition(lambda self: self.with_state(State.ENDED))
    @rule(data=st.data())
    def forget(self, data):
        number = data.draw(st.sampled_from(sorted(self.model.recipients)))

        self.store.forget([number])

        if self.model.recipients[number].state is State.ENDED:
            del self.model.recipients[number]

    # -- the world --------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 10, 50, 200]))
    def time_passes(self, seconds):
        self.model.now += seconds

    @rule(site=st.sampled_from([*DOMAINS, *SITES]), seconds=st.sampled_from([0, 60]))
    def back_off(self, site, seconds):
        not_before = self.model.now + seconds if seconds else 0.0

        self.store.settle(
            [], now=self.model.now, sites=[SiteState(name=site, not_before=not_before)]
        )

        states = {state.name: state.not_before for state in self.store.sites()}
        assert states.get(site, 0.0) == not_before

    @rule(domain=st.sampled_from(DOMAINS), site=st.sampled_from(SITES))
    def find_route(self, domain, site):
        def site_of_domain():
            page = self.store.entries(Selection(domain=domain), limit=1)
            return page.entries[0].site if page.entries else None

        before = site_of_domain()
        self.store.settle([], now=self.model.now, routes={domain: site})
        after = site_of_domain()

        assert after in (before, site)
        if before == domain and after == site:
            for known in self.model.recipients.values():
                if known.site == domain:
                    known.site = site

    @rule()
    def sweep(self):
        self.store.sweep(now=self.model.now, remember=10**7)

    @precondition(lambda self: self.is_lasting)
    @rule()
    def open_again(self):
        self.store.close()
        self.store = OpenStore(self.open_one)

    @invariant()
    def the_store_has_what_it_should_have(self):
        if not hasattr(self, "store"):
            return
        model = self.model
        page = self.store.entries(limit=1000)
        assert page.next is None
        found = {
            entry.number: (entry.message, entry.recipient, entry.state, entry.attempts)
            for entry in page.entries
        }
        assert found == {
            number: (known.message, known.address, known.state, known.attempts)
            for number, known in model.recipients.items()
        }
        dues = {e.number: e.next_attempt for e in page.entries if e.next_attempt is not None}
        assert dues == {
            number: known.due
            for number, known in model.recipients.items()
            if known.state in (State.QUEUED, State.LEASED)
        }
        counts = self.store.counts(now=model.now)
        states = Counter(known.state for known in model.recipients.values())
        assert (counts.queued, counts.leased, counts.held, counts.ended) == (
            states[State.QUEUED],
            states[State.LEASED],
            states[State.HELD],
            states[State.ENDED],
        )
        removed = Counter((r.message, r.recipient, r.action) for r in self.store.removals())
        assert removed == model.removed


class MemoryMachine(StoreMachine):
    is_lasting = False

    def open_one(self):
        @asynccontextmanager
        async def open_memory():
            yield MemoryStore(overdue=OVERDUE)

        return open_memory()


SETTINGS = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestStoreInAFile = StoreMachine.TestCase
TestStoreInAFile.settings = SETTINGS
TestStoreInMemory = MemoryMachine.TestCase
TestStoreInMemory.settings = SETTINGS
