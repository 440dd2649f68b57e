from __future__ import annotations

import trio

from engine.worker.config import Config
from engine.worker.given import read_config
from engine.worker.setup import make_engine


async def test_the_engine_is_made_of_all_that_is_configured():
    config = read_config(None, ["max_connections=3"])
    assert isinstance(config, Config)
    with trio.fail_after(10):
        async with make_engine(config, [("*", ["127.0.0.1:1"])], None) as engine:
            assert await engine.drain()
