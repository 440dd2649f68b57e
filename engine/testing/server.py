"""Play the server's side of a script: over any stream, or over real connections on loopback.

Called by tests of senders.  The notation is that of `engine.testing.script`; a client that leaves
the script makes the test fail with the number of the script's line.  It knows nothing of SMTP but
QUIT: what a script does not say, this server does not do (`engine.testing.sink` does).
"""

from __future__ import annotations

import re
import socket
import struct
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from engine.testing.script import ENDINGS, Kind, ScriptMismatchError, Step, Verb, parse_script

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator

    from engine.testing.script import Script, ScriptConnection

#: How long a client may keep a server waiting for each read and each write, in seconds.
DEADLINE: Final = 10.0
#: How long a stall, a sleep or an idle connection outlives the block that needed it, in seconds.
_GRACE: Final = 0.05
_READ_OCTETS: Final = 64 * 1024
_MAX_LINE_OCTETS: Final = 64 * 1024
_MAX_CONTENT_OCTETS: Final = 256 * 1024 * 1024
#: SO_LINGER on, for zero seconds: close() sends RST and forgets what was not sent.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


async def play(
    connection: ScriptConnection,
    stream: trio.abc.Stream,
    *,
    drip: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    deadline: float = DEADLINE,
) -> list[bytes]:
    """Play one connection of a script over a stream, then accept QUIT or the end of the stream.

    Args:
        connection: The steps, for example `parse_script(text)[0]`.
        stream: The server's end, for example of `trio.testing.memory_stream_pair()`; it is closed
            when this returns, raises or is cancelled.
        drip: Write one octet at a time from the start.
        ssl_context: For `! starttls`, with the server's certificate.
        deadline: Seconds a single read or write may wait for the client.

    Returns:
        The contents and chunks that came, in order, as `ScriptedServer.messages`.

    Raises:
        ScriptMismatchError: The client did something the script did not foresee.
        ValueError: The script says `! starttls` and there is no `ssl_context`.
    """
    manner = _Manner(drip, ssl_context, deadline)
    manner.check((connection,))
    player = _Player(stream, manner, [])
    try:
        await player.play(connection)
    finally:
        await player.break_off()
    return player.messages


class ScriptedServer:
    """What a test sees of the server that `serve_script` runs.

    Attributes:
        host: The address it listens on.
        port: The port it listens on.
        connections: How many connections it accepted.
        refused: How many of those came when the script had no more, and got a 421.
        messages: What `C=` (without dot-stuffing and final dot) and `C#` collected, one item a
            step, in the order they were complete.
        mismatches: How clients left the script; the first is raised when the block is left.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.connections = 0
        self.refused = 0
        self.messages: list[bytes] = []
        self.mismatches: list[ScriptMismatchError] = []

    def __repr__(self) -> str:
        return (
            f"<ScriptedServer {self.host}:{self.port} connections={self.connections} "
            f"messages={len(self.messages)} mismatches={len(self.mismatches)}>"
        )


@asynccontextmanager
async def serve_script(
    script: str | Script,
    host: str = "127.0.0.1",
    *,
    port: int = 0,
    drip: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    deadline: float = DEADLINE,
    allow_unplayed: bool = False,
) -> AsyncIterator[ScriptedServer]:
    """Listen on loopback and play a script, one of its connections for each that is accepted.

    A client that connects when the script has no more connections gets `421 4.3.2`.  When the
    block is left, connections that still play are played to their end; one that stalls, sleeps or
    has only its QUIT to come is closed.  When the block is left by an error or by cancellation,
    all of them are broken off.

    Args:
        script: The text, or what `parse_script` made of it.
        host: The address to listen on.
        port: The port to listen on; 0 for any that is free.
        drip: Write one octet at a time from the start.
        ssl_context: For `! starttls`, with the server's certificate.
        deadline: Seconds a single read or write may wait for the client.
        allow_unplayed: Whether connections of the script may remain that no client made.

    Raises:
        ScriptMismatchError: On leaving the block: a client did something the script did not
            foresee, or never made a connection.  An error that left the block is its cause.
        ValueError: The text is no script, or says `! starttls` without an `ssl_context`.
        OSError: The address cannot be listened on.
    """
    connections = parse_script(script) if isinstance(script, str) else script
    manner = _Manner(drip, ssl_context, deadline)
    manner.check(connections)
    failure: Exception | None = None
    listener = (await trio.open_tcp_listeners(port, host=host))[0]
    server = ScriptedServer(host, listener.socket.getsockname()[1])
    stage = _Stage(server, connections, manner)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(stage.accept, listener, nursery)
        try:
            yield server
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery's group
            failure = error
            nursery.cancel_scope.cancel()
        else:
            stage.leave()
    if server.mismatches:
        raise server.mismatches[0] from failure
    if failure is not None:
        raise failure
    if server.connections < len(connections) and not allow_unplayed:
        raise _unplayed(connections, server.connections)


def _unplayed(connections: Script, made: int) -> ScriptMismatchError:
    steps = connections[made]
    got = f"{made} of {len(connections)} were made"
    return ScriptMismatchError(steps[0].number if steps else 0, f"connection {made + 1}", got)


@dataclass(frozen=True, slots=True)
class _Manner:
    """How scripts are played."""

    drip: bool
    ssl_context: ssl.SSLContext | None
    deadline: float

    def check(self, script: Script) -> None:
        for step in (step for connection in script for step in connection):
            if step.verb is Verb.STARTTLS and self.ssl_context is None:
                raise ValueError(f"script line {step.number}: ! starttls needs an ssl_context")


class _Stage:
    """Hands the connections of a script to players."""

    def __init__(self, server: ScriptedServer, script: Script, manner: _Manner) -> None:
        self._server = server
        self._script = script
        self._manner = manner
        self._accepting = trio.CancelScope()
        self._players: set[_Player] = set()

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        with self._accepting:
            while True:
                stream = await listener.accept()
                # Counted here and not in the new task: tasks start in no particular order.
                nursery.start_soon(self._serve, stream, self._server.connections)
                self._server.connections += 1

    async def _serve(self, stream: trio.SocketStream, index: int) -> None:
        if index >= len(self._script):
            self._server.refused += 1
            with trio.move_on_after(self._manner.deadline), suppress(trio.BrokenResourceError):
                await stream.send_all(b"421 4.3.2 script has no more connections\r\n")
                await _close_in_order(stream)
            await trio.aclose_forcefully(stream)
            return
        player = _Player(stream, self._manner, self._server.messages)
        self._players.add(player)
        try:
            await player.play(self._script[index])
        except ScriptMismatchError as mismatch:
            # Before the connection is closed: the client may notice, and end the block, at once.
            self._server.mismatches.append(mismatch)
        finally:
            self._players.discard(player)
            await player.break_off()

    def leave(self) -> None:
        """Accept nothing more, and let go of what would wait for nothing."""
        self._accepting.cancel()
        for player in self._players:
            player.release()


class _Player:
    """Plays the steps of one connection."""

    def __init__(self, stream: trio.abc.Stream, manner: _Manner, messages: list[bytes]) -> None:
        self.messages = messages
        self._stream = stream
        self._manner = manner
        self._drip = manner.drip
        self._buffer = bytearray()
        self._has_quit = False
        self._released = False
        self._wait: trio.CancelScope | None = None

    async def play(self, steps: ScriptConnection) -> None:
        for step in steps:
            await self._play_step(step)
        if not steps or steps[-1].verb not in ENDINGS:
            await self._finish()

    async def break_off(self) -> None:
        """Close without a word; nothing happens if the script closed already."""
        await trio.aclose_forcefully(self._stream)

    def release(self) -> None:
        """End a wait that nobody waits for any more."""
        self._released = True
        if self._wait is not None:
            self._wait.deadline = min(self._wait.deadline, trio.current_time() + _GRACE)

    @contextmanager
    def _until_released(self, seconds: float) -> Iterator[trio.CancelScope]:
        seconds = min(seconds, _GRACE) if self._released else seconds
        with trio.move_on_after(seconds) as self._wait:
            yield self._wait
        self._wait = None

    async def _play_step(self, step: Step) -> None:
        match step.kind:
            case Kind.SEND_LINE | Kind.SEND_OCTETS:
                await self._send(step, step.octets)
            case Kind.EXPECT_LINE | Kind.EXPECT_LIKE:
                await self._expect_line(step)
            case Kind.EXPECT_CONTENT:
                self.messages.append(await self._read_content(step))
            case Kind.EXPECT_OCTETS:
                while len(self._buffer) < step.amount:
                    await self._read_on(step)
                self.messages.append(self._take(int(step.amount)))
            case Kind.ACT:
                await self._act(step)

    async def _act(self, step: Step) -> None:
        match step.verb:
            case Verb.CLOSE:
                await self._close()
            case Verb.RESET:
                await _reset(self._stream)
            case Verb.STALL:
                with self._until_released(float("inf")):
                    await trio.sleep_forever()
            case Verb.SLEEP:
                with self._until_released(step.amount):
                    await trio.sleep_forever()
            case Verb.DRIP:
                self._drip = True
            case Verb.STARTTLS:
                await self._start_tls(step)
            case Verb.EXPECT_EOF:
                if self._buffer or await self._read_some(step):
                    raise self._mismatch(step, f"the client said {bytes(self._buffer)!r}")
            case _:
                raise ValueError(f"script line {step.number}: no step of a connection: {step}")

    async def _finish(self) -> None:
        """Accept QUIT or the end of the connection, and nothing else."""
        wanted = b"" if self._has_quit else b"QUIT\r\n"
        while (said := bytes(self._buffer).upper()) != wanted:
            if not wanted.startswith(said):
                raise self._mismatch(_OVER, f"the client said {bytes(self._buffer)!r}")
            with self._until_released(float("inf")) as wait:
                if not await self._read_some(_OVER):
                    if said:
                        raise self._mismatch(_OVER, f"the client hung up after {said!r}")
                    return
            if wait.cancelled_caught:
                return
        if wanted:
            await self._send(_OVER, b"221 2.0.0 bye\r\n")
        await self._close()

    async def _expect_line(self, step: Step) -> None:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._read_on(step, _MAX_LINE_OCTETS)
        line = self._take(end + 2)[:-2]
        if step.kind is Kind.EXPECT_LIKE:
            fits = re.fullmatch(step.octets, line, re.DOTALL) is not None
        else:
            fits = line == step.octets
        if not fits:
            raise self._mismatch(step, f"the client said {line!r}")
        self._has_quit = line.upper() == b"QUIT"

    async def _read_content(self, step: Step) -> bytes:
        """Read up to CRLF.CRLF; a content without a line is a dot alone (RFC 5321 §4.1.1.4)."""
        content = bytearray(b"\r\n")  # of DATA, or of the line before
        searched = 0
        while True:
            content += self._take(len(self._buffer))
            if (end := content.find(b"\r\n.\r\n", searched)) >= 0:
                break
            searched = max(0, len(content) - 4)
            if len(content) > _MAX_CONTENT_OCTETS:
                raise self._mismatch(step, f"more than {_MAX_CONTENT_OCTETS} octets came")
            await self._read_on(step)
        self._buffer += content[end + 5 :]
        # RFC 5321 §4.5.2: a dot at the start of a line is taken away.
        return bytes(content[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]

    async def _start_tls(self, step: Step) -> None:
        if self._buffer:
            # RFC 3207 §4.2: nothing may be sent behind STARTTLS before its reply.
            raise self._mismatch(step, f"the client said {bytes(self._buffer)!r} in clear")
        assert self._manner.ssl_context is not None  # checked before the script began
        tls = trio.SSLStream(self._stream, self._manner.ssl_context, server_side=True)
        self._stream = tls
        try:
            with trio.fail_after(self._manner.deadline):
                await tls.do_handshake()
        except trio.TooSlowError:
            raise self._mismatch(step, "the client did not shake hands") from None
        except trio.BrokenResourceError:
            pass  # The client is gone, which the script may want: see whether it expects more.

    async def _send(self, step: Step, octets: bytes) -> None:
        size = 1 if self._drip else len(octets) or 1
        try:
            for start in range(0, len(octets), size):
                with trio.fail_after(self._manner.deadline):
                    await self._stream.send_all(octets[start : start + size])
        except trio.BrokenResourceError:
            # Not always noticed, so never a mismatch: one follows if the script expects more.
            pass
        except trio.TooSlowError:
            raise self._mismatch(step, "the client did not read it") from None

    async def _read_on(self, step: Step, limit: int = _MAX_CONTENT_OCTETS) -> None:
        if len(self._buffer) > limit:
            raise self._mismatch(step, f"{len(self._buffer)} octets came")
        if not await self._read_some(step):
            raise self._mismatch(step, f"the client hung up{self._leftover()}")

    async def _read_some(self, step: Step) -> bool:
        """Add to the buffer what the client says; return whether it said anything."""
        try:
            with trio.fail_after(self._manner.deadline):
                data = await self._stream.receive_some(_READ_OCTETS)
        except trio.TooSlowError:
            silence = f"nothing came for {self._manner.deadline:g} s{self._leftover()}"
            raise self._mismatch(step, silence) from None
        except trio.BrokenResourceError:
            return False
        self._buffer += data
        return bool(data)

    def _leftover(self) -> str:
        return f" after {bytes(self._buffer[:200])!r}" if self._buffer else ""

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _mismatch(self, step: Step, got: str) -> ScriptMismatchError:
        return ScriptMismatchError(step.number, repr(str(step)), got)

    async def _close(self) -> None:
        with trio.move_on_after(self._manner.deadline):
            await _close_in_order(self._stream)


#: Stands for what is accepted when the steps are over.
_OVER: Final = Step(0, Kind.EXPECT_LINE, "QUIT (or the end of the connection)")


async def _close_in_order(stream: trio.abc.Stream) -> None:
    # FIN first, so that the client reads an end of file even when it said more than was read:
    # the kernel answers unread octets with RST.
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            stream.socket.shutdown(socket.SHUT_WR)
    with suppress(trio.BrokenResourceError):
        await stream.aclose()


async def _reset(stream: trio.abc.Stream) -> None:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    await trio.aclose_forcefully(stream)
