"""Look at a mail host: connect, say hello, start TLS, see the certificate, say QUIT.

Called by `engine.worker.explain` for each place where mail would be tried.  It goes the way mail
goes, by the same connector and the same opening of a session, as far as that says nothing of mail:
no MAIL, no AUTH, and nothing is remembered.  TLS is made whatever certificate the host shows, for
that is what is to be seen; what each policy makes of it is judged behind it, by
`engine.worker.explain_judge`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import trio

from engine.delivery.approach import unconnected
from engine.delivery.host_session import may_go_in_clear, own_name, tls_verdict
from engine.delivery.opening import Opening, Terms, say_quit
from engine.delivery.session import run_session
from engine.delivery.session_terms import SessionLost
from engine.delivery.verdict import judge, lost
from engine.net.errors import ConnectFailed
from engine.net.tls import TlsClient
from engine.net.tls_errors import TlsFailed
from engine.outcome import Peer
from engine.security import TlsDemand, TlsLevel
from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities
from engine.smtp.command import Kind
from engine.worker.explain_certificate import read_certificate
from engine.worker.explain_judge import Judge

if TYPE_CHECKING:
    from engine.delivery.verdict import Trouble, Verdict
    from engine.net.connector import Connection, ConnectorLike
    from engine.net.facts import ConnectionFacts
    from engine.net.stream import ByteStream
    from engine.net.tls import TlsConnection
    from engine.outcome import FastOpen, TlsFacts
    from engine.route import Route
    from engine.routing.mta_sts import StsPolicy
    from engine.smtp.reply import Reply
    from engine.worker.explain_certificate import Certificate
    from engine.worker.explain_gather import Lead
    from engine.worker.explain_judge import Judgement

#: Seconds a person waits for anything a host does; mail waits for as long as the settings say.
PATIENCE: Final = 30.0


@dataclass(frozen=True, slots=True)
class TlsSight:
    """TLS as a host does it.

    Attributes:
        facts: Version and cipher.
        seconds: How long the handshake took.
        resumable: Seconds for which the session could be resumed, `None` where it could not.
        chain: How many certificates the host sent.
        certificate: Its own, `None` where it has none or it cannot be read.
        judgements: What each policy makes of it.
    """

    facts: TlsFacts
    seconds: float
    resumable: float | None
    chain: int
    certificate: Certificate | None
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a host.

    Attributes:
        trouble: Why it would not be given mail; `None` where it would.
        connection: The connection, `None` where there was none.
        fast_open: What TCP Fast Open did.
        round_trip: Seconds, by the kernel's estimate; `None` where it has none.
        greeting: What it greeted with, `None` where it did not.
        greeting_seconds: How long that took, from the connection on.
        offered: What it offered in clear, `None` where it was not asked.
        offered_over_tls: The same over TLS.
        tls: TLS, where there was any.
        is_clear_next: Whether mail would go in clear, over another connection.
    """

    trouble: Verdict | None
    connection: ConnectionFacts | None = None
    fast_open: FastOpen = "off"
    round_trip: float | None = None
    greeting: Reply | None = None
    greeting_seconds: float = 0.0
    offered: Capabilities | None = None
    offered_over_tls: Capabilities | None = None
    tls: TlsSight | None = None
    is_clear_next: bool = False


class Prober:
    """Looks at hosts; one serves any number of them."""

    def __init__(self, connector: ConnectorLike, client: TlsClient | None = None) -> None:
        """Take what makes connections, and what knows the trusted authorities."""
        self._connector = connector
        self._client = client or TlsClient()

    async def look(self, lead: Lead, route: Route, policy: StsPolicy | None) -> Sight:
        """Look at a host.

        Never raises for anything the host does; cancelled, the connection is closed.

        Args:
            lead: Where mail would be tried, and may be.
            route: The route it stands in.
            policy: The MTA-STS policy that counts for it.
        """
        assert isinstance(lead.verdict, TlsDemand)
        options = lead.path.options
        options = replace(options, connect_timeout=min(options.connect_timeout, PATIENCE))
        try:
            connection = await self._connector.connect(lead.candidate, options)
        except ConnectFailed as failure:
            return Sight(unconnected(failure))
        look = _Look(lead, lead.verdict, connection)
        await look.run()
        tls = None
        if look.secured is not None:
            chain = look.secured.peer.chain
            judge = Judge(chain, lead.path.material, self._client)
            tls = TlsSight(
                look.secured.facts,
                look.tls_seconds,
                look.resumable,
                len(chain),
                read_certificate(chain[0], datetime.now(UTC)) if chain else None,
                await judge.by_each(lead, route, policy),
            )
            flaw = await judge.by_demand(lead.verdict)
            if flaw is not None:
                # In earnest the connection would have ended here.
                look.trouble = tls_verdict(TlsFailed.from_unverified(look.peer, flaw))
        return look.sight(tls)


class _Look:
    """One look at one host; what surrounds the opening of its session.

    Attributes:
        peer: Whom it is at.
        trouble: Why it would not be given mail.
        secured: TLS with it, once there is.
        tls_seconds: How long that took.
        resumable: For how long it could be resumed.
    """

    def __init__(self, lead: Lead, demand: TlsDemand, connection: Connection) -> None:
        facts = connection.facts
        self.peer = Peer(facts.host, facts.address, facts.port, facts.local_address)
        self.trouble: Verdict | None = None
        self.secured: TlsConnection | None = None
        self.tls_seconds = 0.0
        self.resumable: float | None = None
        self._path = lead.path
        self._demand = demand
        self._connection = connection
        # One with no session to resume: the certificate is to be seen.
        self._client = TlsClient()
        self._link = connection.observe()
        self._began = trio.current_time()
        self._greeting: Reply | None = None
        self._greeting_seconds = 0.0
        self._offered: dict[bool, Capabilities] = {}
        self._is_clear_next = False

    async def run(self) -> None:
        """Hold the session."""
        settings, timeouts = self._path.settings, self._path.timeouts
        timeouts = replace(
            timeouts,
            greeting=min(timeouts.greeting, PATIENCE),
            command=min(timeouts.command, PATIENCE),
        )
        terms = Terms(
            own_name(settings.helo_name, self.peer.local_address),
            settings.esmtp,
            settings.protocol == "lmtp",
            self._demand.level,
            settings.protocol == "smtps",
            settings.tls_fallback_to_clear,
        )
        stream = self._secure if terms.has_tls else self._connection.stream
        async with run_session(stream, timeouts) as session:
            try:
                self._note(await Opening(session, terms, self).run())
                await say_quit(session)
            except SessionLost as end:
                said = end.command
                self._note(lost(end, said, is_pipelined=False, is_content_written=False))
            except TlsFailed as failure:
                self.trouble = tls_verdict(failure)
                self._is_clear_next = may_go_in_clear(failure, self._demand, settings)

    def _note(self, trouble: Trouble | None) -> None:
        if trouble is not None:
            self.trouble = judge(trouble, self.peer)

    def sight(self, tls: TlsSight | None) -> Sight:
        """Return what was seen."""
        return Sight(
            self.trouble,
            self._connection.facts,
            self._link.fast_open,
            self._link.round_trip_seconds,
            self._greeting,
            self._greeting_seconds,
            self._offered.get(False),
            self._offered.get(True),
            tls,
            self._is_clear_next,
        )

    # -- what surrounds an opening ----------------------------------------------------------

    async def _secure(self, _words: bytes) -> ByteStream:
        return await self.shake_hands(self._connection.stream)

    async def shake_hands(self, stream: ByteStream) -> ByteStream:
        """Start TLS whatever certificate the host shows.

        Raises:
            TlsFailed: There is none; the stream is closed.
        """
        level = TlsLevel.OPPORTUNISTIC
        if self._demand.level > level:
            level = TlsLevel.REQUIRE
        demand = TlsDemand(level, self._demand.policy, sni=self._demand.sni)
        started = trio.current_time()
        try:
            self.secured = await self._client.start(
                stream,
                demand,
                self._path.material,
                peer=self.peer,
                seconds=min(self._path.settings.command_timeout, PATIENCE),
            )
        finally:
            self.tls_seconds = trio.current_time() - started
        return self.secured.stream

    def recall(self, *, has_tls: bool) -> None:
        """Let the host speak first."""

    def heard(self, kind: Kind, reply: Reply, *, has_tls: bool) -> None:
        """Take note of the host's greeting, or of its answer to our hello."""
        self._link = self._connection.observe()
        if kind is Kind.CONNECT:
            self._greeting = reply
            self._greeting_seconds = trio.current_time() - self._began
        elif reply.is_positive:
            is_extended = kind is not Kind.HELO
            self._offered[has_tls] = Capabilities.parse(reply) if is_extended else NO_CAPABILITIES
        if self.secured is not None and len(self._client.sessions):
            session = self.secured.stream.tls.session
            assert session is not None
            hint, least = session.ticket_lifetime_hint, session.timeout
            self.resumable = float(hint if session.has_ticket else least)
