"""When TLS reports leave, where to, and what becomes of those that nobody takes."""

from __future__ import annotations

import gzip
import json
import logging
from itertools import pairwise
from random import Random

import pytest
import trio

from engine.queue.hints import MemoryHints
from engine.report.tlsrpt import TlsCounters
from engine.report.tlsrpt_form import Reporter
from engine.report.tlsrpt_send import GIVE_UP_SECONDS, SPREAD_SECONDS, ReportSender, post_by
from engine.report.tlsrpt_store import TlsrptStore
from engine.security import ReportedPolicy
from tests.https_server import HttpsServer, Page

NOON = 1_795_867_200.0
HOUR, DAY = 3600.0, 86_400.0
REPORTER = Reporter("Sender, Inc.", "tls@sender.test")
MAILTO = ["v=TLSRPTv1; rua=mailto:reports@a.test"]
BOTH = ["v=TLSRPTv1; rua=mailto:reports@a.test,https://a.test/report"]


def policy(receiver="a.test"):
    return ReportedPolicy("sts", receiver, receiver=receiver)


class World:
    """A sender with its surroundings; the wall clock goes with Trio's and begins at noon."""

    def __init__(self, records=MAILTO, *, mail=True, post=True, hints=None):
        self.records = records
        self.mail_result = mail
        self.post_result = post
        self.mails = []
        self.mailed = trio.Event()
        self.posts = []
        self.asked = []
        self.counters = TlsCounters()
        self.store = None if hints is None else TlsrptStore(hints)
        self.sender = ReportSender(
            self.counters,
            REPORTER,
            lookup=self.lookup,
            submit=self.submit,
            post=self.post,
            rng=Random(7),
            store=self.store,
            clock=self.clock,
        )

    def clock(self):
        return NOON + trio.current_time()

    async def lookup(self, name):
        self.asked.append(name)
        await trio.lowlevel.checkpoint()
        return self.records

    async def submit(self, mail):
        await trio.lowlevel.checkpoint()
        self.mails.append((trio.current_time(), mail))
        self.mailed.set()
        if isinstance(self.mail_result, Exception):
            raise self.mail_result
        return self.mail_result

    async def post(self, url, octets):
        await trio.lowlevel.checkpoint()
        self.posts.append((trio.current_time(), url, octets))
        return self.post_result

    def count(self, receiver="a.test", **failure):
        self.counters.count(self.clock(), [policy(receiver)], **failure)


async def test_a_report_is_mailed_when_its_day_is_over(autojump_clock, nursery):
    world = World()
    nursery.start_soon(world.sender.run)
    world.count(failure="certificate-expired")
    await trio.sleep(11 * HOUR)
    assert world.mails == []
    await trio.sleep(HOUR + SPREAD_SECONDS + 120)

    ((at, mail),) = world.mails
    assert 12 * HOUR <= at <= 12 * HOUR + SPREAD_SECONDS + 120
    assert (mail.sender, mail.recipient) == ("tls@sender.test", "reports@a.test")
    assert b"TLS-Report-Domain: a.test\r\n" in mail.octets
    assert world.counters.receivers() == []
    await trio.sleep(3 * DAY)
    assert len(world.mails) == 1


async def test_reports_do_not_all_leave_at_once(autojump_clock, nursery):
    world = World()
    nursery.start_soon(world.sender.run)
    for number in range(50):
        world.count(f"d{number}.test")
    await trio.sleep(12 * HOUR + SPREAD_SECONDS + 120)

    times = sorted(at for at, _ in world.mails)
    assert len(times) == 50
    assert times[-1] - times[0] > SPREAD_SECONDS / 2


async def test_a_report_goes_to_everywhere_it_is_wanted():
    world = World(BOTH)
    world.count()
    (report,) = world.counters.reports("a.test")

    assert await world.sender.send(report)

    assert world.asked == ["_smtp._tls.a.test"]
    assert len(world.mails) == 1
    ((_, url, octets),) = world.posts
    assert url == "https://a.test/report"
    assert json.loads(gzip.decompress(octets))["policies"][0]["policy"]["policy-domain"] == "a.test"


@pytest.mark.parametrize(
    ("records", "mail", "post", "is_done"),
    [
        (BOTH, False, True, True),
        (BOTH, True, False, True),
        (BOTH, False, False, False),
        (MAILTO, False, True, False),
        ([], True, True, True),
        (["v=spf1 -all"], True, True, True),
        (None, True, True, False),
        (["v=TLSRPTv1; rua=mailto:nobody"], True, True, False),
    ],
)
async def test_a_report_is_done_with_when_somebody_took_it_or_nobody_wants_it(
    records, mail, post, is_done
):
    world = World(records, mail=mail, post=post)
    world.count()
    (report,) = world.counters.reports("a.test")

    assert await world.sender.send(report) is is_done


async def test_what_nobody_takes_is_tried_for_a_day_ever_more_rarely(
    autojump_clock, nursery, caplog
):
    """RFC 8460 §5.5."""
    caplog.set_level(logging.INFO)
    world = World(mail=False)
    nursery.start_soon(world.sender.run)
    world.count()
    await trio.sleep(4 * DAY)

    times = [at for at, _ in world.mails]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert 5 <= len(times) <= 8
    assert waits == sorted(waits)
    assert times[-1] - times[0] <= GIVE_UP_SECONDS + 120
    assert world.counters.receivers() == []
    assert caplog.records[-1].getMessage() == ("TLS report about a.test of 2026-11-28 is given up")


async def test_a_second_try_that_succeeds_is_the_last(autojump_clock, nursery):
    world = World(mail=False)
    nursery.start_soon(world.sender.run)
    world.count()
    await world.mailed.wait()
    world.mail_result = True
    await trio.sleep(3 * DAY)

    (_, first), (_, second) = world.mails
    assert (
        first.octets.partition(b"\r\nMessage-ID")[2]
        == second.octets.partition(b"\r\nMessage-ID")[2]
    )


async def test_a_bug_costs_a_report_and_not_the_task(autojump_clock, nursery, caplog):
    world = World(mail=ZeroDivisionError("a bug"))
    nursery.start_soon(world.sender.run)
    world.count("a.test")
    await trio.sleep(DAY)
    world.mail_result = True
    world.count("b.test")
    await trio.sleep(2 * DAY)

    assert [r for r in caplog.records if r.exc_info]
    assert b"TLS-Report-Domain: b.test" in world.mails[-1][1].octets


async def test_who_wants_no_reports_is_not_counted_for_long(autojump_clock, nursery):
    world = World([])
    nursery.start_soon(world.sender.run)
    world.count()
    await trio.sleep(120)
    world.count()

    assert world.counters.receivers() == []
    assert world.asked == ["_smtp._tls.a.test"]
    await trio.sleep(DAY)
    world.count()
    assert world.counters.receivers() == ["a.test"]


async def test_without_an_answer_it_is_counted_on(autojump_clock, nursery):
    world = World(None)
    nursery.start_soon(world.sender.run)
    world.count()
    await trio.sleep(120)
    assert world.counters.receivers() == ["a.test"]
    world.records = MAILTO
    await trio.sleep(DAY)
    assert len(world.mails) == 1


class TestRestart:
    async def test_counts_are_saved_every_minute(self, autojump_clock, nursery):
        hints = MemoryHints(clock=lambda: NOON)
        world = World(hints=hints)
        nursery.start_soon(world.sender.run)
        world.count()
        await trio.sleep(61)
        world.count()

        again = World(hints=hints)
        again.store.load(again.counters)
        (report,) = again.counters.reports("a.test")
        assert report.results[0].successes == 1

    async def test_cancelled_it_saves_what_was_counted(self, autojump_clock):
        hints = MemoryHints(clock=lambda: NOON)
        world = World(hints=hints)
        with trio.move_on_after(90):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.sender.run)
                await trio.sleep(70)
                world.count()

        again = World(hints=hints)
        with trio.move_on_after(1):
            await again.sender.run()
        assert again.counters.receivers() == ["a.test"]

    async def test_a_report_from_before_is_sent_after(self, autojump_clock, nursery):
        hints = MemoryHints(clock=lambda: NOON)
        world = World(hints=hints)
        world.count()
        list(world.store.save(world.counters))
        await trio.sleep(20 * HOUR)
        again = World(hints=hints)
        nursery.start_soon(again.sender.run)
        await trio.sleep(SPREAD_SECONDS + 120)

        assert len(again.mails) == 1


class TestPost:
    @pytest.mark.parametrize(
        ("status", "is_taken"), [(200, True), (201, True), (302, False), (404, False), (500, False)]
    )
    async def test_a_report_is_posted(self, status, is_taken, nursery):
        server = HttpsServer({"/report": Page(b"thanks", status)}, "a.test")
        await nursery.start(server.run)

        post = post_by(server.dial, server.trusting)

        assert await post("https://a.test/report", b"\x1f\x8b") is is_taken
        ((method, _, headers, body),) = server.requests
        assert (method, body) == ("POST", b"\x1f\x8b")
        assert headers["content-type"] == "application/tlsrpt+gzip"

    async def test_who_cannot_be_reached_takes_nothing(self, caplog):
        caplog.set_level(logging.INFO)

        async def dial(host, port):
            raise OSError("nobody there")

        assert not await post_by(dial)("https://a.test/report", b"x")
        assert "nobody there" in caplog.records[0].getMessage()
