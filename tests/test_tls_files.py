from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.paths import PathRule, SettingsTable
from engine.settings import Settings
from engine.tls_files import file_problems, names_files, refuse_bad_files

BAD = {"tls_ca_file": "/none/ca.pem"}
PROBLEM = 'tls_ca_file: found "/none/ca.pem", which cannot be read: No such file or directory'


def test_without_files_there_is_nothing_to_look_at():
    assert not names_files(SettingsTable(Settings(tls="verify")))
    assert file_problems(Settings(tls="verify")) == []


@pytest.mark.parametrize(
    "more", [BAD, {"tls_ciphers": "HIGH"}, {"tls_certificate": "/none/me.pem"}], ids=str
)
def test_files_and_ciphers_are_looked_at_wherever_they_are_named(more):
    assert names_files(SettingsTable(Settings(**more)))
    assert names_files(SettingsTable(Settings(), [PathRule("mx.test", more)]))


def test_what_is_wrong_with_the_defaults_is_said_once():
    rules = [PathRule("mx.test", {"port": 26}), PathRule("other.test", BAD)]

    with pytest.raises(ConfigError) as caught:
        refuse_bad_files(SettingsTable(Settings(**BAD), rules))

    (problem,) = caught.value.problems
    assert problem.startswith(PROBLEM)


def test_what_is_wrong_on_a_path_is_said_with_the_path():
    with pytest.raises(ConfigError) as caught:
        refuse_bad_files(SettingsTable(Settings(), [PathRule("mx.test", BAD)]))

    (problem,) = caught.value.problems
    assert problem.startswith(f"paths[0] mx.test: {PROBLEM}")


def test_good_ciphers_are_fine():
    refuse_bad_files(SettingsTable(Settings(tls_ciphers="ECDHE+AESGCM")))
