from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from engine.worker import sendmail as sendmail_module
from engine.worker import submit as submit_module
from engine.worker.batch import Wishes
from engine.worker.cli import cli
from engine.worker.submit import SubmitOptions

if TYPE_CHECKING:
    from click.testing import Result


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SubmitOptions]:
    """What `submit` was asked for; nothing is submitted."""
    seen: list[SubmitOptions] = []
    monkeypatch.setattr(submit_module, "submit", lambda options: seen.append(options) or 0)
    return seen


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_a_message_and_its_envelope_are_understood(asked: list[SubmitOptions]):
    invoke("submit", "--config", "e.toml", "--sender", "a@x.test", "b@y.test", "c@y.test")
    assert asked == [
        SubmitOptions(config="e.toml", sender="a@x.test", recipients=("b@y.test", "c@y.test"))
    ]


def test_all_options_are_understood(asked: list[SubmitOptions]):
    invoke(
        *("submit", "--config", "e.toml", "--sender", "<>", "--message", "m.eml", "-t"),
        *("--id", "x", "--tenant", "t", "--job", "j", "--priority", "-9", "--hold", "--json"),
        *("--not-before", "1700000000", "--deadline", "2d"),
    )
    wishes = Wishes(
        tenant="t", job="j", priority=-9, not_before=1_700_000_000.0, deadline="2d", hold=True
    )
    assert asked == [
        SubmitOptions(
            config="e.toml",
            sender="<>",
            message="m.eml",
            from_header=True,
            id="x",
            wishes=wishes,
            as_json=True,
        )
    ]


def test_a_batch_may_have_wishes(asked: list[SubmitOptions]):
    invoke("submit", "--config", "e.toml", "--batch", "-", "--job", "j")
    assert asked == [SubmitOptions(config="e.toml", batch="-", wishes=Wishes(job="j"))]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--sender", "a@x.test"], "RECIPIENT, --batch or -t is needed"),
        (["b@y.test"], "--sender is needed"),
        (["-t"], "--sender is needed"),
        (["--batch", "f", "b@y.test"], "--batch and RECIPIENT exclude each other"),
        (["--batch", "f", "--message", "m"], "--batch and --message exclude each other"),
        (["--batch", "f", "--sender", ""], "--batch and --sender exclude each other"),
        (["--batch", "f", "--id", "x"], "--batch and --id exclude each other"),
        (["--batch", "f", "-t"], "--batch and -t exclude each other"),
        (["--batch", "f", "--priority", "10"], "10 is not in the range"),
        (["--batch", "f", "--deadline", "soon"], "'soon'; allowed is a time with its zone"),
        (["--batch", "f", "--not-before", "-1"], "'-1'; allowed is a time with its zone"),
        (["--batch", "f", "--nonsense"], "No such option"),
    ],
)
def test_bad_usage_is_refused(asked: list[SubmitOptions], arguments: list[str], what: str):
    result = invoke("submit", "--config", "e.toml", *arguments)
    assert result.exit_code == 2  # click's own; `engine.__main__` makes 64 of it
    assert what in " ".join(result.output.split())
    assert asked == []


def test_without_a_configuration_there_is_no_queue(asked: list[SubmitOptions]):
    assert "Missing option '--config'" in invoke("submit", "--batch", "f").output


def test_arguments_of_sendmail_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(sendmail_module, "sendmail", lambda arguments: seen.append(arguments) or 0)
    arguments = ["-t", "-oi", "-fme@x.test", "-N", "never", "--", "-b", "--help"]
    invoke("sendmail", *arguments)
    invoke("sendmail", "--help")
    assert seen == [arguments, ["--help"]]
