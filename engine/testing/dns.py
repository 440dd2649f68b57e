"""A DNS as a literal: for tests of routing, and of senders that use the engine.

    dns = FakeDns(
        {
            "example.test": {"MX": ["10 mx1.example.test", "20 mx2.example.test"]},
            "mx1.example.test": {"A": ["127.0.0.1"], "AAAA": ["::1"]},
            "www.example.test": {"CNAME": ["example.test"]},
            "closed.test": {"MX": ["0 ."]},
            "_25._tcp.mx1.example.test": {"TLSA": ["3 1 1 " + "ab" * 32]},
            "_mta-sts.example.test": {"TXT": ["v=STSv1; id=1"]},
            "broken.test": {"MX": "SERVFAIL"},
            "slow.test": {"MX": "TIMEOUT"},
            "forged.test": {"MX": "BOGUS"},
        },
        authentic=["example.test"],
    )

A name that is not in it does not exist; a name that is has no records but those written.  In place
of a list of records there may be a fault: `SERVFAIL`, `REFUSED`, `TIMEOUT` (no answer), or `BOGUS`
(the signatures are wrong, which name servers tell as SERVFAIL).  Zones named in `authentic` are
signed.  `FakeDns` answers in memory; `serve_dns` serves the same over real UDP and TCP on loopback.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

import trio

from engine.routing.resolver import Answer, AnswerStatus, MxRecord, Record, RecordType, Resolver
from engine.routing.site import host_text
from engine.security import Tlsa

if TYPE_CHECKING:
    import dns.message

Fault: TypeAlias = Literal["SERVFAIL", "REFUSED", "TIMEOUT", "BOGUS"]
#: Name -> record type -> records in the form of a zone file, or a fault.
Zone: TypeAlias = Mapping[str, Mapping[str, Sequence[str] | str]]

_MAX_CNAMES: Final = 8


@dataclass(frozen=True, slots=True)
class Found:
    """What a zone holds for a question.

    Attributes:
        status: As in `Answer`; `failed` comes with a fault.
        records: The records as they were written.
        cnames: The targets of the CNAMEs on the way, the last of which owns the records.
        fault: What the name server does instead of answering.
        authentic: Whether DNSSEC vouches for all of it.
    """

    status: AnswerStatus
    records: tuple[str, ...] = ()
    cnames: tuple[str, ...] = ()
    fault: Fault | None = None
    authentic: bool = False


class FakeDns(Resolver):
    """A resolver that knows what its literal says.

    Args:
        zone: The names and their records, see above.
        ttl: Seconds every answer holds, negative ones too.
        delay: Seconds before every answer.
        timeout: Seconds after which a `TIMEOUT` is reported as a lookup that failed.
        authentic: Whether answers count as validated by DNSSEC; or the names of the zones whose
            answers do, everything below them included.  A chain of CNAMEs does if each link does.

    Attributes:
        asked: How often each question came: `dns.asked["example.test", "MX"]`.

    Raises:
        ValueError: The literal has a slip; the text names the place and what is allowed.
    """

    def __init__(
        self,
        zone: Zone,
        *,
        ttl: float = 300.0,
        delay: float = 0.0,
        timeout: float = 5.0,
        authentic: bool | Collection[str] = False,
    ) -> None:
        self.asked: Counter[tuple[str, RecordType]] = Counter()
        self.ttl = ttl
        self.delay = delay
        self.timeout = timeout
        self.authentic = authentic
        self.change(zone)

    def change(self, zone: Zone) -> None:
        """Let the DNS say something else from now on."""
        self._names = {_name(name): _read_types(name, types) for name, types in zone.items()}

    async def query(self, name: str, rdtype: RecordType) -> Answer[Record]:
        """Answer from the literal."""
        found = self.find(name, rdtype)
        await trio.sleep(self.timeout if found.fault == "TIMEOUT" else self.delay)
        if found.fault is not None:
            return Answer("failed", text=f"the fake name server: {found.fault}")
        return Answer(
            found.status,
            tuple(_record(text, rdtype) for text in found.records),
            self.ttl,
            found.authentic,
            (found.cnames or (_name(name),))[-1],
        )

    def find(self, name: str, rdtype: RecordType) -> Found:
        """Count a question and return what the zone holds, CNAMEs followed."""
        name = _name(name)
        self.asked[name, rdtype] += 1
        found = self._follow(name, rdtype)
        return replace(found, authentic=all(map(self._is_signed, (name, *found.cnames))))

    def _is_signed(self, name: str) -> bool:
        if isinstance(self.authentic, bool):
            return self.authentic
        return any(f".{name}".endswith(f".{_name(zone)}") for zone in self.authentic)

    def _follow(self, name: str, rdtype: RecordType) -> Found:
        cnames: list[str] = []
        while (types := self._names.get(name)) is not None:
            held = types.get(rdtype)
            if isinstance(held, str):
                return Found("failed", (), tuple(cnames), held)
            if held:
                return Found("ok", held, tuple(cnames))
            target = types.get("CNAME")
            if not isinstance(target, tuple) or not target:
                return Found("no-data", (), tuple(cnames))
            if len(cnames) == _MAX_CNAMES:
                return Found("failed", (), tuple(cnames), "SERVFAIL")
            name = target[0]
            cnames.append(name)
        return Found("no-such-name", (), tuple(cnames))


def _name(text: str) -> str:
    return text if text == "." else text.lower().removesuffix(".")


_Answerer: TypeAlias = Callable[[bytes], "Awaitable[dns.message.Message | None]"]
_Held: TypeAlias = tuple[str, ...] | Fault


def _read_types(name: str, types: Mapping[str, Sequence[str] | str]) -> dict[RecordType, _Held]:
    return {
        _read_type(name, rdtype): _read_held(name, rdtype, held) for rdtype, held in types.items()
    }


def _read_type(name: str, rdtype: str) -> RecordType:
    for allowed in get_args(RecordType):
        if rdtype == allowed:
            return cast("RecordType", rdtype)
    raise ValueError(f"{name} {rdtype}: no such record type; allowed: {get_args(RecordType)}")


def _read_held(name: str, rdtype: str, held: Sequence[str] | str) -> _Held:
    if isinstance(held, str):
        if held in get_args(Fault):
            return cast("Fault", held)
        raise ValueError(f"{name} {rdtype} {held!r}: allowed: a list, or one of {get_args(Fault)}")
    try:
        return tuple(_read_record(rdtype, text) for text in held)
    except ValueError as error:
        raise ValueError(f"{name} {rdtype}: {error}") from None


def _read_record(rdtype: str, text: str) -> str:
    match rdtype:
        case "A":
            return str(IPv4Address(text))
        case "AAAA":
            return str(IPv6Address(text))
        case "CNAME":
            return _name(text)
        case "MX":
            preference, _, exchange = text.partition(" ")
            if not preference.isdecimal() or not exchange or " " in exchange:
                raise ValueError(f"{text!r}: allowed: a preference and a host, '10 mx.test'")
            return f"{int(preference)} {_name(exchange)}"
        case "TLSA":
            return _tlsa_text(text)
        case _:
            return text


def _tlsa_text(text: str) -> str:
    """Return a TLSA record as three numbers and the data in hexadecimal digits."""
    numbers, data = text.split()[:3], "".join(text.split()[3:])
    is_good = len(numbers) == 3 and all(n.isdecimal() and int(n) < 256 for n in numbers)
    if not is_good or not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", data):
        raise ValueError(f"{text!r}: allowed: three numbers and hexadecimal digits, '3 1 1 ab…'")
    return f"{' '.join(numbers)} {data.lower()}"


def _record(text: str, rdtype: RecordType) -> Record:
    match rdtype:
        case "MX":
            preference, _, exchange = text.partition(" ")
            return MxRecord(int(preference), exchange)
        case "TLSA":
            usage, selector, matching, data = text.split()
            return Tlsa(int(usage), int(selector), int(matching), bytes.fromhex(data))
        case _:
            return text


async def serve_dns(
    zone: Zone | FakeDns,
    *,
    chase: bool = True,
    host: str = "127.0.0.1",
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a DNS literal over UDP and TCP until cancelled.

    `await nursery.start(serve_dns, zone)` gives the `ADDRESS:PORT` to ask.  A `FakeDns` in place
    of a literal brings its TTL, delay and AD bit, and counts the questions.

    Args:
        zone: The names and their records.
        chase: Whether an answer holds all of a CNAME chain, or its first link only.
        host: The address to listen on; the port is a free one.
        task_status: Where the address is reported.
    """
    fake = zone if isinstance(zone, FakeDns) else FakeDns(zone)
    answer = partial(_answer, fake, chase=chase)
    udp, listeners = await _listen(host)
    port = udp.getsockname()[1]
    with udp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_udp, udp, answer)
            nursery.start_soon(trio.serve_listeners, partial(_serve_tcp, answer), listeners)
            task_status.started(host_text(host, port))


async def _listen(host: str) -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """Open UDP and TCP on one free port."""
    while True:
        listeners = await trio.open_tcp_listeners(0, host=host)
        udp = trio.socket.socket(listeners[0].socket.family, trio.socket.SOCK_DGRAM)
        try:
            await udp.bind(listeners[0].socket.getsockname())
        except OSError:
            # The port is free for TCP only.
            udp.close()
            await listeners[0].aclose()
        else:
            return udp, listeners


async def _serve_udp(udp: trio.socket.SocketType, answer: _Answerer) -> None:
    async def reply(wire: bytes, sender: tuple[object, ...]) -> None:
        if (response := await answer(wire)) is not None:
            # What does not fit into the client's buffer is cut, and the client comes back by TCP.
            await udp.sendto(response.to_wire(prefer_truncation=True), sender)

    async with trio.open_nursery() as nursery:
        while True:
            wire, sender = await udp.recvfrom(65_535)
            nursery.start_soon(reply, wire, sender)


async def _serve_tcp(answer: _Answerer, stream: trio.SocketStream) -> None:
    # A client that hangs up, say because it was cancelled, is no reason to stop serving others.
    with suppress(trio.BrokenResourceError):
        # RFC 1035 §4.2.2: two octets of length before each message.
        while (size := await _receive_exactly(stream, 2)) is not None:
            wire = await _receive_exactly(stream, int.from_bytes(size, "big"))
            if wire is None or (response := await answer(wire)) is None:
                return
            await stream.send_all(response.to_wire(max_size=65_535, prepend_length=True))


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes | None:
    octets = b""
    while len(octets) < count:
        piece = await stream.receive_some(count - len(octets))
        if not piece:
            return None
        octets += piece
    return octets


async def _answer(fake: FakeDns, wire: bytes, *, chase: bool) -> dns.message.Message | None:
    # The server alone needs dnspython; a FakeDns does without.
    import dns.edns
    import dns.flags
    import dns.message
    import dns.rcode
    import dns.rdatatype

    query = dns.message.from_wire(wire)
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True)
    found = fake.find(name, _read_type(name, dns.rdatatype.to_text(question.rdtype)))
    if found.fault == "TIMEOUT":
        return None
    await trio.sleep(fake.delay)
    response = dns.message.make_response(query, recursion_available=True)
    if found.fault == "BOGUS":
        # RFC 8914 §4.7: SERVFAIL, and the reason beside it.
        response.use_edns(0, options=[dns.edns.EDEOption(dns.edns.EDECode.DNSSEC_BOGUS)])
        response.set_rcode(dns.rcode.SERVFAIL)
        return response
    if found.fault is not None:
        response.set_rcode(dns.rcode.from_text(found.fault))
        return response
    if found.authentic:
        response.flags |= dns.flags.AD
    _fill(response, found, int(fake.ttl), chase=chase)
    return response


def _fill(response: dns.message.Message, found: Found, ttl: int, *, chase: bool) -> None:
    import dns.name
    import dns.rcode
    import dns.rdata
    import dns.rdataclass
    import dns.rdatatype
    import dns.rrset

    def rrset(owner: dns.name.Name, rdtype: str, texts: Sequence[str]) -> dns.rrset.RRset:
        if rdtype == "TLSA":
            # As unknown data (RFC 3597 §3): dnspython itself makes none that are malformed.
            kind = dns.rdatatype.TLSA
            records = (
                dns.rdata.GenericRdata(dns.rdataclass.IN, kind, _tlsa_octets(t)) for t in texts
            )
            return dns.rrset.from_rdata_list(owner, ttl, [*records])
        if rdtype == "TXT":
            texts = [_quoted(text) for text in texts]
        return dns.rrset.from_text_list(
            owner, ttl, "IN", rdtype, texts, origin=dns.name.root, relativize=False
        )

    question = response.question[0]
    owner = question.name
    for target in found.cnames:
        response.answer.append(rrset(owner, "CNAME", [target]))
        owner = dns.name.from_text(target)
        if not chase:
            return
    if found.records:
        rdtype = dns.rdatatype.to_text(question.rdtype)
        response.answer.append(rrset(owner, rdtype, found.records))
        return
    # RFC 2308 §3: the SOA record says for how long there is nothing.
    soa = f". . 1 3600 600 86400 {ttl}"
    response.authority.append(rrset(dns.name.root, "SOA", [soa]))
    if found.status == "no-such-name":
        response.set_rcode(dns.rcode.NXDOMAIN)


def _tlsa_octets(text: str) -> bytes:
    *numbers, data = text.split()
    return bytes(map(int, numbers)) + bytes.fromhex(data)


def _quoted(text: str) -> str:
    """Return a TXT record in zone file form, cut into strings of at most 255 octets."""
    pieces = [text[start : start + 255] for start in range(0, len(text), 255)] or [""]
    escaped = (piece.replace("\\", "\\\\").replace('"', '\\"') for piece in pieces)
    return " ".join(f'"{piece}"' for piece in escaped)
