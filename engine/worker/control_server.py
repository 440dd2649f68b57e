"""The control socket of a running worker: serves its desk to the command line.

`serve_control` is a task of the worker's service.  Whoever asks is of the same user, or root; it is
bounded and given deadlines all the same, and no request of any kind can hurt the worker.  Not here:
what can be asked (`engine.worker.desk`), and what it looks like on the wire (`engine.worker.control`).
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from engine.content import PIECE_OCTETS, from_binary, from_octets
from engine.queue.errors import StoreError
from engine.smtp.content import Normaliser, Scanner
from engine.smtp.errors import ContentError
from engine.worker import control_values as values
from engine.worker.control import (
    MAX_GREETING_OCTETS,
    MAX_HEAD_OCTETS,
    MAX_HELD_OCTETS,
    HeadBuffer,
    WireError,
    check_greeting,
    frame,
    greeting,
)
from engine.worker.control_socket import identity, is_welcome, listen, peer_user, remove
from engine.worker.desk import Refused, too_large

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from engine.queue.entries import Page
    from engine.queue.submission import Submission
    from engine.smtp.content import ContentFacts
    from engine.worker.control_values import EntriesRequest, Request, SubmitRequest, WireMessage
    from engine.worker.desk import Answer, Desk

#: Connections at a time; more wait to be accepted.
MAX_CONNECTIONS: Final = 64
#: Requests of one connection that are under way at a time.
MAX_REQUESTS: Final = 4
#: A connection without any request is closed after so many seconds; who asks again connects again.
IDLE_SECONDS: Final = 600.0
#: Once something has begun to come, or to go, its next octets may take so many seconds.
PIECE_SECONDS: Final = 30.0
#: The head of an envelope with more octets is read in a thread.
_LONG_HEAD_OCTETS: Final = 256 * 1024
#: Messages of a request that are taken at a time: what else waits for the store, or for this
#: process, waits for no more of them.
_AT_ONCE: Final = 64
#: An envelope with more is taken apart in a thread.
_MANY_RECIPIENTS: Final = 2000
#: Of last outcomes on one page; in JSON they may grow by half and more.
_MAX_PAGE_OCTETS: Final = MAX_HEAD_OCTETS // 8
_RECEIVE_OCTETS: Final = 256 * 1024
_PAUSE: Final = 0.1  # seconds, when the system has no descriptors for us

_log = logging.getLogger("engine.worker")


async def serve_control(
    path: Path,
    desk: Desk,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a desk on a Unix socket until cancelled; then the socket is gone.

    What was begun then is finished by the store, but its answer is not sent: who asked asks again,
    and to submit again is harmless.

    Args:
        path: The socket; one that an ended worker left is replaced.
        desk: What is served.
        task_status: Told when the socket is there.

    Raises:
        SocketInUseError: A process listens there, or what stands there is no socket.
        OSError: It cannot be made.
    """
    async with listen(path) as listener:
        mine = identity(path)
        try:
            task_status.started()
            await _accept(listener, desk)
        finally:
            remove(path, mine)


async def _accept(listener: trio.SocketListener, desk: Desk) -> None:
    seats = trio.Semaphore(MAX_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        while True:
            await seats.acquire()
            try:
                stream = await listener.accept()
            except OSError as error:
                seats.release()
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise
                _log.warning("control socket: %s", error.strerror)
                await trio.sleep(_PAUSE)
                continue
            nursery.start_soon(_serve_one, stream, desk, seats)


async def _serve_one(stream: trio.SocketStream, desk: Desk, seats: trio.Semaphore) -> None:
    try:
        async with stream:
            if is_welcome(user := peer_user(stream)):
                await _Conversation(stream, desk).run()
            else:
                _log.warning("control socket: user %d is not welcome", user)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        # They went away; what they asked was done or not, and they know that they do not know.
        pass
    except Exception:  # noqa: BLE001 - whatever it is, it is this connection's alone
        _log.exception("control socket: a connection failed")
    finally:
        seats.release()


class _Conversation:
    """One connection."""

    def __init__(self, stream: trio.SocketStream, desk: Desk) -> None:
        self._stream = stream
        self._desk = desk
        self._buffer = HeadBuffer(MAX_GREETING_OCTETS)
        self._sending = trio.Lock()
        self._seats = trio.Semaphore(MAX_REQUESTS)

    async def run(self) -> None:
        """Answer until the other end has no more requests, or does not speak as agreed."""
        try:
            await self._send(greeting())
            head = await self._head(PIECE_SECONDS)
            if head is None:
                return
            check_greeting(head)
            self._buffer.limit = MAX_HEAD_OCTETS
            await self._answer_all()
        except WireError as error:
            # They may still read, and are told before we hang up.
            await self._send(frame(values.failed(0, error)))
        except trio.TooSlowError:
            return

    async def _answer_all(self) -> None:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                while (head := await self._head(IDLE_SECONDS)) is not None:
                    await self._begin(head, nursery)
            except Exception as error:  # noqa: BLE001 - raised below, without a group around it
                failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _begin(self, head: bytes, nursery: trio.Nursery) -> None:
        """Read what follows a head, and have it answered."""
        if len(head) > _LONG_HEAD_OCTETS:
            request = await trio.to_thread.run_sync(values.read_request, head)
        else:
            request = values.read_request(head)
        await self._seats.acquire()
        if not isinstance(request, values.SubmitRequest):
            nursery.start_soon(self._answer, request, None)
        elif len(request.messages) == 1 and request.octets > MAX_HELD_OCTETS:
            # It is read as it is written down, so what comes behind it has to wait.
            await self._answer(request, None)
        else:
            octets = await self._octets(request.octets)
            nursery.start_soon(self._answer, request, octets)

    async def _answer(self, request: Request, octets: bytes | None) -> None:
        try:
            try:
                answer = await self._do(request, octets)
                reply = frame(values.answered(request.n, answer))
            except (StoreError, ValueError) as error:
                reply = frame(values.failed(request.n, error))
            except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                raise
            except Exception as error:  # noqa: BLE001 - it is this request's alone
                _log.exception("control socket: a request failed")
                reply = frame(values.failed(request.n, error))
            await self._send_or_hang_up(reply)
        finally:
            self._seats.release()

    async def _do(self, request: Request, octets: bytes | None) -> Any:
        desk = self._desk
        match request:
            case values.SubmitRequest():
                taken = self._stream_one(request) if octets is None else self._take(request, octets)
                return values.dump_answers(await taken)
            case values.EntriesRequest():
                return values.dump_page(await self._page(request))
            case values.ApplyRequest():
                return await desk.apply(request.action, request.selection.value(), request.reason)
            case values.WeightRequest():
                return await desk.set_weight(request.tenant, request.weight, request.job)
            case values.CountsRequest():
                return values.dump_counts(await desk.counts())
            case values.StatusRequest():
                return values.dump_status(await desk.status())

    async def _page(self, request: EntriesRequest) -> Page:
        """Return a page that fits into a reply: last outcomes may be long."""
        selection, limit = request.selection.value(), request.limit
        while True:
            page = await self._desk.entries(selection, after=request.after, limit=limit)
            octets = sum(len(entry.last or "") + len(entry.reason) for entry in page.entries)
            if octets <= _MAX_PAGE_OCTETS or len(page.entries) == 1:
                return page
            limit = len(page.entries) // 2

    # -- submissions ------------------------------------------------------------------------

    async def _take(self, request: SubmitRequest, octets: bytes) -> list[Answer]:
        """Submit messages whose contents were held, a few at a time: deliveries go on in between."""
        answers: list[Answer] = []
        start = 0
        for first in range(0, len(request.messages), _AT_ONCE):
            some = request.messages[first : first + _AT_ONCE]
            end = start + sum(wire.octets for wire in some)
            answers += await self._take_some(some, octets[start:end])
            start = end
        return answers

    async def _take_some(self, some: Sequence[WireMessage], octets: bytes) -> list[Answer]:
        answers: list[Answer | None] = []
        good: list[Submission] = []
        start = 0
        for wire in some:
            content = octets[start : start + wire.octets]
            start += wire.octets
            if len(wire.recipients) > _MANY_RECIPIENTS:
                made = await trio.to_thread.run_sync(_submission, wire, content)
            else:
                made = _submission(wire, content)
            if isinstance(made, Refused):
                answers.append(made)
            else:
                answers.append(None)
                good.append(made)
        taken = iter(await self._desk.submit(good) if good else ())
        return [next(taken) if answer is None else answer for answer in answers]

    async def _stream_one(self, request: SubmitRequest) -> list[Answer]:
        """Submit a message whose content is read as it is written down."""
        (wire,) = request.messages
        content = _WireContent(values.facts_of(wire), self)
        answer: Answer
        if wire.octets > self._desk.max_message_octets:
            answer = Refused(wire.id, too_large(wire.octets, self._desk.max_message_octets))
        else:
            try:
                (answer,) = await self._desk.submit([values.unpack(wire, content)])
            except StoreError:
                await self._skip(wire.octets - content.taken)
                raise
            except ValueError as error:
                answer = Refused(wire.id, str(error))
        await self._skip(wire.octets - content.taken)
        return [answer]

    # -- octets -----------------------------------------------------------------------------

    async def _head(self, idle: float) -> bytes | None:
        """Return the next head; `None` at the end."""
        while (head := self._buffer.next_head()) is None:
            octets = await self._receive(idle if self._buffer.is_empty else PIECE_SECONDS)
            if not octets:
                return None
            self._buffer.feed(octets)
        return head

    async def _octets(self, count: int) -> bytes:
        parts = []
        while count:
            part = await self.take(count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    async def _skip(self, count: int) -> None:
        while count:
            count -= len(await self.take(min(count, _RECEIVE_OCTETS)))

    async def take(self, most: int) -> bytes:
        """Return octets of a content, one at least and at most so many."""
        if self._buffer.is_empty:
            octets = await self._receive(PIECE_SECONDS)
            if not octets:
                raise trio.BrokenResourceError("the connection ended within a content")
            self._buffer.feed(octets)
        return self._buffer.take(most)

    async def _receive(self, seconds: float) -> bytes:
        with trio.fail_after(seconds):
            return bytes(await self._stream.receive_some(_RECEIVE_OCTETS))

    async def _send_or_hang_up(self, octets: bytes) -> None:
        try:
            await self._send(octets)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(self._stream)

    async def _send(self, octets: bytes) -> None:
        async with self._sending:
            with memoryview(octets) as view:
                for start in range(0, len(view), _RECEIVE_OCTETS):
                    with trio.fail_after(PIECE_SECONDS):
                        await self._stream.send_all(view[start : start + _RECEIVE_OCTETS])


def _submission(wire: WireMessage, octets: bytes) -> Submission | Refused:
    try:
        content = from_binary(octets) if values.facts_of(wire).is_binary else from_octets(octets)
        return values.unpack(wire, content)
    except ValueError as error:
        return Refused(wire.id, str(error))


@dataclass(slots=True)
class _WireContent:
    """A content that is read from the connection, once.

    Attributes:
        facts: What the other end says of it.
        taken: Octets of it that were read.
    """

    facts: ContentFacts
    conversation: _Conversation
    taken: int = 0

    @property
    def octets(self) -> None:
        """`None`: read `chunks`."""
        return

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the content in pieces of at most 64 KiB; it must be what was said of it.

        Raises:
            ContentError: It is not; the last piece is not given out.
        """
        if self.taken:
            raise ContentError("a content from the control socket can be read only once")
        scanner, normaliser, octets = Scanner(), Normaliser(), 0
        held = b""
        while (left := self.facts.octets - self.taken) > 0:
            piece = await self.conversation.take(min(left, PIECE_OCTETS))
            self.taken += len(piece)
            scanner.feed(piece)
            if not self.facts.is_binary:
                octets += len(normaliser.feed(piece))
            if held:
                yield held
            held = piece
        facts = scanner.facts()
        if self.facts.is_binary:
            facts, octets = facts._replace(is_8bit=True, is_binary=True), self.taken
        # What is made of lines already has no octet more when that is done again.
        if facts != self.facts or octets + len(normaliser.finish()) != self.taken:
            raise ContentError("a content that is not what was said of it")
        if held:
            yield held
