"""Postfix as a sender at the near end of a link, with a backlog for one connection."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.servers.mailbox import Maildir
from tests.servers.place import HOST
from tests.servers.postfix import configure
from tests.servers.process import free_port, home, running
from tests.servers.provision import root, superuser, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.testing.link import End

# The last word counts: the rest is that of the server for tests.
MAIN = """
virtual_mailbox_domains =
relay_domains = ok.test
relay_transport = smtp:[{host}]:{port}
disable_dns_lookups = yes
smtp_destination_concurrency_limit = 1
"""
# Without the second one connections could not be kept for the next message.
MASTER = """\
smtp unix - - n - - smtp
scache unix - - n - 1 scache
"""


@dataclass(frozen=True, slots=True)
class PostfixClient:
    """A Postfix that takes mail at its own loopback interface and has one place to send it to.

    Attributes:
        source: Postfix's load generator, which hands it mail.
        port: Where it takes mail.
        end: Where it runs.
    """

    source: Path
    port: int
    end: End

    async def send_backlog(self, recipient: str, count: int, octets: int) -> None:
        """Hand over messages; they leave over one connection while more of them come.

        Args:
            recipient: Of each.
            count: How many.
            octets: How large each is.
        """
        options = ["-m", str(count), "-l", str(octets), "-f", "from@bench.test", "-t", recipient]
        await self.end.run(
            self.source,
            *options,
            f"{HOST}:{self.port}",
            env={"LD_LIBRARY_PATH": str(root() / "usr/lib/postfix")},
        )


@contextmanager
def postfix_client(end: End, host: str, port: int) -> Iterator[PostfixClient]:
    """Run Postfix for the length of the block; it sends all mail to `host` and `port`."""
    master = unpacked("usr/lib/postfix/sbin/master")
    superuser("Postfix")
    inside = replace(end, address=HOST)
    with home("postfix-client") as folder:
        listening = free_port()
        configure(folder, listening, Maildir.create(folder, "nobody", "Delivered-To"), ())
        with (folder / "etc/main.cf").open("a") as file:
            file.write(MAIN.format(host=host, port=port))
        with (folder / "etc/master.cf").open("a") as file:
            file.write(MASTER)
        with running(
            "Postfix as a sender",
            inside.command(master, "-c", folder / "etc", "-d"),
            folder,
            environment={"LD_LIBRARY_PATH": str(root() / "usr/lib/postfix")},
            logs=[folder / "log/mail"],
        ) as process:
            process.wait_for_port(listening, inside)
            yield PostfixClient(unpacked("usr/sbin/smtp-source"), listening, end)
