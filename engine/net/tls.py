"""Make the TLS handshake with a host, and hold its certificate against what is demanded.

Delivery calls it where STARTTLS was accepted, or on connecting where TLS comes first; the stream
may lead through a proxy.  What is demanded is decided by `engine.routing`, what follows from a
failure by delivery.

OpenSSL verifies a chain where it must lead to a trusted authority; of TLSA records it knows nothing
as Python hands it over, so for those it lets every certificate pass and `engine.net.dane` judges.
Either way nothing is sent over TLS before the judgement, not even our last flight of the handshake.
Where any certificate will do it is looked at all the same, and the facts say what it is worth: as the
reference client tries to verify every host and goes on if it fails.
"""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from engine.net.tls_contexts import TlsContexts
from engine.net.tls_errors import AnsweredInClear, TlsFailed, Unverified
from engine.net.tls_sessions import SessionKey, TlsSessions, Verdict
from engine.net.tls_stream import TlsStream
from engine.outcome import Cause, Scope, TlsFacts
from engine.security import TlsLevel
from engine.units import HOURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

    from engine.net.stream import ByteStream
    from engine.net.tls_material import TlsMaterial
    from engine.net.tls_sessions import KeptSession
    from engine.outcome import Peer
    from engine.security import Tlsa, TlsDemand

#: Seconds for which the authorities are remembered that `would_verify` asks.
_ANCHOR_SECONDS: Final = HOURS
#: Seconds for which is remembered what a chain is worth where any will do, and of how many chains:
#: to find out takes half as long as a handshake.
_WORTH_SECONDS: Final = HOURS
_MOST_WORTHS: Final = 1000


@dataclass(frozen=True, slots=True)
class TlsPeer:
    """What a peer showed.

    Attributes:
        certificate: Its certificate in DER, `None` where it has none.
        chain: The certificates it sent, its own first; empty where a session was resumed.
        is_resumed: Whether a session was resumed: then what was verified was verified before.
        name: The reference identifier in the certificate, `None` where names did not count.
        record: The TLSA record that matched.
    """

    certificate: bytes | None
    chain: tuple[bytes, ...]
    is_resumed: bool
    name: str | None
    record: Tlsa | None


@dataclass(frozen=True, slots=True)
class TlsConnection:
    """TLS that is up and as demanded; whoever holds it closes `stream`."""

    stream: TlsStream
    facts: TlsFacts
    peer: TlsPeer


class TlsClient:
    """Our end of TLS; one serves all tasks of an engine, with its contexts and sessions.

    Attributes:
        contexts: Those made so far.
        sessions: Those that can be resumed.
    """

    def __init__(self) -> None:
        self.contexts: Final = TlsContexts()
        self.sessions: Final = TlsSessions()
        self._anchors: dict[str | None, tuple[float, tuple[x509.Certificate, ...]]] = {}
        self._worths: dict[_Question, tuple[float, Verdict]] = {}

    async def start(
        self,
        stream: ByteStream,
        demand: TlsDemand,
        material: TlsMaterial,
        *,
        peer: Peer,
        seconds: float,
        resumes: bool = True,
    ) -> TlsConnection:
        """Make the handshake over a stream, and see that the peer is who it must be.

        Failed or cancelled, the stream is closed.  A session that was offered to a peer that then
        failed is forgotten, so that the next attempt is a full handshake.

        Args:
            stream: Connected to the peer, who expects TLS now.
            demand: What TLS must be; its level is not `OFF`.
            material: What our side is made of.
            peer: Whom it is with; named in errors.
            seconds: How long the peer may take for all of it.
            resumes: Whether a session may be resumed, and this one be kept for it.

        Raises:
            TlsFailed: There is no TLS, or not the one demanded.
            ValueError: The demand makes no sense.
        """
        key = SessionKey(peer.host, peer.address, peer.port, demand, material)
        try:
            _check(demand)
            context = await self._context(key, peer)
            with trio.fail_after(seconds):
                resumes = resumes and not demand.is_fresh
                return await self._start(stream, key, peer, context, resumes=resumes)
        except trio.TooSlowError:
            stream.close()
            self.sessions.forget(key)
            text = f"timed out after {seconds:g} s"
            raise TlsFailed(peer, Cause.TIMEOUT, text, clear_may_help=True) from None
        except BaseException:
            stream.close()
            self.sessions.forget(key)
            raise

    async def _start(
        self,
        transport: ByteStream,
        key: SessionKey,
        peer: Peer,
        context: ssl.SSLContext,
        *,
        resumes: bool,
    ) -> TlsConnection:
        kept = self.sessions.get(key, context) if resumes else None
        session = kept.session if kept is not None else None
        wrap = partial(context.wrap_bio, server_hostname=key.demand.sni, session=session)
        stream = TlsStream(transport, wrap)
        try:
            await stream.handshake()
            verdict = _judge(key.demand, stream.tls, kept)
            if verdict is None:
                verdict = await self._look_at(chain_of(stream.tls), key)
        except ssl.SSLError as error:
            raise TlsFailed.from_handshake(peer, error) from error
        except AnsweredInClear as error:
            raise TlsFailed.from_reply(peer) from error
        except trio.BrokenResourceError as error:
            raise TlsFailed.from_lost_connection(peer, error) from error
        except Unverified as error:
            raise TlsFailed.from_unverified(peer, error) from error
        if resumes:
            # With TLS 1.3 the ticket comes behind the handshake, mostly with the first reply.
            stream.on_first_read = lambda: self.sessions.put(
                key, stream.tls.session, context, verdict
            )
        return TlsConnection(stream, *_facts(key.demand, stream.tls, verdict))

    async def _look_at(self, chain: Sequence[bytes], key: SessionKey) -> Verdict:
        """Say what a certificate is worth where any will do."""
        names = tuple(dict.fromkeys(filter(None, (key.host, key.demand.sni))))
        question = _Question(tuple(chain), names, key.material.ca_file)
        until, verdict = self._worths.get(question, (-math.inf, Verdict("no")))
        if until <= trio.current_time():
            try:
                verdict = await self._worth(question, key.material)
            except OSError:
                return Verdict("no")  # no authority is known, and none is needed
            self._worths.pop(question, None)
            if len(self._worths) >= _MOST_WORTHS:
                del self._worths[next(iter(self._worths))]
            until = min(trio.current_time() + _WORTH_SECONDS, verdict.until)
            self._worths[question] = until, verdict
        return verdict

    async def _worth(self, question: _Question, material: TlsMaterial) -> Verdict:
        from engine.net.pkix import load_certificate

        chain, names, _ = question
        if await self.would_verify(chain, names, material) is not None:
            return Verdict("no")
        return Verdict("pkix", until=_expiry(load_certificate(chain[0])))

    async def _context(self, key: SessionKey, peer: Peer) -> ssl.SSLContext:
        verifies = key.demand.level is TlsLevel.VERIFY and not key.demand.tlsa
        try:
            return await self.contexts.get(key.material, verifies=verifies)
        except (OSError, ValueError) as error:
            text = f"our own certificate, key, ciphers or authorities cannot be used: {error}"
            number = None if isinstance(error, ssl.SSLError) else getattr(error, "errno", None)
            raise TlsFailed(peer, Cause.CONFIG, text, scope=Scope.LOCAL, errno=number) from error

    async def would_verify(
        self, chain: Sequence[bytes], names: Sequence[str], material: TlsMaterial
    ) -> Unverified | None:
        """Say what would be wrong with a chain if it had to lead to a trusted authority.

        For whoever reports that and delivers all the same (RFC 8461 §5).  Authorities other than
        RSA and the curves of NIST, which OpenSSL knows as well, count as not trusted here.

        Returns:
            What is wrong; `None`: nothing.

        Raises:
            OSError: The file of authorities cannot be read.
        """
        from engine.net import pkix
        from engine.net.names import match_name

        try:
            if not chain:
                raise _no_certificate()
            certificates = pkix.load_chain(chain)
            anchors = await self._anchors_of(material.ca_file)
            pkix.check_key(certificates[0])
            pkix.verify_path(certificates, anchors, datetime.now(UTC))
            match_name(certificates[0], names)
        except Unverified as flaw:
            return flaw
        return None

    async def _anchors_of(self, ca_file: str | None) -> tuple[x509.Certificate, ...]:
        from engine.net.pkix import load_anchors

        until, anchors = self._anchors.get(ca_file, (-math.inf, ()))
        if until <= trio.current_time():
            anchors = await trio.to_thread.run_sync(load_anchors, ca_file)
            self._anchors[ca_file] = trio.current_time() + _ANCHOR_SECONDS, anchors
        return anchors


def _check(demand: TlsDemand) -> None:
    if demand.level is TlsLevel.OFF:
        raise ValueError("TLS is off: allowed are the levels above")
    if demand.level is TlsLevel.VERIFY and not (demand.names or demand.tlsa):
        raise ValueError("no names to verify: allowed are one and more")


class _Question(NamedTuple):
    """Whether a chain leads to one of the authorities in a file, and is for one of these names."""

    chain: tuple[bytes, ...]
    names: tuple[str, ...]
    ca_file: str | None


def _judge(demand: TlsDemand, tls: ssl.SSLObject, kept: KeptSession | None) -> Verdict | None:
    """Hold the peer's certificate against the demand; `None` where any will do.

    A resumed session brings no chain along.  It was kept under the very same demand, and what was
    found then still holds.
    """
    if kept is not None and tls.session_reused:
        return kept.verdict
    if demand.tlsa:
        return _judge_by_records(demand, chain_of(tls))
    if demand.level is TlsLevel.VERIFY:
        return _judge_by_name(demand, tls.getpeercert(binary_form=True))
    return None


def _judge_by_records(demand: TlsDemand, chain: Sequence[bytes]) -> Verdict:
    from engine.net.dane import verify_dane

    if not chain:
        raise _no_certificate()
    match = verify_dane(demand.tlsa, chain, demand.names, datetime.now(UTC))
    if match.name is None:
        return Verdict("dane", None, match.record)
    from engine.net.pkix import load_certificate

    until = _expiry(load_certificate(chain[0]))
    return Verdict("dane", match.name, match.record, until)


def _judge_by_name(demand: TlsDemand, certificate: bytes | None) -> Verdict:
    from engine.net.names import match_name
    from engine.net.pkix import load_certificate

    if certificate is None:
        raise _no_certificate()
    parsed = load_certificate(certificate)
    return Verdict("pkix", match_name(parsed, demand.names), None, _expiry(parsed))


def _expiry(certificate: x509.Certificate) -> float:
    """Return when a certificate expires, by Trio's clock."""
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    return trio.current_time() + left.total_seconds()


def _no_certificate() -> Unverified:
    return Unverified("the peer has no certificate", "certificate-not-trusted")


def _facts(demand: TlsDemand, tls: ssl.SSLObject, verdict: Verdict) -> tuple[TlsFacts, TlsPeer]:
    cipher = tls.cipher()
    facts = TlsFacts(
        version=tls.version() or "",
        cipher=cipher[0] if cipher is not None else "",
        verified=verdict.verified,
        policy=demand.policy,
    )
    peer = TlsPeer(
        certificate=tls.getpeercert(binary_form=True),
        chain=tuple(chain_of(tls)),
        is_resumed=bool(tls.session_reused),
        name=verdict.name,
        record=verdict.record,
    )
    return facts, peer


def chain_of(tls: Any) -> list[bytes]:
    """Return the certificates a peer sent, in DER, its own first; none from a resumed session."""
    if hasattr(tls, "get_unverified_chain"):  # public from Python 3.13 on
        return list(tls.get_unverified_chain())
    chain = tls._sslobj.get_unverified_chain()  # noqa: SLF001
    return [certificate.public_bytes(_DER) for certificate in chain or ()]


#: `_ssl.ENCODING_DER`
_DER: Final = 2
