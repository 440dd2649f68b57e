"""Postfix, all of it: its own configuration, queue and data folders, delivering to files."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.certificates import write_chain
from tests.servers.mail_server import MailServer
from tests.servers.mailbox import Maildir
from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import root, superuser, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.certificates import Issued

MAIN = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
command_directory = {root}/usr/sbin
daemon_directory = {root}/usr/lib/postfix/sbin
shlib_directory = {root}/usr/lib/postfix
meta_directory = {home}/etc
maillog_file = {home}/log/mail
maillog_file_prefixes = {home}
mail_owner = postfix
setgid_group = postdrop
# The daemons find the libraries of an unpacked Postfix only through this variable.
import_environment = MAIL_CONFIG LD_LIBRARY_PATH={root}/usr/lib/postfix

myhostname = postfix.test
inet_interfaces = {host}
inet_protocols = ipv4
mydestination =
mynetworks =
alias_maps =
alias_database =
virtual_mailbox_domains = ok.test
virtual_mailbox_base = {home}
virtual_mailbox_maps = static:mail/
# Maildirs are written as whoever owns the folder.
virtual_minimum_uid = 1
virtual_uid_maps = static:{owner.st_uid}
virtual_gid_maps = static:{owner.st_gid}
# Bounces to the senders of test mail go nowhere; there is no DNS to find their servers with.
default_transport = discard
local_transport = discard

smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access inline:{{
    {{ nobody@ok.test = 550 5.1.1 no such user here }}
    {{ defer@ok.test = 451 4.7.1 come back later }} }}
message_size_limit = 67108864
virtual_mailbox_limit = 0
enable_original_recipient = no
smtputf8_enable = yes

# Every test at full speed: no DNS, no limits on clients, no pauses after errors or between messages.
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000
smtpd_hard_error_limit = 10000
in_flow_delay = 0
default_process_limit = 100
virtual_destination_concurrency_limit = 20
"""

MASTER = """\
{host}:{port} inet n - n - 300 smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
postlog unix-dgram n - n - 1 postlogd
virtual unix - n n - - virtual
"""

QUEUES = "incoming active bounce corrupt defer deferred flush hold private saved trace"
CAPABILITIES = "PIPELINING SIZE VRFY ETRN ENHANCEDSTATUSCODES 8BITMIME DSN SMTPUTF8 CHUNKING"


TLS = """\
smtpd_tls_security_level = may
smtpd_tls_cert_file = {0}
smtpd_tls_key_file = {1}
"""


def configure(folder: Path, port: int, mailbox: Maildir, chain: Sequence[Issued]) -> None:
    """Write the configuration, and make the folders with the owners Postfix insists on."""
    (folder / "etc").mkdir()
    values = {
        "home": folder, "root": root(), "host": HOST, "port": port, "owner": mailbox.path.stat(),
    }  # fmt: skip
    tls = TLS.format(*write_chain(folder / "etc", chain)) if chain else ""
    (folder / "etc/main.cf").write_text(MAIN.format(**values) + tls)
    (folder / "etc/master.cf").write_text(MASTER.format(**values))
    (folder / "log").mkdir()
    (folder / "queue/pid").mkdir(parents=True)
    for name in [*(f"queue/{queue}" for queue in QUEUES.split()), "data"]:
        (folder / name).mkdir(mode=0o700)
        shutil.chown(folder / name, "postfix")
    for name, mode in (("maildrop", 0o1730), ("public", 0o2710)):
        path = folder / "queue" / name
        path.mkdir()
        shutil.chown(path, "postfix", "postdrop")
        path.chmod(mode)


@contextmanager
def start(chain: Sequence[Issued] = ()) -> Iterator[MailServer]:
    """Run Postfix for the length of the block; with certificates, its own first, it has STARTTLS."""
    master = unpacked("usr/lib/postfix/sbin/master")
    superuser("Postfix")
    with home("postfix") as folder:
        mailbox = Maildir.create(folder, "nobody", "Delivered-To")
        port = free_port()
        configure(folder, port, mailbox, chain)
        libraries = {"LD_LIBRARY_PATH": str(root() / "usr/lib/postfix")}
        with running(
            "Postfix",
            [master, "-c", folder / "etc", "-d"],
            folder,
            environment=libraries,
            logs=[folder / "log/mail"],
        ) as process:
            process.wait_for_port(port)
            yield MailServer(
                name="postfix",
                port=port,
                mailbox=mailbox,
                capabilities=frozenset(CAPABILITIES.split()) | ({"STARTTLS"} if chain else set()),
                features="one copy for each recipient",
                process=process,
            )
