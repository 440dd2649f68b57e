"""One HTTPS exchange at a time, strictly bounded: for MTA-STS policies and for TLS reports.

Used by `engine.routing.sts_fetch` and `engine.report.tlsrpt_send`; import it where it is used, for
it brings an HTTP library along.  No redirects, no caching, no decompression, and who is asked must
prove who it is.  Not here: what the answers mean, and how a host name becomes a connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpcore2
import trio

if TYPE_CHECKING:
    from httpcore2 import AsyncNetworkStream

#: Seconds for a whole exchange; RFC 8461 §3.3 suggests them for policies.
DEFAULT_TIMEOUT: Final = 60.0
_READ_OCTETS: Final = 64 * 1024
_USER_AGENT: Final = b"delivery-engine"

#: Opens a connection to a host name and port; raises `OSError` where it cannot.
Dial: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]


class HttpsError(Exception):
    """An exchange that did not come to an answer; the text says why."""


class CertificateError(HttpsError):
    """The server could not prove who it is."""


@dataclass(frozen=True, slots=True)
class HttpsReply:
    """What a server answered.

    Attributes:
        status: The HTTP status code.
        media_type: The media type without parameters, lower-case; empty where none was given.
        octets: The body, as it came.
    """

    status: int
    media_type: str
    octets: bytes


def default_context() -> ssl.SSLContext:
    """Return a context that trusts the system's certificates.  Reads files: call it in a thread."""
    context = ssl.create_default_context()
    # RFC 8461 §3.3: matching is against DNS-IDs only.
    context.hostname_checks_common_name = False
    return context


class HttpsClient:
    """Makes exchanges, each over a connection of its own.

    Args:
        dial: Opens the connections.
        make_context: Makes the TLS context when it is first needed, in a thread.
        timeout: Seconds for one exchange, from the name lookup to the last octet.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        make_context: Callable[[], ssl.SSLContext] = default_context,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._dial = dial
        self._make_context = make_context
        self._timeout = timeout
        self._making = trio.Lock()
        self._context: ssl.SSLContext | None = None

    async def get(self, url: str, *, max_octets: int) -> HttpsReply:
        """Fetch what is at a URL.

        Raises:
            HttpsError: No answer, in time and of this size at most.
        """
        return await self._exchange("GET", url, [], b"", max_octets)

    async def post(
        self, url: str, octets: bytes, *, media_type: str, max_octets: int = 4096
    ) -> HttpsReply:
        """Send octets to a URL.

        Raises:
            HttpsError: No answer, in time and of this size at most.
        """
        headers = [(b"content-type", media_type.encode("ascii"))]
        return await self._exchange("POST", url, headers, octets, max_octets)

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        max_octets: int,
    ) -> HttpsReply:
        with trio.move_on_after(self._timeout):
            context = await self._take_context()
            try:
                return await self._ask(context, method, url, headers, body, max_octets)
            except (
                OSError,
                ValueError,
                trio.BrokenResourceError,
                httpcore2.NetworkError,
                httpcore2.ProtocolError,
                httpcore2.UnsupportedProtocol,
            ) as error:
                text = str(error) or type(error).__name__
                raise HttpsError(f"{method} {url[:300]}: {text[:300]}") from error
        raise HttpsError(f"{method} {url[:300]}: no answer within {self._timeout:g} s")

    async def _take_context(self) -> ssl.SSLContext:
        async with self._making:
            if self._context is None:
                self._context = await trio.to_thread.run_sync(self._make_context)
            return self._context

    async def _ask(
        self,
        context: ssl.SSLContext,
        method: str,
        url: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        max_octets: int,
    ) -> HttpsReply:
        parts = httpcore2.URL(url)
        if parts.scheme != b"https" or not parts.host:
            raise ValueError("not an https: URL with a host")
        pool = httpcore2.AsyncConnectionPool(
            ssl_context=context, max_connections=1, network_backend=_Network(self._dial)
        )
        headers = [(b"user-agent", _USER_AGENT), *headers]
        async with pool, pool.stream(method, parts, headers=headers, content=body) as response:
            octets = bytearray()
            async with aclosing(response.aiter_stream()) as pieces:
                async for piece in pieces:
                    octets += piece
                    if len(octets) > max_octets:
                        raise ValueError(f"the answer is longer than {max_octets} octets")
            return HttpsReply(response.status, _media_type(response.headers), bytes(octets))


def _media_type(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name.lower() == b"content-type":
            return value.partition(b";")[0].strip().lower().decode("ascii", "backslashreplace")
    return ""


class _Network(httpcore2.AsyncNetworkBackend):
    """Gives the HTTP library connections of our own making."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the whole exchange has a deadline
        local_address: str | None = None,  # noqa: ARG002 - the dialler's matter
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> AsyncNetworkStream:
        return _Stream(await self._dial(host, port))


class _Stream(httpcore2.AsyncNetworkStream):
    """Lets the HTTP library use a Trio stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return bytes(await self._stream.receive_some(min(max_bytes, _READ_OCTETS)))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        if buffer:
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> AsyncNetworkStream:
        stream = trio.SSLStream(
            self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            await self.aclose()
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise CertificateError(
                    f"{server_hostname}: {error.__cause__.verify_message}"
                ) from error
            raise OSError(f"TLS handshake failed: {error.__cause__ or error}") from error
        except BaseException:
            await self.aclose()
            raise
        return _Stream(stream)

    def get_extra_info(self, info: str) -> Any:  # noqa: ARG002
        return None
