"""What each policy makes of the certificates a host showed.

Called by `engine.worker.explain_probe` when a handshake is over that looked at no certificate.  The
judges are those of real handshakes: `engine.net.dane` for TLSA records, `TlsClient.would_verify` for
trusted authorities.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from engine.net.dane import verify_dane
from engine.net.names import match_name
from engine.net.pkix import load_certificate
from engine.net.tls_errors import Unverified
from engine.routing.dane import reference_names, usable
from engine.security import TlsLevel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.net.tls import TlsClient
    from engine.net.tls_material import TlsMaterial
    from engine.route import Route
    from engine.routing.mta_sts import StsPolicy
    from engine.security import Tlsa, TlsDemand
    from engine.worker.explain_gather import Lead

#: How many hexadecimal digits of a record's data are shown: enough to find it among others.
_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one policy makes of a certificate.

    Attributes:
        by: Which: whether its chain leads to a trusted authority, whether it is for the host, the
            TLSA records, the MTA-STS policy.
        is_met: Whether it does.
        text: Why, on one line.
    """

    by: Literal["chain", "name", "dane", "mta-sts"]
    is_met: bool
    text: str


class Judge:
    """Judges the certificates of one host."""

    def __init__(self, chain: Sequence[bytes], material: TlsMaterial, client: TlsClient) -> None:
        """Prepare it.

        Args:
            chain: What the host sent, in DER, its own first.
            material: Says which authorities are trusted.
            client: Remembers them.
        """
        self._chain = chain
        self._material = material
        self._client = client

    async def by_demand(self, demand: TlsDemand) -> Unverified | None:
        """Return what keeps the chain from being what is demanded; `None`: nothing does."""
        if demand.level < TlsLevel.VERIFY:
            return None
        if not demand.tlsa:
            return await self._by_authorities(demand.names)
        found = self._by_records(demand.tlsa, demand.names)
        return found if isinstance(found, Unverified) else None

    async def by_each(
        self, lead: Lead, route: Route, policy: StsPolicy | None
    ) -> tuple[Judgement, ...]:
        """Return what each policy makes of it that there is.

        Args:
            lead: The host.
            route: The route it stands in.
            policy: The MTA-STS policy that counts for it.
        """
        names = (lead.candidate.host, *filter(None, (lead.path.settings.tls_sni,)))
        found = [*await self._by_chain_and_name(names)]
        records = usable(lead.tlsa.records) if lead.tlsa is not None else ()
        if lead.tlsa is not None and records:
            match = self._by_records(
                records, reference_names(lead.tlsa.base, route, lead.candidate)
            )
            if isinstance(match, Unverified):
                found.append(Judgement("dane", False, match.text))
            else:
                found.append(Judgement("dane", True, f"{shorten(match)} matches"))
        if policy is not None and policy.mode != "none":
            found.append(await self._by_policy(lead.candidate.host, policy))
        return tuple(found)

    async def _by_policy(self, host: str, policy: StsPolicy) -> Judgement:
        if not policy.covers(host):
            return Judgement("mta-sts", False, "the policy does not name the host")
        # RFC 8461 §4.2: trusted, and for the host.
        flaw = await self._by_authorities((host,))
        return Judgement("mta-sts", flaw is None, flaw.text if flaw else "as the policy wants it")

    async def _by_chain_and_name(self, names: Sequence[str]) -> list[Judgement]:
        flaw = await self._by_authorities(names)
        is_named_wrong = flaw is not None and flaw.result == "certificate-host-mismatch"
        is_trusted = flaw is None or is_named_wrong
        text = "leads to a trusted authority" if is_trusted else flaw.text if flaw else ""
        found = [Judgement("chain", is_trusted, text)]
        if self._chain:
            try:
                name = match_name(load_certificate(self._chain[0]), names)
                found.append(Judgement("name", True, f"is for {name}"))
            except Unverified as error:
                found.append(Judgement("name", False, error.text))
        return found

    async def _by_authorities(self, names: Sequence[str]) -> Unverified | None:
        try:
            return await self._client.would_verify(self._chain, names, self._material)
        except OSError as error:
            text = f"the trusted authorities cannot be read: {error.strerror}"
            return Unverified(text, "certificate-not-trusted")

    def _by_records(self, records: Sequence[Tlsa], names: Sequence[str]) -> Tlsa | Unverified:
        if not self._chain:
            return Unverified("the peer has no certificate", "certificate-not-trusted")
        try:
            return verify_dane(records, self._chain, names, datetime.now(UTC)).record
        except Unverified as flaw:
            return flaw


def shorten(record: Tlsa) -> str:
    """Return a TLSA record with no more of its data than tells it from others."""
    usage, selector, matching, data = record
    digits = data.hex()
    more = "…" if len(digits) > _DIGITS else ""
    return f"{usage} {selector} {matching} {digits[:_DIGITS]}{more}"
