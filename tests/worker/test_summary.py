from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from engine.outcome import Cause, Outcome, Peer, Scope, Status, Timings
from engine.report.statistics import Statistics
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.worker import summary as summary_module
from engine.worker.summary import MAX_ROWS, MAX_TROUBLES, Summary, answer, render

if TYPE_CHECKING:
    from collections.abc import Iterable

PEER = Peer("mx.y.test", "192.0.2.1", 25, "192.0.2.9", 1)


def outcome(
    status: Status = Status.DELIVERED, recipient: str = "b@y.test", **facts: Any
) -> Outcome:
    code = {Status.DELIVERED: 250, Status.FAILED: 550}.get(status, 450)
    defaults: dict[str, Any] = {
        "message": "1",
        "stage": Stage.RCPT,
        "cause": Cause.REPLY,
        "text": "a text",
        "scope": None if status is Status.DELIVERED else Scope.RECIPIENT,
        "reply": Reply(code, (b"2.1.5 as it is",)),
        "peer": PEER,
        "timings": Timings(total=1.234),
    }
    return Outcome(recipient=recipient, status=status, **defaults | facts)


def summarise(outcomes: Iterable[Outcome]) -> Summary:
    found = Summary()
    for each in outcomes:
        found.add(each)
    return found


def draw(found: Summary, width: int = 80, *, seconds: float = 2.0, colours: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colours, highlight=False)
    console.print(render(found, Statistics(connections_opened=1234), seconds))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def test_few_recipients_have_a_row_each():
    text = draw(
        summarise(
            [
                outcome(),
                outcome(Status.FAILED, "c@y.test", reply=Reply(550, (b"5.1.1 no such user",))),
                outcome(Status.UNKNOWN, "d@y.test", reply=None, peer=None),
            ]
        )
    )
    assert (
        text
        == """\
 Recipient      Status      Host        Answer                   Seconds
─────────────────────────────────────────────────────────────────────────
 b@y.test       delivered   mx.y.test   250 2.1.5 as it is          1.23
 c@y.test       failed      mx.y.test   550 5.1.1 no such user      1.23
 d@y.test       unknown     -           a text                      1.23

 3 recipients in 2.0 s · 1 delivered, 1 failed, 1 unknown · 1,234 connections"""
    )


def test_many_recipients_are_counted_and_their_troubles_gathered():
    good = [outcome() for _ in range(28)]
    bad = [
        outcome(Status.FAILED, reply=Reply(550, (b"5.1.1 no such user",))),
        outcome(Status.FAILED, reply=Reply(550, (b"5.1.1 no user here",))),
        outcome(
            Status.DEFERRED,
            "b@z.test",
            reply=None,
            peer=None,
            stage=Stage.ROUTE,
            cause=Cause.DNS,
            text="no answer",
        ),
    ]
    text = draw(summarise([*good, *bad]))
    assert (
        text
        == """\
 delivered  28  90.3 %
 deferred    1   3.2 %
 failed      2   6.5 %

 Count   Status     Host        Most frequent answers
───────────────────────────────────────────────────────
     2   failed     mx.y.test   550 5.1.1 no such user
     1   deferred   z.test      no answer

 31 recipients in 2.0 s · 16/s · 1,234 connections"""
    )


def test_thirty_delivered_recipients_need_no_table_of_troubles():
    text = draw(summarise(outcome() for _ in range(30)))
    assert (
        text
        == """\
 delivered  30  100.0 %

 30 recipients in 2.0 s · 15/s · 1,234 connections"""
    )


def test_nothing_sent_says_so():
    assert draw(Summary()) == "No message was sent."


def test_on_a_narrow_terminal_rows_stand_one_below_the_other():
    few = [outcome(), outcome(Status.FAILED, "c@y.test", reply=Reply(550, (b"5.1.1 no user",)))]
    assert draw(summarise(few), 40).splitlines() == [
        " b@y.test",
        "   delivered · mx.y.test · 250 2.1.5 as",
        "   it is",
        " c@y.test",
        "   failed · mx.y.test · 550 5.1.1 no",
        "   user",
        "",
        " 2 recipients in 2.0 s · 1 delivered, 1",
        " failed · 1,234 connections",
    ]
    many = draw(summarise(few * MAX_ROWS), 40)
    assert " 20 failed\n   mx.y.test · 550 5.1.1 no user\n" in many


@pytest.mark.parametrize("count", [1, MAX_ROWS, MAX_ROWS + 1, 1000])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("colours", [False, True])
def test_a_table_fits_its_terminal(count: int, width: int, colours: bool):
    long = outcome(
        Status.FAILED,
        "a.very.long.local.part@subdomain.of.a.very.long.domain.example",
        peer=Peer("mx1.of.a.very.long.host.name.example", "2001:db8::1", 25),
        reply=Reply(550, tuple(b"word " * 30 for _ in range(3))),
    )
    text = draw(summarise(long for _ in range(count)), width, colours=colours)
    visible = io.StringIO()
    Console(file=visible, width=500).print(summary_module.Text.from_ansi(text))
    assert max(len(line.rstrip()) for line in visible.getvalue().splitlines()) <= width


def test_rows_are_kept_only_while_they_are_few():
    found = summarise(outcome() for _ in range(MAX_ROWS))
    assert len(found.rows) == MAX_ROWS
    found.add(outcome())
    assert found.rows == []
    found.add(outcome())
    assert found.rows == []
    assert found.total == MAX_ROWS + 2


def test_kinds_of_trouble_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(summary_module, "_MAX_KINDS", 15)
    found = summarise(
        outcome(Status.FAILED, peer=Peer(f"mx{number}.test")) for number in range(1000)
    )
    assert len(found.texts) <= 15 + len(Status)
    assert sum(found.troubles.values()) == 1000
    text = draw(found)
    assert " and 6 more kinds of answers" in text
    assert " 985   failed   (others)   various" in text
    assert text.count("mx") == MAX_TROUBLES - 1


def test_a_server_cannot_steer_the_terminal():
    evil = b"\x1b[2J\x1b]0;owned\x07 [red]markup[/red]"
    for kind in ({"reply": Reply(550, (evil,))}, {"reply": None, "text": evil.decode()}):
        found = outcome(
            Status.FAILED,
            "\x1b[31m@y.test",
            peer=Peer("\x1b[7mhost"),
            transcript=("S: " + evil.decode(),),
            **kind,
        )
        assert answer(found).isprintable()
        rows, troubles = draw(summarise([found]), 200), draw(summarise([found] * 30), 200)
        assert "\x1b" not in rows + troubles
        assert "[red]markup[/red]" in rows


def test_a_dialogue_is_shown_once_for_those_who_share_it():
    one, other = ("C: MAIL", "S: 250 ok"), ("C: QUIT",)
    text = draw(
        summarise(
            [
                outcome(recipient="a@y.test", transcript=one),
                outcome(recipient="b@y.test", transcript=other),
                outcome(recipient="c@y.test", transcript=one),
            ]
        )
    )
    assert "\n a@y.test, c@y.test\n   C: MAIL\n   S: 250 ok\n\n b@y.test\n   C: QUIT\n" in text


def test_a_long_answer_is_cut():
    text = answer(outcome(reply=Reply(250, tuple(b"x" * 500 for _ in range(50)))))
    assert len(text) == 300
    assert text.endswith("…")
