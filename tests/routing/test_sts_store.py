from __future__ import annotations

import logging
from collections import Counter

import pytest
import trio

from engine.queue.hints import MemoryHints, open_hints
from engine.routing.cache import CachingResolver
from engine.routing.mta_sts import StsFinding, StsPolicy
from engine.routing.sts_fetch import StsFetcher, StsFetchError
from engine.routing.sts_store import HINT_KIND, StsPolicies
from engine.testing.dns import FakeDns
from tests.https_server import HttpsServer, Page

DAY = 86_400
WEEK = 7 * DAY
MX = ("mx.example.test",)
ENFORCE = StsPolicy("enforce", WEEK, MX)
TESTING = StsPolicy("testing", WEEK, MX)
NAME = "_mta-sts.example.test"


def announce(identity):
    return {NAME: {"TXT": [f"v=STSv1; id={identity}"]}}


class Fetcher:
    """Gives what it is told to, and counts."""

    def __init__(self, result=ENFORCE, delay=0.0):
        self.result = result
        self.delay = delay
        self.fetched = Counter()

    async def fetch(self, domain):
        self.fetched[domain] += 1
        await trio.sleep(self.delay)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class World:
    """A domain with a policy, and a store; its wall clock goes with Trio's."""

    def __init__(self, zone=None, *, ttl=300.0, hints=None, **fetcher):
        self.dns = FakeDns(announce("1") if zone is None else zone, ttl=ttl)
        self.fetcher = Fetcher(**fetcher)
        self.hints = MemoryHints(clock=self.clock) if hints is None else hints
        self.resolver = CachingResolver(self.dns)
        self.store = self.restarted()

    def clock(self):
        return 1_000_000.0 + trio.current_time()

    def restarted(self):
        return StsPolicies(self.resolver, self.hints, self.fetcher, clock=self.clock)

    async def find(self):
        return await self.store.find("example.test")

    @property
    def fetches(self):
        return self.fetcher.fetched["example.test"]


GONE = StsFetchError("sts-policy-fetch-error", "nobody there")


async def test_a_policy_that_is_announced_is_fetched_once(autojump_clock):
    world = World()

    first, second = await world.find(), await world.find()

    assert (first.policy, first.failure, first.seconds) == (ENFORCE, None, 300)
    assert second.policy == ENFORCE
    assert world.fetches == 1
    assert world.dns.asked == {(NAME, "TXT"): 1}


@pytest.mark.parametrize("zone", [{}, {NAME: {}}, {NAME: {"TXT": ["v=spf1 -all"]}}])
async def test_a_domain_without_a_record_has_no_policy_and_nothing_is_fetched(zone, autojump_clock):
    world = World(zone)

    finding = await world.find()

    assert finding == StsFinding(seconds=300)
    assert world.fetches == 0


async def test_when_the_dns_gives_no_answer_there_may_be_a_policy(autojump_clock):
    world = World({NAME: {"TXT": "SERVFAIL"}})

    finding = await world.find()

    assert (finding.policy, finding.failure, finding.is_unknown) == (None, None, True)
    assert 0 < finding.seconds <= 30


async def test_a_thousand_at_once_cost_one_fetch(autojump_clock):
    world = World(delay=5)
    findings = []

    async def ask():
        findings.append(await world.find())

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(ask)

    assert world.fetches == 1
    assert {finding.policy for finding in findings} == {ENFORCE}


async def test_who_is_cancelled_disturbs_nobody(autojump_clock):
    world = World(delay=5)
    found = []

    async def ask(seconds):
        with trio.move_on_after(seconds):
            found.append((await world.find()).policy)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 1)
        nursery.start_soon(ask, 100)

    assert found == [ENFORCE]


async def test_a_new_id_means_that_the_policy_is_fetched_again(autojump_clock):
    world = World()
    await world.find()
    world.dns.change(announce("2"))
    world.fetcher.result = TESTING

    assert (await world.find()).policy == ENFORCE  # the record is still remembered
    await trio.sleep(301)
    assert (await world.find()).policy == TESTING
    await world.find()
    assert world.fetches == 2


class TestWhatIsKept:
    async def test_a_policy_survives_a_restart(self, autojump_clock):
        world = World()
        await world.find()
        world.store = world.restarted()

        finding = await world.find()

        assert finding.policy == ENFORCE
        assert world.fetches == 1

    async def test_a_policy_survives_in_the_file_of_hints(self, tmp_path):
        for _ in range(2):
            async with open_hints(tmp_path / "hints.sqlite") as hints:
                world = World(hints=hints)
                world.fetcher.result = ENFORCE if _ == 0 else GONE
                assert (await world.find()).policy == ENFORCE
                assert world.fetches == (1 if _ == 0 else 0)

    @pytest.mark.parametrize("zone", [{}, {NAME: {"TXT": "SERVFAIL"}}, {NAME: {"TXT": ["junk"]}}])
    async def test_it_holds_when_the_record_is_gone(self, zone, autojump_clock):
        """RFC 8461 §3.3; its owner is told (§6)."""
        world = World()
        await world.find()
        world.dns.change(zone)
        await trio.sleep(301)

        finding = await world.find()

        assert (finding.policy, finding.failure) == (ENFORCE, "sts-policy-fetch-error")
        assert finding.reason
        assert world.fetches == 1

    async def test_it_holds_when_another_one_cannot_be_fetched(self, autojump_clock):
        world = World()
        await world.find()
        world.dns.change(announce("2"))
        world.fetcher.result = StsFetchError("sts-webpki-invalid", "expired")
        await trio.sleep(301)

        finding = await world.find()

        assert (finding.policy, finding.failure, finding.reason) == (
            ENFORCE,
            "sts-webpki-invalid",
            "expired",
        )

    async def test_it_holds_until_it_expires_and_no_longer(self, autojump_clock):
        world = World(ttl=100)
        await world.find()
        world.dns.change({})

        await trio.sleep(WEEK - 10)
        finding = await world.find()
        assert (finding.policy, finding.seconds) == (ENFORCE, 10)
        await trio.sleep(10)
        assert (await world.find()).policy is None

    async def test_a_clock_that_was_set_back_does_not_make_it_live_longer_than_it_says(self):
        world = World()
        await world.find()
        world.clock = lambda: 0.0
        world.store = world.restarted()

        assert (await world.find()).seconds <= WEEK

    @pytest.mark.parametrize(
        "octets", [b"", b"junk", b"[]", b"{}", b'["1", 0, 5]', b'["1", "x", ""]', b"\xff", b'["1"]']
    )
    async def test_a_hint_that_is_broken_is_as_good_as_lost(self, octets, autojump_clock):
        world = World()
        world.hints.put(HINT_KIND, "example.test", octets, seconds=WEEK)

        assert (await world.find()).policy == ENFORCE
        assert world.fetches == 1

    async def test_a_policy_that_must_not_be_kept_is_used_for_a_minute(self, autojump_clock):
        world = World(result=StsPolicy("enforce", 0, MX), ttl=5)

        finding = await world.find()
        assert (finding.policy.max_age, finding.seconds) == (0, 60)
        await trio.sleep(59)
        assert (await world.find()).policy is not None
        assert world.fetches == 1
        await trio.sleep(2)
        assert (await world.find()).policy is not None
        assert world.fetches == 2


class TestFailures:
    async def test_a_policy_that_cannot_be_fetched_is_none(self, autojump_clock):
        """RFC 8461 §3.3: as though the domain had not implemented MTA-STS."""
        world = World(result=GONE)

        finding = await world.find()

        assert finding == StsFinding(None, "sts-policy-fetch-error", "nobody there", 300)

    async def test_it_is_not_tried_again_for_five_minutes(self, autojump_clock):
        world = World(result=GONE, ttl=30)
        for _ in range(10):
            await world.find()
            await trio.sleep(29)
        assert world.fetches == 1
        await trio.sleep(30)
        await world.find()
        assert world.fetches == 2

    async def test_another_id_is_tried_at_once(self, autojump_clock):
        """RFC 8461 §3.3: the limit is per version of the policy."""
        world = World(result=GONE, ttl=30)
        await world.find()
        world.dns.change(announce("2"))
        world.fetcher.result = ENFORCE
        await trio.sleep(31)

        assert (await world.find()).policy == ENFORCE

    async def test_what_fails_is_logged(self, autojump_clock, caplog):
        caplog.set_level(logging.INFO)
        world = World(result=GONE)

        await world.find()

        (record,) = caplog.records
        assert record.getMessage() == "MTA-STS policy of example.test: nobody there"
        assert (record.name, record.levelno) == ("engine.routing", logging.INFO)


class TestRenewal:
    """RFC 8461 §3.3 and §10.2."""

    async def test_a_policy_in_use_is_renewed_every_day(self, autojump_clock, nursery):
        world = World(ttl=60)
        nursery.start_soon(world.store.run)

        for hour in range(1, 24 * 3):
            await world.find()
            await trio.sleep(3600 if hour % 24 else 3601)
        assert world.fetches == 3

    async def test_it_is_renewed_when_it_is_half_over_where_that_is_sooner(
        self, autojump_clock, nursery
    ):
        world = World(result=StsPolicy("enforce", 3600, MX), ttl=60)
        nursery.start_soon(world.store.run)
        await world.find()
        await trio.sleep(1700)
        assert world.fetches == 1
        await trio.sleep(200)
        assert world.fetches == 2

    async def test_a_renewed_policy_holds_from_when_it_was_renewed(self, autojump_clock, nursery):
        world = World(ttl=60)
        nursery.start_soon(world.store.run)
        await world.find()
        await trio.sleep(DAY + 60)
        world.dns.change({})
        await trio.sleep(WEEK - 200)

        assert (await world.find()).policy == ENFORCE

    async def test_it_is_renewed_though_the_record_is_gone(self, autojump_clock, nursery):
        world = World(ttl=60)
        nursery.start_soon(world.store.run)
        await world.find()
        world.dns.change({})
        await trio.sleep(DAY + 60)

        assert world.fetches == 2

    async def test_a_policy_renewed_without_a_record_is_still_the_one_that_was_announced(
        self, autojump_clock, nursery
    ):
        world = World(ttl=60)
        nursery.start_soon(world.store.run)
        await world.find()
        world.dns.change({})
        await trio.sleep(DAY + 60)
        world.dns.change(announce("1"))
        await trio.sleep(61)

        assert (await world.find()).failure is None
        assert world.fetches == 2

    async def test_what_is_lost_meanwhile_is_not_renewed(self, autojump_clock, nursery):
        world = World()
        nursery.start_soon(world.store.run)
        await world.find()
        world.hints.forget(HINT_KIND, "example.test")
        await trio.sleep(2 * DAY)

        assert world.fetches == 1

    async def test_what_nobody_asks_for_is_let_go(self, autojump_clock, nursery):
        world = World(result=StsPolicy("enforce", 20 * DAY, MX))
        nursery.start_soon(world.store.run)
        await world.find()

        await trio.sleep(10 * DAY)

        assert world.fetches == 2

    async def test_after_a_restart_what_is_old_is_renewed_soon(self, autojump_clock, nursery):
        world = World()
        await world.find()
        await trio.sleep(3 * DAY)
        world.store = world.restarted()
        nursery.start_soon(world.store.run)
        await world.find()

        await trio.sleep(61)

        assert world.fetches == 2

    async def test_what_cannot_be_renewed_is_told_and_tried_again(
        self, autojump_clock, nursery, caplog
    ):
        world = World(ttl=60)
        nursery.start_soon(world.store.run)
        await world.find()
        world.fetcher.result = GONE
        for _ in range(30):
            await trio.sleep(3600)
            await world.find()

        assert 5 <= world.fetches <= 9
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == world.fetches - 1
        assert warnings[0] == (
            "MTA-STS policy of example.test cannot be renewed and expires in 6.0 days: nobody there"
        )
        world.fetcher.result = ENFORCE
        await trio.sleep(7200)
        assert (await world.find()).failure is None

    async def test_a_slow_host_is_not_asked_more_often_because_mail_flows_meanwhile(
        self, autojump_clock, nursery
    ):
        world = World(ttl=10)
        nursery.start_soon(world.store.run)
        await world.find()
        world.fetcher.result, world.fetcher.delay = GONE, 60
        await trio.sleep(DAY - 10)
        for _ in range(360):
            await world.find()
            await trio.sleep(10)

        assert world.fetches == 2

    async def test_nobody_is_alarmed_about_a_policy_that_is_none(
        self, autojump_clock, nursery, caplog
    ):
        world = World(result=StsPolicy("none", WEEK))
        nursery.start_soon(world.store.run)
        await world.find()
        world.fetcher.result = GONE
        await trio.sleep(DAY + 60)

        assert world.fetches == 2
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]

    async def test_a_bug_costs_a_renewal_and_not_the_task(self, autojump_clock, nursery, caplog):
        world = World()
        nursery.start_soon(world.store.run)
        await world.find()
        world.fetcher.result = ZeroDivisionError("a bug")
        await trio.sleep(DAY + 60)

        assert (await world.find()).policy == ENFORCE
        (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert record.exc_info

    async def test_an_earlier_renewal_goes_before_a_later_one(self, autojump_clock, nursery):
        world = World({**announce("1"), "_mta-sts.b.test": {"TXT": ["v=STSv1; id=1"]}})
        nursery.start_soon(world.store.run)
        await world.find()
        await trio.sleep(10)
        world.fetcher.result = StsPolicy("enforce", 600, MX)
        await world.store.find("b.test")
        await trio.sleep(310)

        assert world.fetcher.fetched == {"example.test": 1, "b.test": 2}

    async def test_four_are_renewed_at_once(self, autojump_clock, nursery):
        names = [f"d{number}.test" for number in range(10)]
        world = World({f"_mta-sts.{name}": {"TXT": ["v=STSv1; id=1"]} for name in names})
        nursery.start_soon(world.store.run)
        for name in names:
            await world.store.find(name)
        world.fetcher.delay = 30
        await trio.sleep(DAY + 10)
        assert world.fetcher.fetched.total() == 10 + 4
        await trio.sleep(60)
        assert world.fetcher.fetched.total() == 10 + 10


async def test_a_policy_is_fetched_over_https_and_kept(nursery):
    body = "\r\n".join(ENFORCE.lines).encode()
    server = HttpsServer({"/.well-known/mta-sts.txt": Page(body)})
    await nursery.start(server.run)
    fetcher = StsFetcher(server.dial, make_context=server.trusting)
    store = StsPolicies(FakeDns(announce("1")), MemoryHints(), fetcher)

    assert (await store.find("example.test")).policy == ENFORCE
    assert (await store.find("example.test")).policy == ENFORCE
    assert len(server.requests) == 1
