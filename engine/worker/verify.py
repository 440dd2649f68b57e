"""The command `verify`: ask whether addresses would be taken, and send nothing.

Called by the command line with options that were understood.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.outcome import Status
from engine.smtp.address import parse_path
from engine.smtp.errors import AddressSyntaxError
from engine.worker.exits import Exit, Incidents, exit_status
from engine.worker.given import open_state, read_config
from engine.worker.hosts import read_hosts
from engine.worker.setup import make_engine
from engine.worker.summary import STYLES, answer, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.callout import Verification
    from engine.worker.config import Config
    from engine.worker.send import Routes


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of `verify`, as `engine.worker.cli` describes them.

    Attributes:
        addresses: Forward-paths.
        sender: The reverse-path to ask with.
        hosts: Whom to ask instead of the MX hosts.
        config: The configuration file; `None`: there is none.
        sets: `KEY=VALUE` over the configuration's defaults.
        state: The file that keeps hints; `None`: they are forgotten at the end.
        as_json: One JSON object an address.
        catch_all: Whether hosts are asked about an address that cannot exist.
        fresh: Whether what was answered before does not count.
    """

    addresses: tuple[str, ...]
    sender: str = ""
    hosts: tuple[str, ...] = ()
    config: str | None = None
    sets: tuple[str, ...] = ()
    state: str | None = None
    as_json: bool = False
    catch_all: bool = False
    fresh: bool = False


def verify(options: VerifyOptions) -> int:
    """Run `verify` and return its exit status.

    Raises:
        ValueError: One of `hosts` is no host.
    """
    routes = read_hosts(options.hosts)
    config = read_config(options.config, options.sets)
    if isinstance(config, Exit):
        return config
    incidents = Incidents()
    addresses = [address for address in options.addresses if _is_address(address, incidents)]
    found = trio.run(_ask, options, addresses, config, routes or config.routes)
    if options.as_json:
        for each in found:
            print(json.dumps(each.as_dict()))
    elif found:
        _print_table(found)
    statuses = [each.outcome.status for each in found]
    failed = statuses.count(Status.FAILED)
    accepted = statuses.count(Status.ACCEPTED)
    return exit_status(incidents, failed=failed, unfinished=len(found) - failed - accepted)


def _is_address(address: str, incidents: Incidents) -> bool:
    try:
        parse_path(address)
    except AddressSyntaxError as error:
        print(f"{printable(address)}: {error}", file=sys.stderr)
        incidents.has_bad_data = True
        return False
    return True


async def _ask(
    options: VerifyOptions, addresses: Sequence[str], config: Config, routes: Routes
) -> list[Verification]:
    if not addresses:
        return []
    async with (
        open_state(options.state) as hints,
        make_engine(config, routes, hints) as engine,
    ):
        return await engine.verify(
            addresses, sender=options.sender, catch_all=options.catch_all, fresh=options.fresh
        )


def _print_table(found: Sequence[Verification]) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1), highlight=False)
    table.add_column("Address", overflow="fold")
    table.add_column("Status")
    table.add_column("Answer", overflow="fold")
    for each in found:
        status = each.outcome.status
        words = Text(status.value, STYLES[status])
        if each.is_catch_all:
            words.append(" (as any address there)", "dim")
        table.add_row(printable(each.outcome.recipient), words, answer(each.outcome))
    Console().print(table)
