"""The other end of the control socket: asks a running worker what is asked of its desk.

Made by `open_control` for one `async with` block, mostly by `engine.worker.shards`.  Many tasks may
ask at a time: requests go out one behind the other, without waiting for answers.  Not here: what
the wire looks like (`engine.worker.control`), and what to do when nobody answers.
"""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from engine.nursery import tasks_beside
from engine.queue.errors import StoreBusyError, StoreError
from engine.queue.values import EVERYBODY
from engine.smtp.errors import ContentError
from engine.worker import control_values as values
from engine.worker.control import (
    MAX_GREETING_OCTETS,
    MAX_GROUP_OCTETS,
    MAX_HEAD_OCTETS,
    MAX_HELD_OCTETS,
    HeadBuffer,
    WireError,
    check_greeting,
    frame,
    greeting,
)
from engine.worker.control_socket import connect
from engine.worker.desk import Asked, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from engine.queue.entries import Counts, Page
    from engine.queue.submission import Submission
    from engine.queue.values import Action, Selection
    from engine.worker.desk import Answer, Status

_R = TypeVar("_R")

#: How long a worker may take to answer; large selections take their time.
REPLY_SECONDS: Final = 300.0
#: Once something has begun to come, or to go, its next octets may take so many seconds.
PIECE_SECONDS: Final = 30.0
#: Recipients of one request, unless there is but one message.
_MAX_RECIPIENTS: Final = 20_000
_RECEIVE_OCTETS: Final = 256 * 1024


class ControlLostError(StoreError):
    """The worker went away; what was asked may have been done or not, and may be asked again."""


@dataclass(slots=True)
class _Pending:
    """A request without its answer."""

    done: trio.Event = field(default_factory=trio.Event)
    reply: values.Reply | None = None


class ControlClient(Asked):
    """The desk of a running worker; methods are described in `Asked`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self._numbers = count(1)
        self._pending: dict[int, _Pending] = {}
        self._lost: Exception | None = None
        #: Set when nothing can be asked any more.
        self.lost = trio.Event()

    async def submit(self, submissions: Sequence[Submission]) -> tuple[Answer, ...]:
        """Take messages."""
        answers: list[Answer] = []
        asked = [(group, await self._post_group(group)) for group in groups(submissions)]
        for group, pending in asked:
            if isinstance(pending, Refused):
                answers.append(pending)
            else:
                answer = await self._answer(pending)
                answers += _understood(partial(values.load_answers, count=len(group)), answer)
        return tuple(answers)

    async def entries(
        self, selection: Selection = EVERYBODY, *, after: int = 0, limit: int = 100
    ) -> Page:
        """List recipients."""
        request = values.EntriesRequest(
            n=next(self._numbers),
            selection=values.pack_selection(selection),
            after=after,
            limit=min(limit, values.MAX_ENTRIES),
        )
        return _understood(values.load_page, await self._ask(request))

    async def apply(self, action: Action, selection: Selection, reason: str = "") -> int:
        """Do something to all that is selected."""
        request = values.ApplyRequest(
            n=next(self._numbers),
            action=action,
            selection=values.pack_selection(selection),
            reason=reason,
        )
        return _understood(values.load_number, await self._ask(request))

    async def set_weight(self, tenant: str, weight: float, job: str | None = None) -> None:
        """Say how large a share a tenant, or a job of its, gets."""
        number = next(self._numbers)
        await self._ask(values.WeightRequest(n=number, tenant=tenant, weight=weight, job=job))

    async def counts(self) -> Counts:
        """Count what is there."""
        request = values.CountsRequest(n=next(self._numbers))
        return _understood(values.load_counts, await self._ask(request))

    async def status(self) -> Status:
        """Say how the queue is doing."""
        request = values.StatusRequest(n=next(self._numbers))
        return _understood(values.load_status, await self._ask(request))

    # -- asking -----------------------------------------------------------------------------

    async def _ask(self, request: values.Request) -> Any:
        pending = await self._post(request.n, request.model_dump_json().encode())
        return await self._answer(pending)

    async def _post_group(self, group: Sequence[Submission]) -> _Pending | Refused:
        """Send a request to submit; what cannot be sent is refused here."""
        request = values.SubmitRequest.model_construct(
            n=next(self._numbers), messages=tuple(map(values.pack, group))
        )
        head = request.model_dump_json().encode()
        try:
            return await self._post(request.n, head, group)
        except WireError as error:
            return Refused(group[0].message.id, f"its envelope is too large: {error}")
        except ContentError as error:
            return Refused(group[0].message.id, str(error))
        except _UnreadableError as error:
            return Refused(group[0].message.id, str(error))

    async def _post(self, number: int, head: bytes, group: Sequence[Submission] = ()) -> _Pending:
        octets = frame(head)
        async with self._sending:
            if self._lost is not None:
                raise ControlLostError(str(self._lost))
            pending = self._pending[number] = _Pending()
            try:
                await self._send_request(octets, group)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._lose(error)
                raise ControlLostError(_went_away(error)) from None
            except BaseException as error:
                # Half of a request is out: nothing can follow it.
                self._lose(error if isinstance(error, Exception) else None)
                raise
            return pending

    async def _send_request(self, head: bytes, group: Sequence[Submission]) -> None:
        if len(group) == 1 and group[0].message.content.octets is None:
            await self._send(head)
            content = group[0].message.content
            left = content.facts.octets
            async with aclosing(_readable(content.chunks())) as chunks:
                async for chunk in chunks:
                    left -= len(chunk)
                    if left < 0:
                        break
                    await self._send(chunk)
            if left:
                raise ContentError("a content that is not what was said of it")
            return
        contents = [submission.message.content.octets or b"" for submission in group]
        await self._send(b"".join([head, *contents]))

    async def _send(self, octets: bytes) -> None:
        with memoryview(octets) as view:
            for start in range(0, len(view), _RECEIVE_OCTETS):
                with trio.move_on_after(PIECE_SECONDS) as scope:
                    await self._stream.send_all(view[start : start + _RECEIVE_OCTETS])
                if scope.cancelled_caught:
                    raise trio.BrokenResourceError("the worker takes nothing")

    async def _answer(self, pending: _Pending) -> Any:
        with trio.move_on_after(REPLY_SECONDS):
            await pending.done.wait()
        if pending.reply is None:
            if self._lost is not None:
                raise ControlLostError(str(self._lost))
            raise StoreBusyError(f"the worker has not answered for {REPLY_SECONDS:.0f} seconds")
        if pending.reply.failure is not None:
            raise values.error_of(pending.reply.failure)
        return pending.reply.answer

    # -- hearing ----------------------------------------------------------------------------

    async def greet(self) -> None:
        """Say what we speak, and hear whether the other end does."""
        buffer = HeadBuffer(MAX_GREETING_OCTETS)
        await self._send(greeting())
        with trio.fail_after(PIECE_SECONDS):
            while (head := buffer.next_head()) is None:
                octets = await self._stream.receive_some(_RECEIVE_OCTETS)
                if not octets:
                    raise ControlLostError("the worker hung up: only its own user and root may ask")
                buffer.feed(octets)
        check_greeting(head)

    async def listen(self) -> None:
        """Take replies until cancelled, or until there will be none any more."""
        buffer = HeadBuffer(MAX_HEAD_OCTETS)
        try:
            while octets := await self._stream.receive_some(_RECEIVE_OCTETS):
                buffer.feed(octets)
                while (head := buffer.next_head()) is not None:
                    self._heed(values.read_reply(head))
        except (OSError, WireError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lose(error)
        else:
            self._lose(None)

    def _heed(self, reply: values.Reply) -> None:
        pending = self._pending.pop(reply.n, None)
        if pending is not None:
            pending.reply = reply
            pending.done.set()
        elif reply.failure is not None:
            raise WireError(reply.failure.text)

    def _lose(self, error: Exception | None) -> None:
        if self._lost is None:
            self._lost = ControlLostError(_went_away(error))
            self.lost.set()
            self._stream.socket.close()
            for pending in self._pending.values():
                pending.done.set()
            self._pending.clear()


def _understood(load: Callable[[Any], _R], answer: Any) -> _R:
    try:
        return load(answer)
    except WireError as error:
        raise StoreError(f"the worker's answer is not understood: {error}") from None


class _UnreadableError(Exception):
    """A content of ours cannot be read."""


async def _readable(chunks: Any) -> Any:
    """Tell errors of reading a content from those of the socket."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
    except OSError as error:
        raise _UnreadableError(error.strerror or str(error)) from error


def _went_away(error: BaseException | None) -> str:
    return f"the worker went away ({error})" if error and str(error) else "the worker went away"


@asynccontextmanager
async def open_control(path: Path) -> AsyncIterator[ControlClient]:
    """Talk to the worker that listens on a socket, for one `async with` block.

    Raises:
        FileNotFoundError: There is no socket.
        ConnectionRefusedError: Nobody listens on it any more.
        OSError: It cannot be used, mostly because it is not this user's.
        StoreError: It is no worker, or none of this release.
    """
    stream = await connect(path)
    async with stream, tasks_beside() as nursery:
        client = ControlClient(stream)
        try:
            await client.greet()
        except WireError as error:
            raise StoreError(f"{path}: {error}") from None
        except (trio.TooSlowError, trio.BrokenResourceError) as error:
            raise ControlLostError(f"{path}: {_went_away(error)}") from None
        nursery.start_soon(client.listen)
        yield client


def groups(submissions: Sequence[Submission]) -> Iterator[Sequence[Submission]]:
    """Divide submissions into those of one request each."""
    start, octets, recipients = 0, 0, 0
    for index, submission in enumerate(submissions):
        size = _size(submission)
        number = len(submission.message.recipients)
        is_full = (
            octets + size > MAX_GROUP_OCTETS
            or recipients + number > _MAX_RECIPIENTS
            or index - start >= values.MAX_MESSAGES
        )
        if is_full and index > start:
            yield submissions[start:index]
            start, octets, recipients = index, 0, 0
        octets += size
        recipients += number
    if start < len(submissions):
        yield submissions[start:]


def _size(submission: Submission) -> int:
    """Return what a content takes of a request; what is streamed takes all of it."""
    content = submission.message.content
    if content.octets is None or len(content.octets) > MAX_HELD_OCTETS:
        return MAX_GROUP_OCTETS + 1
    return len(content.octets)
