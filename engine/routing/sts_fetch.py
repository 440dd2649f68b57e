"""Fetch the MTA-STS policy of a domain over HTTPS (RFC 8461 §3.3).

Called by `engine.routing.sts_store`, which remembers what came of it.  The HTTP library is loaded
with the first fetch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from engine.routing.families import families
from engine.routing.mta_sts import MAX_POLICY_OCTETS, StsPolicy, StsPolicyError, read_policy

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from engine.https import Dial, HttpsClient
    from engine.routing.resolver import Resolver
    from engine.security import TlsFailure

#: Seconds to wait for one address of a policy host.
_CONNECT_SECONDS: Final = 10.0
#: Addresses of a policy host that are tried.
_MAX_ADDRESSES: Final = 6


class StsFetchError(Exception):
    """A policy that could not be had.

    Attributes:
        failure: What it is in a report (RFC 8460 §4.3.2.2).
        reason: One line for a person.
    """

    def __init__(self, failure: TlsFailure, reason: str) -> None:
        super().__init__(reason)
        self.failure: TlsFailure = failure
        self.reason = reason


class StsFetcher:
    """Fetches policies.

    Args:
        dial: Opens connections to policy hosts; `dial_by` makes one.
        make_context: Makes the TLS context, in a thread; by default it trusts the certificates of
            the system.
        timeout: Seconds for one fetch; `None`: a minute, as RFC 8461 §3.3 suggests.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        make_context: Callable[[], ssl.SSLContext] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._dial = dial
        self._make_context = make_context
        self._timeout = timeout
        self._client: HttpsClient | None = None

    async def fetch(self, domain: str) -> StsPolicy:
        """Return the policy a domain publishes now.

        Raises:
            StsFetchError: There is none, or it cannot be had or trusted.
        """
        from engine.https import CertificateError, HttpsError

        if self._client is None:
            self._client = self._make_client()
        url = f"https://mta-sts.{domain}/.well-known/mta-sts.txt"
        try:
            reply = await self._client.get(url, max_octets=MAX_POLICY_OCTETS)
        except CertificateError as error:
            raise StsFetchError("sts-webpki-invalid", str(error)) from error
        except HttpsError as error:
            raise StsFetchError("sts-policy-fetch-error", str(error)) from error
        # RFC 8461 §3.3: 200 and nothing else; a redirect is no policy.
        if reply.status != 200:
            reason = f"{url} answered with status {reply.status}"
            raise StsFetchError("sts-policy-fetch-error", reason)
        # RFC 8461 §3.2: where anybody may put pages, none of those is a policy.
        if reply.media_type != "text/plain":
            reason = f"{url} has media type {reply.media_type[:60]!r}, not text/plain"
            raise StsFetchError("sts-policy-fetch-error", reason)
        try:
            return read_policy(reply.octets)
        except StsPolicyError as error:
            raise StsFetchError("sts-policy-invalid", f"{url}: {error}") from error

    def _make_client(self) -> HttpsClient:
        from engine.https import DEFAULT_TIMEOUT, HttpsClient, default_context

        return HttpsClient(
            self._dial,
            make_context=self._make_context or default_context,
            timeout=DEFAULT_TIMEOUT if self._timeout is None else self._timeout,
        )


def dial_by(
    resolver: Resolver,
    connect: Callable[[str, int], Awaitable[trio.abc.Stream]] = trio.open_tcp_stream,
) -> Dial:
    """Return a dialler that has host names looked up by a resolver.

    Args:
        resolver: Who is asked.
        connect: Opens a connection to an IP address and a port; raises `OSError` where it cannot.
    """

    async def dial(host: str, port: int) -> trio.abc.Stream:
        """Try a host's addresses in turn.

        Raises:
            OSError: None could be reached.
        """
        addresses: list[str] = []
        for family in families("any"):
            addresses += (await resolver.addresses(host, family)).records
        trouble: OSError = OSError(f"{host} has no IP address")
        for address in addresses[:_MAX_ADDRESSES]:
            with trio.move_on_after(_CONNECT_SECONDS):
                try:
                    return await connect(address, port)
                except OSError as error:
                    trouble = error
                    continue
            trouble = OSError(f"{host} [{address}] did not answer in {_CONNECT_SECONDS:g} s")
        raise trouble

    return dial
