"""A session with one host: what is known about it, what is in force, and how verdicts are reported.

It opens the session and closes it.  The mail in between is `engine.delivery.carrier`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from engine.delivery.attempt import Carriage
from engine.delivery.envelope import Dialect
from engine.delivery.host_memory import HostMemory
from engine.delivery.opening import Opened, say_quit, set_up
from engine.delivery.streaming import Depth
from engine.delivery.transaction import Manner
from engine.delivery.verdict import judge
from engine.outcome import Features, Peer, Status
from engine.smtp.capabilities import NO_CAPABILITIES
from engine.smtp.command import RSET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from engine.delivery.attempt import Attempt
    from engine.delivery.session import Session
    from engine.delivery.shared import Shared
    from engine.delivery.verdict import Verdict
    from engine.net.connector import Connection
    from engine.report import events
    from engine.report.transcript import Transcript
    from engine.settings import Settings


class HostSession:
    """A session and what is known about the host at its other end.

    Attributes:
        session: The three-party session underneath.
        peer: Both ends, and the connection's number.
        memory: What is remembered of the host.
        settings: Those that hold for it.
        offered: What the host offers; nothing until `greet` has said hello.
        features: What is in force.
        manner: How transactions are carried out.
        dialect: How envelopes are written.
        depth: How many transactions may be in flight.
        transactions: Mail transactions begun.
        ending: How the session ended, `done` when it ended with our QUIT; empty before.
        most_recipients: Recipients in one transaction at most; 0: any number.
        has_one_domain: Whether the recipients of a transaction must be of one domain.
        most_domains: Different domains that recipients of the session may be of; 0: any number.
        has_prdr: Whether a reply for each recipient may be asked for after the content.
        recorder: Counts.
        events: Where events are published.
        now: The time, by Trio's clock.
        did_last_succeed: Whether the last transaction delivered to anybody.
    """

    def __init__(
        self,
        session: Session,
        connection: Connection,
        peer: Peer,
        settings: Settings,
        shared: Shared,
        transcript: Transcript | None,
    ) -> None:
        facts = connection.facts
        self.session = session
        self.peer = peer
        self.memory = HostMemory(shared.hints, peer)
        self.settings = settings
        self.offered = NO_CAPABILITIES
        self.features = Features(fast_open=facts.fast_open, proxy=facts.proxy)
        self.manner = Manner()
        self.dialect = Dialect(NO_CAPABILITIES)
        self.depth = Depth(1, is_known=False, round_trip=None, is_possible=False)
        self.transactions = 0
        self.ending = ""
        self.did_last_succeed = False
        self.recorder = shared.recorder
        self.events = shared.events
        self.now = trio.lowlevel.current_clock().current_time
        self._connection = connection
        self._clock = shared.clock
        self._transcript = transcript
        self._mark = 0
        self._is_set_up = False
        self._is_stream_noted = False
        self._hello_seconds = 0.0
        self._most_transactions = settings.max_messages_per_connection
        self.most_recipients = settings.max_recipients_per_transaction
        self.has_one_domain = not settings.multi_domain
        self.most_domains = 0
        self._domains: set[str] = set()
        self.has_prdr = False

    # -- the session ------------------------------------------------------------------------

    async def greet(self, *, lockstep: bool = False) -> Verdict | None:
        """Hear the greeting, say hello, and see what is offered.

        Args:
            lockstep: Use neither pipelining nor CHUNKING, whatever is offered.

        Returns:
            Why the host takes no mail from us, `None` when it does.
        """
        started = self.now()
        settings = self.settings
        found = await set_up(
            self.session,
            name=self._helo_name(),
            esmtp=settings.esmtp,
            lmtp=settings.protocol == "lmtp",
        )
        self._hello_seconds = self.now() - started
        if not isinstance(found, Opened):
            if self.session.loss is not None and self.session.is_silent:
                self._connection.note_silence()
            return judge(found, self.peer)
        self._adapt(found, lockstep=lockstep)
        self._is_set_up = True
        if self._transcript is not None:
            self._mark = self._transcript.mark()
        return None

    def _adapt(self, opened: Opened, *, lockstep: bool) -> None:
        """Settle how mail is sent to a host that offers this."""
        settings, offered = self.settings, opened.offered
        is_lmtp = settings.protocol == "lmtp"
        pipelining = settings.pipelining and offered.pipelining and not lockstep
        chunking = (
            settings.chunking
            and offered.chunking
            and not lockstep
            and not self.memory.is_bad_at_chunking
        )
        self.offered = offered
        self.features = replace(
            self.features, pipelining=pipelining, chunking=chunking, lmtp=is_lmtp
        )
        self.manner = Manner(pipelining, chunking, settings.one_flight_octets, is_lmtp)
        self.dialect = Dialect(
            offered,
            settings.size_addition,
            settings.utf8_downconvert,
            ignore_quota=is_lmtp and settings.lmtp_ignore_quota and offered.ignorequota,
        )
        self.has_prdr = settings.prdr and offered.prdr
        if is_lmtp:
            self.session.count_recipients()
        self._heed_limits()
        takes_streams = self.memory.takes_streams
        if takes_streams is None:
            takes_streams = opened.is_known_to_stream or offered.pipeconnect
        self.depth = Depth(
            settings.stream_depth,
            is_known=takes_streams,
            round_trip=self._connection.observe().round_trip_seconds,
            is_possible=pipelining and not is_lmtp,
        )

    def _heed_limits(self) -> None:
        """Take over what the host limits (RFC 9422 §3)."""
        limits, mailmax, rcptmax = (
            self.offered.limits,
            self._most_transactions,
            self.most_recipients,
        )
        if limits.mailmax is not None:
            self._most_transactions = min(limits.mailmax, mailmax or limits.mailmax)
        if limits.rcptmax is not None:
            self.most_recipients = min(limits.rcptmax, rcptmax or limits.rcptmax)
        self.has_one_domain |= limits.rcptdomainmax is not None
        self.most_domains = limits.rcptdomainmax or 0

    def note_stream(self) -> None:
        """Take note that a transaction behind another one was taken."""
        if not self._is_stream_noted:
            self._is_stream_noted = True
            self.memory.note_stream(is_taken=True)

    @property
    def hello_seconds(self) -> float:
        """How long greeting and hello took."""
        return self._hello_seconds

    @property
    def is_used_up(self) -> bool:
        """Whether the connection has carried as much as settings and host allow."""
        return 0 < self._most_transactions <= self.transactions

    def admits(self, domain: str) -> bool:
        """Whether recipients of a domain may be named in this session; then they count.

        RFC 9422 §4.3: what is limited are the domains of a session, not those of a transaction.
        """
        if domain not in self._domains and len(self._domains) >= self.most_domains:
            return False
        self._domains.add(domain)
        return True

    async def make_ready(self) -> bool:
        """Make the session ready for MAIL, if it can be; RSET only where a transaction is open."""
        session = self.session
        session.glance()
        if session.is_ready:
            return True
        if session.is_transaction_open:
            await session.send(RSET)
            await session.replies(1)
        return session.is_ready

    async def quit(self) -> None:
        """Say QUIT, if anything can still be said; nothing depends on the answer."""
        loss = self.session.loss
        self.ending = "done" if loss is None else str(loss.cause)
        await say_quit(self.session)

    def _helo_name(self) -> str:
        """Return our name; without one the address the peer sees (RFC 5321 §4.1.4)."""
        name, address = self.settings.helo_name, self.peer.local_address
        if name is not None:
            return name
        if address is None:
            return "localhost"
        return f"[IPv6:{address}]" if ":" in address else f"[{address}]"

    # -- reporting --------------------------------------------------------------------------

    def report(
        self,
        attempt: Attempt,
        group: Sequence[int],
        verdicts: Sequence[Verdict | None],
        number: int,
        started: float,
        but: AbstractSet[int] = frozenset(),
        prdr: bool = False,
    ) -> None:
        """Hand the verdicts of a transaction on.

        Args:
            attempt: Whose they are.
            group: For whom of its recipients.
            verdicts: In the order of the group.
            number: Which transaction it was.
            started: When it began.
            but: Who is asked again, so that there is nothing to report yet.
            prdr: Whether a reply for each recipient was asked for.
        """
        now = self.now()
        features = replace(self.features, prdr=True) if prdr else self.features
        carriage = self._carriage(features, number, now - started)
        self.did_last_succeed = False
        for place, verdict in zip(group, verdicts):  # noqa: B905 - every message comes by here
            if verdict is not None and place not in but:
                self.did_last_succeed |= verdict[0] is Status.DELIVERED
                attempt.report(place, verdict, now, carriage)

    def report_all(self, attempt: Attempt, verdict: Verdict) -> None:
        """Give everybody this host has not decided on the same verdict; no transaction did it."""
        carriage = self._carriage(self.features, self.transactions, 0.0)._replace(transaction=None)
        self.did_last_succeed = False
        attempt.report_all(verdict, self.now(), carriage)

    def _carriage(self, features: Features, number: int, seconds: float) -> Carriage:
        """Say of a transaction what is common to its recipients."""
        transcript = None if self._transcript is None else self._take_transcript(self._transcript)
        if number > 1:
            return Carriage(self.peer, features, number, 0.0, 0.0, 0.0, seconds, transcript)
        # The connection's first one also bears its set-up.
        connect = self._connection.facts.connect_seconds
        hello = self._hello_seconds
        return Carriage(self.peer, features, number, connect, 0.0, hello, seconds, transcript)

    def _take_transcript(self, transcript: Transcript) -> tuple[str, ...]:
        lines = transcript.since(self._mark)
        if self._is_set_up:
            self._mark = transcript.mark()
        return lines

    def publish(self, event: type[events.Event], *facts: Any) -> None:
        """Publish an event of this connection, if anybody listens."""
        if event in self.events.wanted:
            make: Callable[..., events.Event] = event
            self.events.publish(make(self._clock(), self.peer, *facts))
