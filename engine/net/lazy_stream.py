"""A connection that is made when there is something to say over it.

Whoever speaks first has no need of one before, and what is said first can ride in the SYN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.net.connector import Connection
    from engine.net.stream import ByteStream


class LazyStream:
    """A `ByteStream` that connects with the first octets that are sent.

    What connecting raises comes out of that `send_all`.  Before it, nothing can be sent without
    waiting, and nothing be received.
    """

    def __init__(self, connect: Callable[[bytes], Awaitable[Connection]]) -> None:
        """Make one.

        Args:
            connect: Connects, and sends these octets first.
        """
        self._connect: Callable[[bytes], Awaitable[Connection]] | None = connect
        self._stream: ByteStream | None = None

    @property
    def _connected(self) -> ByteStream:
        if self._stream is None:
            raise trio.ClosedResourceError("nothing was said yet, so there is no connection")
        return self._stream

    async def send_all(self, data: bytes | memoryview, /) -> None:
        """Send every octet, the first ones by connecting."""
        if self._connect is None:
            await self._connected.send_all(data)
            return
        connect, self._connect = self._connect, None
        self._stream = (await connect(bytes(data))).stream

    def send_nowait(self, data: bytes | memoryview, /) -> int:
        """Send what can be sent without waiting; that is nothing before the connection stands."""
        return 0 if self._connect is not None else self._connected.send_nowait(data)

    async def receive_some(self, max_octets: int | None = None, /) -> bytes:
        """Return what has arrived, at least one octet; `b""` is the end."""
        stream = self._connected
        return await (
            stream.receive_some() if max_octets is None else stream.receive_some(max_octets)
        )

    def receive_nowait(self) -> bytes | None:
        """Return what has arrived already; `b""` is the end, `None` where nothing has."""
        return self._connected.receive_nowait()

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; receiving goes on."""
        await self._connected.send_eof()

    async def aclose(self) -> None:
        """Close, politely where that means something."""
        self._connect = None
        if self._stream is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._stream.aclose()

    def close(self) -> None:
        """Close now; what was not connected never will be."""
        self._connect = None
        if self._stream is not None:
            self._stream.close()
