"""The engine through real proxies: microsocks, and HAProxy as a relay for outgoing mail."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from engine.engine import Engine
from engine.settings import Settings
from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import installed
from tests.servers.test_delivery import letter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.outcome import Outcome
    from tests.servers.mail_server import MailServer

pytestmark = pytest.mark.servers

# With no address of its own the server line means: where the header says the client wants to go.
HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen relay
    bind {host}:{port} accept-proxy
    server wanted 0.0.0.0:0
"""


@contextmanager
def microsocks(*options: str) -> Iterator[str]:
    port = free_port()
    command = [installed("microsocks"), "-i", HOST, "-p", str(port), *options]
    with home("microsocks") as folder, running("microsocks", command, folder) as process:
        process.wait_for_port(port)
        yield f"{HOST}:{port}"


@contextmanager
def haproxy() -> Iterator[str]:
    port = free_port()
    with home("haproxy") as folder:
        configuration = folder / "haproxy.cfg"
        configuration.write_text(HAPROXY.format(host=HOST, port=port))
        command = [installed("haproxy"), "-db", "-f", str(configuration)]
        with running("haproxy", command, folder) as process:
            process.wait_for_port(port)
            yield f"{HOST}:{port}"


async def send(server: MailServer, *proxies: str) -> Outcome:
    settings = Settings(helo_name="client.test", proxy=proxies)
    async with Engine(settings, routes=[("*", [f"{server.host}:{server.port}"])]) as engine:
        await engine.submit(letter("a@ok.test"))
        return await engine.outcomes.receive()


@pytest.mark.parametrize("mail_server", ["postfix"], indirect=True)
async def test_mail_goes_through_a_socks_proxy(mail_server: MailServer) -> None:
    with microsocks() as proxy:
        outcome = await send(mail_server, f"socks5://{proxy}")

    assert outcome.status == "delivered"
    assert outcome.features.proxy == f"socks5://{proxy}"
    assert len(await mail_server.received(1)) == 1


@pytest.mark.parametrize("mail_server", ["postfix"], indirect=True)
async def test_a_socks_proxy_that_wants_a_password_gets_it(mail_server: MailServer) -> None:
    with microsocks("-u", "me", "-P", "s3cretW0rd") as proxy:
        allowed = await send(mail_server, f"socks5://me:s3cretW0rd@{proxy}")
        refused = await send(mail_server, f"socks5://me:wr0ng-s3cretW0rd@{proxy}")

    assert allowed.status == "delivered"
    assert (refused.status, refused.scope, refused.stage) == ("deferred", "source", "proxy")
    assert "wr0ng-s3cretW0rd" not in refused.text


@pytest.mark.parametrize("mail_server", ["postfix"], indirect=True)
async def test_mail_goes_through_haproxy_to_where_the_header_says(mail_server: MailServer) -> None:
    with haproxy() as proxy:
        outcome = await send(mail_server, f"haproxy://{proxy}")

    assert outcome.status == "delivered"
    assert outcome.features.proxy == f"haproxy://{proxy}"
    assert len(await mail_server.received(1)) == 1
