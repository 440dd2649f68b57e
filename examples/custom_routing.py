"""Decide where mail goes: static routes for some domains, a DNS of one's own for the rest.

Run `python examples/custom_routing.py`; it starts two sinks in this process, a smart host and a mail
exchanger, and asks no real DNS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine import Engine, Message, Recipient, Settings, from_text
from engine.routing.resolver import Answer, Resolver
from engine.testing.dns import FakeDns
from engine.testing.sink import open_sink

if TYPE_CHECKING:
    from engine.routing.resolver import Record, RecordType

HOSTS = {"smart.example.org": "127.0.0.1", "mx.example.net": "127.0.0.1"}
#: In a real program this is `engine.routing.stub.DnsResolver()`, or left out altogether.
DNS = FakeDns(
    {
        "example.net": {"MX": ["10 mx.example.net"]},
        "mx.example.net": {"A": ["192.0.2.25"]},
        "closed.example": {"MX": ["0 ."]},  # RFC 7505 §3: takes no mail at all
    }
)


class HostsFirst(Resolver):
    """Knows the addresses of some hosts, as /etc/hosts does, and asks another for the rest."""

    def __init__(self, hosts: dict[str, str], other: Resolver) -> None:
        self._hosts = hosts
        self._other = other

    async def query(self, name: str, rdtype: RecordType) -> Answer[Record]:
        """Answer from the hosts where they have the name."""
        if name not in self._hosts or rdtype not in {"A", "AAAA"}:
            return await self._other.query(name, rdtype)
        address = self._hosts[name]
        if (":" in address) != (rdtype == "AAAA"):
            return Answer("no-data", ttl=60.0)
        return Answer("ok", (address,), ttl=60.0)


async def main() -> None:
    """Send one message to three domains, and print which way each recipient went."""
    recipients = ("ada@partner.example", "bob@example.net", "eve@closed.example")
    message = Message(
        id="news",
        reverse_path=Message.parse_sender("news@example.org"),
        recipients=tuple(Recipient.parse(address) for address in recipients),
        content=from_text("Subject: To all of you\n\nThree domains, three ways.\n"),
    )
    async with open_sink() as smart_host, open_sink() as exchanger:
        engine = Engine(
            # Hosts found by MX are asked at this port; a route may name its own.
            Settings(port=exchanger.port),
            # First match wins; what matches none goes by MX.
            routes=[("partner.example", [f"smart.example.org:{smart_host.port}"])],
            resolver=HostsFirst(HOSTS, DNS),
            # Else an MX on loopback would be taken for ourselves and cut off (RFC 5321 §5.1).
            own_addresses=(),
        )
        async with engine:
            await engine.submit(message)
        async for outcome in engine.outcomes:  # they can be read after the block too
            print(f"{outcome.recipient}: {outcome.status}: {outcome.text}")


if __name__ == "__main__":
    trio.run(main)
