"""A fast SMTP server that takes every message, for tests, examples and benchmarks of senders.

`open_sink` runs it inside a test; `python -m engine.testing.sink --port 2525` runs it alone.  It
checks the order of commands and their syntax (`engine.testing.sink_session`), keeps messages only
when asked to, delivers nothing, and misbehaves on demand: `engine.testing.faults` has the addresses
that ask for it, such as `reject@example.test`.
"""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import click
import trio

from engine.nursery import tasks_beside
from engine.testing.faults import Next
from engine.testing.sink_house import House, Received, SinkStatistics
from engine.testing.sink_session import SinkSession

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from engine.testing.sink_session import Interruption

__all__ = [
    "EXTENSIONS",
    "IDLE_SECONDS",
    "OnMessage",
    "Received",
    "Sink",
    "SinkStatistics",
    "main",
    "open_sink",
]

#: What EHLO announces; STARTTLS joins them when there is a certificate.
EXTENSIONS: Final = (
    "PIPELINING",
    "SIZE 52428800",
    "8BITMIME",
    "SMTPUTF8",
    "DSN",
    "ENHANCEDSTATUSCODES",
    "CHUNKING",
)
#: How long a connection may be silent, in seconds (RFC 5321 §4.5.3.2.7).
IDLE_SECONDS: Final = 300.0

_READ_OCTETS: Final = 64 * 1024  # a larger buffer costs more to make than it saves in calls
_READS_IN_A_ROW: Final = 16  # before other connections get their turn
_STALL_SECONDS: Final = 3600.0
_DEADLINE_STEP: Final = 10.0  # how much sooner a silent connection may be ended

_SHUTTING_DOWN: Final = b"421 4.3.2 shutting down\r\n"
_TOO_SILENT: Final = b"421 4.4.2 nothing came for too long\r\n"


class _Transport(Protocol):
    """The octets of one connection; errors are `OSError` or `trio.BrokenResourceError`."""

    async def receive(self) -> bytes:
        """Wait for input; empty once the client has closed."""
        ...

    async def send(self, octets: bytes) -> None:
        """Return when all of it is with the kernel."""
        ...


class _PlainTransport:
    """A socket, asked first and waited for only when it has nothing to say."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in_a_row = 0

    async def receive(self) -> bytes:
        self._in_a_row += 1
        if self._in_a_row > _READS_IN_A_ROW:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._sock.recv(_READ_OCTETS)
            except BlockingIOError:
                self._in_a_row = 0
                await trio.lowlevel.wait_readable(self._sock)

    async def send(self, octets: bytes) -> None:
        rest = memoryview(octets)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)


class _TlsTransport:
    """TLS over the same socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._stream = trio.SSLStream(stream, context, server_side=True)

    async def receive(self) -> bytes:
        return bytes(await self._stream.receive_some(_READ_OCTETS))

    async def send(self, octets: bytes) -> None:
        await self._stream.send_all(octets)


#: Called with each accepted message; a coroutine is awaited before the message is acknowledged.
OnMessage: TypeAlias = Callable[[Received], Awaitable[None] | None]


class _Connection:
    """One client, from its greeting to its end."""

    def __init__(self, sock: socket.socket, session: SinkSession, server: _Server) -> None:
        self._sock = sock
        self._session = session
        self._server = server
        self._transport: _Transport = _PlainTransport(sock)
        self._scope = trio.CancelScope()
        self._may_speak = True

    def end_if_idle(self) -> None:
        """End it now unless a transaction is open; then it ends itself behind that."""
        if self._session.is_idle:
            self._scope.cancel()

    async def serve(self) -> None:
        with suppress(OSError, trio.BrokenResourceError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._scope:
                await self._converse()
            if self._scope.cancelled_caught and self._may_speak:
                why = _SHUTTING_DOWN if self._server.is_draining else _TOO_SILENT
                self._sock.send(why)  # either it fits into the buffer or it does not matter
            # FIN before close(): unread octets would make close() send RST alone, and the client
            # lose the replies it has not read.
            self._sock.shutdown(socket.SHUT_WR)

    async def _converse(self) -> None:
        receive, session, server = self._transport.receive, self._session, self._server
        extended = trio.current_time()
        self._scope.deadline = extended + IDLE_SECONDS
        await self._transport.send(server.house.greeting)
        data: bytes | None = None
        while True:
            if data is None:
                now = trio.current_time()
                if now - extended >= _DEADLINE_STEP:
                    # Moving a deadline costs as much as parsing a message: not for every read.
                    extended, self._scope.deadline = now, now + IDLE_SECONDS
                if not (data := await receive()):
                    return
            replies, interruption = session.receive(data)
            data = None
            if interruption is not None:
                if await self._interrupt(replies, interruption):
                    return
                receive, data, extended = self._transport.receive, b"", -_DEADLINE_STEP
            elif replies:
                await self._transport.send(replies)
            if server.is_draining and session.is_idle:
                await self._transport.send(_SHUTTING_DOWN)
                return

    async def _interrupt(self, replies: bytes, what: Interruption) -> bool:
        """Do what interrupts the session; return whether the connection is over."""
        if what.received is not None:
            await self._server.hand_over(what.received)
        if what.seconds:
            await self._transport.send(replies)
            await self._send_slowly(what)
        elif replies or what.reply:
            await self._transport.send(replies + what.reply)
        match what.next:
            case Next.STALL:
                self._may_speak = False
                self._scope.deadline = trio.current_time() + _STALL_SECONDS
                while await self._transport.receive():
                    pass
            case Next.TLS:
                assert self._server.tls is not None  # else the session would have refused
                self._transport = _TlsTransport(self._sock, self._server.tls)
                self._may_speak = False  # not in clear, behind TLS's back
                self._session.tls_started()
            case Next.CLOSE | None:
                pass
        return what.next in {Next.CLOSE, Next.STALL}

    async def _send_slowly(self, what: Interruption) -> None:
        size = 1 if what.drip else len(what.reply)
        self._scope.deadline += what.seconds * (len(what.reply) // size)
        for start in range(0, len(what.reply), size):
            await trio.sleep(what.seconds)
            await self._transport.send(what.reply[start : start + size])


class _Server:
    """Accepts connections and keeps count of them."""

    def __init__(
        self, house: House, tls: ssl.SSLContext | None, on_message: OnMessage | None
    ) -> None:
        self.house = house
        self.tls = tls
        self.is_draining = False
        self.connections = 0
        self.open: set[_Connection] = set()
        self._on_message = on_message
        self._accepting = trio.CancelScope()
        self._emptied = trio.Event()

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        with listener, self._accepting:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    while True:
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        nursery.start_soon(self._serve, sock)
                except (BlockingIOError, ConnectionAbortedError):
                    pass
                except OSError as error:
                    if error.errno not in {errno.EMFILE, errno.ENFILE}:
                        raise
                    await trio.sleep(0.1)  # no descriptor is free: one may be, soon

    async def _serve(self, sock: socket.socket) -> None:
        self.connections += 1
        connection = _Connection(sock, SinkSession(self.house, self.connections), self)
        self.open.add(connection)
        try:
            await connection.serve()
        finally:
            sock.close()
            self.open.discard(connection)
            if not self.open:
                self._emptied.set()

    async def hand_over(self, received: Received) -> None:
        if self._on_message is not None:
            result = self._on_message(received)
            if result is not None:
                await result

    async def drain(self, seconds: float) -> None:
        self.is_draining = True
        self._accepting.cancel()
        self._emptied = trio.Event()
        for connection in tuple(self.open):
            connection.end_if_idle()
        if self.open:
            with trio.move_on_after(seconds):
                await self._emptied.wait()


class Sink:
    """What a test sees of the server that `open_sink` runs.

    Attributes:
        host: The address it listens on.
        port: The port it listens on.
    """

    def __init__(self, host: str, port: int, server: _Server) -> None:
        self.host = host
        self.port = port
        self._server = server

    @property
    def messages(self) -> list[Received]:
        """The messages that were kept, oldest first; empty unless the sink keeps them."""
        return list(self._server.house.kept)

    def statistics(self) -> SinkStatistics:
        """Return the counts of this moment."""
        server, house = self._server, self._server.house
        return SinkStatistics(
            server.connections,
            len(server.open),
            house.messages,
            house.recipients,
            house.octets,
            house.refused,
        )

    async def drain(self, seconds: float = 5.0) -> None:
        """Accept no more connections, end the idle ones with a 421, wait for open transactions.

        Args:
            seconds: How long to wait.  What is open after that is broken off when the block of
                `open_sink` is left.
        """
        await self._server.drain(seconds)

    def __repr__(self) -> str:
        return f"<Sink {self.host}:{self.port} {self.statistics()}>"


@asynccontextmanager
async def open_sink(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    keep: bool = False,
    keep_limit: int = 10_000,
    extensions: Sequence[str] = EXTENSIONS,
    greeting: str = "sink.test ESMTP",
    tls: ssl.SSLContext | None = None,
    lmtp: bool = False,
    on_message: OnMessage | None = None,
) -> AsyncIterator[Sink]:
    """Run a sink for the time of a block; when it is left, open connections are broken off.

    Args:
        host: The IP address to listen on.
        port: The port to listen on; 0 for any that is free.
        keep: Whether to keep messages for `Sink.messages`.
        keep_limit: How many to keep; the oldest make room.
        extensions: What EHLO announces, one item a line.  The number behind SIZE is enforced.
        greeting: The text behind the 220.
        tls: The server's certificate; with it STARTTLS is offered.
        lmtp: Speak LMTP (RFC 2033 §4) in place of SMTP.
        on_message: Called with each message before it is acknowledged, and awaited if it returns
            something to await.  What it raises ends the sink.

    Raises:
        ValueError: `host` is no IP address, or an extension or the greeting is no line of ASCII.
        OSError: The address cannot be listened on.
    """
    for line in (*extensions, greeting):
        if not (line and line.isascii() and line.isprintable()):
            raise ValueError(f"extensions and greeting are lines of printable ASCII, not {line!r}")
    house = House(
        greeting=f"220 {greeting}\r\n".encode(),
        extensions=tuple(extension.upper().encode() for extension in extensions),
        lmtp=lmtp,
        has_tls=tls is not None,
        is_curious=keep or on_message is not None,
        hands_over=on_message is not None,
        kept=deque(maxlen=keep_limit if keep else 0),
    )
    server = _Server(house, tls, on_message)
    listener = _listen(host, port)
    async with tasks_beside() as nursery:
        nursery.start_soon(server.accept, listener, nursery)
        yield Sink(host, listener.getsockname()[1], server)


def _listen(host: str, port: int) -> socket.socket:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise ValueError(f"a sink listens on an IP address, not {host!r}") from None
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = socket.create_server((host, port), family=family, backlog=1024)
    listener.setblocking(False)
    return listener


def _store_in(directory: Path) -> OnMessage:
    async def store(received: Received) -> None:
        name = f"{received.connection:06}-{received.transaction:06}.eml"
        await trio.to_thread.run_sync((directory / name).write_bytes, received.content)

    return store


async def _run(host: str, port: int, keep: Path | None, *, lmtp: bool, quiet: bool) -> None:
    on_message = None if keep is None else _store_in(keep)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_sink(host, port, lmtp=lmtp, on_message=on_message) as sink:
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"listening on {shown}:{sink.port}")
            async for _ in signals:
                break
            await sink.drain()
            total = sink.statistics()
    if not quiet:
        click.echo(
            f"connections={total.connections} messages={total.messages} "
            f"recipients={total.recipients} octets={total.octets} refused={total.refused}"
        )


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="IP address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=2525, show_default=True, help="0: any free."
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write every content to a file in this directory before it is acknowledged.",
)
@click.option("--lmtp", is_flag=True, help="Speak LMTP in place of SMTP.")
@click.option("--quiet", is_flag=True, help="No totals at the end.")
def main(host: str, port: int, keep: Path | None, *, lmtp: bool, quiet: bool) -> None:
    """Accept mail and forget it; drain and print totals on SIGINT and SIGTERM."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    try:
        trio.run(lambda: _run(host, port, keep, lmtp=lmtp, quiet=quiet))
    except* (OSError, ValueError) as errors:
        raise click.ClickException(str(errors.exceptions[0])) from None


if __name__ == "__main__":
    main()
