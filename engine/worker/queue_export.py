"""The commands `queue export` and `queue check`: save what can be read, and look whether all can.

Both read the files themselves, whether a worker runs or not: a file that is damaged may keep it from
starting.  Called by the command line with options that were understood.
"""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

import trio

from engine.queue.errors import StoreDamagedError, StoreError
from engine.queue.export import Damage, export_messages
from engine.queue.sqlite import open_store
from engine.queue.submission import MAX_NAME
from engine.queue.values import Selection, State
from engine.units import timestamp
from engine.worker.exits import Exit
from engine.worker.given import read_config
from engine.worker.queue_command import tell
from engine.worker.sections import MAX_PROCESSES, shard_file
from engine.worker.summary import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from engine.message import Recipient
    from engine.queue.entries import Entry, StoredMessage
    from engine.queue.store import Store
    from engine.worker.config import Config

#: The batch that `submit` takes again.
BATCH: Final = "messages.jsonl"
#: What is known of messages whose content cannot be read.
DAMAGED: Final = "damaged.jsonl"

_ENCODER: Final = json.JSONEncoder(ensure_ascii=True)


# ---- export -------------------------------------------------------------------------------------


def export(config_file: str | None, folder: Path) -> int:
    """Run `queue export` and return its exit status.

    Args:
        config_file: The configuration file.
        folder: Where to; it is made, or empty.
    """
    config = read_config(config_file, ())
    if isinstance(config, Exit):
        return config
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            text = "found a folder that is not empty; allowed is one that is, or none"
            print(f"{folder}: {text}", file=sys.stderr)
            return Exit.USAGE
        return trio.run(_export, config, folder)
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror}", file=sys.stderr)
        return Exit.IO_ERROR


async def _export(config: Config, folder: Path) -> int:
    tally = _Tally()
    async with AsyncExitStack() as stack:
        stores: list[Store] = []
        batch = stack.enter_context(_create(folder / BATCH))
        damaged = stack.enter_context(_create(folder / DAMAGED))
        for number, file in _files(config):
            try:
                store = await stack.enter_async_context(open_store(file, is_read_only=True))
                await _Exporter(folder, batch, damaged, tally, number, stores).run(store)
                stores.append(store)
            except StoreError as error:
                print(error, file=sys.stderr)
                tally.status = Exit.IO_ERROR
    if not tally.damaged:
        (folder / DAMAGED).unlink()
    print(f"{tally.saved:,} saved in {folder}, {tally.damaged:,} damaged")
    if tally.saved:
        print(f"to queue them again: submit --batch {folder / BATCH}")
    return Exit.IO_ERROR if tally.damaged else tally.status


def _files(config: Config) -> Iterator[tuple[int, Path]]:
    """Yield the files of all processes, and of those that there were once."""
    for number in range(1, MAX_PROCESSES + 1):
        file = shard_file(config.folder, config.queue.path, number)
        if number <= config.worker.processes or file.is_file():
            yield number, file


@dataclass(slots=True)
class _Tally:
    saved: int = 0
    damaged: int = 0
    status: int = Exit.DELIVERED


@dataclass(slots=True)
class _Exporter:
    """Saves the messages of one store."""

    folder: Path
    batch: IO[str]
    damaged: IO[str]
    tally: _Tally
    number: int
    #: Of other processes, saved already: a message may be in several.
    others: Sequence[Store] = field(default_factory=list)

    async def run(self, store: Store) -> None:
        async with aclosing(export_messages(store)) as found:
            async for each in found:
                if isinstance(each, Damage):
                    self.tally.damaged += 1
                    place = f"messages {each.first} to {each.last}, if there were any"
                    print(f"{place}: {each.text}", file=sys.stderr)
                else:
                    await self._save(each)

    async def _save(self, stored: StoredMessage) -> None:
        waiting = [entry for entry in stored.entries if entry.state is not State.ENDED]
        name = f"{self.number}-{stored.number:08}.eml"
        try:
            if stored.is_damaged:
                raise StoreDamagedError("its content is not what was stored")  # noqa: TRY301
            await self._write(name, stored)
        except StoreDamagedError as error:
            self.tally.damaged += 1
            print(f"message {printable(stored.message.id)}: {error}", file=sys.stderr)
            for entry in stored.entries:
                _put(self.damaged, entry.as_dict())
            return
        self.tally.saved += 1
        message_id = await self._free_id(stored.message.id)
        held = [entry for entry in waiting if entry.state is State.HELD]
        others = [entry for entry in waiting if entry.state is not State.HELD]
        for entries, suffix in ((others, ""), (held, "-held" if others else "")):
            if entries:
                _put(self.batch, _line(stored, entries, name, _with(message_id, suffix)))

    async def _write(self, name: str, stored: StoredMessage) -> None:
        path = self.folder / name
        try:
            with _create(path, "xb") as file:
                async with aclosing(stored.message.content.chunks()) as chunks:
                    async for chunk in chunks:
                        await trio.to_thread.run_sync(file.write, chunk)
        except StoreDamagedError:
            # What could be read of it may be of use to somebody, but is no message.
            path.rename(path.with_suffix(".damaged"))
            raise

    async def _free_id(self, name: str) -> str:
        """Return an id that no message of the other processes has in the batch."""
        for other in self.others:
            try:
                page = await other.entries(Selection(message=name), limit=1)
            except StoreError:
                continue
            if page.entries:
                return _with(name, f"-{self.number}")
        return name


def _line(
    stored: StoredMessage, entries: Sequence[Entry], file: str, name: str
) -> Mapping[str, Any]:
    """Return the batch line that queues these recipients of a message again."""
    message, first = stored.message, entries[0]
    addresses = {entry.recipient for entry in entries}
    line: dict[str, Any] = {
        "id": name,
        "sender": first.sender,
        "recipients": [
            _recipient(each) for each in message.recipients if each.address in addresses
        ],
        "message": file,
        "envid": message.envid,
        "ret": message.ret,
        "require_tls": message.require_tls or None,
        "smtputf8": message.smtputf8 or None,
        "tenant": first.tenant or None,
        "job": first.job or None,
        "priority": first.priority or None,
        "deadline": None if first.deadline is None else timestamp(first.deadline),
        "hold": True if first.state is State.HELD else None,
    }
    if stored.not_before is not None:
        line["not_before"] = timestamp(stored.not_before)
    return {key: value for key, value in line.items() if value is not None}


def _recipient(recipient: Recipient) -> str | dict[str, Any]:
    if not recipient.notify and recipient.orcpt is None:
        return recipient.address
    facts = {
        "address": recipient.address,
        "notify": sorted(recipient.notify) or None,
        "orcpt": recipient.orcpt,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _with(name: str, suffix: str) -> str:
    return name[: MAX_NAME - len(suffix)] + suffix


def _create(path: Path, mode: str = "x") -> IO[Any]:
    encoding = None if "b" in mode else "utf-8"
    file = path.open(mode, encoding=encoding)
    path.chmod(0o600)
    return file


def _put(file: IO[str], record: Mapping[str, Any]) -> None:
    file.write(_ENCODER.encode(record) + "\n")


# ---- check --------------------------------------------------------------------------------------


def check(config_file: str | None) -> int:
    """Run `queue check` and return its exit status."""
    config = read_config(config_file, ())
    if isinstance(config, Exit):
        return config
    return trio.run(_check, config)


async def _check(config: Config) -> int:
    status: int = Exit.DELIVERED
    for number in range(1, config.worker.processes + 1):
        file = shard_file(config.folder, config.queue.path, number)
        problems = 0
        try:
            async with open_store(file, is_read_only=True) as store:
                async with aclosing(store.check()) as found:
                    async for problem in found:
                        problems += 1
                        print(f"{file}: {printable(problem)}")
        except StoreError as error:
            status = tell(error)
            continue
        if problems:
            status = Exit.IO_ERROR
        else:
            print(f"{file}: in good order")
    return status
