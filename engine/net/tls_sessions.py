"""The TLS sessions of one engine, kept to be resumed, with what was found about their peers.

`engine.net.tls` puts them in and asks for them.  They live in memory and end with the run: Python's
`ssl` has no way to write a session down (`ssl.SSLSession` neither exports nor pickles), so they
cannot be hints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import trio

from engine.units import HOURS

if TYPE_CHECKING:
    import ssl

    from engine.net.tls_material import TlsMaterial
    from engine.security import Tlsa, TlsDemand

#: Sessions kept; with the peer's chain in it, one takes some 5 to 10 KB.
MOST: Final = 2000
#: Seconds after which a certificate is looked at again, whatever the server says its tickets are
#: good for.  RFC 8446 §4.6.1 allows a week.
_LONGEST: Final = 24 * HOURS


class SessionKey(NamedTuple):
    """Whose session it is, and what was asked for: only the same question has the same answer.

    Attributes:
        host: The name the route knows the peer by.
        address: Its IP address.
        port: Its TCP port.
        demand: What TLS had to be.
        material: What our side was made of.
    """

    host: str
    address: str | None
    port: int | None
    demand: TlsDemand
    material: TlsMaterial


class Verdict(NamedTuple):
    """What was found about a peer's certificate.

    Attributes:
        verified: By what it was verified, if at all.
        name: The reference identifier that is in it, `None` where names do not count.
        record: The TLSA record that matched, `None` without DANE.
        until: When it has to be looked at again, by Trio's clock.
    """

    verified: Literal["no", "pkix", "dane"]
    name: str | None = None
    record: Tlsa | None = None
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session that can be resumed.

    Attributes:
        session: OpenSSL's; of use with `context` only.
        context: What it was made with.
        verdict: What was found when the certificate was seen.
        until: When it is of no use any more, by Trio's clock.
    """

    session: ssl.SSLSession
    context: ssl.SSLContext
    verdict: Verdict
    until: float


class TlsSessions:
    """A bounded, expiring memory of sessions; belongs to the thread that runs Trio.

    One session for a key, the latest.  It may be resumed by several connections at once: that lets
    an observer tell them for the same client's (RFC 8446 Appendix C.4), which the addresses of
    mail servers do anyway.
    """

    def __init__(self, most: int = MOST) -> None:
        """Keep at most so many sessions; those longest not used go first."""
        self._most = most
        self._kept: dict[SessionKey, KeptSession] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: SessionKey, context: ssl.SSLContext) -> KeptSession | None:
        """Return the session to resume, `None` where there is none."""
        kept = self._kept.pop(key, None)
        if kept is None or kept.context is not context or kept.until <= trio.current_time():
            return None
        self._kept[key] = kept  # the last of all now
        return kept

    def put(
        self,
        key: SessionKey,
        session: ssl.SSLSession | None,
        context: ssl.SSLContext,
        verdict: Verdict,
    ) -> None:
        """Keep a session in place of the one before, if it can be resumed at all."""
        if session is None or not (session.has_ticket or session.id):
            return
        # A ticket's lifetime of 0: it is not to be kept (RFC 8446 §4.6.1).
        seconds = session.ticket_lifetime_hint if session.has_ticket else session.timeout
        until = min(trio.current_time() + min(seconds, _LONGEST), verdict.until)
        self._kept.pop(key, None)
        self._kept[key] = KeptSession(session, context, verdict, until)
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]

    def forget(self, key: SessionKey) -> None:
        """Drop a session; no error where there is none."""
        self._kept.pop(key, None)
