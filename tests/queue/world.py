"""A world of receivers under virtual time, for tests of the scheduler.

`World` stands where the engine would: it takes messages, lets time pass, and gives an outcome for
each recipient, as the server of its domain behaves at that time.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import asynccontextmanager

import trio

from engine.outcome import Cause, Scope, Status
from engine.queue.scheduler import Scheduler
from engine.smtp.stages import Stage
from tests.queue.mail import START, outcome


def wall_clock():
    """The wall clock of a test under virtual time."""
    return START + trio.current_time()


def accepted(message, recipient):
    return outcome(
        Status.DELIVERED, message=message, recipient=recipient, stage=Stage.FINAL, code=250
    )


def later(message, recipient, code=451, stage=Stage.RCPT, scope=Scope.RECIPIENT):
    return outcome(message=message, recipient=recipient, stage=stage, code=code, scope=scope)


def refused(message, recipient, code=550):
    return outcome(Status.FAILED, message=message, recipient=recipient, code=code)


def unreachable(message, recipient, cause=Cause.REFUSED):
    return outcome(
        message=message, recipient=recipient, stage=Stage.CONNECT, cause=cause, scope=Scope.HOST
    )


class World:
    """Receivers, and what they were seen to do.

    Attributes:
        behave: Answers `(message id, address, domain)` with an outcome; `None` for never.
        seconds: How long a delivery takes.
        tries: When each recipient was tried, by address.
        delivered: How often each recipient was delivered, by address.
        out: How many recipients are being delivered.
        most: How many ever were.
        most_at: The same by domain.
    """

    def __init__(self, behave=None, *, seconds=0.5):
        self.behave = behave or (lambda message, address, domain: accepted(message, address))
        self.seconds = seconds
        self.tries = {}
        self.delivered = Counter()
        self.out = self.most = 0
        self.out_at, self.most_at = Counter(), Counter()
        self.outcomes_in, self.outcomes = trio.open_memory_channel(math.inf)
        self.nursery = None

    async def deliver(self, message):
        await trio.lowlevel.checkpoint()
        for recipient in message.recipients:
            self._count(recipient.mailbox.routing_domain, 1)
            self.tries.setdefault(recipient.address, []).append(wall_clock())
        self.nursery.start_soon(self._deliver, message)

    async def _deliver(self, message):
        waiting = list(message.recipients)
        try:
            await trio.sleep(self.seconds)
            for recipient in message.recipients:
                domain = recipient.mailbox.routing_domain
                found = self.behave(message.id, recipient.address, domain)
                if found is not None:
                    waiting.remove(recipient)
                    self._settle(recipient, found)
            if waiting:
                await trio.sleep_forever()
        finally:
            # As the engine does: whatever is cancelled has an outcome, too.
            for recipient in waiting:
                cancelled = outcome(
                    message=message.id,
                    recipient=recipient.address,
                    stage=Stage.CONNECT,
                    cause=Cause.CANCELLED,
                    scope=Scope.LOCAL,
                )
                self._settle(recipient, cancelled)

    def _settle(self, recipient, found):
        self._count(recipient.mailbox.routing_domain, -1)
        self.delivered[recipient.address] += found.status is Status.DELIVERED
        self.outcomes_in.send_nowait(found)

    def _count(self, domain, number):
        self.out += number
        self.out_at[domain] += number
        self.most = max(self.most, self.out)
        self.most_at[domain] = max(self.most_at[domain], self.out_at[domain])

    @asynccontextmanager
    async def running(self):
        """Run the receivers; when the block ends, however, everybody has an outcome."""
        try:
            async with trio.open_nursery() as self.nursery:
                yield self
                self.nursery.cancel_scope.cancel()
        finally:
            self.outcomes_in.close()


@asynccontextmanager
async def scheduling(store, world, **how):
    """Run a scheduler over a world until the block ends, then drain it."""
    how = {"owner": "w1", "clock": wall_clock} | how
    async with Scheduler(store, **how) as scheduler, world.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run, world.deliver, world.outcomes)
            yield scheduler
            scheduler.drain()
