"""A real HTTPS server on loopback, with certificates made on the fly, for whoever fetches or posts.

server = HttpsServer({"/policy": Page(b"version: STSv1 ...")})
address = await nursery.start(server.run)
client = HttpsClient(server.dial, make_context=server.trusting)
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

import h11
import trio
import trustme

HOST = "mta-sts.example.test"


@dataclass
class Page:
    """What is answered at a path.

    Attributes:
        body: The octets, or pieces to send one by one.
        status: The status code.
        headers: Beside the length.
        pause: Seconds before each piece.
    """

    body: bytes | list[bytes] = b""
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("content-type", "text/plain")])
    pause: float = 0.0


class HttpsServer:
    """Serves pages, and remembers what it was asked.

    Attributes:
        pages: Path -> page; anything else is 404.
        requests: Method, path, headers and body of each request.
        connections: How many were made.
        names: The server names that were asked for.
    """

    def __init__(self, pages, *names, ca=None, **certificate):
        self.pages = pages
        self.ca = ca or trustme.CA()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or (HOST,)), **certificate).configure_cert(self.context)
        self.context.sni_callback = lambda _, name, __: self.names.append(name)
        self.requests = []
        self.connections = 0
        self.names = []
        self.address = None

    def trusting(self):
        """Make a client context that trusts the server's authority alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.hostname_checks_common_name = False
        self.ca.configure_trust(context)
        return context

    async def dial(self, host, port):
        """Connect to the server, whatever host is asked for."""
        return await trio.open_tcp_stream(*self.address)

    async def run(self, task_status):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = listeners[0].socket.getsockname()[:2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._serve, listeners)
            task_status.started(self.address)

    async def _serve(self, stream):
        self.connections += 1
        tls = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)
        try:
            await self._answer(tls)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(tls)

    async def _answer(self, tls):
        connection = h11.Connection(h11.SERVER)
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await tls.receive_some(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        path = request.target.decode()
        headers = {name.decode(): value.decode() for name, value in request.headers}
        self.requests.append((request.method.decode(), path, headers, body))
        await self._send_page(tls, connection, self.pages.get(path, Page(status=404)))

    async def _send_page(self, tls, connection, page):
        pieces = [page.body] if isinstance(page.body, bytes) else page.body
        headers = [*page.headers, ("content-length", str(sum(map(len, pieces))))]
        response = h11.Response(status_code=page.status, headers=headers)
        await tls.send_all(connection.send(response))
        for piece in pieces:
            await trio.sleep(page.pause)
            await tls.send_all(connection.send(h11.Data(data=piece)))
        await tls.send_all(connection.send(h11.EndOfMessage()))
