"""No secret is ever told: every mechanism of AUTH and every proxy, however the dialogue ends.

Real connections on loopback.  The fixture `leaks` looks at all that the engine tells of itself.
"""

from __future__ import annotations

import json
import os
import sys
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydantic import ValidationError
from scramp import ScramMechanism

from engine.engine import Engine
from engine.errors import ConfigError
from engine.outcome import Status
from engine.paths import PathRule, SettingsTable
from engine.queue.hints import open_hints
from engine.report.bounce import BounceSettings, to_message
from engine.report.bounce_rules import Fate, Kind
from engine.report.outcome_record import read_record
from engine.settings import Settings
from engine.smtp.mechanisms import MECHANISMS
from engine.worker.config import load_config
from tests.report.bounces import ORIGINAL, make_message, make_progress, make_report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from engine.outcome import Outcome
    from tests.leaks import Leaks

HERE = "127.0.0.1"
USER = "anna@me.test"
PASSWORD = "s3cretW0rd+horse/Battery=stäple"
TOKEN = "ya29.s3cretW0rd-T0k3n~Of/Some+Length=="
#: How a host ends the exchange.
ENDINGS = (
    "accepts",
    "refuses",
    "is in trouble",
    "says it back",
    "says it back in clear",
    "says it back and is no host",
    "says it back and closes",
    "asks for more",
    "babbles",
    "stalls",
    "hangs up",
)
PROMPTS = {"LOGIN": [b"User Name", b"Password"], "CRAM-MD5": [b"<1@mx.test>"]}


class Host:
    """A mail host that asks for AUTH, and ends each exchange in its turn; the last way stays.

    Attributes:
        heard: What it was said in answer to AUTH: responses as they came.
        delivered: How many messages it took.
    """

    def __init__(self, mechanism: str, *endings: str) -> None:
        self.heard: list[bytes] = []
        self.delivered = 0
        self._mechanism = mechanism
        self._endings = list(endings)
        self._rest = b""

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await self._converse(stream)
        except (trio.BrokenResourceError, EOFError):
            pass

    async def _converse(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mx.test\r\n")
        self._rest = b""
        while True:
            line = await self._line(stream)
            answer = b"250 ok"
            match line[:4].upper():
                case b"EHLO":
                    offer = f"250-mx.test\r\n250-AUTH {self._mechanism}\r\n"
                    offer += "250-PIPELINING\r\n250 PIPECONNECT"
                    answer = offer.encode()
                case b"AUTH":
                    answer = await self._authenticate(stream, line)
                case b"DATA":
                    await stream.send_all(b"354 go on\r\n")
                    while await self._line(stream) != b".":
                        pass
                    self.delivered += 1
                case b"QUIT":
                    answer = b"221 bye"
            await stream.send_all(answer + b"\r\n")

    async def _line(self, stream: trio.SocketStream) -> bytes:
        while b"\r\n" not in self._rest:
            more = await stream.receive_some()
            if not more:
                raise EOFError
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    async def _authenticate(self, stream: trio.SocketStream, line: bytes) -> bytes:
        said = line.split(b" ")[2:]
        ending = self._endings.pop(0) if self._endings[1:] else self._endings[0]
        if self._mechanism.startswith("SCRAM"):
            said += await self._scram(stream, said[0], is_proving=ending == "accepts")
        for prompt in PROMPTS.get(self._mechanism, []):
            said.append(await self._challenge(stream, prompt))
        self.heard += said
        everything = b" ".join([line, *said])
        match ending:
            case "accepts":
                return b"235 2.7.0 welcome"
            case "is in trouble":
                return b"454 4.7.0 later"
            case "says it back":
                return b"535-5.7.8 no:\r\n535 5.7.8 <" + everything + b">"
            case "says it back in clear":
                told = b" ".join(b64decode(text) for text in said if text not in (b"", b"="))
                told = told.replace(b"\0", b" ").replace(b"\1", b" ")
                return b"535 5.7.8 no: " + told
            case "says it back and is no host":
                return everything
            case "says it back and closes":
                return b"421 4.3.0 " + everything
            case "asks for more":
                said = [await self._challenge(stream, b'{"status":"invalid_token"}')]
                self.heard += said
                return b"535 5.7.8 no: " + b" ".join(said)
            case "babbles":
                await stream.send_all(b"334 \xff!!!\r\n")
                return b"501 5.5.2 no: " + await self._line(stream)
            case "stalls":
                await trio.sleep_forever()
            case "hangs up":
                raise EOFError
        return b"535 5.7.8 no"

    async def _challenge(self, stream: trio.SocketStream, text: bytes) -> bytes:
        await stream.send_all(b"334 " + b64encode(text) + b"\r\n")
        return await self._line(stream)

    async def _scram(
        self, stream: trio.SocketStream, first: bytes, *, is_proving: bool
    ) -> list[bytes]:
        mechanism = ScramMechanism(self._mechanism)
        info = mechanism.make_auth_info(PASSWORD, iteration_count=4096)
        server = mechanism.make_server(lambda _: info)
        server.set_client_first(b64decode(first).decode())
        final = await self._challenge(stream, server.get_server_first().encode())
        server.set_client_final(b64decode(final).decode())
        if is_proving:
            await self._challenge(stream, server.get_server_final().encode())
        return [final]


@asynccontextmanager
async def listening(handler: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host=HERE))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def send(
    leaks: Leaks, port: int, tmp_path: Path, *, count: int = 1, **settings: Any
) -> list[Outcome]:
    """Send messages one after another, and look at all that is told of them."""
    table = SettingsTable(
        Settings(helo_name="me.test", **settings),
        [PathRule("*.test", settings)],
    )
    leaks.look("settings", table, table.defaults, table.rules, *table.rules)
    leaks.look("settings", table.defaults.model_dump())
    state, found = tmp_path / "state.sqlite", []
    routes = [("*", [f"{HERE}:{port}"])]
    async with open_hints(state) as hints:
        engine = Engine(table, routes=routes, transcripts=True, hints=hints)
        leaks.watch(engine)
        async with engine:
            for _ in range(count):
                await engine.submit(make_message(recipients=("bob@x.test",)))
                found.append(await engine.outcomes.receive())
            leaks.look("engine", engine, engine.statistics())
    leaks.file(state)
    for outcome in found:
        look_at_what_comes_of(outcome, leaks)
    return found


def look_at_what_comes_of(outcome: Outcome, leaks: Leaks) -> None:
    leaks.outcome(outcome)
    leaks.look("record", read_record(json.loads(json.dumps(outcome.as_dict()))))
    progress = make_progress(Fate.GIVEN_UP, outcome=outcome, tried_at=1.0)
    bounce = to_message(make_report((Kind.EXPIRED, progress)), BounceSettings("me.test"), ORIGINAL)
    leaks.look("bounce", bounce.content.octets)


# ---- AUTH ----------------------------------------------------------------------------------------


def credentials(mechanism: str) -> dict[str, Any]:
    auth: dict[str, Any] = {"mechanisms": [mechanism], "username": USER}
    if MECHANISMS[mechanism].takes_token:

        async def token() -> str:
            await trio.lowlevel.checkpoint()
            return TOKEN

        auth["token_command"] = token
    elif MECHANISMS[mechanism].takes_token is False:
        auth["password"] = PASSWORD
    return auth


def secrets_in(heard: Sequence[bytes]) -> list[bytes]:
    """Return what an onlooker could make use of: not our name, and no empty response."""
    own = {b64encode(USER.encode()), b"", b"*", b"=", b"AQ=="}
    return [response for response in heard if response not in own]


#: AUTH is said together with EHLO where it is one step.
MANNERS = [(name, False) for name in MECHANISMS]
MANNERS += [(name, True) for name, facts in MECHANISMS.items() if facts.is_one_step]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("mechanism", "early"), MANNERS, ids=lambda it: it if isinstance(it, str) else ["", "early"][it]
)
async def test_what_proves_who_we_are_is_never_told(
    mechanism: str, ending: str, early: bool, leaks: Leaks, tmp_path: Path
):
    leaks.keep(PASSWORD, TOKEN)
    host = Host(mechanism, *["accepts"] * early, ending)
    async with listening(host.serve) as port:
        (*_, last) = await send(
            leaks,
            port,
            tmp_path,
            # The first message learns that the host takes words before its greeting.
            count=2 if early else 1,
            command_timeout=0.3 if ending == "stalls" else 10,
            early_pipelining=early,
            max_messages_per_connection=1,
            auth=credentials(mechanism),
            auth_required=True,
            auth_in_clear=True,
        )

    leaks.keep(*secrets_in(host.heard))
    # It was said, and that it was is told.
    assert mechanism == "EXTERNAL" or secrets_in(host.heard) or ending == "stalls"
    assert (last.status is Status.DELIVERED) == (ending == "accepts")
    assert last.transcript is not None
    assert any(line.startswith(f"C: AUTH {mechanism}") for line in last.transcript)
    assert last.features.early_pipelining or not (early and ending == "accepts")
    assert {"log", "transcript", "bounce", "connection.opened"} <= leaks.told.keys()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"password": PASSWORD}, "delivered"),
        ({"password_file": "password"}, "delivered"),
        ({"password_file": "password-of-two-lines"}, "deferred"),
        ({"token_command": [sys.executable, "-c", f"print({TOKEN!r})"]}, "delivered"),
        ({"token_command": [sys.executable, "-c", f"print({TOKEN!r}); exit(3)"]}, "deferred"),
        ({"token_command": [sys.executable, "-c", f"print('{TOKEN} two')"]}, "deferred"),
        ({"token_command": [sys.executable, "-c", f"raise ValueError({TOKEN!r})"]}, "deferred"),
        ({"token_command": ["/nowhere", TOKEN]}, "deferred"),
    ],
    ids=["password", "file", "bad file", "token", "status", "no token", "traceback", "no command"],
)
async def test_where_a_secret_comes_from_does_not_matter(
    source: dict[str, Any], expected: str, leaks: Leaks, tmp_path: Path
):
    leaks.keep(PASSWORD, TOKEN)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    (tmp_path / "password-of-two-lines").write_text(f"{PASSWORD}\n{PASSWORD}\n")
    if "password_file" in source:
        source = {"password_file": str(tmp_path / source["password_file"])}
    mechanism = "XOAUTH2" if "token_command" in source else "PLAIN"
    host = Host(mechanism, "accepts")
    async with listening(host.serve) as port:
        (outcome,) = await send(
            leaks,
            port,
            tmp_path,
            auth={"username": USER, "mechanisms": [mechanism], **source},
            auth_required=True,
            auth_in_clear=True,
        )

    leaks.keep(*secrets_in(host.heard))
    assert outcome.status == expected


async def test_a_token_function_that_fails_is_not_quoted(leaks: Leaks, tmp_path: Path):
    async def token() -> str:
        raise RuntimeError(TOKEN)

    leaks.keep(TOKEN)
    host = Host("XOAUTH2", "accepts")
    async with listening(host.serve) as port:
        auth = {"username": USER, "token_command": token}
        (outcome,) = await send(leaks, port, tmp_path, auth=auth, auth_in_clear=True)

    assert outcome.text.endswith("token function: raised RuntimeError")


# ---- proxies -------------------------------------------------------------------------------------

PROXY_PASSWORD = "s3cretW0rd:p@ss/wörd"
IN_URL = "s3cretW0rd%3Ap%40ss%2Fw%C3%B6rd"


class Proxy:
    """A SOCKS5 server with a login (RFC 1929 §2), that ends the handshake in a way of its own."""

    def __init__(self, ending: str) -> None:
        self.logins: list[bytes] = []
        self._ending = ending

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"\5\2")
            login = await stream.receive_some()
            self.logins.append(login)
            match self._ending:
                case "refuses":
                    await stream.send_all(b"\1\1")
                case "says it back":
                    await stream.send_all(login)
                case "says it back later":
                    await stream.send_all(b"\1\0" + login)
                case "stalls":
                    await trio.sleep_forever()
                case "accepts" | "refuses to connect":
                    await stream.send_all(b"\1\0")
                    request = await stream.receive_some()
                    code = 0 if self._ending == "accepts" else 5
                    await stream.send_all(bytes([5, code, 0, 1, 127, 0, 0, 1, 0, 9]))
                    if not code:
                        await self._relay(stream, int.from_bytes(request[-2:], "big"))

    async def _relay(self, stream: trio.SocketStream, port: int) -> None:
        there = await trio.open_tcp_stream(HERE, port)

        async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            async for octets in source:
                await sink.send_all(octets)
            await sink.send_eof()

        async with there, trio.open_nursery() as nursery:
            nursery.start_soon(copy, stream, there)
            nursery.start_soon(copy, there, stream)


@pytest.mark.parametrize(
    "ending",
    [
        "accepts",
        "refuses",
        "refuses to connect",
        "says it back",
        "says it back later",
        "stalls",
        "hangs up",
    ],
)
async def test_what_a_proxy_is_told_is_told_nobody_else(ending: str, leaks: Leaks, tmp_path: Path):
    leaks.keep(PROXY_PASSWORD, IN_URL, PASSWORD)
    host, proxy = Host("PLAIN", "says it back"), Proxy(ending)
    async with listening(host.serve) as port, listening(proxy.serve) as at:
        (outcome,) = await send(
            leaks,
            port,
            tmp_path,
            proxy=[f"socks5://anna:{IN_URL}@{HERE}:{at}?timeout=1s"],
            connect_timeout=0.3 if ending == "stalls" else 10,
            auth={"username": USER, "password": PASSWORD},
            auth_in_clear=True,
        )

    leaks.keep(*secrets_in(host.heard))
    assert proxy.logins == [
        b"\1\4anna" + bytes([len(PROXY_PASSWORD.encode())]) + PROXY_PASSWORD.encode()
    ]
    assert (outcome.status is Status.DELIVERED) == (ending == "accepts")
    assert f"socks5://{HERE}:{at}" in json.dumps(outcome.as_dict())


# ---- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        'proxy = "{url}"',
        'proxy = "{url}:99999"',
        'proxy = ["{url}", "http://me:{password}@h"]',
        'proxi = "{url}"',
        'auth = {{username = "me", password = "{password}"}}',
        'auth = {{username = "me", pasword = "{password}"}}',
        'auth = {{username = "me", password = ["{password}"]}}',
        'auth = "{password}"',
        'auht = {{password = "{password}"}}',
        'auth = {{username = "me", token_command = "get \'{password}"}}',
        'auth = {{username = "me", password = "{password}", password_file = "x"}}',
        'auth = {{mechanisms = "no-such", username = "me", password = "{password}"}}',
        'auth = {{mechanisms = ["PLAIN", "{password}"], username = "me", password = "x"}}',
        'auth = {{username = ["{password}"], password = "x"}}',
        'auth = {{username = "{password}\\u0007", password = "x"}}',
        'auth = {{username = "me", password_file = ["{password}"]}}',
        'auth = {{username = "me", password = "{password}"',
    ],
)
@pytest.mark.parametrize("place", ["defaults", "paths", "set"])
def test_a_configuration_good_or_bad_shows_no_secret(
    lines: str, place: str, leaks: Leaks, tmp_path: Path
):
    leaks.keep(IN_URL, PASSWORD)
    line = lines.format(url=f"socks5://anna:{IN_URL}@h.test", password=PASSWORD)
    file = tmp_path / "engine.toml"
    file.write_text(
        {"defaults": "[defaults]\n", "paths": '[[paths]]\nmatch = "*"\n'}.get(place, "")
    )
    sets = []
    if place == "set":
        key, _, value = line.partition(" = ")
        sets = [f"{key}={value}"]
    else:
        with file.open("a") as more:
            more.write(f"{line}\n")
    try:
        config = load_config(file, sets)
    except ConfigError as error:
        leaks.look("error", error, *error.problems)
    else:
        leaks.look("configuration", config, config.table, config.table.defaults, config.sources)
        leaks.look(
            "configuration",
            *config.table.rules,
            config.table.settings((0,) if config.table.rules else ()),
        )


def test_settings_made_by_a_program_show_no_secret(leaks: Leaks):
    leaks.keep(PROXY_PASSWORD, IN_URL, PASSWORD)
    for bad in (
        {"auth": {"username": "me", "password": PASSWORD, "x": 1}},
        {"auth": {"username": 7, "password": PASSWORD}},
        {"auth": PASSWORD},
        {"proxy": f"socks5://me:{IN_URL}@"},
        {"proxy": [f"socks5://me:{IN_URL}@h", 7]},
        {"proxies": f"socks5://me:{IN_URL}@h"},
    ):
        with pytest.raises((ConfigError, ValidationError)) as caught:
            Settings(**bad)
        leaks.look("error", caught.value)
    good = Settings(
        auth={"username": "me", "password": PASSWORD}, proxy=f"socks5://me:{IN_URL}@h.test"
    )
    leaks.look("settings", good, good.auth, good.proxy, *good.proxy, good.model_dump())


# ---- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["send", "--sender", "", "--transcript", "--json", "--log", "json"],
        ["send", "--sender", "", "--transcript", "--log", "text"],
        ["verify", "--json"],
        ["verify"],
        ["explain", "--probe", "--json"],
        ["explain", "--probe"],
    ],
    ids=" ".join,
)
async def test_no_command_shows_a_secret(command: Sequence[str], leaks: Leaks, tmp_path: Path):
    leaks.keep(PROXY_PASSWORD, IN_URL, PASSWORD)
    config, state = tmp_path / "engine.toml", tmp_path / "state.sqlite"
    host, proxy = Host("PLAIN", "says it back"), Proxy("accepts")
    async with listening(host.serve) as port, listening(proxy.serve) as at:
        config.write_text(
            f'[defaults]\nproxy = "socks5://anna:{IN_URL}@{HERE}:{at}"\n'
            f'auth = {{username = "{USER}", password = "{PASSWORD}"}}\n'
            "auth_in_clear = true\nauth_required = true\n"
        )
        options = ["--config", str(config), "--state", str(state), "--host", f"{HERE}:{port}"]
        found = await trio.run_process(
            [sys.executable, "-m", "engine", command[0], *options, *command[1:], "bob@x.test"],
            stdin=b"Subject: hello\n\nhello\n",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "COLUMNS": "1000"},  # nothing is broken into lines
        )

    leaks.keep(*secrets_in(host.heard))
    leaks.look("command", found.stdout.decode(), found.stderr.decode())
    assert found.returncode in (0, 75)
    assert found.stdout
    assert b"Traceback" not in found.stderr
    assert bool(host.heard) == (command[0] != "explain")  # who only looks uses no password
    assert proxy.logins
