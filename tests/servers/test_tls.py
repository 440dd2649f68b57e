"""TLS with OpenSSL's own programs at the other end: verdicts, long streams, and what servers do."""

from __future__ import annotations

import subprocess
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from engine.net.stream import SocketStream
from engine.net.tls import TlsClient
from engine.net.tls_errors import TlsFailed
from engine.net.tls_material import TlsMaterial
from engine.net.tls_stream import TlsStream
from engine.outcome import Peer
from engine.security import TlsDemand, TlsLevel
from tests.certificates import make, rsa_key, server_context, write_chain
from tests.servers import aiosmtpd, exim, postfix
from tests.servers.openssl import s_client, serve
from tests.servers.process import HOST, free_port
from tests.servers.provision import installed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.mail_server import MailServer

pytestmark = pytest.mark.servers

NAME = "mx1.example.test"
ROOT = make("root", is_ca=True)
INTER = make("inter", ROOT, is_ca=True)
GOOD = make("good", INTER, names=[NAME])
PLAIN = TlsMaterial()
OPPORTUNISTIC = TlsDemand(sni=NAME)
VERIFY = TlsDemand(TlsLevel.VERIFY, "required", (NAME,), NAME)


@pytest.fixture
def material(tmp_path):
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)
    return TlsMaterial(ca_file=str(tmp_path / "ca.pem"))


async def connect(port: int) -> SocketStream:
    return SocketStream((await trio.open_tcp_stream(HOST, port)).socket._sock)


@asynccontextmanager
async def started(transport, demand=OPPORTUNISTIC, material=PLAIN, client=None):
    """TLS over a stream, closed at the end of the block."""
    client = client or TlsClient()
    peer = Peer(NAME, HOST, 25)
    found = await client.start(transport, demand, material, peer=peer, seconds=10)
    try:
        yield found
    finally:
        await trio.aclose_forcefully(found.stream)


async def receive_exactly(stream, count):
    octets = bytearray()
    while len(octets) < count:
        more = await stream.receive_some()
        assert more, f"ended after {len(octets)} of {count}"
        octets += more
    return bytes(octets)


# -- verdicts -----------------------------------------------------------------------------------

CHAINS = {
    "good": [GOOD, INTER],
    "good, with its root": [GOOD, INTER, ROOT],
    "in disorder": [GOOD, ROOT, INTER],
    "wildcard": [make("*", INTER, names=["*.example.test"]), INTER],
    "wildcard too high": [make("*", INTER, names=["*.test"]), INTER],
    "several names": [make("s", INTER, names=["a.test", NAME, "b.test"]), INTER],
    "expired": [make("e", INTER, names=[NAME], days=(-30, -1)), INTER],
    "not yet valid": [make("n", INTER, names=[NAME], days=(1, 30)), INTER],
    "wrong name": [make("w", INTER, names=["mx.other.test"]), INTER],
    "address only": [make("i", INTER, names=[HOST]), INTER],
    "self-signed": [make("s", names=[NAME])],
    "self-signed authority": [make("s", names=[NAME], is_ca=True)],
    "missing intermediate": [GOOD],
    "weak key": [make("k", INTER, names=[NAME], key=rsa_key(1024)), INTER],
    "another authority": [make("f", make("root", is_ca=True), names=[NAME])],
}


@pytest.mark.parametrize("name", CHAINS)
async def test_our_verdict_by_authorities_is_openssls(name, material):
    with serve(CHAINS[name]) as port:
        theirs, said = await s_client(
            port, "-CAfile", material.ca_file, "-verify_hostname", NAME, "-servername", NAME
        )
        ours, clear_may_help = True, False
        try:
            async with started(await connect(port), VERIFY, material) as found:
                assert found.facts.verified == "pkix"
        except TlsFailed as failure:
            ours, clear_may_help = False, failure.clear_may_help
        assert ours == theirs, said
        assert not clear_may_help
        # Whatever it is worth, it does where nothing is demanded; what it is worth is told.
        async with started(await connect(port), OPPORTUNISTIC, material) as found:
            assert found.facts.verified == ("pkix" if ours else "no")


async def test_a_common_name_alone_is_refused_though_openssl_still_takes_it(material):
    with serve([make(NAME, INTER), INTER]) as port:
        theirs, _ = await s_client(port, "-CAfile", material.ca_file, "-verify_hostname", NAME)
        assert theirs
        with pytest.raises(TlsFailed, match="for no host"):
            async with started(await connect(port), VERIFY, material):
                pass


# -- mail servers -------------------------------------------------------------------------------

MAIL_SERVERS = {"aiosmtpd": aiosmtpd, "postfix": postfix, "exim": exim}


@pytest.fixture(params=MAIL_SERVERS, scope="module")
def secure_server(request) -> Iterator[MailServer]:
    """Mail servers that offer STARTTLS: two with OpenSSL, and one with GnuTLS."""
    with MAIL_SERVERS[request.param].start(chain=[GOOD, INTER, ROOT]) as server:
        yield server


@asynccontextmanager
async def mail_session(server, demand, material, client=None):
    """Greeting, EHLO, STARTTLS, handshake and EHLO; yields TLS and a way to ask over it."""
    transport = await connect(server.port)
    await ask(transport, b"", b"220")
    assert b"STARTTLS" in await ask(transport, b"EHLO client.test\r\n", b"250")
    await ask(transport, b"STARTTLS\r\n", b"220")
    async with started(transport, demand, material, client) as found:
        again = await ask(found.stream, b"EHLO client.test\r\n", b"250")
        assert b"STARTTLS" not in again
        yield found, partial(ask, found.stream)


async def ask(stream, octets, code):
    """Send and return the whole reply, which has this code."""
    if octets:
        await stream.send_all(octets)
    reply = b""
    while not reply.rpartition(b"\n")[0].rpartition(b"\n")[2].startswith(code + b" "):
        more = await stream.receive_some()
        assert more, reply
        reply += more
        assert reply.startswith(code), reply
    return reply


@pytest.mark.parametrize(
    ("demand", "verified"),
    [
        (OPPORTUNISTIC, "pkix"),
        (VERIFY, "pkix"),
        (TlsDemand(TlsLevel.VERIFY, "dane", (NAME,), NAME, (GOOD.tlsa(3, 1, 1),)), "dane"),
        (TlsDemand(TlsLevel.VERIFY, "dane", (NAME,), NAME, (ROOT.tlsa(2, 0, 1),)), "dane"),
    ],
    ids=["opportunistic", "verify", "DANE-EE", "DANE-TA"],
)
async def test_mail_passes_to_real_servers(secure_server, demand, verified, material):
    secure_server.clear()
    content = b"Subject: secret\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n"
    content += (
        b"Message-ID: <secret@client.test>\r\nFrom: a@client.test\r\n\r\n"
        + b"0123456789 abcdef\r\n" * 20_000
    )
    client = TlsClient()
    resumed = []
    for _ in range(2):
        async with mail_session(secure_server, demand, material, client) as (found, say):
            assert found.facts.verified == verified
            assert found.facts.version == "TLSv1.3"
            resumed.append(found.peer.is_resumed)
            await say(b"MAIL FROM:<a@client.test>\r\n", b"250")
            await say(b"RCPT TO:<b@ok.test>\r\n", b"250")
            await say(b"DATA\r\n", b"354")
            await say(content + b".\r\n", b"250")
            await say(b"QUIT\r\n", b"221")
            await found.stream.aclose()
    copies = await secure_server.received(2)
    assert [copy.content for copy in copies] == [content] * 2
    # Exim's resumption is off unless it is asked for.
    assert resumed == [False, secure_server.name != "exim"]


@pytest.mark.parametrize(
    "demand",
    [
        TlsDemand(TlsLevel.VERIFY, "required", ("mx.other.test",), NAME),
        TlsDemand(TlsLevel.VERIFY, "dane", (NAME,), NAME, (INTER.tlsa(3, 1, 1),)),
    ],
)
async def test_no_mail_passes_to_servers_that_are_not_who_they_must_be(
    secure_server, demand, material
):
    with pytest.raises(TlsFailed) as info:
        async with mail_session(secure_server, demand, material):
            pass
    assert not info.value.clear_may_help


# -- resumption ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [["-tls1_3"], ["-tls1_2"], ["-tls1_2", "-no_ticket"], ["-tls1_3", "-num_tickets", "1"]],
    ids=" ".join,
)
@pytest.mark.parametrize("demand", [OPPORTUNISTIC, VERIFY], ids=["opportunistic", "verify"])
async def test_a_session_of_openssls_server_is_resumed(options, demand, material):
    client = TlsClient()
    with serve([GOOD, INTER], *options) as port:
        resumed = []
        for _ in range(3):
            async with started(await connect(port), demand, material, client) as found:
                await found.stream.send_all(b"abc\n")
                assert await found.stream.receive_some() == b"cba\n"
                await found.stream.aclose()
                resumed.append(found.peer.is_resumed)
    assert resumed == [False, True, True]


# -- streams ------------------------------------------------------------------------------------


@contextmanager
def piped(folder: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """`openssl s_server` whose standard input and output are the other end's octets."""
    certificate, key = write_chain(folder, [GOOD])
    port = free_port()
    command = [
        str(installed("stdbuf")), "-oL", str(installed("openssl")), "s_server", "-accept", f"{HOST}:{port}", "-naccept", "1",
        "-cert", certificate, "-key", key, *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield port, process
        finally:
            process.kill()


async def patiently(port):
    """Connect as soon as the server listens; it accepts one connection only."""
    with trio.fail_after(20):
        while True:
            try:
                return await connect(port)
            except OSError:
                await trio.sleep(0.02)


def pattern(count: int) -> bytes:
    return (bytes(range(251)) * (count // 251 + 1))[:count]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_long_streams_pass_in_both_directions_at_once(version, tmp_path):
    content = pattern(3_000_000)
    results = {}

    async def keep(name, call, *args):
        results[name] = await call(*args)

    with piped(tmp_path, version, "-quiet") as (port, process):
        async with started(await patiently(port)) as found, trio.open_nursery() as nursery:
            nursery.start_soon(found.stream.send_all, content)
            nursery.start_soon(trio.to_thread.run_sync, write, process, content)
            read = partial(trio.to_thread.run_sync, process.stdout.read, len(content))
            nursery.start_soon(keep, "theirs", read)
            nursery.start_soon(keep, "ours", receive_exactly, found.stream, len(content))
    assert results["theirs"] == content
    assert results["ours"] == content


def write(process, octets):
    process.stdin.write(octets)
    process.stdin.flush()


async def converse(process, stream, command):
    """Send a line, have s_server obey a command and then send a line; return what it printed."""
    await stream.send_all(b"one\n")
    write(process, command)
    printed = b""
    # It takes what it reads at once for one command: wait until this one is carried out.
    while b"SSL_do_handshake" not in printed:
        printed += await trio.to_thread.run_sync(process.stdout.readline)
    write(process, b"more\n")
    assert await receive_exactly(stream, 5) == b"more\n"
    return printed


@pytest.mark.parametrize("command", [b"k\n", b"K\n"])
async def test_new_keys_of_the_servers_or_the_wish_for_ours_disturb_nothing(command, tmp_path):
    with piped(tmp_path, "-tls1_3") as (port, process):
        async with started(await patiently(port)) as found:
            printed = [await converse(process, found.stream, command) for _ in range(3)]
            await found.stream.send_all(b"two\n")
            await found.stream.aclose()
        printed.append(await trio.to_thread.run_sync(process.stdout.read))
    said = b"".join(printed)
    assert said.count(b"one\n") == 3
    assert b"two\n" in said


@pytest.mark.parametrize("command", [b"r\n", b"R\n"])
async def test_a_new_handshake_is_refused(command, tmp_path):
    with piped(tmp_path, "-tls1_2") as (port, process):
        async with started(await patiently(port)) as found:
            await converse(process, found.stream, command)
            # OpenSSL takes the refusal for the end of it.
            with pytest.raises(trio.BrokenResourceError, match="TLS: "):
                await found.stream.receive_some()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssls_client_and_our_stream_as_its_server(version):
    content = pattern(1_000_000)
    wrap = partial(server_context([GOOD, INTER]).wrap_bio, server_side=True)
    received = []

    async def serve_one(transport):
        stream = TlsStream(SocketStream(transport.socket._sock), wrap)
        await stream.handshake()
        await stream.send_all(content)
        received.append(await receive_exactly(stream, len(content)))
        await stream.aclose()

    async with accepting(serve_one) as port:
        command = [
            str(installed("openssl")), "s_client", "-connect", f"{HOST}:{port}", "-quiet",
            version,
        ]  # fmt: skip
        ended = await trio.run_process(
            command, stdin=content, capture_stdout=True, capture_stderr=True, check=False
        )
    assert received == [content]
    assert ended.stdout == content


@asynccontextmanager
async def accepting(handler):
    """Listen for connections to a handler, and yield the port."""
    async with trio.open_nursery() as nursery:
        serve_tcp = partial(trio.serve_tcp, handler, 0, host=HOST)
        (listener,) = await nursery.start(serve_tcp)
        with trio.fail_after(30):
            yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_tls_goes_through_whatever_is_a_stream():
    """A tunnel, here of TLS itself."""
    tunnel_context = server_context([make("tunnel", names=["tunnel.test"])])

    async def copy(source, target):
        while octets := await source.receive_some():
            await target.send_all(octets)

    with serve([GOOD, INTER]) as port:

        async def tunnel(transport):
            wrap = partial(tunnel_context.wrap_bio, server_side=True)
            outer = TlsStream(SocketStream(transport.socket._sock), wrap)
            await outer.handshake()
            async with await connect(port) as inner, trio.open_nursery() as nursery:
                nursery.start_soon(copy, outer, inner)
                nursery.start_soon(copy, inner, outer)

        async with accepting(tunnel) as gate:
            async with started(await connect(gate)) as outer, started(outer.stream) as inner:
                await inner.stream.send_all(b"hello\n")
                assert await inner.stream.receive_some() == b"olleh\n"
                assert inner.peer.certificate == GOOD.der
