"""unbound, serving records that a test wrote, for lookups that cross a real socket."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

# One authoritative zone at the root holds whatever names the test wants, and answers for all
# others with NXDOMAIN instead of asking a network that is not there.
CONFIGURATION = """\
server:
  interface: {host}@{port}
  directory: "{home}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
  do-ip6: no
  num-threads: 1
  module-config: "iterator"
  edns-buffer-size: 1232
  # unbound answers these by itself unless told not to.
  local-zone: "test." nodefault
  local-zone: "invalid." nodefault
  local-zone: "127.in-addr.arpa." nodefault
remote-control:
  control-enable: no
auth-zone:
  name: "."
  zonefile: "{home}/zone"
  for-downstream: yes
  for-upstream: yes
  fallback-enabled: no
"""

ZONE = """\
$ORIGIN .
$TTL 60
. IN SOA ns.test. hostmaster.test. 1 3600 600 86400 60
. IN NS ns.test.
"""


@dataclass(frozen=True, slots=True)
class NameServer:
    """A running name server.

    Attributes:
        port: for UDP and TCP alike.
        host: the address it listens on.
    """

    port: int
    host: str = HOST


@contextmanager
def start(records: str) -> Iterator[NameServer]:
    """Run unbound for the length of the block.

    Args:
        records: lines of a zone file (RFC 1035 §5.1) with absolute names, such as
            `ok.test. IN MX 10 mx.ok.test.`; the time to live is 60 seconds unless stated.
    """
    program = installed("unbound")
    with home("unbound") as folder:
        port = free_port()
        (folder / "zone").write_text(f"{ZONE}{records}\n")
        configuration = folder / "unbound.conf"
        configuration.write_text(CONFIGURATION.format(home=folder, host=HOST, port=port))
        with running("unbound", [program, "-d", "-c", configuration], folder) as process:
            process.wait_for_port(port)
            yield NameServer(port)
