from __future__ import annotations

import pytest
from click.testing import CliRunner

from engine.worker import start
from engine.worker.cli import cli
from engine.worker.share import Share
from engine.worker.start import RunOptions


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """What `run` was asked for; nothing runs."""
    seen: list[RunOptions] = []
    monkeypatch.setattr(start, "run_worker", lambda options: seen.append(options) or 0)
    return seen


def invoke(*arguments: str):
    return CliRunner().invoke(cli, ["run", *arguments])


def test_all_options_are_understood(asked: list[RunOptions]):
    invoke("--config", "e.toml")
    invoke("--config", "e.toml", "--set", "a=1", "--set", "b=2", "--until-empty", "--share", "2/3")
    assert asked == [
        RunOptions("e.toml"),
        RunOptions("e.toml", ("a=1", "b=2"), until_empty=True, share=Share(2, 3)),
    ]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "--config"),
        (("--config", "e.toml", "more"), "unexpected extra argument"),
        (("--config", "e.toml", "--share", "3/2"), "allowed 1/2, 2/2 and the like"),
        (("--config", "e.toml", "--until"), "--until-empty"),
        (("--config", "e.toml", "--set", "port"), 'found no "KEY="'),
    ],
)
def test_bad_usage_is_refused(asked: list[RunOptions], arguments: tuple[str, ...], what: str):
    result = invoke(*arguments)
    assert result.exit_code == 2  # click's own; `engine.__main__` makes 64 of it
    assert what in result.output
    assert asked == []


def test_help_says_what_signals_and_statuses_mean_and_nothing_of_what_is_ours():
    text = invoke("--help").output
    for word in ("TERM, INT", "HUP", "66", "73", "75", "78", "--until-empty"):
        assert word in text
    assert "--share" not in text
