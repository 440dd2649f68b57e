from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from engine.queue.entries import Backlog, Counts, Entry
from engine.queue.values import SiteState, State
from engine.worker.queue_tables import (
    backlog_table,
    counts_line,
    entry_table,
    last_outcomes,
    last_text,
    message_head,
    next_try,
    span,
    when,
    why,
)
from tests.queue.mail import START


def entry(**changes):
    facts = {
        "number": 1,
        "message": "x",
        "sender": "me@x.test",
        "recipient": "a@one.test",
        "state": State.QUEUED,
        "attempts": 0,
        "next_attempt": START,
        "submitted_at": START - 7200,
    }
    return Entry(**facts | changes)


def shown(what, width=80):
    console = Console(width=width, highlight=False, file=StringIO())
    console.print(what)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60.0, "1 m"),
        (3599.0, "60 m"),
        (3600.0, "1.0 h"),
        (12.6 * 3600, "13 h"),
        (86_400.0, "1.0 d"),
        (30 * 86_400.0, "30 d"),
    ],
)
def test_durations_are_short(seconds, text):
    assert span(seconds) == text


def test_it_is_said_when_something_is_due():
    assert [when(at, START) for at in (None, START - 1, START, START + 300)] == [
        "-",
        "now",
        "now",
        "in 5 m",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_the_terminal_whatever_is_in_them(width):
    entries = [
        entry(recipient="a" * 60 + "@" + "long." * 20 + "test", reason="why not " * 100),
        entry(state=State.LEASED, attempts=12_345, message="m" * 255),
        entry(state=State.HELD, next_attempt=None),
    ]
    for what in (entry_table(entries, START), entry_table(entries, START, of_one=True)):
        assert max(map(len, shown(what, width).splitlines())) <= width
    sites = [Backlog(site=SiteState(name="mx." * 60, not_before=START + 9, reason="x " * 400))]
    assert max(map(len, shown(backlog_table(sites, START), width).splitlines())) <= width


def test_a_recipient_s_row_says_where_it_is_and_why():
    text = " ".join(shown(entry_table([entry(attempts=3, reason="greylisted")], START)).split())
    assert text.endswith("a@one.test queued 3 now greylisted x")
    leased = shown(entry_table([entry(state=State.LEASED, next_attempt=START + 60)], START))
    assert "under way" in leased


def test_why_is_the_reason_else_the_last_outcome():
    last = json.dumps({"text": "450 later"})
    assert why(entry()) == "not tried yet"
    assert why(entry(state=State.LEASED)) == "tried for the first time"
    assert why(entry(state=State.HELD)) == "submitted to be held"
    assert why(entry(last=last)) == "450 later"
    assert why(entry(last=last, reason="held by hand")) == "held by hand"
    assert len(why(entry(reason="x" * 1000))) == 300
    for broken in ("no json", "[1]", '{"text": null}'):
        assert last_text(entry(last=broken)) == ""


def test_who_waits_for_a_site_that_is_left_alone_is_said_to():
    alone = {"left_alone_until": START + 90, "left_alone_for": "backed off for 2m: 421 busy"}
    assert why(entry(reason="421 at attempt 1", **alone), START) == (
        "its site is left alone: backed off for 2m: 421 busy; 421 at attempt 1"
    )
    assert why(entry(reason="r", **alone), START + 90) == "r"
    assert why(entry(reason="r", state=State.HELD, next_attempt=None, **alone), START) == "r"
    assert why(entry(reason="r", next_attempt=START + 95, **alone), START) == "r"
    assert next_try(entry(**alone)) == START + 90
    assert next_try(entry(next_attempt=START + 95, **alone)) == START + 95
    assert next_try(entry(state=State.HELD, next_attempt=None, **alone)) is None
    assert " in 2 m " in shown(entry_table([entry(**alone)], START))


def test_nothing_that_others_chose_can_steer_the_terminal():
    evil = "\x1b[2J\r\n"
    table = entry_table([entry(recipient=evil, message=evil, reason=evil)], START)
    head = message_head([entry(message=evil, sender=evil, job=evil)], START)
    sites = backlog_table(
        [Backlog(site=SiteState(name=evil, not_before=START + 1, reason=evil))], START
    )
    for what in (table, head, sites):
        assert "\x1b" not in shown(what)


def test_the_head_of_a_message_has_what_is_known():
    text = shown(message_head([entry(job="j", priority=2, deadline=START + 3600)], START))
    words = " ".join(text.split())
    assert "message x sender me@x.test" in words
    assert "submitted 2023-11-14T20:13:20.000Z, 2.0 h ago" in words
    assert "job j priority 2 deadline 2023-11-14T23:13:20.000Z, in 1.0 h" in words
    assert "tenant" not in words
    assert "<>" in shown(message_head([entry(sender="")], START))


def test_last_outcomes_are_shown_where_they_say_more():
    last = json.dumps({"text": "450 later"})
    assert last_outcomes([entry(), entry(last=last, reason="deferred: 450 later")]) == []
    parts = last_outcomes([entry(last=last, reason="held by hand")])
    assert "450 later" in "".join(map(shown, parts))


def test_counts_are_one_line():
    assert counts_line(Counts(), START) == "0 messages"
    counts = Counts(
        queued=1200, due=3, leased=2, held=1, ended=4, messages=1, oldest=START - 60, next_due=START
    )
    assert counts_line(counts, START) == (
        "1 message · 1,200 queued · 3 due now · 2 leased · 1 held · 4 to be reported · oldest 1 m"
    )
    later = Counts(queued=1, messages=1, next_due=START + 300)
    assert counts_line(later, START) == "1 message · 1 queued · next in 5 m"


def test_sites_that_are_left_alone_say_for_how_long_and_why():
    sites = [
        Backlog(
            site=SiteState(name="one.test", not_before=START + 600, failures=2, reason="refused"),
            queued=1000,
            due=5,
            leased=1,
        ),
        Backlog(site=SiteState(name="two.test", not_before=START - 5, reason="old")),
    ]
    lines = shown(backlog_table(sites, START)).splitlines()
    assert " ".join(lines[-2].split()) == "one.test 1,000 5 1 for 10 m refused"
    assert " ".join(lines[-1].split()) == "two.test 0 0 0 -"
