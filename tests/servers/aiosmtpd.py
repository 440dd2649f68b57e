"""aiosmtpd, the Python server, in a thread of the test process; it comes with the dev packages."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiosmtpd.controller import Controller

from tests.certificates import server_context
from tests.servers.mail_server import MailServer
from tests.servers.mailbox import Received
from tests.servers.process import HOST, START_SECONDS, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.certificates import Issued

MAX_OCTETS = 64 * 1024 * 1024


@dataclass(frozen=True)  # no slots: aiosmtpd looks at all members, which Python 3.11.2 cannot
class Handler:
    """Decides about recipients and keeps the mail; aiosmtpd calls it in its own thread.

    Lists are appended to there and read here; both are single steps, so no lock is needed.
    """

    stored: list[Received] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802 - the name is aiosmtpd's
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        """The reply to one RCPT."""
        if not address.endswith("@ok.test"):
            return "550 5.7.1 relaying is not permitted"
        if address == "nobody@ok.test":
            return "550 5.1.1 no such user here"
        if address == "defer@ok.test":
            return "451 4.7.1 come back later"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """The reply to the content."""
        reverse_path = "" if envelope.mail_from == "<>" else envelope.mail_from
        self.stored.append(
            Received(reverse_path, tuple(envelope.rcpt_tos), envelope.original_content)
        )
        return "250 2.0.0 kept"

    def copies(self) -> list[Received]:
        """Everything stored so far."""
        return list(self.stored)

    def clear(self) -> None:
        """Forget everything stored so far."""
        self.stored.clear()


@contextmanager
def start(chain: Sequence[Issued] = ()) -> Iterator[MailServer]:
    """Run aiosmtpd for the length of the block; with certificates, its own first, it has STARTTLS."""
    handler = Handler()
    controller = Controller(
        handler,
        hostname=HOST,
        port=free_port(),
        ready_timeout=START_SECONDS,
        data_size_limit=MAX_OCTETS,
        enable_SMTPUTF8=True,
        ident="aiosmtpd",
        server_hostname="aiosmtpd.test",
        tls_context=server_context(chain) if chain else None,
    )
    controller.start()
    try:
        yield MailServer(
            name="aiosmtpd",
            port=controller.port,
            mailbox=handler,
            capabilities=frozenset({"SIZE", "8BITMIME", "SMTPUTF8", "HELP"})
            | ({"STARTTLS"} if chain else set()),
            features="understands pipelined commands without announcing PIPELINING",
        )
    finally:
        controller.stop()
