"""What is agreed with a host: how mail is sent to one that offers this.  Knows no I/O.

Found once the host has answered our hello, by `engine.delivery.host_session`; read by
`engine.delivery.carrier` for every transaction.  Not here: what was remembered of the host, and how
many transactions may be in flight (`engine.delivery.streaming`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engine.delivery.envelope import Dialect
from engine.delivery.transaction import Manner
from engine.smtp.capabilities import NO_CAPABILITIES, Limits

if TYPE_CHECKING:
    from engine.settings import Settings
    from engine.smtp.capabilities import Capabilities
    from engine.smtp.content import ContentFacts


class Agreement(NamedTuple):
    """How mail is sent over one connection.

    Attributes:
        manner: How transactions are carried out.
        dialect: How envelopes are written.
        has_prdr: Whether a reply for each recipient may be asked for after the content.
        most_transactions: Of the connection; 0: any number.
        most_recipients: Of a transaction; 0: any number.
        has_one_domain: Whether the recipients of a transaction must be of one domain.
        most_domains: Different domains that recipients of the session may be of; 0: any number.
    """

    manner: Manner = Manner()
    dialect: Dialect = Dialect(NO_CAPABILITIES)
    has_prdr: bool = False
    most_transactions: int = 0
    most_recipients: int = 0
    has_one_domain: bool = False
    most_domains: int = 0

    def takes(self, facts: ContentFacts) -> bool:
        """Whether a content with octets beyond 7 bits may be sent as it is."""
        if facts.is_binary:
            return self.dialect.offered.binarymime and self.manner.chunking
        return self.dialect.offered.eight_bit_mime


def agree(
    settings: Settings,
    offered: Capabilities,
    *,
    is_lockstep: bool,
    is_bad_at_chunking: bool,
    is_authenticated: bool,
    is_verified: bool,
    limits_count: bool,
) -> Agreement:
    """Return what our settings and a host's offer come to together.

    Args:
        settings: Those that hold for the host.
        offered: What it offers.
        is_lockstep: Whether neither pipelining nor CHUNKING is used, whatever is offered.
        is_bad_at_chunking: Whether the host is known to mishandle it.
        is_authenticated: Whether we are.
        is_verified: Whether the host has proved by TLS who it is.
        limits_count: Whether what it limits (RFC 9422 §3) is to be believed.
    """
    is_lmtp, submitter = settings.protocol == "lmtp", settings.authenticated_sender
    limits = offered.limits if limits_count else Limits()
    return Agreement(
        manner=Manner(
            settings.pipelining and offered.pipelining and not is_lockstep,
            settings.chunking and offered.chunking and not is_lockstep and not is_bad_at_chunking,
            settings.one_flight_octets,
            is_lmtp,
        ),
        dialect=Dialect(
            offered,
            settings.size_addition,
            settings.utf8_downconvert,
            submitter=str(submitter) if submitter is not None and is_authenticated else "",
            ignore_quota=is_lmtp and settings.lmtp_ignore_quota and offered.ignorequota,
            is_verified=is_verified,
        ),
        # LMTP has a reply for each recipient as it is, and no word for the whole.
        has_prdr=settings.prdr and offered.prdr and not is_lmtp,
        most_transactions=_least(settings.max_messages_per_connection, limits.mailmax),
        most_recipients=_least(settings.max_recipients_per_transaction, limits.rcptmax),
        has_one_domain=not settings.multi_domain or limits.rcptdomainmax is not None,
        most_domains=limits.rcptdomainmax or 0,
    )


def _least(ours: int, theirs: int | None) -> int:
    """Return the smaller limit; 0 is none of ours, `None` none of theirs."""
    return ours if theirs is None else min(theirs, ours or theirs)
