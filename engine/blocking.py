"""The engine for plain synchronous code: Trio runs it in a thread of its own.

    with Engine() as engine:
        for outcome in engine.send(message):
            print(outcome.recipient, outcome.status)

Not here: what an engine does (`engine.engine`), and which outcome goes to whom (`engine.hosted`).
"""

from __future__ import annotations

import atexit
import os
import threading
from concurrent.futures import Future, wait
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

import trio

from engine import content
from engine import engine as native
from engine.calls import Call
from engine.errors import EngineClosedError, EngineFailedError
from engine.hosted import HostedEngine
from engine.signature import takes_arguments_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
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

#: Seconds beyond its grace that an engine left open may hold up the end of the interpreter.
_EXIT_SECONDS: Final = 5.0


class Engine:
    """Delivers messages from a thread of its own; a context manager, for callers in any thread.

    It takes what `engine.Engine` takes, and does the same.  Leaving the block normally drains:
    everything submitted is delivered or given up first.  An exception in it, KeyboardInterrupt
    among them, stops at once: what was not sent is `deferred` with cause `cancelled`, a content
    that has left is waited for `grace` seconds.  Either way each recipient has exactly one
    outcome: with the `send` that waits for it, else in `outcomes`, also after the block.

    `max_in_flight` bounds twice: recipients inside the engine, and outcomes of `submit` that
    nobody has read; `submit` waits for both, `send` for the first.

    An engine that fails by a bug raises `EngineFailedError` in whoever calls or waits.  A call that
    is interrupted (by KeyboardInterrupt, or whatever else a signal handler raises) is withdrawn
    before the exception goes on: a message that still waited was not taken.  If it was, its
    outcomes are in `outcomes`.

    A process made by fork has no such thread: there every call raises RuntimeError.  Open the
    engine behind the fork, in each process its own.  An engine that is still open when the
    interpreter ends is cancelled, and does not hold it up beyond its grace and some seconds.

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
        """Make an engine; it runs inside its `with` block, or from `open` to `close`.

        Args:
            *args: As for `engine.Engine`.
            **kwargs: As for `engine.Engine`.  What is called back runs in the engine's thread.

        Raises:
            ConfigError: Settings or routes cannot be used.
            TypeError: An argument is of another type.
            ValueError: As for `engine.Engine`.
        """
        stream: SimpleQueue[Told | None] = SimpleQueue()
        self._limit: int = kwargs.get("max_in_flight", native.DEFAULT_MAX_IN_FLIGHT)
        self._grace: float = kwargs.get("grace", native.DEFAULT_GRACE)
        self._hosted = HostedEngine(native.Engine(*args, **kwargs), stream.put, kwargs)
        self.outcomes = Outcomes(
            stream,
            check=self._check_caller,
            begin=self._begin_reading,
            taken=self._taken,
            error=self._hosted.error,
        )
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._opened: Future[None] = Future()
        self._over = threading.Event()
        # Reentrant, for a signal handler may call us wherever the main thread is.
        self._lock = threading.RLock()
        # These two are guarded by it.
        self._token: trio.lowlevel.TrioToken | None = None
        self._calls: set[Call[Any]] = set()

    # -- life -------------------------------------------------------------------------------

    def open(self) -> Self:
        """Start the thread and the engine in it; what the `with` statement calls.

        Raises:
            ConfigError: A file that settings name cannot be used.
            RuntimeError: It was opened before.
            StoreError: The store cannot be opened.
        """
        self._check_caller()
        if self._thread is not None:
            raise RuntimeError("an Engine can be opened once")
        # A daemon: the interpreter waits for others before it lets us stop them.
        thread = threading.Thread(target=self._run, name="delivery engine", daemon=True)
        self._process = os.getpid()
        thread.start()
        self._thread = thread
        atexit.register(self._stop_at_exit)
        try:
            self._opened.result()
        except BaseException:
            wait([self._opened])  # before that it could not be told to stop
            self._stop(self._hosted.cancel)
            raise
        return self

    def close(self, timeout: float | None = None) -> bool:
        """Drain, then end the thread; closing twice is no error.  Interrupted, it stops at once.

        Args:
            timeout: Seconds after which the rest is cancelled; `None` waits for all.

        Returns:
            Whether everything was finished in time.

        Raises:
            EngineFailedError: The engine has failed.
        """
        if self._thread is None or self._is_forked:
            return True
        is_finished = True
        try:
            if timeout is not None and not self._over.is_set():
                is_finished = self.drain(timeout)
        except EngineClosedError:
            pass  # somebody else has closed it meanwhile
        except BaseException:
            self._stop(self._hosted.cancel)
            raise
        self._stop(self._hosted.leave)
        if self._hosted.failure is not None:
            raise self._hosted.error()
        return is_finished

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif not self._is_forked:
            self._stop(self._hosted.cancel)

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more messages, finish what is in flight; then `outcomes` ends.

        Args:
            timeout: Seconds after which the rest is cancelled; `None` waits for all.

        Returns:
            Whether everything was finished in time.

        Raises:
            EngineClosedError: The engine is not open.
            EngineFailedError: The engine has failed.
        """
        return self._call(self._hosted.drain, timeout)

    def cancel(self) -> None:
        """Stop at once, and do not wait for it; the block, or `close`, does."""
        self._check_process()
        self._soon(self._hosted.cancel)

    def _stop(self, how: Callable[[], None]) -> None:
        """Make the engine end, and wait for its thread."""
        self._check_caller()
        self._soon(how)
        try:
            self._over.wait()
        except BaseException:
            self._soon(self._hosted.cancel)
            self._over.wait()
            raise
        finally:
            atexit.unregister(self._stop_at_exit)
        assert self._thread is not None
        self._thread.join()

    def _stop_at_exit(self) -> None:
        if not self._is_forked:
            self._soon(self._hosted.cancel)
            self._over.wait(min(self._grace + _EXIT_SECONDS, threading.TIMEOUT_MAX))

    def _run(self) -> None:
        """What the thread does."""
        try:
            trio.run(self._main)
        except Exception as error:  # noqa: BLE001 - Trio's own, and told to every caller
            self._hosted.abandon(error)
        finally:
            with self._lock:
                self._token = None
                calls = tuple(self._calls)
            for call in calls:
                call.fail(self._hosted.error())
            if not self._opened.done():
                self._opened.set_exception(self._hosted.refusal or self._hosted.error())
            self._over.set()

    async def _main(self) -> None:
        token = trio.lowlevel.current_trio_token()

        def opened() -> None:
            with self._lock:
                self._token = token
            self._opened.set_result(None)

        await self._hosted.run(opened)

    # -- messages ---------------------------------------------------------------------------

    def submit(self, message: Message, timeout: float | None = None) -> str:
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
        return self._call(self._hosted.submit, message, timeout)

    def send(self, message: Message, timeout: float | None = None) -> list[Outcome]:
        """Deliver a message and return its outcomes, one a recipient.

        With a store they are those of the first attempt (with `QueueOptions.only_final`, of the last),
        and the message must have no id.  The engine must then be alone at its store: what another one
        delivers has its outcomes there, and is waited for in vain.

        Args:
            message: It.
            timeout: Seconds to wait; a message that was taken is delivered all the same, and its
                outcomes come out of `outcomes`.

        Raises:
            EngineClosedError: The engine is draining or closed; the message was not taken.
            EngineFailedError: The engine has failed.
            StoreError: The store has not taken it.
            SubmitError: A message of that id is in flight; with a store, it has an id.
            TimeoutError: They were not known in time.
            TypeError: It is no message.
            ValueError: The timeout is below 0; or outcomes go to `QueueOptions.on_settled`.
        """
        return self._call(self._hosted.send, message, timeout, lost=self._hosted.keep)

    def send_many(self, messages: Iterable[Message]) -> Iterator[Outcome]:
        """Deliver messages, and yield their outcomes as each becomes known.

        The messages are asked for as there is room for them, so there may be any number, and a
        single thread can send them.  The outcomes of one that is left early come out of `outcomes`.
        With a store it is as for `send`.

        Raises:
            EngineClosedError: The engine is draining or closed.
            EngineFailedError: The engine has failed.
            StoreError: The store has not taken one.
            SubmitError: A message of that id is in flight; with a store, one has an id.
            TypeError: Something is no message.
            ValueError: Outcomes go to `QueueOptions.on_settled`.
        """
        window = _Window()
        left = 0
        try:
            for message in messages:
                self._call(self._hosted.submit_for, message, window)
                left += len(message.recipients)
                while left and (left >= self._limit or not window.outcomes.empty()):
                    yield self._next(window)
                    left -= 1
            while left:
                yield self._next(window)
                left -= 1
        finally:
            if left and not self._is_forked:
                self._abandon(window)

    def _next(self, window: _Window) -> Outcome:
        outcome = window.outcomes.get()
        if outcome is None:
            raise self._hosted.error()
        return outcome

    def _abandon(self, window: _Window) -> None:
        def release() -> None:
            self._hosted.release(window)  # now no more can come
            found = [window.outcomes.get() for _ in range(window.outcomes.qsize())]
            self._hosted.keep([outcome for outcome in found if outcome is not None])

        if not self._soon(release):
            release()

    def from_file(self, path: str | os.PathLike[str]) -> Content:
        """Make a content of a file, as `engine.from_file` does; its errors are raised here.

        Raises:
            EngineClosedError: The engine is not open.
        """
        return self._call(content.from_file, path)

    def wait_empty(self) -> None:
        """Wait until everybody in the store is done with, or held, as `engine.Engine` does.

        Raises:
            EngineClosedError: The engine is not open, or was closed meanwhile.
            EngineFailedError: The engine has failed.
            ValueError: There is no store.
        """
        self._call(self._hosted.wait_empty)

    def verify(
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
        return self._call(verify, addresses, sender)

    # -- what is seen of it -----------------------------------------------------------------

    def statistics(self) -> Statistics:
        """Return the numbers of this moment."""
        return self._look(self._hosted.engine.statistics)

    @overload
    def watch(self, callback: Callable[[Event], object]) -> None: ...
    @overload
    def watch(
        self, callback: Callable[[_E], object], kind: type[_E], /, *kinds: type[_E]
    ) -> None: ...
    def watch(self, callback: Callable[[Any], object], *kinds: Any) -> None:
        """Call `callback` with each event, in the engine's thread: it must be quick.

        Args:
            callback: As for `engine.Engine.events.watch`.
            *kinds: Classes of events; none: all.

        Raises:
            TypeError: It cannot be called, or would have to be awaited; or a kind is none.
            trio.ClosedResourceError: The engine has ended.
        """
        self._look(self._hosted.engine.events.watch, callback, *kinds)

    def unwatch(self, callback: Callable[[Any], object]) -> None:
        """Stop calling `callback`; no error where it is not known."""
        self._look(self._hosted.engine.events.unwatch, callback)

    def _look(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call what belongs to the engine's thread; without one, any thread will do."""
        if threading.current_thread() is self._thread:
            return function(*arguments)
        try:
            found: _T = self._call(self._hosted.do, function, *arguments)
        except (EngineClosedError, EngineFailedError):
            if self._thread is not None:
                self._over.wait()
            found = function(*arguments)
        return found

    # -- between the threads ----------------------------------------------------------------

    def _call(
        self,
        function: Callable[..., Awaitable[_T]],
        *arguments: Any,
        lost: Callable[[_T], None] | None = None,
    ) -> _T:
        """Await a function in the engine's thread; interrupted, it is cancelled there first.

        Args:
            function: It.
            *arguments: Its arguments.
            lost: Called in that thread with a result that came too late to be returned.
        """
        self._check_caller()
        future: Future[_T] = Future()
        call = Call(future, function, *arguments)
        try:
            self._post(call)
            return future.result()
        except BaseException:
            if call in self._calls and (not future.done() or future.exception() is None):
                self._soon(call.cancel)
                wait([future])
                if lost is not None and future.exception() is None:
                    self._soon(lost, future.result())
            raise
        finally:
            with self._lock:
                self._calls.discard(call)

    def _post(self, call: Call[Any]) -> None:
        with self._lock:  # so the thread, when it ends, knows all whom it owes an answer
            if not self._soon(self._hosted.begin, call):
                raise self._hosted.error()
            self._calls.add(call)

    def _soon(self, function: Callable[..., object], *arguments: object) -> bool:
        """Call a function in the engine's thread, soon; return whether there is one."""
        with self._lock:
            if self._token is None:
                return False
            try:
                self._token.run_sync_soon(function, *arguments)
            except (trio.RunFinishedError, OSError):  # the latter where Trio has crashed
                return False
            return True

    @property
    def _is_forked(self) -> bool:
        return self._process is not None and self._process != os.getpid()

    def _check_process(self) -> None:
        if self._is_forked:
            raise RuntimeError(
                "this engine was opened before the process forked, and its thread is in the other "
                "one; open an engine in each process"
            )

    def _check_caller(self) -> None:
        self._check_process()
        if threading.current_thread() is self._thread:
            raise RuntimeError("called in the engine's own thread, which would wait for itself")

    def _taken(self, told: Told) -> None:
        self._soon(self._hosted.taken, told)

    def _begin_reading(self) -> None:
        if not self._soon(self._hosted.note_reader):
            self._hosted.note_reader()  # it has not begun, or is over


class Outcomes:
    """The outcomes of an engine; an iterator that any number of threads may share.

    It ends when the engine has drained and all were taken; where the engine has failed, with
    `EngineFailedError`.  Taking an outcome makes room for `submit`.
    """

    def __init__(
        self,
        stream: SimpleQueue[Told | None],
        *,
        check: Callable[[], None],
        begin: Callable[[], None],
        taken: Callable[[Told], None],
        error: Callable[[], Exception],
    ) -> None:
        self._stream = stream
        self._check = check
        self._begin = begin
        self._has_begun = False
        self._taken = taken
        self._error = error

    def receive(self, timeout: float | None = None) -> Outcome:
        """Return the next outcome, waiting for it.

        Args:
            timeout: Seconds to wait; `None` waits as long as it takes, 0 not at all.

        Raises:
            EngineClosedError: There will be none any more.
            EngineFailedError: There will be none any more, for the engine has failed.
            TimeoutError: There is none yet.
        """
        self._check()
        if not self._has_begun:
            self._has_begun = True
            self._begin()
        try:
            while (told := self._stream.get(timeout=timeout)) is None:
                self._stream.put(None)  # for the others who wait
                if self._stream.qsize() == 1:
                    raise self._error()
        except Empty:
            raise TimeoutError(f"no outcome within {timeout} s") from None
        self._taken(told)
        return told.outcome

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outcome:
        try:
            return self.receive()
        except EngineClosedError:
            raise StopIteration from None


class _Window:
    """What `send_many` has to yield; a `Collector`, and `None` is its end."""

    def __init__(self) -> None:
        self.outcomes: SimpleQueue[Outcome | None] = SimpleQueue()

    def put(self, outcome: Outcome) -> None:
        self.outcomes.put(outcome)

    def end(self) -> None:
        self.outcomes.put(None)
