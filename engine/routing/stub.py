"""Ask the configured name servers, and ask again where that is worth it.

With `engine.routing.exchange` the modules of this room that import dnspython; import it where it is
used, `--help` should not wait for it.  Retries, time limits and CNAME chains are here, memory is in
`engine.routing.cache`.  DNSSEC is the name server's work: a trusted one's AD bit is passed on.  Of
the hosts file only `localhost` is known (RFC 6761 §6.3).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import trio
from dns.rdtypes.ANY.CNAME import CNAME
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.TLSA import TLSA
from dns.rdtypes.ANY.TXT import TXT

from engine.routing.exchange import exchange, matching_type
from engine.routing.nameservers import NameServer, parse_server, system_servers, trust_in
from engine.routing.resolver import Answer, MxRecord, Record, RecordType, Resolver
from engine.security import Tlsa

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dns.rdata import Rdata

DEFAULT_TIMEOUT: Final = 5.0
#: Lookups in flight at most: a socket each, and a name server's patience.
DEFAULT_AT_ONCE: Final = 128
#: Each server is asked up to three times within the time limit.
_ROUNDS: Final = 3
#: The UDP payload that passes everywhere without fragments (the DNS flag day of 2020).
_UDP_OCTETS: Final = 1232
_MAX_CNAMES: Final = 8
_NO_EDNS: Final = (dns.rcode.FORMERR, dns.rcode.NOTIMP)


class _UnusableResponseError(Exception):
    """A response that answers nothing; the text says why."""


#: What a hostile or broken server, or the way to it, can make of an exchange.
_TROUBLE: Final = (
    _UnusableResponseError,
    dns.exception.DNSException,
    OSError,
    EOFError,
    ValueError,
    trio.BrokenResourceError,
)


class DnsResolver(Resolver):
    """A stub resolver: asks name servers that do the work.

    Only the AD bit of a trusted name server is believed (RFC 4035 §4.9.3): it validates, and nobody
    can forge answers on the way from it.  Where there is one, the others are not asked at all: who
    is in the way of a lookup could make the trusted one fail, and let another one answer
    "insecure" for what is signed.

    Args:
        servers: Name servers as `ADDRESS[:PORT]`, asked in this order; those of the resolv.conf
            when none are given.
        trusted: IP addresses of name servers which validate with DNSSEC, and to which the way is
            secure.  `None`: the loopback ones.  Empty: none, so nothing is authentic.
        timeout: Seconds one lookup may take, its retries and CNAMEs included.
        at_once: How many lookups may be in flight; more wait, and their time has not begun.
        resolv_conf: Where the name servers of this host are written; read once.

    Raises:
        TypeError: Servers are one text instead of several.
        ValueError: An argument cannot be used; the text says what is allowed.
    """

    def __init__(
        self,
        servers: Sequence[str] = (),
        *,
        trusted: Iterable[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        at_once: int = DEFAULT_AT_ONCE,
        resolv_conf: str = "/etc/resolv.conf",
    ) -> None:
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ValueError(f"timeout is {timeout!r}; allowed: seconds above 0")
        for given in (servers, trusted):
            if isinstance(given, str):  # its characters would be servers
                raise TypeError(f"name servers are {given[:300]!r}; allowed: a list of addresses")
        self._is_trusted = trust_in(trusted)
        self._servers = self._worth_asking(map(parse_server, servers))
        self._timeout = timeout
        self._resolv_conf = Path(resolv_conf)
        self._reading = trio.Lock()
        self._seats = trio.CapacityLimiter(at_once)

    async def query(self, name: str, rdtype: RecordType) -> Answer[Record]:
        """Ask the name servers in turn until one gives an answer to rely on."""
        try:
            question = dns.name.from_text(name)
        except dns.exception.DNSException as error:
            await trio.lowlevel.checkpoint()
            return Answer("no-such-name", text=f"{name[:300]!r} is no domain name: {error}")
        if (local := _localhost(question, rdtype)) is not None:
            await trio.lowlevel.checkpoint()
            return local
        async with self._seats:
            servers = await self._name_servers()
            is_trusted = self._is_trusted(servers[0].address)
            lookup = _Lookup(servers, self._timeout / _ROUNDS, is_trusted=is_trusted)
            with trio.move_on_after(self._timeout):
                return await lookup.run(question, rdtype)
        return lookup.failure(f"no answer within {self._timeout:g} s")

    async def _name_servers(self) -> tuple[NameServer, ...]:
        async with self._reading:
            if not self._servers:
                found = await trio.to_thread.run_sync(system_servers, self._resolv_conf)
                self._servers = self._worth_asking(found)
            return self._servers

    def _worth_asking(self, servers: Iterable[NameServer]) -> tuple[NameServer, ...]:
        """Return the trusted ones; all of them where none is."""
        servers = tuple(servers)
        return tuple(server for server in servers if self._is_trusted(server.address)) or servers


def _localhost(question: dns.name.Name, rdtype: RecordType) -> Answer[Record] | None:
    # RFC 6761 §6.3: these names are answered without the DNS, which may say anything.
    name = _name_text(question)
    if name.rpartition(".")[2] != "localhost":
        return None
    address = {"A": "127.0.0.1", "AAAA": "::1"}.get(rdtype)
    if address is None:
        return Answer("no-data", ttl=math.inf, canonical=name)
    return Answer("ok", (address,), ttl=math.inf, canonical=name)


class _Lookup:
    """One question on its way through the name servers."""

    def __init__(
        self, servers: tuple[NameServer, ...], try_timeout: float, *, is_trusted: bool
    ) -> None:
        self._servers = servers
        self._try_timeout = try_timeout
        self._is_trusted = is_trusted
        self._troubles: dict[NameServer, str] = {}  # the last of each
        self._useless: set[NameServer] = set()  # they answered, and asking again will not help

    def failure(self, text: str = "") -> Answer[Record]:
        """Return the answer for a lookup that failed, naming the servers and their troubles."""
        parts = [text] if text else []
        parts += (f"{server} {trouble}" for server, trouble in self._troubles.items())
        return Answer("failed", text="; ".join(parts))

    async def run(self, name: dns.name.Name, rdtype: RecordType) -> Answer[Record]:
        """Ask, and ask again where a CNAME chain leads out of the answer."""
        ttl, authentic, cnames = math.inf, self._is_trusted, 0
        while True:
            asked = await self._ask(name, rdtype)
            if asked is None:
                return self.failure()
            response, chain = asked
            authentic = authentic and bool(response.flags & dns.flags.AD)
            cnames += len(chain.cnames)
            if cnames > _MAX_CNAMES:
                return self.failure(f"more than {_MAX_CNAMES} CNAMEs in a row")
            if not _leads_out(response, chain):
                return _answer(response, chain, min(ttl, chain.minimum_ttl), authentic=authentic)
            ttl = min(ttl, *(rrset.ttl for rrset in chain.cnames))
            name = chain.canonical_name

    async def _ask(
        self, name: dns.name.Name, rdtype: RecordType
    ) -> tuple[dns.message.QueryMessage, dns.message.ChainingResult] | None:
        for server in self._servers * _ROUNDS:
            if server in self._useless:
                continue
            with trio.move_on_after(self._try_timeout) as scope:
                try:
                    response = await _exchange(server, name, rdtype, want_dnssec=self._is_trusted)
                    return response, response.resolve_chaining()
                except _TROUBLE as error:
                    self._troubles[server] = _describe(error)
                    self._useless.add(server)
            if scope.cancelled_caught:
                self._troubles[server] = f"did not answer in {self._try_timeout:.2g} s"
        return None


async def _exchange(
    server: NameServer, name: dns.name.Name, rdtype: RecordType, *, want_dnssec: bool
) -> dns.message.QueryMessage:
    # RFC 6840 §5.7: AD in a query asks for AD in the response.  DO does too, with name servers that
    # are older than that; the signatures it brings along are not looked at.
    query = dns.message.make_query(
        name,
        rdtype,
        use_edns=0,
        want_dnssec=want_dnssec,
        payload=_UDP_OCTETS,
        flags=dns.flags.RD | (dns.flags.AD if want_dnssec else 0),
    )
    response = await exchange(server, query)
    if response.rcode() in _NO_EDNS and response.edns < 0:
        # RFC 6891 §7: so answers who does not know EDNS.
        query.use_edns(False)
        response = await exchange(server, query)
    if response.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise _UnusableResponseError(f"answered {_rcode_text(response)}")
    # Neither its own zone nor recursion: a referral, which would read as "no such records".
    if not response.flags & (dns.flags.RA | dns.flags.AA):
        raise _UnusableResponseError("does not look up names for us (no recursion)")
    return cast("dns.message.QueryMessage", response)  # it has an opcode of QUERY, like the query


def _rcode_text(response: dns.message.Message) -> str:
    """Return the name of an error, and what the name server says about it (RFC 8914 §4)."""
    text = dns.rcode.to_text(response.rcode())
    for option in response.options:
        if isinstance(option, dns.edns.EDEOption):
            return f"{text} (EDE {int(option.code)})"
    return text


def _describe(error: Exception) -> str:
    if isinstance(error, _UnusableResponseError):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or error}"
    return f"gave an answer that cannot be read: {type(error).__name__}"


def _leads_out(response: dns.message.Message, chain: dns.message.ChainingResult) -> bool:
    """Whether the answer ends with a CNAME whose target it says nothing about."""
    return (
        bool(chain.cnames)
        and chain.answer is None
        and response.rcode() == dns.rcode.NOERROR
        and not any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)
    )


def _answer(
    response: dns.message.Message,
    chain: dns.message.ChainingResult,
    ttl: float,
    *,
    authentic: bool,
) -> Answer[Record]:
    canonical = _name_text(chain.canonical_name)
    if chain.answer is not None:
        records = tuple(map(_record, chain.answer))
        return Answer("ok", records, ttl, authentic, canonical)
    is_absent = response.rcode() == dns.rcode.NXDOMAIN
    return Answer("no-such-name" if is_absent else "no-data", (), ttl, authentic, canonical)


def _record(rdata: Rdata) -> Record:
    match rdata:
        case MX():
            return MxRecord(rdata.preference, _name_text(rdata.exchange))
        case TXT():
            # RFC 8461 §3.1 and others: the strings of a record are one text without spaces between.
            return b"".join(rdata.strings).decode("utf-8", "backslashreplace")
        case CNAME():
            return _name_text(rdata.target)
        case TLSA():
            return Tlsa(rdata.usage, rdata.selector, matching_type(rdata), rdata.cert)
        case _:
            return rdata.to_text()


def _name_text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
