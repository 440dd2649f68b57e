"""Where mail for a domain goes: the values between routing, delivery and the connector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.outcome import Cause, Scope, Status
    from engine.smtp.status import EnhancedStatusCode


#: What the name of a host begins with that is a Unix socket; its path follows.
UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place to connect to.

    Attributes:
        host: The name the route knows it by (an MX host, a smart host, or the address itself), or
            `unix:` and the path of a Unix socket.
        address: IP address in its usual text form, without brackets; `None` for a Unix socket.
        port: TCP port where the route fixes one (`--host mx.test:2525`); it wins over the
            `port` setting.  `None` elsewhere.
        preference: Place among the route's MX preferences, from 0; lower is tried first
            (RFC 5321 §5.1).
        canonical: The host's name behind CNAMEs; empty where `host` is an address.
        is_secure: Whether DNSSEC vouches for the host's addresses and the CNAMEs on the way.  With
            `canonical` it says where TLSA records may be (RFC 7672 §2.2.2); two places are the
            same whatever these two say.
    """

    host: str
    address: str | None
    port: int | None = None
    preference: int = 0
    canonical: str = field(default="", compare=False)
    is_secure: bool = field(default=False, compare=False)

    @property
    def is_ipv6(self) -> bool:
        """Whether the address is of the IPv6 family."""
        return self.address is not None and ":" in self.address

    @property
    def unix_path(self) -> str | None:
        """The path, if it is a Unix socket."""
        return self.host.removeprefix(UNIX) if self.address is None else None


@dataclass(frozen=True, slots=True)
class HostFailure:
    """A host of a route whose addresses could not be had.

    Attributes:
        host: Its name.
        preference: As in `Candidate`.
        is_temporary: Whether asking again later may help (a name server failed or timed out).
        text: One line for a person.
        port: As in `Candidate`.
    """

    host: str
    preference: int
    is_temporary: bool
    text: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a domain: its site and everywhere it may be tried.

    Attributes:
        site: The receiver as it sees itself: the sorted set of its hosts, joined by commas.
            Domains with the same hosts are one site and share connections.
        candidates: Every address of every host, sorted by preference only; who walks them
            shuffles among equals (RFC 5321 §5.1).
        failures: Hosts without a usable address; they count as tried and failed.
        seconds: How long it took to find out (0.0 when it was known).
        is_static: Whether the order of `candidates` is the user's and must be kept.
        order: The site's hosts by preference: `mx1,mx2;backup`.  Domains of one site that rank its
            hosts differently may not stand in one queue.
        is_secure: Whether it is certain that these hosts serve the domain: DNSSEC vouches for its
            MX records, or no record stands between it and the host's name.
        aliases: The domain and, where that is an alias, its name behind CNAMEs, if secure MX
            records led from there to the hosts.  Certificates may have one of these names in place
            of the host's (RFC 7672 §3.2.2).
    """

    site: str
    candidates: tuple[Candidate, ...]
    failures: tuple[HostFailure, ...] = ()
    seconds: float = 0.0
    is_static: bool = False
    order: str = ""
    is_secure: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unroutable:
    """There is nowhere to send mail for a domain, now or at all.

    Attributes:
        status: `deferred` or `failed`.
        scope: Who is to blame, mostly the domain.
        cause: `dns` mostly; `policy` or `config` where a rule of ours says no.
        enhanced: Our status code: 5.1.2 no such domain, 5.1.10 null MX, 4.4.3 name server
            trouble, 4.4.6 the mail would loop back to us.
        text: One line for a person.
        seconds: How long it took to find out.
    """

    status: Status
    scope: Scope
    cause: Cause
    enhanced: EnhancedStatusCode
    text: str
    seconds: float = 0.0
