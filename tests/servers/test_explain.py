"""`explain --probe` and real servers: what it shows is what they are, and no mail comes of it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.certificates import make
from tests.servers import exim, postfix
from tests.servers.unbound import SignedZone, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.mail_server import MailServer

pytestmark = pytest.mark.servers

ROOT = make("root", is_ca=True)
INTER = make("inter", ROOT, is_ca=True)
GOOD = make("mx.ok.test", INTER, names=["mx.ok.test"])
CHAIN = [GOOD, INTER]


@pytest.fixture(params=[exim, postfix], ids=["exim", "postfix"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    """A mail server with STARTTLS."""
    with request.param.start(chain=CHAIN) as server:
        yield server


@pytest.fixture(scope="module")
def name_servers(server: MailServer) -> Iterator[str]:
    """A validating name server: `ok.test` has TLSA records, and `plain.test` nothing of that sort."""
    usage, selector, matching, data = GOOD.tlsa(3, 1, 1)
    record = f"{usage} {selector} {matching} {data.hex()}"
    signed = SignedZone(
        "ok.test",
        "ok.test. MX 10 mx.ok.test.\nmx.ok.test. A 127.0.0.1\n"
        f"_{server.port}._tcp.mx.ok.test. TLSA {record}",
    )
    with start("plain.test. MX 10 mx.plain.test.\nmx.plain.test. A 127.0.0.1", signed) as found:
        yield f"{found.host}:{found.port}"


@pytest.fixture
def ask(server: MailServer, name_servers: str, tmp_path: Path):
    """Run `explain --probe --json` about a domain."""
    authority = tmp_path / "ca.pem"
    authority.write_bytes(ROOT.pem)
    file = tmp_path / "engine.toml"
    file.write_text(
        f'[routing]\nown_addresses = []\n[dns]\nservers = ["{name_servers}"]\n'
        f'[defaults]\nport = {server.port}\ntls_ca_file = "{authority}"\n'
    )

    async def run(domain: str, *options: str, status: int = 0) -> tuple[dict, dict]:
        command = [sys.executable, "-m", "engine", "explain", "--probe", "--json"]
        with trio.fail_after(30):
            found = await trio.run_process(
                [*command, "--config", str(file), *options, domain],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert (found.returncode, found.stderr) == (status, b"")
        explained: dict[str, Any] = json.loads(found.stdout)
        [host] = explained["hosts"]
        [place] = host["places"]
        return explained, place["probe"]

    return run


def judged(probe: dict[str, Any]) -> dict[str, bool]:
    return {each["by"]: each["is_met"] for each in probe["tls"]["judgements"]}


async def test_a_host_with_tlsa_records_is_verified_by_them(ask, server: MailServer):
    explained, probe = await ask("ok.test")

    assert explained["text"].endswith("over TLSv1.3, verified by TLSA records")
    assert explained["way"]["is_signed"] is True
    assert judged(probe) == {"chain": True, "name": True, "dane": True}
    assert probe["tls"]["certificate"]["names"] == ["mx.ok.test"]
    assert probe["tls"]["certificates"] == 2
    # Postfix and Exim say again over TLS what they offer, and STARTTLS no more.
    assert set(probe["hello"]) == server.capabilities
    assert set(probe["hello_over_tls"]) == server.capabilities - {"STARTTLS"}
    assert probe["greeting"].startswith(f"220 {server.name}.test ESMTP")
    assert 0 < probe["round_trip"] < 1


async def test_without_them_any_certificate_will_do_until_settings_ask_for_more(ask):
    explained, probe = await ask("plain.test")
    assert explained["text"].endswith("over TLSv1.3 with a certificate that nobody checks")
    assert judged(probe) == {"chain": True, "name": False}

    explained, probe = await ask("plain.test", "--set", "tls=verify", status=75)
    assert (explained["result"], explained["enhanced"]) == ("deferred", "4.7.5")
    assert "not for mx.plain.test" in explained["text"]
    assert probe["is_good"] is False


async def test_servers_see_a_client_that_says_quit_and_sends_nothing(ask, server: MailServer):
    before = log(server)
    await ask("ok.test")
    # Written when the connection is over, which is a moment after our own end of it.
    await trio.sleep(0.3)
    said = log(server).removeprefix(before)
    for complaint in ("lost connection", "unexpected", "tls error", "ssl_accept error", "timeout"):
        assert complaint not in said
    if server.name == "postfix":
        assert "disconnect from unknown[127.0.0.1] ehlo=2 starttls=1 quit=1 commands=4" in said
    assert server.mailbox.copies() == []


def log(server: MailServer) -> str:
    assert server.process is not None
    return "".join(file.read_text().lower() for file in server.process.logs if file.exists())
