"""One delivery attempt: a message, its recipients at one site, and how far each has got.

Decides without waiting.  The pool hands an attempt to whichever connection suits it; the attempt
remembers what every host made of every recipient, and settles each of them exactly once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from engine.delivery.lane import ANY_LANE, Lane
from engine.delivery.verdict import Verdict, ours
from engine.outcome import NO_FEATURES, Cause, Outcome, Status, Timings, Tried
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.delivery.walk import Walk
    from engine.message import Message, Recipient
    from engine.outcome import Features, Peer
    from engine.route import Candidate


class Carriage(NamedTuple):
    """What the recipients of one transaction have in common.

    Attributes:
        peer: The host, if it came to that.
        features: What was in force on the connection.
        transaction: Its number on the connection, `None` where none was begun.
        connect: Seconds until the connection stood, where this transaction bears that.
        tls: Seconds of its TLS handshake, the same.
        hello: Seconds of greeting and hello, the same.
        seconds: How long the transaction took.
        transcript: The dialogue, where it was asked for.
    """

    peer: Peer | None = None
    features: Features = NO_FEATURES
    transaction: int | None = None
    connect: float = 0.0
    tls: float = 0.0
    hello: float = 0.0
    seconds: float = 0.0
    transcript: tuple[str, ...] | None = None


#: Makes a named tuple of all its fields in half the time that calling its class takes.
_new: Final = tuple.__new__
_DELIVERED: Final = Status.DELIVERED
_NO_CARRIAGE: Final = Carriage()


class Attempt:
    """One message on its way to one site.

    Attributes:
        message: What is delivered.
        name: What that is called: in outcomes, in events and by the journal.
        recipients: Whom of the message this attempt is for.
        waiting: Places in `recipients` that have no outcome yet.
        walk: Where it stands among the hosts; made when it first needs a connection of its own.
        lane: What TLS it may and must go over; attempts of one lane share connections.
        lockstep: A host got confused by pipelining; it is asked again one command at a time.
        is_callout: Recipients are only asked about; no content is sent.
        in_turn: A host is not to be spoken to before it greets: that went wrong.
        in_clear: A host is to be spoken to without TLS: that went wrong.
        redo: A candidate to ask again on a new connection, before the walk goes on; costs nothing.
        is_back: The present host has taken a session for it, and is to take another one.
        had_stale_connection: A reused connection turned out to be dead before anything was
            answered; that happens once at the attempt's cost of nothing.
        jobs: How many of its transactions are begun, or to be begun, at the present host.
        returns: Whom the present host has not decided on is to be asked there once more, over
            another connection and at no cost.
        setback: What a session that was lost made of all it was asked for, where that was nothing.
    """

    # What few attempts ever have differently stands in the class: making one is on every message's path.
    walk: Walk | None = None
    lane: Lane = ANY_LANE
    is_callout = False
    lockstep = False
    in_turn = False
    in_clear = False
    redo: Candidate | None = None
    is_back = False
    had_stale_connection = False
    jobs = 0
    returns = False
    setback: Verdict | None = None
    _asked_here: set[int] | None = None
    # What the hosts so far made of a recipient, last one last.
    _last: dict[int, list[_Report]] | None = None

    def __init__(
        self,
        message: Message,
        recipients: Sequence[Recipient],
        settle: Callable[[Outcome], None],
        submitted_at: float,
        route_seconds: float = 0.0,
        name: str = "",
    ) -> None:
        """Begin.

        Args:
            message: What to deliver.
            recipients: Whom to; all are reached through one site.
            settle: Takes each recipient's outcome; must not wait.
            submitted_at: When the message was submitted, by Trio's clock.
            route_seconds: How long finding the route took.
            name: What the message is called where it has no id.
        """
        self.message = message
        self.name = message.id or name
        self.recipients = recipients
        self.waiting = [0] if len(recipients) == 1 else [*range(len(recipients))]
        self._settle = settle
        self._submitted_at = submitted_at
        self._route_seconds = route_seconds

    @property
    def is_done(self) -> bool:
        """Whether every recipient has its outcome."""
        return not self.waiting

    @property
    def is_untouched(self) -> bool:
        """Whether no host was asked for it, so that any may be the first."""
        is_whole = len(self.waiting) == len(self.recipients)
        return is_whole and not (self._last or self.lockstep or self.had_stale_connection)

    @property
    def unasked(self) -> list[int]:
        """Places of those the present host has not decided on."""
        asked = self._asked_here
        return [index for index in self.waiting if index not in asked] if asked else self.waiting

    def arrive(self) -> None:
        """Begin with another host: everybody still waiting is to be asked there."""
        self._asked_here = None
        self.lockstep = self.in_turn = self.in_clear = self.is_back = False

    def report(
        self, index: int, verdict: Verdict, now: float, carriage: Carriage = _NO_CARRIAGE
    ) -> None:
        """Take a host's verdict on one recipient: settle it, or remember it for the next host."""
        status, stage, cause, text, scope, reply, enhanced, is_here_only = verdict
        peer, features, transaction, connect, tls, hello, seconds, transcript = carriage
        total = now - self._submitted_at
        timings = self._route_seconds, connect, tls, hello, seconds, total
        outcome = _new(
            Outcome,
            (
                self.name,
                self.recipients[index].address,
                status,
                stage,
                cause,
                text,
                scope,
                reply,
                enhanced,
                peer,
                None,
                transaction,
                features,
                _new(Timings, timings),
                self._tried(index) if self._last else (),
                transcript,
            ),
        )
        if status is not _DELIVERED and verdict.may_go_on:
            if self._asked_here is None:
                self._asked_here = set()
            self._asked_here.add(index)
            if self._last is None:
                self._last = {}
            self._last.setdefault(index, []).append((outcome, is_here_only))
        else:
            self.waiting.remove(index)
            self._settle(outcome)

    def report_all(self, verdict: Verdict, now: float, carriage: Carriage = _NO_CARRIAGE) -> None:
        """Take one verdict for everybody the present host has not decided on."""
        for index in list(self.unasked):
            self.report(index, verdict, now, carriage)

    def give_up(self, now: float) -> None:
        """Settle everybody who is left: there is no host to go on to."""
        for index in self.waiting:
            reports = self._last.get(index) if self._last else None
            if reports is None:
                verdict = ours(Status.DEFERRED, Cause.CONFIG, Stage.ROUTE, "no host could be tried")
                self._settle(self._unreported(index, verdict, now))
                continue
            outcome, _ = reports[-1]
            if outcome.status is Status.FAILED and not all(here_only for _, here_only in reports):
                # Some host was merely out of reach; it may take the message another time.
                enhanced = outcome.enhanced
                if outcome.reply is None and enhanced is not None:
                    enhanced = EnhancedStatusCode(4, enhanced.subject, enhanced.detail)
                outcome = outcome._replace(status=Status.DEFERRED, enhanced=enhanced)
            self._settle(outcome)
        self.waiting = []

    def end(self, verdict: Verdict, now: float) -> None:
        """Settle everybody who is left with a verdict of our own: cancelled, or a bug."""
        for index in self.waiting:
            self._settle(self._unreported(index, verdict, now))
        self.waiting = []

    def _unreported(self, index: int, verdict: Verdict, now: float) -> Outcome:
        return Outcome(
            message=self.name,
            recipient=self.recipients[index].address,
            status=verdict.status,
            scope=verdict.scope,
            stage=verdict.stage,
            cause=verdict.cause,
            enhanced=verdict.enhanced,
            text=verdict.text,
            timings=Timings(route=self._route_seconds, total=now - self._submitted_at),
            attempts=self._tried(index),
        )

    def _tried(self, index: int) -> tuple[Tried, ...]:
        reports = self._last.get(index) if self._last else None
        return tuple([_as_tried(outcome) for outcome, _ in reports]) if reports else ()


_Report = tuple[Outcome, bool]


def _as_tried(outcome: Outcome) -> Tried:
    peer = outcome.peer
    return Tried(
        peer.host if peer else "",
        peer.address if peer else None,
        peer.port if peer else None,
        outcome.stage,
        outcome.cause,
        outcome.text,
        outcome.reply.code if outcome.reply else None,
    )
