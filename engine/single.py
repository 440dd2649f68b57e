"""One SMTP session with one host, without an engine around it: `open_session`.

For programs that want to hold the session in their own hands: probes, tests, a single message to a
smart host.  Outcomes are the same values as everywhere; there is no next host to go on to.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from engine.delivery.attempt import Attempt
from engine.delivery.carrier import Carrier
from engine.delivery.host_session import HostSession
from engine.delivery.session import run_session
from engine.delivery.shared import Path, Shared
from engine.errors import SessionRefusedError
from engine.net.errors import ConnectFailed
from engine.net.port import port_for, refuse_unknown_services
from engine.net.tls import TlsClient
from engine.outcome import Outcome, Peer
from engine.paths import SettingsTable, refuse_contradictions
from engine.queue.hints import MemoryHints
from engine.report.statistics import Recorder
from engine.report.stream import EventStream
from engine.route import Unroutable
from engine.routing.mx import plan
from engine.routing.policy import Policies
from engine.routing.router import Router
from engine.routing.table import RouteTable
from engine.security import HostRefused
from engine.settings import Settings
from engine.tls_files import names_files, refuse_bad_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.message import Message
    from engine.net.connector import Connection, ConnectorLike
    from engine.net.stream import ByteStream
    from engine.routing.resolver import Resolver
    from engine.security import TlsDemand
    from engine.smtp.capabilities import Capabilities
    from engine.smtp.command import Command
    from engine.smtp.connection import Answered

__all__ = ["SessionRefusedError", "SmtpSession", "open_session"]

#: Any domain serves to ask the table for the one host it knows.
_ANY_DOMAIN: Final = "host.invalid"


class SmtpSession:
    """A session that has said hello.

    Attributes:
        peer: Both ends.
        offered: What the host offers.
    """

    def __init__(self, host: HostSession) -> None:
        self.peer: Peer = host.peer
        self.offered: Capabilities = host.offered
        self._host = host

    async def send(self, message: Message) -> list[Outcome]:
        """Deliver a message here; one outcome a recipient, in the order they became known.

        Whatever the host refuses or loses is in the outcomes.  Cancelled before the content's
        end, nothing was delivered and the session is of no further use.
        """
        outcomes: list[Outcome] = []
        attempt = Attempt(
            message, message.recipients, outcomes.append, submitted_at=trio.current_time()
        )
        # There is no second connection to try again on: the first answer stands.
        attempt.lockstep = attempt.had_stale_connection = True
        await Carrier(self._host, _One(attempt)).run()
        attempt.give_up(trio.current_time())
        return outcomes

    async def exchange(self, *window: Command) -> list[Answered]:
        """Send commands as one window and return their replies; fewer when the session is lost.

        Raises:
            LocalProtocolError: SMTP does not allow one of them now.
        """
        await self._host.session.send(*window)
        return await self._host.session.replies(len(window))


class _One:
    """A source of one attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt: Attempt | None = attempt

    def take(self) -> Attempt | None:
        attempt, self._attempt = self._attempt, None
        return attempt

    async def wait(self, room: int) -> None:
        """There is no more."""

    @property
    def is_over(self) -> bool:
        """Whoever holds the session says when it is over."""
        return False

    def withdraw(self, attempt: Attempt) -> None:
        """Never asked: the connection stands."""

    def done(self, attempt: Attempt) -> None:
        """Whom the host has not decided on is left to `SmtpSession.send`."""


@asynccontextmanager
async def open_session(
    connector: ConnectorLike,
    host: str,
    *,
    settings: Settings | None = None,
    resolver: Resolver | None = None,
) -> AsyncIterator[SmtpSession]:
    """Connect to a host and say hello; QUIT on leaving the block.

    Args:
        connector: Makes the connection.
        host: `HOST[:PORT]`: a name, `192.0.2.1`, `[2001:db8::1]:2525`; or `unix:/PATH`.  No MX
            lookup.
        settings: How to connect and what to say; by default the usual.
        resolver: Finds the addresses of a name; by default this machine's name servers.

    Raises:
        SessionRefusedError: There is no session; the text says why.
        ConfigError: Settings cannot hold together, or name files that cannot be used.
        ValueError: `host` is none; the text says what is allowed.
    """
    settings = settings or Settings()
    table = SettingsTable(settings)
    refuse_contradictions(table)
    refuse_unknown_services({"port": settings.port})
    if names_files(table):
        await trio.to_thread.run_sync(refuse_bad_files, table)
    path = Path.of(settings)
    if resolver is None:
        from engine.routing.stub import DnsResolver

        resolver = DnsResolver()
    shared = _bystander(connector, settings, Policies(resolver))
    connection, demand = await _connect(shared, host, path, resolver)
    facts = connection.facts
    peer = Peer(facts.host, facts.address, facts.port, facts.local_address, 1)
    is_secured = settings.protocol == "smtps"

    async def secure(_words: bytes) -> ByteStream:
        return await there.shake_hands(connection.stream)

    async with run_session(secure if is_secured else connection.stream, path.timeouts) as session:
        there = HostSession(session, peer, path, shared, demand)
        there.connected(connection, peer)
        refusal = await there.greet()
        if refusal is not None:
            await there.quit()
            raise SessionRefusedError(refusal.text)
        try:
            yield SmtpSession(there)
        finally:
            await there.quit()


async def _connect(
    shared: Shared, host: str, path: Path, resolver: Resolver
) -> tuple[Connection, TlsDemand]:
    family = path.settings.address_family
    router = Router(resolver, table=RouteTable([("*", [host])]))
    route = await router.route(_ANY_DOMAIN, family)
    if isinstance(route, Unroutable):
        raise SessionRefusedError(route.text)
    failures = [failure.text for failure in route.failures]
    for candidate in plan(route, family, Random()):  # noqa: S311 - guards nothing
        port = port_for(candidate, path.options) or 0
        demand = await shared.policies.demand(_ANY_DOMAIN, route, candidate, port, path.settings)
        if isinstance(demand, HostRefused):
            failures.append(demand.text)
            continue
        try:
            return await shared.connector.connect(candidate, path.options), demand
        except ConnectFailed as failure:
            failures.append(failure.text)
    raise SessionRefusedError("; ".join(failures))


def _bystander(connector: ConnectorLike, settings: Settings, policies: Policies) -> Shared:
    """What a host session needs of an engine, where there is none."""
    return Shared(
        connector=connector,
        table=SettingsTable(settings),
        plan=plan,
        events=EventStream(),
        recorder=Recorder(),
        settle=lambda _: None,
        clock=time.time,
        rng=Random(),  # noqa: S311 - guards nothing
        grace=0.0,
        make_transcript=None,
        hints=MemoryHints(),
        policies=policies,
        tls=TlsClient(),
    )
