"""One stream of events to any number of listeners; never waits for one and never fails with one.

`EventStream` is owned by the engine; the delivery rooms publish, programs subscribe.  A listener that
is too slow loses events, and the loss is counted: mail is never delayed by who watches it.
Not here: what is in an event (`engine.report.events`).
"""

from __future__ import annotations

import logging
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import trio

from engine.report.events import ALL_EVENTS, Event

if TYPE_CHECKING:
    from collections.abc import Callable

    Kinds = frozenset[type[Event]]
    #: What an event is given to; what it returns is nobody's.
    Watcher = Callable[[Any], object]

_E = TypeVar("_E", bound=Event)

DEFAULT_CAPACITY: Final = 1000
#: Events that one task may take without letting others run.
_IN_A_ROW: Final = 32

_logger = logging.getLogger("engine.report")


class EventStream:
    """Fans events out to subscriptions (channels) and watchers (plain calls).

    All methods belong to the thread that runs Trio.

    Attributes:
        wanted: The kinds of events somebody listens to; a publisher asks before it makes one.
        dropped: How many events were lost on full subscriptions, since the start and over all.
    """

    __slots__ = ("_by_kind", "_is_closed", "_subscriptions", "_watchers", "dropped", "wanted")

    def __init__(self) -> None:
        self.wanted: frozenset[type[Event]] = frozenset()
        self.dropped = 0
        # These two are replaced and never changed: a watcher may watch, unwatch or publish while it
        # is called.
        self._watchers: tuple[tuple[Watcher, Kinds], ...] = ()
        self._by_kind: dict[type[Event], tuple[Watcher, ...]] = {}
        self._subscriptions: set[Subscription] = set()
        self._is_closed = False

    def publish(self, event: Event) -> None:
        """Hand an event to everyone who listens, at once and without waiting."""
        for watcher in self._by_kind.get(type(event), ()):
            try:
                watcher(event)
            except Exception:
                # One broken listener must cost neither mail nor a traceback for every event.
                self.unwatch(watcher)
                _logger.exception("event watcher %r failed and is removed", watcher)

    @overload
    def watch(self, callback: Callable[[Event], object]) -> None: ...
    @overload
    def watch(
        self, callback: Callable[[_E], object], kind: type[_E], /, *kinds: type[_E]
    ) -> None: ...
    def watch(self, callback: Watcher, *kinds: Any) -> None:
        """Call `callback` with each event, inside `publish`: it must be quick and may not block.

        One that raises is logged with its traceback and removed.  Watching again is watching once,
        for the kinds given last.

        Args:
            callback: Is called with the event.
            *kinds: Classes of events; none: all.  What nobody wants is not even made.

        Raises:
            TypeError: It cannot be called, or would have to be awaited; or a kind is none.
            trio.ClosedResourceError: The stream is closed.
        """
        _check_watcher(callback)
        for kind in kinds:
            if kind not in ALL_EVENTS:
                raise TypeError(
                    f"found {kind!r}; allowed are classes of events, such as "
                    "engine.report.events.ConnectionOpened"
                )
        if self._is_closed:
            raise trio.ClosedResourceError("the event stream is closed")
        others = tuple(known for known in self._watchers if known[0] != callback)
        self._set_watchers((*others, (callback, frozenset(kinds or ALL_EVENTS))))

    def unwatch(self, callback: Watcher) -> None:
        """Stop calling `callback`; no error where it is not known."""
        self._set_watchers(tuple(known for known in self._watchers if known[0] != callback))

    def subscribe(self, capacity: int = DEFAULT_CAPACITY, *kinds: type[Event]) -> Subscription:
        """Return a new subscription: `async with stream.subscribe() as events: async for ...`.

        It hears what is published from now on.

        Args:
            capacity: How many events may wait in it; the next one is lost.
            *kinds: Classes of events; none: all.

        Raises:
            TypeError: A kind is none.
            ValueError: The capacity is less than 1.
            trio.ClosedResourceError: The stream is closed.
        """
        subscription = Subscription(self, capacity)
        self.watch(subscription.offer, *kinds or ALL_EVENTS)
        self._subscriptions.add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Send nothing to `subscription` any more; called by its `close`."""
        self.unwatch(subscription.offer)
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription and drop every watcher.

        Subscribers still get what waits for them, then the end of the channel.  Events published
        from now on reach nobody.
        """
        self._is_closed = True
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions.clear()
        self._set_watchers(())

    def _set_watchers(self, watchers: tuple[tuple[Watcher, Kinds], ...]) -> None:
        self._watchers = watchers
        self.wanted = frozenset().union(*[kinds for _, kinds in watchers])
        self._by_kind = {
            kind: tuple(callback for callback, kinds in watchers if kind in kinds)
            for kind in self.wanted
        }


class Subscription(trio.abc.ReceiveChannel[Event]):
    """The receiving end for one listener; made by `EventStream.subscribe`.

    Attributes:
        dropped: How many events this listener lost because it did not keep up.
    """

    def __init__(self, stream: EventStream, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: a subscription holds at least 1 event")
        self.dropped = 0
        self._in_a_row = 0
        self._stream = stream
        self._sender, self._receiver = trio.open_memory_channel[Event](capacity)

    def offer(self, event: Event) -> None:
        """Take an event if there is room for it, else count it as lost."""
        try:
            self._sender.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1
            self._stream.dropped += 1
        except trio.ClosedResourceError:
            # A watcher that ran before us for this very event closed us: we no longer listen.
            pass

    async def receive(self) -> Event:
        """Wait for the next event; a checkpoint when none is there, and every now and then.

        Cancelled, it has taken none.

        Raises:
            trio.EndOfChannel: The stream was closed and nothing is left.
            trio.ClosedResourceError: This subscription was closed.
        """
        # A task switch for each event would cost more than the event; one in a while will do.
        self._in_a_row += 1
        if self._in_a_row < _IN_A_ROW:
            try:
                return self._receiver.receive_nowait()
            except trio.WouldBlock:
                pass
        self._in_a_row = 0
        return await self._receiver.receive()

    def receive_nowait(self) -> Event:
        """Return the next event without waiting.

        Raises:
            trio.WouldBlock: There is none yet.
            trio.EndOfChannel: The stream was closed and nothing is left.
            trio.ClosedResourceError: This subscription was closed.
        """
        return self._receiver.receive_nowait()

    def end(self) -> None:
        """Take no more events; what waits can still be received."""
        self._sender.close()

    def close(self) -> None:
        """Unsubscribe and discard what waits; closing twice is no error."""
        self._stream.forget(self)
        self._sender.close()
        self._receiver.close()

    async def aclose(self) -> None:
        """Close as `close` does, with a checkpoint as Trio's channels have.

        Cancelled, it is closed all the same.
        """
        self.close()
        await trio.lowlevel.checkpoint()


def _check_watcher(callback: object) -> None:
    if not callable(callback):
        raise TypeError(f"found {callback!r}; allowed is what can be called with an event")
    if iscoroutinefunction(callback) or iscoroutinefunction(type(callback).__call__):
        raise TypeError(
            f"{callback!r} would have to be awaited; allowed is a plain function, for nothing here "
            "waits; in Trio, `subscribe` gives a channel to a task"
        )
