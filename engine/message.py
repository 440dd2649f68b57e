"""What goes in: a message, that is an envelope and a content (RFC 5321 §2.3.1).

Made by whoever submits; frozen from then on.  Validation happens in the constructors, so a message
that exists can be sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from engine.smtp.address import Mailbox, parse_path, parse_reverse_path

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.smtp.content import ContentFacts

Notify = Literal["success", "failure", "delay", "never"]

# RFC 3461 §4.2: the type is an atom, the address goes out as xtext; 500 characters together.
_ORCPT: Final = re.compile(r"[A-Za-z0-9-]+;[^\x00-\x1f\x7f]+")
_MAX_ORCPT: Final = 500
_MAX_ENVID: Final = 100
# Nearly nobody asks for reports: whoever has this very set needs no further look.
_NOT_ASKED: Final[frozenset[Notify]] = frozenset()


class Content(Protocol):
    """Header section and body as octets with CRLF line ends, and what is known about them.

    `engine.content` makes them from octets, text and files.
    """

    @property
    def facts(self) -> ContentFacts:
        """Size, 8-bit-ness and the like, found when the content was made."""
        ...

    @property
    def octets(self) -> bytes | None:
        """The whole content where it is held in memory, else `None`: then read `chunks`."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Read the content from the start, in pieces of at most 64 KiB."""
        ...


@dataclass(frozen=True, slots=True)
class Recipient:
    """One forward-path of an envelope (RFC 5321 §4.1.1.3) and its delivery-report wishes.

    Attributes:
        address: As the submitter wrote it; it names the recipient in outcomes.
        mailbox: The same, parsed.
        notify: When to report (RFC 3461 §4.1); empty when not asked.
        orcpt: The original recipient, `type;address` as in RFC 3461 §4.2 but not yet in xtext, or
            `None`.

    Raises:
        ValueError: `notify` holds something else, or joins `never` with others; `orcpt` is none.
        TypeError: A part is of another type, such as an address that was not parsed.
    """

    address: str
    mailbox: Mailbox
    notify: frozenset[Notify] = _NOT_ASKED
    orcpt: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mailbox, Mailbox):
            raise _wrong_type("mailbox", self.mailbox, "a Mailbox, as Recipient.parse makes it")
        if not isinstance(self.address, str):
            raise _wrong_type("address", self.address, "a text")
        if self.notify is not _NOT_ASKED:
            _check_notify(self.notify)
        if self.orcpt is not None:
            _check_orcpt(self.orcpt)

    @classmethod
    def parse(
        cls, address: str, notify: Iterable[Notify] = (), orcpt: str | None = None
    ) -> Recipient:
        """Make a recipient of `local-part@domain`, with or without angle brackets.

        Args:
            address: It.
            notify: When to report: any iterable, such as `["never"]`.
            orcpt: As the class says.

        Raises:
            AddressSyntaxError: The address is no mailbox.
            ValueError: As the class says.
            TypeError: As the class says.
        """
        if not isinstance(address, str):
            raise _wrong_type("address", address, "a text, as in bob@example.org")
        wishes = _NOT_ASKED if notify == () else _read_notify(notify)
        return cls(address, parse_path(address), wishes, orcpt)


@dataclass(frozen=True, slots=True)
class Message:
    """One submission: envelope plus content.

    Attributes:
        id: Names the message in outcomes, events and logs; `""`: the engine numbers it.
        reverse_path: Where bounces go, from `parse_sender`; `None` for the null path `<>`
            (RFC 5321 §4.5.5).
        recipients: At least one, from `Recipient.parse`; given as any iterable, kept as a tuple.
        content: What is sent after DATA, from `from_text`, `from_octets`, `from_binary` or
            `from_file`; as it is, a Bcc field too.
        envid: Envelope identifier for delivery reports (RFC 3461 §4.4), not yet in xtext.
        ret: What a report returns: the `full` message or its `hdrs` (RFC 3461 §4.3).
        require_tls: Every hop must use verified TLS (RFC 8689 §2).
        smtputf8: The header section holds UTF-8, so each hop must take SMTPUTF8 (RFC 6531 §3.2).

    Raises:
        ValueError: No recipients, an `envid` that is none, or another `ret`.
        TypeError: A part is of another type, such as an address that was not parsed.
    """

    id: str
    reverse_path: Mailbox | None
    recipients: tuple[Recipient, ...]
    content: Content
    envid: str | None = None
    ret: Literal["full", "hdrs"] | None = None
    require_tls: bool = False
    smtputf8: bool = False

    if TYPE_CHECKING:
        # For checkers alone: what is taken is wider than what is kept.
        def __init__(
            self,
            id: str,  # noqa: A002 - the field's name
            reverse_path: Mailbox | None,
            recipients: Iterable[Recipient],
            content: Content,
            envid: str | None = None,
            ret: Literal["full", "hdrs"] | None = None,
            require_tls: bool = False,
            smtputf8: bool = False,
        ) -> None: ...

    def __post_init__(self) -> None:
        # Here and not where it is sent: there it would hit the mail of others.
        if not isinstance(self.id, str):
            raise _wrong_type("id", self.id, "a text")
        if not (self.reverse_path is None or isinstance(self.reverse_path, Mailbox)):
            raise _wrong_type("reverse_path", self.reverse_path, "what Message.parse_sender makes")
        if not isinstance(self.recipients, tuple):
            object.__setattr__(self, "recipients", _read_recipients(self.recipients))
        for recipient in self.recipients:
            if not isinstance(recipient, Recipient):
                place = f"recipients[{self.recipients.index(recipient)}]"
                raise _wrong_type(place, recipient, "what Recipient.parse makes")
        if not hasattr(self.content, "facts"):
            makers = "what from_text, from_octets, from_binary and from_file make"
            raise _wrong_type("content", self.content, makers)
        if not self.recipients:
            raise ValueError(f"message {self.id!r} has no recipients; at least one is needed")
        if self.envid is not None:
            _check_envid(self.envid)
        if self.ret is not None:
            _check_ret(self.ret)
        if self.require_tls is not False:
            _check_flag("require_tls", self.require_tls)
        if self.smtputf8 is not False:
            _check_flag("smtputf8", self.smtputf8)

    def with_id(self, name: str) -> Message:
        """Return the same message under another id."""
        return Message(
            name,
            self.reverse_path,
            self.recipients,
            self.content,
            self.envid,
            self.ret,
            self.require_tls,
            self.smtputf8,
        )

    @staticmethod
    def parse_sender(sender: str) -> Mailbox | None:
        """Read a reverse-path; `""` and `<>` are the null path.

        Raises:
            AddressSyntaxError: Neither a mailbox nor the null path.
            TypeError: No text at all.
        """
        if not isinstance(sender, str):
            allowed = 'a text, as in bob@example.org, or "" for the null path'
            raise _wrong_type("sender", sender, allowed)
        return parse_reverse_path(sender)


def _wrong_type(name: str, value: object, allowed: str) -> TypeError:
    return TypeError(f"{name} is a {type(value).__name__}; allowed is {allowed}")


def _read_recipients(given: Any) -> tuple[Any, ...]:
    # A text is an iterable too, of its letters.
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise _wrong_type("recipients", given, "a list of what Recipient.parse makes")
    return tuple(given)


def _read_notify(given: Any) -> frozenset[Any]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise _wrong_type("notify", given, 'a list of wishes, as in ["never"]')
    wishes = tuple(given)
    for wish in wishes:
        if not isinstance(wish, str):
            raise _wrong_type("a wish in notify", wish, "a text")
    return frozenset(wishes)


def _check_notify(notify: object) -> None:
    if not isinstance(notify, frozenset):
        raise _wrong_type("notify", notify, "a frozenset, as Recipient.parse makes it")
    unknown = notify - {"success", "failure", "delay", "never"}
    if unknown or ("never" in notify and len(notify) > 1):
        raise ValueError(
            f"notify {sorted(map(str, notify))}: "
            "allowed are success, failure and delay together, or never alone"
        )


def _check_orcpt(orcpt: object) -> None:
    if not isinstance(orcpt, str):
        raise _wrong_type("orcpt", orcpt, "a text, as in rfc822;bob@example.org, or None")
    if len(orcpt) > _MAX_ORCPT or not _ORCPT.fullmatch(orcpt):
        raise ValueError(
            f"orcpt {orcpt[:60]!r}: allowed is type;address as in rfc822;bob@example.org, "
            f"without control characters, {_MAX_ORCPT} characters at most"
        )


def _check_envid(envid: object) -> None:
    if not isinstance(envid, str):
        raise _wrong_type("envid", envid, "a text or None")
    if not (0 < len(envid) <= _MAX_ENVID and envid.isascii() and envid.isprintable()):
        raise ValueError(
            f"envid {envid[:60]!r}: allowed are 1 to {_MAX_ENVID} printable US-ASCII characters"
        )


def _check_ret(ret: object) -> None:
    if not isinstance(ret, str):
        raise _wrong_type("ret", ret, "full, hdrs or None")
    if ret not in {"full", "hdrs"}:
        raise ValueError(f"ret {ret[:60]!r}: allowed are full and hdrs, or None")


def _check_flag(name: str, value: object) -> None:
    # A text such as "no" would count as true.
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "True or False")
