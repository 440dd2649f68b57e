"""Streams in memory, hosts that play scripts over them, and dialogues to play.

Everything here runs in virtual time: with `autojump_clock` a timeout of minutes costs nothing.
"""

from __future__ import annotations

import math
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine import content as contents
from engine.delivery.session import run_session
from engine.delivery.session_terms import Timeouts
from engine.engine import Engine
from engine.message import Message, Recipient
from engine.net.connector import Connection
from engine.net.errors import ConnectFailed
from engine.net.facts import ConnectionFacts
from engine.net.port import port_for
from engine.nursery import tasks_beside
from engine.outcome import Cause, Peer, Scope
from engine.routing.router import Router
from engine.routing.table import RouteTable
from engine.settings import Settings
from engine.smtp.command import Kind, hello
from engine.smtp.content import ContentFacts
from engine.smtp.stages import Stage
from engine.testing.dns import FakeDns
from engine.testing.script import ScriptMismatchError, parse_script
from engine.testing.server import play

if TYPE_CHECKING:
    import ssl
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        Sequence,
    )

    from engine.delivery.session import Session
    from engine.net.options import ConnectOptions
    from engine.outcome import Outcome
    from engine.route import Candidate

T = TypeVar("T")
#: Longer than any timeout of a client; a scripted server waits that long for it.
PATIENT = 1e6
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"

# ---- streams -------------------------------------------------------------------------------------


class Pipe:
    """Octets in one direction, at most `capacity` under way, like a socket's buffers."""

    def __init__(self, capacity: float = math.inf) -> None:
        self.capacity = capacity
        self.octets = bytearray()
        self.is_ended = False  # the writer has said its last
        self.is_broken = False  # the reader is gone
        self._changed = trio.Event()

    def put(self, data: bytes) -> int:
        taken = data[: int(min(len(data), self.capacity - len(self.octets)))]
        self.octets += taken
        self.notify()
        return len(taken)

    def take(self, most: int) -> bytes:
        taken = bytes(self.octets[:most])
        del self.octets[:most]
        self.notify()
        return taken

    def notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        await self._changed.wait()


class MemoryStream(trio.abc.HalfCloseableStream):
    """One end of a connection in memory: a `ByteStream`, and a stream of Trio's.

    `writes` holds what each write put on its way.
    """

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.writes: list[bytes] = []
        self.is_closed = False

    def send_nowait(self, data) -> int:
        if self.is_closed or self.outgoing.is_ended:
            raise trio.ClosedResourceError
        if self.outgoing.is_broken:
            raise trio.BrokenResourceError
        taken = self.outgoing.put(bytes(data))
        if taken:
            self.writes.append(bytes(data[:taken]))
        return taken

    async def send_all(self, data) -> None:
        sent = self.send_nowait(data)
        while sent < len(data):
            await self.outgoing.change()
            sent += self.send_nowait(data[sent:])

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_octets=None) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self.is_closed:
                raise trio.ClosedResourceError
            if self.incoming.octets:
                return self.incoming.take(max_octets or 65536)
            if self.incoming.is_ended:
                return b""
            await self.incoming.change()

    def receive_nowait(self) -> bytes | None:
        if self.is_closed:
            raise trio.ClosedResourceError
        if self.incoming.octets or self.incoming.is_ended:
            return self.incoming.take(65536)
        return None

    async def send_eof(self) -> None:
        self.outgoing.is_ended = True
        self.outgoing.notify()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.is_closed = self.outgoing.is_ended = self.incoming.is_broken = True
        self.outgoing.notify()
        self.incoming.notify()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    # What a test does at the server's end.

    async def say(self, *lines: str) -> None:
        """Send lines, then let everybody react."""
        self.send_nowait("".join(f"{line}\r\n" for line in lines).encode())
        await wait_all_tasks_blocked()

    async def hear(self) -> bytes:
        """Let everybody come to rest, then return what was said since the last time."""
        await wait_all_tasks_blocked()
        return self.incoming.take(1 << 30)


def link(capacity: float = math.inf) -> tuple[MemoryStream, MemoryStream]:
    """Make the two ends of a connection; `capacity` bounds what the first has under way."""
    there, back = Pipe(capacity), Pipe()
    return MemoryStream(back, there), MemoryStream(there, back)


# ---- sessions ------------------------------------------------------------------------------------


@asynccontextmanager
async def open_session(
    timeouts: Timeouts | None = None, *, capacity: float = math.inf, grace: float = 0.0
) -> AsyncIterator[tuple[Session, MemoryStream, MemoryStream]]:
    """Run a session that was greeted: it, our stream, and the server's end."""
    client, server = link()
    async with run_session(client, timeouts or Timeouts(), grace=grace) as session:
        server.send_nowait(b"220 mx.test\r\n")
        assert (await session.reply()).command.kind is Kind.CONNECT
        server.send_nowait(b"250 mx.test\r\n")
        await session.exchange(hello(Kind.EHLO, "me.test"))
        await server.hear()
        client.outgoing.capacity = capacity
        yield session, client, server


# ---- hosts that play scripts ---------------------------------------------------------------------


class Hosts:
    """A connector to hosts in memory; each plays its script's connections one after another.

    Args:
        scripts: By IP address.  A host that is not there refuses; so does one whose script has no
            more connections.
        drip: Whether servers write one octet at a time.

    Attributes:
        made: The address of each connection, in the order they were asked for.
        early: What each was to say first.
        contents: What came behind DATA, in order.
        streams: Our end of each connection.
        mismatches: How clients left the script; the first is raised by `scripted`.
        slow: Hosts that take so many seconds to answer a connection.
        options: How each connection was asked for.
    """

    def __init__(
        self,
        scripts: Mapping[str, str],
        *,
        drip: bool = False,
        capacity: float = math.inf,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.made: list[str] = []
        self.early: list[bytes] = []
        self.contents: list[bytes] = []
        self.streams: list[MemoryStream] = []
        self.mismatches: list[ScriptMismatchError] = []
        self.slow: dict[str, float] = {}
        self.options: list[ConnectOptions] = []
        self._scripts = {at: list(parse_script(text)) for at, text in scripts.items()}
        self._drip = drip
        self._capacity = capacity
        self._ssl_context = ssl_context
        self.nursery: trio.Nursery | None = None

    async def connect(
        self, candidate: Candidate, options: ConnectOptions, *, early_data: bytes = b""
    ) -> Connection:
        await trio.lowlevel.checkpoint()
        self.made.append(candidate.address)
        self.early.append(early_data)
        self.options.append(options)
        await trio.sleep(self.slow.get(candidate.address, 0))
        port = port_for(candidate, options)
        left = self._scripts.get(candidate.address)
        if not left:
            peer = Peer(candidate.host, candidate.address, port)
            text = f"connect to {peer}: Connection refused"
            raise ConnectFailed(Stage.CONNECT, Cause.REFUSED, Scope.HOST, text)
        client, server = link(self._capacity)
        self.streams.append(client)
        assert self.nursery is not None
        self.nursery.start_soon(self._play, left.pop(0), server)
        await client.send_all(early_data)
        return connection_to(candidate, client, port)

    async def _play(self, steps, server: MemoryStream) -> None:
        try:
            self.contents += await play(
                steps,
                server,
                drip=self._drip,
                deadline=PATIENT,
                ssl_context=self._ssl_context,
            )
        except ScriptMismatchError as error:
            self.mismatches.append(error)
        finally:
            server.close()

    @property
    def unplayed(self) -> dict[str, int]:
        """How many connections of each script nobody made."""
        return {at: len(left) for at, left in self._scripts.items() if left}


def connection_to(candidate: Candidate, stream, port: int = 25) -> Connection:
    """Say of a stream that it leads to a candidate."""
    return Connection(
        stream,
        ConnectionFacts(
            host=candidate.host,
            address=candidate.address,
            port=port,
            local_address="198.51.100.9",
            local_port=40000,
            is_ipv6=candidate.is_ipv6,
            interface=None,
            proxy=None,
            fast_open="off",
            connect_seconds=0.0,
        ),
    )


@asynccontextmanager
async def scripted(
    scripts: str | Mapping[str, str], *, is_watched: bool = True, **more: Any
) -> AsyncIterator[Hosts]:
    """Run hosts; a script alone is that of 192.0.2.1.

    What clients did wrong, or did not do, raises on leaving unless `is_watched` is false.
    """
    by_address = {"192.0.2.1": scripts} if isinstance(scripts, str) else scripts
    hosts = Hosts(by_address, **more)
    failure: Exception | None = None
    async with trio.open_nursery() as hosts.nursery:
        try:
            yield hosts
            # Servers that stall never end by themselves.
            await wait_all_tasks_blocked()
        except Exception as error:  # noqa: BLE001 - raised below, without a group around it
            failure = error
        hosts.nursery.cancel_scope.cancel()
    if hosts.mismatches and is_watched:
        raise hosts.mismatches[0] from failure
    if failure is not None:
        raise failure
    assert all(stream.is_closed for stream in hosts.streams)
    assert not (hosts.unplayed and is_watched)


class Service:
    """A connector to hosts in memory that take what comes, and keep count.

    Args:
        answer: The reply of a host (its IP address) to a recipient (its local part).
        delay: Seconds before each reply to a content.

    Attributes:
        made: The address of each connection, refused ones too, in the order they were asked for.
        open: Connections that the client has open now.
        peak: Most that ever were at a time.
        quits: Connections ended by QUIT, with the time of it.
        accepted: Host and recipient of everything accepted, in order.
        refusing: Hosts that refuse connections.
        room: Connections taken at a time.
        excess: The greeting of one too many; empty: it is refused; `stall`: there is none.
    """

    def __init__(
        self, answer: Callable[[str, str], str] = lambda _host, _to: "250 ok", delay: float = 0.0
    ) -> None:
        self.made: list[str] = []
        self.peak = 0
        self.quits: list[float] = []
        self.accepted: list[tuple[str, str]] = []
        self.refusing: set[str] = set()
        self.room = math.inf
        self.excess = ""
        self.nursery: trio.Nursery | None = None
        self._answer = answer
        self._delay = delay
        self._ends: list[tuple[MemoryStream, MemoryStream]] = []

    async def connect(
        self, candidate: Candidate, options: ConnectOptions, *, early_data: bytes = b""
    ) -> Connection:
        await trio.lowlevel.checkpoint()
        assert not early_data
        self.made.append(candidate.address)
        is_one_too_many = self.open >= self.room
        if candidate.address in self.refusing or (is_one_too_many and not self.excess):
            raise ConnectFailed(Stage.CONNECT, Cause.REFUSED, Scope.HOST, "refused")
        client, server = link()
        if is_one_too_many:
            if self.excess != "stall":
                server.send_nowait(f"{self.excess}\r\n".encode())
            return connection_to(candidate, client, port_for(candidate, options))
        self._ends.append((client, server))
        self.peak = max(self.peak, self.open)
        assert self.nursery is not None
        self.nursery.start_soon(self._serve, candidate.address, server)
        return connection_to(candidate, client, port_for(candidate, options))

    @property
    def open(self) -> int:
        return sum(not client.is_closed for client, _ in self._ends)

    def hang_up(self) -> None:
        """Close every connection, without a word."""
        for _, server in self._ends:
            server.close()

    async def _serve(self, host: str, server: MemoryStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with aclosing(_lines(server)) as lines:
                await self._converse(host, server, lines)
        server.close()

    async def _converse(
        self, host: str, server: MemoryStream, lines: AsyncGenerator[str, None]
    ) -> None:
        server.send_nowait(b"220 service\r\n")
        recipients: list[str] = []
        async for line in lines:
            reply = "250 ok"
            match line[:4]:
                case "EHLO":
                    reply = "250-service\r\n250 PIPELINING"
                case "RCPT":
                    recipient = line[9:-1].partition("@")[0]
                    reply = self._answer(host, recipient)
                    if reply == "stall":
                        await trio.sleep_forever()
                    if reply[0] == "2":
                        recipients.append(recipient)
                case "DATA":
                    reply = "354 go on" if recipients else "554 nobody"
                case "QUIT":
                    self.quits.append(trio.current_time())
                    reply = "221 bye"
            server.send_nowait(f"{reply}\r\n".encode())
            if reply[0] == "3":
                while (text := await anext(lines, None)) != ".":
                    if text is None:
                        return
                await trio.sleep(self._delay)
                self.accepted += [(host, recipient) for recipient in recipients]
                server.send_nowait(b"250 2.0.0 queued\r\n")
            if line[:4] in ("DATA", "RSET"):
                recipients = []


async def _lines(stream: MemoryStream) -> AsyncGenerator[str, None]:
    rest = b""
    while octets := await stream.receive_some():
        *lines, rest = (rest + octets).split(b"\r\n")
        for line in lines:
            yield line.decode()


@asynccontextmanager
async def serving(*args: object, **options: object) -> AsyncIterator[Service]:
    """Run a `Service`."""
    service = Service(*args, **options)
    async with tasks_beside() as service.nursery:
        yield service
        await wait_all_tasks_blocked()


# ---- messages and engines ------------------------------------------------------------------------


class StreamedContent:
    """A content that is read while it is sent, as from a file but without its thread.

    It comes in pieces of so many octets; `failure`, if given, is raised in place of its end.
    `octets_read` counts what was asked for.
    """

    octets = None

    def __init__(
        self, octets: bytes, failure: OSError | None = None, *, piece: int = 64_000
    ) -> None:
        self.facts = ContentFacts(len(octets), False, 70, False)
        self._octets = octets
        self._failure = failure
        self._piece = piece
        self.octets_read = 0

    async def chunks(self):
        for start in range(0, len(self._octets), self._piece):
            await trio.lowlevel.checkpoint()
            self.octets_read += self._piece
            yield self._octets[start : start + self._piece]
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure


def message(
    *recipients: str, content: bytes = CONTENT, sender: str = "s@me.test", **more: object
) -> Message:
    """Make a message, to `a@x.test` where nothing is said."""
    return Message(
        str(more.pop("id", "")),
        Message.parse_sender(sender),
        tuple(Recipient.parse(recipient) for recipient in recipients or ("a@x.test",)),
        more.pop("body", None) or contents.from_octets(content),
        **more,
    )


def settings(**more: object) -> Settings:
    """Make settings with our name in them."""
    return Settings(**{"helo_name": "me.test", **more})


MX1, MX2 = "192.0.2.1", "192.0.2.2"
#: Three domains on two sites, and what else a name server may say.
ZONE = {
    "x.test": {"MX": ["10 mx.test"]},
    "y.test": {"MX": ["10 mx.test"]},
    "z.test": {"MX": ["10 other.test"]},
    "mx.test": {"A": [MX1]},
    "other.test": {"A": [MX2]},
    "closed.test": {"MX": ["0 ."]},
    "broken.test": {"MX": "SERVFAIL"},
    "slow.test": {"MX": "TIMEOUT"},
}


def an_engine(connector, *, zone=None, **more) -> Engine:
    """Make an engine that sends everything to one host, or by a DNS in memory."""
    if zone is not None:
        more["router"] = Router(FakeDns(zone, ttl=3600))
    elif "router" not in more:
        more.setdefault("routes", [("*", [MX1])])
    return Engine(more.pop("settings", None) or settings(), connector=connector, **more)


async def outcomes_of(engine: Engine) -> list[Outcome]:
    """Return the outcomes nobody took, after the end."""
    return [outcome async for outcome in engine.outcomes]


def stalls(host: str, recipient: str) -> str:
    """What a `Service` says that never answers about one recipient."""
    return "stall" if recipient == "stall" else "250 ok"


async def static_router(routes: Sequence[str], *domains: str) -> Router:
    """Make a router that knows the way already: so messages start in the order they are submitted."""
    router = Router(FakeDns({}), table=RouteTable([("*", list(routes))]))
    for domain in domains:
        await router.route(domain)
    return router


async def deliver(
    hosts: Hosts,
    *messages: Message,
    routes: Sequence[str] = ("192.0.2.1",),
    options: Mapping[str, object] | None = None,
    together: bool = False,
    **more: object,
) -> list[Outcome]:
    """Send messages by one engine; return the outcomes in the order they came.

    One after the other is settled, or all `together` from the start.
    """
    found: list[Outcome] = []
    if "resolver" in more:
        # Not the engine's own router: that one knows which addresses this very machine has.
        more["router"] = Router(more.pop("resolver"))
    elif "router" not in more:
        domains = {to.mailbox.routing_domain for each in messages for to in each.recipients}
        more["router"] = await static_router(routes, *domains)
    more.setdefault("connector", hosts)
    async with Engine(settings(**(options or {})), **more) as engine:
        for each in messages:
            await engine.submit(each)
            if not together:
                found += [await engine.outcomes.receive() for _ in each.recipients]
        if together:
            count = sum(len(each.recipients) for each in messages)
            found = [await engine.outcomes.receive() for _ in range(count)]
    assert [left async for left in engine.outcomes] == []
    assert engine.statistics().in_flight == 0
    assert engine.statistics().connections_open == 0
    return found


def told(outcomes: Sequence[Outcome]) -> list[str]:
    """Put outcomes as `recipient status scope stage cause code`, sorted by recipient."""
    return sorted(
        " ".join(
            str(part)
            for part in (
                outcome.recipient,
                outcome.status,
                outcome.scope or "-",
                outcome.stage,
                outcome.cause,
                outcome.reply.code if outcome.reply else "-",
            )
        )
        for outcome in outcomes
    )


def run_steadily(function: Callable[..., Awaitable[T]], *args: object, schedule: int) -> T:
    """Run in virtual time, and tasks in the same order every time; each `schedule` is another one."""
    # Trio runs tasks in random order; with Hypothesis there, by this generator alone.
    trio._core._run._r.seed(schedule)
    return trio.run(function, *args, clock=MockClock(autojump_threshold=0))


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait, in real time, until something is so."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.001)


# ---- dialogues -----------------------------------------------------------------------------------


def greeted(*extensions: str) -> str:
    """The opening of a connection, up to and with the reply to EHLO."""
    names = ["mx.test", *extensions]
    lines = [f"S: 250-{name}" for name in names[:-1]] + [f"S: 250 {names[-1]}"]
    return "\n".join(["S: 220 mx.test", "C: EHLO me.test", *lines, ""])


def transaction(
    *rcpts: tuple[str, str],
    pipelined: bool,
    mail: str = "250 sender ok",
    data: str = "354 go on",
    final: str = "250 2.0.0 queued",
    sender: str = "s@me.test",
) -> str:
    """One mail transaction, as a client drives it that does what the replies call for.

    Args:
        rcpts: Each recipient and the reply to it.
        pipelined: Whether the client may say the envelope in one go.
        mail: The reply to MAIL.
        data: The reply to DATA, where it comes to that.
        final: The reply to the content, where it comes to that.
        sender: The reverse-path.
    """
    asked = [(f"MAIL FROM:<{sender}>", mail)]
    asked += [(f"RCPT TO:<{recipient}>", reply) for recipient, reply in rcpts]
    is_wanted = mail[0] == "2" and any(reply[0] == "2" for _, reply in rcpts)
    if pipelined or is_wanted:
        asked.append(("DATA", data))
    if not pipelined and mail[0] != "2":
        asked = asked[:1]
    lines = []
    if pipelined:
        lines += [f"C: {command}" for command, _ in asked]
        lines += [f"S: {reply}" for _, reply in asked]
    else:
        for command, reply in asked:
            lines += [f"C: {command}", f"S: {reply}"]
    if asked[-1][0] == "DATA" and data[0] == "3":
        lines += ["C= the content, or a lone dot", f"S: {final}"]
    return "\n".join([*lines, ""])


RESET = "C: RSET\nS: 250 2.0.0 flushed\n"
NEXT = "! connection\n"


def opening(pipelined: bool, *extensions: str) -> str:
    """The opening of a connection to a host that offers PIPELINING, or does not."""
    return greeted(*(["PIPELINING"] if pipelined else []), *extensions)


def delivery(recipient: str, pipelined: bool, **more: str) -> str:
    """A transaction that delivers to one recipient."""
    return transaction((recipient, "250 ok"), pipelined=pipelined, **more)


def delivered(*recipients: str) -> list[str]:
    """What is `told` of recipients that all got their mail."""
    return [f"{recipient} delivered - final reply 250" for recipient in recipients]


def places(outcomes: Sequence[Outcome]) -> list[tuple[int | None, int | None]]:
    """Return connection and transaction of each outcome, by recipient."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.recipient)
    return [(outcome.peer.connection, outcome.transaction) for outcome in ordered]
