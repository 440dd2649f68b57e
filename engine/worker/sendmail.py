"""Mail from programs that call `sendmail`, and `submit -t`: both read the header section.

`sendmail` is called by `engine.__main__` and the command line.  Every recipient that can be used is
taken, or none is: a program that is told of an error hands the whole message in again.
Not here: flags (`engine.worker.sendmail_flags`), and what the header section holds
(`engine.headers`).
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from engine.content import from_octets
from engine.headers import (
    completed,
    read_addresses,
    recipients_of,
    take_apart,
    without_bcc,
)
from engine.message import Message, Recipient
from engine.smtp.errors import ContentError
from engine.worker.batch import Wishes
from engine.worker.descriptors import occupy_standard_descriptors
from engine.worker.desk import too_large
from engine.worker.exits import Exit
from engine.worker.given import read_config
from engine.worker.intake import STDIN
from engine.worker.sendmail_flags import Flags, read_flags
from engine.worker.submit import Letter, new_id, submit_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from engine.worker.config import Config
    from engine.worker.exits import Incidents
    from engine.worker.intake import Say
    from engine.worker.submit import SubmitOptions

#: Names the configuration file; `-C` wins.
CONFIG_VARIABLE: Final = "DELIVERY_ENGINE_CONFIG"
DEFAULT_CONFIG: Final = "/etc/delivery-engine/engine.toml"

_PIECE_OCTETS: Final = 128 * 1024

USAGE: Final = """\
Usage: delivery-engine-sendmail [FLAGS] [RECIPIENT]...

Put a message from standard input into the queue, as sendmail would.

  -t            send also to those whom To, Cc and Bcc name
  -i, -oi       a line with a lone dot does not end the message
  -f, -r ADDR   the reverse-path; by default the user's; "" and <> are null
  -F NAME       the sender's full name, where From is missing
  -N DSN        when to report: never, or success,failure,delay
  -R RET        what a report returns: full or hdrs
  -V ENVID      an identifier for reports
  -B TYPE       7BIT or 8BITMIME; what the content is like is looked at anyway
  -C FILE       the configuration; by default $DELIVERY_ENGINE_CONFIG, else
                /etc/delivery-engine/engine.toml
  -bm           send, the default
  -bp           list the queue
  -q            do nothing: the worker tries what waits by itself

-A, -d, -e, -G, -h, -L, -m, -n, -O, -o, -p, -U, -v and -X are ignored.
Date, Message-ID and From are added where they are missing; Bcc is taken out.
Addresses without a domain are of this host. Nothing is taken when an address
cannot be used.

Exit status: 0 taken; 64 bad usage; 65 bad address, or message; 66 the
configuration cannot be read; 74 the queue cannot be opened; 75 not taken,
try again; 78 bad configuration."""


def sendmail(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, *, name: str = "sendmail"
) -> int:
    """Do what a call of `sendmail` asks for, and return its exit status.

    Args:
        arguments: Without the program's name.
        environment: May name the configuration.
        name: The program's, as it was called; `mailq` lists the queue.
    """
    if list(arguments) == ["--help"]:
        print(USAGE)
        return Exit.DELIVERED
    try:
        flags = read_flags(arguments)
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return Exit.USAGE
    file = flags.config or environment.get(CONFIG_VARIABLE) or DEFAULT_CONFIG
    if flags.shows_queue or name == "mailq":
        from engine.worker.queue_list import ListOptions, list_queue

        return list_queue(ListOptions(config=file))
    if flags.runs_queue and not flags.recipients and not flags.from_header:
        # From a timer, mostly; the worker does that when it is time.
        return Exit.DELIVERED
    if not flags.recipients and not flags.from_header:
        print(f"{name}: found no recipient; allowed are some, or -t", file=sys.stderr)
        return Exit.USAGE
    config = read_config(file, ())
    if isinstance(config, Exit):
        return config
    return trio.run(_hand_in, flags, config)


def main() -> None:
    """Be the console script `delivery-engine-sendmail`, by whatever name it is called."""
    occupy_standard_descriptors()
    try:
        status = sendmail(sys.argv[1:], name=Path(sys.argv[0]).name)
    except KeyboardInterrupt:
        status = Exit.INTERRUPTED
    sys.exit(status)


async def _hand_in(flags: Flags, config: Config) -> int:
    def read(say: Say, incidents: Incidents) -> AsyncGenerator[Letter, None]:
        return _letter(flags, config, say, incidents)

    return await submit_all(read, config, is_quiet=True)


async def _letter(
    flags: Flags, config: Config, say: Say, incidents: Incidents
) -> AsyncGenerator[Letter, None]:
    user, full_name, host = await trio.to_thread.run_sync(_who_and_where, config)
    name = new_id()
    try:
        octets = await read_message(
            STDIN, config.queue.max_message_octets, ends_at_dot=not flags.ignores_dots
        )
        draft = Draft(
            octets=octets,
            sender=f"{user}@{host}" if flags.sender is None else flags.sender,
            recipients=flags.recipients,
            name=name,
            full_name=full_name if flags.name is None else flags.name,
            host=host,
            from_header=flags.from_header,
        )
        message, problems = await trio.to_thread.run_sync(draft.finish, flags)
    except (ValueError, OSError) as error:
        message, problems = None, [str(error)]
    if problems or message is None:
        incidents.has_bad_data = True
        for problem in problems:
            say(problem)
        return
    yield Letter(message, Wishes())


async def letter_with_header(
    options: SubmitOptions, config: Config, say: Say, incidents: Incidents
) -> AsyncGenerator[Message, None]:
    """Yield the message of `submit -t`; recipients that cannot be used are said and left out."""
    _, _, host = await trio.to_thread.run_sync(_who_and_where, config)
    file = STDIN if options.message is None else options.message
    place = "<stdin>" if file == STDIN else file
    try:
        octets = await read_message(file, config.queue.max_message_octets)
        draft = Draft(
            octets=octets,
            sender=options.sender or "",
            recipients=options.recipients,
            name=options.id or new_id(),
            host=host,
            from_header=True,
        )
        message, problems = await trio.to_thread.run_sync(draft.finish)
    except OSError as error:
        incidents.has_unreadable_file = True
        say(f"{place}: {error.strerror}")
        return
    except ValueError as error:
        incidents.has_bad_data = True
        say(f"{place}: {error}")
        return
    for problem in problems:
        incidents.has_bad_data = True
        say(problem)
    if message is not None:
        yield message


# ---- a message in the making --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What was handed in.

    Attributes:
        octets: The content, with LF or CRLF line ends.
        sender: The reverse-path as text.
        recipients: Lists of addresses, as header fields may have them.
        name: The message's id.
        host: What addresses without a domain get, and Message-ID.
        full_name: The sender's, for From.
        from_header: Whether recipients stand in the header section as well.
    """

    octets: bytes
    sender: str
    recipients: tuple[str, ...]
    name: str
    host: str
    full_name: str = ""
    from_header: bool = False

    def finish(self, flags: Flags = Flags()) -> tuple[Message | None, list[str]]:  # noqa: B008 - frozen
        """Make the message; reads and writes nothing.

        Args:
            flags: Wishes about reports.

        Returns:
            The message with those recipients that can be used, `None` if there is none; and what
            is wrong, each with its place.

        Raises:
            ValueError: Sender or content cannot be used.
        """
        sender = self.sender
        if sender and "@" not in sender and sender != "<>":
            sender = f"{sender}@{self.host}"
        try:
            reverse_path = Message.parse_sender(sender)
        except ValueError as error:
            raise ValueError(f"sender {error}") from None
        head = take_apart(self.octets)
        addresses, problems = self._addresses()
        if self.from_header:
            found, wrong = recipients_of(head)
            addresses += found
            problems += wrong
        # Also where they are named on the command line: a program may expect it of sendmail.
        head = without_bcc(head)
        recipients = self._recipients(addresses, problems, flags)
        if not recipients:
            problems.append("found no recipient that can be used; at least one is needed")
            return None, problems
        # Who sends with the null path is a program.
        author = (
            (self.full_name, str(reverse_path))
            if reverse_path
            else ("Mail Delivery System", f"MAILER-DAEMON@{self.host}")
        )
        head = completed(
            head,
            now=datetime.now().astimezone(),
            name=self.name,
            host=self.host,
            author=author,
        )
        content = from_octets(head.octets)
        return (
            Message(self.name, reverse_path, recipients, content, envid=flags.envid, ret=flags.ret),
            problems,
        )

    def _addresses(self) -> tuple[list[str], list[str]]:
        addresses: list[str] = []
        problems: list[str] = []
        for text in self.recipients:
            found, wrong = read_addresses(text)
            addresses += found
            problems += (f"RECIPIENT: {problem}" for problem in wrong)
        return addresses, problems

    def _recipients(
        self, addresses: Sequence[str], problems: list[str], flags: Flags
    ) -> tuple[Recipient, ...]:
        recipients = {}
        for address in addresses:
            full = address if "@" in address else f"{address}@{self.host}"
            try:
                recipients[full] = Recipient.parse(full, flags.notify)
            except ValueError as error:
                problems.append(f"RECIPIENT {str(error).removeprefix('address ')}")
        return tuple(recipients.values())


def _who_and_where(config: Config) -> tuple[str, str, str]:
    """Return the user's name, the full name, and the name of this host; blocks."""
    host = config.table.defaults.helo_name or socket.getfqdn()
    try:
        found = pwd.getpwuid(os.getuid())
    except KeyError:
        # A container may run as a user that nobody has a name for.
        return "nobody", "", host
    return found.pw_name, found.pw_gecos.split(",")[0], host


# ---- reading ------------------------------------------------------------------------------------


async def read_message(file: str, most: int, *, ends_at_dot: bool = False) -> bytes:
    """Read a content to its end.

    Args:
        file: The file, or `-` for standard input.
        most: Octets it may have.
        ends_at_dot: Whether a line with a lone dot ends it as well.

    Raises:
        ContentError: It is larger.
        OSError: It cannot be read.
    """
    held = bytearray()
    async with aclosing(_pieces(file)) as pieces:
        async for piece in pieces:
            seen = max(0, len(held) - 3)
            held += piece
            if ends_at_dot and (end := _lone_dot(held, seen)) is not None:
                del held[end:]
                break
            if len(held) > most:
                raise ContentError(too_large(len(held), most))
    if ends_at_dot and (held == b"." or held.endswith(b"\n.")):
        # The input ended where the dot's line should.
        del held[-1:]
    return bytes(held)


def _lone_dot(held: bytearray, start: int) -> int | None:
    """Return where a line with a lone dot begins, `None` if there is none; LF or CRLF end lines."""
    found = [
        index + (0 if mark.startswith(b".") else 1)
        for mark in (b"\n.\n", b"\n.\r\n")
        if (index := held.find(mark, start)) >= 0
    ]
    if held.startswith((b".\n", b".\r\n")):
        return 0
    return min(found, default=None)


async def _pieces(file: str) -> AsyncGenerator[bytes, None]:
    descriptor = 0
    if file != STDIN:
        descriptor = await trio.to_thread.run_sync(
            os.open, file, os.O_RDONLY | os.O_CLOEXEC, abandon_on_cancel=True
        )
    try:
        while piece := await trio.to_thread.run_sync(
            os.read, descriptor, _PIECE_OCTETS, abandon_on_cancel=True
        ):
            yield piece
    finally:
        if descriptor:
            os.close(descriptor)
