"""Haraka, the server in Node, with a configuration and a plugin of ours that stores into a Maildir."""

from __future__ import annotations

import os
import pwd
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.servers.mail_server import MailServer
from tests.servers.mailbox import Maildir
from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

PLUGIN = Path(__file__).with_name("haraka_plugin.js")

# Haraka has no defaults for sections that are missing. Without the line lengths it would break a
# long line in two; the dot that is put before a dot counts here, not in RFC 5321 §4.5.3.1.6.
CONNECTION = """\
[main]
spool_after=-1
[max]
bytes=67108864
line_length=512
data_line_length=1001
mime_parts=1000
[headers]
max_lines=1000
max_received=100
[haproxy]
[message]
helo=welcome
close=goodbye
[uuid]
banner_chars=6
"""

#: Files of Haraka's `config/`, by name.
CONFIGURATION: Final = {
    "me": "haraka.test",
    "plugins": "store",
    "maildir": "{mail}",
    "smtp.ini": "listen={host}:{port}\nnodes=0\n{user}",
    "log.ini": "[main]\nlevel=warn\nformat=default\n",
    "connection.ini": CONNECTION,
    "outbound.ini": "disabled=true\n",
}

CAPABILITIES = "PIPELINING 8BITMIME SMTPUTF8 SIZE"


def configure(folder: Path, port: int, mail: Path) -> None:
    """Write the configuration, and put the plugin where Haraka looks for it."""
    user = "user=nobody\ngroup=nogroup\n" if os.geteuid() == 0 else ""
    for name in ("config", "plugins", "queue"):
        (folder / name).mkdir()
    (folder / "queue").chmod(0o1777)
    for name, text in CONFIGURATION.items():
        (folder / "config" / name).write_text(
            text.format(host=HOST, port=port, mail=mail, user=user)
        )
    shutil.copy(PLUGIN, folder / "plugins/store.js")


@contextmanager
def start() -> Iterator[MailServer]:
    """Run Haraka for the length of the block."""
    node = unpacked("haraka/node")
    program = unpacked("haraka/node_modules/Haraka/bin/haraka")
    with home("haraka") as folder:
        # Told to, as root, and unable to, as anyone else, it changes to another user.
        user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        mailbox, port = Maildir.create(folder, user, "Delivered-To"), free_port()
        configure(folder, port, mailbox.path)
        with running("Haraka", [node, program, "-c", folder], folder) as process:
            process.wait_for_port(port)
            yield MailServer(
                name="haraka",
                port=port,
                mailbox=mailbox,
                capabilities=frozenset(CAPABILITIES.split()),
                features="one copy for all recipients; answers what came behind the dot with 503",
                process=process,
            )
