"""Read the configuration: a TOML file and the `--set` options of the command line.

Called by the command line before anything else happens.  All problems are collected, so that one
run shows them all, each with the line or option it comes from.
Not here: what single settings may be (`engine.settings`, `engine.worker.sections`), retry rules
(`engine.queue.retry`), and on which line a key is (`engine.worker.toml_lines`).
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import ValidationError

from engine.errors import ConfigError
from engine.paths import MATCH_ALLOWED, Match, PathRule, SettingsTable
from engine.queue.retry import RetryRules, read_rules
from engine.report.tlsrpt_form import Reporter
from engine.routing.nameservers import parse_server
from engine.routing.table import HOST_FORMS, MATCH_FORMS, RouteTable, parse_host, read_name
from engine.settings import SECRET, Settings, contradictions, explain
from engine.showing import show, show_key, suggest
from engine.tls_files import file_problems
from engine.units import DURATION_ALLOWED, parse_duration
from engine.worker.sections import (
    QueueSection,
    TlsReportsSection,
    WorkerSection,
    all_files,
)
from engine.worker.toml_lines import locate_keys

if TYPE_CHECKING:
    from pydantic import BaseModel

_SECTIONS: Final = (
    *("defaults", "paths", "routes", "routing", "dns"),
    *("queue", "worker", "retry", "tls_reports"),
)

_DNS_TIMEOUT: Final = 5.0  # seconds

_SERVERS_ALLOWED: Final = 'IP addresses of name servers with or without a port, as "127.0.0.1:53"'
_TRUSTED_ALLOWED: Final = "IP addresses of name servers that validate; an empty list: none does"
_ADDRESSES_ALLOWED: Final = "IP addresses of this machine; an empty list: nothing is ourselves"
_NAMES_ALLOWED: Final = "host names of this machine"
_PORT_ALLOWED: Final = "a number from 1 to 65535 or a TCP service that this host knows"

Table = Mapping[str, object]
_Section = TypeVar("_Section", bound="BaseModel")


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that can be used.

    Attributes:
        table: The settings and their rules.
        routes: Static routes, first match wins: a domain pattern and its hosts in order.
        name_servers: `address` or `address:port`; empty: those of the system.
        dns_timeout: Seconds for one DNS lookup, repeats included.
        trusted: IP addresses of name servers whose word on DNSSEC is taken; `None`: those on
            this machine.
        own_addresses: IP addresses that are ourselves; `None`: those of this machine; empty:
            nothing is.
        own_names: Host names that are ourselves.
        queue: The queue of the worker.
        worker: The process of the worker.
        retry: When the worker tries again.
        tls_reporter: Who reports on TLS; `None`: nobody.
        folder: What file names of the worker are relative to.
        sources: Where each value comes from, by key path (`defaults.port`, `paths[0].tls`):
            `default`, `FILE:LINE` or `--set`.
    """

    table: SettingsTable
    routes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    name_servers: tuple[str, ...] = ()
    dns_timeout: float = _DNS_TIMEOUT
    trusted: tuple[str, ...] | None = None
    own_addresses: tuple[str, ...] | None = None
    own_names: tuple[str, ...] = ()
    queue: QueueSection = field(default_factory=QueueSection)
    worker: WorkerSection = field(default_factory=WorkerSection)
    retry: RetryRules = field(default_factory=RetryRules)
    tls_reporter: Reporter | None = None
    folder: Path = field(default_factory=Path)
    sources: Mapping[str, str] = field(default_factory=dict)


def load_config(path: Path | None, sets: Sequence[str] = ()) -> Config:
    """Read a configuration file and lay `--set` options over its settings, those of paths included.

    Blocks: the file and the host's list of services are read.

    Args:
        path: The TOML file, or `None` for the defaults alone.
        sets: `KEY=VALUE` each; the value is read as TOML, else taken as a text.  It holds for all
            hosts, whatever `[[paths]]` say.  Of two for one key the last wins.

    Raises:
        ConfigError: The configuration is bad; all its problems, in the order of the file.
        OSError: The file cannot be read.
    """
    reader = _Reader(str(path), {}, {}, Path() if path is None else path.absolute().parent)
    if path is not None:
        octets = path.read_bytes()
        try:
            reader = _Reader(str(path), *_parse(octets), reader.folder)
        except ConfigError as error:
            reader.problems.extend((0, f"{path}:{line}") for line in error.problems)
    return reader.read(sets)


def _parse(octets: bytes) -> tuple[Table, dict[str, int]]:
    """Parse TOML and find the line of each key; the error's problem is `LINE: found …`."""
    try:
        text = octets.decode("utf-8-sig")
        return tomllib.loads(text), locate_keys(text)
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        problem = f"{line}: found octets that are not UTF-8; allowed TOML, which is UTF-8"
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).rpartition(" (")
        at = re.fullmatch(r"at line (\d+), column (\d+)\)", place)
        where = f"{at[1]}:{at[2]}" if at else str(octets.count(b"\n") + 1)
        problem = f"{where}: found no TOML: {what[:1].lower()}{what[1:]}; allowed a TOML document"
    except (RecursionError, ValueError):
        problem = "1: found a number too long or a value too deep; allowed a TOML document"
    raise ConfigError(problem)


# ---- the sections -------------------------------------------------------------------------------


class _Reader:
    """Goes through the sections of one document and collects problems."""

    def __init__(self, file: str, document: Table, lines: Mapping[str, int], folder: Path) -> None:
        self.file = file
        self.folder = folder
        self.document = document
        self.lines = lines
        #: Line and text; 0 before, and infinity after, all lines of the file.
        self.problems: list[tuple[float, str]] = []
        self.sources = {f"defaults.{name}": "default" for name in Settings.model_fields}
        self.sources |= dict.fromkeys(("dns.servers", "dns.timeout", "dns.trusted"), "default")
        self.sources |= dict.fromkeys(("routing.own_addresses", "routing.own_names"), "default")

    def read(self, sets: Sequence[str]) -> Config:
        self.check_sections()
        defaults = self.settings("defaults", self.table("defaults"))
        rules = [self.path_rule(*item) for item in self.tables("paths")]
        routes = [self.route(*item) for item in self.tables("routes")]
        addresses, names = self.routing(self.table("routing"))
        servers, timeout, trusted = self.dns(self.table("dns"))
        queue = self.section("queue", QueueSection) or QueueSection()
        worker = self.section("worker", WorkerSection) or WorkerSection()
        self.check_files(queue, worker)
        retry = self.retry()
        reporter = self.tls_reporter()
        changes = self.changes(sets)
        self.refuse_problems()
        rules = [_without(rule, changes) for rule in rules]
        table = SettingsTable(Settings.model_validate({**defaults, **changes}), rules)
        self.check_together(table, changes)
        self.refuse_problems()
        names = tuple(map(read_name, names))
        return Config(
            table=table,
            routes=tuple(routes),
            name_servers=servers,
            dns_timeout=timeout,
            trusted=trusted,
            own_addresses=addresses,
            own_names=names,
            queue=queue,
            worker=worker,
            retry=retry,
            tls_reporter=reporter,
            folder=self.folder,
            sources=self.sources,
        )

    # -- where things are, and what is wrong with them

    def refuse_problems(self) -> None:
        if self.problems:
            raise ConfigError(*(text for _, text in sorted(self.problems, key=lambda p: p[0])))

    def check_together(self, table: SettingsTable, changes: Table) -> None:
        """See whether values that are fine one by one can be used together."""
        known: set[str] = set()
        for indexes in ((), *((number,) for number in range(len(table.rules)))):
            settings = table.settings(indexes)
            for problem in (*contradictions(settings), *file_problems(settings)):
                if str(problem) in known:
                    continue
                known.add(str(problem))
                if problem.key in changes:
                    self.problems.append((_LAST, f"--set {problem}"))
                    continue
                place = f"paths[{indexes[0]}]" if indexes else "defaults"
                if indexes and f"{place}.{problem.key}" not in self.lines:
                    place = "defaults" if f"defaults.{problem.key}" in self.lines else place
                self.refuse(f"{place}.{problem.key}", problem.found, problem.allowed)

    def check_files(self, queue: QueueSection, worker: WorkerSection) -> None:
        """See that each file has one use: a log in the file of a store would be the end of it."""
        uses = {os.path.realpath(self.file): "the configuration"}
        refused: set[str] = set()
        for key, file in all_files(self.folder, queue, worker):
            real = os.path.realpath(file)
            use = uses.setdefault(real, key)
            # One that is thrown away is nobody's.
            if use != key and not real.startswith("/dev/") and key not in refused:
                refused.add(key)
                section, _, name = key.partition(".")
                found = getattr(queue if section == "queue" else worker, name)
                self.refuse(key, show(found), f"a file of its own; {file} is that of {use}")

    def line(self, key: str) -> int:
        """Find the line of a key, else of the nearest table around it, else of what is in it."""
        place = key
        while place and place not in self.lines:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        inside = (line for name, line in self.lines.items() if name.startswith(f"{key}."))
        return self.lines[place] if place else next(inside, 1)

    def refuse(self, key: str, found: str, allowed: str) -> None:
        line = self.line(key)
        self.problems.append((line, f"{self.file}:{line}: {key}: found {found}; allowed {allowed}"))

    def refuse_unknown(self, place: str, table: Table, known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                self.refuse(f"{place}.{show_key(key)}", "an unknown name", suggest(key, known))
            else:
                self.note(f"{place}.{key}")

    def note(self, key: str) -> None:
        self.sources[key] = f"{self.file}:{self.line(key)}"

    # -- sections in general

    def check_sections(self) -> None:
        for name in self.document:
            if name in Settings.model_fields:
                self.refuse(name, "a setting outside any section", "it in [defaults] or [[paths]]")
            elif name not in _SECTIONS:
                self.refuse(show_key(name), "an unknown section", suggest(name, _SECTIONS))

    def table(self, name: str) -> Table:
        value = self.document.get(name, {})
        if isinstance(value, dict):
            return value
        self.refuse(name, show(value), f"a table, [{name}]")
        return {}

    def tables(self, name: str) -> list[tuple[str, Table]]:
        value = self.document.get(name, [])
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return [(f"{name}[{index}]", item) for index, item in enumerate(value)]
        self.refuse(name, show(value), f"an array of tables, [[{name}]]")
        return []

    # -- single sections

    def settings(self, place: str, table: Table, *others: str) -> Table:
        self.refuse_unknown(place, table, (*Settings.model_fields, *others))
        values = {name: value for name, value in table.items() if name in Settings.model_fields}
        for name, value in values.items():
            for key, found, allowed in _setting_problems(name, value):
                self.refuse(f"{place}.{key}", found, allowed)
        return values

    def path_rule(self, place: str, table: Table) -> PathRule:
        match = self.match(place, table, Match.parse, MATCH_ALLOWED)
        return PathRule(match, self.settings(place, table, "match"))

    def route(self, place: str, table: Table) -> tuple[str, tuple[str, ...]]:
        self.refuse_unknown(place, table, ("match", "hosts"))
        match = self.match(place, table, _read_route_match, MATCH_FORMS)
        hosts = table.get("hosts")
        if hosts == []:
            self.refuse(f"{place}.hosts", "[]", f"one or more of: {HOST_FORMS}")
        return match, self.texts(f"{place}.hosts", hosts, parse_host, HOST_FORMS)

    def match(self, place: str, table: Table, read: Callable[[str], object], allowed: str) -> str:
        text = table.get("match")
        if isinstance(text, str) and _succeeds(read, text):
            return text
        self.refuse(f"{place}.match", show(text), allowed)
        return "*"

    def routing(self, table: Table) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        self.refuse_unknown("routing", table, ("own_addresses", "own_names"))
        addresses = table.get("own_addresses")
        if addresses is not None:
            addresses = self.texts(
                "routing.own_addresses", addresses, ip_address, _ADDRESSES_ALLOWED
            )
        names = self.texts(
            "routing.own_names", table.get("own_names", []), read_name, _NAMES_ALLOWED
        )
        return addresses, names

    def dns(self, table: Table) -> tuple[tuple[str, ...], float, tuple[str, ...] | None]:
        self.refuse_unknown("dns", table, ("servers", "timeout", "trusted"))
        servers = table.get("servers", [])
        timeout = table.get("timeout", _DNS_TIMEOUT)
        try:
            seconds = parse_duration(timeout)
        except ValueError:
            self.refuse("dns.timeout", show(timeout), DURATION_ALLOWED)
            seconds = _DNS_TIMEOUT
        trusted = table.get("trusted")
        if trusted is not None:
            trusted = self.texts("dns.trusted", trusted, ip_address, _TRUSTED_ALLOWED)
        return (
            self.texts("dns.servers", servers, parse_server, _SERVERS_ALLOWED),
            seconds,
            trusted,
        )

    # -- sections of the worker

    def section(self, name: str, model: type[_Section]) -> _Section | None:
        self.sources |= {f"{name}.{key}": "default" for key in model.model_fields}
        table = self.table(name)
        self.refuse_unknown(name, table, tuple(model.model_fields))
        try:
            return model.model_validate({k: v for k, v in table.items() if k in model.model_fields})
        except ValidationError as error:
            for problem in explain(error):
                self.refuse(f"{name}.{problem.key}", problem.found, problem.allowed)
            return None

    def retry(self) -> RetryRules:
        tables = [table for _, table in self.tables("retry")]
        rules, problems = read_rules(tables)
        for problem in problems:
            self.refuse(problem.key, problem.found, problem.allowed)
        for index, table in enumerate(tables):
            for key in table:
                self.note(f"retry[{index}].{key}")
        return rules

    def tls_reporter(self) -> Reporter | None:
        if "tls_reports" not in self.document:
            return None
        section = self.section("tls_reports", TlsReportsSection)
        if section is None:
            return None
        try:
            return Reporter(section.organization, section.contact or "", section.unique)
        except ValueError:
            found = f"{show(section.contact)} and {show(section.unique)}"
            allowed = 'a mailbox as "contact", and 1 to 32 letters and digits as "unique"'
            self.refuse("tls_reports", found, allowed)
            return None

    def texts(
        self, key: str, value: object, read: Callable[[str], object], allowed: str
    ) -> tuple[str, ...]:
        """Take a list of texts, or one text; every bad item is named."""
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            self.refuse(key, show(value), allowed)
            return ()
        bad = [
            show(item) for item in items if not (isinstance(item, str) and _succeeds(read, item))
        ]
        if bad:
            self.refuse(key, ", ".join(bad), allowed)
        return tuple(map(str, items))

    # -- the command line

    def changes(self, sets: Sequence[str]) -> Table:
        changes: dict[str, object] = {}
        for option in sets:
            key, equals, text = (part.strip() for part in option.partition("="))
            if not equals or not key:
                # Not quoted: it may be a value whose key is missing.
                self.problems.append((_LAST, '--set: found no "KEY="; allowed KEY=VALUE'))
                continue
            value = _read_value(text)
            shown = f"--set {show_key(key)}={'…' if _may_be_secret(key, text) else _plain(text)}"
            for name, found, allowed in (problems := _setting_problems(key, value)):
                # A key inside a table is a place of its own.
                place = f"{shown}: {name}" if name.startswith(f"{key}.") else shown
                self.problems.append((_LAST, f"{place}: found {found}; allowed {allowed}"))
            if not problems:
                changes[key] = value
                self.sources[f"defaults.{key}"] = "--set"
        return changes


_LAST: Final = float("inf")


def _without(rule: PathRule, changes: Table) -> PathRule:
    """Take out of a rule what `--set` sets: the command line has the last word."""
    kept = {name: value for name, value in rule.overrides.items() if name not in changes}
    return PathRule(rule.match, kept)


def _setting_problems(name: str, value: object) -> list[tuple[str, str, str]]:
    """Check one setting as the user gives it: key, what was found, what is allowed."""
    # One at a time, so that a bad value does not hide another.
    try:
        settings = Settings.model_validate({name: value})
    except ValidationError as error:
        return [(problem.key, problem.found, problem.allowed) for problem in explain(error)]
    if isinstance(settings.port, str) and not _is_service(settings.port):
        return [("port", show(settings.port), _PORT_ALLOWED)]
    return []


def _is_service(name: str) -> bool:
    try:
        socket.getservbyname(name, "tcp")
    except OSError:
        return False
    return True


def _succeeds(read: Callable[[str], object], text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True


def _read_route_match(text: str) -> object:
    return RouteTable([(text, ["192.0.2.1"])])


def _read_value(text: str) -> object:
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # A line end inside the text could have brought more keys along.
    return document["value"] if document.keys() == {"value"} else text


def _may_be_secret(key: str, text: str) -> bool:
    # Also a mistyped `auth` or `proxy` must not show what it was given.
    if key in Settings.model_fields:
        return key in SECRET
    near = difflib.get_close_matches(key.partition(".")[0], SECRET, n=1)
    return bool(near) or "pass" in key + text or "@" in text


def _plain(text: str) -> str:
    return ascii(text[:80])[1:-1]
