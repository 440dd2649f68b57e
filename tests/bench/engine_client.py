"""This engine as a sender at the near end of a link: one message, or a backlog over one connection."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Engine, Message, Recipient, Settings, from_octets
from engine.net.connector import Connector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from engine.testing.link import End

#: Seconds a connection without work stays: long enough for a backlog, short enough to wait for.
IDLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class EngineClient:
    """An engine that runs, and so remembers what it learns of the far end."""

    engine: Engine

    async def send(self, recipients: list[str], content: bytes) -> None:
        """Deliver a message to each recipient, and return when all have their outcomes.

        Raises:
            RuntimeError: One was not delivered.
        """
        sender = Message.parse_sender("from@bench.test")
        for recipient in recipients:  # the engine takes far more before it is full
            to = (Recipient.parse(recipient),)
            await self.engine.submit(Message("", sender, to, from_octets(content)))
        for _ in recipients:
            outcome = await self.engine.outcomes.receive()
            if outcome.status != "delivered":
                raise RuntimeError(outcome.text)


def settings_for(options: Mapping[str, object]) -> Settings:
    """The settings of a row, with what all rows have in common."""
    common = {
        "helo_name": "client.bench.test",
        "idle_timeout": IDLE_SECONDS,
        "max_connections": 1,
    }
    return Settings(**common | dict(options))


@asynccontextmanager
async def engine_client(
    end: End, host: str, port: int, options: Mapping[str, object]
) -> AsyncIterator[EngineClient]:
    """Run an engine for the length of the block; it sends all mail to `host` and `port`."""
    async with Engine(
        settings_for(options),
        routes=[("*", [f"{host}:{port}"])],
        own_addresses=(),
        connector=Connector(end.make_socket),
    ) as engine:
        yield EngineClient(engine)
