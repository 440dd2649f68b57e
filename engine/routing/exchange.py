"""One question to one name server: over UDP, and over TCP where the answer does not fit.

Called by `engine.routing.stub`, which knows what an answer means and when to ask again; dnspython
reads and writes the messages.  No time limit is set here.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import dns.exception
import dns.message
import dns.rdatatype
import dns.wire
import trio

if TYPE_CHECKING:
    from dns.rdtypes.ANY.TLSA import TLSA

    from engine.routing.nameservers import NameServer

_MAX_OCTETS: Final = 65_535
#: Octets of the digests in TLSA records, by matching type (RFC 6698 §2.1.3).
_DIGEST_OCTETS: Final = {1: 32, 2: 64}
#: Added to the matching type of a record whose digest has another length, while dnspython reads it:
#: it takes no answer that has one.
_BROKEN: Final = 0x80


async def exchange(server: NameServer, query: dns.message.Message) -> dns.message.Message:
    """Ask a name server and return what it answers, whatever that is.

    Datagrams that are no answer to this question are passed over.

    Raises:
        OSError: The name server cannot be reached; `trio.BrokenResourceError` where a TCP
            connection broke.
        EOFError: It hung up in the middle of an answer.
        dns.exception.DNSException, ValueError: What came over TCP cannot be read, or answers
            another question.
    """
    octets = query.to_wire()
    response = await _over_udp(server, query, octets)
    return await _over_tcp(server, query, octets) if response is None else response


async def _over_udp(
    server: NameServer, query: dns.message.Message, octets: bytes
) -> dns.message.Message | None:
    """Return the answer, `None` where it did not fit."""
    family = trio.socket.AF_INET6 if ":" in server.address else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        # Connected: nobody else's datagrams arrive, and a port where nobody listens is known at once.
        await sock.connect((server.address, server.port))
        await sock.send(octets)
        while True:
            datagram = await sock.recv(_MAX_OCTETS)
            try:
                response = read(datagram)
            except dns.message.Truncated as cut:
                if query.is_response(_cut_message(cut)):
                    return None
            except (dns.exception.DNSException, ValueError):
                continue  # junk
            else:
                if query.is_response(response):
                    return response


async def _over_tcp(
    server: NameServer, query: dns.message.Message, octets: bytes
) -> dns.message.Message:
    stream = await trio.open_tcp_stream(server.address, server.port)
    async with stream:
        # RFC 1035 §4.2.2: two octets of length before each message.
        await stream.send_all(struct.pack("!H", len(octets)) + octets)
        (size,) = struct.unpack("!H", await _receive_exactly(stream, 2))
        try:
            response = read(await _receive_exactly(stream, size))
        except dns.message.Truncated as cut:
            response = _cut_message(cut)
    if not query.is_response(response):
        raise ValueError("an answer to another question")
    return response


def _cut_message(cut: dns.message.Truncated) -> dns.message.Message:
    message: dns.message.Message = cut.kwargs["message"]
    return message


async def _receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    octets = b""
    while len(octets) < count:
        piece = await stream.receive_some(count - len(octets))
        if not piece:
            raise EOFError("the name server hung up")
        octets += piece
    return octets


def read(octets: bytes) -> dns.message.Message:
    """Read a message, also one with TLSA records that are broken: see `matching_type`.

    Raises:
        dns.message.Truncated: It says that it was cut, and may have been cut anywhere.
        dns.exception.DNSException, ValueError: It cannot be read.
    """
    with suppress(dns.exception.DNSException):
        octets = _mark_broken(octets)
    return dns.message.from_wire(octets, raise_on_truncation=True)


def matching_type(rdata: TLSA) -> int:
    """Return the matching type of a TLSA record as it was before `read` had to change it."""
    kind: int = rdata.mtype
    expected = _DIGEST_OCTETS.get(kind - _BROKEN)
    return kind if expected in (None, len(rdata.cert)) else kind - _BROKEN


def _mark_broken(octets: bytes) -> bytes:
    """Return a message with `_BROKEN` in the TLSA records that are."""
    parser = dns.wire.Parser(octets)
    _, _, questions, answers, _, _ = parser.get_struct("!HHHHHH")
    for _ in range(questions):
        parser.get_name(None, True)
        parser.get_struct("!HH")
    marked = bytearray(octets)
    for _ in range(answers):
        parser.get_name(None, True)
        rdtype, _, _, size = parser.get_struct("!HHIH")
        start = parser.current
        data = parser.get_bytes(size)
        if rdtype == dns.rdatatype.TLSA and size > 2:
            expected = _DIGEST_OCTETS.get(data[2])
            if expected not in (None, size - 3):
                marked[start + 2] |= _BROKEN
    return bytes(marked)
