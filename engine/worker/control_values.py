"""What requests and answers on the control socket hold, and how they become values.  Knows no I/O.

Strict: what is not known, not of the right type or out of range is refused.  Not here: how they are
framed (`engine.worker.control`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from engine.message import Message, Notify, Recipient
from engine.queue import errors
from engine.queue.entries import Backlog, Counts, Entry, Page
from engine.queue.errors import StoreError
from engine.queue.submission import Accepted, Submission
from engine.queue.values import MAX_REASON, Action, Result, Selection, SiteState, State
from engine.smtp.content import ContentFacts
from engine.worker.control import MAX_GROUP_OCTETS, WireError
from engine.worker.desk import Refused, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.message import Content
    from engine.worker.desk import Answer

_T = TypeVar("_T")

#: Messages of one request.
MAX_MESSAGES: Final = 1000
#: Entries of one answer.
MAX_ENTRIES: Final = 5000


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ---- requests -----------------------------------------------------------------------------------


class WireRecipient(_Strict):
    """A recipient with wishes about reports."""

    address: str
    notify: tuple[Notify, ...] = ()
    orcpt: str | None = None


class WireMessage(_Strict):
    """A submission without the octets of its content."""

    id: str
    sender: str
    recipients: tuple[str | WireRecipient, ...]
    #: As `ContentFacts` has them, in its order.
    facts: tuple[int, bool, int, bool, bool, bool]
    submitted_at: float
    envid: str | None = None
    ret: Literal["full", "hdrs"] | None = None
    require_tls: bool = False
    smtputf8: bool = False
    tenant: str = ""
    job: str = ""
    priority: int = 0
    not_before: float | None = None
    deadline: float | None = None
    is_held: bool = False

    @property
    def octets(self) -> int:
        """How many octets of content follow."""
        return self.facts[0]


class WireSelection(_Strict):
    """A `Selection`."""

    states: tuple[State, ...] = ()
    message: str | None = None
    recipient: str | None = None
    domain: str | None = None
    sender: str | None = None
    tenant: str | None = None
    job: str | None = None

    def value(self) -> Selection:
        """Return it as the store takes it."""
        return Selection(**{**dict(self), "states": frozenset(self.states)})


class _Request(_Strict):
    n: Annotated[int, Field(ge=0)]


class SubmitRequest(_Request):
    """Take messages; their contents follow, one behind the other."""

    do: Literal["submit"] = "submit"
    messages: Annotated[tuple[WireMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]

    @property
    def octets(self) -> int:
        """How many octets of contents follow."""
        return sum(message.octets for message in self.messages)


class EntriesRequest(_Request):
    """List recipients."""

    do: Literal["entries"] = "entries"
    selection: WireSelection = WireSelection()
    after: int = 0
    limit: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = 100


class ApplyRequest(_Request):
    """Do something to recipients."""

    do: Literal["apply"] = "apply"
    action: Action
    selection: WireSelection
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""


class WeightRequest(_Request):
    """Say how large a share a tenant or a job gets."""

    do: Literal["weight"] = "weight"
    tenant: str
    weight: float
    job: str | None = None


class CountsRequest(_Request):
    """Count what is there."""

    do: Literal["counts"] = "counts"


class StatusRequest(_Request):
    """Say how the queue is doing."""

    do: Literal["status"] = "status"


Request: TypeAlias = (
    SubmitRequest | EntriesRequest | ApplyRequest | WeightRequest | CountsRequest | StatusRequest
)
_REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Annotated[Request, Field(discriminator="do")])


def read_request(head: bytes) -> Request:
    """Read a request.

    Raises:
        WireError: It is none.
    """
    try:
        request = _REQUEST.validate_json(head)
    except ValidationError as error:
        raise WireError(f"no request: {_first(error)}") from None
    if isinstance(request, SubmitRequest):
        _check_octets(request)
    return request


def _check_octets(request: SubmitRequest) -> None:
    if any(message.octets < 0 for message in request.messages):
        raise WireError("no request: a content of less than nothing")
    if len(request.messages) > 1 and request.octets > MAX_GROUP_OCTETS:
        raise WireError(
            f"no request: contents of {request.octets} octets together; "
            f"allowed are {MAX_GROUP_OCTETS}, or one message"
        )


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, detail["loc"][:6]))
    return f"{place}: {detail['msg']}"[:300]


# -- submissions ----------------------------------------------------------------------------------


def pack(submission: Submission) -> WireMessage:
    """Return a submission as it goes over the wire, without its content."""
    message, facts = submission.message, submission.message.content.facts
    # What is known to be right already is not looked at again: a batch is a million of these.
    return WireMessage.model_construct(
        id=message.id,
        sender="" if message.reverse_path is None else str(message.reverse_path),
        recipients=tuple(map(_pack_recipient, message.recipients)),
        facts=(
            facts.octets,
            facts.is_8bit,
            facts.longest_line,
            facts.has_utf8_header,
            facts.is_tls_optional,
            facts.is_binary,
        ),
        submitted_at=submission.submitted_at,
        envid=message.envid,
        ret=message.ret,
        require_tls=message.require_tls,
        smtputf8=message.smtputf8,
        tenant=submission.tenant,
        job=submission.job,
        priority=submission.priority,
        not_before=submission.not_before,
        deadline=submission.deadline,
        is_held=submission.is_held,
    )


def _pack_recipient(recipient: Recipient) -> str | WireRecipient:
    if not recipient.notify and recipient.orcpt is None:
        return recipient.address
    return WireRecipient.model_construct(
        address=recipient.address, notify=tuple(sorted(recipient.notify)), orcpt=recipient.orcpt
    )


def unpack(wire: WireMessage, content: Content) -> Submission:
    """Return the submission that was packed.

    Args:
        wire: It, without its content.
        content: Its content.

    Raises:
        ValueError: It breaks a rule of envelopes or submissions; the text says which.
    """
    recipients = tuple(
        Recipient.parse(each)
        if isinstance(each, str)
        else Recipient.parse(each.address, each.notify, each.orcpt)
        for each in wire.recipients
    )
    message = Message(
        wire.id,
        Message.parse_sender(wire.sender),
        recipients,
        content,
        wire.envid,
        wire.ret,
        wire.require_tls,
        wire.smtputf8,
    )
    return Submission(
        message=message,
        submitted_at=wire.submitted_at,
        tenant=wire.tenant,
        job=wire.job,
        priority=wire.priority,
        not_before=wire.not_before,
        deadline=wire.deadline,
        is_held=wire.is_held,
    )


def facts_of(wire: WireMessage) -> ContentFacts:
    """Return what the sender of a message says of its content."""
    return ContentFacts(*wire.facts)


def pack_selection(selection: Selection) -> WireSelection:
    """Return a selection as it goes over the wire."""
    return WireSelection(**{**asdict(selection), "states": tuple(sorted(selection.states))})


# ---- answers ------------------------------------------------------------------------------------


class Failure(_Strict):
    """Why a request failed: an error's class and text."""

    kind: str
    text: str


class Reply(_Strict):
    """What comes back: an answer in values of JSON, or a failure."""

    n: int
    answer: Any = None
    failure: Failure | None = None


#: Errors that come out at the other end as they are.
_KINDS: Final = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, StoreError)
}


def failed(n: int, error: Exception) -> bytes:
    """Return the reply to a request that failed."""
    kind = type(error).__name__ if isinstance(error, StoreError | ValueError) else "internal"
    return Reply(n=n, failure=Failure(kind=kind, text=str(error)[:1000])).model_dump_json().encode()


def error_of(failure: Failure) -> Exception:
    """Return the error that a reply tells of."""
    if failure.kind == "ContentsDamagedError":
        return errors.StoreDamagedError(failure.text)
    if failure.kind == "ValueError":
        return ValueError(failure.text)
    return _KINDS.get(failure.kind, StoreError)(failure.text)


def answered(n: int, answer: Any) -> bytes:
    """Return the reply with an answer, in values of JSON."""
    return Reply(n=n, answer=answer).model_dump_json().encode()


def read_reply(head: bytes) -> Reply:
    """Read a reply.

    Raises:
        WireError: It is none.
    """
    try:
        return Reply.model_validate_json(head)
    except ValidationError as error:
        raise WireError(f"no reply: {_first(error)}") from None


# Answers of each kind: to values of JSON, and back.  Who reads them trusts the worker to mean well,
# not to be of the same release: what does not fit is a `WireError`.


def dump_answers(answers: Sequence[Answer]) -> list[Any]:
    """Return answers to a submission, in values of JSON."""
    return [
        [each.id, each.is_new] if isinstance(each, Accepted) else [each.id, each.text]
        for each in answers
    ]


def load_answers(answer: Any, count: int) -> tuple[Answer, ...]:
    """Return the answers to a submission of so many messages."""
    found = _load(_ANSWERS, answer)
    if len(found) != count:
        raise WireError(f"{len(found)} answers to {count} messages")
    return tuple(
        Accepted(name, what) if isinstance(what, bool) else Refused(name, what)
        for name, what in found
    )


def dump_page(page: Page) -> dict[str, Any]:
    """Return a page of entries, in values of JSON."""
    return {"entries": [_dump_entry(entry) for entry in page.entries], "next": page.next}


def _dump_entry(entry: Entry) -> list[Any]:
    return [getattr(entry, name) for name in Entry.__slots__]


class _WirePage(_Strict):
    entries: list[list[Any]]
    next: int | None


def load_page(answer: Any) -> Page:
    """Return a page of entries."""
    page = _load(_PAGE, answer)
    entries = [dict(zip(Entry.__slots__, values, strict=False)) for values in page.entries]
    try:
        return Page(tuple(map(_load_entry, entries)), page.next)
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"no entry: {error}") from None


def _load_entry(facts: dict[str, Any]) -> Entry:
    result = facts["result"]
    return Entry(
        **facts
        | {"state": State(facts["state"]), "result": None if result is None else Result(result)}
    )


def dump_status(status: Status) -> dict[str, Any]:
    """Return a status, in values of JSON."""
    return {
        "counts": dump_counts(status.counts),
        "backlog": [asdict(each) for each in status.backlog],
        "worker": status.worker,
    }


class _WireStatus(_Strict):
    counts: dict[str, Any]
    backlog: list[dict[str, Any]]
    worker: dict[str, Any] | None


def load_status(answer: Any) -> Status:
    """Return a status."""
    found = _load(_STATUS, answer)
    backlog = tuple(_load_backlog(each) for each in found.backlog)
    return Status(counts=load_counts(found.counts), backlog=backlog, worker=found.worker)


def _load_backlog(facts: Mapping[str, Any]) -> Backlog:
    try:
        return Backlog(**{**facts, "site": SiteState(**facts["site"])})
    except (KeyError, TypeError) as error:
        raise WireError(f"no backlog: {error}") from None


def dump_counts(counts: Counts) -> dict[str, Any]:
    """Return counts, in values of JSON."""
    return asdict(counts)


def load_counts(answer: Any) -> Counts:
    """Return counts."""
    try:
        return Counts(**answer)
    except TypeError as error:
        raise WireError(f"no counts: {error}") from None


def load_number(answer: Any) -> int:
    """Return a number."""
    return _load(_NUMBER, answer)


def _load(adapter: TypeAdapter[_T], answer: Any) -> _T:
    try:
        return adapter.validate_python(answer)
    except ValidationError as error:
        raise WireError(f"no answer: {_first(error)}") from None


_ANSWERS: Final = TypeAdapter(list[tuple[str, bool | str]])
_PAGE: Final = TypeAdapter(_WirePage)
_STATUS: Final = TypeAdapter(_WireStatus)
_NUMBER: Final = TypeAdapter(int)
