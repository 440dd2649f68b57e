"""Round trips of a message to a stock Exim at the far end of a long-distance link.

`python -m tests.bench roundtrips` has more rows, and Exim's own client beside us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from engine import Engine, Settings
from engine.net.connector import Connector
from engine.testing.wire import dialogue, round_trips, traces
from tests.servers import exim
from tests.servers.mailbox import Received
from tests.servers.provision import superuser, unpacked
from tests.servers.test_delivery import HEADER, SENDER, letter

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from engine.testing.link import Link

    OpenLink = Callable[..., AbstractAsyncContextManager[Link]]

pytestmark = pytest.mark.servers

CONTENT = HEADER + b"\r\n" + b"a line of a small message\r\n" * 100
#: The last message may take so many round trips more: what Exim needs to think and to store.
TOLERANCE = 0.3
MESSAGES = 3
IDLE_SECONDS = 0.1


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    """The settings of a row."""
    unpacked("usr/sbin/exim4")
    superuser("Exim")
    options = {"fast_open": "off", "chunking": False, "early_pipelining": False} | request.param
    return Settings(helo_name="client.test", tls="off", idle_timeout=IDLE_SECONDS, **options)


@pytest.mark.parametrize(
    ("settings", "goal"),
    [
        pytest.param({}, 5, id="pipelining"),
        pytest.param({"fast_open": "connect"}, 4, id="fast open"),
        pytest.param({"fast_open": "connect", "chunking": True}, 3, id="fast open, chunking"),
        pytest.param({"early_pipelining": True, "chunking": True}, 2, id="early, chunking"),
        pytest.param(
            {"early_pipelining": True, "chunking": True, "fast_open": "commands"},
            2,
            id="early, chunking, fast open",
        ),
    ],
    indirect=["settings"],
)
async def test_a_message_takes_the_fewest_round_trips(
    open_link: OpenLink, settings: Settings, goal: float
) -> None:
    async with open_link() as link:
        with exim.start(link.far) as server:
            routes = [("*", [f"{server.host}:{server.port}"])]
            connector = Connector(link.near.make_socket)
            async with Engine(
                settings, routes=routes, own_addresses=(), connector=connector
            ) as engine:
                for number in range(MESSAGES):
                    await engine.submit(letter(f"c{number}@ok.test", content=CONTENT))
                    outcome = await engine.outcomes.receive()
                    assert outcome.status == "delivered", outcome.text
                    # The next one finds no connection open, but what was learned of the host.
                    await trio.sleep(IDLE_SECONDS + 3 * link.round_trip)
            copies = await server.received(MESSAGES)
        connections = traces(link.log())
    assert len(connections) == MESSAGES
    # The first one may have to learn; the quickest of the others knows how it can be done.
    counts = [round_trips(trace, link.round_trip) for trace in connections[1:]]
    assert goal <= min(counts) < goal + TOLERANCE, [dialogue(trace) for trace in connections]
    expected = [Received(SENDER, (f"c{number}@ok.test",), CONTENT) for number in range(MESSAGES)]
    assert sorted(copies, key=lambda copy: copy.recipients) == expected
