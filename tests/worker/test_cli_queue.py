from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from engine.queue.values import Action, Selection, State
from engine.worker import config_show, queue_apply, queue_export, queue_list, status
from engine.worker.cli import cli
from engine.worker.queue_apply import ApplyOptions
from engine.worker.queue_list import ListOptions, ShowOptions
from engine.worker.status import StatusOptions
from tests.worker.commands import ROOT


@pytest.fixture
def asked(monkeypatch):
    """What commands were asked for; nothing is done."""
    seen = []

    def note(*arguments, **options):
        seen.append((*arguments, options) if options else arguments)
        return 0

    for module, name in (
        (queue_list, "list_queue"),
        (queue_list, "show_message"),
        (queue_apply, "apply"),
        (queue_apply, "set_weight"),
        (queue_export, "export"),
        (queue_export, "check"),
        (status, "show_status"),
        (config_show, "show_config"),
    ):
        monkeypatch.setattr(module, name, note)
    return seen


def invoke(*arguments):
    return CliRunner().invoke(cli, arguments)


FILTERS = ("--message", "m", "--recipient", "r@x.test", "--domain", "*.D.test", "--sender", "<>")
FILTERS += ("--tenant", "t", "--job", "j", "--state", "held", "--state", "queued")
SELECTION = Selection(
    states=frozenset({State.HELD, State.QUEUED}),
    message="m",
    recipient="r@x.test",
    domain="*.d.test",
    sender="",
    tenant="t",
    job="j",
)


def test_a_list_has_filters_and_a_limit(asked):
    invoke("queue", "list", "--config", "e.toml")
    invoke("queue", "list", "--config", "e.toml", *FILTERS, "--limit", "5", "--json")
    assert asked == [
        (ListOptions(config="e.toml"),),
        (ListOptions(config="e.toml", selection=SELECTION, as_json=True, limit=5),),
    ]


@pytest.mark.parametrize("action", Action)
def test_each_action_takes_filters_or_all(action, asked):
    invoke("queue", action.value, "--config", "e.toml", *FILTERS, "--json")
    invoke("queue", action.value, "--config", "e.toml", "--all")
    assert asked == [
        (ApplyOptions(config="e.toml", action=action, selection=SELECTION, as_json=True),),
        (ApplyOptions(config="e.toml", action=action, selection=Selection()),),
    ]


@pytest.mark.parametrize("action", ["hold", "cancel"])
def test_a_reason_may_be_given(action, asked):
    invoke("queue", action, "--config", "e.toml", "--all", "--reason", "why")
    ((options,),) = asked
    assert options.reason == "why"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["hold"], "at least one filter is needed, or --all"),
        (["purge", "--all", "--job", "j"], "--all and filters exclude each other"),
        (["list", "--domain", "a b"], "--domain: found 'a b'"),
        (["list", "--sender", "me"], "--sender: "),
        (["list", "--state", "ended"], "'ended' is not one of"),
        (["list", "--limit", "0"], "0 is not in the range"),
        (["show"], "Missing argument 'ID'"),
        (["weight", "1"], "Missing option '--tenant'"),
        (["weight", "--tenant", "t", "much"], "'much' is not a valid float"),
        (["explode"], "No such command"),
    ],
)
def test_bad_usage_is_refused(arguments, what, asked):
    command, *rest = arguments
    result = invoke("queue", command, "--config", "e.toml", *rest)
    assert result.exit_code == 2  # click's own; `engine.__main__` makes 64 of it
    assert what in " ".join(result.output.split())
    assert asked == []


def test_the_other_commands_are_understood(asked, tmp_path):
    invoke("queue", "show", "--config", "e.toml", "x", "--json")
    invoke("queue", "weight", "--config", "e.toml", "--tenant", "t", "--job", "j", "2.5")
    invoke("queue", "export", "--config", "e.toml", str(tmp_path))
    invoke("queue", "check", "--config", "e.toml")
    invoke("status", "--config", "e.toml", "--json")
    invoke("config", "--set", "port=25", "--set", "tls=off")
    assert asked == [
        (ShowOptions(config="e.toml", message="x", as_json=True),),
        ("e.toml", "t", 2.5, "j"),
        ("e.toml", tmp_path),
        ("e.toml",),
        (StatusOptions(config="e.toml", as_json=True),),
        (None, ("port=25", "tls=off"), {"as_json": False}),
    ]


COMMANDS = ["list", "show", "retry", "hold", "release", "cancel", "purge", "weight", "export"]


@pytest.mark.parametrize(
    "command",
    [["queue"], ["status"], ["config"], *(["queue", name] for name in (*COMMANDS, "check"))],
    ids=" ".join,
)
def test_help_fits_the_terminal_and_has_the_exit_status(command):
    text = invoke(*command, "--help").output
    assert max(map(len, text.splitlines())) <= 80
    if command != ["queue"]:
        assert "Exit status:" in text
        assert "78" in text


def test_help_imports_neither_trio_nor_the_store():
    script = (
        "import sys; from click.testing import CliRunner; from engine.worker.cli import cli\n"
        "for name in ('queue', 'submit', 'status', 'config'):\n"
        "    assert CliRunner().invoke(cli, [name, '--help']).exit_code == 0\n"
        "print([name for name in ('trio', 'apsw', 'pydantic', 'rich') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT, text=True
    )
    assert done.stdout == "[]\n"
