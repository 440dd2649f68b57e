"""Run `send` inside a test, with files for standard output and standard error."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.worker.config import load_config
from engine.worker.hosts import read_hosts
from engine.worker.run import Manner
from engine.worker.send import SendOptions, deliver
from tests.worker.commands import Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    Send = Callable[..., Awaitable["Result"]]


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def statuses(self) -> dict[str, str]:
        return {record["recipient"]: record["status"] for record in self.records}


@dataclass(frozen=True)
class Files:
    """Where a run that goes on writes to; made before it starts, so it can be looked at."""

    out: Path
    err: Path

    @contextmanager
    def open(self, manner: Manner) -> Iterator[Manner]:
        out = os.open(self.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        err = os.open(self.err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            yield replace(manner, stdout=out, stderr=err)
        finally:
            os.close(out)
            os.close(err)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "stdout", tmp_path / "stderr")
    found.out.touch()
    found.err.touch()
    return found


@pytest.fixture
def send(files: Files) -> Send:
    """Run `send` with options; by default JSON without log lines."""

    async def run(
        *recipients: str,
        sender: str | None = None,
        message: Path | str | None = None,
        batch: Path | str | None = None,
        port: int | None = None,
        sets: tuple[str, ...] = (),
        config: Path | None = None,
        **manner: Any,
    ) -> Result:
        hosts = () if port is None else (f"127.0.0.1:{port}",)
        with files.open(Manner(**{"as_json": True, "log": "off"} | manner)) as full:
            options = SendOptions(
                recipients,
                sender,
                None if message is None else str(message),
                None if batch is None else str(batch),
                manner=full,
            )
            settings = load_config(config, sets)
            status = await deliver(options, settings, read_hosts(hosts) or settings.routes)
        return Result(status, files.out.read_text(), files.err.read_text())

    return run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with a configuration, for a queue."""
    return Place(tmp_path)
