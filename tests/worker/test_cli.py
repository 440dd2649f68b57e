from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from engine.worker import demo as demo_module
from engine.worker import explain as explain_module
from engine.worker import send as send_module
from engine.worker.cli import cli
from engine.worker.explain import ExplainOptions
from engine.worker.run import Manner
from engine.worker.send import SendOptions

if TYPE_CHECKING:
    from click.testing import Result


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[SendOptions]:
    """What `send` was asked for; nothing is sent."""
    seen: list[SendOptions] = []
    monkeypatch.setattr(send_module, "send", lambda options: seen.append(options) or 0)
    return seen


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def refusal(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2  # click's own; `engine.__main__` makes 64 of it
    return result.output


def test_a_message_and_its_envelope_are_understood(sent: list[SendOptions]):
    invoke("send", "--sender", "a@x.test", "--message", "m.eml", "b@y.test", "c@y.test")
    assert sent == [SendOptions(("b@y.test", "c@y.test"), "a@x.test", "m.eml")]


@pytest.mark.parametrize("sender", ["", "<>"])
def test_the_null_path_is_a_sender(sent: list[SendOptions], sender: str):
    invoke("send", "--sender", sender, "b@y.test")
    assert sent == [SendOptions(("b@y.test",), sender)]


def test_all_options_are_understood(sent: list[SendOptions]):
    invoke(
        *("send", "--batch", "-", "--host", "b.test:2525", "--host", "[::1]:25"),
        *("--config", "e.toml", "--set", "a=1", "--set", "b=2", "--state", "s.sqlite"),
        *("--json", "--transcript", "--log", "json"),
    )
    assert sent == [
        SendOptions(
            batch="-",
            hosts=("b.test:2525", "[::1]:25"),
            config="e.toml",
            sets=("a=1", "b=2"),
            state="s.sqlite",
            manner=Manner(as_json=True, transcripts=True, log="json"),
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "RECIPIENT or --batch is needed"),
        (["--sender", "a@x.test"], "RECIPIENT or --batch is needed"),
        (["b@y.test"], "--sender is needed"),
        (["--batch", "f", "b@y.test"], "--batch and RECIPIENT exclude each other"),
        (["--batch", "f", "--message", "m"], "--batch and --message exclude each other"),
        (["--batch", "f", "--sender", ""], "--batch and --sender exclude each other"),
        (["--batch", "f", "--host", "mx.test:0"], "'0' is no port"),
        (["--batch", "f", "--host", "mx.test:65536"], "'65536' is no port"),
        (["--batch", "f", "--host", "192.0.2.300"], "not an IP address"),
        (["--batch", "f", "--host", ""], "allowed: a name or an IP address"),
        (["--batch", "f", "--set", "port"], 'found no "KEY="; allowed KEY=VALUE'),
        (["--batch", "f", "--log", "xml"], "'xml' is not one of"),
        (["--batch", "f", "--nonsense"], "No such option"),
    ],
)
def test_bad_usage_is_refused(sent: list[SendOptions], arguments: list[str], what: str):
    assert what in " ".join(refusal("send", *arguments).split())
    assert sent == []


def test_the_help_of_send_has_examples_and_every_exit_status():
    text = invoke("send", "--help").output
    assert "Examples:" in text
    assert '{"id": "7", "sender": "me@example.org",' in text
    for status in ("0", "64", "65", "66", "69", "75", "78", "130"):
        assert f"\n    {status} " in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[ExplainOptions]:
    """What `explain` was asked for; nothing is explained."""
    seen: list[ExplainOptions] = []
    monkeypatch.setattr(explain_module, "explain", lambda options: seen.append(options) or 0)
    return seen


def test_addresses_are_explained(explained: list[ExplainOptions]):
    invoke("explain", "a@x.test", "y.test")
    invoke(
        *("explain", "--host", "b.test:2525", "--host", "[::1]:25", "--config", "e.toml"),
        *("--set", "a=1", "--set", "b=2", "--state", "s.sqlite", "--json", "--probe", "x.test"),
    )
    assert explained == [
        ExplainOptions(("a@x.test", "y.test")),
        ExplainOptions(
            ("x.test",),
            ("b.test:2525", "[::1]:25"),
            "e.toml",
            ("a=1", "b=2"),
            "s.sqlite",
            as_json=True,
            probes=True,
        ),
    ]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "Missing argument 'ADDRESS...'"),
        (["--host", "mx.test:0", "x.test"], "'0' is no port"),
        (["--sender", "a@x.test", "x.test"], "No such option"),
        (["--set", "=5", "x.test"], 'found no "KEY="; allowed KEY=VALUE'),
    ],
)
def test_bad_usage_of_explain_is_refused(
    explained: list[ExplainOptions], arguments: list[str], what: str
):
    assert what in " ".join(refusal("explain", *arguments).split())
    assert explained == []


def test_the_help_of_explain_has_examples_and_every_exit_status():
    text = invoke("explain", "--help").output
    assert "Examples:" in text
    for status in ("0", "64", "65", "66", "69", "75", "78", "130"):
        assert f"\n    {status} " in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_demonstration_has_its_defaults(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(demo_module, "demo", lambda *numbers: asked.append(numbers) or 0)
    invoke("demo")
    invoke("demo", "--messages", "7", "--connections", "3")
    assert asked == [(5000, 20), (7, 3)]
    assert "0 is not in the range" in refusal("demo", "--messages", "0")


@pytest.mark.parametrize("arguments", [(), ("queue",)])
def test_each_command_has_one_line_in_the_list_and_none_is_cut(arguments: tuple[str, ...]):
    help_text = CliRunner().invoke(cli, [*arguments, "--help"], terminal_width=80).output
    commands = help_text.partition("Commands:\n")[2].splitlines()
    assert len(commands) >= 10
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)
