from __future__ import annotations

import pytest
import trio

from engine.net.connector import Connection
from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts
from engine.net.lazy_stream import LazyStream
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage
from tests.net.streams import memory_pair

FACTS = ConnectionFacts("mx", "192.0.2.1", 25, None, None, False, None, None, "off", 0.0)


def lazy():
    """A lazy stream, what it said first, and the other end."""
    ours, theirs = memory_pair()
    said = []

    async def connect(first: bytes) -> Connection:
        said.append(first)
        await trio.lowlevel.checkpoint()
        return Connection(ours, FACTS)

    return LazyStream(connect), said, ours, theirs


async def test_it_connects_with_the_first_octets_and_sends_the_rest():
    stream, said, _, theirs = lazy()
    await stream.send_all(memoryview(b"hello"))
    await stream.send_all(b" again")
    assert stream.send_nowait(b"!") == 1
    assert said == [b"hello"]
    assert await theirs.receive_some() == b" again!"


async def test_it_receives_when_it_is_connected():
    stream, _, _, theirs = lazy()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    await stream.send_all(b"hello")
    await theirs.send_all(b"one two")
    assert await stream.receive_some(3) == b"one"
    assert await stream.receive_some() == b" two"
    assert stream.receive_nowait() is None
    await stream.send_eof()
    assert await theirs.receive_some() == b""


async def test_before_it_connects_nothing_is_sent_without_waiting():
    stream, said, _, _ = lazy()
    assert stream.send_nowait(b"hello") == 0
    assert said == []


async def test_what_connecting_raises_comes_out():
    async def connect(_first: bytes) -> Connection:
        raise ConnectFailed(Stage.CONNECT, Cause.REFUSED, Scope.HOST, "no")

    stream = LazyStream(connect)
    with pytest.raises(ConnectFailed):
        await stream.send_all(b"hello")
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"hello")


@pytest.mark.parametrize("politely", [True, False])
async def test_a_stream_that_was_closed_never_connects(politely):
    stream, said, _, _ = lazy()
    if politely:
        await stream.aclose()
    else:
        stream.close()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"hello")
    assert said == []


@pytest.mark.parametrize("politely", [True, False])
async def test_closing_closes_the_connection(politely):
    stream, _, ours, _ = lazy()
    await stream.send_all(b"hello")
    if politely:
        await stream.aclose()
    else:
        stream.close()
    assert ours.is_closed
