"""A message on its way into a store of queued mail, and what of it can be kept.  Knows no I/O.

Made by whoever submits, in this process or by the control socket; `engine.queue.store` says what a
store does with it.  All times are wall-clock seconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import SubmitError
from engine.queue.values import is_text

if TYPE_CHECKING:
    from engine.message import Message

#: The range that the SMTP extension MT-PRIORITY has.
MIN_PRIORITY: Final = -9
MAX_PRIORITY: Final = 9
#: Recipients of one message: it is taken as a whole, and others wait meanwhile.
MAX_RECIPIENTS: Final = 100_000
#: Characters of a message's id, of a tenant's and of a job's name.
MAX_NAME: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A message and how it is to be queued.

    Attributes:
        message: It; its id is what makes submitting it twice harmless.
        submitted_at: When.
        tenant: Whose mail it is; tenants share what can be sent.
        job: What it is part of; jobs share what their tenant can send.
        priority: From -9 to 9; a higher one goes first, always.
        not_before: When it may be tried at the earliest; `None`: at once.
        deadline: When it is given up, unless it is held or on its way just then; `None`: when the
            retry rules say so.
        is_held: Whether it waits for a person first.

    Raises:
        SubmitError: An id, a name or a number that cannot be kept; the text says which.
    """

    message: Message
    submitted_at: float
    tenant: str = ""
    job: str = ""
    priority: int = 0
    not_before: float | None = None
    deadline: float | None = None
    is_held: bool = False

    def __post_init__(self) -> None:
        _check_name("id", self.message.id, least=1)
        _check_name("tenant", self.tenant)
        _check_name("job", self.job)
        if (count := len(self.message.recipients)) > MAX_RECIPIENTS:
            raise SubmitError(
                f"message {self.message.id!r} has {count} recipients; allowed are "
                f"{MAX_RECIPIENTS}: split it"
            )
        if not MIN_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise SubmitError(
                f"priority {self.priority}; allowed are {MIN_PRIORITY} to {MAX_PRIORITY}"
            )
        for name in ("submitted_at", "not_before", "deadline"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < MAX_TIME:
                raise SubmitError(f"{name} {value}; allowed are seconds since the epoch")
        for recipient in self.message.recipients:
            if recipient.orcpt is not None:
                _check_text("orcpt", recipient.orcpt)


#: Year 5138: whoever passes milliseconds is told.
MAX_TIME: Final = 1e11


def _check_name(what: str, text: str, least: int = 0) -> None:
    if not least <= len(text) <= MAX_NAME:
        raise SubmitError(
            f"{what} of {len(text)} characters; allowed are {least} to {MAX_NAME} characters"
        )
    _check_text(what, text)


def _check_text(what: str, text: str) -> None:
    if not is_text(text):
        raise SubmitError(f"{what} {text!a}: allowed is text that UTF-8 can encode")
    if "\0" in text:
        raise SubmitError(f"{what} {text!r}: allowed is text without NUL")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message is in the store for good.

    Attributes:
        id: Its id.
        is_new: Whether this submission put it there; `False`: it was there, or had been there and
            is done with already.
    """

    id: str
    is_new: bool
