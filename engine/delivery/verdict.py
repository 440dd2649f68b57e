"""Turn what went wrong, or right, into a verdict on a recipient.  Knows no I/O.

This is the whole failure policy: (stage, cause, reply) to status and scope.  Nothing a peer may do
raises here, and what is in doubt is deferred: mail is rather sent twice than lost.  Not here: the
walk over hosts (`attempt`), when to retry (`queue.retry`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.outcome import Cause, Scope, Status
from engine.smtp.command import STAGES, Kind
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.delivery.session_terms import SessionLost
    from engine.outcome import Peer
    from engine.smtp.command import Command
    from engine.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that kept a recipient from being delivered on a connection.

    Attributes:
        stage: Where it happened.
        cause: What happened.
        command: The command it happened to, as it may be shown.
        is_pipelined: Whether more commands were in flight with it.
        reply: The reply that decided, where one did.
        detail: More for a person, where no reply decided.
        octets: Octets of content written, where content was being written.
        is_chunked: Whether it happened to BDAT.
        scope: Who is to blame, where stage and cause do not tell.
        enhanced: Our own status code, the same.
    """

    stage: Stage
    cause: Cause
    command: str = ""
    is_pipelined: bool = False
    reply: Reply | None = None
    detail: str = ""
    octets: int = 0
    is_chunked: bool = False
    scope: Scope | None = None
    enhanced: EnhancedStatusCode | None = None


class Verdict(NamedTuple):
    """What a host made of a recipient.

    Attributes:
        status: Delivered, deferred, failed or unknown.
        scope: Who is to blame; `None` when delivered.
        stage: Where it was decided.
        cause: What happened there.
        text: One line for a person.
        reply: The reply that decided.
        enhanced: Its enhanced status code, or ours.
        is_here_only: A failure that says nothing about other hosts: final only when every host
            that was tried failed so.
    """

    status: Status
    stage: Stage
    cause: Cause
    text: str
    scope: Scope | None = None
    reply: Reply | None = None
    enhanced: EnhancedStatusCode | None = None
    is_here_only: bool = False

    @property
    def may_go_on(self) -> bool:
        """Whether the next host may be tried.

        Never after `unknown`: the content may have been accepted, a second host would be a second
        copy.  Never for our own fault: it would be the same everywhere.
        """
        return (
            self.status is Status.DEFERRED or self.is_here_only
        ) and self.scope is not Scope.LOCAL

    @property
    def for_now(self) -> Verdict:
        """The same, but a failure that says nothing about other hosts is temporary."""
        if not self.is_here_only:
            return self
        return self._replace(status=Status.DEFERRED, is_here_only=False)


_ACCEPTED: Final = (Status.DELIVERED, Stage.FINAL, Cause.REPLY)
#: Makes a named tuple of all its fields in half the time that calling its class takes.
_new: Final = tuple.__new__

#: Our own status where no reply decided (RFC 3463 §3).
_ENHANCED: Final[Mapping[Cause, EnhancedStatusCode]] = {
    Cause.TIMEOUT: EnhancedStatusCode(4, 4, 2),
    Cause.CLOSED: EnhancedStatusCode(4, 4, 2),
    Cause.MALFORMED_REPLY: EnhancedStatusCode(4, 5, 0),
    Cause.REFUSED: EnhancedStatusCode(4, 4, 1),
    Cause.UNREACHABLE: EnhancedStatusCode(4, 4, 1),
    Cause.DNS: EnhancedStatusCode(4, 4, 3),
    Cause.TLS: EnhancedStatusCode(4, 7, 5),
    Cause.POLICY: EnhancedStatusCode(4, 7, 1),
    Cause.UNSUPPORTED: EnhancedStatusCode(4, 5, 0),
    Cause.EVENT: EnhancedStatusCode(4, 7, 1),
    Cause.CONFIG: EnhancedStatusCode(4, 3, 5),
    Cause.IO: EnhancedStatusCode(4, 3, 0),
    Cause.CANCELLED: EnhancedStatusCode(4, 3, 2),
    Cause.INTERNAL: EnhancedStatusCode(4, 3, 0),
}
#: Nobody answered at all, as against a connection that was lost.
_NO_ANSWER: Final = EnhancedStatusCode(4, 4, 1)

#: Who is blamed for a timeout; the rest of what can be lost is the host's.
#: A server that goes quiet at MAIL or DATA's end has met this message, not lost its line.
_TIMEOUT_SCOPES: Final[Mapping[Stage, Scope]] = {Stage.MAIL: Scope.MESSAGE}

#: Replies by which a server that lost the thread of the protocol refuses (RFC 5321 §4.2.2).
_PROTOCOL_CODES: Final = frozenset({500, 501, 502, 503, 504})


def judge(trouble: Trouble, peer: Peer) -> Verdict:
    """Return the verdict on a recipient that met this trouble."""
    text = describe(trouble, peer)
    if trouble.reply is not None:
        return _judge_reply(trouble, trouble.reply, text)
    enhanced = trouble.enhanced or _ENHANCED.get(trouble.cause)
    if trouble.stage is Stage.CONNECT and trouble.cause is Cause.TIMEOUT:
        enhanced = _NO_ANSWER
    if trouble.stage is Stage.FINAL:
        # The whole content left and its fate was not told (never "not delivered").
        status, scope = Status.UNKNOWN, Scope.MESSAGE
    elif trouble.cause is Cause.TIMEOUT:
        status, scope = Status.DEFERRED, _TIMEOUT_SCOPES.get(trouble.stage, Scope.HOST)
    else:
        status, scope = Status.DEFERRED, trouble.scope or Scope.HOST
    return Verdict(status, trouble.stage, trouble.cause, text, scope, None, enhanced)


def _judge_reply(trouble: Trouble, reply: Reply, text: str) -> Verdict:
    stage, cause, enhanced = trouble.stage, trouble.cause, reply.enhanced
    if reply.code == 421 or reply.severity == 4:
        scope = _SCOPES.get(stage, Scope.HOST) if reply.code != 421 else Scope.HOST
        return Verdict(Status.DEFERRED, stage, cause, text, scope, reply, enhanced)
    if stage is Stage.AUTH:
        # Our credentials are refused (535 and the like): ours to mend, and the mail waits for it.
        return Verdict(Status.DEFERRED, stage, cause, text, Scope.SOURCE, reply, enhanced)
    if stage is Stage.STARTTLS:
        # It is offered, and not to be had: that mends itself, or somebody is in between.
        return Verdict(Status.DEFERRED, stage, cause, text, Scope.HOST, reply, enhanced)
    if stage.is_setup:
        # The host takes nothing from us; another may (RFC 5321 §5.1).
        return Verdict(Status.FAILED, stage, cause, text, Scope.HOST, reply, enhanced, True)
    return Verdict(Status.FAILED, stage, cause, text, _SCOPES[stage], reply, enhanced)


#: Who a refusal is about.
_SCOPES: Final[Mapping[Stage, Scope]] = {
    Stage.MAIL: Scope.MESSAGE,
    Stage.RCPT: Scope.RECIPIENT,
    Stage.DATA: Scope.MESSAGE,
    Stage.CONTENT: Scope.MESSAGE,
    Stage.FINAL: Scope.MESSAGE,
}


def delivered(reply: Reply, peer: Peer) -> Verdict:
    """Return the verdict on a recipient whose content was accepted (RFC 5321 §4.2.5)."""
    text = f"accepted by {peer.text}: {reply.text}"
    facts = (*_ACCEPTED, text, None, reply, reply.enhanced, False)
    return _new(Verdict, facts)


def dismissed(reply: Reply | None, peer: Peer) -> Verdict:
    """Return the verdict on mail for a host that ends sessions before it takes any mail.

    Args:
        reply: Its 421 (RFC 5321 §3.8); `None`: it hung up.
        peer: The host.
    """
    problem = f"{peer} ends sessions before it takes any mail"
    if reply is None:
        enhanced = _ENHANCED[Cause.CLOSED]
        return Verdict(
            Status.DEFERRED, Stage.MAIL, Cause.CLOSED, problem, Scope.HOST, None, enhanced
        )
    text = f"{problem}: {reply.text}"
    return Verdict(
        Status.DEFERRED, Stage.MAIL, Cause.REPLY, text, Scope.HOST, reply, reply.enhanced
    )


def accepted(reply: Reply, peer: Peer) -> Verdict:
    """Return the verdict on a recipient that was only asked about, and would be taken."""
    text = f"would be accepted by {peer.text}: {reply.text}"
    return Verdict(Status.ACCEPTED, Stage.RCPT, Cause.REPLY, text, None, reply, reply.enhanced)


def unsupported(
    stage: Stage, scope: Scope, enhanced: EnhancedStatusCode, problem: str, peer: Peer
) -> Verdict:
    """Return the verdict on a message this host cannot take as it is; another may."""
    text = f"{peer}: {enhanced} {problem}"
    return Verdict(Status.FAILED, stage, Cause.UNSUPPORTED, text, scope, None, enhanced, True)


def ours(status: Status, cause: Cause, stage: Stage, text: str) -> Verdict:
    """Return the verdict on a recipient that something on our side kept from being delivered."""
    return Verdict(status, stage, cause, text, Scope.LOCAL, None, _ENHANCED[cause])


def lost(
    ending: SessionLost,
    command: Command | None,
    *,
    is_pipelined: bool,
    is_content_written: bool,
    octets: int = 0,
) -> Trouble:
    """Turn the end of a session into the trouble of whoever was being served.

    Args:
        ending: How the session ended.
        command: The command they had no reply to, `None` where nothing was owed.
        is_pipelined: Whether commands were pipelined.
        is_content_written: Whether the whole content of the transaction has left, or may have.
        octets: Octets of content written so far.
    """
    if is_content_written:
        # Whatever reply was missing first: the content is out and its reply will not come.
        stage, text = Stage.FINAL, "end of data"
    elif command is None:
        stage, text = Stage.MAIL, "a new transaction"
    elif command.kind is Kind.CONTENT or command.kind is Kind.BDAT_LAST:
        stage, text = Stage.CONTENT, "sending data block"
    else:
        stage, text = STAGES[command.kind], _name(command)
    return Trouble(stage, ending.cause, text, is_pipelined, ending.reply, ending.detail, octets)


def refused(
    command: Command, reply: Reply, *, is_pipelined: bool, is_early: bool = False
) -> Trouble:
    """Turn a negative reply into the trouble of whoever it is about."""
    stage = Stage.CONTENT if is_early else STAGES[command.kind]
    text = "sending data block" if is_early else _name(command)
    is_chunked = command.kind in (Kind.BDAT, Kind.BDAT_LAST)
    return Trouble(stage, Cause.REPLY, text, is_pipelined, reply, is_chunked=is_chunked)


def _name(command: Command) -> str:
    # An answer to a challenge has no verb of its own.
    return f"AUTH {command.text}" if command.kind is Kind.AUTH_STEP else command.text


def is_overflow(reply: Reply) -> bool:
    """Whether a reply to RCPT says "too many in this transaction" rather than "not this one".

    RFC 5321 §4.5.3.1.10: 452, and 552 from servers that follow older text.  A 552 whose enhanced
    code is about the mailbox (x.2.x: full) means what it says.
    """
    if reply.code == 452:
        return True
    enhanced = reply.enhanced
    return reply.code == 552 and (enhanced is None or enhanced.subject != 2)


def overflowed(trouble: Trouble, peer: Peer) -> Verdict:
    """Return the verdict on a recipient beyond what one transaction holds: worth trying again."""
    reply, text = trouble.reply, describe(trouble, peer)
    enhanced = None if reply is None else reply.enhanced
    return Verdict(
        Status.DEFERRED, trouble.stage, trouble.cause, text, Scope.RECIPIENT, reply, enhanced
    )


def is_protocol_doubt(trouble: Trouble) -> bool:
    """Whether a refusal may be a disagreement about the protocol rather than about the mail.

    A server that cannot follow pipelined or chunked commands answers so to MAIL, DATA or BDAT; it
    deserves one more try in lockstep.
    """
    return (
        trouble.reply is not None
        and trouble.reply.code in _PROTOCOL_CODES
        and (
            trouble.is_chunked
            or (trouble.is_pipelined and trouble.stage in (Stage.MAIL, Stage.DATA))
        )
    )


def describe(trouble: Trouble, peer: Peer) -> str:
    """Return one line for a person: who, what, after which command."""
    after = f"{'pipelined ' if trouble.is_pipelined else ''}{trouble.command}"
    if trouble.octets and trouble.stage in (Stage.CONTENT, Stage.FINAL):
        after += f" ({trouble.octets} octets written)"
    if trouble.reply is not None:
        return f"SMTP error from {peer} after {after}: {trouble.reply.text}"
    match trouble.cause:
        case Cause.TIMEOUT:
            text = f"SMTP timeout from {peer} after {after}"
        case Cause.CLOSED:
            text = f"{peer} closed the connection in response to {after}"
        case Cause.MALFORMED_REPLY:
            shown = trouble.detail or "(an empty line)"
            return f"malformed SMTP reply from {peer} in response to {after}: {shown}"
        case _:
            return f"{peer}: {trouble.detail}"
    return f"{text}: {trouble.detail}" if trouble.detail else text
