"""Turn a message and what a host offers into the commands of one mail transaction.  Knows no I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.delivery.verdict import Verdict, unsupported
from engine.outcome import Cause, Scope, Status
from engine.smtp.command import mail, rcpt
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.choices import Downconvert
    from engine.message import Message, Recipient
    from engine.outcome import Peer
    from engine.smtp.address import Mailbox
    from engine.smtp.capabilities import Capabilities
    from engine.smtp.command import Command
    from engine.smtp.content import ContentFacts

_TOO_LARGE: Final = EnhancedStatusCode(5, 3, 4)
_NOT_CONVERTIBLE: Final = EnhancedStatusCode(5, 6, 3)
_NO_SMTPUTF8: Final = EnhancedStatusCode(5, 6, 7)
_LINES_TOO_LONG: Final = EnhancedStatusCode(5, 6, 0)
_NO_REQUIRETLS: Final = EnhancedStatusCode(5, 7, 30)
_NO_ENCRYPTION: Final = EnhancedStatusCode(5, 7, 10)

# RFC 3461 §4: xtext is printable US-ASCII but "+" and "="; all else is "+" and two hex digits.
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")


class Envelope(NamedTuple):
    """The commands that open one mail transaction.

    Attributes:
        mail: MAIL with its parameters.
        rcpts: One RCPT a recipient, in order.
    """

    mail: Command
    rcpts: tuple[Command, ...]


class Dialect(NamedTuple):
    """How envelopes are written for one host, over one connection.

    Attributes:
        offered: What the host offers; parameters it does not know are never sent.
        size_addition: Octets added to the SIZE estimate for what is yet to be added to the content
            on its way; negative sends no SIZE at all.
        downconvert: When domains are written as A-labels.
        submitter: Who is said to have submitted messages to this host (RFC 4954 §5), as a mailbox;
            empty where that is not said.
        ignore_quota: Whether LMTP recipients may be over their quota.
        is_verified: Whether the host has proved by TLS who it is, so that REQUIRETLS may be used.
    """

    offered: Capabilities
    size_addition: int = 0
    downconvert: Downconvert = "auto"
    submitter: str = ""
    ignore_quota: bool = False
    is_verified: bool = False


def refuse(
    message: Message,
    recipients: Sequence[Recipient],
    facts: ContentFacts,
    dialect: Dialect,
    peer: Peer,
) -> Verdict | None:
    """Return why this host cannot take the message as it is, or `None` when it can.

    Asked before MAIL: a host that would have to refuse is not asked at all.

    Args:
        message: What is to be sent.
        recipients: For whom of its recipients.
        facts: What is known of the content as it would be sent.
        dialect: How it would be said.
        peer: The host.
    """
    offered = dialect.offered
    if (
        message.require_tls
        and _must_be_safe(message)
        and not (offered.requiretls and dialect.is_verified)
    ):
        # RFC 8689 §4.2.1: only over verified TLS, and where the host promises to do the same.
        problem = "REQUIRETLS is asked for and not to be had"
        return unsupported(Stage.MAIL, Scope.HOST, _NO_REQUIRETLS, problem, peer)
    if offered.size and facts.octets > offered.size:
        problem = f"content of {facts.octets} octets is over the host's limit of {offered.size}"
        return unsupported(Stage.MAIL, Scope.MESSAGE, _TOO_LARGE, problem, peer)
    is_strict = dialect.downconvert == "never"
    if not offered.smtputf8 and (
        message.smtputf8
        or (
            not _is_ascii(message, recipients)
            and _has_utf8_path(message, recipients, convertible=is_strict)
        )
    ):
        problem = "SMTPUTF8 is required but not offered"
        return unsupported(Stage.MAIL, Scope.HOST, _NO_SMTPUTF8, problem, peer)
    return None


def _must_be_safe(message: Message) -> bool:
    # RFC 8689 §4.2.1: reports of what became of such mail are to arrive.
    return message.require_tls and message.reverse_path is not None


def refuse_without_tls(message: Message, verdict: Verdict, peer: Peer) -> Verdict:
    """Return what a host's refusal to open a session means for a message.

    RFC 8689 §4.2.1: where no host has TLS, the sender of mail with REQUIRETLS is told at once.

    Args:
        message: What is to be sent.
        verdict: What it means for other mail.
        peer: The host.
    """
    is_missing = verdict.stage is Stage.STARTTLS and verdict.cause is Cause.UNSUPPORTED
    if not (is_missing and _must_be_safe(message)):
        return verdict
    problem = "REQUIRETLS is asked for, and the server does not offer STARTTLS"
    return unsupported(Stage.STARTTLS, Scope.HOST, _NO_ENCRYPTION, problem, peer)


def too_long(message: Message, most: int) -> Verdict:
    """Return the verdict on a message with lines longer than our own limit; nobody is asked.

    RFC 5321 §4.5.3.1.6: servers need not take them, and some cut them.
    """
    longest = message.content.facts.longest_line
    text = (
        f"{_LINES_TOO_LONG} the message has lines too long to send: {longest} octets, limit {most}"
    )
    return Verdict(
        Status.FAILED, Stage.POLICY, Cause.POLICY, text, Scope.MESSAGE, None, _LINES_TOO_LONG
    )


def not_convertible(reason: str, peer: Peer) -> Verdict:
    """Return the verdict on 8-bit content that a host without 8BITMIME cannot be given."""
    problem = f"content is 8-bit, 8BITMIME is not offered, and it cannot be converted: {reason}"
    return unsupported(Stage.MAIL, Scope.MESSAGE, _NOT_CONVERTIBLE, problem, peer)


def build(
    message: Message,
    recipients: Sequence[Recipient],
    facts: ContentFacts,
    dialect: Dialect,
    *,
    prdr: bool = False,
) -> Envelope:
    """Make the commands of a transaction for some of a message's recipients.

    Args:
        message: Its reverse-path and report wishes are used.
        recipients: Whom this transaction is for.
        facts: What is known of the content as it is sent.
        dialect: How things are said to this host.
        prdr: Whether a reply for each recipient is asked for after the content.
    """
    offered, is_ascii = dialect.offered, _is_ascii(message, recipients)
    as_utf8 = offered.smtputf8 and (
        facts.has_utf8_header
        or message.smtputf8
        or (
            not is_ascii
            and _has_utf8_path(message, recipients, convertible=dialect.downconvert != "always")
        )
    )
    parameters = _mail_parameters(message, facts, dialect, as_utf8=as_utf8, prdr=prdr)
    sender = message.reverse_path
    if is_ascii or (as_utf8 and dialect.downconvert != "always"):
        path = b"" if sender is None else sender.octets
        paths = [to.mailbox.octets for to in recipients]
    else:
        path = b"" if sender is None else _in_a_labels(sender)
        paths = [_in_a_labels(to.mailbox) for to in recipients]
    if offered.dsn or dialect.ignore_quota:
        wishes = [_rcpt_parameters(to, dialect) for to in recipients]
        return Envelope(mail(path, parameters), tuple(map(rcpt, paths, wishes)))
    return Envelope(mail(path, parameters), tuple([rcpt(path) for path in paths]))


def _mail_parameters(
    message: Message, facts: ContentFacts, dialect: Dialect, *, as_utf8: bool, prdr: bool
) -> list[bytes]:
    # The order is the reference client's; what that one does not send stands where it may.
    offered, parameters = dialect.offered, []
    if offered.size is not None and dialect.size_addition >= 0:
        # RFC 1870 §5.  The addition is a guess; it must not talk the host out of what fits.
        size = facts.octets + dialect.size_addition
        if offered.size:
            size = min(size, max(facts.octets, offered.size))
        parameters.append(b"SIZE=%d" % size)
    if facts.is_binary:
        parameters.append(b"BODY=BINARYMIME")  # RFC 3030 §3
    elif facts.is_8bit and offered.eight_bit_mime:
        parameters.append(b"BODY=8BITMIME")  # RFC 6152 §3
    if prdr:
        parameters.append(b"PRDR")
    if as_utf8:
        parameters.append(b"SMTPUTF8")  # RFC 6531 §3.4
    if offered.dsn:
        if message.ret is not None:
            parameters.append(b"RET=" + message.ret.upper().encode())
        if message.envid is not None:
            parameters.append(b"ENVID=" + _xtext(message.envid))
    if dialect.submitter:
        parameters.append(b"AUTH=" + _xtext(dialect.submitter))  # RFC 4954 §5
    if message.require_tls and offered.requiretls and dialect.is_verified:
        parameters.append(b"REQUIRETLS")  # RFC 8689 §2
    return parameters


def _rcpt_parameters(recipient: Recipient, dialect: Dialect) -> list[bytes]:
    parameters = []
    if dialect.ignore_quota:
        parameters.append(b"IGNOREQUOTA")
    if not dialect.offered.dsn:
        return parameters
    if recipient.notify:
        # RFC 3461 §4.1 gives no order; the reference client's is kept.
        wishes = [w for w in ("never", "success", "failure", "delay") if w in recipient.notify]
        parameters.append(b"NOTIFY=" + ",".join(wishes).upper().encode())
    if recipient.orcpt is not None:
        kind, _, address = recipient.orcpt.partition(";")
        parameters.append(b"ORCPT=%b;%b" % (kind.encode(), _xtext(address)))
    return parameters


def _is_ascii(message: Message, recipients: Sequence[Recipient]) -> bool:
    """Whether all paths are ASCII, as those of nearly all mail."""
    path = message.reverse_path
    if path is not None and not path.octets.isascii():
        return False
    for to in recipients:  # noqa: SIM110 - every message comes by here, and has one as a rule
        if not to.mailbox.octets.isascii():
            return False
    return True


def _has_utf8_path(message: Message, recipients: Sequence[Recipient], *, convertible: bool) -> bool:
    """Whether a path is not ASCII; `convertible` counts those too whose domain alone is not."""
    path = message.reverse_path
    if (
        path is not None
        and not path.octets.isascii()
        and (convertible or path.ascii_octets() is None)
    ):
        return True
    for to in recipients:
        mailbox = to.mailbox
        if not mailbox.octets.isascii() and (convertible or mailbox.ascii_octets() is None):
            return True
    return False


def _in_a_labels(mailbox: Mailbox) -> bytes:
    """Return a path with its domain in A-labels, which say the same, where it can be."""
    return mailbox.a_label_octets() or mailbox.octets


def _xtext(text: str) -> bytes:
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % match[0][0], text.encode())
