"""Postfix's `smtp-sink`: a bare, very fast server that accepts everything and relays nothing."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.servers.mail_server import MailServer
from tests.servers.mailbox import SinkFolder
from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import root, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CAPABILITIES = "PIPELINING 8BITMIME AUTH XCLIENT XFORWARD ENHANCEDSTATUSCODES DSN"


@contextmanager
def start() -> Iterator[MailServer]:
    """Run smtp-sink for the length of the block."""
    program = unpacked("usr/sbin/smtp-sink")
    with home("smtp-sink") as folder:
        mailbox = SinkFolder(folder / "mail")
        mailbox.path.mkdir()
        mailbox.path.chmod(0o1777)
        port = free_port()
        # Told to, as root, and unable to, as anyone else, it changes to another user.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command: list[str | Path] = [
            program, *user, "-h", "smtp-sink.test", "-m", "1000",
            "-d", f"{mailbox.path}/m.", f"{HOST}:{port}", "1000",
        ]  # fmt: skip
        libraries = {"LD_LIBRARY_PATH": str(root() / "usr/lib/postfix")}
        with running("smtp-sink", command, folder, environment=libraries) as process:
            process.wait_for_port(port)
            yield MailServer(
                name="smtp-sink",
                port=port,
                mailbox=mailbox,
                capabilities=frozenset(CAPABILITIES.split()),
                refused=None,
                deferred=None,
                features="accepts any domain and any size; no limits of its own",
                process=process,
            )
