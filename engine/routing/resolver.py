"""What routing asks of the DNS: one question, one `Answer`.

Implemented by `engine.routing.stub.DnsResolver` (the network), `engine.routing.cache` (memory) and
`engine.testing.dns.FakeDns` (a literal).  A resolver of your own derives from `Resolver` and
writes `query`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar, cast

import trio

from engine.security import Tlsa

RecordType: TypeAlias = Literal["MX", "A", "AAAA", "TLSA", "TXT", "CNAME"]
AnswerStatus: TypeAlias = Literal["ok", "no-data", "no-such-name", "failed"]
Family: TypeAlias = Literal["ipv4", "ipv6"]

_ADDRESS_TYPES: dict[Family, Literal["A", "AAAA"]] = {"ipv4": "A", "ipv6": "AAAA"}


@dataclass(frozen=True, slots=True)
class MxRecord:
    """One MX record (RFC 5321 §5.1).

    Attributes:
        preference: 0 to 65535, lower is tried first.
        exchange: Host name: lower-case A-labels without a final dot; `.` is the null MX
            (RFC 7505 §3).
    """

    preference: int
    exchange: str


#: MX and TLSA records are values; records of other types are text: an IP address, a name, the
#: joined strings of a TXT record.
Record: TypeAlias = MxRecord | Tlsa | str
_R_co = TypeVar("_R_co", bound=Record, covariant=True)


@dataclass(frozen=True, slots=True)
class Answer(Generic[_R_co]):
    """What the DNS said to one question.

    Attributes:
        status: `ok` with records; `no-data`: the name exists without records of this type;
            `no-such-name`: NXDOMAIN; `failed`: no name server gave an answer to rely on, and
            asking again may help.
        records: The records; empty unless the status is `ok`.
        ttl: Seconds for which the answer holds.
        authentic: Whether a trusted name server says that it validated the answer with DNSSEC, every
            CNAME on the way included (the AD bit, RFC 4035 §3.2.3).  That there are no records
            can be authentic too.  What fails to validate is `failed`, never merely not authentic.
        canonical: The name after CNAMEs, lower-case without a final dot.
        text: One line for a person; where the lookup failed, which server did what.
    """

    status: AnswerStatus
    records: tuple[_R_co, ...] = ()
    ttl: float = 0.0
    authentic: bool = False
    canonical: str = ""
    text: str = ""


class Resolver(Protocol):
    """Answers questions about names.

    A lookup that fails is an `Answer` too; an exception means a bug.  Cancelling a question
    leaves nothing behind.
    """

    async def query(self, name: str, rdtype: RecordType) -> Answer[Record]:
        """Return the records of one type that a name has, CNAMEs followed (RFC 5321 §5.1).

        Args:
            name: A domain name in A-labels, without a final dot.
            rdtype: The record type.
        """
        ...

    async def mx(self, domain: str) -> Answer[MxRecord]:
        """Return a domain's MX records, in the order the name server gave them."""
        # The type of the question decides the type of the records.
        return cast("Answer[MxRecord]", await self.query(domain, "MX"))

    async def addresses(self, host: str, family: Family) -> Answer[str]:
        """Return a host's IP addresses of one family as text."""
        return cast("Answer[str]", await self.query(host, _ADDRESS_TYPES[family]))

    async def tlsa(self, name: str) -> Answer[Tlsa]:
        """Return the TLSA records of a service, such as `_25._tcp.mx.example.net`."""
        return cast("Answer[Tlsa]", await self.query(name, "TLSA"))

    async def txt(self, name: str) -> Answer[str]:
        """Return the TXT records of a name, the strings of each joined without spaces."""
        return cast("Answer[str]", await self.query(name, "TXT"))

    async def cname(self, name: str) -> Answer[str]:
        """Return where a name is an alias to; its own CNAME record alone, not the chain."""
        return cast("Answer[str]", await self.query(name, "CNAME"))


class NoResolver(Resolver):
    """Where nobody is to be asked: there are no records of any kind."""

    async def query(self, name: str, rdtype: RecordType) -> Answer[Record]:
        """Say that there is nothing."""
        await trio.lowlevel.checkpoint()
        return Answer("no-data", text=f"nobody was asked for {rdtype} records of {name}")
