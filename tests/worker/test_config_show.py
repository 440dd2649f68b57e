from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.settings import Settings
from engine.worker.config import load_config
from engine.worker.config_show import MASK, effective_values, show_config
from tests.worker.commands import ROOT

TEXT = """\
[defaults]
helo_name = "me.test"
proxy = "socks5://user:s3cretW0rd@192.0.2.1:1080"

[defaults.auth]
username = "bob"
password = "s3cretW0rd"

[[paths]]
match = "*.example.net"
tls = "verify"
max_connections = 3

[[paths]]
match = "mx.test"
auth = { username = "bob", password = "s3cretW0rd" }

[[routes]]
match = "*"
hosts = ["127.0.0.1:2525"]

[queue]
warn_after = ["1h", "1d"]

[[retry]]
match = "*.slow.test"
steps = ["5m", "1h x1.5 until 16h"]

[tls_reports]
organization = "Me"
contact = "tls@me.test"
"""


@pytest.fixture
def config(place):
    place.config.write_text(TEXT)
    return place.config


def test_every_value_in_effect_is_there_once(config):
    found = list(effective_values(load_config(config)))
    values = dict(found)
    assert len(values) == len(found)
    assert {f"defaults.{name}" for name in Settings.model_fields} <= set(values)
    assert values["defaults.helo_name"] == "me.test"
    assert values["defaults.connect_timeout"] == 300.0
    assert values["paths[0].match"] == "*.example.net"
    assert (values["paths[0].tls"], values["paths[0].max_connections"]) == ("verify", 3)
    assert "paths[0].port" not in values
    assert values["routes[0].hosts"] == ["127.0.0.1:2525"]
    assert values["queue.path"] == "spool.sqlite"
    assert values["queue.warn_after"] == [3600.0, 86400.0]
    assert values["retry[0].match"] == "*.slow.test"
    assert values["retry[0].steps"] == ["5m", "1h x1.5 until 16h"]
    assert values["retry.default.steps"][0] == "5m"
    assert values["tls_reports.unique"] == "1"
    json.dumps(values)


def test_every_source_that_is_known_belongs_to_a_value(config):
    loaded = load_config(config)
    assert set(loaded.sources) <= {key for key, _ in effective_values(loaded)}


def test_the_source_of_each_value_is_said(config, capsys):
    assert show_config(str(config), ["port=2525"], as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["defaults.helo_name"] == {"value": "me.test", "source": f"{config}:2"}
    assert found["defaults.port"] == {"value": 2525, "source": "--set"}
    assert found["defaults.tls"]["source"] == "default"
    assert found["paths[0].tls"] == {"value": "verify", "source": f"{config}:11"}
    assert found["queue.warn_after"]["source"] == f"{config}:23"
    assert found["retry[0].steps"]["source"] == f"{config}:27"


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_are_not_shown(as_json, config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show_config(str(config), ['auth={username="eve",password="s3cretW0rd"}'], as_json=as_json)
    text = capsys.readouterr().out
    assert "s3cretW0rd" not in text
    assert MASK in text
    for secret in ("bob", "eve", "user:"):
        assert secret not in text


def test_people_get_a_table_that_fits(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show_config(str(config), [])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("defaults.connect_timeout" in line and "300.0" in line for line in lines)


def test_without_a_file_all_is_default(capsys):
    assert show_config(None, [], as_json=True) == 0
    sources = {each["source"] for each in json.loads(capsys.readouterr().out).values()}
    assert sources == {"default"}


@pytest.mark.parametrize(("text", "status"), [(None, 66), ("nonsense = 1", 78)])
def test_a_configuration_that_cannot_be_used_ends_it(text, status, place, capsys):
    if text is None:
        place.config.unlink()
    else:
        place.config.write_text(text)
    assert show_config(str(place.config), []) == status
    assert capsys.readouterr().out == ""


def test_on_a_narrow_terminal_no_value_is_missing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    assert show_config(None, ["port=26"]) == 0
    assert " defaults.port\n   26 · --set\n" in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_what_cannot_be_written_is_no_success_and_no_traceback(as_json):
    command = [sys.executable, "-m", "engine", "config", *as_json]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (75, "standard output: No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
