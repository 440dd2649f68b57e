"""The engine: where the rooms meet.  Owns the one nursery under which everything runs.

    submit → seats (back-pressure) → router → one pool a site → outcomes

Everything a message goes through on its way to a pool is `engine.dispatch`'s.
"""

from __future__ import annotations

import math
import time
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Final, Self

import trio

from engine import arguments
from engine.callout import Callout
from engine.delivery.shared import Shared
from engine.dispatch import Dispatcher
from engine.errors import ConfigError
from engine.message import Message
from engine.net.connector import Connector
from engine.net.port import refuse_unknown_services
from engine.net.tls import TlsClient
from engine.nursery import tasks_beside
from engine.outcomes import Outcomes, Seats
from engine.paths import SettingsTable, refuse_contradictions
from engine.report.events import MessageSubmitted, RecipientSettled
from engine.report.statistics import Recorder
from engine.report.stream import EventStream
from engine.report.transcript import Transcript
from engine.routing.mx import plan
from engine.routing.own import read_own_addresses
from engine.routing.policy import Policies
from engine.routing.resolver import NoResolver
from engine.routing.router import LOOPBACK, Router
from engine.routing.sts_fetch import StsFetcher, dial_by
from engine.routing.sts_store import StsPolicies
from engine.routing.table import RouteTable
from engine.settings import Settings
from engine.tls_files import names_files, refuse_bad_files
from engine.tls_reports import TlsReports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from engine.callout import Verification
    from engine.hints import Hints
    from engine.net.connector import ConnectorLike
    from engine.outcome import Outcome, Peer
    from engine.queue.scheduler import Scheduler
    from engine.queue.store import Store
    from engine.report.statistics import Statistics
    from engine.report.tlsrpt_form import Reporter
    from engine.routing.resolver import Resolver
    from engine.stored import QueueOptions, Stored

#: Recipients inside the engine, from submit to the reading of their outcomes.  With messages of
#: 50 KB that is 50 MB at most; enough to keep some hundred connections busy.
DEFAULT_MAX_IN_FLIGHT: Final = 1000
#: Seconds a cancelled engine waits for the replies to contents that have left already.
DEFAULT_GRACE: Final = 10.0
#: Seconds for one DNS lookup, repeats included.
DEFAULT_DNS_TIMEOUT: Final = 5.0


class Engine:
    """Delivers messages; an async context manager that owns one nursery.

        async with Engine() as engine:
            await engine.submit(message)
            outcome = await engine.outcomes.receive()

    Leaving the block normally drains: everything submitted is delivered or given up first.  An
    exception, or a cancellation from outside, stops at once: what was not sent is `deferred` with
    cause `cancelled`, and a content that has left is waited for `grace` seconds, then `unknown`.
    Either way each recipient has exactly one outcome, which can be read after the block too.

    Messages are many objects and no cycles: a program that does little else than send them sends
    a tenth more after `gc.set_threshold(50_000)`, as the command line does.

    Attributes:
        outcomes: One `Outcome` for each recipient submitted, as each becomes known; with a store one
            for each of its attempts, unless `QueueOptions` says otherwise, once the store knows it.
        scheduler: Works the store, where there is one.
        events: What happens inside, for whoever subscribes.
    """

    def __init__(
        self,
        settings: Settings | SettingsTable | None = None,
        *,
        routes: Iterable[tuple[str, Sequence[str]]] = (),
        resolver: Resolver | None = None,
        name_servers: Sequence[str] = (),
        dns_timeout: float = DEFAULT_DNS_TIMEOUT,
        trusted_name_servers: Sequence[str] | None = None,
        own_addresses: Iterable[str] | None = None,
        own_names: Iterable[str] = (),
        router: Router | None = None,
        connector: ConnectorLike | None = None,
        hints: Hints | None = None,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        transcripts: bool = False,
        veto: Callable[[Peer, str], str | None] | None = None,
        veto_greeting: Callable[[Peer, str], str | None] | None = None,
        tls_reporter: Reporter | None = None,
        sign: Callable[[bytes], Awaitable[bytes]] | None = None,
        grace: float = DEFAULT_GRACE,
        store: Store | None = None,
        queue: QueueOptions | None = None,
        clock: Callable[[], float] = time.time,
        rng: Random | None = None,
    ) -> None:
        """Make an engine; it runs inside its `async with` block.

        Args:
            settings: Settings for all hosts, or a table with rules for paths.
            routes: Static routes, first match wins: `("*", ["127.0.0.1:2525"])`.  Domains that
                match none are routed by MX.
            resolver: Answers DNS questions; by default it asks `name_servers`.
            name_servers: IP addresses with or without a port; empty: those of this machine.
            dns_timeout: Seconds for one DNS lookup, repeats included.
            trusted_name_servers: IP addresses of name servers that validate with DNSSEC, and to
                which the way is secure, for DANE.  `None`: those on this machine.
            own_addresses: IP addresses that are ourselves: an MX that has one is cut off with all
                behind it (RFC 5321 §5.1).  `None`: the addresses of this machine.  Empty: nothing
                is ourselves, loopback neither.
            own_names: Host names that are ourselves in the same sense.
            router: Routes domains; with it the seven above have no effect, but for `resolver`,
                which is asked for policies.
            connector: Makes connections.
            hints: What is learned of hosts that is worth knowing next time; `None`: it is kept for
                the life of this engine.  `engine.queue.hints.open_hints` keeps it in a file.
            max_in_flight: Recipients inside the engine, at least 1; `submit` waits beyond that.  Who
                has an outcome is inside until it is read.  With a store `submit` does not wait: so
                many are tried at a time, and nobody else while as many outcomes wait to be read.
            transcripts: Keep the SMTP dialogue of each outcome.
            veto: Asked before each connection with the peer and the name of its site; returns why
                not to connect, or `None`.  A vetoed host is deferred with cause `event`, and the
                next one is tried.  It must not wait, and runs for every connection.
            veto_greeting: The same, asked when a host has greeted, with the peer and the greeting.
            tls_reporter: Who tells receivers each day how TLS with them went (RFC 8460 §5), by mail
                through this engine or over HTTPS; `None`: nobody.
            sign: Returns those reports with a DKIM signature, which RFC 8460 §3 asks for.
            grace: Seconds a cancelled engine waits for replies to contents that have left; 0: it
                waits for none.
            store: Where mail is kept until it is done with.  Then `submit` returns when a message is
                in it for good, recipients are tried again as the retry rules say, and there is an
                outcome for each attempt.  What a run that ended has left there is delivered, too.
                `engine.queue.sqlite.open_store` keeps it in a file; what that returns is opened here,
                and closed at the end of the block; what entering it gave stays open.
            queue: How the store is dealt with.
            clock: Wall clock, seconds since the epoch.
            rng: Shuffles hosts of equal preference, and chooses among equal proxies.

        Raises:
            ConfigError: Settings or routes cannot be used.
            ValueError: There is `queue`, and no store; `max_in_flight` is below 1, or `grace` below 0.
            TypeError: An argument is of another type, such as a path for `store`.
        """
        arguments.check_count("max_in_flight", max_in_flight)
        arguments.check_seconds("grace", grace)
        arguments.check_resolver(resolver)
        arguments.check_store(store)
        if isinstance(settings, SettingsTable):
            table = settings
        elif settings is None or isinstance(settings, Settings):
            table = SettingsTable(settings or Settings())
        else:
            kind = type(settings).__name__
            raise TypeError(f"settings is a {kind}; allowed are Settings and SettingsTable")
        refuse_contradictions(table)
        overrides = {f"paths[{n}] {rule.match}": rule for n, rule in enumerate(table.rules)}
        refuse_unknown_services(
            {"port": table.defaults.port}
            | {f"{place}: port": rule.overrides.get("port") for place, rule in overrides.items()}
        )
        self._clock = clock
        self._recorder = Recorder()
        self._seats = Seats(max_in_flight)
        self._outcomes = self.outcomes = Outcomes(self._seats)
        self.events = EventStream()
        rng = rng or Random()  # noqa: S311 - spreads load, guards nothing
        self.scheduler: Scheduler | None = None
        self._stored = _stored(store, queue, max_in_flight, clock, rng)
        if self._stored is not None:
            self.scheduler, self.outcomes = self._stored.scheduler, self._stored.outcomes
        hints = hints if hints is not None else _default_hints(clock)
        if resolver is None:
            resolver = (
                make_resolver(name_servers, dns_timeout, trusted_name_servers)
                if router is None
                else NoResolver()
            )
        made_router = router or make_router(routes, resolver, own_addresses, own_names)
        self._sts = StsPolicies(resolver, hints, StsFetcher(dial_by(resolver)), clock=clock)
        policies = Policies(resolver, self._sts)
        self._reports = None
        if tls_reporter is not None:
            self._reports = TlsReports(
                tls_reporter, resolver, hints, self._send_apart, sign=sign, clock=clock, rng=rng
            )
        self._shared = Shared(
            connector=connector or Connector(hints=hints, rng=rng),
            table=table,
            plan=plan,
            events=self.events,
            recorder=self._recorder,
            settle=self._settle,
            clock=clock,
            rng=rng,
            grace=grace,
            make_transcript=Transcript if transcripts else None,
            hints=hints,
            policies=policies,
            tls=TlsClient(),
            tls_counters=self._reports.counters if self._reports is not None else None,
            veto=veto,
            veto_greeting=veto_greeting,
            journal=self.scheduler.mark if self.scheduler is not None else None,
            learn_route=self.scheduler.learn_route if self.scheduler is not None else None,
        )
        self._dispatcher = Dispatcher(self._shared, made_router, policies, self._wake)
        self._nursery: trio.Nursery | None = None
        self._running: AbstractAsyncContextManager[None] | None = None
        self._unsettled = 0
        self._is_draining = False
        self._changed = trio.Event()

    # -- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise RuntimeError("an Engine can be entered once")
        self._running = self._run() if self._stored is None else self._run_stored(self._stored)
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._running is not None
        return await self._running.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        try:
            if names_files(self._shared.table):
                await trio.to_thread.run_sync(refuse_bad_files, self._shared.table)
            async with tasks_beside() as nursery:
                self._nursery = nursery
                self._dispatcher.run_in(nursery)
                nursery.start_soon(self._sts.run, name="MTA-STS policies")
                if self._reports is not None:
                    nursery.start_soon(self._reports.run, name="TLS reports")
                try:
                    yield
                    await self.drain()
                finally:
                    self._seats.close()  # what is cancelled may take its time, and takes nothing
        finally:
            self._nursery = None
            self._outcomes.end()
            self.events.close()

    @asynccontextmanager
    async def _run_stored(self, stored: Stored) -> AsyncIterator[None]:
        # The engine is inside: when it has ended everybody has an outcome, and is settled.
        try:
            async with stored.opened(), stored.scheduler:
                try:
                    async with self._run():
                        await stored.recover()
                        assert self._nursery is not None
                        self._nursery.start_soon(
                            stored.run, self._deliver, self._outcomes, name="scheduler"
                        )
                        yield
                finally:
                    stored.close()
        finally:
            self.outcomes.end()

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no more messages, finish what is in flight, say QUIT to idle connections.

        With a store, what is in flight is what is being tried; the rest stays there.

        Args:
            timeout: Seconds after which the rest is cancelled; `None` waits for all.

        Returns:
            Whether everything was finished in time.
        """
        self._is_draining = True
        seconds = math.inf if timeout is None else timeout
        with trio.CancelScope(relative_deadline=seconds) as scope:
            if self._stored is not None:
                await self._stored.drain()
            self._seats.close()
            await self._wait_until(lambda: not self._dispatcher.is_routing)
            for pool in self._dispatcher.pools.values():
                pool.expect_no_more()
            await self._wait_until(lambda: self._unsettled == 0)
            for pool in list(self._dispatcher.pools.values()):
                pool.drain()
            await self._wait_until(lambda: not self._dispatcher.pools)
        if scope.cancelled_caught:
            self.cancel()
        return not scope.cancelled_caught

    async def wait_empty(self) -> None:
        """Wait until everybody in the store is done with, or held.

        To be called once all was submitted.  Cancelled, nothing is different.

        Raises:
            ValueError: There is no store.
        """
        if self.scheduler is None:
            raise ValueError("an engine without a store has nothing that waits")
        await self.scheduler.wait_empty()

    def cancel(self) -> None:
        """Stop at once; as if cancelled from outside, but only this engine."""
        self._seats.close()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._changed.is_set():
                self._changed = trio.Event()  # one for all who wait
            await self._changed.wait()

    # -- intake -----------------------------------------------------------------------------

    async def submit(self, message: Message) -> str:
        """Take a message for delivery; waits while the engine is full.

        A message without an `id` gets its number among those submitted.  Cancelled, the message
        was not taken.

        With a store this returns when the message is in it for good; an id makes submitting it
        twice harmless, and one that is made names it for ever.

        Returns:
            The message's id.

        Raises:
            EngineClosedError: The engine is draining or closed.
            RuntimeError: The engine was not entered.
            StoreError: The store has not taken it.
            SubmitError: The store cannot keep it; the text says why.
            TypeError: It is no message.
        """
        if not isinstance(message, Message):
            raise arguments.no_message(message)
        self._check_entered()
        if self._stored is not None:
            return await self._stored.submit(message)
        return await self._deliver(message)

    def _check_entered(self) -> None:
        if self._running is None:
            raise RuntimeError("an Engine works only inside its `async with` block")

    async def _deliver(self, message: Message) -> str:
        count = len(message.recipients)
        if not self._seats.take_nowait(count):
            await self._seats.take(count)
        recorder = self._recorder
        recorder.messages += 1
        recorder.recipients += count
        name = message.id or str(recorder.messages)
        self._unsettled += count
        try:
            if MessageSubmitted in self.events.wanted:
                octets = message.content.facts.octets
                self.events.publish(MessageSubmitted(self._clock(), name, count, octets))
            self._dispatcher.dispatch(message, name)
        except BaseException:
            recorder.messages -= 1
            recorder.recipients -= count
            self._not_taken(count)
            raise
        return name

    def _not_taken(self, count: int) -> None:
        """Forget recipients who will have no outcome, as whoever submitted them gets an error."""
        self._seats.give_back(count)
        self._unsettled -= count
        if self._unsettled == 0 and self._is_draining:
            self._wake()

    async def verify(
        self,
        addresses: Sequence[str],
        *,
        sender: str = "",
        catch_all: bool = False,
        fresh: bool = False,
    ) -> list[Verification]:
        """Ask whether addresses would be taken, without sending anything.

        Hosts are walked and connections shared as for mail; MAIL and RCPT are said, and no content.
        What was answered is believed for a while, by the hints: an acceptance for a day, a refusal
        for two hours.  Cancelled, the questions that are under way are asked to their end.

        Args:
            addresses: Forward-paths; some hosts do not like many at a time.
            sender: The reverse-path to ask with; empty is the null path.
            catch_all: Whether hosts are also asked about an address that cannot exist: who would
                take that says nothing about the others.
            fresh: Whether hosts are asked whatever was answered before.

        Returns:
            What is known of each address, in their order.

        Raises:
            AddressSyntaxError: One of them is no mailbox; nothing was asked.
            EngineClosedError: The engine is draining or closed.
            RuntimeError: The engine was not entered.
        """
        self._check_entered()
        callout = Callout(
            addresses, self._shared.hints, sender=sender, catch_all=catch_all, fresh=fresh
        )
        if callout.message is not None:
            await self._send_apart(callout.message, callout.hear, is_callout=True)
        return callout.verifications()

    async def _send_apart(
        self, message: Message, hear: Callable[[Outcome], None], *, is_callout: bool = False
    ) -> None:
        """Send what is not the user's, and wait until every recipient has an outcome."""
        count = left = len(message.recipients)
        is_over = trio.Event()

        def settle(outcome: Outcome) -> None:
            nonlocal left
            hear(outcome)
            self._seats.give_back()
            self._settled_one()
            left -= 1
            if not left:
                is_over.set()

        if not self._seats.take_nowait(count):
            await self._seats.take(count)
        self._unsettled += count
        try:
            self._dispatcher.dispatch_apart(message, settle, is_callout=is_callout)
        except BaseException:
            self._not_taken(count)
            raise
        await is_over.wait()

    def statistics(self) -> Statistics:
        """Return the numbers of this moment."""
        return self._recorder.snapshot(
            events_dropped=self.events.dropped,
            sites=[pool.statistics() for pool in self._dispatcher.pools.values()],
        )

    # -- results ----------------------------------------------------------------------------

    def _settle(self, outcome: Outcome) -> None:
        self._recorder.settled[outcome.status] += 1
        if RecipientSettled in self.events.wanted:
            self.events.publish(RecipientSettled(self._clock(), outcome))
        self._outcomes.put(outcome)
        self._unsettled -= 1
        if self._is_draining and not self._unsettled:
            self._wake()

    def _settled_one(self) -> None:
        self._unsettled -= 1
        if self._unsettled == 0 and self._is_draining:
            self._wake()

    def _wake(self) -> None:
        self._changed.set()


def _stored(
    store: Store | None,
    options: QueueOptions | None,
    seats: int,
    clock: Callable[[], float],
    rng: Random,
) -> Stored | None:
    if store is None:
        if options is not None:
            raise ValueError("options of a queue are of use only with a store")
        return None
    from engine.stored import QueueOptions, Stored  # it brings the queue along

    if not (options is None or isinstance(options, QueueOptions)):
        raise arguments.wrong_type("queue", options, "QueueOptions")
    return Stored(store, options or QueueOptions(), seats=seats, clock=clock, rng=rng)


def _default_hints(clock: Callable[[], float]) -> Hints:
    from engine.queue.hints import MemoryHints  # it brings SQLite along

    return MemoryHints(clock=clock)


def make_resolver(
    name_servers: Sequence[str], dns_timeout: float, trusted_name_servers: Sequence[str] | None
) -> Resolver:
    """Return the resolver that an engine has with these arguments of the same names."""
    # dnspython is slow to import, and who brings a resolver does not need it.
    from engine.routing.cache import CachingResolver
    from engine.routing.stub import DnsResolver

    stub = DnsResolver(name_servers, timeout=dns_timeout, trusted=trusted_name_servers)
    return CachingResolver(stub)


def make_router(
    routes: Iterable[tuple[str, Sequence[str]]],
    resolver: Resolver,
    own_addresses: Iterable[str] | None,
    own_names: Iterable[str],
) -> Router:
    """Return the router that an engine has with these arguments of the same names.

    Raises:
        ConfigError: One of them cannot be used.
    """
    if own_addresses is None:
        own_addresses = read_own_addresses() | LOOPBACK
    try:
        return Router(
            resolver,
            table=RouteTable(routes),
            local_addresses=own_addresses,
            own_names=own_names,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
