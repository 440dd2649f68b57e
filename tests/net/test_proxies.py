"""Connecting through proxies: whole ways over loopback, with proxies that behave as told."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from engine.net.connector import Connector
from engine.net.errors import ConnectFailed
from engine.net.options import ConnectOptions
from engine.outcome import Cause, Scope
from engine.route import Candidate
from engine.setting_types import Proxy
from engine.smtp.stages import Stage

HERE = "127.0.0.1"
TARGET = Candidate("mx.test", "192.0.2.25", 25)
OK = b"\x05\x00\x00\x01" + bytes([127, 0, 0, 9]) + struct.pack(">H", 4711)


@asynccontextmanager
async def a_proxy(handler):
    """Serve one connection after another with `handler(stream)` and yield the port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host=HERE))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def socks(reply=OK, *, behind=b"", login=b"", heard=None):
    """A SOCKS server that answers the request so, and then says what is `behind` it."""

    async def serve(stream):
        async with stream:
            assert await stream.receive_some() == (b"\x05\x01\x02" if login else b"\x05\x01\x00")
            await stream.send_all(b"\x05\x02" if login else b"\x05\x00")
            if login:
                assert await stream.receive_some() == login
                await stream.send_all(b"\x01\x00")
            request = await stream.receive_some()
            if heard is not None:
                heard.append(request)
            if not reply:
                return  # hang up
            await stream.send_all(reply + behind)
            await stream.send_all(await stream.receive_some())

    return serve


def through(*urls, **options) -> ConnectOptions:
    return ConnectOptions(proxies=tuple(map(Proxy.parse, urls)), **options)


async def failure(options, to=TARGET) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as info:
        await Connector().connect(to, options)
    return info.value


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        return sock.getsockname()[1]


async def test_a_socks_proxy_connects_to_the_address_of_the_candidate():
    heard = []
    async with a_proxy(socks(heard=heard)) as port:
        connection = await Connector().connect(TARGET, through(f"socks5://{HERE}:{port}"))
        async with connection.stream as stream:
            await stream.send_all(b"echo")
            assert await stream.receive_some() == b"echo"

    assert heard == [b"\x05\x01\x00\x01" + bytes([192, 0, 2, 25]) + b"\x00\x19"]
    facts = connection.facts
    assert (facts.host, facts.address, facts.port) == ("mx.test", "192.0.2.25", 25)
    assert facts.proxy == f"socks5://{HERE}:{port}"
    assert (facts.local_address, facts.local_port) == ("127.0.0.9", 4711)


async def test_a_greeting_that_comes_with_the_reply_is_not_lost():
    async with a_proxy(socks(behind=b"220 mx.test\r\n")) as port:
        connection = await Connector().connect(TARGET, through(f"socks5://{HERE}:{port}"))
        async with connection.stream as stream:
            assert await stream.receive_some(4) == b"220 "
            assert await stream.receive_some() == b"mx.test\r\n"


async def test_a_proxy_that_does_not_say_where_it_connects_from_leaves_our_own_address():
    reply = b"\x05\x00\x00\x01" + bytes(6)
    async with a_proxy(socks(reply)) as port:
        connection = await Connector().connect(TARGET, through(f"socks5://{HERE}:{port}"))
        connection.stream.close()

    assert connection.facts.local_address == HERE


async def test_credentials_are_sent_and_never_shown():
    login = b"\x01\x04user\x06s3cret"
    async with a_proxy(socks(login=login)) as port:
        options = through(f"socks5://user:s3cret@{HERE}:{port}")
        connection = await Connector().connect(TARGET, options)
        connection.stream.close()

    assert connection.facts.proxy == f"socks5://{HERE}:{port}"
    assert "s3cret" not in repr(options)
    assert "s3cret" not in repr(connection.facts)


async def test_a_refusal_is_blamed_on_our_side_and_names_the_proxy():
    refused = b"\x05\x05\x00\x01" + bytes(6)
    async with a_proxy(socks(refused)) as port:
        failed = await failure(through(f"socks5://u:s3cret@{HERE}:{port}".replace("u:s3cret@", "")))

    assert (failed.stage, failed.scope, failed.cause) == (
        Stage.PROXY,
        Scope.SOURCE,
        Cause.REFUSED,
    )
    assert failed.text.startswith(
        f"connect to mx.test [192.0.2.25]:25 through socks5://{HERE}:{port}: "
    )


async def test_a_proxy_that_cannot_be_connected_to_is_passed_over():
    async with a_proxy(socks()) as port:
        urls = (f"socks5://{HERE}:{closed_port()}", f"socks5://{HERE}:{port}")
        connection = await Connector().connect(TARGET, through(*urls))
        connection.stream.close()

    assert connection.facts.proxy == urls[1]


async def test_when_none_can_be_connected_to_the_text_names_them_all():
    ports = closed_port(), closed_port()

    failed = await failure(through(*(f"socks5://{HERE}:{port}" for port in ports)))

    assert (failed.stage, failed.scope, failed.cause) == (
        Stage.PROXY,
        Scope.SOURCE,
        Cause.REFUSED,
    )
    assert all(str(port) in failed.text for port in ports)


async def test_a_proxys_name_is_looked_up():
    async with a_proxy(socks()) as port:
        connection = await Connector().connect(TARGET, through(f"socks5://localhost:{port}"))
        connection.stream.close()

    assert connection.facts.proxy == f"socks5://localhost:{port}"


async def test_a_silent_proxy_ends_with_the_deadline_for_connecting():
    async def silent(stream):
        await trio.sleep_forever()

    async with a_proxy(silent) as port:
        failed = await failure(through(f"socks5://{HERE}:{port}", connect_timeout=0.1))

    assert (failed.stage, failed.scope, failed.cause) == (
        Stage.PROXY,
        Scope.SOURCE,
        Cause.TIMEOUT,
    )


async def test_a_relay_is_told_where_to_connect_to_and_from():
    heard = []

    async def relay(stream):
        async with stream:
            heard.append(await stream.receive_some())
            await stream.send_all(b"220 mx.test\r\n")
            await stream.receive_some()

    async with a_proxy(relay) as port:
        options = through(f"haproxy://{HERE}:{port}", interface=("203.0.113.7", "2001:db8::7"))
        connection = await Connector().connect(TARGET, options)
        async with connection.stream as stream:
            assert await stream.receive_some() == b"220 mx.test\r\n"

    addresses = bytes([203, 0, 113, 7, 192, 0, 2, 25])
    assert heard == [b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + addresses + b"\x00\x00\x00\x19"]
    assert (connection.facts.local_address, connection.facts.interface) == (
        "203.0.113.7",
        "203.0.113.7",
    )


@pytest.mark.parametrize("reply", [b"\x05\x05\x00\x01" + bytes(6), b"garbage!", b""])
async def test_no_descriptor_is_left_behind(reply):
    async with a_proxy(socks(reply)) as port:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as short as it gets
        await failure(through(f"socks5://{HERE}:{port}", f"socks5://{HERE}:{closed_port()}"))
        with trio.move_on_after(2):
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: PTH208, ASYNC110
                await trio.sleep(0.01)  # the far end closes a moment later

        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
