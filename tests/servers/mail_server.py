"""One running mail server, as a test sees it: the same door for all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from tests.servers.process import HOST, Process

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.mailbox import Mailbox, Received


@dataclass(frozen=True, slots=True)
class MailServer:
    """A mail server that runs for the length of the test session.

    Attributes:
        name: the program's name, also the test id.
        port: the TCP port on `host`, in clear and without STARTTLS.
        mailbox: where it stores what it accepted.
        capabilities: the first word of every line its EHLO answers, the greeting line left out.
        refused: an address it refuses at RCPT with 550; None: it cannot tell addresses apart.
        deferred: an address it answers with 451 at RCPT; None likewise.
        features: what else a test may want to know about it.
        accepts: the domain it takes mail for, whatever the local part. Anything else is refused
            as relaying, except by smtp-sink.
        host: the address it listens on.
        tls_port: the port for TLS from the first octet; None: there is none, and no STARTTLS.
        protocol: "smtp" or "lmtp" (RFC 2033).
        socket: the Unix socket it listens on besides; None: there is none.
        process: the running program, for its logs; None: it is a part of this process.
    """

    name: str
    port: int
    mailbox: Mailbox
    capabilities: frozenset[str]
    refused: str | None = "nobody@ok.test"
    deferred: str | None = "defer@ok.test"
    features: str = ""
    accepts: str = "ok.test"
    host: str = HOST
    tls_port: int | None = None
    protocol: Literal["smtp", "lmtp"] = "smtp"
    socket: Path | None = None
    process: Process | None = None

    @property
    def route(self) -> str:
        """Where it listens, as routes and `--host` take it."""
        return f"{self.host}:{self.port}"

    async def received(self, count: int = 1, timeout: float = 20.0) -> list[Received]:
        """`received_blocking` in a thread; cancellation leaves that thread to its own deadline."""
        return await trio.to_thread.run_sync(
            self.received_blocking, count, timeout, abandon_on_cancel=True
        )

    def received_blocking(self, count: int = 1, timeout: float = 20.0) -> list[Received]:
        """Wait until mail for at least `count` recipients is stored; returns all that is there.

        Args:
            count: recipients, not messages: see `Received.recipients`.
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: fewer arrived in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            copies = self.mailbox.copies()
            arrived = sum(len(copy.recipients) for copy in copies)
            if arrived >= count:
                return copies
            if time.monotonic() > deadline:
                what = f"stored mail for {arrived} recipients within {timeout} s, not for {count}"
                error = TimeoutError(f"{self.name} {what}")
                error.add_note(self.process.tail() if self.process else "")
                raise error
            time.sleep(0.02)

    def clear(self) -> None:
        """Forget everything stored so far."""
        self.mailbox.clear()
