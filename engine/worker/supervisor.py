"""The parent of several worker processes: starts them, watches them, starts them again.

To its children it is what systemd is to it: they say to it that they are ready and alive
(`engine.worker.notify`), it passes signals on to them and says to systemd how all of them are.  They
stand in process groups of their own, so that a terminal's Ctrl-C reaches them through it alone, and
hold a pipe of it, whose end is the end of the parent: then they stop, too.
Not here: anything about mail.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from engine.nursery import tasks_beside
from engine.worker.notify import listen
from engine.worker.refusals import REFUSALS, RunExit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engine.worker.forked import Forked
    from engine.worker.notify import Listener, Notifier

#: Before a child that ended is started again, in seconds: at first, and at most.
FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 60.0
#: One that worked for so long ended for a new reason.
_GOOD_SECONDS: Final = 60.0
#: Children that are told to end and do not are killed so long after their own time is over.
_PATIENCE: Final = 30.0
#: How often pings of children are looked for, in parts of the time in which one is needed.
_LOOKS: Final = 4
#: For children that must go because we do, in seconds.
_KILL_SECONDS: Final = 5.0

_log = logging.getLogger("engine.worker")


@dataclass(slots=True)
class _Child:
    """One process; the next one in its place is another."""

    shard: int
    process: Forked | trio.Process
    heard_at: float
    is_ready: bool = False
    has_worked: bool = False

    def __str__(self) -> str:
        return f"process {self.shard} (pid {self.process.pid})"


@dataclass(slots=True)
class Supervisor:
    """Keeps children running, one for each shard; `run` does it.

    Attributes:
        command: The command line of the child for a shard, from 1.
        count: How many there are.
        notifier: Who is told how we are.
        on_ready: Called when all work for the first time.
        drain_timeout: How long children may take to end when they are told to, in seconds.
        is_finite: Whether a child that ends with status 0 is done, and one whose store is damaged.
        forked: Children that wait to begin, by shard; those that begin are taken out.
    """

    command: Callable[[int], Sequence[str]]
    count: int
    notifier: Notifier
    on_ready: Callable[[], None]
    drain_timeout: float
    is_finite: bool = False
    forked: dict[int, Forked] = field(default_factory=dict)
    _children: dict[int, _Child] = field(default_factory=dict)
    _waiting_for: set[int] = field(default_factory=set)
    _statuses: dict[int, int] = field(default_factory=dict)
    _ending: trio.Event = field(default_factory=trio.Event)
    _has_been_ready: bool = False

    async def run(self) -> int:
        """Run until all have ended, because they were told to or are done.

        Cancelled, it kills them.

        Returns:
            The exit status: 0 if all ended well, else that of the first that did not.
        """
        self._waiting_for = set(range(1, self.count + 1))
        async with tasks_beside() as nursery:
            nursery.start_soon(self.notifier.keep_alive, trio.lowlevel.checkpoint)
            nursery.start_soon(self._limit_end)
            async with trio.open_nursery() as children:
                for shard in range(1, self.count + 1):
                    children.start_soon(self._keep, shard, name=f"shard {shard}")
        return worst(self._statuses.values())

    # -- signals

    def drain(self) -> None:
        """Tell all to finish what is in flight and end."""
        _log.info("ending: %d processes finish what is in flight; again: at once", self.count)
        self._end()

    def stop(self) -> None:
        """Tell all to end now."""
        _log.info("ending at once")
        self._end()

    def _end(self) -> None:
        self.notifier.stopping(f"{len(self._children)} processes are ending")
        self._ending.set()
        self._pass_on(signal.SIGTERM, self._children.values())

    def reload(self) -> None:
        """Tell all to read the configuration again; those that begin just now do that anyway."""
        self.notifier.reloading()
        ready = [child for child in self._children.values() if child.is_ready]
        for child in ready:
            child.is_ready = False
            self._waiting_for.add(child.shard)
        self._pass_on(signal.SIGHUP, ready)

    def tell(self) -> None:
        """Say who is at work, and have those say how it goes; one that begins does not hear yet."""
        working = [child for _, child in sorted(self._children.items()) if child.has_worked]
        who = ", ".join(map(str, working)) or "none"
        _log.info("%d of %d processes are at work: %s", len(working), self.count, who)
        self._pass_on(signal.SIGUSR1, working)

    def _pass_on(self, number: int, children: Iterable[_Child]) -> None:
        for child in children:
            child.process.send_signal(number)

    # -- children

    async def _keep(self, shard: int) -> None:
        """Have a process for a shard until it is done, or all are to end."""
        pause = FIRST_PAUSE
        while True:
            started = trio.current_time()
            child = await self._run_child(shard)
            code = child.process.returncode
            assert code is not None
            if self._ending.is_set():
                # One that does not hear it yet, or not any more, has nothing to finish.
                self._statuses[shard] = 0 if code == -signal.SIGTERM else code
                return
            if self.is_finite and code == 0:
                self._statuses[shard] = 0
                self._note_ready(shard)
                return
            if self.is_finite and code == RunExit.NO_INPUT and self._has_been_ready:
                # Its store does not mend by itself.
                _log.error("%s %s; the others go on", child, describe_end(code))
                self._statuses[shard] = code
                self._note_ready(shard)
                return
            if code in REFUSALS and not self._has_been_ready:
                _log.error("%s refuses to work, so all end", child)
                self._statuses[shard] = code
                self._end()
                return
            if trio.current_time() - started >= _GOOD_SECONDS:
                pause = FIRST_PAUSE
            _log.error("%s %s; another one starts in %g s", child, describe_end(code), pause)
            with trio.move_on_after(pause):
                await self._ending.wait()
            if self._ending.is_set():
                self._statuses[shard] = 0
                return
            pause = min(2 * pause, LAST_PAUSE)

    async def _run_child(self, shard: int) -> _Child:
        self._waiting_for.add(shard)
        seconds = self.notifier.watchdog_seconds
        with listen() as listener:
            process = await self._begin(shard, os.environ | listener.environment(seconds))
            child = self._children[shard] = _Child(shard, process, trio.current_time())
            try:
                if self._ending.is_set():
                    process.send_signal(signal.SIGTERM)
                async with tasks_beside() as nursery:
                    nursery.start_soon(self._hear, child, listener)
                    if seconds is not None:
                        nursery.start_soon(self._watch, child, seconds)
                    await process.wait()
            finally:
                del self._children[shard]
                await _bury(process)
        return child

    async def _begin(self, shard: int, environment: Mapping[str, str]) -> Forked | trio.Process:
        forked = self.forked.pop(shard, None)
        if forked is not None:
            await forked.begin(environment)
            return forked
        return await trio.lowlevel.open_process(
            self.command(shard),
            # Nothing more ever comes through it.
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            process_group=0,
        )

    async def _hear(self, child: _Child, listener: Listener) -> None:
        while True:
            word = await listener.hear()
            if word.pid != child.process.pid:
                continue
            child.heard_at = trio.current_time()
            if "RELOADING" in word.fields:
                child.is_ready = False
                self._waiting_for.add(child.shard)
            if "READY" in word.fields:
                child.is_ready = child.has_worked = True
                self._note_ready(child.shard)

    def _note_ready(self, shard: int) -> None:
        self._waiting_for.discard(shard)
        if self._waiting_for or self._ending.is_set():
            return
        if not self._has_been_ready:
            self._has_been_ready = True
            self.on_ready()
        self.notifier.ready(f"{self.count} processes")

    async def _watch(self, child: _Child, seconds: float) -> None:
        """Kill a child that works and does not ping."""
        while True:
            await trio.sleep(seconds / _LOOKS)
            silence = trio.current_time() - child.heard_at
            if child.has_worked and silence > seconds:
                _log.error("%s has given no sign of life for %.0f s: it is killed", child, silence)
                child.process.send_signal(signal.SIGABRT)
                await trio.sleep(_KILL_SECONDS)
                child.process.send_signal(signal.SIGKILL)

    async def _limit_end(self) -> None:
        await self._ending.wait()
        await trio.sleep(self.drain_timeout + _PATIENCE)
        for child in self._children.values():
            _log.error("%s does not end: it is killed", child)
            child.process.send_signal(signal.SIGKILL)


async def _bury(process: Forked | trio.Process) -> None:
    """See to it that a process is gone; it is unless we were cancelled."""
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
        with trio.move_on_after(_KILL_SECONDS, shield=True):
            await process.wait()
    if process.stdin is not None:
        await process.stdin.aclose()


def describe_end(returncode: int) -> str:
    """Say how a process ended, of what waiting for it gave."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def worst(returncodes: Iterable[int]) -> int:
    """Return the exit status for several processes: 0 if all say that, else the first that differs."""
    for code in returncodes:
        if code:
            return code if code > 0 else 128 - code
    return 0


async def wait_for_parent_to_go(descriptor: int = 0) -> None:
    """Wait until the supervisor that started us is gone, however it ended.

    Args:
        descriptor: Our end of its pipe; it is closed afterwards, or when this is cancelled.
    """
    async with trio.lowlevel.FdStream(descriptor) as pipe:
        while await pipe.receive_some():
            pass
