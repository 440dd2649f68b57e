"""Connecting through proxies: whole ways over loopback, with proxies that behave as told."""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import asynccontextmanager
from functools import partial
from random import Random

import pytest
import trio

from engine.net.connector import Connector
from engine.net.errors import ConnectFailed
from engine.net.facts import ProxyFacts
from engine.net.options import ConnectOptions
from engine.outcome import Cause, Scope
from engine.queue.hints import MemoryHints
from engine.route import Candidate
from engine.setting_proxy import Proxy
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


async def failure(options, to=TARGET, connector=None) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as info:
        await (connector or Connector()).connect(to, options)
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
    assert facts.round_trip_seconds > 0
    assert facts.through == ProxyFacts(
        name=f"socks5://{HERE}:{port}",
        address=HERE,
        port=port,
        local_address=HERE,
        local_port=facts.through.local_port,
        external_address="127.0.0.9",
        external_port=4711,
    )
    assert facts.through.local_port not in {port, 4711}


async def test_a_proxy_that_names_where_it_connects_from_leaves_our_own_address():
    """What follows, as our name in EHLO, needs an address."""
    named = b"\x05\x00\x00\x03\x0aegress.net" + struct.pack(">H", 4711)
    async with a_proxy(socks(named)) as port:
        connection = await Connector().connect(TARGET, through(f"socks5://{HERE}:{port}"))
        connection.stream.close()

    facts = connection.facts
    assert (facts.local_address, facts.local_port) == (HERE, facts.through.local_port)
    assert (facts.through.external_address, facts.through.external_port) == ("egress.net", 4711)


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
    assert connection.facts.through.external_address is None
    assert connection.facts.through.external_port is None


async def test_early_data_goes_through_the_tunnel():
    async with a_proxy(socks()) as port:
        options = through(f"socks5://{HERE}:{port}")
        connection = await Connector().connect(TARGET, options, early_data=b"EHLO a.test\r\n")
        async with connection.stream as stream:
            assert await stream.receive_some() == b"EHLO a.test\r\n"


async def test_early_data_follows_the_header_for_a_relay():
    heard = b""

    async def relay(stream):
        nonlocal heard
        async with stream:
            async for octets in stream:
                heard += octets

    async with a_proxy(relay) as port:
        options = through(f"haproxy://{HERE}:{port}")
        connection = await Connector().connect(TARGET, options, early_data=b"EHLO a.test\r\n")
        connection.stream.close()
        with trio.fail_after(5):
            while not heard.endswith(b"EHLO a.test\r\n"):  # noqa: ASYNC110 - a thing of moments
                await trio.sleep(0.001)

    assert heard.startswith(b"\r\n\r\n\x00\r\nQUIT\n")
    assert len(heard) == 28 + len(b"EHLO a.test\r\n")


async def test_credentials_are_sent_and_never_shown():
    login = b"\x01\x04user\x0as3cretW0rd"
    async with a_proxy(socks(login=login)) as port:
        options = through(f"socks5://user:s3cretW0rd@{HERE}:{port}")
        connection = await Connector().connect(TARGET, options)
        connection.stream.close()

    assert connection.facts.proxy == f"socks5://{HERE}:{port}"
    assert "s3cretW0rd" not in repr(options)
    assert "s3cretW0rd" not in repr(connection.facts)


async def test_a_refusal_is_blamed_on_our_side_and_names_the_proxy():
    refused = b"\x05\x05\x00\x01" + bytes(6)
    async with a_proxy(socks(refused)) as port:
        failed = await failure(
            through(f"socks5://u:s3cretW0rd@{HERE}:{port}".replace("u:s3cretW0rd@", ""))
        )

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
        urls = (f"socks5://{HERE}:{closed_port()}?priority=2", f"socks5://{HERE}:{port}")
        connection = await Connector().connect(TARGET, through(*urls))
        connection.stream.close()

    assert connection.facts.proxy == urls[1]


async def test_a_proxy_that_was_passed_over_is_the_last_one_for_a_minute(scripted):
    hints = MemoryHints()
    factory, calls = scripted()
    dead = closed_port()
    async with a_proxy(socks()) as port:
        urls = (f"socks5://{HERE}:{dead}?priority=2", f"socks5://{HERE}:{port}")
        for _ in range(2):
            connector = Connector(factory, hints=hints)
            connection = await connector.connect(TARGET, through(*urls))
            connection.stream.close()

    tried = [call.split("', ")[1].split(")")[0] for call in calls if call.startswith("sendto")]
    assert tried == [str(dead), str(port), str(port)]


async def test_chance_chooses_among_equals_and_is_the_callers():
    async with a_proxy(socks()) as one, a_proxy(socks()) as other:
        options = through(*(f"socks5://{HERE}:{port}" for port in (one, other)))

        async def chosen(seed):
            connection = await Connector(rng=Random(seed)).connect(TARGET, options)
            connection.stream.close()
            return connection.facts.proxy

        assert {await chosen(seed) for seed in range(10)} == {each.name for each in options.proxies}
        assert await chosen(3) == await chosen(3)


async def test_a_proxy_that_is_out_of_reach_for_its_time_is_passed_over(
    clogged_port, autojump_clock
):
    """Its own time is short, the whole time is long, and what is left is the next one's."""
    urls = (
        f"socks5://{HERE}:{clogged_port}?priority=3",
        f"haproxy://{HERE}:{clogged_port}?priority=2&timeout=20",
        f"socks5://{HERE}:{clogged_port}?priority=1&timeout=1h",
        f"socks5://{HERE}:{closed_port()}?priority=0",
    )
    started = trio.current_time()
    failed = await failure(through(*urls, connect_timeout=60))
    assert trio.current_time() - started == pytest.approx(60)
    assert (failed.stage, failed.cause, failed.scope) == (Stage.PROXY, Cause.TIMEOUT, Scope.SOURCE)
    texts = failed.text.removeprefix("connect to mx.test [192.0.2.25]:25: no proxy: ").split("; ")
    assert [text.rpartition(": ")[2] for text in texts] == [
        "timed out after 5 s",
        "timed out after 20 s",
        "timed out after 35 s",
    ]


async def test_no_proxy_is_to_blame_when_descriptors_run_out(scripted):
    hints = MemoryHints()
    factory, calls = scripted(socket=errno.EMFILE)
    options = through("socks5://192.0.2.1", "socks5://192.0.2.2")
    failed = await failure(options, connector=Connector(factory, hints=hints))
    assert (failed.stage, failed.cause, failed.scope) == (Stage.CONNECT, Cause.IO, Scope.LOCAL)
    assert calls == ["socket"]
    assert len(hints) == 0


async def test_an_interface_that_cannot_be_bound_is_no_fault_of_the_proxy():
    hints = MemoryHints()
    options = through(f"socks5://{HERE}:{closed_port()}", interface=("192.0.2.1",))
    failed = await failure(options, connector=Connector(hints=hints))
    assert (failed.stage, failed.cause, failed.scope) == (Stage.PROXY, Cause.CONFIG, Scope.SOURCE)
    assert len(hints) == 0


async def test_the_way_to_a_socks_proxy_starts_at_the_interface():
    async with a_proxy(socks(b"\x05\x00\x00\x01" + bytes(6))) as port:
        options = through(f"socks5://{HERE}:{port}", interface=("::1", "127.0.0.2"))
        connection = await Connector().connect(TARGET, options)
        connection.stream.close()
    facts = connection.facts
    assert (facts.interface, facts.local_address) == ("127.0.0.2", "127.0.0.2")


async def test_when_none_can_be_connected_to_the_text_names_them_all():
    ports = closed_port(), closed_port()

    failed = await failure(through(*(f"socks5://{HERE}:{port}" for port in ports)))

    assert (failed.stage, failed.scope, failed.cause) == (
        Stage.PROXY,
        Scope.SOURCE,
        Cause.REFUSED,
    )
    assert all(str(port) in failed.text for port in ports)


async def test_each_address_of_a_proxys_name_is_tried(monkeypatch):
    async def look_up(host, port, type):  # noqa: A002 - as Trio names it
        assert host == "proxies.test"
        addresses = ("::1", "127.0.0.8", HERE, HERE)
        return [(None, None, None, "", (address, port)) for address in addresses]

    async with a_proxy(socks()) as port:
        monkeypatch.setattr(trio.socket, "getaddrinfo", look_up)
        connection = await Connector().connect(TARGET, through(f"socks5://proxies.test:{port}"))
        connection.stream.close()
    assert connection.facts.proxy == f"socks5://proxies.test:{port}"
    assert connection.facts.through.address == HERE


async def test_an_address_that_takes_all_the_time_leaves_none_for_the_next(
    monkeypatch, clogged_port, autojump_clock
):
    async def look_up(host, port, type):  # noqa: A002 - as Trio names it
        return [(None, None, None, "", (address, port)) for address in (HERE, "127.0.0.8")]

    monkeypatch.setattr(trio.socket, "getaddrinfo", look_up)
    name = f"socks5://proxies.test:{clogged_port}"
    failed = await failure(through(name))
    assert (failed.stage, failed.cause, failed.scope) == (Stage.PROXY, Cause.TIMEOUT, Scope.SOURCE)
    assert failed.text == (
        "connect to mx.test [192.0.2.25]:25: no proxy: "
        f"connect to {name} [{HERE}]:{clogged_port}: timed out after 5 s"
    )
    assert trio.current_time() == pytest.approx(5)


@pytest.mark.parametrize("answer", ["unknown", "late"])
async def test_a_proxys_name_that_leads_nowhere_is_passed_over(monkeypatch, autojump_clock, answer):
    async def look_up(*_, **__):
        if answer == "late":
            await trio.sleep_forever()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", look_up)
    failed = await failure(through("socks5://a.test?priority=2", "socks5://b.test:99"))
    assert (failed.stage, failed.cause, failed.scope) == (Stage.PROXY, Cause.DNS, Scope.SOURCE)
    why = "timed out after 5 s" if answer == "late" else "Name or service not known"
    assert failed.text == (
        "connect to mx.test [192.0.2.25]:25: no proxy: "
        f"look up socks5://a.test:1080: {why}; look up socks5://b.test:99: {why}"
    )


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


async def test_cancelled_in_the_handshake_it_leaves_no_socket_open(
    listen, autojump_clock, descriptors
):
    listener = listen()
    before = descriptors()
    with trio.move_on_after(1) as scope:
        await Connector().connect(TARGET, through(f"socks5://{HERE}:{listener.getsockname()[1]}"))
    assert scope.cancelled_caught
    assert descriptors() == before


@pytest.mark.parametrize("reply", [b"\x05\x05\x00\x01" + bytes(6), b"garbage!", b""])
async def test_no_descriptor_is_left_behind(reply):
    async with a_proxy(socks(reply)) as port:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as short as it gets
        await failure(through(f"socks5://{HERE}:{port}", f"socks5://{HERE}:{closed_port()}"))
        with trio.move_on_after(2):
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: PTH208, ASYNC110
                await trio.sleep(0.01)  # the far end closes a moment later

        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
