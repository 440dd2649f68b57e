from __future__ import annotations

import pytest
from pydantic import ValidationError

from engine.setting_types import DSCP_NAMES, Auth
from engine.settings import Settings, explain

IP_ALLOWED = "IP addresses of this host: one, or a list"
PORT_ALLOWED = "a number from 1 to 65535 or the name of a TCP service"
HELO_ALLOWED = 'a domain name, or an address literal such as "[192.0.2.1]" or "[IPv6:2001:db8::1]"'
DSCP_ALLOWED = (
    "a number from 0 to 0x3F, or one of af11, af12, af13, af21, af22, af23, af31, af32, af33, "
    "af41, af42, af43, ef, lowcost, lowdelay, mincost, reliability, throughput"
)
MECHANISMS_ALLOWED = "one or more of SCRAM-SHA-256, SCRAM-SHA-1, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER, XOAUTH2, EXTERNAL"
COMMAND_ALLOWED = "a command: a list of its words, or one text that is split as a shell would"


def problems(**values: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    return [str(problem) for problem in explain(caught.value)]


# ---- values --------------------------------------------------------------------------------------


def test_stream_depth_is_auto_or_at_least_one():
    assert Settings(stream_depth=1).stream_depth == 1
    assert Settings(stream_depth="auto").stream_depth == "auto"
    allowed = '"auto", or a whole number, 1 or more'
    assert problems(stream_depth=0) == [f"stream_depth: found 0; allowed {allowed}"]
    assert problems(stream_depth=True) == [f"stream_depth: found true; allowed {allowed}"]
    assert problems(stream_depth="4") == [f'stream_depth: found "4"; allowed {allowed}']


@pytest.mark.parametrize(
    ("given", "kept"),
    [(1, 1), (65535, 65535), ("25", 25), ("smtp", "smtp"), ("submission", "submission")],
)
def test_port_is_a_number_or_a_service(given: object, kept: object):
    assert Settings.model_validate({"port": given}).port == kept


@pytest.mark.parametrize(
    ("port", "shown"),
    [
        (0, "0"),
        (65536, "65536"),
        (-1, "-1"),
        (True, "true"),
        (25.0, "25.0"),
        ("0x19", '"0x19"'),
        ("25x", '"25x"'),
        ("0", '"0"'),
        ("٢٥", '"\\u0662\\u0665"'),
        ("sm tp", '"sm tp"'),
        ([25], "[25]"),
    ],
)
def test_other_ports_are_refused(port: object, shown: str):
    assert problems(port=port) == [f"port: found {shown}; allowed {PORT_ALLOWED}"]


def test_interface_takes_one_address_or_a_list():
    assert Settings.model_validate({"interface": "192.0.2.1"}).interface == ("192.0.2.1",)
    several = Settings.model_validate({"interface": ["192.0.2.1", "2001:DB8::0:1"]})
    assert several.interface == ("192.0.2.1", "2001:db8::1")


@pytest.mark.parametrize(
    ("interface", "shown"),
    [
        ("eth0", '"eth0"'),
        (["192.0.2.1", "eth0", "wlan0"], '"eth0", "wlan0"'),
        ([3221225985], "3221225985"),
        (5, "5"),
        ({}, "a table"),
    ],
)
def test_interface_names_the_items_that_are_no_addresses(interface: object, shown: str):
    assert problems(interface=interface) == [f"interface: found {shown}; allowed {IP_ALLOWED}"]


@pytest.mark.parametrize(
    "name", ["mx.example.net", "localhost", "a_b.test", "[192.0.2.1]", "[IPv6:2001:db8::1]"]
)
def test_helo_name_is_a_domain_or_an_address_literal(name: str):
    assert Settings(helo_name=name).helo_name == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("mx example", '"mx example"'),
        ("mx\r\nRSET", '"mx\\r\\nRSET"'),
        ("mx.example.net\n", '"mx.example.net\\n"'),
        ("mx..net", '"mx..net"'),
        ("-mx.net", '"-mx.net"'),
        ("mx.net.", '"mx.net."'),
        ("mü.test", '"m\\xfc.test"'),
        ("[192.0.2.300]", '"[192.0.2.300]"'),
        ("[2001:db8::1]", '"[2001:db8::1]"'),
        ("[IPv6:192.0.2.1]", '"[IPv6:192.0.2.1]"'),
        ("[IPv6:fe80::1%eth0]", '"[IPv6:fe80::1%eth0]"'),
        (f"{'a' * 64}.net", f'"{"a" * 64}.net"'),
        (5, "5"),
    ],
)
def test_other_helo_names_are_refused(name: object, shown: str):
    assert problems(helo_name=name) == [f"helo_name: found {shown}; allowed {HELO_ALLOWED}"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("af21", "af21"),
        ("ef", "ef"),
        (0, 0),
        (0x3F, 0x3F),
        ("0x2e", 0x2E),
        ("056", 0o56),
        ("46", 46),
        ("0", 0),
        ("off", None),
        (False, None),
    ],
)
def test_dscp_is_a_name_or_a_number_in_any_c_base(given: object, kept: object):
    assert Settings.model_validate({"dscp": given}).dscp == kept


@pytest.mark.parametrize(
    ("dscp", "shown"),
    [
        ("AF21", '"AF21"'),
        ("af44", '"af44"'),
        (64, "64"),
        (-1, "-1"),
        ("0x40", '"0x40"'),
        ("089", '"089"'),
        ("0b11", '"0b11"'),
        (True, "true"),
        (1.5, "1.5"),
    ],
)
def test_other_dscp_values_are_refused(dscp: object, shown: str):
    assert problems(dscp=dscp) == [f"dscp: found {shown}; allowed {DSCP_ALLOWED}"]


def test_dscp_names_stand_for_the_octets_of_the_reference_client():
    known = {"af11": 0x28, "af12": 0x30, "af13": 0x38, "af21": 0x48, "af43": 0x98, "ef": 0xB8}
    known |= {"lowdelay": 0x10, "throughput": 0x08, "reliability": 0x04}
    known |= {"lowcost": 0x02, "mincost": 0x02}
    assert {name: DSCP_NAMES[name] for name in known} == known
    assert len(DSCP_NAMES) == 18


# ---- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [" ", [], 5, {}])
def test_a_token_command_needs_a_word(command: object):
    assert problems(auth={"username": "me", "token_command": command}) == [
        f"auth.token_command: found no command; allowed {COMMAND_ALLOWED}"
    ]


def test_auth_takes_one_of_three_secrets():
    by_file = Settings.model_validate({"auth": {"username": "me", "password_file": "/run/x"}})
    assert by_file.auth is not None
    assert by_file.auth.password_file == "/run/x"
    by_token = Settings.model_validate(
        {
            "auth": {
                "username": "me",
                "token_command": "get-token --for 'me too'",
                "mechanisms": "xoauth2",
            }
        }
    )
    assert by_token.auth is not None
    assert by_token.auth.token_command == ("get-token", "--for", "me too")
    assert by_token.auth.mechanisms == ("XOAUTH2",)


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ("s3cretW0rd", ['auth: found a value of type str; allowed a table, or "off"']),
        (
            {"username": "me"},
            [
                "auth: found none; allowed exactly one of password, password_file, token_command",
            ],
        ),
        (
            {"username": "me", "password": "s3cretW0rd", "password_file": "f"},
            [
                (
                    "auth: found password and password_file; "
                    "allowed exactly one of password, password_file, token_command"
                ),
            ],
        ),
        (
            {"password": "s3cretW0rd"},
            ["auth.username: found nothing; allowed a value: it is needed"],
        ),
        (
            {"username": "me", "pasword": "s3cretW0rd"},
            ['auth.pasword: found an unknown name; allowed a known name; did you mean "password"?'],
        ),
        *(
            (
                {"username": "me", "password": f"s3cretW0rd{end}"},
                [
                    (
                        "auth.password: found more than one line, or control characters; "
                        "allowed a password"
                    )
                ],
            )
            for end in ("\n", "\0", "\ud800")
        ),
        (
            {"username": "a\nb", "password": 5},
            [
                "auth.username: found a text with control characters; allowed a user name",
                "auth.password: found an empty text or no text; allowed a password",
            ],
        ),
        (
            {"username": "me", "token_command": "say 's3cretW0rd"},
            [
                (
                    "auth.token_command: found a command with an open quotation; "
                    f"allowed {COMMAND_ALLOWED}"
                )
            ],
        ),
        (
            {"username": "me", "token_command": ["s3cretW0rd", 5]},
            [
                (
                    "auth.token_command: found a command with a word that is empty or no text; "
                    f"allowed {COMMAND_ALLOWED}"
                )
            ],
        ),
        (
            {"username": "me", "password": "s3cretW0rd", "mechanisms": ["PLAIN", "NO WAY"]},
            [(f"auth.mechanisms: found an unknown name in place 2; allowed {MECHANISMS_ALLOWED}")],
        ),
    ],
)
def test_bad_auth_tables_are_refused_without_their_secrets(auth: object, expected: list[str]):
    assert problems(auth=auth) == expected
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"auth": auth})
    assert "s3cretW0rd" not in str(caught.value)


@pytest.mark.parametrize(
    ("mechanisms", "shown"),
    [
        ("DIGEST-MD5", "an unknown name"),
        (["PLAIN", 5], "an unknown name in place 2"),
        ("LOG\u0131N", "an unknown name"),
        ({}, "a value of type dict"),
    ],
)
def test_mechanisms_that_are_not_built_are_refused(mechanisms: object, shown: str):
    auth = {"username": "me", "password": "s3cretW0rd", "mechanisms": mechanisms}
    assert problems(auth=auth) == [f"auth.mechanisms: found {shown}; allowed {MECHANISMS_ALLOWED}"]


def test_refused_mechanisms_are_no_second_problem():
    assert problems(auth={"mechanisms": "NTLM", "password": "s3cretW0rd"}) == [
        f"auth.mechanisms: found an unknown name; allowed {MECHANISMS_ALLOWED}"
    ]


@pytest.mark.parametrize(
    "auth",
    [
        {"mechanisms": ["EXTERNAL"]},
        {"mechanisms": "external", "username": "me"},
        {"mechanisms": ["EXTERNAL"], "username": "", "password": ""},
        {"mechanisms": ["OAUTHBEARER"], "token_command": "get-token"},
        {"mechanisms": ["OAUTHBEARER", "EXTERNAL"], "token_command": "get-token"},
        {"mechanisms": ["XOAUTH2"], "username": "me", "password_file": "/run/token"},
        {"mechanisms": ["PLAIN"], "username": "me", "token_command": "print-password"},
    ],
    ids=str,
)
def test_auth_needs_what_its_mechanisms_need(auth: dict[str, object]):
    settings = Settings.model_validate({"auth": auth})
    assert settings.auth is not None
    assert settings.auth.username == (auth.get("username") or None)


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        (
            {"mechanisms": ["OAUTHBEARER", "XOAUTH2"], "token_command": "get-token"},
            "auth.username: found nothing; allowed a value: it is needed",
        ),
        (
            {"username": "", "password": "s3cretW0rd"},
            "auth.username: found nothing; allowed a value: it is needed",
        ),
        (
            {"mechanisms": ["EXTERNAL", "PLAIN"], "username": "me"},
            "auth: found none; allowed exactly one of password, password_file, token_command",
        ),
        (
            {"mechanisms": ["OAUTHBEARER"]},
            "auth: found none; allowed exactly one of password, password_file, token_command",
        ),
        (
            {"mechanisms": ["EXTERNAL"], "password": "s3cretW0rd", "password_file": "f"},
            (
                "auth: found password and password_file; "
                "allowed exactly one of password, password_file, token_command"
            ),
        ),
    ],
)  # fmt: skip
def test_auth_without_what_its_mechanisms_need_is_refused(auth: object, expected: str):
    assert problems(auth=auth) == [expected]


def test_a_program_may_give_a_function_in_place_of_a_token_command():
    async def token() -> str:
        return "t"

    assert Auth(username="me", token_command=token).token_command is token
    settings = Settings(auth=Auth(username="me", token_command=token))
    assert settings.auth is not None
    assert settings.auth.token_command is token


@pytest.mark.parametrize("word", ["", "off", "none", False, None])
def test_auth_can_be_switched_off_by_a_word(word: object):
    assert Settings.model_validate({"auth": word}).auth is None
