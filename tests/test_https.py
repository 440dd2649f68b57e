from __future__ import annotations

import gzip
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import trio

from engine.https import CertificateError, HttpsClient, HttpsError, HttpsReply, default_context
from tests.https_server import HOST, HttpsServer, Page

URL = f"https://{HOST}/page"


@pytest.fixture
async def serve(nursery):
    """Return a function that starts a server and gives it, with a client that trusts it."""

    async def start(pages, *names, timeout=5.0, **options):
        server = HttpsServer(pages, *names, **options)
        await nursery.start(server.run)
        client = HttpsClient(server.dial, make_context=server.trusting, timeout=timeout)
        return server, client

    return start


async def test_a_page_is_fetched(serve):
    server, client = await serve({"/page": Page(b"hello")})

    reply = await client.get(URL, max_octets=100)

    assert reply == HttpsReply(200, "text/plain", b"hello")
    ((method, path, headers, body),) = server.requests
    assert (method, path, body) == ("GET", "/page", b"")
    assert headers["host"] == HOST
    assert "accept-encoding" not in headers
    assert server.names == [HOST]


async def test_octets_are_posted(serve):
    server, client = await serve({"/report": Page(b"thanks", status=201)})

    reply = await client.post(
        f"https://{HOST}/report", b"\x1f\x8b\x00", media_type="application/tlsrpt+gzip"
    )

    assert (reply.status, reply.octets) == (201, b"thanks")
    ((method, _, headers, body),) = server.requests
    assert (method, body) == ("POST", b"\x1f\x8b\x00")
    assert headers["content-type"] == "application/tlsrpt+gzip"
    assert headers["content-length"] == "3"


@pytest.mark.parametrize(
    ("value", "media_type"),
    [("Text/Plain; charset=utf-8", "text/plain"), ("text/html ;x", "text/html")],
)
async def test_the_media_type_is_told_without_parameters(value, media_type, serve):
    _, client = await serve({"/page": Page(headers=[("Content-Type", value)])})

    assert (await client.get(URL, max_octets=100)).media_type == media_type


async def test_a_page_without_media_type_has_none(serve):
    _, client = await serve({"/page": Page(headers=[])})

    assert (await client.get(URL, max_octets=100)).media_type == ""


async def test_a_redirect_is_not_followed(serve):
    page = Page(status=302, headers=[("location", f"https://{HOST}/other")])
    server, client = await serve({"/page": page, "/other": Page(b"no")})

    assert (await client.get(URL, max_octets=100)).status == 302
    assert len(server.requests) == 1


async def test_what_is_compressed_stays_so(serve):
    bomb = gzip.compress(b"0" * 10_000_000)
    page = Page(bomb, headers=[("content-type", "text/plain"), ("content-encoding", "gzip")])
    _, client = await serve({"/page": page})

    assert (await client.get(URL, max_octets=65536)).octets == bomb


@pytest.mark.parametrize(("size", "is_too_long"), [(1000, False), (1001, True), (10**6, True)])
async def test_an_answer_is_no_longer_than_is_taken(size, is_too_long, serve):
    pieces = [b"x" * min(4096, size - start) for start in range(0, size, 4096)]
    _, client = await serve({"/page": Page(pieces)})

    if is_too_long:
        with pytest.raises(HttpsError, match=r"GET https.*: the answer is longer than 1000 octets"):
            await client.get(URL, max_octets=1000)
    else:
        assert len((await client.get(URL, max_octets=1000)).octets) == 1000


async def test_an_answer_in_drops_is_given_up_in_time(serve):
    _, client = await serve({"/page": Page([b"x"] * 1000, pause=0.05)}, timeout=0.3)
    started = trio.current_time()

    with pytest.raises(HttpsError, match=r"no answer within 0\.3 s"):
        await client.get(URL, max_octets=1000)
    assert trio.current_time() - started < 2


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        (["other.test"], {}, "Hostname mismatch"),
        ([], {"common_name": HOST}, "Hostname mismatch"),
        ([HOST], {"not_after": NOW - timedelta(days=1)}, "certificate has expired"),
    ],
)
async def test_a_server_must_prove_who_it_is(names, options, reason, serve):
    names = names or ["other.test"]
    server, client = await serve({"/page": Page(b"hello")}, *names, **options)

    with pytest.raises(CertificateError, match=f"{HOST}: .*{reason}"):
        await client.get(URL, max_octets=100)
    assert not server.requests


async def test_an_authority_that_is_not_trusted_proves_nothing(serve):
    server, _ = await serve({"/page": Page(b"hello")})
    client = HttpsClient(server.dial)

    with pytest.raises(CertificateError, match="unable to get local issuer certificate"):
        await client.get(URL, max_octets=100)
    assert not server.requests


async def test_a_context_is_made_once(serve):
    server, _ = await serve({"/page": Page(b"hello")})
    made = []

    def make():
        made.append(1)
        return server.trusting()

    client = HttpsClient(server.dial, make_context=make)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lambda: client.get(URL, max_octets=100))
    assert made == [1]
    assert server.connections == 3


async def test_who_cannot_be_reached_is_an_error():
    async def dial(host, port):
        raise OSError(f"nobody at {host}:{port}")

    with pytest.raises(HttpsError, match=f"nobody at {HOST}:443"):
        await HttpsClient(dial).get(URL, max_octets=100)


async def test_a_port_in_the_url_is_dialled(serve):
    server, _ = await serve({"/page": Page(b"hello")})
    dialled = []

    async def dial(host, port):
        dialled.append((host, port))
        return await server.dial(host, port)

    await HttpsClient(dial, make_context=server.trusting).get(
        f"https://{HOST}:8443/page", max_octets=9
    )
    assert dialled == [(HOST, 8443)]


@pytest.mark.parametrize(
    "url", [f"http://{HOST}/page", "page", "ftp://x/", "https://[", "https://"]
)
async def test_only_https_is_spoken(url, serve):
    server, client = await serve({"/page": Page(b"hello")})

    with pytest.raises(HttpsError):
        await client.get(url, max_octets=100)
    assert server.connections == 0


@pytest.mark.parametrize(
    "greeting", [b"", b"220 mx.test ESMTP\r\n", b"\x16\x03\x03\xff\xff"], ids=repr
)
async def test_who_does_not_speak_tls_is_an_error(greeting, nursery):
    async def answer(stream):
        if greeting:
            await stream.send_all(greeting)
        await stream.aclose()

    async def run(task_status):
        await trio.serve_tcp(answer, 0, host="127.0.0.1", task_status=task_status)

    (listener,) = await nursery.start(run)

    async def dial(host, port):
        return await trio.testing.open_stream_to_socket_listener(listener)

    with pytest.raises(HttpsError):
        await HttpsClient(dial, timeout=5).get(URL, max_octets=100)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 abc\r\n\r\n", b"SSH-2.0\r\n", b"x" * 300_000])
async def test_who_does_not_speak_http_is_an_error(answer, nursery):
    server = HttpsServer({})

    async def serve_junk(tls):
        await tls.receive_some(4096)
        await tls.send_all(answer)

    server._answer = serve_junk
    await nursery.start(server.run)

    with pytest.raises(HttpsError):
        await HttpsClient(server.dial, make_context=server.trusting, timeout=5).get(
            URL, max_octets=100
        )


async def test_cancelled_it_leaves_no_connection_open(serve):
    server, client = await serve({"/page": Page([b"x"] * 1000, pause=0.05)})
    streams = []

    async def dial(host, port):
        streams.append(await server.dial(host, port))
        return streams[-1]

    client = HttpsClient(dial, make_context=server.trusting)
    with trio.move_on_after(0.2) as scope:
        await client.get(URL, max_octets=10_000)

    assert scope.cancelled_caught
    assert streams[0].socket.fileno() == -1


async def test_cancelled_in_the_handshake_it_leaves_no_connection_open(nursery):
    async def run(task_status):
        async def keep_silent(stream):
            await trio.sleep_forever()

        await trio.serve_tcp(keep_silent, 0, host="127.0.0.1", task_status=task_status)

    (listener,) = await nursery.start(run)
    streams = []

    async def dial(host, port):
        streams.append(await trio.testing.open_stream_to_socket_listener(listener))
        return streams[-1]

    with pytest.raises(HttpsError, match=r"no answer within 0\.2 s"):
        await HttpsClient(dial, timeout=0.2).get(URL, max_octets=9)
    assert streams[0].socket.fileno() == -1


def test_the_default_context_verifies():
    context = default_context()

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.hostname_checks_common_name
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_an_engine_does_not_load_the_http_library():
    code = (
        "import sys, engine, engine.routing.policy, engine.routing.sts_store as s; s.StsPolicies;"
    )
    code += "print(sorted({'httpcore2', 'h11', 'cryptography'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
