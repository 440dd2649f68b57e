"""Attacks on the way to a host, against every level of protection: who gets to read the mail.

Each cell of `MATRIX` is one attack on one level.  The whole engine runs; somebody in the middle
changes what the host or the DNS says.  The words say what must become of the mail:

    verified   it goes over TLS to a host whose certificate is good, asked for or not
    tls        it goes over TLS to whoever is there
    clear      it goes in clear
    elsewhere  it goes to a host that the attacker chose, over TLS with a good certificate
    waits      it is deferred
    bounces    it fails for good

Where it goes nowhere, nothing of it has been said to anybody: no sender, no recipient, no content.

What protects from what, in short: without a demand TLS keeps out who only listens.  `require` keeps
mail from going in clear, but not from whoever shows a certificate.  `verify` knows the host, but not
whether it is the domain's (RFC 7672 §1.3.2); DANE and MTA-STS know both, the latter from the second
time on (RFC 8461 §10.2).  REQUIRETLS asks for that, and tells the sender where it is not to be had.

In real time: making a context takes a thread, which virtual time does not wait for.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from engine.engine import Engine
from engine.outcome import Status
from engine.queue.hints import MemoryHints
from engine.report.events import SecurityAlert
from engine.routing.router import Router
from engine.testing.dns import FakeDns
from tests.certificates import make, server_context
from tests.delivery.helpers import connection_to, link, message, settings
from tests.worker.explaining import policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.net.connector import Connection
    from engine.net.options import ConnectOptions
    from engine.outcome import Outcome
    from engine.route import Candidate
    from tests.delivery.helpers import MemoryStream

#: Attacks down, levels of protection across.
MATRIX: Final = """
                                     any  no-clear   require    verify      dane   enforce   testing requiretls
nothing                         verified  verified  verified  verified  verified  verified  verified  verified
strip STARTTLS                     clear     clear     waits     waits     waits     waits     clear   bounces
refuse STARTTLS                    clear     waits     waits     waits     waits     waits     clear     waits
refuse STARTTLS for good           clear     clear     waits     waits     waits     waits     clear     waits
refuse EHLO                        clear     clear     waits     waits     waits     waits     clear   bounces
hang up at STARTTLS                waits     waits     waits     waits     waits     waits     waits     waits
inject behind STARTTLS             waits     waits     waits     waits     waits     waits     waits     waits
inject into the handshake          waits     waits     waits     waits     waits     waits     waits     waits
hang up in the handshake           clear     waits     waits     waits     waits     waits     clear     waits
old TLS only                       clear     waits     waits     waits     waits     waits     clear     waits
the certificate of another host      tls       tls       tls     waits     waits     waits       tls     waits
one of an unknown authority          tls       tls       tls     waits     waits     waits       tls     waits
an expired one                       tls       tls       tls     waits     waits     waits       tls     waits
no REQUIRETLS over TLS          verified  verified  verified  verified  verified  verified  verified   bounces
strip the STS record            verified  verified  verified  verified  verified  verified  verified  verified
strip it at first sight         verified  verified  verified  verified  verified  verified  verified   bounces
hold back the STS record        verified  verified  verified  verified  verified  verified  verified  verified
hold it back at first sight     verified  verified  verified  verified  verified  verified  verified     waits
bogus MX records                   waits     waits     waits     waits     waits     waits     waits     waits
bogus addresses                    waits     waits     waits     waits     waits     waits     waits     waits
bogus TLSA records              verified  verified  verified  verified     waits  verified  verified  verified
no answer about TLSA records    verified  verified  verified  verified     waits  verified  verified  verified
forge the MX records           elsewhere elsewhere elsewhere elsewhere     waits     waits elsewhere     waits
"""

DOMAIN, HOST, EVIL = "x.test", "mx.x.test", "mx.evil.test"
ADDRESSES = {HOST: "192.0.2.1", EVIL: "192.0.2.66"}
ROOT = make("root", is_ca=True)
GOOD = make(HOST, ROOT, names=[HOST])
CERTIFICATES = {
    "the certificate of another host": make("other.test", ROOT, names=["other.test"]),
    "one of an unknown authority": make(HOST, make("root", is_ca=True), names=[HOST]),
    "an expired one": make(HOST, ROOT, names=[HOST], days=(-30, -1)),
    "forge the MX records": make(EVIL, ROOT, names=[EVIL]),
}
#: What makes an attack one.
SETTINGS: Mapping[str, Mapping[str, Any]] = {"old TLS only": {"tls_min_version": "1.3"}}
LEVELS: Mapping[str, Mapping[str, Any]] = {
    "any": {},
    "no-clear": {"tls_fallback_to_clear": False},
    "require": {"tls": "require"},
    "verify": {"tls": "verify"},
    "dane": {},
    "enforce": {},
    "testing": {},
    "requiretls": {},
}


#: Whether the password is told, where we have one:
#:
#:     login      over TLS, and the mail goes
#:     in clear   in clear, and the mail goes
#:     anonymous  to nobody, and the mail goes without
#:     waits      to nobody, and the mail is deferred
AUTH_MATRIX: Final = """
                                     any required   verify  allowed
nothing                            login    login    login    login
strip AUTH                     anonymous    waits    waits anonymous
strip STARTTLS                 anonymous    waits    waits anonymous
offer AUTH in clear            anonymous    waits    waits  in-clear
inject behind STARTTLS             waits    waits    waits    waits
hang up in the handshake       anonymous    waits    waits anonymous
the certificate of another host    login    login    waits    login
"""
AUTH_LEVELS: Mapping[str, Mapping[str, Any]] = {
    "any": {},
    "required": {"auth_required": True},
    "verify": {"auth_required": True, "tls": "verify"},
    "allowed": {"auth_in_clear": True},
}


def cells(matrix: str) -> list[tuple[str, str, str]]:
    """Read a matrix: attack, level, what must come of it."""
    head, *rows = matrix.strip().splitlines()
    levels = head.split()
    found = []
    for row in rows:
        words = row.split()
        attack = " ".join(words[: -len(levels)])
        found += [
            (attack, level, word) for level, word in zip(levels, words[-len(levels) :], strict=True)
        ]
    return found


@cache
def tls_of(attack: str) -> ssl.SSLContext:
    if attack == "old TLS only":
        return server_context([GOOD], version=ssl.TLSVersion.TLSv1_2)
    return server_context([CERTIFICATES.get(attack, GOOD)])


class Middle:
    """The way to the host, with somebody in between: a connector.

    Args:
        attack: What that one does.
        mechanisms: What the host offers for AUTH over TLS, and the attacker in clear.

    Attributes:
        said: Every line of the client, and whether it was said over TLS.
        taken: For each message taken: the host, and whether it came over TLS.
    """

    def __init__(self, attack: str, mechanisms: str = "") -> None:
        self.said: list[tuple[str, bool]] = []
        self.taken: list[tuple[str, bool]] = []
        self.nursery: trio.Nursery | None = None
        self._attack = attack
        self._mechanisms = mechanisms

    async def connect(
        self, candidate: Candidate, options: ConnectOptions, *, early_data: bytes = b""
    ) -> Connection:
        await trio.lowlevel.checkpoint()
        client, server = link()
        assert self.nursery is not None
        self.nursery.start_soon(self._serve, candidate.host, server)
        await client.send_all(early_data)
        return connection_to(candidate, client)

    async def _serve(self, host: str, server: MemoryStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            await self._converse(host, server)
        server.close()

    async def _converse(self, host: str, server: MemoryStream) -> None:
        attack, has_tls = self._attack, False
        ear = Ear(server)
        await server.send_all(b"220 mx\r\n")
        while True:
            line = await ear.line()
            self.said.append((line, has_tls))
            answer = "250 ok"
            match line[:4]:
                case "EHLO":
                    answer = "\r\n250-".join(["250-mx", *self._offers(has_tls=has_tls)])
                    answer += "\r\n250 HELP"
                    if attack == "refuse EHLO":
                        answer = "502 what?"
                case "STAR":
                    if attack == "hang up at STARTTLS":
                        return
                    answer = "220 go on"
                    if attack.startswith("refuse STARTTLS"):
                        answer = "502 no" if "good" in attack else "454 not now"
                    elif attack == "inject behind STARTTLS":
                        answer += "\r\n250-mx\r\n250 AUTH PLAIN"
                case "AUTH":
                    answer = "235 welcome"
                case "DATA":
                    await ear.stream.send_all(b"354 go on\r\n")
                    while await ear.line() != ".":
                        pass
                    self.taken.append((host, has_tls))
                case "QUIT":
                    answer = "221 bye"
            await ear.stream.send_all(f"{answer}\r\n".encode())
            if answer.startswith("220"):
                ear, has_tls = Ear(await self._secure(server)), True

    def _offers(self, *, has_tls: bool) -> list[str]:
        offers = ["PIPELINING"]
        if has_tls and self._attack != "no REQUIRETLS over TLS":
            offers.append("REQUIRETLS")
        if not has_tls and self._attack not in ("strip STARTTLS", "offer AUTH in clear"):
            offers.append("STARTTLS")
        is_place_for_auth = has_tls != (self._attack == "offer AUTH in clear")
        if self._mechanisms and is_place_for_auth and self._attack != "strip AUTH":
            offers.append(f"AUTH {self._mechanisms}")
        return offers

    async def _secure(self, stream: MemoryStream) -> Any:
        if "handshake" in self._attack:
            await stream.receive_some()
            if "inject" in self._attack:
                await stream.send_all(b"250 ok\r\n")
            raise trio.BrokenResourceError
        context = await trio.to_thread.run_sync(tls_of, self._attack)
        secured = trio.SSLStream(stream, context, server_side=True)
        await secured.do_handshake()
        return secured


class Ear:
    """Hears lines on a stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._rest = b""

    async def line(self) -> str:
        while b"\r\n" not in self._rest:
            octets = await self.stream.receive_some()
            if not octets:
                raise EOFError
            self._rest += octets
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line.decode()


@dataclass(frozen=True)
class World:
    """What the client knows and asks: the DNS, and what it has kept."""

    dns: FakeDns
    hints: MemoryHints


def world(attack: str, level: str) -> World:
    """Publish what the level needs, as the attacker lets it through."""
    hints = MemoryHints()
    records: list[str] | str | None = None
    if level in ("enforce", "testing", "requiretls"):
        mode = "testing" if level == "testing" else "enforce"
        kept, _ = policy(mode, HOST, domain=DOMAIN)
        if "first sight" not in attack:
            hints = kept
        records = ["v=STSv1; id=1"]
        if "hold" in attack:
            records = "TIMEOUT"
        elif attack.startswith(("strip the STS", "strip it")):
            records = None
    is_signed = level == "dane"
    usage, selector, matching, data = GOOD.tlsa(3, 1, 1)
    zone: dict[str, dict[str, Any]] = {
        DOMAIN: {"MX": [f"10 {HOST}"]},
        HOST: {"A": [ADDRESSES[HOST]]},
        EVIL: {"A": [ADDRESSES[EVIL]]},
        f"_25._tcp.{HOST}": {"TLSA": [f"{usage} {selector} {matching} {data.hex()}"]},
    }
    if records is not None:
        zone[f"_mta-sts.{DOMAIN}"] = {"TXT": records}
    match attack:
        case "bogus MX records":
            zone[DOMAIN] = {"MX": "BOGUS"}
        case "bogus addresses":
            zone[HOST] = {"A": "BOGUS"}
        case "bogus TLSA records":
            zone[f"_25._tcp.{HOST}"] = {"TLSA": "BOGUS"}
        case "no answer about TLSA records":
            zone[f"_25._tcp.{HOST}"] = {"TLSA": "TIMEOUT"}
        case "forge the MX records":
            # Where they are signed, the forgery shows.
            zone[DOMAIN] = {"MX": "BOGUS" if is_signed else [f"10 {EVIL}"]}
    return World(FakeDns(zone, authentic=[DOMAIN] if is_signed else False, timeout=0.1), hints)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with the authority that all good certificates are of."""
    file = tmp_path_factory.mktemp("ca") / "ca.pem"
    file.write_bytes(ROOT.pem)
    return str(file)


async def deliver(
    middle: Middle, around: World, options: Mapping[str, Any], *, require_tls: bool = False
) -> tuple[Outcome, list[SecurityAlert]]:
    alerts: list[SecurityAlert] = []
    async with trio.open_nursery() as middle.nursery:
        with trio.fail_after(30):
            async with Engine(
                settings(**options),
                resolver=around.dns,
                router=Router(around.dns),
                connector=middle,
                hints=around.hints,
            ) as engine:
                engine.events.watch(alerts.append, SecurityAlert)
                await engine.submit(message(f"bob@{DOMAIN}", require_tls=require_tls))
                outcome = await engine.outcomes.receive()
        middle.nursery.cancel_scope.cancel()
    return outcome, alerts


def became(outcome: Outcome, middle: Middle) -> str:
    """Say in a word of the matrix what became of the mail, as those saw it who took it."""
    if outcome.status is Status.DEFERRED:
        return "waits"
    if outcome.status is Status.FAILED:
        return "bounces"
    assert outcome.status is Status.DELIVERED
    [(host, has_tls)] = middle.taken
    if host != HOST:
        return "elsewhere" if has_tls else "clear"
    if not has_tls:
        return "clear"
    assert outcome.features.tls is not None
    return "tls" if outcome.features.tls.verified == "no" else "verified"


@pytest.mark.parametrize(("attack", "level", "expected"), cells(MATRIX))
async def test_what_becomes_of_mail_under_attack(
    attack: str, level: str, expected: str, trusted: str
):
    middle = Middle(attack)
    outcome, alerts = await deliver(
        middle,
        world(attack, level),
        {"tls_ca_file": trusted, **LEVELS[level], **SETTINGS.get(attack, {})},
        require_tls=level == "requiretls",
    )

    assert became(outcome, middle) == expected, outcome.text
    if expected in ("waits", "bounces"):
        assert middle.taken == []
    if expected != "clear":
        in_clear = {line.split(" ")[0] for line, has_tls in middle.said if not has_tls}
        assert in_clear <= {"EHLO", "HELO", "STARTTLS", "QUIT"}
    if expected == "bounces":
        said = {line.split(" ")[0] for line, _ in middle.said}
        assert said <= {"EHLO", "HELO", "STARTTLS", "QUIT"}
    # What no fault explains is told at once.
    assert [alert.peer.host for alert in alerts] == [HOST] * attack.startswith("inject")


@pytest.mark.parametrize(("attack", "level", "expected"), cells(AUTH_MATRIX))
async def test_what_becomes_of_the_password_under_attack(
    attack: str, level: str, expected: str, trusted: str
):
    middle = Middle(attack, "PLAIN LOGIN")
    auth = {"username": "me", "password": "s3cretW0rd"}
    outcome, _ = await deliver(
        middle,
        world(attack, level),
        {"tls_ca_file": trusted, "auth": auth, **AUTH_LEVELS[level]},
    )

    logins = [has_tls for line, has_tls in middle.said if line.startswith("AUTH")]
    assert logins == {"login": [True], "in-clear": [False]}.get(expected, []), outcome.text
    assert (outcome.status is Status.DEFERRED) == (expected == "waits")
    assert len(middle.taken) == (expected != "waits")
    assert (outcome.features.auth is not None) == (expected in ("login", "in-clear"))
