"""The event stream never waits for a listener and never fails with one."""

import logging

import pytest
import trio

from engine.report.events import Event, SiteClosed, SiteOpened
from engine.report.stream import EventStream

ONE, TWO, THREE = (SiteOpened(float(number), f"site-{number}") for number in (1, 2, 3))


async def test_subscriber_receives_what_is_published_after_it_came():
    stream = EventStream()
    stream.publish(ONE)

    async with stream.subscribe() as events:
        stream.publish(TWO)
        stream.publish(THREE)
        stream.close()

        assert [event async for event in events] == [TWO, THREE]


async def test_every_subscriber_gets_every_event():
    stream = EventStream()
    first, second = stream.subscribe(), stream.subscribe()

    stream.publish(ONE)

    assert await first.receive() is ONE
    assert await second.receive() is ONE


async def test_waiting_subscriber_is_woken_by_an_event(autojump_clock):
    stream = EventStream()
    events = stream.subscribe()
    heard = []

    async def listen():
        heard.append((await events.receive(), trio.current_time() - started))

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.sleep(5)
        stream.publish(ONE)

    assert heard == [(ONE, 5.0)]


def test_full_subscriber_loses_the_newest_event_and_the_loss_is_counted():
    stream = EventStream()
    slow, quick = stream.subscribe(capacity=1), stream.subscribe(capacity=3)

    for event in (ONE, TWO, THREE):
        stream.publish(event)

    assert slow.receive_nowait() is ONE
    with pytest.raises(trio.WouldBlock):
        slow.receive_nowait()
    assert [quick.receive_nowait() for _ in range(3)] == [ONE, TWO, THREE]
    assert (slow.dropped, quick.dropped, stream.dropped) == (2, 0, 2)


async def test_stream_is_watched_only_while_someone_listens():
    stream = EventStream()
    seen = [bool(stream.wanted)]

    async with stream.subscribe():
        seen.append(bool(stream.wanted))
    seen.append(bool(stream.wanted))
    stream.watch(print)
    seen.append(bool(stream.wanted))
    stream.unwatch(print)
    seen.append(bool(stream.wanted))

    assert seen == [False, True, False, True, False]


async def test_closed_subscription_takes_nothing_and_counts_no_loss():
    stream = EventStream()
    events = stream.subscribe(capacity=1)
    stream.publish(ONE)

    events.close()
    events.close()
    stream.publish(TWO)

    with pytest.raises(trio.ClosedResourceError):
        await events.receive()
    assert stream.dropped == 0


async def test_stream_close_ends_subscriptions_after_what_waits_in_them():
    stream = EventStream()
    events = stream.subscribe()
    stream.publish(ONE)

    stream.close()
    stream.publish(TWO)

    assert await events.receive() is ONE
    with pytest.raises(trio.EndOfChannel):
        await events.receive()
    assert not stream.wanted
    await events.aclose()


@pytest.mark.parametrize("listen", [EventStream.subscribe, lambda stream: stream.watch(print)])
def test_closed_stream_refuses_new_listeners(listen):
    stream = EventStream()
    stream.close()
    stream.close()

    with pytest.raises(trio.ClosedResourceError, match="the event stream is closed"):
        listen(stream)


def test_capacity_below_one_is_refused():
    stream = EventStream()

    with pytest.raises(ValueError, match="capacity 0: a subscription holds at least 1 event"):
        stream.subscribe(capacity=0)
    assert not stream.wanted


def test_watching_twice_is_watching_once():
    stream, heard = EventStream(), []
    stream.watch(heard.append)
    stream.watch(heard.append)

    stream.publish(ONE)

    assert heard == [ONE]


class Waits:
    async def __call__(self, event):
        """Never waited for."""


async def waits(event):
    """Never waited for."""


@pytest.mark.parametrize("callback", [waits, Waits(), Waits().__call__, 7, None, "print"])
def test_what_cannot_be_called_without_waiting_is_no_watcher(callback):
    stream = EventStream()
    with pytest.raises(TypeError, match=r"would have to be awaited|can be called with an event"):
        stream.watch(callback)
    assert not stream.wanted


@pytest.mark.parametrize("kind", ["site.opened", ONE, Event, dict, [SiteOpened], None])
def test_what_is_no_class_of_events_is_no_kind(kind):
    stream = EventStream()
    for call in (lambda: stream.watch(print, kind), lambda: stream.subscribe(10, SiteClosed, kind)):
        with pytest.raises(TypeError, match="allowed are classes of events"):
            call()
    assert not stream.wanted


def test_failing_watcher_is_logged_once_and_removed(caplog):
    stream, heard = EventStream(), []

    def fail(event):
        raise ZeroDivisionError("broken watcher")

    stream.watch(fail)
    stream.watch(heard.append)
    stream.publish(ONE)
    stream.publish(TWO)

    assert heard == [ONE, TWO]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError


def test_watcher_that_publishes_without_end_is_removed_like_any_that_fails(caplog):
    stream = EventStream()

    def echo(event):
        stream.publish(event)

    stream.watch(echo)
    stream.publish(ONE)

    assert not stream.wanted
    assert caplog.records[-1].exc_info[0] is RecursionError


def test_watcher_may_unwatch_and_watch_while_it_is_called():
    stream, heard = EventStream(), []

    def once(event):
        stream.unwatch(once)
        stream.watch(heard.append)

    stream.watch(once)
    stream.publish(ONE)
    stream.publish(TWO)

    assert heard == [TWO]


@pytest.mark.parametrize("close_all", [False, True])
def test_watcher_may_close_a_subscription_that_is_to_hear_the_same_event(caplog, close_all):
    stream = EventStream()
    stream.watch(lambda event: stream.close() if close_all else events.close())
    events = stream.subscribe()

    stream.publish(ONE)

    assert caplog.records == []
    assert stream.dropped == 0


async def test_cancelled_receive_loses_no_event(autojump_clock):
    stream = EventStream()
    events = stream.subscribe()
    with trio.move_on_after(1) as scope:
        await events.receive()

    stream.publish(ONE)

    assert scope.cancelled_caught
    assert await events.receive() is ONE


async def test_cancelled_aclose_still_unsubscribes():
    stream = EventStream()
    events = stream.subscribe()

    with trio.CancelScope() as scope:
        scope.cancel()
        await events.aclose()

    assert scope.cancelled_caught
    assert not stream.wanted


def test_two_streams_know_nothing_of_each_other():
    first, second = EventStream(), EventStream()
    events = second.subscribe()

    first.publish(SiteClosed(1.0, "site"))

    with pytest.raises(trio.WouldBlock):
        events.receive_nowait()
    assert not first.wanted
