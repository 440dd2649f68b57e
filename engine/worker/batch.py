"""Read batch lines: JSON objects in, envelopes and contents out.  Knows no I/O.

Called by `engine.worker.intake` for each line of a JSON Lines file.  Strict: what is not known or
not of the right type is refused with what was found and what is allowed, and costs no other line.
Not here: files of contents, which a line may name (`Entry.content` is then a path).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from engine.content import MemoryContent, from_octets, from_text
from engine.message import Message, Recipient
from engine.queue.submission import MAX_NAME, MAX_PRIORITY, MIN_PRIORITY
from engine.showing import show, show_key, suggest
from engine.units import parse_moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.message import Notify
    from engine.smtp.address import Mailbox

#: Octets of one line; a longer one is refused without being held in memory.
MAX_LINE_OCTETS: Final = 64 * 1024 * 1024
#: The problem of a line that `LineSplitter` refuses.
TOO_LONG: Final = "found a line of more than 64 MiB; allowed are lines up to that"

_CONTENTS: Final = ("message", "content", "content_base64")
_KEYS: Final = (
    "id",
    "sender",
    "recipients",
    *_CONTENTS,
    "envid",
    "ret",
    "require_tls",
    "smtputf8",
)
#: Known as well where lines are for the queue.
_QUEUE_KEYS: Final = ("tenant", "job", "priority", "not_before", "deadline", "hold")
_RECIPIENT_KEYS: Final = ("address", "notify", "orcpt")
_NOTIFY: Final = ("success", "failure", "delay", "never")

_CONTENT_ALLOWED: Final = 'exactly one of "message", "content" and "content_base64"'
_SENDER_ALLOWED: Final = 'an address, or "" for the null path'
_RECIPIENTS_ALLOWED: Final = "a list of one recipient or more"
_RECIPIENT_ALLOWED: Final = 'an address, or an object with "address"'
_NOTIFY_ALLOWED: Final = '"success", "failure" and "delay" in any number, or "never" alone'
_ENVID_ALLOWED: Final = "1 to 100 printable ASCII characters (RFC 3461 §4.4)"
_ORCPT_ALLOWED: Final = '"type;address", up to 500 characters, as "rfc822;a@b.test" (RFC 3461 §4.2)'

_NAME_ALLOWED: Final = f"a text of {MAX_NAME} characters at most, without NUL"

_ENVID: Final = re.compile(r"[ -~]{1,100}")
_ORCPT: Final = re.compile(r"[A-Za-z0-9-]{1,30};[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,500}")
#: Grow to three characters on the wire (RFC 3461 §4, xtext).
_ENCODED: Final = re.compile(r"[ +=]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line that can be sent.

    Attributes:
        id: As given, `None` where it was not.
        sender: The reverse-path, `None` for the null path.
        recipients: Those that are well-formed, at least one.
        content: The content, or the file to read it from, as the line has it.
        envid: As in `Message`.
        ret: As in `Message`.
        require_tls: As in `Message`.
        smtputf8: As in `Message`.
        wishes: How it is to be queued, where lines are for the queue.
    """

    id: str | None
    sender: Mailbox | None
    recipients: tuple[Recipient, ...]
    content: MemoryContent | Path
    envid: str | None = None
    ret: Literal["full", "hdrs"] | None = None
    require_tls: bool = False
    smtputf8: bool = False
    wishes: Wishes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a line wants its message queued; what it does not say is `None`.

    Attributes:
        tenant: As in `engine.queue.submission.Submission`, as is all here.
        job: Its job.
        priority: Its priority.
        not_before: As written, see `engine.units.parse_moment`.
        deadline: The same.
        hold: Whether it waits for a person first.
    """

    tenant: str | None = None
    job: str | None = None
    priority: int | None = None
    not_before: str | float | None = None
    deadline: str | float | None = None
    hold: bool | None = None


def read_entry(line: bytes, *, is_for_queue: bool = False) -> tuple[Entry | None, tuple[str, ...]]:
    """Read one line.

    Args:
        line: Its octets, without the line end.
        is_for_queue: Whether it may say how its message is queued.

    Returns:
        What can be sent of it, `None` if nothing can; and its problems, each with the key, what
        was found and what is allowed.  A malformed recipient does not hold up those beside it.
    """
    reader = _LineReader(is_for_queue=is_for_queue)
    return reader.read(line), tuple(reader.problems)


class LineSplitter:
    """Cuts a stream into numbered lines, and holds no more than one line of allowed length."""

    def __init__(self, limit: int = MAX_LINE_OCTETS) -> None:
        self._limit = limit
        self._number = 1
        self._parts: list[bytes] = []  # of the line that is not complete yet
        self._octets = 0

    def feed(self, octets: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Take the next octets, yield the lines that are complete now: number, from 1, and octets.

        The octets are without the LF, and `None` where there are too many; all lines must be
        taken before more is fed.
        """
        *complete, rest = octets.split(b"\n")
        for part in complete:
            self._add(part)
            yield self._take()
        self._add(rest)

    def finish(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield the last line where no LF ended it."""
        if self._octets:
            yield self._take()

    def _add(self, part: bytes) -> None:
        self._octets += len(part)
        if self._octets > self._limit:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _take(self) -> tuple[int, bytes | None]:
        line = b"".join(self._parts) if self._octets <= self._limit else None
        number, self._number = self._number, self._number + 1
        self._parts.clear()
        self._octets = 0
        return number, line


# ---- one line -----------------------------------------------------------------------------------

_Json: TypeAlias = dict[str, object]


class _DuplicateKeyError(ValueError):
    """An object has one key twice; which of them counts would be a guess."""


class _Checks:
    """Looks at the keys of one object and collects problems."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def refuse(self, key: str, found: str, allowed: str) -> None:
        self.problems.append(f"{key}: found {found}; allowed {allowed}")

    def check_keys(self, record: _Json, known: tuple[str, ...]) -> None:
        for key in record:
            if key not in known:
                self.refuse(show_key(key), "an unknown key", suggest(key, known))

    # In what may be left out, null is the same as leaving it out: that is JSON's word for it.

    def text(
        self, record: _Json, key: str, is_allowed: Callable[[str], bool], allowed: str
    ) -> str | None:
        value = record.get(key)
        if value is None or (isinstance(value, str) and is_allowed(value)):
            return value
        self.refuse(key, _show(value), allowed)
        return None

    def flag(self, record: _Json, key: str) -> bool:
        value = record.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(key, _show(value), "true or false")
        return value is True


class _LineReader(_Checks):
    """Reads one line."""

    def __init__(self, *, is_for_queue: bool) -> None:
        super().__init__()
        self._is_for_queue = is_for_queue

    def read(self, line: bytes) -> Entry | None:
        record = self._parse(line)
        if record is None:
            return None
        self.check_keys(record, _KEYS + _QUEUE_KEYS if self._is_for_queue else _KEYS)
        identity = self.text(record, "id", _is_id, "a text that is not empty")
        sender = self._sender(record)
        content = self._content(record)
        envid = self.text(record, "envid", _is_envid, _ENVID_ALLOWED)
        ret = self.text(record, "ret", ("full", "hdrs").__contains__, '"full" or "hdrs"')
        require_tls, smtputf8 = self.flag(record, "require_tls"), self.flag(record, "smtputf8")
        wishes = self._wishes(record) if self._is_for_queue else None
        is_good = not self.problems
        recipients = self._recipients(record)
        if not (is_good and recipients and content is not None):
            return None
        return Entry(
            identity,
            sender,
            recipients,
            content,
            envid,
            cast("Literal['full', 'hdrs'] | None", ret),
            require_tls,
            smtputf8,
            wishes,
        )

    def _wishes(self, record: _Json) -> Wishes:
        hold = self.flag(record, "hold") if record.get("hold") is not None else None
        return Wishes(
            tenant=self.text(record, "tenant", _is_name, _NAME_ALLOWED),
            job=self.text(record, "job", _is_name, _NAME_ALLOWED),
            priority=self._priority(record),
            not_before=self._moment(record, "not_before"),
            deadline=self._moment(record, "deadline"),
            hold=hold,
        )

    def _priority(self, record: _Json) -> int | None:
        value = record.get("priority")
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is None or (is_whole and MIN_PRIORITY <= cast("int", value) <= MAX_PRIORITY):
            return cast("int | None", value)
        allowed = f"a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}"
        self.refuse("priority", _show(value), allowed)
        return None

    def _moment(self, record: _Json, key: str) -> str | float | None:
        value = record.get(key)
        if value is None:
            return None
        try:
            # The time of any run will do: what a duration is from is not known here.
            parse_moment(value, 0.0)
        except ValueError as error:
            self.refuse(key, _show(value), str(error))
            return None
        return cast("str | float", value)

    def _parse(self, line: bytes) -> _Json | None:
        try:
            record = _DECODER.decode(line.decode())
        except UnicodeDecodeError as error:
            self.problems.append(
                f"found an octet that is not UTF-8 at position {error.start + 1}; allowed JSON"
            )
        except json.JSONDecodeError as error:
            what = error.msg[:1].lower() + error.msg[1:]
            self.problems.append(f"found no JSON: {what} at position {error.pos + 1}; allowed JSON")
        except _DuplicateKeyError as error:
            self.problems.append(f"found the key {error} twice; allowed once")
        except (RecursionError, ValueError):
            self.problems.append("found a value too deep or a number too long; allowed JSON")
        else:
            if isinstance(record, dict):
                return record
            self.problems.append(f"found {_show(record)}; allowed an object")
        return None

    def _sender(self, record: _Json) -> Mailbox | None:
        if "sender" not in record:
            self.refuse("sender", "nothing", _SENDER_ALLOWED)
            return None
        value = record["sender"]
        if not isinstance(value, str):
            self.refuse("sender", _show(value), _SENDER_ALLOWED)
            return None
        try:
            return Message.parse_sender(value)
        except ValueError as error:
            self.problems.append(f"sender: {error}")
            return None

    def _content(self, record: _Json) -> MemoryContent | Path | None:
        given = [key for key in _CONTENTS if record.get(key) is not None]
        if len(given) != 1:
            self.problems.append(
                f"found {' and '.join(map(show, given)) or 'no content'}; allowed {_CONTENT_ALLOWED}"
            )
            return None
        (key,) = given
        value = record[key]
        if not isinstance(value, str) or (key == "message" and not _is_path(value)):
            allowed = "the path of a file" if key == "message" else "a text"
            self.refuse(key, _show(value), allowed)
            return None
        if key == "message":
            return Path(value)
        try:
            if key == "content":
                return from_text(value)
            return from_octets(base64.b64decode(value, validate=True))
        except binascii.Error:
            self.refuse(key, "no base64", "base64 without line ends (RFC 4648 §4)")
        except ValueError as error:
            self.problems.append(f"{key}: {error}")
        return None

    def _recipients(self, record: _Json) -> tuple[Recipient, ...]:
        values = record.get("recipients")
        if not isinstance(values, list) or not values:
            found = _show(values) if "recipients" in record else "nothing"
            self.refuse("recipients", found, _RECIPIENTS_ALLOWED)
            return ()
        found_good = []
        for index, value in enumerate(values):
            try:
                found_good.append(_read_recipient(value))
            except _RecipientError as error:
                self.problems += (f"recipients[{index}]{problem}" for problem in error.problems)
        return tuple(found_good)


class _RecipientError(ValueError):
    """A recipient cannot be used; its problems begin with the place inside it."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


def _read_recipient(value: object) -> Recipient:
    if isinstance(value, str):
        return _parse_recipient(value)
    if not isinstance(value, dict):
        raise _RecipientError(f": found {_show(value)}; allowed {_RECIPIENT_ALLOWED}")
    checks = _Checks()
    checks.check_keys(value, _RECIPIENT_KEYS)
    address = value.get("address")
    notify = [] if value.get("notify") is None else value["notify"]
    orcpt = checks.text(value, "orcpt", _is_orcpt, _ORCPT_ALLOWED)
    if not isinstance(address, str):
        checks.refuse("address", _show(address), "an address")
    if not _is_notify(notify):
        checks.refuse("notify", _show(notify), _NOTIFY_ALLOWED)
    if checks.problems:
        raise _RecipientError(*(f".{problem}" for problem in checks.problems))
    return _parse_recipient(cast("str", address), cast("list[Notify]", notify), orcpt)


def _parse_recipient(
    address: str, notify: list[Notify] | tuple[()] = (), orcpt: str | None = None
) -> Recipient:
    try:
        return Recipient.parse(address, notify, orcpt)
    except ValueError as error:
        raise _RecipientError(f": {error}") from None


def _is_notify(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(word, str) and word in _NOTIFY for word in value)
        and ("never" not in value or len(value) == 1)
    )


def _is_id(text: str) -> bool:
    return bool(text) and not _SURROGATE.search(text)


def _is_name(text: str) -> bool:
    return len(text) <= MAX_NAME and "\0" not in text and not _SURROGATE.search(text)


def _is_envid(text: str) -> bool:
    return bool(_ENVID.fullmatch(text)) and len(text) + 2 * len(_ENCODED.findall(text)) <= 100


def _is_orcpt(text: str) -> bool:
    return len(text) <= 500 and bool(_ORCPT.fullmatch(text))


def _is_path(text: str) -> bool:
    return bool(text) and "\0" not in text and not _SURROGATE.search(text)


def _show(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    return "null" if value is None else show(value)


def _object(pairs: list[tuple[str, object]]) -> _Json:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(show(next(key for key in keys if keys.count(key) > 1)))
    return record


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)
