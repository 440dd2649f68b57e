"""Exim: a daemon with a configuration and a spool of its own, delivering to files.

It runs on the loopback interface, or at the far end of a long-distance link; with a certificate it
offers STARTTLS and has a port for TLS from the first octet.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.certificates import write_chain
from tests.servers.mail_server import MailServer
from tests.servers.mailbox import Maildir
from tests.servers.place import LOOPBACK
from tests.servers.process import free_port, home, running
from tests.servers.provision import superuser, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.certificates import Issued
    from tests.servers.place import Place

CONFIGURATION = """\
exim_path = {program}
spool_directory = {home}/spool
log_file_path = {home}/log/%slog
pid_file_path = {home}/spool/pid
# Deliveries run as Exim's own user, so a daemon that root did not install needs no set-uid bit.
deliver_drop_privilege = true
keep_environment =

primary_hostname = exim.test
local_interfaces = {host}
daemon_smtp_ports = {ports}
disable_ipv6 = true
acl_smtp_rcpt = recipient
acl_smtp_data = accept
acl_smtp_data_prdr = each
message_size_limit = 64M

chunking_advertise_hosts = *
pipelining_connect_advertise_hosts = *
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
prdr_enable = true
{tls}

# What the client sends stays as it is.
return_path_remove = false
envelope_to_remove = false
delivery_date_remove = false

# Every test at full speed: no DNS, no ident, no limits on clients, delivery at once.
host_lookup =
rfc1413_hosts =
smtp_accept_max = 500
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 500
recipients_max = 0
message_logs = false

begin acl

recipient:
  deny  recipients = nobody@ok.test
        message    = 550 5.1.1 no such user here
  defer recipients = defer@ok.test
        message    = 451 4.7.1 come back later
  deny  !domains   = ok.test
        message    = 550 5.7.1 relaying is not permitted
  accept

each:
  deny  condition  = ${{if eq{{$local_part}}{{full}}}}
        message    = 552 5.2.2 the mailbox is full
  accept

begin routers

store:
  driver = accept
  domains = ok.test
  transport = store

# Bounces to the senders of test mail go nowhere; there is no DNS to find their servers with.
nowhere:
  driver = redirect
  data = :blackhole:

begin transports

store:
  driver = appendfile
  directory = {mail}
  create_directory = false
  maildir_format
  batch_max = 1000
  return_path_add
  envelope_to_add
  message_prefix =
  message_suffix =
"""

CAPABILITIES = "SIZE 8BITMIME DSN PIPELINING PIPECONNECT CHUNKING PRDR SMTPUTF8 HELP"

NO_TLS = "tls_advertise_hosts ="
TLS = """\
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
tls_on_connect_ports = {port}"""


def make_folders(home: Path) -> None:
    """Make the folders that Exim, as the user it changes to, writes to."""
    for name in ("spool", "log"):
        (home / name).mkdir(mode=0o750)
        shutil.chown(home / name, "Debian-exim", "Debian-exim")


@contextmanager
def start(place: Place = LOOPBACK, chain: Sequence[Issued] = ()) -> Iterator[MailServer]:
    """Run Exim for the length of the block.

    Args:
        place: Where.
        chain: Certificates, its own first, to offer STARTTLS and listen on `tls_port` with.
    """
    program = unpacked("usr/sbin/exim4")
    superuser("Exim")
    with home("exim") as folder:
        mailbox = Maildir.create(folder, "Debian-exim", "Envelope-To")
        port, tls_port, tls = free_port(), None, NO_TLS
        make_folders(folder)
        if chain:
            tls_port = free_port()
            certificate, key = write_chain(folder, chain)
            shutil.chown(certificate, "Debian-exim")
            shutil.chown(key, "Debian-exim")
            tls = TLS.format(certificate=certificate, key=key, port=tls_port)
        configuration = folder / "exim.conf"
        configuration.write_text(
            CONFIGURATION.format(
                program=program,
                home=folder,
                host=place.address,
                ports=f"{port} : {tls_port}" if tls_port else port,
                tls=tls,
                mail=mailbox.path,
            )
        )
        with running(
            "Exim",
            place.command(program, "-C", configuration, "-bdf", "-q1h"),
            folder,
            logs=[folder / "log/mainlog", folder / "log/paniclog"],
        ) as process:
            process.wait_for_port(port, place)
            yield MailServer(
                name="exim",
                port=port,
                mailbox=mailbox,
                capabilities=frozenset(CAPABILITIES.split()) | ({"STARTTLS"} if chain else set()),
                features="one copy for all recipients of a message; with PRDR, full@ is refused",
                host=place.address,
                tls_port=tls_port,
                process=process,
            )
