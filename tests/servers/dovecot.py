"""Dovecot's LMTP server, over TCP and over a Unix socket, delivering to a Maildir for each recipient."""

from __future__ import annotations

import pwd
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.servers.mail_server import MailServer
from tests.servers.mailbox import Maildirs
from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import root, superuser, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIGURATION = """\
protocols = lmtp
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
libexec_dir = {root}/usr/lib/dovecot
mail_plugin_dir = {root}/usr/lib/dovecot/modules
# The services find the libraries of an unpacked Dovecot only through this variable.
import_environment = LD_LIBRARY_PATH
hostname = dovecot.test
ssl = no

service lmtp {{
  inet_listener lmtp {{
    address = {host}
    port = {port}
  }}
  unix_listener {socket} {{
    mode = 0666
  }}
}}

# The first of these that knows an address decides; the last one knows every address at ok.test.
userdb {{
  driver = passwd-file
  args = username_format=%Lu {home}/refused
  result_success = return-fail
}}
userdb {{
  driver = passwd-file
  args = username_format=%Lu {home}/special
}}
userdb {{
  driver = passwd-file
  args = username_format=%Ld {home}/domains
}}
# Nobody logs in, but Dovecot wants to know how they would.
passdb {{
  driver = static
  args = nopassword=yes
}}

mail_location = maildir:{mail}/%Lu:INDEX=MEMORY
mailbox_list_index = no
lmtp_hdr_delivery_address = none
mail_fsync = never
protocol lmtp {{
  mail_plugins = quota
}}
"""

#: Users, as in passwd(5): who may not have mail, who is special, and everybody else by domain.
USERS = {
    "refused": "nobody@ok.test:{account}\n",
    "special": """\
defer@ok.test:{account}:userdb_tempfail=yes
full@ok.test:{account}:userdb_mail=maildir:{home}/full \
userdb_quota=maildir:everything userdb_quota_rule=*:bytes=1
broken@ok.test:{account}:userdb_mail=maildir:/proc/nowhere
""",
    "domains": "ok.test:{account}:\n",
}

CAPABILITIES = "8BITMIME CHUNKING ENHANCEDSTATUSCODES PIPELINING"


def configure(folder: Path, port: int, socket: Path, mail: Path) -> Path:
    """Write the configuration and the users, and make the folder of somebody whose mail is full."""
    owner = pwd.getpwnam("nobody")
    account = f":{owner.pw_uid}:{owner.pw_gid}::{folder}:"
    for name, text in USERS.items():
        (folder / name).write_text(text.format(account=account, home=folder))
    (folder / "full").mkdir()
    (folder / "full").chmod(0o1777)
    configuration = folder / "dovecot.conf"
    configuration.write_text(
        CONFIGURATION.format(
            home=folder, root=root(), host=HOST, port=port, socket=socket, mail=mail
        )
    )
    return configuration


@contextmanager
def start() -> Iterator[MailServer]:
    """Run Dovecot's LMTP server for the length of the block."""
    program = unpacked("usr/sbin/dovecot")
    superuser("Dovecot")
    with home("dovecot") as folder:
        mailbox = Maildirs.create(folder, "nobody")
        port, socket = free_port(), folder / "lmtp.sock"
        configuration = configure(folder, port, socket, mailbox.path)
        # The program would read its configuration by /usr/bin/doveconf, which is not there.
        reader = [unpacked("usr/bin/doveconf"), "-f", "service=master", "-c", configuration, "-e"]
        with running(
            "Dovecot",
            [*reader, program, "-F", "-c", configuration],
            folder,
            environment={"LD_LIBRARY_PATH": str(root() / "usr/lib/dovecot")},
            logs=[folder / "log"],
        ) as process:
            process.wait_for_port(port)
            yield MailServer(
                name="dovecot",
                port=port,
                mailbox=mailbox,
                capabilities=frozenset(CAPABILITIES.split()),
                features="after the content, full@ is over quota and broken@ has a broken mailbox",
                protocol="lmtp",
                socket=socket,
                process=process,
            )
