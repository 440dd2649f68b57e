"""Which settings hold for a host: the rules for single domains, sites, hosts and networks.

Called by the engine and its pools; the rules come from the `[[paths]]` tables of the configuration
file or from programs that embed the engine.  Knows no I/O.
Not here: the settings themselves (`engine.settings`), and files and their line numbers
(`engine.worker.config`).
"""

from __future__ import annotations

import ipaddress
import re
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakValueDictionary

from pydantic import ValidationError

from engine.errors import ConfigError
from engine.route import UNIX
from engine.setting_types import ip_text
from engine.settings import Problem, Settings, contradictions, explain
from engine.showing import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MATCH_ALLOWED: Final = (
    'a host, recipient domain or site, "*.example.net" (its subdomains), "*", '
    "an IP address, a network such as 192.0.2.0/24, or a Unix socket such as unix:/run/lmtp"
)
_NAME: Final = re.compile(r"[a-z0-9_\[](?:[a-z0-9._,:\[\]-]*[a-z0-9_\]])?")


class MatchKind(IntEnum):
    """How a rule names its hosts; the larger is the more specific."""

    ANY = 0
    SUBDOMAINS = 1
    NETWORK = 2
    EXACT = 3


@dataclass(frozen=True, slots=True)
class Match:
    """The `match` of a rule, read.

    Attributes:
        kind: How it matches.
        name: Lower-case A-labels without a trailing dot; the address or network as text; or `unix:`
            and the path of a socket.
    """

    kind: MatchKind
    name: str

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read a `match`.

        Raises:
            ValueError: None of the allowed forms; the text is `MATCH_ALLOWED`.
        """
        if not isinstance(text, str):
            raise ValueError(MATCH_ALLOWED)  # noqa: TRY004 - one error for whoever reads a file
        if text == "*":
            return cls(MatchKind.ANY, text)
        if text.startswith(UNIX):
            if re.fullmatch(r"/[^\x00-\x1f\x7f,]+", text.removeprefix(UNIX)):
                return cls(MatchKind.EXACT, text)
            raise ValueError(MATCH_ALLOWED)
        try:
            if "/" in text:
                return cls(MatchKind.NETWORK, str(ipaddress.ip_network(text)))
            if address := ip_text(text):
                return cls(MatchKind.EXACT, address)
            if text.startswith("*."):
                return cls(MatchKind.SUBDOMAINS, _match_name(text[2:]))
            return cls(MatchKind.EXACT, _match_name(text))
        except ValueError:
            raise ValueError(MATCH_ALLOWED) from None

    @property
    def specificity(self) -> tuple[int, int]:
        """Sorts rules, the less specific first: kind, then length of the prefix or suffix."""
        if self.kind is MatchKind.NETWORK:
            return self.kind, int(self.name.partition("/")[2])
        return self.kind, len(self.name) if self.kind is MatchKind.SUBDOMAINS else 0


def _match_name(text: str) -> str:
    if not text.isascii():
        import idna

        text = idna.encode(text, uts46=True).decode()  # its error is a ValueError
    name = _fold(text)
    # A name whose last label is a number is a mistyped address: no such domain can exist.
    if not _NAME.fullmatch(name) or ".." in name or re.search(r"(?:^|\.)[0-9]+$", name):
        raise ValueError(name)
    return name


def _fold(name: str) -> str:
    if name.startswith(UNIX):
        return name  # a path
    return name.lower().removesuffix(".")


@dataclass(frozen=True, slots=True)
class PathRule:
    """Settings for some hosts only; one `[[paths]]` table.

    Attributes:
        match: Which hosts, see `Match.parse`.
        overrides: Names and values of settings, as `Settings` takes them.
    """

    match: str
    overrides: Mapping[str, object]

    def __repr__(self) -> str:
        # As they were given, values may hold passwords, even under a name with a slip in it.
        return f"<PathRule {self.match!r}: {', '.join(map(show, self.overrides))}>"


class SettingsTable:
    """Defaults and rules; answers which settings hold for a domain, a site or one of its hosts.

    The cost of a look-up does not grow with the number of rules that name a host or a domain.

    Attributes:
        defaults: The settings where no rule matches.
        rules: The rules, in the order of the file.

    Raises:
        ConfigError: From the constructor: a rule has a bad match or bad overrides.
        TypeError: From the constructor: defaults are no `Settings`, or a rule is no `PathRule`.
    """

    #: Merged settings kept alive though nobody uses them at the moment, and peers remembered.
    KEPT: Final = 1024

    def __init__(self, defaults: Settings, rules: Sequence[PathRule] = ()) -> None:
        if not isinstance(defaults, Settings):
            raise TypeError(f"defaults is a {type(defaults).__name__}; allowed is a Settings")
        self.defaults = defaults
        self.rules = tuple(rules)
        for index, rule in enumerate(self.rules):
            if not isinstance(rule, PathRule):
                kind = type(rule).__name__
                raise TypeError(f"rules[{index}] is a {kind}; allowed is a PathRule")
        self._any: list[int] = []
        self._exact: dict[str, list[int]] = {}
        self._subdomains: dict[str, list[int]] = {}
        # (IP version, bits that do not count) -> the bits that count -> rules.
        self._networks: dict[tuple[int, int], dict[int, list[int]]] = {}
        matches, self._overrides = _read_rules(self.rules)
        self._ranks = [(match.specificity, index) for index, match in enumerate(matches)]
        for index, match in enumerate(matches):
            self._file(match).append(index)
        # Weak, so that a tuple has one object as long as anybody holds it, and still bounded.
        self._made: WeakValueDictionary[tuple[int, ...], Settings] = WeakValueDictionary()
        self._kept: deque[Settings] = deque(maxlen=self.KEPT)
        self._of_peer = lru_cache(maxsize=self.KEPT)(self._find_for_peer)

    def matching(
        self, *, domain: str, site: str, host: str | None = None, address: str | None = None
    ) -> tuple[int, ...]:
        """Find the rules that match, least specific first; apply them in this order.

        An exact name or address counts more than a network, a longer prefix more than a shorter,
        any network more than `*.suffix`, a longer suffix more than a shorter, and `*` least; among
        equals the later in the file.

        Args:
            domain: Recipient domain, as A-labels.
            site: Hosts joined by commas.  A `*.suffix` matches a site when all its hosts are in it.
            host: The host, once it is chosen.
            address: Its IP address in the usual text form.

        Raises:
            ValueError: `address` is no IP address (seen only where networks are among the rules).
        """
        if not self.rules:
            return ()
        # Domains are many and peers few: only what hangs on the peer is worth remembering.
        found = self._named(_fold(domain)) | self._of_peer(site, host, address)
        return tuple(sorted(found, key=self._ranks.__getitem__))

    def settings(self, indexes: tuple[int, ...]) -> Settings:
        """Merge the rules over the defaults; the same tuple gives the identical object.

        Args:
            indexes: From `matching`.
        """
        if not indexes:
            return self.defaults
        made = self._made.get(indexes)
        if made is None:
            changes: dict[str, object] = {}
            for index in indexes:
                changes.update(self._overrides[index])
            made = self._made[indexes] = self.defaults.model_copy(update=changes)
            self._kept.append(made)
        return made

    def _file(self, match: Match) -> list[int]:
        """Find the list a rule belongs in."""
        if match.kind is MatchKind.ANY:
            return self._any
        if match.kind is MatchKind.NETWORK:
            network = ipaddress.ip_network(match.name)
            free = network.max_prefixlen - network.prefixlen
            numbers = self._networks.setdefault((network.version, free), {})
            return numbers.setdefault(int(network.network_address) >> free, [])
        table = self._exact if match.kind is MatchKind.EXACT else self._subdomains
        return table.setdefault(match.name, [])

    def _find_for_peer(self, site: str, host: str | None, address: str | None) -> frozenset[int]:
        site = _fold(site)
        hosts = [_without_port(name) for name in site.split(",")]
        found = set(self._any).union(
            self._exact.get(site, ()), self._exact.get(",".join(hosts), ())
        )
        found |= set.intersection(*map(self._above, hosts))
        if host is not None:
            found |= self._named(_fold(host))
        if address is not None:
            found |= self._around(address)
        return frozenset(found)

    def _named(self, name: str) -> set[int]:
        found = self._above(name)
        found.update(self._exact.get(name, ()))
        return found

    def _above(self, name: str) -> set[int]:
        found: set[int] = set()
        if not self._subdomains:
            return found
        _, _, parent = name.partition(".")
        while parent:
            found.update(self._subdomains.get(parent, ()))
            _, _, parent = parent.partition(".")
        return found

    def _around(self, address: str) -> set[int]:
        found = set(self._exact.get(address, ()))
        if not self._networks:
            return found
        ip = ipaddress.ip_address(address)
        for (version, free), numbers in self._networks.items():
            if version == ip.version:
                found.update(numbers.get(int(ip) >> free, ()))
        return found


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    # Colons inside an IPv6 address without brackets are not the port's.
    return name if colon and port.isdecimal() and (":" not in name or name[-1] == "]") else host


def _read_rules(rules: Sequence[PathRule]) -> tuple[list[Match], list[dict[str, object]]]:
    matches, overrides, problems = [], [], []
    for index, rule in enumerate(rules):
        try:
            matches.append(Match.parse(rule.match))
        except ValueError:
            problem = Problem(f"rules[{index}].match", show(rule.match), MATCH_ALLOWED)
            problems.append(str(problem))
        try:
            settings = Settings.model_validate(dict(rule.overrides))
            overrides.append({name: getattr(settings, name) for name in settings.model_fields_set})
        except ValidationError as error:
            problems.extend(f"rules[{index}].{problem}" for problem in explain(error))
    if problems:
        raise ConfigError(*problems)
    return matches, overrides


def refuse_contradictions(table: SettingsTable) -> None:
    """Refuse settings that cannot hold together, by default or on a path.

    Raises:
        ConfigError: A problem for each of them.
    """
    refuse_wherever(table, contradictions)


def refuse_wherever(table: SettingsTable, find: Callable[[Settings], Iterable[Problem]]) -> None:
    """Refuse what is wrong by default or on a path; what is wrong by default is told once.

    Args:
        table: Where it is looked for.
        find: Says what is wrong with settings.

    Raises:
        ConfigError: A problem for each of them.
    """
    problems = [str(problem) for problem in find(table.defaults)]
    known = set(problems)
    for number, rule in enumerate(table.rules):
        found = map(str, find(table.settings((number,))))
        problems += [f"paths[{number}] {rule.match}: {each}" for each in found if each not in known]
    if problems:
        raise ConfigError(*problems)
