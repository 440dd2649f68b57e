"""A week of the whole engine with a store, in seconds: 10,000 recipients, and receivers as they are.

Virtual time runs through greylisting, outages, storms, tarpits and dead hosts, with the retry rules
that hold where nobody said anything.  Only the wire is made up: the store, the scheduler, the router,
the pools and the sessions are the engine's own.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from engine.engine import Engine
from engine.net.errors import ConnectFailed
from engine.net.interface import choose_interface
from engine.outcome import Cause, Scope, Status
from engine.queue.memory import MemoryStore
from engine.queue.values import Result
from engine.routing.router import Router
from engine.settings import Settings
from engine.smtp.stages import Stage
from engine.stored import QueueOptions
from engine.testing.dns import FakeDns
from tests.delivery.helpers import connection_to, link
from tests.queue.mail import mail

HOUR = 3600.0
DAY = 24 * HOUR
#: A third of the mail comes at once, the rest within the first day.
RECIPIENTS = 10_000
SITES, DOMAINS = 80, 400
SEATS, SITE_SEATS, CONNECTIONS = 400, 60, 4
OURS = ("198.51.100.9", "2001:db8::9")
#: What a wait of the default rule may be, by the number of attempts before it.
WAITS = [
    (300, 300),
    *((wait * 0.8, wait * 1.2) for wait in (600, 1200, 2400, HOUR, 2 * HOUR)),
]
LAST_WAIT = (4 * HOUR * 0.8, 4 * HOUR * 1.2)
#: A back-off of a site: 15 minutes and its jitter.
BACK_OFF = 15 * 60 * 1.2

#: Kinds of sites, in turns.
KINDS = (
    *("well",) * 6,
    *("greylists",) * 4,
    "greylists on two families",
    *("storms",) * 2,
    "out for seven hours",
    "silent for two days",
    "primary dead",
    "crowded",
    "tarpit",
    "dead",
    "no such users",
)


def site_of(domain):
    return int(domain[1:].partition(".")[0]) % SITES


def kind_of(domain):
    return KINDS[site_of(domain) % len(KINDS)]


def zone():
    """Every site has a host or two; several domains are at each."""
    names = {}
    for site in range(SITES):
        names[f"mx1.s{site}.test"] = {"A": [f"192.0.2.{site}"]}
        names[f"mx2.s{site}.test"] = {"A": [f"203.0.113.{site}"]}
        if KINDS[site % len(KINDS)] == "greylists on two families":
            names[f"mx1.s{site}.test"]["AAAA"] = [f"2001:db8:1::{site:x}"]
    for number in range(DOMAINS):
        site = number % SITES
        hosts = [f"10 mx1.s{site}.test"]
        if KINDS[site % len(KINDS)] == "primary dead":
            hosts.append(f"20 mx2.s{site}.test")
        names[f"d{number}.test"] = {"MX": hosts}
    return names


# ---- the receivers --------------------------------------------------------------------------------


@dataclass
class Receivers:
    """All hosts there are, as a connector sees them.

    Attributes:
        accepted: When mail for a recipient was accepted.
        asked: When and from where each recipient was tried.
        open: Connections of each site.
        most: The most there ever were.
        refused: Connections refused, or not answered, by each site.
    """

    rng: random.Random = field(default_factory=lambda: random.Random(7))
    accepted: dict[str, list[float]] = field(default_factory=dict)
    asked: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    open: Counter[int] = field(default_factory=Counter)
    most: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    nursery: trio.Nursery | None = None
    _seen: dict[tuple[str, str, str], float] = field(default_factory=dict)

    async def connect(self, candidate, options, *, early_data=b""):
        await trio.lowlevel.checkpoint()
        assert not early_data
        site = int(candidate.host.partition(".s")[2].partition(".")[0])
        kind, now = KINDS[site % len(KINDS)], trio.current_time()
        if (
            kind == "dead"
            or (kind == "out for seven hours" and now < 7 * HOUR)
            or (kind == "primary dead" and candidate.preference == 0)
        ):
            self.fail(site, Cause.REFUSED)
        if kind == "silent for two days" and now < 2 * DAY:
            await trio.sleep(options.connect_timeout)
            self.fail(site, Cause.TIMEOUT)
        client, server = link()
        source = choose_interface(options.interface, candidate.is_ipv6)
        self.nursery.start_soon(self.serve, site, kind, source, client, server)
        return connection_to(candidate, client)

    def fail(self, site, cause):
        self.refused[site] += 1
        raise ConnectFailed(Stage.CONNECT, cause, Scope.HOST, f"connection {cause}")

    async def serve(self, site, kind, source, client, server):
        self.open[site] += 1
        self.most[site] = max(self.most[site], self.open[site])
        try:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.converse(kind, source, server, is_crowded=self.open[site] > 2)
        finally:
            self.open[site] -= 1
            server.close()

    async def converse(self, kind, source, server, *, is_crowded):
        def say(reply):
            server.send_nowait(f"{reply}\r\n".encode())

        if kind == "crowded" and is_crowded:
            say("421 4.7.0 too many connections")
            return
        say("220 mx.test")
        sender, recipients = "", []
        while (line := await line_of(server)) is not None:
            if kind == "tarpit":
                await trio.sleep(10)
            match line[:4]:
                case "EHLO":
                    say("250-mx.test\r\n250 PIPELINING")
                case "MAIL":
                    if kind == "storms" and trio.current_time() < DAY and self.rng.random() < 0.05:
                        say("421 4.3.2 come back later")
                        return
                    sender, recipients = line, []
                    say("250 ok")
                case "RCPT":
                    recipient = line[9:-1]
                    reply = self.answer(kind, source, sender, recipient)
                    if reply[0] == "2":
                        recipients.append(recipient)
                    say(reply)
                case "DATA" if not recipients:
                    say("554 5.5.1 nobody")
                case "DATA":
                    say("354 go on")
                    while await line_of(server) not in (".", None):
                        pass
                    await trio.sleep(0.5)
                    say(self.finish(kind, recipients))
                case "QUIT":
                    say("221 bye")
                    return
                case _:
                    say("250 ok")

    def answer(self, kind, source, sender, recipient):
        now = trio.current_time()
        self.asked.setdefault(recipient, []).append((now, source))
        if kind == "no such users":
            return "550 5.1.1 no such user"
        if kind.startswith("greylists"):
            first = self._seen.setdefault((source, sender, recipient), now)
            if now - first < 300:
                return "450 4.7.1 greylisted"
        if kind == "storms" and now < DAY and self.rng.random() < 0.3:
            return "452 4.2.2 full"
        return "250 ok"

    def finish(self, kind, recipients):
        now = trio.current_time()
        if kind == "storms" and now < DAY and self.rng.random() < 0.3:
            return "451 4.3.0 not now"
        for recipient in recipients:
            self.accepted.setdefault(recipient, []).append(now)
        return "250 2.0.0 queued"


async def line_of(stream):
    """Return the next line, `None` where there will be none; what comes behind it stays."""
    while (end := stream.incoming.octets.find(b"\r\n")) < 0:
        if stream.is_closed or stream.incoming.is_ended:
            return None
        await stream.incoming.change()
    return stream.incoming.take(end + 2)[:-2].decode()


# ---- the store, watched ---------------------------------------------------------------------------


class WatchedStore(MemoryStore):
    """Sees to it that nobody has more under a lease than it may."""

    def __init__(self):
        super().__init__()
        self.out = {}
        self.most = self.most_of_site = 0

    async def lease(self, **how):
        lease = await super().lease(**how)
        for message in lease.messages:
            for recipient in message.recipients:
                self.out[message.lease, recipient.number] = recipient.site
        self.most = max(self.most, len(self.out))
        self.most_of_site = max(self.most_of_site, *Counter(self.out.values()).values(), 0)
        return lease

    async def settle(self, settlements, **how):
        ignored = await super().settle(settlements, **how)
        for each in settlements:
            self.out.pop((each.lease, each.recipient), None)
        assert not ignored
        return ignored


# ---- the week -------------------------------------------------------------------------------------


@dataclass
class Week:
    """What came of it.

    Attributes:
        told: What was told of each recipient, with the time.
        came: When each was submitted.
    """

    receivers: Receivers = field(default_factory=Receivers)
    store: WatchedStore = field(default_factory=WatchedStore)
    told: dict[str, list] = field(default_factory=dict)
    came: dict[str, float] = field(default_factory=dict)

    async def note(self, batch):
        await trio.lowlevel.checkpoint()
        for settled in batch:
            self.told.setdefault(settled.outcome.recipient, []).append(
                (trio.current_time(), settled)
            )

    def of(self, *kinds):
        """Yield those at sites of some kind: who, when he came, and what was told of him."""
        for who, came in self.came.items():
            if kind_of(who.partition("@")[2]) in kinds:
                yield who, came, self.told[who]


async def live():
    week, rng = Week(), random.Random(11)
    store, receivers = week.store, week.receivers

    async def submit(number, tenant="bulk"):
        now = trio.current_time()
        count = rng.choice([1, 1, 2, 4])
        addresses = [
            f"u{number}-{k}@d{rng.randrange(DOMAINS)}.test" for k in range(count)
        ]
        week.came |= dict.fromkeys(addresses, now)
        submission = mail(*addresses, at=now, tenant=tenant, job=f"j{number % 3}")
        await store.submit([submission])

    async def submit_all():
        number = 0
        while len(week.came) < RECIPIENTS // 3:
            await submit(number := number + 1)
        while len(week.came) < RECIPIENTS:
            await trio.sleep(rng.expovariate(1 / 25))
            tenant = "small" if number % 50 == 0 else "bulk"
            await submit(number := number + 1, tenant)

    router = Router(FakeDns(zone(), ttl=DAY), local_addresses=[])
    async with trio.open_nursery() as receivers.nursery:
        engine = Engine(
            Settings(helo_name="me.test", max_connections=CONNECTIONS, interface=OURS),
            router=router,
            connector=receivers,
            max_in_flight=SEATS,
            store=store,
            queue=QueueOptions(on_settled=week.note, site_seats=SITE_SEATS),
            clock=trio.current_time,
            rng=random.Random(5),
        )
        async with engine:
            await submit_all()
            await engine.scheduler.wait_empty()
        receivers.nursery.cancel_scope.cancel()
    return week


@pytest.fixture(scope="module")
def week():
    logging.getLogger("engine").setLevel(logging.ERROR)
    import time

    began = time.monotonic()
    week = trio.run(live, clock=MockClock(autojump_threshold=0))
    print("seconds", time.monotonic() - began)
    return week


def test_x(week):
    print(week.store.most, week.store.most_of_site, week.receivers.most)
    by_kind = {}
    for who, came, told in week.of(*KINDS):
        end = told[-1]
        by_kind.setdefault(kind_of(who.partition("@")[2]), []).append(
            (len(told), end[0] - came, str(end[1].settlement.result))
        )
    for kind, ends in by_kind.items():
        print(
            kind,
            len(ends),
            Counter(e[2] for e in ends),
            Counter(e[0] for e in ends),
            round(min(e[1] for e in ends)),
            round(max(e[1] for e in ends)),
        )
    assert 0
