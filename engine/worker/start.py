"""The command `run`: a worker, or the parent of several.

Called by the command line with options that were understood.  Not here: what a worker does
(`engine.worker.service`), and how several are kept running (`engine.worker.supervisor`).
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from engine.errors import ConfigError, EngineError
from engine.nursery import tasks_beside
from engine.queue.errors import StoreDamagedError
from engine.worker.config import load_config
from engine.worker.exits import Exit
from engine.worker.forked import fork, name_process
from engine.worker.given import read_config
from engine.worker.lock import hold_lock
from engine.worker.notify import Notifier
from engine.worker.output import open_output
from engine.worker.process_log import ProcessLog
from engine.worker.refusals import RunExit, explain_refusal
from engine.worker.service import Manner, Service
from engine.worker.share import Share, files_of, stranded
from engine.worker.signals import heed_signals
from engine.worker.supervisor import Supervisor, wait_for_parent_to_go

if TYPE_CHECKING:
    from engine.worker.config import Config
    from engine.worker.forked import Forked

#: A process whose parent was killed may take so long to leave its store to another, in seconds.
_PATIENCE: Final = 15.0

_STDERR: Final = 2

_log = logging.getLogger("engine.worker")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `run`, as `engine.worker.cli` describes them.

    Attributes:
        config: The configuration file.
        sets: `KEY=VALUE` over the configuration's defaults.
        until_empty: Whether it ends when nothing is left to do.
        share: Which process of several this is; `None`: it was not started by a parent.
    """

    config: str
    sets: tuple[str, ...] = ()
    until_empty: bool = False
    share: Share | None = None


def run_worker(options: RunOptions) -> int:
    """Run `run` and return its exit status."""
    config = read_config(options.config, options.sets)
    if isinstance(config, Exit):
        return config
    children: dict[int, Forked] = {}
    if options.share is None and (count := config.worker.processes) > 1:
        number, children = fork(count)
        if number:
            options = replace(options, share=Share(number, count))
    if options.share is not None:
        # One that was forked has the command line of its parent.
        name_process(f"engine {options.share}")
    try:
        return trio.run(_run, options, config, children)
    finally:
        for child in children.values():
            child.dismiss()


async def _run(options: RunOptions, config: Config, children: dict[int, Forked]) -> int:
    async with open_output(_STDERR) as stderr:
        log = ProcessLog(stderr, config.worker.log)
        with log.hear_modules():
            return await _Starter(options, config, log, children).run()


class _Starter:
    """What both kinds of processes begin and end with."""

    def __init__(
        self,
        options: RunOptions,
        config: Config,
        log: ProcessLog,
        children: dict[int, Forked],
    ) -> None:
        self._options = options
        self._config = config
        self._log = log
        self._children = children
        self._notifier = Notifier.from_environment()
        self._is_ready = False

    async def run(self) -> int:
        try:
            if self._options.share is not None:
                return await self._work_for_parent(self._options.share)
            if problems := await stranded(self._config):
                raise ConfigError(*problems)
            if self._config.worker.processes == 1:
                return await self._work(Share())
            return await self._supervise()
        except (EngineError, OSError) as error:
            status, text = explain_refusal(error)
            for line in text.splitlines():
                # Later on it is none of the reasons that were foreseen, but for one.
                is_foreseen = not self._is_ready or isinstance(error, StoreDamagedError)
                _log.error("%s", line, exc_info=not is_foreseen)
            return status

    async def _work(self, share: Share, *, patience: float = 0.0) -> int:
        service = self._service(share, patience)
        await service.run()
        return RunExit.ENDED

    async def _work_for_parent(self, share: Share) -> int:
        service = self._service(share, _PATIENCE)

        async def end_with_parent() -> None:
            await wait_for_parent_to_go()
            _log.error("the parent is gone")
            service.stop()

        async with tasks_beside() as beside:
            beside.start_soon(end_with_parent)
            await service.run()
        return RunExit.ENDED

    def _service(self, share: Share, patience: float) -> Service:
        options = self._options
        manner = Manner(
            read_config=partial(load_config, Path(options.config), options.sets),
            share=share,
            until_empty=options.until_empty,
            patience=patience,
        )
        return Service(self._config, manner, self._log, self._notifier, self._say_ready)

    async def _supervise(self) -> int:
        config, count = self._config, self._config.worker.processes
        store = files_of(config).store
        supervisor = Supervisor(
            command=self._command_of_child,
            count=count,
            notifier=self._notifier,
            on_ready=lambda: self._say_ready(f"{count} processes, store {store} and others"),
            drain_timeout=config.worker.drain_timeout,
            is_finite=self._options.until_empty,
            forked=self._children,
        )
        # Each child locks its own store; this lock keeps two parents from each other.
        with hold_lock(store.with_name(f"{store.name}.parent")):
            async with tasks_beside() as beside:
                await beside.start(heed_signals, supervisor)
                return await supervisor.run()

    def _command_of_child(self, number: int) -> list[str]:
        options = self._options
        share = Share(number, self._config.worker.processes)
        command = [sys.executable, "-m", "engine", "run", "--config", options.config]
        command += ["--share", str(share)]
        for each in options.sets:
            command += ["--set", each]
        return command + ["--until-empty"] * options.until_empty

    def _say_ready(self, text: str) -> None:
        self._is_ready = True
        # Nobody may be reading it.
        with suppress(OSError):
            print(f"ready: {text}", flush=True)
