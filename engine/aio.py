"""The engine for asyncio: Trio runs as a guest of its loop.

    async with Engine() as engine:
        for outcome in await engine.send(message):
            print(outcome.recipient, outcome.status)

Not here: what an engine does (`engine.engine`), which outcome goes to whom (`engine.hosted`), and how
Trio runs (`engine.guest`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from engine import content
from engine import engine as native
from engine.calls import Call
from engine.errors import EngineClosedError, EngineFailedError
from engine.guest import Guest, Tenant, find_guest, see_through
from engine.hosted import HostedEngine
from engine.signature import takes_arguments_of

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from types import TracebackType

    from engine.callout import Verification
    from engine.hosted import Told
    from engine.message import Content, Message
    from engine.outcome import Outcome
    from engine.report.events import Event
    from engine.report.statistics import Statistics

__all__ = ["Engine", "EngineFailedError", "Outcomes"]

_T = TypeVar("_T")
_E = TypeVar("_E", bound="Event")


class Engine:
    """Delivers messages over an asyncio loop; an async context manager.

    It takes what `engine.Engine` takes, and does the same.  Leaving the block normally drains:
    everything submitted is delivered or given up first.  An exception in it, or a cancellation,
    stops at once: what was not sent is `deferred` with cause `cancelled`, a content that has left
    is waited for `grace` seconds.  Either way each recipient has exactly one outcome: with the
    `send` that waits for it, else in `outcomes`, also after the block.

    `max_in_flight` bounds twice: recipients inside the engine, and outcomes of `submit` that
    nobody has read; `submit` waits for both, `send` for the first.

    A call that is cancelled is withdrawn before it raises: a message that still waited was not
    taken.  asyncio can cancel a call that has just succeeded; then the message was taken, and its
    outcomes are in `outcomes`.  With `timeout=` there is no such doubt.

    An engine that fails by a bug raises `EngineFailedError` in whoever calls or waits.  An engine
    belongs to the loop it was opened in, and a loop may have several.

    With `store=open_store(path)` (not entered: the engine opens it, and closes it) `submit` returns
    when the message is on disk, and waits for nobody who reads.  Leaving the block finishes what is
    being tried; the rest stays on disk, for whoever opens the store next.  `outcomes` has one for
    each attempt; once somebody has begun to read them the queue waits for who reads, and as long as
    nobody has, those that are too many go to the log.

    Attributes:
        outcomes: One `Outcome` for each recipient of `submit`, as each becomes known; of `send`
            those that nobody waits for any more.
    """

    @takes_arguments_of(native.Engine.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make an engine; it runs inside its `async with` block, or from `open` to `close`.

        Args:
            *args: As for `engine.Engine`.
            **kwargs: As for `engine.Engine`.  What is called back runs in the loop's thread.

        Raises:
            ConfigError: Settings or routes cannot be used.
            TypeError: An argument is of another type.
            ValueError: As for `engine.Engine`.
        """
        stream: asyncio.Queue[Told | None] = asyncio.Queue()  # bounded by seats
        self._hosted = HostedEngine(native.Engine(*args, **kwargs), stream.put_nowait, kwargs)
        self.outcomes = Outcomes(
            stream,
            begin=self._hosted.note_reader,
            taken=self._hosted.taken,
            error=self._hosted.error,
        )
        self._calls: set[Call[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guest: Guest | None = None
        # Both are the loop's, and made when there is one.
        self._opened: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] | None = None

    # -- life -------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Start the engine; what the `async with` statement calls.  Cancelled, it has stopped.

        Raises:
            ConfigError: A file that settings name cannot be used.
            RuntimeError: It was opened before, there is no loop, or Trio runs in this thread already.
            StoreError: The store cannot be opened.
        """
        if self._loop is not None:
            raise RuntimeError("an Engine can be opened once")
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "no loop of asyncio runs here; for Trio there is engine.Engine, and for plain code "
                "engine.blocking.Engine"
            ) from None
        self._opened, self._over = self._loop.create_future(), self._loop.create_future()
        try:
            self._guest = await find_guest()
        except BaseException:
            self._finish()
            raise
        self._guest.host(Tenant(self._run, self._hosted.cancel, self._abandon))
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self._stop(self._hosted.cancel)
            raise
        return self

    async def close(self, timeout: float | None = None) -> bool:
        """Drain, then end; closing twice is no error.  Cancelled, it stops at once, and waits.

        Args:
            timeout: Seconds after which the rest is cancelled; `None` waits for all.

        Returns:
            Whether everything was finished in time.

        Raises:
            EngineFailedError: The engine has failed.
        """
        if self._over is None:
            return True
        is_finished = True
        try:
            if timeout is not None and not self._over.done():
                is_finished = await self.drain(timeout)
        except EngineClosedError:
            pass  # somebody else has closed it meanwhile
        except BaseException:
            await self._stop(self._hosted.cancel)
            raise
        await self._stop(self._hosted.leave)
        if self._hosted.failure is not None:
            raise self._hosted.error()
        return is_finished

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.close()
        else:
            await self._stop(self._hosted.cancel)

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no more messages, finish what is in flight; then `outcomes` ends.

        Args:
            timeout: Seconds after which the rest is cancelled; `None` waits for all.

        Returns:
            Whether everything was finished in time.

        Raises:
            EngineClosedError: The engine is not open.
            EngineFailedError: The engine has failed.
        """
        return await self._call(self._hosted.drain, timeout)

    def cancel(self) -> None:
        """Stop at once, and do not wait for it; the block, or `close`, does."""
        self._hosted.cancel()

    async def _stop(self, how: Callable[[], None]) -> None:
        """Make the engine end, and wait for it; cancelled, make it quick."""
        assert self._over is not None
        how()
        try:
            await see_through(self._over, self._hosted.cancel)
        finally:
            if self._guest is not None and self._guest.is_ending:
                await self._guest.wait_over()

    async def _run(self) -> None:
        """What Trio runs."""
        try:
            await self._hosted.run(self._note_open)
        finally:
            self._finish()

    def _note_open(self) -> None:
        assert self._opened is not None
        self._opened.set_result(None)

    def _abandon(self, error: Exception) -> None:
        self._hosted.abandon(error)
        self._finish()

    def _finish(self) -> None:
        for call in tuple(self._calls):
            call.fail(self._hosted.error())
        assert self._opened is not None
        assert self._over is not None
        if not self._opened.done():
            self._opened.set_exception(self._hosted.refusal or self._hosted.error())
        if not self._over.done():
            self._over.set_result(None)

    # -- messages ---------------------------------------------------------------------------

    async def submit(self, message: Message, timeout: float | None = None) -> str:
        """Take a message for delivery; waits while the engine is full.

        Its outcomes come out of `outcomes`.  A message without an `id` gets a number.

        Args:
            message: It.
            timeout: Seconds to wait for room; `None` waits as long as it takes, 0 not at all.

        Returns:
            The message's id.

        Raises:
            EngineClosedError: The engine is draining or closed.
            EngineFailedError: The engine has failed.
            StoreError: The store has not taken it.
            SubmitError: A `send` waits for a message of that id, or the store cannot keep it.
            TimeoutError: There was no room, and it was not taken; a store may have it all the same.
            TypeError: It is no message.
            ValueError: The timeout is below 0.
        """
        return await self._call(self._hosted.submit, message, timeout)

    async def send(self, message: Message, timeout: float | None = None) -> list[Outcome]:
        """Deliver a message and return its outcomes, one a recipient.

        Cancelled, a message that was taken is delivered all the same, and its outcomes come out of
        `outcomes`.

        With a store they are those of the first attempt (with `QueueOptions.only_final`, of the last),
        and the message must have no id.  The engine must then be alone at its store: what another one
        delivers has its outcomes there, and is waited for in vain.

        Args:
            message: It.
            timeout: Seconds to wait; then it is as if cancelled.

        Raises:
            EngineClosedError: The engine is draining or closed; the message was not taken.
            EngineFailedError: The engine has failed.
            StoreError: The store has not taken it.
            SubmitError: A message of that id is in flight; with a store, it has an id.
            TimeoutError: They were not known in time.
            TypeError: It is no message.
            ValueError: The timeout is below 0; or outcomes go to `QueueOptions.on_settled`.
        """
        return await self._call(self._hosted.send, message, timeout, lost=self._hosted.keep)

    async def from_file(self, path: str | os.PathLike[str]) -> Content:
        """Make a content of a file, as `engine.from_file` does; its errors are raised here.

        Raises:
            EngineClosedError: The engine is not open.
        """
        return await self._call(content.from_file, path)

    async def wait_empty(self) -> None:
        """Wait until everybody in the store is done with, or held, as `engine.Engine` does.

        Raises:
            EngineClosedError: The engine is not open, or was closed meanwhile.
            EngineFailedError: The engine has failed.
            ValueError: There is no store.
        """
        await self._call(self._hosted.wait_empty)

    async def verify(
        self,
        addresses: Sequence[str],
        *,
        sender: str = "",
        catch_all: bool = False,
        fresh: bool = False,
    ) -> list[Verification]:
        """Ask whether addresses would be taken, without sending anything, as `engine.Engine` does.

        Raises:
            AddressSyntaxError: One of them is no mailbox; nothing was asked.
            EngineClosedError: The engine is draining or closed.
            EngineFailedError: The engine has failed.
        """
        verify = partial(self._hosted.verify, catch_all=catch_all, fresh=fresh)
        return await self._call(verify, addresses, sender)

    async def _call(
        self,
        function: Callable[..., Awaitable[_T]],
        *arguments: Any,
        lost: Callable[[_T], None] | None = None,
    ) -> _T:
        """Await a function of Trio's; cancelled, it is cancelled there first.

        Args:
            function: It.
            *arguments: Its arguments.
            lost: Called with a result that came too late to be returned.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError("this engine was opened in another loop, and belongs there")
        future: asyncio.Future[_T] = loop.create_future()
        call = Call(future, function, *arguments)
        self._calls.add(call)
        self._hosted.begin(call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            call.cancel()
            try:
                await see_through(future)
            finally:
                if future.exception() is None and lost is not None:
                    lost(future.result())
            raise
        finally:
            self._calls.discard(call)

    # -- what is seen of it -----------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Return the numbers of this moment."""
        return self._hosted.engine.statistics()

    @overload
    def watch(self, callback: Callable[[Event], object]) -> None: ...
    @overload
    def watch(
        self, callback: Callable[[_E], object], kind: type[_E], /, *kinds: type[_E]
    ) -> None: ...
    def watch(self, callback: Callable[[Any], object], *kinds: Any) -> None:
        """Call `callback` with each event, in the loop's thread: it must be quick.

        Args:
            callback: As for `engine.Engine.events.watch`.
            *kinds: Classes of events; none: all.

        Raises:
            TypeError: It cannot be called, or would have to be awaited; or a kind is none.
            trio.ClosedResourceError: The engine has ended.
        """
        self._hosted.engine.events.watch(callback, *kinds)

    def unwatch(self, callback: Callable[[Any], object]) -> None:
        """Stop calling `callback`; no error where it is not known."""
        self._hosted.engine.events.unwatch(callback)


class Outcomes:
    """The outcomes of an engine; an asynchronous iterable that any number of tasks may share.

    It ends when the engine has drained and all were taken; where the engine has failed, with
    `EngineFailedError`.  Taking an outcome makes room for `submit`.
    """

    def __init__(
        self,
        stream: asyncio.Queue[Told | None],
        *,
        begin: Callable[[], None],
        taken: Callable[[Told], None],
        error: Callable[[], Exception],
    ) -> None:
        self._stream = stream
        self._begin = begin
        self._taken = taken
        self._error = error

    async def receive(self) -> Outcome:
        """Return the next outcome, waiting for it.  Cancelled, none was taken.

        Raises:
            EngineClosedError: There will be none any more.
            EngineFailedError: There will be none any more, for the engine has failed.
        """
        self._begin()
        while (told := await self._stream.get()) is None:
            self._stream.put_nowait(None)  # for the others who wait
            if self._stream.qsize() == 1:
                raise self._error()
        self._taken(told)
        return told.outcome

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        try:
            return await self.receive()
        except EngineClosedError:
            raise StopAsyncIteration from None
