"""An engine for callers that are not in Trio: their calls, run as tasks, and their outcomes, sorted.

`engine.blocking` runs one in a thread, `engine.aio` in a guest run over asyncio's loop; the rules are
here, once for both.  An outcome goes to whoever waits for its message (`send`), else to the stream
that everybody may read.
Not here: threads, loops, how anybody waits outside Trio, and how a call keeps its promise
(`engine.calls`).
"""

from __future__ import annotations

import logging
import uuid
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

import trio

from engine.arguments import no_message
from engine.engine import DEFAULT_MAX_IN_FLIGHT
from engine.errors import EngineClosedError, EngineError, EngineFailedError, SubmitError
from engine.message import Message
from engine.outcome import Status
from engine.outcomes import Seats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from contextvars import Context

    from engine.callout import Verification
    from engine.calls import Call
    from engine.engine import Engine
    from engine.outcome import Outcome

_log = logging.getLogger("engine")

_T = TypeVar("_T")

_CLOSED: Final = "the engine is draining or closed, or was never opened"


class Told(NamedTuple):
    """One outcome on its way to whoever reads the stream.

    Attributes:
        outcome: It.
        has_seat: Whether a place is free again once it was read.
    """

    outcome: Outcome
    has_seat: bool


#: Takes what goes into the stream, and must not wait.  `None`, once, is the end of what was
#: promised; what nobody waits for any more may come behind it.
Deliver: TypeAlias = "Callable[[Told | None], None]"


class Collector(Protocol):
    """Gets the outcomes of the messages it was given for, and must not wait."""

    def put(self, outcome: Outcome) -> None:
        """Take an outcome."""
        ...

    def end(self) -> None:
        """Hear that the engine has ended, and that what is missing will never come."""
        ...


@dataclass(slots=True)
class _InFlight:
    """A message that has outcomes to come.

    Attributes:
        left: How many.
        collector: Who waits for them, if anybody does.
        has_seats: Whether each has a seat in the stream.
        recipients: With a store, who is still without an outcome: there may be more than one of each.
    """

    left: int
    collector: Collector | None
    has_seats: bool
    recipients: list[str] | None = None


class _Gathered:
    """The outcomes of one message, until they are complete."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome] = []
        self.is_complete = False
        self.over = trio.Event()
        self._count = count

    def put(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if len(self.outcomes) == self._count:
            self.is_complete = True
            self.over.set()

    def end(self) -> None:
        self.over.set()


class HostedEngine:
    """An engine, and what its host may ask of it.

    All methods belong to the thread that runs Trio, between its tasks or inside them.

    Attributes:
        engine: It.
        failure: The error by which it has ended, if it has.
        refusal: Why it could not begin, where it is the caller's to mend.
    """

    def __init__(
        self, engine: Engine, deliver: Deliver, options: Mapping[str, Any] | None = None
    ) -> None:
        """Make one that `run` runs.

        Args:
            engine: It; nobody else may enter it or read its outcomes.
            deliver: Takes the stream.
            options: What it was made with; of use are `max_in_flight`, which bounds the outcomes in
                the stream that nobody has read, too, and `store` and `queue`.
        """
        options = options or {}
        limit = options.get("max_in_flight", DEFAULT_MAX_IN_FLIGHT)
        self.engine = engine
        self.failure: Exception | None = None
        self.refusal: EngineError | None = None
        self._has_store = options.get("store") is not None
        queue = options.get("queue")
        self._has_outcomes = queue is None or queue.on_settled is None
        self._deliver = deliver
        # Of its own, beside the engine's: who submits and does not read holds up nobody's `send`.
        self._seats = Seats(limit)
        self._max_strays = limit
        self._strays = 0
        self._numbers = 0
        self._in_flight: dict[str, _InFlight] = {}
        self._nursery: trio.Nursery | None = None
        self._context: Context | None = None
        self._leaving = trio.Event()
        self._is_draining = False
        self._ended = trio.Event()
        self._is_over = False
        self._stream_has_ended = False
        # With a store these two: whether anybody reads the stream, and what waits for a seat there.
        self._is_read = False
        self._held: Outcome | None = None

    # -- life -------------------------------------------------------------------------------

    async def run(self, opened: Callable[[], None]) -> None:
        """Run the engine until `leave` or `cancel`; what ends it otherwise is kept in `failure`.

        Cancelled, it stops as a cancelled engine does.  Either way every call has been answered,
        and every outcome is in the stream or with whoever waited for it.

        Args:
            opened: Called once calls can begin.
        """
        self._context = copy_context()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sort)
                await self._host(nursery, opened)
                # Whoever has what it waited for goes its way; the others are told below.
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None

    async def _host(self, nursery: trio.Nursery, opened: Callable[[], None]) -> None:
        try:
            async with self.engine:
                self._nursery = nursery
                opened()
                await self._leaving.wait()
        except Exception as error:  # noqa: BLE001 - told to every caller
            self.failure = error
            if self._nursery is None and isinstance(error, EngineError):
                self.refusal = error
            else:
                _log.exception("the engine has failed; what it had not finished is deferred")
        finally:
            self._end()

    def leave(self) -> None:
        """Begin to end: take nothing more, and finish what is in flight."""
        if not self._is_over:
            self._seats.close()
            self._leaving.set()

    def cancel(self) -> None:
        """Stop at once, as `Engine.cancel` does."""
        self.leave()
        if not self._is_over:
            self.engine.cancel()

    def abandon(self, failure: Exception) -> None:
        """End without Trio, which has failed: nobody may wait for what cannot come.

        The calls under way are left to whoever began them.
        """
        self.failure = self.failure or failure
        self._is_over = True
        self._nursery = None
        # Nothing of Trio's can be set any more; whoever waits for that is a call under way.
        for step in (self._sort_now, self._end_collectors):
            with suppress(RuntimeError):
                step()
        self._end_stream()

    def error(self) -> Exception:
        """Return what a call gets that the engine will not answer."""
        if self.failure is None:
            return EngineClosedError(_CLOSED)
        error = EngineFailedError(f"the engine has failed: {self.failure!r}")
        error.__cause__ = self.failure
        return error

    def _end(self) -> None:
        """Hand over the last outcomes; those who still wait learn that there are no more."""
        self._seats.close()
        self._sort_now()
        self._end_collectors()
        self._end_stream()
        self._ended.set()
        self._is_over = True

    def _end_collectors(self) -> None:
        while self._in_flight:
            _, flight = self._in_flight.popitem()
            if flight.collector is not None:
                flight.collector.end()

    def _end_stream(self) -> None:
        if not self._stream_has_ended:
            self._stream_has_ended = True
            self._deliver(None)

    # -- calls ------------------------------------------------------------------------------

    def begin(self, call: Call[Any]) -> None:
        """Run a call in a task of its own, or fail it where the engine does not run."""
        if self._nursery is None:
            call.fail(self.error())
            return
        assert self._context is not None
        # Not in the caller's context: a pool that its message starts would keep it.
        self._context.run(self._nursery.start_soon, call.run, self.error)

    @staticmethod
    async def do(function: Callable[..., _T], *arguments: object) -> _T:
        """Call what needs no waiting."""
        return function(*arguments)

    async def submit(self, message: Message, timeout: float | None = None) -> str:
        """Take a message whose outcomes go into the stream; waits for seats there and inside.

        Cancelled, it was not taken.  With a store it waits for no seats, and returns when the message
        is there for good; cancelled, it may be there all the same.

        Raises:
            EngineClosedError: The engine is draining or closed.
            EngineFailedError: The engine has failed.
            StoreError: The store has not taken it.
            SubmitError: A `send` waits for a message of that id, or the store cannot keep it.
            TimeoutError: It was not taken in time.
            TypeError: It is no message.
        """
        count = len(_checked(message).recipients)
        async with self._explained():
            with trio.move_on_after(_seconds(timeout)):
                if self._has_store:
                    return await self.engine.submit(message)
                await self._seats.take(count)
                try:
                    return await self._take(message, None)
                except BaseException:
                    self._seats.give_back(count)
                    raise
        why = "the engine is full" if not self._has_store else "the store is busy, and may have it"
        raise TimeoutError(f"not taken within {timeout} s: {why}")

    async def submit_for(self, message: Message, collector: Collector) -> str:
        """Take a message whose outcomes go to a collector; waits for seats inside.

        Cancelled, it was not taken.

        Raises:
            EngineClosedError: The engine is draining or closed.
            EngineFailedError: The engine has failed.
            SubmitError: A message of that id is in flight; with a store, it has an id.
            TypeError: It is no message.
            ValueError: Outcomes go to `QueueOptions.on_settled`.
        """
        async with self._explained():
            return await self._take(self._collectable(message), collector)

    async def send(self, message: Message, timeout: float | None = None) -> list[Outcome]:
        """Take a message and return its outcomes, in the order they became known.

        Cancelled, or late, its outcomes go into the stream as they become known, those that are
        known at once; one that was not taken has none.

        Raises:
            EngineClosedError: The engine is draining or closed; nothing was taken.
            EngineFailedError: The engine has failed, and did not know them all.
            StoreError: The store has not taken it.
            SubmitError: A message of that id is in flight; with a store, it has an id.
            TimeoutError: They were not known in time.
            TypeError: It is no message.
            ValueError: Outcomes go to `QueueOptions.on_settled`.
        """
        message = self._collectable(message)
        gathered = _Gathered(len(message.recipients))
        async with self._explained():
            with trio.move_on_after(_seconds(timeout)):
                await self._take(message, gathered)
                return await self._wait_for(gathered)
        raise TimeoutError(f"not all outcomes were known within {timeout} s")

    async def _wait_for(self, gathered: _Gathered) -> list[Outcome]:
        try:
            await gathered.over.wait()
        finally:
            if not gathered.is_complete:
                self.release(gathered)
                self.keep(gathered.outcomes)
        if not gathered.is_complete:
            raise self.error()
        return gathered.outcomes

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        """Wait for the reason where an engine that nobody closed turns a message away."""
        try:
            yield
        except EngineClosedError:
            if self._leaving.is_set() or self._is_draining:
                raise
            await self._ended.wait()
            raise self.error() from self.failure

    def _collectable(self, message: Message) -> Message:
        """Refuse what would have no outcome, or those of another."""
        _checked(message)
        if not self._has_store:
            return message
        if not self._has_outcomes:
            raise ValueError("outcomes go to QueueOptions.on_settled; use submit")
        if message.id:
            raise SubmitError(
                f"message {message.id!r}: with a store `send` makes the id, for of a message that is "
                "there already no outcome may come; use submit, which may be repeated"
            )
        return message.with_id(uuid.uuid4().hex)

    async def _take(self, message: Message, collector: Collector | None) -> str:
        message = self._named(message)
        name, count = message.id, len(message.recipients)
        flight = self._in_flight.get(name)
        if flight is None:
            flight = self._in_flight[name] = _InFlight(0, collector, has_seats=collector is None)
            if self._has_store:
                flight.recipients = [recipient.address for recipient in message.recipients]
        elif collector is not None or not flight.has_seats:
            # Outcomes name their message by its id: they would come to the wrong one.
            raise SubmitError(f"message {name!r}: one of that id is in flight, and `send` waits")
        flight.left += count
        try:
            return await self.engine.submit(message)
        except BaseException:
            self._count_down(name, flight, count)
            raise

    def _named(self, message: Message) -> Message:
        """Give a message without an id its number, which no message in flight has."""
        while not message.id:
            self._numbers += 1
            if str(self._numbers) not in self._in_flight:
                message = message.with_id(str(self._numbers))
        return message

    async def drain(self, timeout: float | None = None) -> bool:
        """Do as `Engine.drain` does; once all is finished the stream ends behind its outcomes."""
        self._is_draining = True
        self._seats.close()
        is_finished = await self.engine.drain(timeout)
        if is_finished:
            self._sort_now()
            self._end_stream()
        return is_finished

    async def wait_empty(self) -> None:
        """Do as `Engine.wait_empty` does."""
        await self.engine.wait_empty()

    async def verify(
        self, addresses: Sequence[str], sender: str, *, catch_all: bool, fresh: bool
    ) -> list[Verification]:
        """Do as `Engine.verify` does."""
        async with self._explained():
            return await self.engine.verify(
                addresses, sender=sender, catch_all=catch_all, fresh=fresh
            )

    # -- outcomes ---------------------------------------------------------------------------

    def note_reader(self) -> None:
        """Hear that somebody reads the stream: with a store, nothing goes past it from now on."""
        self._is_read = True

    def taken(self, told: Told) -> None:
        """Hear that an outcome was read from the stream."""
        if told.has_seat:
            self._seats.give_back()
        else:
            self._strays -= 1

    def release(self, collector: Collector) -> None:
        """Send what was still to come for a collector into the stream: nobody waits for it."""
        for flight in self._in_flight.values():
            if flight.collector is collector:
                flight.collector = None

    def keep(self, outcomes: Iterable[Outcome]) -> None:
        """Put outcomes nobody has a seat for into the stream; with too many there, into the log."""
        for outcome in outcomes:
            if self._strays < self._max_strays:
                self._put_stray(outcome)
                continue
            # Who has mail kept, and does not ask what became of it, need not be told that all is well.
            is_well = self._has_store and outcome.status is Status.DELIVERED
            _log.log(
                logging.INFO if is_well else logging.WARNING,
                "nobody reads outcomes: message %s to <%s>: %s: %s",
                outcome.message,
                outcome.recipient,
                outcome.status,
                outcome.text,
            )

    def _put_stray(self, outcome: Outcome) -> None:
        self._strays += 1
        self._deliver(Told(outcome, has_seat=False))

    async def _sort(self) -> None:
        async for outcome in self.engine.outcomes:
            if self._is_read and self._has_store and not self._is_collected(outcome):
                await self._wait_for_seat(outcome)
            else:
                self._hand_over(outcome)

    async def _wait_for_seat(self, outcome: Outcome) -> None:
        """Let the queue wait for who reads, as it does for readers in Trio."""
        self._held = outcome
        has_seat = False
        with suppress(EngineClosedError):
            await self._seats.take(1)
            has_seat = True
        if self._held is None:
            return  # the end was quicker, and closed the seats
        self._held = None
        if has_seat:
            self._deliver(Told(outcome, has_seat=True))
        else:
            self._put_stray(outcome)

    def _sort_now(self) -> None:
        if self._held is not None:
            self._put_stray(self._held)
            self._held = None
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self._hand_over(self.engine.outcomes.receive_nowait())

    def _is_collected(self, outcome: Outcome) -> bool:
        flight = self._in_flight.get(outcome.message)
        return flight is not None and outcome.recipient in (flight.recipients or ())

    def _hand_over(self, outcome: Outcome) -> None:
        flight = self._in_flight.get(outcome.message)
        if self._has_store and not self._is_collected(outcome):
            flight = None
        if flight is None:
            if self._is_read and self._has_store:
                self._put_stray(outcome)  # the end is near, and they are few
            else:
                self.keep([outcome])
            return
        if flight.recipients is not None:
            flight.recipients.remove(outcome.recipient)
        self._count_down(outcome.message, flight, 1)
        if flight.collector is not None:
            flight.collector.put(outcome)
        elif flight.has_seats:
            self._deliver(Told(outcome, has_seat=True))
        else:
            self.keep([outcome])

    def _count_down(self, name: str, flight: _InFlight, count: int) -> None:
        flight.left -= count
        if not flight.left and self._in_flight.get(name) is flight:
            del self._in_flight[name]


def _checked(message: Message) -> Message:
    if not isinstance(message, Message):
        raise no_message(message)
    return message


def _seconds(timeout: object) -> float:
    if timeout is None:
        return float("inf")
    # `not >=`, for NaN is neither above nor below.
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise ValueError(f"timeout is {timeout!r}; allowed are seconds, 0 or more, and None")
    return timeout
