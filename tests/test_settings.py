from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.settings import Settings, contradictions, explain
from engine.units import DURATION_ALLOWED

#: Contract section by section; a change here is a breaking change.
DEFAULTS = {
    "helo_name": None,
    "interface": (),
    "interface_strict": False,
    "port": None,
    "protocol": "smtp",
    "connect_timeout": 300.0,
    "greeting_timeout": 300.0,
    "command_timeout": 300.0,
    "data_timeout": 300.0,
    "final_timeout": 600.0,
    "quit_timeout": 1.0,
    "idle_timeout": 5.0,
    "keepalive": True,
    "keepalive_idle": None,
    "keepalive_interval": None,
    "keepalive_count": None,
    "user_timeout": None,
    "dscp": None,
    "fast_open": "connect",
    "proxy": (),
    "esmtp": True,
    "pipelining": True,
    "early_pipelining": False,
    "chunking": True,
    "prdr": True,
    "quit_pipelining": "auto",
    "stream_depth": "auto",
    "one_flight_octets": 65536,
    "size_addition": 1024,
    "max_line_length": 998,
    "multi_domain": True,
    "utf8_downconvert": "auto",
    "lmtp_ignore_quota": False,
    "tls": "opportunistic",
    "tls_fallback_to_clear": True,
    "tls_ca_file": None,
    "tls_certificate": None,
    "tls_private_key": None,
    "tls_sni": None,
    "tls_ciphers": None,
    "tls_min_version": "1.2",
    "tls_resumption": True,
    "dane": "try",
    "mta_sts": "on",
    "auth": None,
    "auth_required": False,
    "auth_in_clear": False,
    "authenticated_sender": None,
    "max_recipients_per_transaction": 100,
    "max_messages_per_connection": 500,
    "max_connections": 20,
    "max_hosts_tried": 5,
    "max_hosts_tried_hard": 50,
    "serialize": False,
    "address_family": "any",
}

TIMES = [name for name in DEFAULTS if name.endswith(("_timeout", "_idle", "_interval"))]
FLAGS = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]
COUNTS = [
    "one_flight_octets",
    "max_line_length",
    "max_recipients_per_transaction",
    "max_messages_per_connection",
]
LIMITS = ["keepalive_count", "max_connections", "max_hosts_tried", "max_hosts_tried_hard"]


def problems(**values: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    return [str(problem) for problem in explain(caught.value)]


# ---- values --------------------------------------------------------------------------------------


def test_every_setting_has_its_default():
    assert Settings().model_dump() == DEFAULTS


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_default_can_be_given_and_stays_what_it_is(name: str):
    assert getattr(Settings.model_validate({name: DEFAULTS[name]}), name) == DEFAULTS[name]


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 26  # type: ignore[misc]


@pytest.mark.parametrize("name", TIMES)
def test_times_are_numbers_of_seconds_or_text(name: str):
    assert getattr(Settings.model_validate({name: "1h30m"}), name) == 5400.0
    assert getattr(Settings.model_validate({name: 2}), name) == 2.0
    assert problems(**{name: 0}) == [f"{name}: found 0; allowed {DURATION_ALLOWED}"]
    assert problems(**{name: "5"}) == [f'{name}: found "5"; allowed {DURATION_ALLOWED}']
    assert problems(**{name: True}) == [f"{name}: found true; allowed {DURATION_ALLOWED}"]


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false_and_nothing_like_it(name: str):
    assert getattr(Settings.model_validate({name: not DEFAULTS[name]}), name) is not DEFAULTS[name]
    assert problems(**{name: "yes"}) == [f'{name}: found "yes"; allowed true or false']
    assert problems(**{name: 1}) == [f"{name}: found 1; allowed true or false"]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_start_at_zero(name: str):
    assert getattr(Settings.model_validate({name: 0}), name) == 0
    assert problems(**{name: -1}) == [f"{name}: found -1; allowed a whole number, 0 or more"]
    assert problems(**{name: "5"}) == [f'{name}: found "5"; allowed a whole number, 0 or more']
    assert problems(**{name: 5.0}) == [f"{name}: found 5.0; allowed a whole number, 0 or more"]
    assert problems(**{name: True}) == [f"{name}: found true; allowed a whole number, 0 or more"]


@pytest.mark.parametrize("name", LIMITS)
def test_limits_start_at_one(name: str):
    assert getattr(Settings.model_validate({name: 1}), name) == 1
    assert problems(**{name: 0}) == [f"{name}: found 0; allowed a whole number, 1 or more"]


def test_size_addition_may_be_negative():
    assert Settings(size_addition=-1).size_addition == -1
    assert problems(size_addition=1.5) == [
        "size_addition: found 1.5; allowed a whole number",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("protocol", ["smtp", "lmtp", "smtps"]),
        ("fast_open", ["off", "connect", "commands"]),
        ("utf8_downconvert", ["never", "auto", "always"]),
        ("tls", ["off", "opportunistic", "require", "verify"]),
        ("tls_min_version", ["1.2", "1.3"]),
        ("dane", ["off", "try", "require"]),
        ("mta_sts", ["off", "on"]),
        ("address_family", ["any", "ipv4", "ipv6", "prefer-ipv4", "prefer-ipv6"]),
    ],
)
def test_choices_take_their_words_only(name: str, words: list[str]):
    for word in words:
        assert getattr(Settings.model_validate({name: word}), name) == word
    allowed = ", ".join(f'"{word}"' for word in words)
    assert problems(**{name: "maybe"}) == [f'{name}: found "maybe"; allowed {allowed}']
    assert problems(**{name: False}) == [f"{name}: found false; allowed {allowed}"]


@pytest.mark.parametrize(
    "name",
    [
        "helo_name",
        "port",
        "tls_ca_file",
        "tls_sni",
        "keepalive_idle",
        "keepalive_interval",
        "keepalive_count",
        "user_timeout",
    ],
)
def test_an_empty_text_takes_a_setting_back(name: str):
    assert getattr(Settings.model_validate({name: ""}), name) is None


def test_text_settings_refuse_control_characters():
    assert problems(tls_ca_file="a\0b", tls_sni="a b", tls_ciphers=5) == [
        'tls_ca_file: found "a\\x00b"; allowed a file name',
        'tls_sni: found "a b"; allowed a domain name',
        "tls_ciphers: found 5; allowed a cipher list",
    ]
    assert problems(authenticated_sender="<a@b.test>") == [
        'authenticated_sender: found "<a@b.test>"; allowed a mailbox without angle brackets'
    ]


def test_unknown_names_are_refused_with_the_nearest():
    assert problems(chunkin=True) == [
        'chunkin: found an unknown name; allowed a known name; did you mean "chunking"?'
    ]
    names = ", ".join(DEFAULTS)
    assert problems(zzz=1) == [f"zzz: found an unknown name; allowed one of {names}"]


def test_all_problems_are_reported_at_once():
    assert len(problems(port=0, tls="x", nonsense=1, dscp="x")) == 4


def test_secrets_never_show_in_repr_or_text():
    settings = Settings.model_validate(
        {
            "proxy": "socks5://me:s3cretW0rd@h.test",
            "auth": {"username": "me", "password": "s3cretW0rd"},
        }
    )
    assert settings.auth is not None
    assert settings.auth.password is not None
    assert settings.auth.password.get_secret_value() == "s3cretW0rd"
    for text in (repr(settings), str(settings), str(settings.proxy[0]), f"{settings.auth}"):
        assert "s3cretW0rd" not in text


def test_importing_the_settings_and_their_rules_brings_in_no_event_loop_and_no_tls():
    script = (
        "import sys, pydantic, pydantic.functional_validators; before = set(sys.modules); "
        "import engine.settings, engine.paths; loaded = set(sys.modules) - before; "
        "print(*{'trio', 'ssl', 'idna', 'difflib', 'shlex'} & loaded)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({}, []),
        ({"tls": "off"}, []),
        ({"tls": "off", "dane": "try", "mta_sts": "on"}, []),
        ({"tls": "opportunistic", "dane": "require"}, []),
        (
            {"tls": "off", "dane": "require"},
            ['dane: found "require" with tls = "off"; allowed "try", "off", or tls on'],
        ),
        (
            {"tls": "off", "protocol": "smtps"},
            ['protocol: found "smtps" with tls = "off"; allowed "smtp" or "lmtp", or tls on'],
        ),
        (
            {"tls_private_key": "key.pem"},
            ["tls_private_key: found a key without tls_certificate; allowed both, or neither"],
        ),
        ({"tls_certificate": "both.pem"}, []),
        ({"tls_certificate": "cert.pem", "tls_private_key": "key.pem"}, []),
    ],
)
def test_settings_that_cannot_hold_together_are_named(values, problems):
    assert [str(problem) for problem in contradictions(Settings.model_validate(values))] == problems


def test_the_error_itself_says_what_was_found_and_what_is_allowed():
    with pytest.raises(ValidationError) as info:
        Settings(max_conections=10, auth={"username": "u", "passwort": "hunter2"}, port=0)
    text = str(info.value)
    assert (
        'max_conections\n  found an unknown name; allowed a known name; did you mean "max_conn'
        in text
    )
    assert (
        'auth.passwort\n  found an unknown name; allowed a known name; did you mean "passw' in text
    )
    assert "port\n  found 0; allowed a number from 1 to 65535" in text
    assert "hunter2" not in text + repr(info.value.errors())
    assert "https://" not in text
    assert [problem.key for problem in explain(info.value)] == [
        "port",
        "auth.passwort",
        "max_conections",
    ]


def test_files_may_be_paths():
    settings = Settings(
        tls_ca_file=Path("/etc/ca.pem"), auth={"username": "u", "password_file": Path("p")}
    )
    assert settings.tls_ca_file == "/etc/ca.pem"
    assert settings.auth.password_file == "p"
