"""Hosts in memory that do to a client whatever a plan says, and write down what really happened.

A plan is a dict from numbers to acts.  Everything a host may do something about (a connection, its
greeting, each command, each reply to a content) is numbered in the order it comes up; what is not
in the plan goes well.  What is kept is the host's own view, command by command: what came, what was
answered, whether the answer went out, and for whom a content was taken.  `tests.delivery.model`
says which outcomes that view permits.

Not here: anything of the engine's idea of SMTP.  This reader of commands is its own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Literal

import trio

from engine.net.errors import ConnectFailed
from engine.net.port import port_for
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage
from tests.delivery.helpers import MemoryStream, Pipe, connection_to

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from engine.net.connector import Connection
    from engine.net.options import ConnectOptions
    from engine.route import Candidate


class Act(Enum):
    """What a host does about one thing, in place of what would be right."""

    #: Refuses, for now or for good.
    LATER = "450 4.2.0"
    NEVER = "550 5.1.1"
    FULL = "452 4.5.3"
    TOO_MUCH = "552 5.3.4"
    QUOTA = "552 5.2.2"
    CONFUSED = "503 5.5.1"
    UNKNOWN_COMMAND = "500 5.5.2"
    #: Says 421 and hangs up.
    GOING = "421 4.3.2"
    #: Says 421 to this and to all that is in flight behind it, then hangs up.
    GOING_ALL = "421 4.3.0"
    #: Does it, says something that is no reply, and goes on.
    GARBAGE = "garbage"
    #: Does it, and says so octet by octet, in time.
    DRIP = "drip"
    #: The same, but so slowly that nobody waits for the end.
    CRAWL = "crawl"
    #: Neither reads nor writes any more.
    STALL = "stall"
    #: Hangs up without doing it.
    CLOSE = "close"
    #: The same, and what was not written yet is lost.
    CRASH = "crash"
    #: Does it, and hangs up before it says so.
    CLOSE_AFTER = "close after"
    #: Does it, says the first half of the reply and hangs up.
    HALF = "half"
    #: A content alone: refuses it when a part of it has come; else as `TOO_MUCH`.
    EARLY = "early"
    #: A content alone: hangs up when a part of it has come; else as `CLOSE`.
    CUT = "cut"
    #: Does it; but the client is stopped at this very moment.
    CANCEL = "cancel"

    def __repr__(self) -> str:
        return str(self)


_REFUSALS = {act: act.value for act in Act if act.value[0].isdigit()}
#: Seconds between the octets of a dripped reply, and of one that crawls.
_DRIP, _CRAWL = 1.0, 70.0


@dataclass(eq=False)
class Reply:
    """A reply that was decided on.

    Attributes:
        number: Which of the house; it stands in the text.
        code: Three digits; 0 where it is no reply at all.
        text: Code and enhanced code.
        about: The recipients that a reply to a content is about.
        is_told: Whether it went out to the last octet, to a client that could still believe it.
    """

    number: int
    code: int
    text: str
    about: frozenset[str] = frozenset()
    is_told: bool = False


@dataclass(eq=False)
class Command:
    """Something a client said, and what it was answered.

    Attributes:
        kind: The verb; `CONNECT` for the connection itself, `CONTENT` for a content.
        text: The line.
        octets: The content.
        replies: In order.
        at: How many octets the client said before it.
    """

    kind: str
    text: str = ""
    octets: bytes = b""
    replies: list[Reply] = field(default_factory=list)
    at: int = 0


@dataclass(eq=False)
class Trip:
    """One MAIL and what the client said behind it, whatever it was answered.

    Attributes:
        visit: Over which connection.
        before: What the client said before it.
        mail: The MAIL.
        rcpts: Each RCPT, by its address.
        data: The DATA, where it came.
        content: The content, its replies also where only a part of it came.
        is_whole: Whether the content has left the client to its last octet.
        is_brimming: Whether all of it has left but that octet, which the client may have been about
            to write, or may not.
        takers: For whom the content was taken.
        taken_as: With what reverse-path and envelope id it was.
    """

    visit: Visit
    before: Command
    mail: Command
    rcpts: dict[str, Command] = field(default_factory=dict)
    data: Command | None = None
    content: Command = field(default_factory=lambda: Command("CONTENT"))
    is_whole: bool = False
    is_brimming: bool = False
    takers: frozenset[str] = frozenset()
    taken_as: tuple[str, str] = ("", "")

    @property
    def begun(self) -> int:
        """When the client began it, as the house counts."""
        return self.visit.client.when(self.mail.at)

    @property
    def sender(self) -> str:
        return self.mail.text.partition("<")[2].partition(">")[0]

    @property
    def is_prdr(self) -> bool:
        return " PRDR" in self.mail.text

    @property
    def envid(self) -> str:
        return self.mail.text.partition(" ENVID=")[2].partition(" ")[0]


@dataclass(frozen=True)
class Manners:
    """What hosts are like, apart from what goes wrong.

    Attributes:
        lmtp: Whether they speak LMTP.
        extensions: Offered to EHLO.
        prdr: Whether they make use of PRDR where it is asked for.
        keeps_open: Whether a chunk for nobody leaves the transaction open; and one that is refused
            as an unknown command, where nothing is in flight behind it.
        nested: Whether MAIL in an open transaction begins a new one; else it is refused.
        hurried: Whether commands behind a dot that came with it are refused.
        lenient: Whether DATA for nobody is answered with 354 all the same, and a chunk for nobody
            is taken, with all the ceremony of PRDR where that was asked for.
        one_by_one: Whether each reply is written by itself; else all to one read at once.
        pace: Octets read at most at a time.
        delay: Seconds before each read.
        capacity: Octets that may be under way.
        patience: Seconds without a word after which they say 421 and hang up.
        name: What they call themselves.
    """

    lmtp: bool = False
    extensions: tuple[str, ...] = ("DSN",)
    prdr: bool = True
    keeps_open: bool = False
    nested: bool = False
    hurried: bool = False
    lenient: bool = False
    one_by_one: bool = False
    pace: int = 65536
    delay: float = 0.0
    capacity: float = math.inf
    patience: float = math.inf
    name: str = "mx.test"

    @property
    def limits(self) -> dict[str, int]:
        """What LIMITS announces."""
        found = [each.split()[1:] for each in self.extensions if each.startswith("LIMITS")]
        return {name: int(value) for name, _, value in map(_equals, chain(*found))}

    def offers(self, keyword: str) -> bool:
        return any(each.split()[0] == keyword for each in self.extensions)


def _equals(word: str) -> tuple[str, str, str]:
    return word.partition("=")


class House:
    """All hosts of a plan, and a connector to them.

    Attributes:
        visits: Each connection, in the order they were made.
        open: How many the client has open now.
        peak: How many it ever had at a time.
        replies: All replies by their number.
        events: What came up so far, for whoever makes plans.
        refused: Addresses that refused a connection.
        ticks: Counts what clients wrote.
    """

    def __init__(self, plan: Mapping[int, Act], manners: Manners) -> None:
        self.manners = manners
        self.visits: list[Visit] = []
        self.peak = 0
        self.replies: list[Reply] = []
        self.events = 0
        self.refused: list[str] = []
        self.ticks = 0
        self.is_cancelled = False
        self.cancel: Callable[[], None] = lambda: None
        self.nursery: trio.Nursery | None = None
        self._plan = plan

    async def connect(
        self, candidate: Candidate, options: ConnectOptions, *, early_data: bytes = b""
    ) -> Connection:
        await trio.lowlevel.checkpoint()
        if self.next_act() in (Act.CLOSE, Act.CRASH, Act.NEVER):
            self.refused.append(candidate.address)
            raise ConnectFailed(Stage.CONNECT, Cause.REFUSED, Scope.HOST, "refused")
        there, back = Pipe(self.manners.capacity), Pipe()
        client, server = _Client(self, back, there), MemoryStream(there, back)
        visit = Visit(self, candidate.address, client, server)
        self.visits.append(visit)
        self.peak = max(self.peak, self.open)
        assert self.nursery is not None
        self.nursery.start_soon(visit.serve)
        if early_data:
            visit.is_early = True
            there.capacity = math.inf  # what rides in the SYN is there with the connection
            client.send_nowait(early_data)
            there.capacity = self.manners.capacity
        return connection_to(candidate, client, port_for(candidate, options))

    @property
    def open(self) -> int:
        return sum(not visit.client.is_closed for visit in self.visits)

    def next_act(self) -> Act | None:
        act = self._plan.get(self.events)
        self.events += 1
        if act is Act.CANCEL:
            self.is_cancelled = True
            self.cancel()
        return act

    def reply(self, text: str, about: Iterable[str] = ()) -> Reply:
        """Number a reply; a `text` that begins with no code is none."""
        code = int(text[:3]) if text[:3].isdigit() else 0
        reply = Reply(len(self.replies), code, text, frozenset(about))
        self.replies.append(reply)
        return reply


class _Client(MemoryStream):
    """A client's end, that knows what was written when."""

    def __init__(self, house: House, incoming: Pipe, outgoing: Pipe) -> None:
        super().__init__(incoming, outgoing)
        self._house = house
        self._ends: list[int] = []
        self._ticks: list[int] = []

    def send_nowait(self, data) -> int:
        taken = super().send_nowait(data)
        self._house.ticks += 1
        self._ends.append(taken + (self._ends[-1] if self._ends else 0))
        self._ticks.append(self._house.ticks)
        return taken

    def when(self, place: int) -> int:
        """Return when the octet at this place was written."""
        return self._ticks[bisect_right(self._ends, place)]


class Reader:
    """Cuts what a client says into commands and contents."""

    def __init__(self) -> None:
        self.octets = bytearray()
        self.is_in_content = False
        self.content_octets = 0  # of whole contents, as they came
        self._at = 0
        self._left: int | None = None  # of a chunk; `None`: a content that ends with a dot

    def expect_dots(self) -> None:
        self.is_in_content, self._left = True, None

    def next(self) -> Command | None:
        if self.is_in_content:
            end = self._end_of_content()
            if end is None:
                return None
            octets, at = self._cut(end)
            self.content_octets += end
            self.is_in_content = False
            if self._left is None:
                octets = (b"\r\n" + octets[:-3]).replace(b"\r\n.", b"\r\n")[2:]
            return Command("CONTENT", "", octets, at=at)
        end = self.octets.find(b"\r\n")
        if end < 0:
            return None
        line, at = self._cut(end + 2)
        text = line[:-2].decode()
        kind = text.partition(" ")[0]
        if kind == "BDAT":
            self.is_in_content, self._left = True, int(text.split()[1])
        return Command(kind, text, at=at)

    def _cut(self, end: int) -> tuple[bytes, int]:
        cut, at = bytes(self.octets[:end]), self._at
        del self.octets[:end]
        self._at += end
        return cut, at

    def _end_of_content(self) -> int | None:
        if self._left is not None:
            return self._left if len(self.octets) >= self._left else None
        if self.octets.startswith(b".\r\n"):
            return 3
        found = self.octets.find(b"\r\n.\r\n")
        return None if found < 0 else found + 5


class _Over(Exception):  # noqa: N818 - an ending
    """The host has hung up."""


class Visit:
    """One connection, as the host sees it.

    Attributes:
        address: The host's.
        commands: What the client said, in order.
        trips: Its mail transactions.
        endings: How the client may have seen it end.
        complaints: Where the client left the protocol.
        is_deaf: Whether the client was told something after which it believes nothing more.
        is_early: Whether the client spoke first.
    """

    def __init__(
        self, house: House, address: str, client: MemoryStream, server: MemoryStream
    ) -> None:
        self.house = house
        self.address = address
        self.client = client
        self.commands: list[Command] = [Command("CONNECT")]
        self.trips: list[Trip] = []
        self.endings: set[Cause] = set()
        self.complaints: list[str] = []
        self.is_deaf = self.is_early = False
        self._server = server
        self._manners = house.manners
        self._reader = Reader()
        self._out: deque[tuple[Reply, bytes]] = deque()
        self._open: Trip | None = None  # whose MAIL holds
        self._accepted: list[str] = []
        self._content_act: Act | None = None
        self._is_dropping = False  # the content was answered before its end
        self._refuses_all = False  # 421 was said
        self._welcome: Container[str] = _WELCOME[""]
        self._hurried = 0  # octets that came together with a dot

    # -- the conversation -------------------------------------------------------------------

    async def serve(self) -> None:
        try:
            await self._answer(self.commands[0], f"220 {self._manners.name}")
            while True:
                await self._flush()
                if self._refuses_all and not self._server.incoming.octets:
                    await self._hang_up()
                await trio.sleep(self._manners.delay)
                octets = await self._hear()
                if not octets:
                    return
                self._reader.octets += octets
                await self._take_commands()
        except (_Over, trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            self._server.close()

    async def _hear(self) -> bytes:
        with trio.move_on_after(self._manners.patience):
            return await self._server.receive_some(self._manners.pace)
        idle = Command("IDLE")
        self.commands.append(idle)
        self._put(idle, "421 4.4.2 idle")
        await self._hang_up()
        return b""

    async def _take_commands(self) -> None:
        while True:
            before = len(self._reader.octets)
            command = self._reader.next()
            if command is None:
                break
            taken = before - len(self._reader.octets)
            if self._hurried:
                self._hurried = max(0, self._hurried - taken)
                if command.kind != "QUIT":
                    self.keep(command)
                    await self._answer(command, "503 5.5.1 too early")
                    continue
            await self._react(command)
        if self._reader.is_in_content and self._reader.octets:
            await self._interrupt_content()

    async def _react(self, command: Command) -> None:
        if self._is_dropping and command.kind == "CONTENT":
            self._is_dropping = False
            self.keep(command)
            return
        self.keep(command)
        self._check_alone(command)
        await _HANDLERS.get(command.kind, Visit._unknown)(self, command)

    def keep(self, command: Command) -> None:
        """Write down what the client said; also of what lay unread at the end."""
        before, kind = self.commands[-1], command.kind
        self.commands.append(command)
        if kind == "MAIL":
            self.trips.append(Trip(self, before, command))
        elif kind in ("RCPT", "DATA", "CONTENT") and not self.trips:
            self.complaints.append(f"{kind} before any MAIL")
        elif kind == "RCPT":
            self.trips[-1].rcpts[_path(command)] = command
        elif kind == "DATA":
            self.trips[-1].data = command
        elif kind == "CONTENT":
            trip = self.trips[-1]
            trip.is_whole, trip.content.octets = True, command.octets

    @property
    def has_offered(self) -> bool:
        """Whether the client was told of the extensions."""
        return any(
            command.kind in ("EHLO", "LHLO") and reply.code == 250 and reply.is_told
            for command in self.commands
            for reply in command.replies
        )

    @property
    def has_session(self) -> bool:
        """Whether greeting and hello went well, and the client was told."""
        return any(
            command.kind in _SETUP and reply.code == 250 and reply.is_told
            for command in self.commands
            for reply in command.replies
        )

    @property
    def is_cut(self) -> bool:
        """Whether it ended within a content."""
        return self._reader.is_in_content

    @property
    def content_octets(self) -> int:
        """Octets of content that the client said, as they went on the wire."""
        reader = self._reader
        return reader.content_octets + (len(reader.octets) if reader.is_in_content else 0)

    def read_rest(self) -> None:
        """Look through what the client said to a host that heard nothing any more."""
        self._reader.octets += self._server.incoming.octets
        self._server.incoming.octets.clear()
        while (command := self._reader.next()) is not None:
            self.keep(command)
        if self.is_cut:
            one_more = copy(self._reader)
            one_more.octets = self._reader.octets + b"\n"
            self.trips[-1].is_brimming = one_more.next() is not None

    def _check_alone(self, command: Command) -> None:
        kind = command.kind
        is_barrier = kind in ("EHLO", "HELO", "LHLO", "DATA", "QUIT")
        if (
            kind == "BDAT"
            or (kind == "EHLO" and self.is_early)
            or (not is_barrier and self._manners.offers("PIPELINING"))
        ):
            return
        if self._reader.octets or self._server.incoming.octets:
            self.complaints.append(f"something came behind {command.text or kind}")

    # -- commands ---------------------------------------------------------------------------

    async def _hello(self, command: Command) -> None:
        if (command.kind == "LHLO") is not self._manners.lmtp:
            return await self._answer(command, "500 5.5.1 wrong protocol")
        if command.kind == "HELO":
            return await self._answer(command, f"250 {self._manners.name}")
        lines = [self._manners.name, *self._manners.extensions]
        first = "".join(f"250-{line}\r\n" for line in lines[:-1])
        return await self._answer(command, f"{first}250 {lines[-1]}")

    async def _mail(self, command: Command) -> None:
        trip = self.trips[-1]
        if self._open is not None and not self._manners.offers("PIPELINING"):
            self.complaints.append("MAIL in an open transaction, and no need to guess")
        if self._open is not None and not self._manners.nested:
            return await self._answer(command, "503 5.5.1 nested MAIL")

        def begin() -> None:
            self._open, self._accepted = trip, []

        return await self._answer(command, "250 2.1.0 sender", begin)

    async def _rcpt(self, command: Command) -> None:
        if self._open is None:
            return await self._answer(command, "503 5.5.1 no MAIL")
        address = _path(command)
        return await self._answer(
            command, "250 2.1.5 recipient", lambda: self._accepted.append(address)
        )

    async def _data(self, command: Command) -> None:
        if self._open is None:
            return await self._answer(command, "503 5.5.1 no MAIL")
        if not self._accepted and not self._manners.lenient:
            return await self._answer(command, "554 5.5.1 no valid recipients")
        return await self._answer(command, "354 go on", self._begin_dots)

    def _begin_dots(self) -> None:
        self._reader.expect_dots()
        self._content_act = self.house.next_act()

    async def _bdat(self, command: Command) -> None:
        if not self._manners.offers("CHUNKING"):
            self.complaints.append("BDAT was not offered")
        self._content_act = self.house.next_act()

    async def _interrupt_content(self) -> None:
        if self._content_act is Act.CUT:
            await self._hang_up()
        if self._content_act is Act.EARLY and not self._is_dropping:
            self._is_dropping = True
            content, accepted = self.trips[-1].content, self._accepted
            groups = [[one] for one in accepted] if self._manners.lmtp else [accepted]
            for group in groups or [[]]:
                self._put(content, "552 5.3.4 too large", group)
            self._clear()
            # What has not left by now will not: the client closes.
            self.endings.add(Cause.CLOSED)
            await self._flush()

    async def _content(self, _: Command) -> None:
        trip, act = self.trips[-1], self._content_act
        is_chunked = trip.data is None
        if self._manners.hurried and not is_chunked:
            self._hurried = len(self._reader.octets)
        content, opened, accepted = trip.content, self._open, [*self._accepted]
        if opened is None:
            await self._answer(content, "503 5.5.1 no MAIL", act=act)
        elif not accepted and self._manners.lenient and is_chunked:
            if opened.is_prdr and self._manners.prdr:
                await self._answer(content, "353 each", act=act)
                act = self.house.next_act()
            await self._answer(content, "250 2.0.0 for what it is worth", act=act)
        elif not accepted:
            await self._answer(content, "554 5.5.1 nobody", act=act)
            if self._manners.keeps_open and is_chunked:
                return
        elif self._manners.lmtp:
            for address in accepted:
                take = partial(self._take, trip, opened, [address])
                await self._answer(content, "250 2.0.0 stored", take, [address], act=act)
                act = self.house.next_act()
        elif opened.is_prdr and self._manners.prdr:
            await self._answer_each_and_all(trip, opened, accepted)
        else:
            take = partial(self._take, trip, opened, accepted)
            await self._answer(content, "250 2.0.0 queued", take, accepted, act=act)
            # With PIPELINING more may be in flight behind it, on terms that never were agreed to.
            is_unknown = act in (Act.UNKNOWN_COMMAND, Act.CONFUSED) and not self._manners.offers(
                "PIPELINING"
            )
            if self._manners.keeps_open and is_chunked and is_unknown:
                return
        self._clear()

    async def _answer_each_and_all(self, trip: Trip, opened: Trip, accepted: list[str]) -> None:
        content = trip.content
        if await self._answer(content, "353 each", about=accepted, act=self._content_act) != 353:
            return
        good = [
            address
            for address in accepted
            if await self._answer(content, "250 2.0.0 fine", about=[address]) == 250
        ]
        take = partial(self._take, trip, opened, good)
        await self._answer(content, "250 2.0.0 all in all", take, accepted)

    async def _rset(self, command: Command) -> None:
        await self._answer(command, "250 2.0.0 flushed", self._clear)

    async def _quit(self, command: Command) -> None:
        await self._answer(command, "221 bye")
        await self._hang_up()

    async def _unknown(self, command: Command) -> None:
        self.complaints.append(f"unknown command {command.text}")

    def _clear(self) -> None:
        self._open, self._accepted = None, []

    @staticmethod
    def _take(trip: Trip, opened: Trip, addresses: Iterable[str]) -> None:
        """Take the content of a trip, in the transaction that `opened` has opened."""
        trip.takers |= frozenset(addresses)
        trip.taken_as = (opened.sender, opened.envid)

    # -- replies ----------------------------------------------------------------------------

    async def _answer(
        self,
        command: Command,
        text: str,
        do: Callable[[], None] = lambda: None,
        about: Iterable[str] = (),
        *,
        act: Act | Literal["planned"] | None = "planned",
    ) -> int:
        """Answer as it should be, or as the plan has it; return the code that was put.

        Args:
            command: What is answered.
            text: The right answer, to which its number is added.
            do: What the right answer stands for.
            about: Who it is about.
            act: What the plan has for it, where that was looked up.
        """
        if act == "planned":
            act = self.house.next_act()
        if self._refuses_all:
            text, act = "421 4.3.2 still going", None
        if command.kind not in self._welcome:
            text, act = "503 5.5.1 not without a hello", None
        if act in (Act.EARLY, Act.CUT):
            act = Act.TOO_MUCH if act is Act.EARLY else Act.CLOSE
        if act in (Act.CLOSE, Act.CRASH):
            if act is Act.CRASH:
                self._out.clear()
            await self._hang_up()
        if act is Act.STALL:
            await self._flush()
            self.endings.add(Cause.TIMEOUT)
            await trio.sleep_forever()
        if act in _REFUSALS:
            text = _REFUSALS[act]
        elif text[0] in "23":
            do()
        if act is Act.CLOSE_AFTER:
            await self._hang_up()
        if command.kind in _SETUP:
            self._welcome = _WELCOME[command.kind if text[0] in "45" else ""]
        reply = self._put(command, "what?" if act is Act.GARBAGE else text, about)
        if act in (Act.DRIP, Act.CRAWL, Act.HALF):
            await self._trickle(act)
        elif self._manners.one_by_one:
            await self._flush()
        if act is Act.GOING:
            await self._hang_up()
        self._refuses_all |= act is Act.GOING_ALL
        return reply.code

    def _put(self, command: Command, text: str, about: Iterable[str] = ()) -> Reply:
        """Decide on a reply, which is written when there is nothing more to read."""
        reply = self.house.reply(text, about)
        command.replies.append(reply)
        number = f" #{reply.number}" if reply.code else ""
        self._out.append((reply, f"{text}{number}\r\n".encode()))
        return reply

    async def _trickle(self, act: Act) -> None:
        """Write what is put: its end octet by octet, or only half of it."""
        reply, octets = self._out.pop()
        await self._flush()
        if act is Act.HALF:
            self._server.send_nowait(octets[: len(octets) // 2])
            await self._hang_up()
        if act is Act.CRAWL:
            self.endings.add(Cause.TIMEOUT)
        for place in range(len(octets) - 1):
            self._server.send_nowait(octets[place : place + 1])
            await trio.sleep(_CRAWL if act is Act.CRAWL else _DRIP)
        self._write(reply, octets[-1:])

    async def _flush(self) -> None:
        while self._out:
            if self._manners.one_by_one:
                await trio.sleep(0.001)
                self._write(*self._out.popleft())
            else:
                together = list(self._out)
                self._out.clear()
                self._server.send_nowait(b"".join([octets for _, octets in together]))
                for reply, _ in together:
                    self._tell(reply)

    def _write(self, reply: Reply, octets: bytes) -> None:
        self._server.send_nowait(octets)
        self._tell(reply)

    def _tell(self, reply: Reply) -> None:
        reply.is_told = not self.is_deaf
        if reply.code == 0:
            self.endings.add(Cause.MALFORMED_REPLY)
        self.is_deaf |= reply.code in (0, 421)

    async def _hang_up(self) -> None:
        await self._flush()
        self.endings.add(Cause.CLOSED)
        raise _Over


def _path(command: Command) -> str:
    return command.text.partition("<")[2].partition(">")[0]


_SETUP = ("CONNECT", "EHLO", "HELO", "LHLO")
_HANDLERS = {
    "EHLO": Visit._hello,
    "HELO": Visit._hello,
    "LHLO": Visit._hello,
    "MAIL": Visit._mail,
    "RCPT": Visit._rcpt,
    "DATA": Visit._data,
    "BDAT": Visit._bdat,
    "CONTENT": Visit._content,
    "RSET": Visit._rset,
    "QUIT": Visit._quit,
}
#: What is listened to behind a greeting (RFC 5321 §3.1) or a hello (§4.1.4) that was a refusal, and
#: behind anything else.
_WELCOME: dict[str, Container[str]] = {
    "CONNECT": ("QUIT",),
    **dict.fromkeys(("EHLO", "HELO", "LHLO"), (*_SETUP, "QUIT")),
    "": (*_SETUP, *_HANDLERS, "IDLE"),
}
