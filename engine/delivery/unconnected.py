"""The stream of a session that has no connection yet, because we speak first: nobody is there."""

from __future__ import annotations

from typing import Final

import trio


class _Unconnected:
    """The stream of a session that has not connected: there is nobody to talk to."""

    async def send_all(self, _data: bytes | memoryview, /) -> None:
        raise trio.ClosedResourceError

    def send_nowait(self, _data: bytes | memoryview, /) -> int:
        raise trio.ClosedResourceError

    async def receive_some(self, _max_octets: int = 0, /) -> bytes:
        raise trio.ClosedResourceError

    def receive_nowait(self) -> bytes | None:
        raise trio.ClosedResourceError

    async def send_eof(self) -> None:
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        pass


UNCONNECTED: Final = _Unconnected()
