from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.paths import MATCH_ALLOWED, PathRule
from engine.queue.decision import Unknown
from engine.queue.steps import STEP_ALLOWED
from engine.report.tlsrpt_form import Reporter
from engine.routing.table import HOST_FORMS, MATCH_FORMS
from engine.settings import Settings
from engine.smtp.mechanisms import MECHANISMS
from engine.units import DURATION_ALLOWED
from engine.worker import config as config_module
from engine.worker.config import Config, load_config
from engine.worker.sections import QueueSection, WorkerSection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Write = Callable[[str | bytes], Path]

SECTIONS = "defaults, paths, routes, routing, dns, queue, worker, retry, tls_reports"
SERVERS_ALLOWED = 'IP addresses of name servers with or without a port, as "127.0.0.1:53"'
PROXY_ALLOWED = (
    '"socks5://[user:pass@]host[:port]" or "haproxy://host[:port]", perhaps followed by '
    '"?priority=2&weight=3&timeout=5s" (numbers up to 65535): one, or a list'
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write `engine.toml`, in the current folder so that error lines begin with a short name."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str | bytes) -> Path:
        path = Path("engine.toml")
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


@pytest.fixture(autouse=True)
def services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines differ in the services they know; this one knows `submission`."""

    def getservbyname(name: str, protocol: str) -> int:
        if (name, protocol) != ("submission", "tcp"):
            raise OSError("service/proto not found")
        return 587

    monkeypatch.setattr(config_module.socket, "getservbyname", getservbyname)


def problems(path: Path | None, sets: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, sets)
    return list(caught.value.problems)


# ---- good configurations --------------------------------------------------------------------------


def test_without_a_file_everything_is_default():
    config = load_config(None)

    assert config.table.defaults == Settings()
    assert config.table.defaults.model_fields_set == set()
    assert (config.table.rules, config.routes, config.name_servers) == ((), (), ())
    assert config.dns_timeout == 5.0
    assert config.sources["defaults.port"] == "default"
    of_worker = len(QueueSection.model_fields) + len(WorkerSection.model_fields)
    assert len(config.sources) == len(Settings.model_fields) + 5 + of_worker
    assert set(config.sources.values()) == {"default"}


def test_a_whole_file_is_read(write: Write):
    path = write("""\
[defaults]
port = 2525
command_timeout = "2m"
interface = "192.0.2.1"

[[paths]]
match = "*.example.net"
max_connections = 2

[[paths]]
match = "192.0.2.0/24"

[[routes]]
match = "*.test"
hosts = ["127.0.0.1:2525", "[::1]:2525"]

[[routes]]
match = "*"
hosts = "smart.example.net"

[dns]
servers = ["127.0.0.1:5353", "::1"]
timeout = "2s"

[queue]
path = "spool.sqlite"

[worker]
processes = 1

[[retry]]
match = "*"
steps = ["5m"]
""")

    config = load_config(path, ["serialize=true"])

    assert config.table.defaults == Settings(
        port=2525, command_timeout=120.0, interface=("192.0.2.1",), serialize=True
    )
    assert config.table.rules == (
        PathRule("*.example.net", {"max_connections": 2}),
        PathRule("192.0.2.0/24", {}),
    )
    assert config.routes == (
        ("*.test", ("127.0.0.1:2525", "[::1]:2525")),
        ("*", ("smart.example.net",)),
    )
    assert config.name_servers == ("127.0.0.1:5353", "::1")
    assert config.dns_timeout == 2.0


def test_each_value_knows_where_it_comes_from(write: Write):
    path = write("""\
[defaults]
port = 2525
idle_timeout = 3
[[paths]]
match = "*"

keepalive = false
[dns]
timeout = 1
[[routes]]
match = "*"
hosts = "h.test"
""")

    sources = load_config(path, ["idle_timeout=4"]).sources

    assert sources["defaults.port"] == "engine.toml:2"
    assert sources["defaults.idle_timeout"] == "--set"
    assert sources["defaults.keepalive"] == "default"
    assert sources["paths[0].match"] == "engine.toml:5"
    assert sources["paths[0].keepalive"] == "engine.toml:7"
    assert sources["dns.timeout"] == "engine.toml:9"
    assert sources["dns.servers"] == "default"
    assert sources["routes[0].hosts"] == "engine.toml:12"


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "[defaults]\n", "[defaults]\r\n", "\ufeff[defaults]\n"]
)
def test_an_empty_file_is_a_configuration(write: Write, text: str):
    assert load_config(write(text)).table.defaults == Settings()


def test_a_service_that_the_host_knows_is_a_port(write: Write):
    path = write('[defaults]\nport = "submission"\n')
    assert load_config(path).table.defaults.port == "submission"


def test_rules_are_laid_over_the_defaults(write: Write):
    path = write('[defaults]\nport = 26\n[[paths]]\nmatch = "a.test"\nkeepalive = false\n')
    table = load_config(path, ["idle_timeout=1m"]).table

    merged = table.settings(table.matching(domain="a.test", site="mx.a.test"))

    assert (merged.port, merged.keepalive, merged.idle_timeout) == (26, False, 60.0)


def test_a_config_is_frozen():
    with pytest.raises(AttributeError):
        load_config(None).routes = ()  # type: ignore[misc]


# ---- the file itself ------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(IsADirectoryError):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[defaults]\nport = \n",
            "engine.toml:2:8: found no TOML: invalid value; allowed a TOML document",
        ),
        (
            "[defaults]\nport = 1\nport = 2\n",
            "engine.toml:3:9: found no TOML: cannot overwrite a value; allowed a TOML document",
        ),
        (
            '[defaults]\ntls = """\n\n',
            "engine.toml:4: found no TOML: unterminated string; allowed a TOML document",
        ),
        (
            b"[defaults]\n# caf\xe9\n",
            "engine.toml:2: found octets that are not UTF-8; allowed TOML, which is UTF-8",
        ),
        (
            f"port = {'9' * 5000}",
            "engine.toml:1: found a number too long or a value too deep; allowed a TOML document",
        ),
        (
            f"port = {'[' * 5000}",
            "engine.toml:1: found a number too long or a value too deep; allowed a TOML document",
        ),
    ],
    ids=["value", "twice", "open string", "latin-1", "huge number", "deep"],
)
def test_bad_toml_is_refused_with_its_line(write: Write, text: str | bytes, expected: str):
    assert problems(write(text)) == [expected]


def test_bad_toml_does_not_hide_a_bad_option(write: Write):
    assert problems(write("port ="), ["keepalive=yes"]) == [
        "engine.toml:1: found no TOML: invalid value; allowed a TOML document",
        '--set keepalive=yes: found "yes"; allowed true or false',
    ]


# ---- sections and keys ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[defalts]\n",
            (
                "engine.toml:1: defalts: found an unknown section; "
                'allowed a known name; did you mean "defaults"?'
            ),
        ),
        ("\n[zzz.y]\n", f"engine.toml:2: zzz: found an unknown section; allowed one of {SECTIONS}"),
        (
            '"a\\nb" = 1\n',
            f'engine.toml:1: "a\\nb": found an unknown section; allowed one of {SECTIONS}',
        ),
        (
            "port = 25\n",
            (
                "engine.toml:1: port: found a setting outside any section; "
                "allowed it in [defaults] or [[paths]]"
            ),
        ),
        ("defaults = 5\n", "engine.toml:1: defaults: found 5; allowed a table, [defaults]"),
        ("[[defaults]]\n", "engine.toml:1: defaults: found [a table]; allowed a table, [defaults]"),
        ('dns = "x"\n', 'engine.toml:1: dns: found "x"; allowed a table, [dns]'),
        ("queue = 1\n", "engine.toml:1: queue: found 1; allowed a table, [queue]"),
        ("[[worker]]\n", "engine.toml:1: worker: found [a table]; allowed a table, [worker]"),
        ("[paths]\n", "engine.toml:1: paths: found a table; allowed an array of tables, [[paths]]"),
        (
            "routes = [1]\n",
            "engine.toml:1: routes: found [1]; allowed an array of tables, [[routes]]",
        ),
        ("[retry]\n", "engine.toml:1: retry: found a table; allowed an array of tables, [[retry]]"),
        (
            "[defaults]\n\nchunkin = false\n",
            (
                "engine.toml:3: defaults.chunkin: found an unknown name; "
                'allowed a known name; did you mean "chunking"?'
            ),
        ),
        (
            '[[paths]]\nmatch = "*"\n[[paths]]\nmatch = "a.test"\nmach = 1\nport = 26\n',
            (
                "engine.toml:5: paths[1].mach: found an unknown name; "
                'allowed a known name; did you mean "match"?'
            ),
        ),
        (
            '[[paths]]\nmatch = "*"\n[dns]\n\n"x[y.z" = 1\n',
            (
                'engine.toml:5: dns."x[y.z": found an unknown name; allowed one of servers, timeout, trusted'
            ),
        ),
        (
            '\ndns = { "x[y.z" = 1 }\n',
            (
                'engine.toml:2: dns."x[y.z": found an unknown name; allowed one of servers, timeout, trusted'
            ),
        ),
        (
            "[defaults]\nzzz = 1\n",
            "engine.toml:2: defaults.zzz: found an unknown name; allowed one of "
            + ", ".join(Settings.model_fields),
        ),
        (
            '[[routes]]\nmatch = "*"\nhosts = "h"\nhost = "h"\n',
            (
                "engine.toml:4: routes[0].host: found an unknown name; "
                'allowed a known name; did you mean "hosts"?'
            ),
        ),
        (
            '[dns]\nserver = "192.0.2.1"\n',
            (
                "engine.toml:2: dns.server: found an unknown name; "
                'allowed a known name; did you mean "servers"?'
            ),
        ),
        (
            '[defaults.auth]\nusername = "u"\npassword = "s3cretW0rd"\nmechanism = "PLAIN"\n',
            (
                "engine.toml:4: defaults.auth.mechanism: found an unknown name; "
                'allowed a known name; did you mean "mechanisms"?'
            ),
        ),
    ],
)
def test_unknown_and_misplaced_names_are_refused(write: Write, text: str, expected: str):
    assert problems(write(text)) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[defaults]\nport = 0\n",
            (
                "engine.toml:2: defaults.port: found 0; "
                "allowed a number from 1 to 65535 or the name of a TCP service"
            ),
        ),
        (
            '[defaults]\nport = "nonexistent"\n',
            (
                'engine.toml:2: defaults.port: found "nonexistent"; '
                "allowed a number from 1 to 65535 or a TCP service that this host knows"
            ),
        ),
        (
            '[[paths]]\nmatch = "*"\nport = "nonexistent"\n',
            (
                'engine.toml:3: paths[0].port: found "nonexistent"; '
                "allowed a number from 1 to 65535 or a TCP service that this host knows"
            ),
        ),
        (
            '[defaults]\ninterface = [\n  "192.0.2.1",\n  "eth0",\n]\n',
            (
                'engine.toml:2: defaults.interface: found "eth0"; '
                "allowed IP addresses of this host: one, or a list"
            ),
        ),
        (
            "[defaults]\nidle_timeout = inf\n",
            f"engine.toml:2: defaults.idle_timeout: found inf; allowed {DURATION_ALLOWED}",
        ),
        (
            "[defaults]\nhelo_name = 1979-05-27\n",
            (
                "engine.toml:2: defaults.helo_name: found 1979-05-27; allowed a domain name, or an "
                'address literal such as "[192.0.2.1]" or "[IPv6:2001:db8::1]"'
            ),
        ),
        (
            '[defaults]\ntls = "off"\ndane = "require"\n',
            (
                'engine.toml:3: defaults.dane: found "require" with tls = "off"; '
                'allowed "try", "off", or tls on'
            ),
        ),
        (
            '[defaults]\ndane = "require"\n[[paths]]\nmatch = "*"\ntls = "off"\n',
            (
                'engine.toml:2: defaults.dane: found "require" with tls = "off"; '
                'allowed "try", "off", or tls on'
            ),
        ),
        (
            '[defaults]\nport = 25\n[[paths]]\nmatch = "*"\ntls_private_key = "key.pem"\n',
            (
                "engine.toml:5: paths[0].tls_private_key: found a key without tls_certificate; "
                "allowed both, or neither"
            ),
        ),
        (
            '[defaults]\ntls_ca_file = "/none/ca.pem"\n',
            (
                'engine.toml:2: defaults.tls_ca_file: found "/none/ca.pem", which cannot be read: '
                "No such file or directory; allowed a PEM file with trusted certificates"
            ),
        ),
        (
            '[defaults]\ntls_ciphers = "nonsense"\n',
            (
                'engine.toml:2: defaults.tls_ciphers: found "nonsense", which selects no cipher; '
                "allowed a list of ciphers for TLS 1.2, as `openssl ciphers` takes it"
            ),
        ),
        (
            '[defaults]\nproxy = "socks5://u:s3cretW0rd@h:x"\n',
            (
                "engine.toml:2: defaults.proxy: found a proxy URL with a host or port that cannot be "
                f"read; allowed {PROXY_ALLOWED}"
            ),
        ),
        (
            "[[paths]]\n\nport = 26\n",
            f"engine.toml:1: paths[0].match: found nothing; allowed {MATCH_ALLOWED}",
        ),
        (
            '[[paths]]\nmatch = "mx*.test"\n',
            f'engine.toml:2: paths[0].match: found "mx*.test"; allowed {MATCH_ALLOWED}',
        ),
        (
            "paths = [\n  { match = 5 },\n]\n",
            f"engine.toml:1: paths[0].match: found 5; allowed {MATCH_ALLOWED}",
        ),
        (
            '[[routes]]\nmatch = "192.0.2.0/24"\nhosts = "h.test"\n',
            f'engine.toml:2: routes[0].match: found "192.0.2.0/24"; allowed {MATCH_FORMS}',
        ),
        (
            '[[routes]]\nhosts = "h.test"\n',
            f"engine.toml:1: routes[0].match: found nothing; allowed {MATCH_FORMS}",
        ),
        (
            '[[routes]]\nmatch = "*"\n',
            f"engine.toml:1: routes[0].hosts: found nothing; allowed {HOST_FORMS}",
        ),
        (
            '[[routes]]\nmatch = "*"\nhosts = []\n',
            f"engine.toml:3: routes[0].hosts: found []; allowed one or more of: {HOST_FORMS}",
        ),
        (
            '[[routes]]\nmatch = "*"\nhosts = ["h.test:0", "h.test", 5]\n',
            f'engine.toml:3: routes[0].hosts: found "h.test:0", 5; allowed {HOST_FORMS}',
        ),
        (
            '[dns]\nservers = ["ns.test", "192.0.2.1:99999"]\n',
            f'engine.toml:2: dns.servers: found "ns.test", "192.0.2.1:99999"; allowed {SERVERS_ALLOWED}',
        ),
        ("[dns]\nservers = 5\n", f"engine.toml:2: dns.servers: found 5; allowed {SERVERS_ALLOWED}"),
        (
            '[dns]\ntimeout = "soon"\n',
            f'engine.toml:2: dns.timeout: found "soon"; allowed {DURATION_ALLOWED}',
        ),
    ],
)
def test_bad_values_are_refused_with_line_and_key(write: Write, text: str, expected: str):
    assert problems(write(text)) == [expected]


def test_all_problems_are_reported_in_the_order_of_the_file(write: Write):
    path = write("""\
[[routes]]
match = "*"
hosts = 5
[dns]
timeout = 0
[defaults]
quit_pipelining = 5
port = 0
[nonsense]
[[paths]]
match = "*"
keepalive = "yes"
""")

    assert problems(path, ["nope", "port=0"]) == [
        f"engine.toml:3: routes[0].hosts: found 5; allowed {HOST_FORMS}",
        f"engine.toml:5: dns.timeout: found 0; allowed {DURATION_ALLOWED}",
        'engine.toml:7: defaults.quit_pipelining: found 5; allowed true, false or "auto"',
        (
            "engine.toml:8: defaults.port: found 0; "
            "allowed a number from 1 to 65535 or the name of a TCP service"
        ),
        f"engine.toml:9: nonsense: found an unknown section; allowed one of {SECTIONS}",
        'engine.toml:12: paths[0].keepalive: found "yes"; allowed true or false',
        '--set: found no "KEY="; allowed KEY=VALUE',
        "--set port=0: found 0; allowed a number from 1 to 65535 or the name of a TCP service",
    ]


# ---- --set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("port=2525", "port", 2525),
        ("port=0x1A", "port", 26),
        ("port=submission", "port", "submission"),
        ("keepalive=false", "keepalive", False),
        ("command_timeout=90", "command_timeout", 90.0),
        ("command_timeout=5m", "command_timeout", 300.0),
        ('command_timeout="5m"', "command_timeout", 300.0),
        ("interface=127.0.0.1", "interface", ("127.0.0.1",)),
        ("interface=::1", "interface", ("::1",)),
        ('interface=["127.0.0.1", "::1"]', "interface", ("127.0.0.1", "::1")),
        ("helo_name=mx.example.net", "helo_name", "mx.example.net"),
        ("helo_name=[192.0.2.1]", "helo_name", "[192.0.2.1]"),
        ("tls=off", "tls", "off"),
        (" tls = off ", "tls", "off"),
        ("proxy=", "proxy", ()),
    ],
)
def test_set_reads_toml_or_else_text(option: str, name: str, value: object):
    assert getattr(load_config(None, [option]).table.defaults, name) == value


def test_set_wins_over_the_file_and_the_last_wins(write: Write):
    path = write("[defaults]\nport = 26\n")
    assert load_config(path, ["port=27", "port=28"]).table.defaults.port == 28


def test_set_wins_over_the_rules_of_single_hosts_too(write: Write):
    path = write('[[paths]]\nmatch = "*.example.net"\nport = 26\ntls = "verify"\n')
    config = load_config(path, ["port=27"])
    (rule,) = config.table.rules
    assert config.table.settings((0,)).port == 27
    assert config.table.settings((0,)).tls == "verify"
    assert rule.overrides == {"tls": "verify"}


def test_set_does_not_hide_what_is_wrong_with_a_rule(write: Write):
    path = write('[[paths]]\nmatch = "*"\nport = 0\n')
    (problem,) = problems(path, ["port=27"])
    assert problem.startswith("engine.toml:3: paths[0].port: found 0;")


def test_what_cannot_go_with_a_set_is_blamed_on_the_set(write: Write):
    path = write('[[paths]]\nmatch = "*"\ndane = "require"\ntls = "off"\n')
    (problem,) = problems(path, ["dane=require"])
    assert problem.startswith('--set dane: found "require" with tls = "off";')


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("keepalive", '--set: found no "KEY="; allowed KEY=VALUE'),
        ("=5", '--set: found no "KEY="; allowed KEY=VALUE'),
        ("keepalive=yes", '--set keepalive=yes: found "yes"; allowed true or false'),
        (
            "tls_ca_file=/none/ca.pem",
            (
                '--set tls_ca_file: found "/none/ca.pem", which cannot be read: No such file or '
                "directory; allowed a PEM file with trusted certificates"
            ),
        ),
        (
            "port=nonexistent",
            (
                '--set port=nonexistent: found "nonexistent"; '
                "allowed a number from 1 to 65535 or a TCP service that this host knows"
            ),
        ),
        (
            "chunkin=true",
            (
                "--set chunkin=true: found an unknown name; "
                'allowed a known name; did you mean "chunking"?'
            ),
        ),
        (
            "keepalive=1\nport = 5",
            '--set keepalive=1\\nport = 5: found "1\\nport = 5"; allowed true or false',
        ),
        (
            "proxy=http://u:s3cretW0rd@h",
            f"--set proxy=…: found a proxy URL of an unknown scheme; allowed {PROXY_ALLOWED}",
        ),
        (
            'auth={username="u", password="s3cretW0rd", pasword="s3cretW0rd"}',
            (
                "--set auth=…: auth.pasword: found an unknown name; "
                'allowed a known name; did you mean "password"?'
            ),
        ),
        (
            'auth={username="u", password_file="f", mechanisms=["PLAIN", "s3cretW0rd"]}',
            (
                "--set auth=…: auth.mechanisms: found an unknown name in place 2; "
                f"allowed one or more of {', '.join(MECHANISMS)}"
            ),
        ),
        (
            "auth.username=u",
            (
                '--set "auth.username"=…: found an unknown name; '
                'allowed a known name; did you mean "auth"?'
            ),
        ),
        (
            'auht={username="u", token="s3cretW0rd"}',
            '--set auht=…: found an unknown name; allowed a known name; did you mean "auth"?',
        ),
        (
            "proxies=socks5://u:s3cretW0rd@h",
            '--set proxies=…: found an unknown name; allowed a known name; did you mean "proxy"?',
        ),
    ],
)
def test_bad_options_are_refused_and_secrets_not_shown(option: str, expected: str):
    assert problems(None, [option]) == [expected]


@given(st.binary(max_size=60))
def test_any_octets_are_a_configuration_or_a_config_error(octets: bytes):
    class Memory(type(Path())):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            return octets

    try:
        found = load_config(Memory("x"))
    except ConfigError as error:
        found = error
    assert isinstance(found, Config) or all(line.startswith("x:") for line in found.problems)


# ---- who we are -----------------------------------------------------------------------------------


def test_who_we_are_can_be_said(write: Write):
    config = load_config(
        write(
            '[routing]\nown_addresses = ["192.0.2.1", "2001:db8::1"]\n'
            'own_names = ["MX.example.net.", "bücher.example"]\n'
        )
    )

    assert config.own_addresses == ("192.0.2.1", "2001:db8::1")
    assert config.own_names == ("mx.example.net", "xn--bcher-kva.example")
    assert config.sources["routing.own_names"] == "engine.toml:3"


def test_without_own_addresses_this_machine_is_asked():
    assert load_config(None).own_addresses is None


def test_an_empty_list_of_own_addresses_is_not_the_default(write: Write):
    assert load_config(write("[routing]\nown_addresses = []\n")).own_addresses == ()


def test_bad_own_addresses_and_names_are_refused(write: Write):
    text = '[routing]\nown_addresses = ["mx.test", 7]\nown_names = ["a b"]\nname = "x"\n'
    assert problems(write(text)) == [
        (
            'engine.toml:2: routing.own_addresses: found "mx.test", 7; '
            "allowed IP addresses of this machine; an empty list: nothing is ourselves"
        ),
        'engine.toml:3: routing.own_names: found "a b"; allowed host names of this machine',
        (
            "engine.toml:4: routing.name: found an unknown name; allowed a known name; "
            'did you mean "own_names"?'
        ),
    ]


# ---- the sections of the worker ------------------------------------------------------------------


def test_the_sections_of_the_worker_are_read(write: Write):
    path = write("""\
[queue]
path = "queue/spool.db"
unknown = "hold"
bounce = "both"
warn_after = ["1d", "4h"]
[worker]
socket = "/run/engine/engine.sock"
processes = 2
[tls_reports]
organization = "Example"
contact = "tls@example.net"
[[retry]]
match = "*"
steps = ["5m", "1h x1.5 until 16h", "4h ~20% until 4d"]
""")
    config = load_config(path)

    assert config.queue.path == "queue/spool.db"
    assert config.queue.unknown_policy is Unknown.HOLD
    assert config.queue.warn_after == (4 * 3600.0, 86400.0)
    assert config.worker == WorkerSection(socket="/run/engine/engine.sock", processes=2)
    assert config.tls_reporter == Reporter("Example", "tls@example.net")
    (rule,) = config.retry.rules
    assert [step.text for step in rule.steps] == ["5m", "1h x1.5 until 16h", "4h ~20% until 4d"]
    assert config.folder == path.absolute().parent
    assert config.sources["queue.unknown"] == f"{path}:3"
    assert config.sources["queue.remember"] == "default"
    assert config.sources["retry[0].steps"] == f"{path}:14"


@pytest.mark.parametrize(
    ("text", "key", "file", "use"),
    [
        ('[queue]\npath = "o"\n[worker]\noutcomes = "o"', "worker.outcomes", "o", "queue.path"),
        ('[worker]\noutcomes = "sub/../spool.sqlite"', "worker.outcomes", "sqlite", "queue.path"),
        ('[worker]\noutcomes = "spool.sqlite-wal"', "worker.outcomes", "sqlite-wal", "queue.path"),
        ('[worker]\nstate = "spool.sqlite"', "worker.state", "spool.sqlite", "queue.path"),
        ('[worker]\nsocket = "state.sqlite"', "worker.socket", "state.sqlite", "worker.state"),
        ('[worker]\noutcomes = "engine.toml"', "worker.outcomes", "engine.toml", "configuration"),
        ('[worker]\nprocesses = 2\noutcomes = "engine-2.sock"', "worker.outcomes", "", "socket"),
        ('[queue]\npath = "link"', "worker.outcomes", "outcomes.jsonl", "queue.path"),
        (
            '[worker]\nprocesses = 2\nstate = "spool-2.sqlite"',
            "worker.state",
            "spool-2.sqlite",
            "queue.path",
        ),
    ],
)
def test_no_file_has_two_uses(write: Write, text: str, key: str, file: str, use: str):
    Path("sub").mkdir()
    Path("link").symlink_to("outcomes.jsonl")
    with pytest.raises(ConfigError) as refused:
        load_config(write(text))
    (problem,) = refused.value.problems
    assert re.match(rf"engine\.toml:\d: {re.escape(key)}: found ", problem)
    assert "; allowed a file of its own; " in problem
    assert re.search(rf"{re.escape(file)} is that of .*{re.escape(use)}$", problem)


def test_what_is_thrown_away_may_be_in_one_place(write: Write):
    load_config(write('[worker]\noutcomes = "/dev/null"\nstate = "/dev/null"'))


def test_without_reports_on_tls_there_is_no_reporter(write: Write):
    assert load_config(write("")).tls_reporter is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[queue]\nunknown = "drop"\n',
            '2: queue.unknown: found "drop"; allowed "retry", "assume-delivered", "hold"',
        ),
        ("[queue]\npath = 1\n", "2: queue.path: found 1; allowed a file name"),
        (
            "[queue]\npaht = 1\n",
            '2: queue.paht: found an unknown name; allowed a known name; did you mean "path"?',
        ),
        (
            "[queue]\nwarn_after = [0]\n",
            (
                f"2: queue.warn_after: found [0]; allowed {DURATION_ALLOWED}; or a list of them, an "
                "empty one for never"
            ),
        ),
        (
            "[worker]\nprocesses = 0\n",
            "2: worker.processes: found 0; allowed a whole number from 1 to 64",
        ),
        (
            '[[retry]]\nmatch = "*"\nsteps = ["soon"]\n',
            f'3: retry[0].steps[0]: found "soon"; allowed {STEP_ALLOWED}',
        ),
        (
            "[tls_reports]\ncontact = 'a@b.test'\n",
            "1: tls_reports.organization: found nothing; allowed a value: it is needed",
        ),
    ],
)
def test_bad_values_of_the_worker_are_refused(write: Write, text: str, expected: str):
    path = write(text)

    assert problems(path) == [f"{path}:{expected}"]
