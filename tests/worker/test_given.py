from __future__ import annotations

import subprocess
import sys

import pytest

from engine.worker.config import Config
from engine.worker.exits import Exit
from engine.worker.given import open_state, read_config


def test_a_good_configuration_is_read(tmp_path):
    file = tmp_path / "engine.toml"
    file.write_text("[defaults]\nport = 26\n")

    config = read_config(str(file), ["keepalive=false"])

    assert isinstance(config, Config)
    assert (config.table.defaults.port, config.table.defaults.keepalive) == (26, False)


def test_a_bad_one_is_an_exit_status_and_says_why(tmp_path, capsys):
    file = tmp_path / "engine.toml"
    file.write_text("[defaults]\nport = 0\n")

    assert read_config(str(file), ()) is Exit.CONFIG
    assert read_config(str(tmp_path / "none.toml"), ()) is Exit.NO_INPUT
    bad, missing = capsys.readouterr().err.splitlines()
    assert bad.startswith(f"{file}:2: defaults.port: found 0")
    assert missing == f"{tmp_path / 'none.toml'}: No such file or directory"


async def test_hints_are_kept_in_a_file_where_there_is_one(tmp_path):
    file = str(tmp_path / "state.sqlite")
    async with open_state(file) as hints:
        assert hints is not None
        hints.put("ehlo", "mx", b"x", seconds=100)
    async with open_state(file) as hints:
        assert hints is not None
        assert hints.get("ehlo", "mx") == b"x"
    async with open_state(None) as hints:
        assert hints is None


@pytest.mark.parametrize(
    "command", ["submit", "sendmail", "queue_list", "queue_apply", "queue_export", "status"]
)
def test_what_delivers_nothing_starts_without_what_delivers(command):
    program = f"import sys, engine.worker.{command}; print('engine.engine' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout == b"False\n"
