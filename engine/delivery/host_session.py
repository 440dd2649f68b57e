"""A session with one host: what is known about it, what is in force, and how verdicts are reported.

It opens the session and closes it.  The mail in between is `engine.delivery.carrier`'s.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import trio

from engine.delivery.agreement import Agreement, agree
from engine.delivery.attempt import Carriage
from engine.delivery.host_memory import HostMemory
from engine.delivery.login import Login
from engine.delivery.opening import Opening, Terms, say_quit
from engine.delivery.session_terms import SessionLost
from engine.delivery.streaming import MOST_REFUSALS, Depth
from engine.delivery.verdict import Trouble, Verdict, judge, lost
from engine.net.tls_errors import TlsFailed
from engine.outcome import Cause, Features, Peer, Scope, Status
from engine.report import events
from engine.security import TlsLevel
from engine.smtp.command import RSET, Kind
from engine.smtp.reply import Reply, show
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from engine.delivery.attempt import Attempt
    from engine.delivery.session import Session
    from engine.delivery.shared import Path, Shared
    from engine.net.connector import Connection
    from engine.net.stream import ByteStream
    from engine.report.transcript import Transcript
    from engine.security import TlsDemand, TlsFailure
    from engine.settings import Settings
    from engine.smtp.capabilities import Capabilities
    from engine.smtp.command import Command

_TLS_TROUBLE: Final = EnhancedStatusCode(4, 7, 5)
# Every message asks for these; in Python 3.11 a member of an enum is found ten times as slowly as a name.
_DELIVERED, _ACCEPTED = Status.DELIVERED, Status.ACCEPTED
_LOST: Final = EnhancedStatusCode(4, 4, 2)
#: "Authentication required" (RFC 4954 §6).
_AUTH_REQUIRED: Final = 530


class Retry(Enum):
    """How a host that could not be used is asked once more at once, at no cost."""

    #: Without speaking before it does.
    IN_TURN = auto()
    #: Without TLS.
    IN_CLEAR = auto()


class HostSession:
    """A session and what is known about the host at its other end.

    Attributes:
        session: The three-party session underneath.
        peer: Both ends, and the connection's number.
        memory: What is remembered of the host.
        settings: Those that hold for it.
        demand: What TLS with it must be.
        features: What is in force.
        agreed: How mail is sent to it; nothing is offered until `greet` has said hello.
        depth: How many transactions may be in flight.
        takes_streams: Whether it is known, or has shown, to take several in flight.
        may_pipeline_quit: Whether QUIT may follow the last content at once.
        transactions: Mail transactions begun.
        refusals: Those of them that nobody was accepted of, with others in flight behind.
        has_refused: Whether there was one that nobody was accepted of.
        ending: How the session ended, `done` when it ended with our QUIT; empty before.
        is_confirmed: Whether it has greeted us and taken our hello, so that a session stands.
        retry: How the host should be asked once more, where it could not be used.
        recorder: Counts.
        events: Where events are published.
        journal: Told which contents are about to go out to their end.
        now: The time, by Trio's clock.
        did_last_succeed: Whether the last transaction delivered to anybody.
        dismissal: What it means for other mail that the host has ended the session by a 421, or
            before it answered anything about mail; `None` where it has not.
    """

    def __init__(
        self,
        session: Session,
        peer: Peer,
        path: Path,
        shared: Shared,
        demand: TlsDemand,
        *,
        site: str = "",
        transcript: Transcript | None = None,
    ) -> None:
        settings = path.settings
        self.session = session
        self.peer = peer
        self.memory = HostMemory(shared.hints, peer)
        self.settings = settings
        self.demand = demand
        self.features = Features()
        self.agreed = Agreement()
        self.depth = Depth(1, is_known=False, round_trip=None, is_possible=False)
        self.transactions = self.refusals = 0
        self.has_refused = False
        self.ending = ""
        self.is_confirmed = False
        self.retry: Retry | None = None
        self.did_last_succeed = False
        self.dismissal: Verdict | None = None
        self.recorder = shared.recorder
        self.events = shared.events
        self.journal = shared.journal
        self.now = trio.lowlevel.current_clock().current_time
        self._path = path
        self._shared = shared
        self._site = site
        self._connection: Connection | None = None
        self._clock = shared.clock
        self._transcript = transcript
        self._mark = 0
        self._is_set_up = False
        self._is_stream_noted = False
        self.takes_streams = self.may_pipeline_quit = False
        self._began = self.now()
        self._hello_seconds = self._tls_seconds = 0.0
        self._domains: set[str] = set()
        self._has_tls = settings.protocol == "smtps"
        self._may_speak_first = False
        self._login = Login(
            settings.auth,
            is_required=settings.auth_required,
            in_clear=settings.auth_in_clear,
            host=peer.host,
            port=peer.port,
            tell=self._auth_failed,
        )
        self._opening: Opening | None = None
        self._is_lockstep = False
        self._is_reported = False

    def connected(self, connection: Connection, peer: Peer) -> None:
        """Take note of the connection, once it stands."""
        facts = connection.facts
        self._connection = connection
        self.peer = peer
        self._began = self.now()
        self.features = replace(self.features, fast_open=facts.fast_open, proxy=facts.proxy)

    # -- the opening ------------------------------------------------------------------------

    async def greet(
        self, *, lockstep: bool = False, in_turn: bool = True, in_clear: bool = False
    ) -> Verdict | None:
        """Hear the greeting, say hello, start TLS, authenticate, and see what is offered.

        Args:
            lockstep: Use neither pipelining nor CHUNKING, whatever is offered.
            in_turn: Say nothing before the host has greeted, whatever it is known to take.
            in_clear: Use no STARTTLS where none is demanded.

        Returns:
            Why the host takes no mail from us, `None` when it does; with early pipelining that may
            still have to be confirmed.

        Raises:
            ConnectFailed: The connection was to be made with the first words, and could not be.
        """
        settings = self.settings
        self._may_speak_first = not (in_turn or lockstep)
        level = self.demand.level
        if level <= TlsLevel.OPPORTUNISTIC and in_clear:
            level = TlsLevel.OFF
        terms = Terms(
            own_name(settings.helo_name, self.peer.local_address),
            settings.esmtp,
            settings.protocol == "lmtp",
            level,
            self._has_tls,
            settings.tls_fallback_to_clear,
        )
        self._opening = Opening(self.session, terms, self, self._login)
        self._is_lockstep = lockstep
        verdict = await self._hear(self._open)
        if verdict is None:
            self._settle(self._opening)
        return verdict

    async def _open(self) -> Trouble | None:
        assert self._opening is not None
        trouble = await self._opening.run()
        if trouble is None and self.session.loss is not None:
            raise self.session.loss
        return trouble

    async def confirm(self) -> Verdict | None:
        """Hear what the host says to its greeting and our hello, which was sent with an envelope.

        Returns:
            Why it takes no mail from us; with `retry` set it may when it is asked in turn.
        """
        assert self._opening is not None
        verdict = await self._hear(self._opening.confirm)
        if verdict is None and self.session.loss is None:
            self._settle(self._opening)
        elif verdict is None:
            self.memory.forget_hello(has_tls=self._has_tls)
        return verdict

    async def _hear(self, step: Callable[[], Any]) -> Verdict | None:
        opening = self._opening
        assert opening is not None
        try:
            trouble: Trouble | None = await step()
        except SessionLost as ending:
            if ending.alert and self._has_heard_nothing_over_tls:
                return self._no_tls(TlsFailed.from_alert(self.peer, ending.alert))
            trouble = lost(
                ending,
                # With nothing owed: nothing was to follow what was heard last.
                ending.command or self.session.last_heard,
                is_pipelined=self._speaks_first,
                is_content_written=False,
            )
            self._note_lost(ending)
        except TlsFailed as failure:
            return self._no_tls(failure)
        finally:
            self._hello_seconds = self.now() - self._began - self._tls_seconds
        if trouble is None:
            return None
        if self._speaks_first:
            self.memory.forget_hello(has_tls=opening.has_tls)
        if opening.is_misfit:
            self.retry = Retry.IN_TURN
        if trouble.stage is Stage.STARTTLS:
            self._count("starttls-not-supported", trouble.detail)
        return judge(trouble, self.peer)

    @property
    def _has_heard_nothing_over_tls(self) -> bool:
        last = self.session.last_heard
        return self._has_tls and (last is None or last.kind is Kind.STARTTLS)

    def _note_lost(self, ending: SessionLost) -> None:
        if self._connection is not None and self.session.is_silent:
            self._connection.note_silence()
        if ending.cause is Cause.TLS:
            self.publish(events.SecurityAlert, ending.detail)
            self._count("validation-failure", ending.detail)

    def _settle(self, opening: Opening) -> None:
        """The session stands, or is assumed to."""
        self._adapt(opening)
        self._is_set_up = True
        if self._transcript is not None:
            self._mark = self._transcript.mark()
        if not opening.first_words:
            self.is_confirmed = True
            if not opening.has_tls and self.demand.level > TlsLevel.OFF:
                self._count("starttls-not-supported")
            self.publish(
                events.SessionReady, self._site, self._shown_keywords(), self._hello_seconds
            )

    def _shown_keywords(self) -> tuple[str, ...]:
        # With early pipelining a host has heard our password before it says them.
        names = tuple(name.encode() for name in self.offered.keywords)
        if not names:
            return ()
        return tuple(name.decode() for name in self.session.shown(Reply(250, names)).lines)

    def _adapt(self, opening: Opening) -> None:
        """Settle how mail is sent to a host that offers this."""
        settings, offered = self.settings, opening.offered
        mechanism, tls = self._login.mechanism, self.features.tls
        self.agreed = agree(
            settings,
            offered,
            is_lockstep=self._is_lockstep,
            is_bad_at_chunking=self.memory.is_bad_at_chunking,
            is_authenticated=mechanism is not None,
            is_verified=tls is not None and tls.verified != "no",
            # RFC 9422 §6: before TLS somebody else may have said them.
            limits_count=opening.has_tls or not offered.starttls,
        )
        manner = self.agreed.manner
        self.features = replace(
            self.features,
            pipelining=manner.pipelining,
            early_pipelining=self._speaks_first,
            chunking=manner.chunking,
            lmtp=manner.lmtp,
            auth=mechanism,
            dsn=offered.dsn,
        )
        if manner.lmtp:
            self.session.count_recipients()
        is_known = opening.is_known_to_stream or offered.pipeconnect
        remembered = self.memory.takes_streams
        self.takes_streams = takes_streams = is_known if remembered is None else remembered
        wanted = settings.quit_pipelining
        self.may_pipeline_quit = (
            # Unless the settings insist, only to servers that are known by name: others may take
            # the half-closed connection for a lost one, accept the message and keep the reply to
            # themselves (Haraka 3.3).
            ((is_known and takes_streams) if wanted == "auto" else wanted)
            and manner.pipelining
            and not self.has_tls
            and not opening.first_words
        )
        link = self._connection.observe() if self._connection is not None else None
        self.depth = Depth(
            settings.stream_depth,
            is_known=takes_streams,
            round_trip=link.round_trip_seconds if link is not None else None,
            is_possible=manner.pipelining and not manner.lmtp and remembered is not False,
        )

    # -- what surrounds an opening ----------------------------------------------------------

    @property
    def _speaks_first(self) -> bool:
        return self._opening is not None and self._opening.speaks_first

    def recall(self, *, has_tls: bool) -> Capabilities | None:
        """Return what the host is known to offer, if it may be spoken to before it greets."""
        return self.memory.hello(has_tls=has_tls) if self._may_speak_first else None

    def heard(self, kind: Kind, reply: Reply, *, has_tls: bool) -> Trouble | None:
        """Take note of the host's greeting, or of its answer to our hello."""
        if kind is Kind.CONNECT:
            self.publish(events.Greeted, self._site, reply.text)
            veto = self._shared.veto_greeting
            if veto is not None and reply.is_positive:
                reason = veto(self.peer, reply.text)
                if reason is not None:
                    return Trouble(
                        Stage.GREETING,
                        Cause.EVENT,
                        detail=f"no mail is to be sent there now: {show(reason.encode())}",
                    )
        else:
            if kind is Kind.EHLO:
                self.memory.note_hello(reply, has_tls=has_tls)
            self.publish(events.HelloAnswered, self._site, reply.text)
        return None

    async def shake_hands(self, stream: ByteStream) -> ByteStream:
        """Start TLS over a stream, as `demand` says.

        Raises:
            TlsFailed: There is none, or not the one demanded; the stream is closed.
        """
        started = self.now()
        shared, settings, demand = self._shared, self.settings, self.demand
        if demand.level is TlsLevel.OFF:
            demand = replace(demand, level=TlsLevel.OPPORTUNISTIC)  # TLS from the first octet
        try:
            secured = await shared.tls.start(
                stream,
                demand,
                self._path.material,
                peer=self.peer,
                seconds=settings.command_timeout,
                # A certificate that is on trial has to be seen.
                resumes=settings.tls_resumption and not demand.trial_names,
            )
        finally:
            self._tls_seconds = self.now() - started
        self.features = replace(self.features, tls=secured.facts)
        self._has_tls = True
        trial = None
        if demand.trial_names:
            trial = await shared.tls.would_verify(
                secured.peer.chain, demand.trial_names, self._path.material
            )
        self._count(None, trial.text if trial else "", trial.result if trial else None)
        self.publish(
            events.TlsStarted,
            self._site,
            secured.facts.version,
            secured.facts.cipher,
            secured.facts.verified,
            secured.facts.policy,
            self._tls_seconds,
        )
        return secured.stream

    def _no_tls(self, failure: TlsFailed) -> Verdict:
        """Judge a handshake that failed; where nothing forbids it, the host is tried in clear."""
        self.note_tls_failure(failure)
        if failure.was_reply and self.settings.protocol != "smtps":
            # As if it had come together with the reply to STARTTLS (RFC 3207 §6).
            self.publish(events.SecurityAlert, failure.reason)
        if may_go_in_clear(failure, self.demand, self.settings):
            self.memory.note_broken_tls()
            self.retry = Retry.IN_CLEAR
        return tls_verdict(failure)

    def note_tls_failure(self, failure: TlsFailed) -> None:
        """Count a handshake that failed, for the report its receiver may want."""
        if failure.result is not None:
            self._count(failure.result, failure.reason)

    def _count(
        self, failure: TlsFailure | None, reason: str = "", trial: TlsFailure | None = None
    ) -> None:
        if self._shared.tls_counters is not None and not self._is_reported:
            self._is_reported = True
            self._shared.tls_counters.count(
                self._clock(),
                self.demand.reported,
                failure=failure,
                trial_failure=trial,
                reason=reason,
                peer=self.peer,
            )

    def _auth_failed(self, reply: Reply, mechanism: str) -> None:
        self.publish(events.AuthFailed, self._site, mechanism, reply.text)

    # -- the session ------------------------------------------------------------------------

    @property
    def first_words(self) -> tuple[Command, ...]:
        """What goes in front of the first envelope; empty as a rule."""
        return () if self._opening is None else self._opening.first_words

    def note_stream(self) -> None:
        """Take note that a transaction behind another one was taken."""
        if not self._is_stream_noted:
            self._is_stream_noted = self.takes_streams = True
            self.memory.note_stream(is_taken=True)

    @property
    def hello_seconds(self) -> float:
        """How long greeting and hello took."""
        return self._hello_seconds

    @property
    def is_used_up(self) -> bool:
        """Whether the connection has carried as much as settings and host allow."""
        most = self.agreed.most_transactions
        return 0 < most <= self.transactions or self.refusals >= MOST_REFUSALS

    @property
    def offered(self) -> Capabilities:
        """What the host offers."""
        return self.agreed.dialect.offered

    @property
    def has_tls(self) -> bool:
        """Whether the connection is over TLS."""
        return self.features.tls is not None

    def admits(self, domain: str, *, goes_on: bool) -> bool:
        """Whether recipients of a domain may be named in this session; then they count.

        RFC 9422 §4.3: what is limited are the domains of a session, not those of a transaction.

        Args:
            domain: It.
            goes_on: Whether others of the same message were named here: like the reference client
                we go on with it over the same connection, domain by domain, and a server that minds
                can say so.
        """
        is_over = domain not in self._domains and len(self._domains) >= self.agreed.most_domains
        if is_over and not goes_on:
            return False
        self._domains.add(domain)
        return True

    async def make_ready(self) -> bool:
        """Make the session ready for MAIL, if it can be; RSET only where a transaction is open."""
        session = self.session
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
        # Nor on replies to anything that was said before, should there be any still to come.
        self.session.hurry(self.settings.quit_timeout)
        await say_quit(self.session)

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
            if verdict is None or place in but:
                continue
            if verdict[0] is _DELIVERED or verdict[0] is _ACCEPTED:
                self.did_last_succeed = True
                attempt.report(place, verdict, now, carriage)
            else:
                self._report_trouble(attempt, place, self._excuse(verdict), now, carriage)

    def _report_trouble(
        self, attempt: Attempt, place: int, verdict: Verdict, now: float, carriage: Carriage
    ) -> None:
        if verdict.status is Status.DEFERRED and events.RecipientDeferred in self.events.wanted:
            name, recipient = attempt.name, attempt.recipients[place].address
            stage, cause, text = verdict.stage, verdict.cause, verdict.text
            self.publish(events.RecipientDeferred, name, recipient, stage, cause, text)
        attempt.report(place, verdict, now, carriage)

    def _excuse(self, verdict: Verdict) -> Verdict:
        """Blame our credentials, not the mail, where those were refused and are missed now."""
        reply = verdict.reply
        if reply is not None and reply.code == _AUTH_REQUIRED and self._login.refusal is not None:
            return verdict._replace(status=Status.DEFERRED, scope=Scope.SOURCE, is_here_only=False)
        return verdict

    def report_all(
        self, attempt: Attempt, verdict: Verdict, group: Sequence[int] | None = None
    ) -> None:
        """Give everybody this host has not decided on the same verdict; no transaction did it.

        Args:
            attempt: Whose they are.
            verdict: It.
            group: For whom of them; `None`: for all.
        """
        carriage = self._carriage(self.features, self.transactions, 0.0)._replace(transaction=None)
        self.did_last_succeed = False
        if group is None:
            attempt.report_all(verdict, self.now(), carriage)
            return
        for place in group:
            attempt.report(place, verdict, self.now(), carriage)

    def _carriage(self, features: Features, number: int, seconds: float) -> Carriage:
        """Say of a transaction what is common to its recipients."""
        transcript = None if self._transcript is None else self._take_transcript(self._transcript)
        if number > 1:
            facts = self.peer, features, number, 0.0, 0.0, 0.0, seconds, transcript
            return tuple.__new__(Carriage, facts)  # every message comes by here
        # The connection's first one also bears its set-up.
        connect = 0.0 if self._connection is None else self._connection.facts.connect_seconds
        tls, hello = self._tls_seconds, self._hello_seconds
        return Carriage(self.peer, features, number, connect, tls, hello, seconds, transcript)

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


def own_name(name: str | None, address: str | None) -> str:
    """Return what we call ourselves in a hello (RFC 5321 §4.1.4).

    Args:
        name: As it is set; `None`: the address, which says at least where we are.
        address: Ours as the peer sees it, `None` where there is none.
    """
    if name is not None:
        return name
    if address is None:
        return "localhost"
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def may_go_in_clear(failure: TlsFailed, demand: TlsDemand, settings: Settings) -> bool:
    """Whether mail goes in clear, over a new connection, after a handshake that failed."""
    return (
        failure.clear_may_help
        and demand.level <= TlsLevel.OPPORTUNISTIC
        and settings.tls_fallback_to_clear
        and settings.protocol != "smtps"
    )


def tls_verdict(failure: TlsFailed) -> Verdict:
    """Return the verdict on a recipient whose host could not be reached over TLS."""
    enhanced = _LOST if failure.cause is Cause.TIMEOUT else _TLS_TROUBLE
    if failure.scope is not Scope.HOST:
        enhanced = EnhancedStatusCode(4, 3, 5)
    return Verdict(
        Status.DEFERRED, failure.stage, failure.cause, failure.text, failure.scope, None, enhanced
    )
