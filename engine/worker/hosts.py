"""Read the `--host` options of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.routing.table import parse_host

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_hosts(hosts: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the routes that `--host` options make: one for all domains, or none.

    Args:
        hosts: Each `HOST[:PORT]` or `unix:/PATH`, in the order in which they are to be tried.

    Raises:
        ValueError: One is no host; the text names it and says what is allowed.
    """
    for host in hosts:
        parse_host(host)
    return (("*", tuple(hosts)),) if hosts else ()
