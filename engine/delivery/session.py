"""One SMTP session over one byte stream: a conversation, a writer and a reader.

The conversation (whoever holds the `Session`) decides.  It puts *windows*, runs of pipelined
commands, on the commands channel; the writer puts each into one write.  The reader parses what
arrives, pairs each reply with the command it answers, and puts runs of them on the replies channel.
So a server that answers slowly cannot deadlock a long list of recipients, and a refusal is seen
while content is still being written.  Both channels are bounded.

A task switch costs more than a reply.  So whoever is awake lends a hand: a window that the kernel
takes at once is written by whoever put it on the channel, and while the conversation waits for
replies it reads for itself.  The writer task writes what the kernel would not take, and all behind
it; the reader task reads while the conversation is `listening` for something else too, and keeps the
one deadline that a whole reply has, however it drips.  What a peer may do raises in neither: it ends the session, and
the conversation learns how from `SessionLost`.

With early pipelining we speak first, so the connection is made when the first window is sent, with
the window's commands as what it carries from the start.

Cancellation comes in at one place.  Conversation and reader are shielded; the writer is not, and
when it is cancelled it looks at what is *at stake*: contents that have left to their last octet and
have no reply yet.  With none, all ends at once: a content that was not written to its end stays
unfinished, so the peer cannot have accepted it.  Otherwise the session goes on until those replies
have come, but no longer than its grace.
"""

from __future__ import annotations

import math
import ssl
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from engine.delivery.parcel import CONTENT_KINDS, Parcel, Window, ends_content
from engine.delivery.session_terms import SessionLost
from engine.delivery.unconnected import UNCONNECTED
from engine.net.tls_errors import alert_in
from engine.nursery import tasks_beside
from engine.outcome import Cause
from engine.smtp.command import STAGES, STARTTLS, Command, Kind
from engine.smtp.connection import Answered, ClientConnection, Closed, Closing, Run
from engine.smtp.errors import RemoteProtocolError
from engine.smtp.reply import conceal, show
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from engine.delivery.session_terms import Scribe, Timeouts
    from engine.net.stream import ByteStream
    from engine.smtp.reply import Reply

#: Windows that may wait for the writer, and runs of replies that may wait for the conversation.
_CHANNEL_ITEMS: Final = 8
#: What the kernel does not take at once goes out in blocks of this size, each with a deadline.
_BLOCK_OCTETS: Final = 64 * 1024
#: After a failed write the peer may have told why; its last words are awaited this many seconds.
_LAST_WORDS: Final = 2.0
#: Beyond its grace a cancelled session is not waited for, whatever it is doing.
_PARTING: Final = 1.0

#: What is said before there is mail.
_SET_UP: Final = frozenset(
    {Kind.CONNECT, Kind.EHLO, Kind.HELO, Kind.LHLO, Kind.STARTTLS, Kind.AUTH, Kind.AUTH_STEP}
)

#: Connects, and sends these octets first.
Dial: TypeAlias = "Callable[[bytes], Awaitable[ByteStream]]"
#: What was heard of nothing more to come.
SILENCE: Final = Run((), ())


class Session:
    """The conversation's end of a session; one task at a time may use it.

    Attributes:
        loss: How the session ended, once it has.
        last_heard: The newest command whose reply `reply`, `replies` or `exchange` returned: where
            nothing was owed, the session ended behind it.
        contents_written: How many contents have left to their last octet, or may have.
        content_octets: Octets of content written to the peer, as they go on the wire.
        when_over: Called once when the session is lost; for whoever keeps it idle.
    """

    def __init__(
        self,
        stream: ByteStream | Dial,
        timeouts: Timeouts,
        *,
        scribe: Scribe | None = None,
        early: bool = False,
        grace: float = 0.0,
    ) -> None:
        self.loss: SessionLost | None = None
        self.last_heard: Command | None = None
        self.contents_written = 0
        self.content_octets = 0
        self.when_over: Callable[[], None] | None = None
        self._stream: ByteStream = UNCONNECTED
        self._dial: Dial | None = None
        if callable(stream):
            self._dial = stream
        else:
            self._stream = stream
        self._scribe = scribe
        self._connection = ClientConnection(early=early)
        self._block_timeout = timeouts.data
        self._timeout_of = timeouts.of_kinds()
        self._grace = grace
        self._windows_in, self._windows = trio.open_memory_channel[Window](_CHANNEL_ITEMS)
        self._replies_in, self._replies = trio.open_memory_channel[tuple[Run, int]](_CHANNEL_ITEMS)
        self._runs = 0  # in the replies channel
        self._is_writing = False  # the writer task has what the kernel would not take, or more
        self._is_listening = False  # the reader task reads
        self._duty = trio.Event()
        self._relieved = trio.Event()
        self._unwritten: Parcel | None = None
        self._half_closes = False  # behind what is being written
        self._needed = trio.Event()
        self._answers: deque[Answered] = deque()
        self._secrets: tuple[bytes, ...] = ()
        self._now = trio.lowlevel.current_clock().current_time
        self._since = 0.0  # when the turn of the oldest owed reply came
        self._latest = math.inf  # when any reply is late
        self._shortest = math.inf  # timeout that the watch was set for
        self._watch = trio.CancelScope()
        self._writing = trio.CancelScope()
        self._write_error = ""
        self._is_cancelled = self._is_ending = False
        self._contents_heard = 0  # contents whose reply the conversation has
        # Both end with the block, or when nothing is at stake any more; see `_cancelled`.
        self._conversing = trio.CancelScope(shield=True)
        self._reading = trio.CancelScope(shield=True)

    # -- for the conversation ---------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether a new transaction may begin now."""
        return self.loss is None and self._connection.is_ready

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is owed, and more may be said whenever there is something to say."""
        return self.is_usable and not self._connection.unanswered

    @property
    def is_usable(self) -> bool:
        """Whether commands can still be exchanged."""
        return self.loss is None and not self._connection.is_spoiled

    @property
    def has_said_quit(self) -> bool:
        """Whether QUIT was said, and nothing more can be."""
        return self._connection.has_said_quit

    @property
    def is_owed(self) -> bool:
        """Whether a reply is still to come, as far as one can tell."""
        return self.is_usable and bool(self._connection.unanswered)

    @property
    def is_silent(self) -> bool:
        """Whether the peer has not said anything, not even a greeting."""
        unanswered = self._connection.unanswered
        return bool(unanswered) and unanswered[0].kind is Kind.CONNECT

    @property
    def stage(self) -> Stage:
        """Where the dialogue stands: at the oldest command in flight, or before the next MAIL."""
        oldest = self._connection.oldest_owed
        if oldest is None:
            return Stage.CONTENT if self._connection.is_content_due else Stage.MAIL
        if self._connection.is_content_open or self._is_unwritten_content(oldest):
            return Stage.CONTENT
        return STAGES[oldest.kind]

    @property
    def is_transaction_open(self) -> bool:
        """Whether RSET is due before the next MAIL."""
        return self._connection.is_transaction_open

    @property
    def has_answers(self) -> bool:
        """Whether replies wait to be taken."""
        return bool(self._answers) or self._runs > 0

    async def open(self) -> None:
        """Connect, where that was left to us; the peer speaks first.

        What connecting raises comes out.
        """
        if self._dial is not None:
            await self._connect(b"")
            self._arm()

    def conceal(self, secret: bytes) -> None:
        """Show a secret nowhere should the peer say it back, until it has answered to mail."""
        if secret not in self._secrets:
            self._secrets += (secret,)

    def shown(self, reply: Reply) -> Reply:
        """Return a reply as it may be shown, without the secrets in it."""
        return reply.without(self._secrets) if self._secrets else reply

    async def send(self, *window: Command) -> None:
        """Put a window on the commands channel.

        It is on its way to the kernel when this returns, unless the peer takes octets more slowly
        than we make them; then this waits as long as the channel is full.  Never raises for what a
        peer does: when the session is lost the window goes nowhere, and the next `reply()` tells.
        Nor does anything go out once it is cancelled, while replies are still waited for.
        """
        if self.loss is not None or self._connection.is_spoiled:
            return
        if self._is_ending:
            await trio.lowlevel.checkpoint_if_cancelled()  # nobody would hear the reply
        if self._is_cancelled:
            return
        if self._dial is not None:
            await self._send_first(window)
            return
        if not self._is_writing:
            # The channel is empty: what goes in comes out at once, without a task switch.
            self._windows_in.send_nowait(window)
            self._write_next()
            return
        with suppress(trio.BrokenResourceError):
            try:
                self._windows_in.send_nowait(window)
            except trio.WouldBlock:
                async with self.listening():
                    await self._windows_in.send(window)

    async def half_close(self) -> None:
        """Say that nothing will follow what was sent; replies can still be heard.

        Done by the writer where it is still busy.
        """
        if self._is_writing:
            self._half_closes = True
        elif self.is_usable:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()

    async def start_tls(self, shake_hands: Callable[[ByteStream], Awaitable[ByteStream]]) -> None:
        """Go on over TLS; STARTTLS was accepted, and nothing else is owed.

        Octets in clear behind that reply may be an attacker's: they would be taken for the host's,
        and end the session with the cause `tls` (RFC 3207 §6).

        Args:
            shake_hands: Makes a TLS stream of this one; what it raises comes out, with the session
                abandoned.  It also finds out that the host has hung up.

        Raises:
            SessionLost: There were such octets.
        """
        if self.loss is None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if octets := self._stream.receive_nowait():
                    self._connection.receive(octets)
            try:
                self._connection.tls_started()
            except RemoteProtocolError:
                self._lose(Cause.TLS, _INJECTED, asked=STARTTLS)
        elif self.loss.cause is not Cause.CLOSED:
            self.loss = SessionLost(Cause.TLS, STARTTLS, _INJECTED)  # it was a whole reply
        if self.loss is not None:
            raise self.loss
        try:
            self._stream = await shake_hands(self._stream)
        except BaseException:
            self.abandon()
            raise
        self._arm()

    async def hear(self) -> Run:
        """Wait for replies, and return those that came, with what they answer, in order.

        None when no more will come: the session was lost, and `loss` tells how, or the last one was
        a 421, after which the peer answers nothing.
        """
        if self._answers:
            answers = list(self._answers)
            self._answers.clear()
            return Run([each.command for each in answers], [each.reply for each in answers])
        while not self._runs:
            # Behind a failed write, last words may still come.
            if self.loss is not None or (self._connection.is_spoiled and not self._write_error):
                return SILENCE
            await self._read()
        self._runs -= 1
        run, self._contents_heard = self._replies.receive_nowait()
        if self._is_cancelled:
            self._let_cancellation_in()
        return run

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Let the reader read while the block waits for something else than replies.

        What it reads waits on the replies channel; `has_answers` and `loss` tell at once.
        """
        if self._is_listening:
            yield
            return
        self._is_listening = True
        self._duty.set()
        try:
            yield
        finally:
            self._is_listening = False
            self._watch.cancel()
            await self._relieved.wait()

    async def reply(self) -> Answered:
        """Return the next reply with the command it answers.

        Raises:
            SessionLost: There will be none.
        """
        answers = await self.replies(1)
        if not answers:
            raise self.loss or SessionLost(Cause.CLOSED, None)
        return answers[0]

    async def replies(self, count: int) -> list[Answered]:
        """Return the next replies, in order; fewer than `count` as `hear` says."""
        found: list[Answered] = []
        while len(found) < count:
            run = await self.hear()
            if not run.replies:
                break
            found += run.answers()
        self._answers.extend(found[count:])
        del found[count:]
        if found:
            self.last_heard = found[-1].command
        return found

    async def exchange(self, *window: Command) -> list[Answered]:
        """Send a window and return the replies to all of it, in order.

        Raises:
            SessionLost: Not all of them came.
        """
        await self.send(*window)
        return [await self.reply() for _ in window]

    def count_recipients(self) -> None:
        """Expect contents to be answered once for each recipient (LMTP, PRDR)."""
        self._connection.counts_recipients = True

    def hurry(self, seconds: float) -> None:
        """Wait for replies at most this many seconds from now; nothing makes it longer again."""
        self._latest = min(self._latest, self._now() + seconds)
        self._watch_due()

    async def close(self) -> None:
        """Close the connection, with a farewell where TLS has one (RFC 8446 §6.1)."""
        self._connection.send_failed()
        await self._stream.aclose()

    def abandon(self) -> None:
        """Give the session up from our side: nothing more is sent, only closing is left."""
        self._connection.send_failed()

    # -- the writer -------------------------------------------------------------------------
    #
    # As long as the kernel takes all, whoever put a window on the channel writes it on the spot.
    # When the kernel would block, the writer task has the rest, and what comes behind it waits.

    async def _connect(self, words: bytes) -> None:
        assert self._dial is not None
        dial, self._dial = self._dial, None
        try:
            self._stream = await dial(words)
        except BaseException:
            self.abandon()
            raise

    async def _send_first(self, window: Window) -> None:
        """Connect, with the commands of the first window as what is said first.

        What is said so may arrive twice (RFC 7413 §2.1): content follows when the connection stands.
        """
        octets = self._connection.send_window(window)
        if self._scribe is not None:
            self._note(window)
        early = 0
        for command in window:
            if command.kind in CONTENT_KINDS:
                early += command.head
                break
            early += len(command.octets)
        await self._connect(octets[:early])
        self._put(window, octets, early)
        self._arm()

    def _write_next(self) -> None:
        """Write the next window as far as the kernel takes it; the rest is the writer task's."""
        window, connection = self._windows.receive_nowait(), self._connection
        is_first = not connection.unanswered
        octets = connection.send_window(window)
        if self._scribe is not None:
            self._note(window)
        self._put(window, octets)
        if is_first or window[0].kind in CONTENT_KINDS:
            # The reply to a content is waited for from its last octet on.
            self._arm()

    def _put(self, window: Window, octets: bytes, start: int = 0) -> None:
        """Write octets of a window from `start` on as far as the kernel takes them."""
        try:
            sent = self._stream.send_nowait(octets[start:] if start else octets)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._write_failed(_reason(error) or "write failed")
            return
        if start + sent < len(octets):
            self._unwritten = parcel = Parcel(window, octets)
            self._is_writing = True
            self._account(parcel, start + sent)
            self._needed.set()
        else:
            for command in window:
                if command.kind in CONTENT_KINDS:
                    self.content_octets += len(command.octets) - command.head
                    self.contents_written += ends_content(command)

    async def _write(self) -> None:
        try:
            with self._windows, self._writing:
                while True:
                    await self._needed.wait()
                    self._needed = trio.Event()
                    try:
                        assert self._unwritten is not None
                        await self._write_rest(self._unwritten)
                    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                        self._write_failed(_reason(error) or "write failed")
                        break
                    except trio.TooSlowError:
                        self._lose(Cause.TIMEOUT, "a block was not taken in time")
                        break
                    with suppress(trio.WouldBlock):
                        while self._unwritten is None and self.is_usable:
                            await trio.lowlevel.checkpoint_if_cancelled()
                            self._write_next()
                    self._is_writing = self._unwritten is not None
                    if self._half_closes and not self._is_writing:
                        await self.half_close()
            await trio.sleep_forever()  # there is nothing to write, but cancellation to watch for
        except trio.Cancelled:
            self._cancelled()
            raise

    async def _write_rest(self, parcel: Parcel) -> None:
        octets = memoryview(parcel.octets)
        while parcel.sent < len(octets):
            end = parcel.next_end
            if parcel.sent == end - 1:
                # A content's last octet goes alone: while it is here nothing can have been
                # accepted, and to be cancelled is safe.
                await trio.lowlevel.checkpoint_if_cancelled()
                self._account(parcel, end)
                block = octets[end - 1 : end]
            else:
                stop = min(parcel.sent + _BLOCK_OCTETS, end - 1)
                block = octets[parcel.sent : stop]
            with trio.fail_after(self._block_timeout):
                await self._stream.send_all(block)
            if parcel.sent < end:
                self._account(parcel, parcel.sent + len(block))
        self._unwritten = None
        self._arm()

    def _note(self, window: Sequence[Command]) -> None:
        assert self._scribe is not None
        for command in window:
            if command.kind in CONTENT_KINDS:
                if command.head:
                    self._scribe.sent(show(command.octets[: command.head].rstrip()))
                if (octets := len(command.octets) - command.head) > 0:
                    is_chunked = command.kind is not Kind.CONTENT
                    self._scribe.sent_content(
                        octets, is_chunked=is_chunked, is_last=command.is_last
                    )
            else:
                self._scribe.sent(command.text)

    def _account(self, parcel: Parcel, sent: int) -> None:
        """Account for a parcel that has left up to `sent`, or may be about to."""
        before, parcel.sent = parcel.sent, sent
        self.content_octets += parcel.content_within(before, sent)
        while parcel.ends and parcel.ends[0] <= sent:
            parcel.ends.popleft()
            self.contents_written += 1
            self._arm()

    def _write_failed(self, reason: str) -> None:
        self._connection.send_failed()
        self._write_error = reason
        # A server that refuses and hangs up makes our write fail; its reply may lie unread.
        self.hurry(_LAST_WORDS)

    # -- the reader -------------------------------------------------------------------------

    async def _attend(self) -> None:
        """Keep the deadline of the reply that is due, and read while that is asked for."""
        self._arm()
        with self._replies_in, self._reading:
            while self.loss is None:
                # One scope serves many replies: its deadline may come too early, never too late.
                due = self._due
                self._watch = trio.CancelScope(deadline=due)
                self._shortest = due - self._since if due < self._latest else math.inf
                with self._watch:
                    await self._duty.wait()
                    await self._listen()
                if self._watch.cancelled_caught and self._now() >= self._due:
                    self._late()
                if not self._is_listening:
                    self._duty = trio.Event()
                    self._relieved.set()
                    self._relieved = trio.Event()
            self._relieved.set()
        self._writing.cancel()
        if self.when_over is not None:
            self.when_over()

    async def _listen(self) -> None:
        """Read until the session is lost, or there is enough to hear."""
        while self._runs < _CHANNEL_ITEMS:
            await self._read()
            if self.loss is not None:
                return
        await trio.sleep_forever()

    async def _read(self) -> None:
        """Read once, and put the replies that are complete on their channel."""
        try:
            octets = await self._stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._unreadable(error)
        else:
            self._received(octets)

    def glance(self) -> None:
        """Read what has arrived, without waiting: a reply too many must not meet the next command."""
        try:
            octets = self._stream.receive_nowait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._unreadable(error)
        else:
            if octets is not None:
                self._received(octets)

    def _unreadable(self, error: Exception) -> None:
        if self.loss is None:
            self._lose(Cause.CLOSED, self._write_error or _reason(error))
            assert self.loss is not None
            self.loss.alert = alert_in(error.__cause__)

    def _received(self, octets: bytes) -> None:
        connection = self._connection
        if self._scribe is not None or self._is_writing or self._secrets:
            connection.receive(octets)
            run = self._take_events()
        else:
            run = connection.receive_run(octets) or self._take_events()
        if run.replies:
            if connection.unanswered:
                self._arm()
            self._runs += 1
            self._replies_in.send_nowait((run, connection.contents_answered))

    def _take_events(self) -> Run:
        """Take what was received one by one."""
        connection = self._connection
        answers: list[Answered] = []
        asked = connection.oldest_owed
        try:
            while (event := connection.next_event()) is not None:
                if isinstance(event, Closed):
                    self._lose(Cause.CLOSED, self._write_error)
                    break
                shown = self.shown(event.reply)
                if self._scribe is not None:
                    self._scribe.received(shown)
                if isinstance(event, Closing):
                    self._lose(Cause.REPLY, reply=shown)
                    break
                if shown is not event.reply and not _is_read(event):
                    event = event._replace(reply=shown)
                if event.command.kind not in _SET_UP:
                    self._secrets = ()
                answers.append(self._see_whether_early(event))
                asked = connection.oldest_owed
        except RemoteProtocolError as error:
            octets = error.octets
            for secret in self._secrets:
                octets = conceal(octets, secret)
            self._lose(Cause.MALFORMED_REPLY, show(octets), asked=asked)
        return Run(
            [answer.command for answer in answers],
            [answer.reply for answer in answers],
            is_early=bool(answers) and answers[-1].is_early,
        )

    def _see_whether_early(self, answer: Answered) -> Answered:
        """Stop a content that is refused before its end: finished, the peer might still take it."""
        if not answer.is_early:
            if not self._is_unwritten_content(answer.command):
                return answer
            self._connection.send_failed()
            if answer.reply.is_positive:
                problem = "content accepted before its end"
                raise RemoteProtocolError(problem, answer.reply.encode())
        self._writing.cancel()
        return Answered(answer.command, answer.reply, is_early=True)

    def _is_unwritten_content(self, command: Command) -> bool:
        """Whether it is a content of which the writer still has octets."""
        return self._unwritten is not None and self._unwritten.has_unwritten(command)

    # -- deadlines and endings --------------------------------------------------------------

    def _arm(self) -> None:
        """Start the clock of the reply whose turn has come.

        It runs by `_due`, which whoever keeps the deadline works out when it wakes; so all there is
        to do here is to note the time, unless somebody has to be woken earlier than before.
        """
        self._since = self._now()
        connection = self._connection
        if connection.unanswered:
            timeout = self._timeout_of[connection.unanswered[0].kind]
            if timeout < self._shortest:
                self._watch_due()

    @property
    def _due(self) -> float:
        """When the oldest owed reply is late."""
        if self._write_error:
            return self._latest
        connection = self._connection
        if not connection.unanswered or self._stream is UNCONNECTED:
            return self._latest
        oldest = connection.unanswered[0]
        is_open = connection.is_content_open and len(connection.unanswered) == 1
        if is_open or (self._is_writing and self._is_unwritten_content(oldest)):
            return self._latest
        return min(self._latest, self._since + self._timeout_of[oldest.kind])

    def _watch_due(self) -> None:
        due = self._due
        if due < self._watch.deadline:
            self._watch.deadline = due
            self._shortest = due - self._since if due < self._latest else math.inf

    def _late(self) -> None:
        if self._write_error:
            self._lose(Cause.CLOSED, self._write_error)
        else:
            self._lose(Cause.TIMEOUT)

    def _lose(
        self,
        cause: Cause,
        detail: str = "",
        *,
        reply: Reply | None = None,
        asked: Command | None = None,
    ) -> None:
        self.loss = SessionLost(cause, asked or self._connection.oldest_owed, detail, reply)
        self._connection.send_failed()
        if self._scribe is not None:
            if cause is Cause.CLOSED:
                self._scribe.lost("close")
            elif cause is Cause.TIMEOUT:
                self._scribe.lost("stall")
            else:
                self._scribe.note(_ENDINGS[cause])
        # Nothing will be said any more; who waits for octets need not.
        self._stream.close()
        self._watch.cancel()

    def _cancelled(self) -> None:
        self._is_cancelled = True
        self.hurry(self._grace)
        self._conversing.deadline = self._now() + self._grace + _PARTING
        self._let_cancellation_in()

    def _let_cancellation_in(self) -> None:
        """End the conversation, unless it does not have the reply to a content that has left."""
        if self._contents_heard >= self.contents_written:
            self._is_ending = True
            self._conversing.cancel()


_INJECTED: Final = "octets in clear behind the reply to STARTTLS"
_ENDINGS: Final[Mapping[Cause, str]] = {
    Cause.TLS: "octets in clear behind the reply to STARTTLS, connection given up",
    Cause.MALFORMED_REPLY: "that was no reply, connection given up",
    Cause.REPLY: "connection is being closed by the server",
}


def _is_read(answer: Answered) -> bool:
    """Whether a reply is data to go by: a challenge, or the keywords of a hello."""
    reply = answer.reply
    return reply.severity == 3 or (reply.is_positive and answer.command.kind is Kind.EHLO)


def _reason(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        return str(error)  # it says in which words of OpenSSL's
    return (cause.strerror or "") if isinstance(cause, OSError) else ""


@asynccontextmanager
async def run_session(
    stream: ByteStream | Dial,
    timeouts: Timeouts,
    *,
    scribe: Scribe | None = None,
    early: bool = False,
    grace: float = 0.0,
) -> AsyncIterator[Session]:
    """Run the writer and the reader of a session around the conversation in the block.

    The stream is closed on leaving, on every path and at once: whoever wants to say QUIT does so
    inside the block.  Exceptions of the block come out as they are.

    Args:
        stream: What the session is held over; it is the session's from now on.  With early
            pipelining what connects: it is called with the commands of the first window, and what
            it raises comes out of `send`.
        timeouts: How long to wait for what.
        scribe: Keeps the dialogue.
        early: Whether commands may go out before the greeting (early pipelining).
        grace: Seconds that a cancelled session waits for replies to contents that have left.
    """
    session = Session(stream, timeouts, scribe=scribe, early=early, grace=grace)
    try:
        async with tasks_beside() as nursery:
            nursery.start_soon(session._write, name="session writer")  # noqa: SLF001
            nursery.start_soon(session._attend, name="session reader")  # noqa: SLF001
            try:
                with session._conversing:  # noqa: SLF001
                    yield session
            finally:
                session._reading.cancel()  # noqa: SLF001
    finally:
        session._stream.close()  # noqa: SLF001
