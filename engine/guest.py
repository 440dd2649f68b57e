"""Trio as the guest of an asyncio loop: one run for whatever that loop hosts.

Used by `engine.aio`.  Trio allows one run a thread, so the engines of a loop share one; it begins with
the first of them and ends with the last.  Where Trio waits for I/O it does so in one of its cached
threads, and everything else happens between the steps of asyncio's tasks.  Not here: engines.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True, eq=False)
class Tenant:
    """What a guest run hosts.

    Attributes:
        run: A function of Trio's; the tenant is there until it returns.
        cancel: Called to make it return soon.
        abandon: Called with Trio's own error, where that has ended `run` without further ado.
    """

    run: Callable[[], Awaitable[None]]
    cancel: Callable[[], None]
    abandon: Callable[[Exception], None]


class _Result(Protocol):
    """What Trio says of a run that is over."""

    def unwrap(self) -> object:
        """Return what it returned, or raise what it raised."""
        ...


class Guest:
    """A run of Trio over one asyncio loop, for as long as it has tenants; `find_guest` has it.

    A loop that ends with tenants still there, as `asyncio.run` does, cancels its tasks, and ours
    among them; then the tenants are cancelled, and the loop waits for them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start it; belongs to the loop's thread.

        Raises:
            RuntimeError: Trio runs in this thread already.
        """
        self.loop = loop
        self._tenants: set[Tenant] = set()
        self._nursery: trio.Nursery | None = None
        self._is_empty = trio.Event()
        self._over = loop.create_future()
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=loop.call_soon,
            done_callback=self._done,
            # Not always, but whoever adds a signal handler to the loop makes it so.
            host_uses_signal_set_wakeup_fd=True,
            # Where Trio handles it at all: in `_main`, not in the middle of a delivery.
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
        _GUEST.set(self)
        self._keeper = loop.create_task(see_through(self._over, self._cancel), name="trio guest")

    @property
    def is_ending(self) -> bool:
        """Whether the last tenant has gone, so that no other can come."""
        return self._is_empty.is_set() or self._over.done()

    def host(self, tenant: Tenant) -> None:
        """Take a tenant in; one that is cancelled leaves as soon as it can."""
        self._tenants.add(tenant)
        if self._nursery is not None:
            self._nursery.start_soon(self._host, tenant)

    async def wait_over(self) -> None:
        """Wait until the run is over and nothing of it is left; cancelled, as well."""
        await see_through(self._keeper)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            for tenant in self._tenants:
                nursery.start_soon(self._host, tenant)
            self._nursery = nursery
            await self._is_empty.wait()

    async def _host(self, tenant: Tenant) -> None:
        try:
            await tenant.run()
        finally:
            self._tenants.discard(tenant)
            if not self._tenants:
                self._is_empty.set()

    def _cancel(self) -> None:
        for tenant in self._tenants:
            tenant.cancel()

    def _done(self, result: _Result) -> None:
        self._over.set_result(None)
        try:
            result.unwrap()
        except Exception as error:  # noqa: BLE001 - Trio's own, and the tenants tell it
            for tenant in tuple(self._tenants):
                tenant.abandon(error)
        except BaseExceptionGroup as errors:
            # Leaves through the loop, as from any callback of asyncio's, which knows no groups.
            if errors.subgroup(KeyboardInterrupt) is not None:
                raise KeyboardInterrupt from errors
            raise


#: Kept with Trio's run, so that loops and threads cannot be mixed up.
_GUEST: Final[trio.lowlevel.RunVar[Guest | None]] = trio.lowlevel.RunVar("guest", default=None)


async def find_guest() -> Guest:
    """Return the guest of this loop, and start it if there is none; waits for one that is ending.

    Whoever calls it has it host a tenant at once, before anything else is awaited.

    Raises:
        RuntimeError: Trio runs in this thread already, and not as the guest of this loop.
    """
    loop = asyncio.get_running_loop()
    while trio.lowlevel.in_trio_run():
        guest = _GUEST.get()
        if guest is None or guest.loop is not loop:
            raise RuntimeError(
                "Trio runs in this thread already, and not for this loop; use engine.Engine there"
            )
        if not guest.is_ending:
            return guest
        await guest.wait_over()
    return Guest(loop)


async def see_through(
    future: asyncio.Future[Any], on_cancel: Callable[[], None] | None = None
) -> None:
    """Wait until a future is done, whatever happens; cancelled meanwhile, raise that behind it.

    Args:
        future: It; what it raises is not raised here.
        on_cancel: Called when cancelled, to hurry things up.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if on_cancel is not None:
                on_cancel()
    if cancelled is not None:
        raise cancelled
