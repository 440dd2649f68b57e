"""An engine with a store that is killed before any step of any task; the next run finds what it left.

While an engine works, its store is copied before every step that Trio runs, with what receivers had
accepted by then and what had been told of outcomes: that is what a process leaves that is killed just
there.  Each copy is then worked off by another engine.  (Being cancelled anywhere, which lets a process
clean up, is tried in `tests/queue/test_scheduler.py`; real processes are killed by `tests.crash`.)
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from engine.outcome import Status
from engine.queue.decision import Policy, Unknown
from engine.queue.memory import MemoryStore
from engine.queue.retry import read_rules
from engine.stored import QueueOptions
from tests.delivery.helpers import an_engine, message, serving, settings

RULES, _ = read_rules([{"match": "*", "steps": ["10s", "1m until 1h"]}])
#: By id; who is `busy` is deferred at first, who is `nobody` is refused.
MAIL = {
    "one": ("a@x.test", "busy@x.test"),
    "two": ("b@x.test",),
    "three": ("nobody@y.test", "c@y.test"),
    "late": ("d@x.test",),
}
REFUSED = {"nobody@y.test"}


@dataclass(frozen=True)
class Left:
    """What a run leaves that is killed.

    Attributes:
        store: What is in the store.
        at: When it was, by the clock of that run.
        submitted: The ids of the messages that were taken by then.
        accepted: What receivers have accepted.
        told: Who was told of, with what, and whether that was the end.
    """

    store: MemoryStore
    at: float
    submitted: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    told: tuple[tuple[str, Status, bool], ...] = ()


class Run:
    """One run of an engine at a store."""

    def __init__(self, owner, left, policy):
        self.owner, self.left, self.policy = owner, left, policy
        self.submitted, self.told = list(left.submitted), list(left.told)
        self.service = None

    async def tell(self, batch):
        await trio.lowlevel.checkpoint()
        self.told += [(s.outcome.recipient, s.outcome.status, s.is_final) for s in batch]

    def answer(self, host, recipient):
        if recipient == "nobody":
            return "550 5.1.1 no such user"
        if recipient == "busy" and self.left.at + trio.current_time() < 5:
            return "450 4.2.1 busy"
        return "250 ok"

    async def live(self, *messages):
        queue = QueueOptions(
            policy=self.policy, on_settled=self.tell, owner=self.owner, dead=["the first"]
        )
        async with serving(self.answer, delay=0.1) as self.service:
            async with an_engine(
                self.service,
                settings=settings(max_connections=2),
                store=self.left.store,
                queue=queue,
                clock=lambda: self.left.at + trio.current_time(),
            ) as engine:
                for each in messages:
                    await engine.submit(each)
                    self.submitted.append(each.id)
                    await trio.sleep(0.05)
                await engine.scheduler.wait_empty()

    def leave(self):
        """Copy what would be there if it were killed now."""
        store = self.left.store
        # Who waits for the store is not part of it.
        fresh = {id(store._changed): trio.Event()}
        accepted = [] if self.service is None else [name for _, name in self.service.accepted]
        return Left(
            copy.deepcopy(store, fresh),
            trio.current_time(),
            tuple(self.submitted),
            (*self.left.accepted, *accepted),
            tuple(self.told),
        )


class Copier(trio.abc.Instrument):
    """Asks a run what it would leave, before every step."""

    def __init__(self, run):
        self.run = run
        self.left = []

    def before_task_step(self, task):
        self.left.append(self.run.leave())


def live(run, *messages, instruments=()):
    trio.run(run.live, *messages, clock=MockClock(autojump_threshold=0), instruments=instruments)


@pytest.mark.parametrize("unknown", [Unknown.RETRY, Unknown.ASSUME_DELIVERED])
def test_wherever_it_is_killed_nobody_is_lost_and_whoever_gets_it_twice_was_unknown(unknown):
    policy = Policy(RULES, unknown=unknown)
    first = Run("the first", Left(MemoryStore(), 0.0), policy)
    copier = Copier(first)
    live(first, *(message(*to, id=name) for name, to in MAIL.items()), instruments=[copier])
    assert len(copier.left) > 150

    seen = Counter()
    for left in copier.left:
        second = Run("the second", left, policy)
        live(second)
        judge(second, unknown, seen)
    # All that can come of it did.
    assert seen["unknown"] > 20
    assert seen["told twice"] > 0
    assert (seen["twice"] > 0) is (unknown is Unknown.RETRY)
    assert (seen["not at all"] > 0) is (unknown is Unknown.ASSUME_DELIVERED)


def judge(run, unknown, seen):
    left = run.left
    accepted = Counter([*left.accepted, *(name for _, name in run.service.accepted)])
    doubtful = {who for who, status, _ in run.told if status is Status.UNKNOWN}
    finals = Counter(who for who, _, is_final in run.told if is_final)
    told_before = {who for who, _, is_final in left.told if is_final}
    for id_, recipients in MAIL.items():
        for who in recipients:
            copies = accepted[who.partition("@")[0]]
            seen["unknown"] += who in doubtful
            seen["twice"] += copies == 2
            assert copies <= 1 + (who in doubtful)
            if id_ not in left.submitted:
                # It may be there, or not; there is none but the whole of it.
                assert finals[who] in (0, 1)
                continue
            if who in REFUSED:
                assert copies == 0
            elif unknown is Unknown.RETRY or who not in doubtful:
                assert copies >= 1
            else:
                seen["not at all"] += copies == 0
            # Once; or once more by the second run, where the first was killed before the store knew.
            assert finals[who] == 1 or (finals[who] == 2 and who in told_before)
            seen["told twice"] += finals[who] == 2
