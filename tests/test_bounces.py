"""Bounces of a queue: over both stores by hand, under the scheduler, and in earnest to a server."""

from __future__ import annotations

import email
import email.policy
import logging
import math
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from engine import Engine, Settings
from engine import bounces as module
from engine.bounces import Bouncer
from engine.content import MemoryContent, from_octets, from_text
from engine.message import Message, Recipient
from engine.outcome import Cause, Features, Scope, Status
from engine.queue import decision
from engine.queue.decision import Policy, Unknown
from engine.queue.errors import StoreFullError
from engine.queue.memory import MemoryStore
from engine.queue.retry import read_rules
from engine.queue.sqlite import open_store
from engine.queue.submission import Submission
from engine.queue.values import Action, Result, Selection, State
from engine.report.bounce import BounceSettings
from engine.smtp.stages import Stage
from engine.stored import QueueOptions
from engine.testing.sink import open_sink
from tests.queue.mail import START, outcome, settlements, take
from tests.queue.store_conformance import entries_of
from tests.queue.world import World, accepted, later, refused, scheduling, wall_clock

HOUR = 3600.0
NAME = "mail.example.org"
SETTINGS = BounceSettings(NAME, warn_after=(4 * HOUR, 24 * HOUR))
CONTENT = from_text("From: me@example.org\nSubject: hello\nMessage-ID: <1@example.org>\n\nHello.\n")
ME = "me@example.org"


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with open_store(tmp_path / "spool.sqlite") as store:
            yield store


def letter(*recipients, id="x", sender=ME, content=CONTENT, at=START, how=None, **facts):  # noqa: A002 - the field's word
    """Make a submission; recipients are addresses, or `(address, notify)`, or with an ORCPT too."""
    parts = [(each,) if isinstance(each, str) else each for each in recipients or ("a@one.test",)]
    message = Message(
        id,
        Message.parse_sender(sender),
        tuple(Recipient.parse(*each) for each in parts),
        content,
        **facts,
    )
    return Submission(message=message, submitted_at=at, **(how or {}))


def failed(address, message="x"):
    return outcome(
        Status.FAILED, message=message, recipient=address, code=550, text="5.1.1 no such user"
    )


def delivered(address, message="x", **features):
    found = outcome(
        Status.DELIVERED, message=message, recipient=address, stage=Stage.FINAL, code=250
    )
    return found._replace(features=Features(**features))


def unknown(address, message="x"):
    return outcome(
        Status.UNKNOWN,
        message=message,
        recipient=address,
        stage=Stage.FINAL,
        cause=Cause.TIMEOUT,
        scope=Scope.MESSAGE,
    )


def deferred(address, message="x"):
    return outcome(message=message, recipient=address, code=450, text="4.2.0 come again")


async def attempt(store, bouncer, make=failed, now=START, **policy):
    """Lease what is due, and settle it as the scheduler would; `make` gives outcomes."""
    policy = Policy(wants_report=bouncer.wants_report, **policy)
    found = []
    for leased in (await take(store, now, seats=5000, site_seats=5000)).messages:
        for place, recipient in enumerate(leased.recipients):
            got = make(recipient.address, leased.message.id)
            settled = decision.settle(policy, leased, place, got, now)
            found.append(settled.settlement)
    await store.settle(found, now=now)


async def mails_in(store):
    """Return the messages of the null path as the store has them, with their contents."""
    found = []
    for each in await store.messages(limit=1000):
        message = each.message
        if message.reverse_path is None:
            octets = b"".join([chunk async for chunk in message.content.chunks()])
            content = MemoryContent(octets, message.content.facts)
            found.append(replace(message, content=content))
    return found


def read(message):
    found = email.message_from_bytes(message.content.octets, policy=email.policy.default)
    assert not found.defects
    assert found.get_content_type() == "multipart/report"
    assert found.get_param("report-type") == "delivery-status"
    return found


def groups_of(message):
    """Return the groups of fields of the part for machines: of the message, of each recipient."""
    _, status, *_ = read(message).iter_parts()
    return [dict(group.items()) for group in status.get_payload()]


def told_of(message):
    """Return who a report tells of, and with what action."""
    return {
        group["Final-Recipient"].split("; ")[1]: group["Action"] for group in groups_of(message)[1:]
    }


# ---- who is told --------------------------------------------------------------------------------


async def test_a_failure_is_reported_to_the_sender_by_mail(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    share = {"tenant": "t", "job": "j", "priority": 3}
    await store.submit([letter("a@one.test", "b@two.test", "ok@two.test", how=share)])
    await attempt(store, bouncer, lambda a, m: delivered(a) if a[:2] == "ok" else failed(a))
    clock.now = START + 7

    assert await bouncer.flush() == 1

    (mail,) = await mails_in(store)
    (recipient,) = mail.recipients
    assert (recipient.address, recipient.notify) == (ME, frozenset({"never"}))
    report = read(mail)
    assert report["From"] == f"Mail Delivery System <MAILER-DAEMON@{NAME}>"
    assert (report["To"], report["In-Reply-To"]) == (ME, "<1@example.org>")
    assert told_of(mail) == {"a@one.test": "failed", "b@two.test": "failed"}
    of_message, first, _ = groups_of(mail)
    assert of_message["Arrival-Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert first["Status"] == "5.1.1"
    assert first["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert first["Last-Attempt-Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    text, _, original = report.iter_parts()
    assert "NOT DELIVERED" in text.get_content()
    assert original.get_payload(0)["Subject"] == "hello"
    # Nothing is left but the report, which is the tenant's own mail.
    (entry,) = await entries_of(store)
    assert (entry.message, entry.tenant, entry.job, entry.priority) == (mail.id, "t", "", 3)
    assert entry.submitted_at == START + 7
    assert await bouncer.flush() == 0


@pytest.mark.parametrize(
    ("sender", "notify", "make"),
    [
        ("", (), failed),
        ("", ("failure",), failed),
        ("", ("success",), delivered),
        (ME, ("never",), failed),
        (ME, ("success", "delay"), failed),
        (ME, (), delivered),
        (ME, ("failure",), delivered),
        (ME, ("never",), delivered),
        # The host has been told, and tells itself.
        (ME, ("success",), lambda a, m: delivered(a, dsn=True)),
        (ME, ("success",), lambda a, m: delivered(a, dsn=True, lmtp=True)),
    ],
)
async def test_nobody_is_told_who_must_not_or_does_not_want_to_be(
    store, clock, sender, notify, make
):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(("a@one.test", notify), sender=sender)])

    await attempt(store, bouncer, make)

    assert await bouncer.flush() == 0
    assert await entries_of(store) == []


@pytest.mark.parametrize(("lmtp", "action"), [(False, "relayed"), (True, "delivered")])
async def test_who_asked_is_told_of_success_where_the_next_host_does_not(
    store, clock, lmtp, action
):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(("a@one.test", ("success", "failure")), "b@one.test")])
    await attempt(store, bouncer, lambda a, m: delivered(a, lmtp=lmtp))

    await bouncer.flush()

    (mail,) = await mails_in(store)
    assert told_of(mail) == {"a@one.test": action}
    # RFC 3461 §6.2: only the header goes back.
    *_, original = read(mail).iter_parts()
    assert original.get_content_type() == "text/rfc822-headers"


async def test_who_is_taken_for_delivered_is_not_reported_as_anything(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(("a@one.test", ("success", "failure")))])

    await attempt(store, bouncer, unknown, unknown=Unknown.ASSUME_DELIVERED)

    assert await bouncer.flush() == 0
    assert await entries_of(store) == []


async def test_who_may_have_been_delivered_and_is_given_up_is_reported_so(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter()])
    once, _ = read_rules([{"match": "*", "steps": []}])

    await attempt(store, bouncer, unknown, rules=once)

    assert await bouncer.flush() == 1
    (mail,) = await mails_in(store)
    assert told_of(mail) == {"a@one.test": "failed"}
    assert "may have arrived all the same" in str(read(mail))


async def test_what_is_cancelled_by_hand_is_reported(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(), letter("b@one.test", sender="", id="y")])
    await store.apply(Action.CANCEL, Selection(), now=START)

    assert await bouncer.flush() == 1

    (mail,) = await mails_in(store)
    assert told_of(mail) == {"a@one.test": "failed"}
    assert "cancelled by hand" in str(read(mail))
    # What came from the null path is gone without a word.
    assert {entry.message for entry in await entries_of(store)} == {mail.id}


async def test_a_report_that_cannot_be_delivered_is_dropped_with_a_line_in_the_log(
    store, clock, caplog
):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter()])
    await attempt(store, bouncer)
    await bouncer.flush()
    (mail,) = await mails_in(store)

    await attempt(store, bouncer)

    assert await bouncer.flush() == 0
    assert await entries_of(store) == []
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert mail.id in line
    assert "is dropped" in line
    assert ME in line


# ---- what is in it ------------------------------------------------------------------------------


async def test_what_came_with_the_envelope_comes_back_with_the_report(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    asked = ("a@one.test", ("failure",), "rfc822;Alice@old.test")
    await store.submit([letter(asked, envid="env-1", ret="hdrs")])
    await attempt(store, bouncer)

    await bouncer.flush()

    (mail,) = await mails_in(store)
    of_message, of_recipient = groups_of(mail)
    assert of_message["Original-Envelope-Id"] == "env-1"
    assert of_recipient["Original-Recipient"] == "rfc822; Alice@old.test"
    assert b"Hello." not in mail.content.octets


async def test_what_had_to_be_protected_goes_back_without_its_body_and_protected(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(require_tls=True, ret="full")])
    await attempt(store, bouncer)

    await bouncer.flush()

    (mail,) = await mails_in(store)
    assert mail.require_tls
    assert b"Hello." not in mail.content.octets
    assert b"Subject: hello" in mail.content.octets


@pytest.mark.parametrize("most", [0, 50_000, 3_000_000])
async def test_of_a_large_content_only_what_is_needed_is_read(tmp_path, clock, most):
    content = from_octets(b"Subject: large\r\n\r\n" + b"line\r\n" * 400_000)
    async with open_store(tmp_path / "spool.sqlite") as store:
        await store.submit([letter(content=content)])
        bouncer = Bouncer(store, BounceSettings(NAME, max_content_octets=most), clock=clock)
        await attempt(store, bouncer)
        reads, read_pieces = [], store._read_pieces

        async def count(message, upload, first):
            reads.append(first)
            return await read_pieces(message, upload, first)

        store._read_pieces = count
        await bouncer.flush()

        (mail,) = await mails_in(store)
    octets = mail.content.octets
    if most < 3_000_000:
        assert len(octets) < 10_000
        assert len(reads) == 1
    else:
        assert content.octets in octets
    assert b"Subject: large" in octets


async def test_a_content_that_is_damaged_keeps_no_report_back(tmp_path, clock, caplog):
    async with open_store(tmp_path / "spool.sqlite") as store:
        await store.submit([letter(), letter("b@one.test", id="y")])
        bouncer = Bouncer(store, SETTINGS, clock=clock)
        await attempt(store, bouncer)
        await store._write(
            lambda db: db._connection.execute(
                "update contents set octets = x'30' where message = 1"
            )
        )

        assert await bouncer.flush() == 2

        told = [address for mail in await mails_in(store) for address in told_of(mail)]
        assert sorted(told) == ["a@one.test", "b@one.test"]
    assert "reported on without it" in caplog.text


async def test_a_message_with_very_many_recipients_makes_several_reports(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(*[f"u{n}@one.test" for n in range(1100)])])
    await attempt(store, bouncer)

    assert await bouncer.flush() == 3

    mails = await mails_in(store)
    assert sorted(len(told_of(mail)) for mail in mails) == [100, 500, 500]
    assert len({address for mail in mails for address in told_of(mail)}) == 1100


# ---- once, and not lost -------------------------------------------------------------------------


async def test_the_same_report_made_by_two_is_taken_once(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter()])
    await attempt(store, bouncer)
    stale = await store.ended()
    assert await bouncer.flush() == 1

    class Stale:
        """Still sees what another has reported on already."""

        def __getattr__(self, name):
            return getattr(store, name)

        async def ended(self, *, after=0, limit=100):
            return () if after else stale

    clock.now = START + 2  # so its Date is another
    assert await Bouncer(Stale(), SETTINGS, clock=clock).flush() == 0

    assert len(await mails_in(store)) == 1


class Full:
    """A store that takes nothing in while `is_full`."""

    def __init__(self, store):
        self._store = store
        self.is_full = True

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def submit(self, submissions, **how):
        if self.is_full:
            raise StoreFullError("the disk is full")
        return await self._store.submit(submissions, **how)


async def test_while_the_store_takes_nothing_in_reports_wait(store, clock):
    full = Full(store)
    bouncer = Bouncer(full, SETTINGS, clock=clock)
    await store.submit([letter(), letter("b@one.test", id="y")])
    await attempt(store, bouncer)

    with pytest.raises(StoreFullError):
        await bouncer.flush()
    assert {entry.state for entry in await entries_of(store)} == {State.ENDED}
    full.is_full = False

    assert await bouncer.flush() == 2


@pytest.fixture
def bug(monkeypatch):
    """Let no report on the message with the id `bad` be made."""
    to_message = module.to_message

    def fail(report, settings, original):
        if report.message.id == "bad":
            raise KeyError("a bug")
        return to_message(report, settings, original)

    monkeypatch.setattr(module, "to_message", fail)


async def test_a_fault_of_ours_with_one_message_keeps_no_other_back(store, clock, bug, caplog):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(id="bad"), letter("b@one.test", id="y")])
    await attempt(store, bouncer)

    assert await bouncer.flush() == 1
    # It is left alone for a while, and stays.
    assert await bouncer.flush() == 0
    assert caplog.text.count("'bad' cannot be reported on") == 1
    assert [each.message.id for each in await store.ended()] == ["bad"]


async def test_what_could_not_be_reported_on_is_tried_again(autojump_clock, bug, monkeypatch):
    store, world = MemoryStore(), Postman(answer)
    await store.submit([letter(id="bad")])
    async with working(store, world):
        await trio.sleep(100)
        monkeypatch.undo()
        await trio.sleep(4000)

    ((wall, told),) = kinds_of(world.mails)
    assert told == {"a@one.test": "failed"}
    assert 3600 <= wall <= 3615


async def test_a_warning_that_cannot_be_made_is_given_up(store, clock, bug, caplog):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(id="bad"), letter("b@one.test", id="y")])

    assert await warned(store, bouncer, clock, 5) == ["b@one.test"]
    assert await warned(store, bouncer, clock, 6) == []
    assert caplog.text.count("'bad' cannot be warned") == 1


async def test_more_than_a_page_are_all_reported_on(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(id=f"m{n}") for n in range(95)])
    await attempt(store, bouncer)

    assert await bouncer.flush() == 95

    assert await store.ended() == ()
    assert len({mail.id for mail in await mails_in(store)}) == 95


# ---- events -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounce", ["event", "both"])
async def test_programs_are_told_by_a_record(store, clock, bounce):
    records = []

    async def note(record):
        records.append(record)

    bouncer = Bouncer(store, SETTINGS, bounce=bounce, on_event=note, clock=clock)
    await store.submit([letter("a@one.test", "b@two.test"), letter("c@one.test", id="y")])
    await attempt(store, bouncer)

    made = await bouncer.flush()

    by_message = {record["message"]: record for record in records}
    assert len(records) == len(by_message) == 2
    addresses = [each["recipient"] for each in by_message["x"]["recipients"]]
    assert addresses == ["a@one.test", "b@two.test"]
    mails = await mails_in(store)
    assert made == len(mails) == (2 if bounce == "both" else 0)
    assert bounce == "event" or {mail.id for mail in mails} == {r["report"] for r in records}
    assert await store.ended() == ()


async def test_a_record_that_cannot_be_written_is_made_again(store, clock):
    records = []

    async def note(record):
        records.append(record)
        if len(records) == 1:
            raise OSError("no room")

    bouncer = Bouncer(store, SETTINGS, bounce="both", on_event=note, clock=clock)
    await store.submit([letter()])
    await attempt(store, bouncer)

    with pytest.raises(OSError, match="no room"):
        await bouncer.flush()
    assert await mails_in(store) == []
    assert await bouncer.flush() == 1

    assert len({record["report"] for record in records}) == 1


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="allowed are report, event, both"):
        Bouncer(MemoryStore(), SETTINGS, bounce="mail")
    with pytest.raises(ValueError, match="needs an on_event"):
        Bouncer(MemoryStore(), SETTINGS, bounce="event")


# ---- delays -------------------------------------------------------------------------------------


async def warned(store, bouncer, clock, hours):
    """Let it be so many hours after the start; return whom new warnings tell of."""
    clock.now = START + hours * HOUR
    before = {mail.id for mail in await mails_in(store)}
    made = await bouncer.warn()
    new = [mail for mail in await mails_in(store) if mail.id not in before]
    assert made == len(new)
    assert all(set(told_of(mail).values()) == {"delayed"} for mail in new)
    return sorted(address for mail in new for address in told_of(mail))


async def test_the_sender_of_late_mail_is_warned_after_each_wait_once(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter("a@one.test", "b@two.test")])
    await attempt(store, bouncer, deferred)

    assert await warned(store, bouncer, clock, 3.99) == []
    assert await warned(store, bouncer, clock, 4) == ["a@one.test", "b@two.test"]
    assert await warned(store, bouncer, clock, 4.1) == []
    assert await warned(store, bouncer, clock, 23.9) == []
    assert await warned(store, bouncer, clock, 24) == ["a@one.test", "b@two.test"]
    assert await warned(store, bouncer, clock, 99) == []
    # It still waits for its next try.
    assert {e.state for e in await entries_of(store, message="x")} == {State.QUEUED}


async def test_a_warning_says_how_things_stand(store, clock):
    rules, _ = read_rules([{"match": "*", "steps": ["5m", "1h until 2d"]}])
    bouncer = Bouncer(store, SETTINGS, rules=rules, clock=clock)
    await store.submit([letter(ret="full")])
    await attempt(store, bouncer, deferred)

    await warned(store, bouncer, clock, 5)

    (mail,) = await mails_in(store)
    _, of_recipient = groups_of(mail)
    assert of_recipient["Status"] == "4.2.0"
    assert of_recipient["Will-Retry-Until"] == "Thu, 16 Nov 2023 22:13:20 +0000"
    assert of_recipient["Last-Attempt-Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert "need not do anything" in str(read(mail))
    assert b"Hello." not in mail.content.octets


async def test_a_restart_warns_nobody_again(tmp_path, clock):
    path = tmp_path / "spool.sqlite"
    async with open_store(path) as store:
        bouncer = Bouncer(store, SETTINGS, clock=clock)
        await store.submit([letter("a@one.test", "b@two.test")])
        await attempt(store, bouncer, deferred)
        assert len(await warned(store, bouncer, clock, 5)) == 2
    async with open_store(path) as store:
        bouncer = Bouncer(store, SETTINGS, clock=clock)

        assert await warned(store, bouncer, clock, 6) == []
        assert len(await warned(store, bouncer, clock, 25)) == 2


async def test_after_an_idle_week_one_warning_makes_up_for_all(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter()])

    assert await warned(store, bouncer, clock, 170) == ["a@one.test"]
    assert await warned(store, bouncer, clock, 171) == []


@pytest.mark.parametrize(
    ("notify", "content", "is_warned"),
    [
        ((), CONTENT, True),
        (("delay",), CONTENT, True),
        (("failure",), CONTENT, False),
        (("never",), CONTENT, False),
        ((), from_text("List-Id: <l.example.org>\n\nNews.\n"), False),
        ((), from_text("Precedence: bulk\n\nNews.\n"), False),
        (("delay", "failure"), from_text("Precedence: bulk\n\nNews.\n"), True),
    ],
)
async def test_who_does_not_wait_for_news_is_not_warned(store, clock, notify, content, is_warned):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(("a@one.test", notify), content=content)])

    assert await warned(store, bouncer, clock, 5) == ["a@one.test"] * is_warned
    # It is not looked at again before the next wait is over.
    late = await store.delayed(now=clock(), waits=SETTINGS.warn_after)
    assert late.messages == ()


async def test_nobody_is_warned_of_bounces(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(sender="")])

    clock.now = START + 5 * HOUR

    assert await bouncer.warn() == 0


async def test_mail_for_tomorrow_is_late_the_day_after(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(how={"not_before": START + 20 * HOUR})])

    assert await warned(store, bouncer, clock, 23.9) == []
    assert await warned(store, bouncer, clock, 24) == ["a@one.test"]
    assert await warned(store, bouncer, clock, 43.9) == []
    assert await warned(store, bouncer, clock, 44) == ["a@one.test"]
    (mail, _) = await mails_in(store)
    assert groups_of(mail)[0]["Arrival-Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"


async def test_without_waits_nobody_is_warned_and_settings_may_change(store, clock):
    bouncer = Bouncer(store, BounceSettings(NAME, warn_after=()), clock=clock)
    await store.submit([letter()])

    assert await warned(store, bouncer, clock, 99) == []
    bouncer.settings = SETTINGS
    assert await warned(store, bouncer, clock, 99) == ["a@one.test"]


async def test_programs_are_told_of_delays_too(store, clock):
    records = []

    async def note(record):
        records.append(record)

    bouncer = Bouncer(store, SETTINGS, bounce="event", on_event=note, clock=clock)
    await store.submit([letter()])
    for hours in (5, 6):
        clock.now = START + hours * HOUR
        assert await bouncer.warn() == 0

    assert [each["recipients"][0]["kind"] for each in records] == ["delayed"]
    assert await mails_in(store) == []


async def test_many_late_recipients_are_warned_of_page_by_page(store, clock):
    bouncer = Bouncer(store, SETTINGS, clock=clock)
    await store.submit([letter(f"a{n}@one.test", f"b{n}@two.test", id=f"m{n}") for n in range(130)])

    found = await warned(store, bouncer, clock, 5)

    assert len(found) == len(set(found)) == 260
    assert await warned(store, bouncer, clock, 6) == []


# ---- under the scheduler --------------------------------------------------------------------------


@asynccontextmanager
async def working(store, world, *, settings=SETTINGS, policy=None, bounce=None, **how):
    """Run a scheduler over a world, and a bouncer beside it."""
    bouncer = Bouncer(store, settings, clock=wall_clock, **(bounce or {}))
    policy = Policy(**(policy or {}), wants_report=bouncer.wants_report)
    async with trio.open_nursery() as nursery:
        async with scheduling(store, world, policy=policy, **how) as scheduler:
            nursery.start_soon(bouncer.run)
            yield scheduler
        nursery.cancel_scope.cancel()


def answer(message, address, domain):
    """Take what is for the sender, and refuse everything else."""
    return accepted(message, address) if address == ME else refused(message, address)


def kinds_of(mails):
    return [(wall, told_of(mail)) for wall, mail in mails]


class Postman(World):
    """A world that keeps what comes for the sender, and when."""

    def __init__(self, behave):
        super().__init__(behave)
        self.mails = []

    async def deliver(self, message):
        if message.reverse_path is None:
            self.mails.append((wall_clock() - START, message))
        await super().deliver(message)


async def test_a_bounce_goes_out_at_once(autojump_clock):
    store, world = MemoryStore(), Postman(answer)
    await store.submit([letter("a@one.test", "b@two.test")])
    async with working(store, world):
        await trio.sleep(5)

    ((wall, told),) = kinds_of(world.mails)
    assert told == {"a@one.test": "failed", "b@two.test": "failed"}
    assert 0.5 <= wall < 1
    assert world.delivered[ME] == 1
    assert await entries_of(store) == []


async def test_those_who_end_at_about_the_same_time_are_in_one_report(autojump_clock):
    seconds = {"one.test": 0.1, "two.test": 5, "slow.test": 500}

    class Slow(Postman):
        async def _deliver(self, message):
            domain = message.recipients[0].mailbox.routing_domain
            await trio.sleep(seconds.get(domain, 0))
            await super()._deliver(message)

        async def deliver(self, message):
            for recipient in message.recipients:
                part = Message(message.id, message.reverse_path, (recipient,), message.content)
                await super().deliver(part)

    store, world = MemoryStore(), Slow(answer)
    await store.submit([letter("a@one.test", "b@two.test", "c@slow.test")])
    async with working(store, world):
        await trio.sleep(1000)

    (first, told), (second, later_told) = kinds_of(world.mails)
    assert set(told) == {"a@one.test", "b@two.test"}
    assert set(later_told) == {"c@slow.test"}
    # Bounded: nobody waits for a tarpit.
    assert 30 <= first < 33
    assert 500 <= second < 502


async def test_who_is_deferred_for_days_is_warned_of_and_then_reported(autojump_clock):
    def behave(message, address, domain):
        return accepted(message, address) if address == ME else later(message, address)

    store, world = MemoryStore(), Postman(behave)
    await store.submit([letter()])
    async with working(store, world, idle_seconds=600, bounce={"idle_seconds": 600}):
        await trio.sleep(5 * 86_400)

    walls = [wall / HOUR for wall, _ in world.mails]
    assert [told_of(mail) for _, mail in world.mails] == [
        {"a@one.test": "delayed"},
        {"a@one.test": "delayed"},
        {"a@one.test": "failed"},
    ]
    assert walls == [
        pytest.approx(4.1, abs=0.11),
        pytest.approx(24.1, abs=0.11),
        pytest.approx(98, abs=4),
    ]
    assert groups_of(world.mails[-1][1])[1]["Status"].startswith("4.")
    assert await entries_of(store) == []


async def test_a_bounce_that_bounces_is_the_end(autojump_clock, caplog):
    store, world = (
        MemoryStore(),
        Postman(lambda message, address, domain: refused(message, address)),
    )
    await store.submit([letter()])
    async with working(store, world):
        await trio.sleep(100)

    assert len(world.mails) == 1
    assert caplog.text.count("is dropped") == 1
    assert await entries_of(store) == []


async def test_what_another_process_cancels_is_found_before_long(autojump_clock):
    store, world = (
        MemoryStore(),
        Postman(lambda message, address, domain: accepted(message, address)),
    )
    await store.submit([letter(how={"is_held": True})])
    async with working(store, world):
        await trio.sleep(100)
        await store.apply(Action.CANCEL, Selection(), now=wall_clock())
        await trio.sleep(15)

    ((wall, told),) = kinds_of(world.mails)
    assert told == {"a@one.test": "failed"}
    assert 100 <= wall <= 111


async def test_a_store_that_fails_is_tried_again(autojump_clock, caplog):
    memory = MemoryStore()
    full, world = Full(memory), Postman(answer)
    await memory.submit([letter()])
    async with working(full, world):
        await trio.sleep(100)
        full.is_full = False
        await trio.sleep(40)

    assert len(world.mails) == 1
    # With pauses that grow.
    assert 3 <= caplog.text.count("reports cannot be made: the disk is full") <= 10


# ---- cancelled anywhere -------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the step with some number of any task."""

    def __init__(self):
        self.step, self.scope = math.inf, None

    def before_task_step(self, task):
        self.step -= 1
        if self.step == 0:
            self.scope.cancel()


LARGE = from_octets(b"Subject: large\r\n\r\n" + b"line\r\n" * 20_000)


async def prepare(store, bouncer, run):
    """Have a message with some who failed, a large one, one that is late, and one of nobody's."""
    name = f"{run}-"
    await store.submit(
        [
            letter("a@one.test", "b@two.test", id=f"{name}x"),
            letter("c@one.test", id=f"{name}large", content=LARGE),
            letter("d@one.test", id=f"{name}null", sender=""),
        ]
    )
    failures = settlements(await take(store, seats=99), Result.FAILED, report=True)
    await store.settle(failures, now=START)
    await store.submit(
        [letter("e@late.test", "f@late.test", id=f"{name}late", how={"is_held": False})]
    )


async def outcome_of(store, run):
    """Return how often somebody was told of, by address and action; and whether somebody is left."""
    told = Counter()
    for mail in await mails_in(store):
        if mail.id.startswith("report-"):
            told.update(told_of(mail).items())
    left = await store.ended()
    return told, left


EXPECTED = Counter(
    {
        ("a@one.test", "failed"): 1,
        ("b@two.test", "failed"): 1,
        ("c@one.test", "failed"): 1,
        ("e@late.test", "delayed"): 1,
        ("f@late.test", "delayed"): 1,
    }
)


async def cancel_everywhere(open_, instrument, live):
    """Cancel `live` at each of its steps; each time what follows makes up for it, once."""
    step = 0
    while True:
        step += 1
        async with open_(step) as store:
            clock = Clock()
            bouncer = Bouncer(store, SETTINGS, clock=clock)
            await prepare(store, bouncer, step)
            clock.now = START + 5 * HOUR
            with trio.CancelScope() as instrument.scope:
                instrument.step = step
                await live(bouncer)
            is_through, instrument.step = instrument.step > 0, math.inf

            clock.now += 60
            following = Bouncer(store, SETTINGS, clock=clock)
            await following.flush()
            await following.warn()

            told, left = await outcome_of(store, step)
            assert told == EXPECTED, step
            assert left == (), step
            assert await following.flush() == await following.warn() == 0
        if is_through:
            return step


async def flush_and_warn(bouncer):
    await bouncer.flush()
    await bouncer.warn()


def test_wherever_it_is_cancelled_no_report_is_lost_or_doubled_in_memory():
    instrument = CancelAtStep()

    @asynccontextmanager
    async def open_(step):
        yield MemoryStore()

    async def run_for_a_while(bouncer):
        with trio.move_on_after(15):
            await bouncer.run()

    for live in (flush_and_warn, run_for_a_while):
        steps = trio.run(
            cancel_everywhere,
            open_,
            instrument,
            live,
            clock=MockClock(autojump_threshold=0),
            instruments=[instrument],
        )
        assert steps > 15


async def test_wherever_it_is_cancelled_no_report_is_lost_or_doubled_in_a_file(tmp_path):
    instrument = CancelAtStep()
    trio.lowlevel.add_instrument(instrument)

    def open_(step):
        return open_store(tmp_path / f"{step}.sqlite")

    steps = await cancel_everywhere(open_, instrument, flush_and_warn)
    trio.lowlevel.remove_instrument(instrument)
    assert steps > 15


# ---- in earnest -----------------------------------------------------------------------------------


WITHOUT_DSN = ("PIPELINING", "8BITMIME", "SIZE 50000000", "ENHANCEDSTATUSCODES", "CHUNKING")


async def run_until_empty(store, sink, *, settings, protocol="smtp", rules=None):
    """Do as a worker does that stops when nothing is left; return what was settled."""
    found, problems = read_rules(
        rules or [{"match": "*", "steps": ["200ms", "200ms until 2500ms"]}]
    )
    assert not problems
    bouncer = Bouncer(store, settings, rules=found)
    settled = []

    async def note(batch):
        settled.extend(batch)

    engine = Engine(
        Settings(protocol=protocol, helo_name="me.test"),
        routes=[("*", [f"127.0.0.1:{sink.port}"])],
        own_addresses=[],
        store=store,
        queue=QueueOptions(Policy(found, wants_report=bouncer.wants_report), note),
    )
    with trio.fail_after(30):
        async with engine, trio.open_nursery() as nursery:
            nursery.start_soon(bouncer.run)
            is_empty = False
            while not is_empty:
                await engine.scheduler.wait_empty()
                made = await bouncer.flush()
                is_empty = not made and not (await store.counts(now=time.time())).queued
            nursery.cancel_scope.cancel()
    return settled


def mails_at(sink):
    """Return what the sink was given from the null path, as messages."""
    found = []
    for received in sink.messages:
        if received.reverse_path == "":
            assert received.recipients == (ME,)
            found.append(letter(ME, sender="", content=from_octets(received.content)).message)
    return found


async def test_a_worker_reports_through_its_own_engine(store):
    now = time.time()
    await store.submit(
        [
            letter("reject@bad.test", "fine@bad.test", "reject+2@worse.test", id="m1", at=now),
            letter(("a@good.test", ("success",)), id="m2", at=now),
            letter(("a@good.test", ("never",)), ("reject@bad.test", ("never",)), id="m3", at=now),
            letter(("defer@late.test", ("delay", "failure")), id="m4", at=now),
        ]
    )
    async with open_sink(keep=True, extensions=WITHOUT_DSN) as sink:
        await run_until_empty(store, sink, settings=BounceSettings(NAME, warn_after=(0.5,)))
        mails = mails_at(sink)

    told = Counter((frozenset(told_of(mail).items())) for mail in mails)
    assert told == Counter(
        {
            frozenset({("reject@bad.test", "failed"), ("reject+2@worse.test", "failed")}): 1,
            frozenset({("a@good.test", "relayed")}): 1,
            frozenset({("defer@late.test", "delayed")}): 1,
            frozenset({("defer@late.test", "failed")}): 1,
        }
    )
    assert await entries_of(store) == []


@pytest.mark.parametrize(
    ("lmtp", "extensions", "actions"),
    [
        (False, (*WITHOUT_DSN, "DSN"), []),
        (True, WITHOUT_DSN, ["delivered"]),
        (True, (*WITHOUT_DSN, "DSN"), []),
    ],
)
async def test_success_is_reported_once_by_whoever_is_to(store, lmtp, extensions, actions):
    await store.submit([letter(("a@good.test", ("success",)), at=time.time())])
    async with open_sink(keep=True, extensions=extensions, lmtp=lmtp) as sink:
        settled = await run_until_empty(
            store, sink, settings=SETTINGS, protocol="lmtp" if lmtp else "smtp"
        )
        mails = mails_at(sink)

    assert [told_of(mail)["a@good.test"] for mail in mails] == actions
    first = settled[0].outcome
    assert (first.recipient, first.features.dsn) == ("a@good.test", "DSN" in extensions)
