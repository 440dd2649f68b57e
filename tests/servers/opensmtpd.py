"""OpenSMTPD, with a configuration and a spool of its own, delivering to files.

The spool, the control socket and the helpers' folder are compiled into the program, so the server
runs in a mount namespace of its own, where private folders lie over them.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.servers.mail_server import MailServer
from tests.servers.mailbox import Maildir
from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import installed, superuser, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIGURATION = """\
smtp max-message-size 64M
smtp limit max-mails 100000
smtp limit max-rcpt 1000
queue ttl 1h

table accepted {{ "ok.test" }}
table refused {{ "nobody@ok.test" }}
table deferred {{ "defer@ok.test" }}
table everyone {{ "@" = nobody }}

filter "later" phase rcpt-to match rcpt-to <deferred> reject "451 4.7.1 come back later"
listen on {host} port {port} hostname opensmtpd.test filter "later"

action "store" maildir "{mail}" virtual <everyone>
match from any for rcpt-to <refused> reject
match from any for domain <accepted> action "store"
"""

SCRIPT = """\
set -eu
mount --bind {home}/spool /var/spool/smtpd
mount -t tmpfs none /run
hostname opensmtpd.test
exec {program} -d -f {home}/smtpd.conf
"""

CAPABILITIES = "8BITMIME ENHANCEDSTATUSCODES SIZE DSN HELP"


def may_mount() -> bool:
    """Whether this machine lets us have private mounts; locked-down containers do not."""
    unshare = str(installed("unshare"))
    return (
        subprocess.run(
            [unshare, "--mount", "--uts", "true"], capture_output=True, check=False
        ).returncode
        == 0
    )


def command(program: Path, folder: Path) -> list[str | Path]:
    """What starts `program` in a world where the spool is a part of `folder`."""
    if not may_mount():
        # Its one instance then uses the machine's own spool, which `.ci/servers` made.
        return [program, "-d", "-f", folder / "smtpd.conf"]
    (folder / "spool").mkdir(mode=0o711)
    script = folder / "start.sh"
    script.write_text(SCRIPT.format(program=program, home=folder))
    return [installed("unshare"), "--mount", "--uts", "/bin/sh", script]


@contextmanager
def start() -> Iterator[MailServer]:
    """Run OpenSMTPD for the length of the block."""
    program = unpacked("usr/sbin/smtpd")
    superuser("OpenSMTPD")
    with home("opensmtpd") as folder:
        mailbox = Maildir.create(folder, "nobody", "Delivered-To")
        port = free_port()
        configuration = folder / "smtpd.conf"
        configuration.write_text(CONFIGURATION.format(host=HOST, port=port, mail=mailbox.path))
        configuration.chmod(0o600)
        with running("OpenSMTPD", command(program, folder), folder) as process:
            process.wait_for_port(port)
            yield MailServer(
                name="opensmtpd",
                port=port,
                mailbox=mailbox,
                capabilities=frozenset(CAPABILITIES.split()),
                features="one copy for each recipient; adds Date and Message-ID where they lack",
                process=process,
            )
