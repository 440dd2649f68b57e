"""What belongs to one process of several: its files, and its share of what is limited.

With `processes = N` a recipient is with process `crc32(its routing domain) % N + 1`, so each has all
mail of a domain, and a store, a socket and hints of its own.  Limits for a site are divided among
all, for several domains may share a site.
Not here: who starts them (`engine.worker.supervisor`), and who submits to which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from engine.paths import PathRule, SettingsTable
from engine.queue.sqlite import open_store
from engine.settings import Settings
from engine.worker.sections import MAX_PROCESSES, shard_file

if TYPE_CHECKING:
    from pathlib import Path

    from engine.report.tlsrpt_form import Reporter
    from engine.worker.config import Config

_MAX_UNIQUE: Final = 28


@dataclass(frozen=True, slots=True)
class Share:
    """Which process of how many.

    Attributes:
        number: Which, from 1.
        count: Of how many.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read `NUMBER/COUNT`.

        Raises:
            ValueError: It is something else.
        """
        number, slash, count = text.partition("/")
        if slash and number.isdecimal() and count.isdecimal():
            share = cls(int(number), int(count))
            if 1 <= share.number <= share.count <= MAX_PROCESSES:
                return share
        raise ValueError(f"found {text!r}; allowed 1/2, 2/2 and the like")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, limit: int) -> int:
        """Return this process's share of a limit, at least 1; the first take what is left over."""
        return max(1, limit // self.count + (self.number <= limit % self.count))


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one process.

    Attributes:
        store: Its queue.
        socket: Where it is talked to.
        state: Its hints.
        outcomes: The log of outcomes, which is everybody's.
    """

    store: Path
    socket: Path
    state: Path
    outcomes: Path


def files_of(config: Config, number: int = 1) -> Files:
    """Return the files of a process, from 1."""
    worker, folder = config.worker, config.folder
    return Files(
        store=shard_file(folder, config.queue.path, number),
        socket=shard_file(folder, worker.socket, number),
        state=shard_file(folder, worker.state, number),
        outcomes=folder / worker.outcomes,
    )


def share_config(config: Config, share: Share) -> Config:
    """Return the configuration of one process: with its share of what is limited for a site."""
    if share.count == 1:
        return config
    table = config.table
    defaults = table.defaults.model_copy(
        update={"max_connections": share.of(table.defaults.max_connections)}
    )
    rules = [_share_rule(rule, share) for rule in table.rules]
    return replace(
        config,
        table=SettingsTable(defaults, rules),
        tls_reporter=_own_reporter(config.tls_reporter, share.number),
    )


def _share_rule(rule: PathRule, share: Share) -> PathRule:
    if "max_connections" not in rule.overrides:
        return rule
    limit = Settings.model_validate(
        {"max_connections": rule.overrides["max_connections"]}
    ).max_connections
    return PathRule(rule.match, {**rule.overrides, "max_connections": share.of(limit)})


def _own_reporter(reporter: Reporter | None, number: int) -> Reporter | None:
    # RFC 8460 §4.4: the report of each must have a name of its own.
    if reporter is None or number == 1:
        return reporter
    return replace(reporter, unique=f"{reporter.unique[:_MAX_UNIQUE]}p{number}")


async def stranded(config: Config) -> list[str]:
    """Look for mail in stores of processes that there are no more; return a line for each.

    Raises:
        StoreError: One of these stores cannot be read.
    """
    found: list[str] = []
    count = config.worker.processes
    for number in range(count + 1, MAX_PROCESSES + 1):
        path = files_of(config, number).store
        if not await trio.Path(path).exists():
            continue
        # Not read only: it may be of an earlier release.
        async with open_store(path) as store:
            counts = await store.counts(now=0.0)
        if left := counts.queued + counts.leased + counts.held + counts.ended:
            found.append(
                f"{path}: {left} recipients are here, and nobody is at them with "
                f"processes = {count}; allowed {number} or more, for instance until "
                '"run --until-empty" has ended, or an empty store ("queue export", "queue purge")'
            )
    return found
