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
    *("well",) * 12,
    *("greylists",) * 8,
    *("greylists on two families",) * 2,
    *("storms",) * 4,
    *("loses replies",) * 2,
    *("out for seven hours",) * 2,
    "silent for two days",
    "no name servers for a day",
    *("primary dead",) * 2,
    *("crowded",) * 2,
    *("tarpit",) * 2,
    "dead",
    *("no such users",) * 2,
)


def site_of(domain):
    return int(domain[1:].partition(".")[0]) % SITES


def kind_of(domain):
    return KINDS[site_of(domain) % len(KINDS)]


def zone(*, is_whole):
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
        is_silent = not is_whole and kind_of(f"d{number}.test") == "no name servers for a day"
        names[f"d{number}.test"] = {"MX": "SERVFAIL" if is_silent else hosts}
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
                    reply = self.finish(kind, recipients)
                    if kind == "loses replies" and self.rng.random() < 0.2:
                        return
                    say(reply)
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
            # Nothing takes any time here, and stores keep milliseconds.
            if now - first < 299.9:
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

    async def submit(tenant="bulk"):
        now, number = trio.current_time(), len(week.came)
        domains = rng.sample(range(DOMAINS), rng.choice([1, 1, 2]))
        addresses = [
            f"{tenant}{number}-{k}@d{rng.choice(domains)}.test"
            for k in range(rng.choice([1, 2, 4, 8]))
        ]
        week.came |= dict.fromkeys(addresses, now)
        await store.submit([mail(*addresses, at=now, tenant=tenant, job=f"j{number % 3}")])

    async def submit_all():
        while len(week.came) < RECIPIENTS // 3:
            await submit()
        for _ in range(30):
            await submit("small")
        while len(week.came) < RECIPIENTS:
            await trio.sleep(rng.expovariate(1 / 45))
            await submit()

    dns = FakeDns(zone(is_whole=False), ttl=HOUR)

    async def mend_name_servers():
        await trio.sleep(DAY)
        dns.change(zone(is_whole=True))

    async with trio.open_nursery() as receivers.nursery:
        receivers.nursery.start_soon(mend_name_servers)
        async with Engine(
            Settings(helo_name="me.test", max_connections=CONNECTIONS, interface=OURS),
            router=Router(dns, local_addresses=[]),
            connector=receivers,
            max_in_flight=SEATS,
            store=store,
            queue=QueueOptions(on_settled=week.note, site_seats=SITE_SEATS),
            clock=trio.current_time,
            rng=random.Random(5),
        ) as engine:
            await submit_all()
            await engine.scheduler.wait_empty()
        receivers.nursery.cancel_scope.cancel()
    return week


@pytest.fixture(scope="module")
def week():
    # Some hundred thousand lines would be kept until the end.
    logging.getLogger("engine").setLevel(logging.ERROR)
    try:
        return trio.run(live, clock=MockClock(autojump_threshold=0))
    finally:
        logging.getLogger("engine").setLevel(logging.NOTSET)


def test_everybody_is_tried_as_the_rules_say_until_the_end(week):
    assert RECIPIENTS <= len(week.came) < RECIPIENTS + 10
    assert set(week.told) == set(week.came)
    for who, told in week.told.items():
        *before, (_, last) = told
        assert last.is_final
        assert not any(settled.is_final for _, settled in before)
        assert [settled.recipient.attempts for _, settled in told] == list(range(1, len(told) + 1))
        accepted = len(week.receivers.accepted.get(who, ()))
        if last.settlement.result is Result.DELIVERED:
            unknown = sum(settled.outcome.status is Status.UNKNOWN for _, settled in told)
            assert 1 <= accepted <= 1 + unknown, who
        else:
            assert accepted == 0


def test_waits_are_those_of_the_default_rule_and_are_kept(week):
    for who, told in week.told.items():
        for number, ((then, settled), (after, _)) in enumerate(pairwise(told)):
            least, most = WAITS[number] if number < len(WAITS) else LAST_WAIT
            # In whole seconds: up to two more.
            assert least - 0.01 <= settled.next_attempt - then <= most + 2.01, (who, number)
            assert after >= settled.next_attempt - 0.01, (who, number)


@pytest.mark.parametrize("kind", ["well", "primary dead", "crowded", "tarpit"])
def test_who_can_be_reached_gets_it_at_the_first_try(week, kind):
    for _, came, ((end, settled),) in week.of(kind):
        assert settled.settlement.result is Result.DELIVERED
        # A line of a tarpit takes ten seconds, and a burst its time.
        assert end - came < (600 if kind == "tarpit" else 30)


@pytest.mark.parametrize("kind", ["greylists", "greylists on two families"])
def test_greylisted_mail_comes_again_in_time_and_from_the_same_address(week, kind):
    for who, _, told in week.of(kind):
        # One that refuses for now is asked at its other address, too: behind the first.
        asked = week.receivers.asked[who]
        (first, source), (second, again) = asked[0], asked[-1]
        assert source == again == OURS[kind == "greylists on two families"]
        assert 300 <= second - first + 0.1 < 330
        assert len(told) == 2
        assert told[-1][1].settlement.result is Result.DELIVERED


@pytest.mark.parametrize(
    ("kind", "over"),
    [
        ("storms", DAY),
        ("loses replies", DAY),
        ("out for seven hours", 7 * HOUR),
        ("silent for two days", 2 * DAY),
        ("no name servers for a day", DAY),
    ],
)
def test_what_passes_is_outlived(week, kind, over):
    tries = Counter()
    for _, came, told in week.of(kind):
        end, settled = told[-1]
        assert settled.settlement.result is Result.DELIVERED
        # The longest wait, then a back-off of the site; and a few who meet another reply lost.
        assert end < max(came, over) + LAST_WAIT[1] + BACK_OFF
        tries[len(told)] += 1
    assert max(tries) > 2


def test_what_does_not_pass_ends_after_four_days_and_not_before(week):
    for _, came, told in week.of("dead"):
        end, settled = told[-1]
        assert settled.settlement.result is Result.FAILED
        assert "no step left" in settled.text
        # The longest wait, then a back-off of the site; and one more for who falls due as it ends,
        # and finds that others, just before him, have found the site still down.
        assert 4 * DAY <= end - came < 4 * DAY + LAST_WAIT[1] + 2 * BACK_OFF
        # Nobody uses his tries up while his site is left alone.
        assert len(told) > 20


def test_who_is_refused_for_good_is_not_tried_again(week):
    for _, came, ((end, settled),) in week.of("no such users"):
        assert settled.settlement.result is Result.FAILED
        assert end - came < 30


def test_no_limit_is_ever_exceeded_and_all_are_reached(week):
    assert week.store.most == SEATS
    assert SITE_SEATS * 0.9 <= week.store.most_of_site <= SITE_SEATS
    assert max(week.receivers.most.values()) == CONNECTIONS


def test_who_has_little_does_not_wait_for_who_has_much(week):
    ends = {"small": [], "bulk": []}
    for who, came, told in week.of("well"):
        if came == 0:
            ends["small" if who.startswith("small") else "bulk"].append(told[-1][0])
    assert len(ends["small"]) > 10
    bulk = sorted(ends["bulk"])
    assert max(ends["small"]) < bulk[len(bulk) * 3 // 4]
    assert sorted(ends["small"])[len(ends["small"]) // 2] < bulk[len(bulk) // 2]


def test_a_site_that_is_down_is_left_alone_most_of_the_time(week):
    least = {"out for seven hours": 7 * HOUR, "silent for two days": 2 * DAY, "dead": 4 * DAY}
    for site, count in week.receivers.refused.items():
        seconds = least.get(KINDS[site % len(KINDS)])
        if seconds is not None:
            # Back-offs are 15 minutes long; a few are under way when the next one begins.
            assert count < 3 * seconds / (15 * 60)
