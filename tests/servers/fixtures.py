"""The pytest fixtures: every server, one that goes through all mail servers, and the link.

`tests/conftest.py` makes them known. Servers start when the first test asks for them and run until
the session ends; a test that asks for one gets it with an empty mailbox.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from engine.testing import link
from tests.servers.provision import give_up
from tests.servers.unbound import NameServer
from tests.servers.unbound import start as start_unbound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from engine.testing.link import Link
    from tests.servers.mail_server import MailServer

SMTP_SERVERS = ("aiosmtpd", "smtp-sink", "postfix", "exim", "opensmtpd", "haraka")
MAIL_SERVERS = (*SMTP_SERVERS, "dovecot")
"""The ids of `mail_server`. To pick some:
`@pytest.mark.parametrize("mail_server", ["postfix", "exim"], indirect=True)`."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """The mail servers that run so far."""

    stack: ExitStack
    running: dict[str, MailServer] = field(default_factory=dict)

    def take(self, name: str) -> MailServer:
        """The server `name` with an empty mailbox, started if this is the first time."""
        if name not in self.running:
            module = importlib.import_module(f"tests.servers.{name.replace('-', '_')}")
            self.running[name] = self.stack.enter_context(module.start())
        server = self.running[name]
        server.clear()
        return server


@pytest.fixture(scope="session")
def mail_servers() -> Iterator[Shelf]:
    """All mail servers of this session; they are stopped when it ends."""
    with ExitStack() as stack:
        yield Shelf(stack)


@pytest.fixture(params=MAIL_SERVERS)
def mail_server(request: pytest.FixtureRequest, mail_servers: Shelf) -> MailServer:
    """Each mail server in turn."""
    return mail_servers.take(request.param)


@pytest.fixture
def aiosmtpd_server(mail_servers: Shelf) -> MailServer:
    """aiosmtpd, in a thread of this process."""
    return mail_servers.take("aiosmtpd")


@pytest.fixture
def smtp_sink_server(mail_servers: Shelf) -> MailServer:
    """Postfix's smtp-sink."""
    return mail_servers.take("smtp-sink")


@pytest.fixture
def postfix_server(mail_servers: Shelf) -> MailServer:
    """Postfix."""
    return mail_servers.take("postfix")


@pytest.fixture
def exim_server(mail_servers: Shelf) -> MailServer:
    """Exim."""
    return mail_servers.take("exim")


@pytest.fixture
def opensmtpd_server(mail_servers: Shelf) -> MailServer:
    """OpenSMTPD."""
    return mail_servers.take("opensmtpd")


@pytest.fixture
def dovecot_server(mail_servers: Shelf) -> MailServer:
    """Dovecot's LMTP server."""
    return mail_servers.take("dovecot")


@pytest.fixture
def haraka_server(mail_servers: Shelf) -> MailServer:
    """Haraka."""
    return mail_servers.take("haraka")


@pytest.fixture
def name_server() -> Iterator[Callable[..., NameServer]]:
    """Starts an unbound that serves the records and signed zones it is given.

    It is stopped after the test.
    """
    with ExitStack() as stack:
        yield lambda records, *signed: stack.enter_context(start_unbound(records, *signed))


@pytest.fixture(scope="session")
def open_link() -> Callable[..., AbstractAsyncContextManager[Link]]:
    """`engine.testing.link.open_link`, on a machine that is known to have links."""

    async def try_it() -> None:
        async with link.open_link():
            pass

    try:
        trio.run(try_it)
    except link.LinkUnavailable as error:
        give_up(str(error))
    return link.open_link
