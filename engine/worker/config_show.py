"""The command `config`: every value in effect, and where it comes from.

Called by the command line with options that were understood.  What may be a secret is never shown.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from engine.paths import MatchKind
from engine.queue.retry import DEFAULT_STEPS
from engine.settings import SECRET
from engine.worker.exits import Exit
from engine.worker.given import read_config
from engine.worker.screen import print_to
from engine.worker.summary import Fitting, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import BaseModel

    from engine.paths import Match
    from engine.settings import Settings
    from engine.worker.config import Config

MASK: Final = "********"
_STDOUT: Final = 1


def show_config(file: str | None, sets: Sequence[str], *, as_json: bool = False) -> int:
    """Run `config` and return its exit status.

    Args:
        file: The configuration file; `None`: the defaults.
        sets: `KEY=VALUE` over the configuration's defaults.
        as_json: One JSON object: by key, `value` and `source`.
    """
    config = read_config(file, sets)
    if isinstance(config, Exit):
        return config
    found = {
        key: (value, config.sources.get(key, _DEFAULT)) for key, value in effective_values(config)
    }
    if as_json:
        record = {key: {"value": value, "source": place} for key, (value, place) in found.items()}
        text = json.dumps(record, indent=1) + "\n"
    else:
        text = _table(found)
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # What is left must not be tried once more when the process ends.
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), _STDOUT)
        if not isinstance(error, BrokenPipeError):
            print(f"standard output: {error.strerror}", file=sys.stderr)
            return Exit.DEFERRED
    return Exit.DELIVERED


_DEFAULT: Final = "default"


def effective_values(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield key and value, in values of JSON, of all that is in effect; secrets are masked."""
    table = config.table
    for name in type(table.defaults).model_fields:
        yield f"defaults.{name}", _setting(table.defaults, name)
    for index, rule in enumerate(table.rules):
        settings = table.settings((index,))
        yield f"paths[{index}].match", rule.match
        for name in rule.overrides:
            yield f"paths[{index}].{name}", _setting(settings, name)
    for index, (match, hosts) in enumerate(config.routes):
        yield f"routes[{index}].match", match
        yield f"routes[{index}].hosts", list(hosts)
    yield "routing.own_addresses", _plain(config.own_addresses)
    yield "routing.own_names", _plain(config.own_names)
    yield "dns.servers", _plain(config.name_servers)
    yield "dns.timeout", config.dns_timeout
    yield "dns.trusted", _plain(config.trusted)
    yield from _section("queue", config.queue)
    yield from _section("worker", config.worker)
    for index, rules in enumerate(config.retry.rules):
        yield f"retry[{index}].match", _match(rules.match)
        yield f"retry[{index}].error", list(rules.errors)
        yield f"retry[{index}].steps", [step.text for step in rules.steps]
    # It speaks last, of what no other rule speaks of.
    yield "retry.default.steps", list(DEFAULT_STEPS)
    if (reporter := config.tls_reporter) is not None:
        yield "tls_reports.organization", reporter.organization
        yield "tls_reports.contact", reporter.contact
        yield "tls_reports.unique", reporter.unique


def _section(name: str, section: BaseModel) -> Iterator[tuple[str, Any]]:
    for key in type(section).model_fields:
        yield f"{name}.{key}", _plain(getattr(section, key))


def _setting(settings: Settings, name: str) -> Any:
    value = getattr(settings, name)
    return MASK if name in SECRET and value else _plain(value)


def _match(match: Match) -> str:
    return f"*.{match.name}" if match.kind is MatchKind.SUBDOMAINS else match.name


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, tuple | list | frozenset | set):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def _table(found: dict[str, tuple[Any, str]]) -> str:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1), highlight=False)
    fitting = Fitting(table)
    table.add_column("Key", no_wrap=True)
    table.add_column("Value", overflow="fold", min_width=16)
    table.add_column("From", no_wrap=True)
    for key, (value, place) in found.items():
        shown = "-" if value is None else json.dumps(value, ensure_ascii=False)
        style = "dim" if place == _DEFAULT else ""
        cells = (
            Text(printable(shown), style),
            Text(printable(place.rpartition("/")[2]), style),
        )
        table.add_row(Text(key), *cells)
        fitting.rows.append((Text(key), cells))
    parts: list[str] = []
    print_to(parts.append, _STDOUT, fitting)
    return "".join(parts)
