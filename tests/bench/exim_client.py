"""Exim as a sender at the near end of a link: one message, or a backlog over one connection."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.servers.exim import make_folders
from tests.servers.process import home
from tests.servers.provision import superuser, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from engine.testing.link import End

CONFIGURATION = """\
exim_path = {program}
spool_directory = {home}/spool
log_file_path = {home}/log/%slog
deliver_drop_privilege = true
keep_environment =
primary_hostname = client.bench.test
disable_ipv6 = true
local_interfaces = 127.0.0.1
tls_advertise_hosts =
queue_run_max = 1
remote_max_parallel = 1

begin routers

far:
  driver = manualroute
  transport = remote
  route_list = * {host} byname
  self = send

begin transports

remote:
  driver = smtp
  port = {port}
{options}

# Without retry rules what is not delivered at once fails at once.
begin retry
"""
SENDER = "from@bench.test"


@dataclass(frozen=True, slots=True)
class EximClient:
    """A configuration with a spool, and so with what Exim remembers between messages.

    Attributes:
        program: Exim.
        folder: Has the configuration, the spool and the logs.
        end: Where it runs.
    """

    program: Path
    folder: Path
    end: End

    def configure(self, host: str, port: int, options: Mapping[str, str]) -> None:
        """Say where mail goes, and the options of the smtp transport."""
        lines = "\n".join(f"  {name} = {value}" for name, value in options.items())
        text = CONFIGURATION.format(
            program=self.program, home=self.folder, host=host, port=port, options=lines
        )
        (self.folder / "exim.conf").write_text(text)

    async def send(self, recipient: str, content: bytes) -> None:
        """Deliver a message, and return when that is over."""
        await self._run(["-odf", "-oi", "-f", SENDER, recipient], content)

    async def send_backlog(self, recipients: list[str], content: bytes) -> None:
        """Queue a message for each recipient, then run the queue; they go over one connection."""
        for recipient in recipients:
            # Routed at once, or the queue runner would not know which messages go to one host.
            await self._run(["-odqs", "-oi", "-f", SENDER, recipient], content)
        await self._run(["-qqf"])

    async def _run(self, arguments: list[str], content: bytes = b"") -> None:
        configuration = self.folder / "exim.conf"
        done = await self.end.run(
            self.program,
            "-C",
            configuration,
            *arguments,
            stdin=content,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        if done.returncode or done.stderr:
            log = self.folder / "log/mainlog"
            raise RuntimeError(f"Exim as a sender: {done.stderr.decode()}\n{log.read_text()}")


@contextmanager
def exim_client(end: End) -> Iterator[EximClient]:
    """Make a folder for the client; the mail that is in it is lost with it."""
    program = unpacked("usr/sbin/exim4")
    superuser("Exim")
    with home("exim-client") as folder:
        make_folders(folder)
        yield EximClient(program, folder, end)
