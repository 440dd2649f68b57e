from __future__ import annotations

import pytest
import trio

from engine.delivery.unconnected import UNCONNECTED


async def test_there_is_nobody_to_talk_to():
    with pytest.raises(trio.ClosedResourceError):
        await UNCONNECTED.send_all(b"octets")
    with pytest.raises(trio.ClosedResourceError):
        await UNCONNECTED.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await UNCONNECTED.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        UNCONNECTED.send_nowait(b"octets")
    with pytest.raises(trio.ClosedResourceError):
        UNCONNECTED.receive_nowait()


async def test_closing_it_is_no_harm():
    UNCONNECTED.close()
    await UNCONNECTED.aclose()
    UNCONNECTED.close()
