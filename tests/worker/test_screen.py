from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.text import Text

from engine.report.statistics import Statistics
from engine.worker.progress import Progress
from engine.worker.screen import LiveScreen, PlainScreen, can_be_live, print_to

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRESS = Progress(Statistics(submitted=7, delivered=7), 10, is_guess=False, rate=1.0)
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Paper:
    """Stands for an `Output`."""

    def __init__(self) -> None:
        self.text = ""

    def put(self, text: str) -> None:
        self.text += text


@pytest.fixture
def terminal() -> Iterator[int]:
    ours, theirs = os.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def test_a_plain_screen_writes_a_line_every_ten_seconds():
    paper = Paper()
    screen = PlainScreen(paper)
    for tenth in range(301):
        screen.show(PROGRESS, 1000 + tenth / 10)
    assert paper.text.count("\n") == 3
    assert paper.text.startswith("7 of 10 recipients settled")


def test_a_short_run_has_no_line_of_progress():
    paper = Paper()
    screen = PlainScreen(paper)
    for second in range(10):
        screen.show(PROGRESS, second)
    screen.say("hello")
    screen.close()
    assert paper.text == "hello\n"


def test_a_screen_for_programs_shows_no_progress():
    paper = Paper()
    screen = PlainScreen(paper, None)
    for second in range(0, 100, 10):
        screen.show(PROGRESS, second)
    assert paper.text == ""


def test_what_is_said_stands_above_the_live_display():
    file = io.StringIO()
    screen = LiveScreen(Console(file=file, force_terminal=True, width=80, color_system=None))
    screen.show(PROGRESS, 0.0)
    screen.say(
        "a warning with [brackets] and more text than one line of a terminal has: " + "x" * 50
    )
    screen.show(PROGRESS, 1.0)
    screen.close()

    text = file.getvalue()
    assert text.startswith(HIDE_CURSOR)
    assert text.count(SHOW_CURSOR) == 1
    before, _, after = text.partition("a warning with [brackets] and more text")
    assert "7 of 10" in before
    assert "7 of 10" in after
    assert "x" * 50 + "\n" in after


def test_only_a_terminal_can_be_live(terminal: int, monkeypatch: pytest.MonkeyPatch):
    reader, writer = os.pipe()
    monkeypatch.setenv("TERM", "xterm")
    assert not can_be_live(writer)
    assert can_be_live(terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_be_live(terminal)
    monkeypatch.delenv("TERM")
    assert not can_be_live(terminal)
    os.close(reader)
    os.close(writer)


def test_colours_are_for_terminals(terminal: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    reader, writer = os.pipe()
    on_terminal, on_pipe, without = Paper(), Paper(), Paper()
    print_to(on_terminal.put, terminal, Text("hello  ", "red"))
    print_to(on_pipe.put, writer, Text("hello  \nworld", "red"))
    monkeypatch.setenv("NO_COLOR", "1")
    print_to(without.put, terminal, Text("hello", "red"))
    os.close(reader)
    os.close(writer)

    assert "\x1b[31mhello" in on_terminal.text
    assert on_pipe.text == "hello\nworld\n"
    assert without.text == "hello\n"
