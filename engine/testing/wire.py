"""What the log of a link says about SMTP: who said what when, and in how many round trips.

Tests and benchmarks hand it the passages that `engine.testing.link` logged.  Everything is as the
client sees it: a command has left when its last octet came to the link, a reply is there when its
last octet, and all before it, arrived at the near end.  Knows no I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from engine.smtp.reply import ReplyParser
from engine.testing.impairments import Direction
from engine.testing.segment import Flags

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from engine.smtp.reply import Reply
    from engine.testing.packet_log import Passage
    from engine.testing.segment import Endpoint

_SEQUENCE_NUMBERS: Final = 1 << 32
#: The first octet of a TLS handshake record (RFC 8446 §5.1).
_HANDSHAKE: Final = b"\x16"


@dataclass(frozen=True, slots=True)
class Octets:
    """What went one way over a connection, with its times.

    Attributes:
        octets: All that arrived without a gap before it.
        departures: Pairs of an index and a time: when the octets below that index, and not below
            the index before, came to the link for the first time.
        arrivals: The same for when they, and all before them, had arrived.
    """

    octets: bytes
    departures: tuple[tuple[int, float], ...]
    arrivals: tuple[tuple[int, float], ...]

    def departure(self, index: int) -> float:
        """When the octet at an index left."""
        return self.departures[bisect_right(self.departures, index, key=itemgetter(0))][1]

    def arrival(self, index: int) -> float:
        """When the octet at an index had arrived."""
        return self.arrivals[bisect_right(self.arrivals, index, key=itemgetter(0))][1]


@dataclass(frozen=True, slots=True)
class Trace:
    """One TCP connection from the near end to the far one.

    Attributes:
        client: Its near end.
        server: Its far end.
        passages: Its segments, in the order they came to the link.
    """

    client: Endpoint
    server: Endpoint
    passages: tuple[Passage, ...]

    @property
    def opened_at(self) -> float:
        """When the first SYN left the client."""
        return self.syn.entered

    @property
    def syn(self) -> Passage:
        """The first SYN."""
        return next(each for each in self.passages if _opens(each))

    @property
    def syn_octets(self) -> int:
        """How many octets the server took out of the SYN (RFC 7413 §4.2.2)."""
        for each in self.passages:
            if each.direction is Direction.BACK and Flags.SYN in each.segment.flags:
                return (each.segment.ack - self.syn.segment.seq - 1) % _SEQUENCE_NUMBERS
        return 0

    def read(self, direction: Direction) -> Octets:
        """Put together what went one way."""
        passages = [each for each in self.passages if each.direction is direction]
        first = next((each for each in passages if Flags.SYN in each.segment.flags), None)
        if first is None:
            return Octets(b"", (), ())
        start = first.segment.seq + 1
        octets, arrivals = _put_together(passages, start)
        return Octets(octets, _departures(passages, start), arrivals)


@dataclass(frozen=True, slots=True)
class Turn:
    """A command and its reply.

    Attributes:
        command: Its line without CRLF; a dot for a content behind DATA; empty for the connection
            itself, which the greeting answers, and for a reply that nobody asked for.
        sent_at: When its last octet left, for BDAT that of its chunk; for the greeting when the
            first SYN did; for what nobody asked for when the reply before it came.
        reply: The reply to it.
        heard_at: When the last octet of the reply arrived.
    """

    command: bytes
    sent_at: float
    reply: Reply
    heard_at: float

    @property
    def is_final(self) -> bool:
        """Whether the reply is that to a whole content."""
        words = self.command.upper().split()
        return words == [b"."] or (words[:1] == [b"BDAT"] and words[2:] == [b"LAST"])


def traces(log: Iterable[Passage]) -> list[Trace]:
    """Sort a log by connections, in the order of their first SYNs.

    Segments of connections that began before the log did are left out.
    """
    found: dict[tuple[Endpoint, Endpoint], list[list[Passage]]] = {}
    for passage in sorted(log, key=lambda each: each.entered):
        segment = passage.segment
        ends = segment.source, segment.destination
        if passage.direction is Direction.BACK:
            ends = ends[1], ends[0]
        connections = found.setdefault(ends, [])
        if _opens(passage) and (not connections or connections[-1][0].segment.seq != segment.seq):
            connections.append([])  # the first one, or a port that is used again
        if connections:
            connections[-1].append(passage)
    every = [
        Trace(*ends, tuple(passages))
        for ends, connections in found.items()
        for passages in connections
    ]
    return sorted(every, key=lambda trace: trace.opened_at)


def dialogue(trace: Trace) -> list[Turn]:
    """Pair the replies of a connection with its commands, as far as both are in clear.

    Raises:
        RemoteProtocolError: A reply is none.
    """
    said, heard = trace.read(Direction.OUT), trace.read(Direction.BACK)
    turns: list[Turn] = []
    if said.octets.startswith(_HANDSHAKE):
        return turns
    command, sent_at, end = b"", trace.opened_at, 0
    for reply, heard_at in _replies(heard):
        turns.append(Turn(command, sent_at, reply, heard_at))
        if command.upper() == b"STARTTLS" and reply.is_positive:
            break
        start = end
        if command.upper() == b"DATA" and reply.code == 354:
            command, end = b".", _end_of_content(said.octets, start)
        else:
            command, end = _next_command(said.octets, start)
        sent_at = said.departure(end - 1) if end > start else heard_at
    return turns


def round_trips(trace: Trace, round_trip: float) -> float:
    """Return how many round trips passed from the first SYN to the first reply to a content.

    Args:
        trace: The connection.
        round_trip: Seconds that one takes.

    Raises:
        ValueError: There was no such reply, or not in clear.
    """
    final = next((turn for turn in dialogue(trace) if turn.is_final), None)
    if final is None:
        raise ValueError("no reply to a content came in clear")
    return (final.heard_at - trace.opened_at) / round_trip


def messages_a_round_trip(trace: Trace, round_trip: float) -> float:
    """Return how many messages a connection carried in each round trip behind its first message.

    Raises:
        ValueError: There were fewer than two replies to contents in clear.
    """
    heard = [turn.heard_at for turn in dialogue(trace) if turn.is_final]
    if len(heard) < 2:
        raise ValueError(f"{len(heard)} replies to contents came in clear; two are needed")
    return (len(heard) - 1) * round_trip / (heard[-1] - heard[0])


def encrypted_round_trips(trace: Trace, round_trip: float, content_octets: int) -> float:
    """Return the same as `round_trips` where only sizes and times can tell.

    The content is taken to be in the last flight of the client that has so many octets, and its
    reply to be at the end of the flight that answers.

    Raises:
        ValueError: There are no such flights.
    """
    sent = _flights(trace, Direction.OUT, round_trip / 4)
    contents = [flight for flight in sent if sum(map(_size, flight)) >= content_octets]
    if not contents:
        raise ValueError(f"no flight of the client has {content_octets} octets")
    arrived = contents[-1][-1].left or 0.0
    for flight in _flights(trace, Direction.BACK, round_trip / 4, since=arrived):
        return ((flight[-1].left or 0.0) - trace.opened_at) / round_trip
    raise ValueError("nothing came back after the content had arrived")


def _opens(passage: Passage) -> bool:
    flags = passage.segment.flags
    return passage.direction is Direction.OUT and Flags.SYN in flags and Flags.ACK not in flags


def _offset(passage: Passage, start: int) -> int:
    """Where the payload belongs; negative for what comes before `start`, as keepalives do."""
    segment = passage.segment
    distance = segment.seq + (Flags.SYN in segment.flags) - start
    half = _SEQUENCE_NUMBERS // 2
    return (distance + half) % _SEQUENCE_NUMBERS - half


def _departures(passages: Sequence[Passage], start: int) -> tuple[tuple[int, float], ...]:
    departures: list[tuple[int, float]] = []
    for each in passages:  # what is sent for the first time is sent in order
        end = _offset(each, start) + len(each.segment.payload)
        if end > (departures[-1][0] if departures else 0):
            departures.append((end, each.entered))
    return tuple(departures)


def _put_together(
    passages: Sequence[Passage], start: int
) -> tuple[bytes, tuple[tuple[int, float], ...]]:
    octets, arrivals = bytearray(), list[tuple[int, float]]()
    early: list[tuple[int, bytes]] = []
    arrived = [(each.left, each) for each in passages if each.left is not None and each.payload]
    for left, each in sorted(arrived, key=itemgetter(0)):
        early.append((_offset(each, start), each.payload))
        before = len(octets)
        for at, payload in sorted(early, key=itemgetter(0)):
            if at <= len(octets) < at + len(payload):
                octets += payload[len(octets) - at :]
        if len(octets) > before:
            arrivals.append((len(octets), left))
            early = [(at, payload) for at, payload in early if at + len(payload) > len(octets)]
    return bytes(octets), tuple(arrivals)


def _replies(heard: Octets) -> Iterator[tuple[Reply, float]]:
    parser, at = ReplyParser(), 0
    for line in heard.octets.splitlines(keepends=True):
        parser.feed(line)
        at += len(line)
        while (reply := parser.next_reply()) is not None:
            yield reply, heard.arrival(at - 1)


def _next_command(octets: bytes, start: int) -> tuple[bytes, int]:
    """Return the command at an index and where it ends, its chunk included; or nothing."""
    line_end = octets.find(b"\r\n", start)
    if line_end < 0:
        return b"", start
    command, end = octets[start:line_end], line_end + 2
    words = command.split()
    if len(words) > 1 and words[0].upper() == b"BDAT" and words[1].isdigit():
        end = min(end + int(words[1]), len(octets))
    return command, end


def _end_of_content(octets: bytes, start: int) -> int:
    """Return where a content behind DATA ends; the CRLF of DATA may be that before its dot."""
    found = octets.find(b"\r\n.\r\n", start - 2)
    return len(octets) if found < 0 else found + 5


def _flights(
    trace: Trace, direction: Direction, pause: float, since: float = 0.0
) -> list[list[Passage]]:
    """The segments with octets that arrived, cut wherever the sender paused that long."""
    flights: list[list[Passage]] = []
    for each in trace.passages:
        if each.direction is direction and each.entered >= since and each.payload:
            if not flights or each.entered - flights[-1][-1].entered > pause:
                flights.append([])
            flights[-1].append(each)
    return flights


def _size(passage: Passage) -> int:
    return len(passage.payload)
