"""A message made of one of the standard library's: `message_from_email`.

    email = EmailMessage()
    email["From"], email["To"], email["Subject"] = "me@example.org", "you@example.net", "Hello"
    email.set_content("Hello.")
    await engine.submit(message_from_email(email))

Called by whoever submits; of use for `email.message.EmailMessage` and for what makes older ones, such
as `email.mime` and Django.  Not here: how fields are read (`engine.headers`), and what a content may
be (`engine.content`).
"""

from __future__ import annotations

import copy
from email.errors import HeaderParseError, InvalidHeaderDefect
from email.generator import BytesGenerator
from email.message import Message as Email
from email.policy import SMTPUTF8, EmailPolicy
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from engine.content import from_octets
from engine.headers import Field, Letterhead, read_addresses, recipients_of, sender_of
from engine.message import Message, Recipient

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ADDRESSES: Final = ("from", "sender", "reply-to", "to", "cc", "bcc")


def message_from_email(
    email: Email,
    *,
    sender: str | None = None,
    recipients: Iterable[str] | None = None,
    id: str = "",  # noqa: A002 - as the message calls it
) -> Message:
    """Make a message of one of the standard library's, as `smtplib.SMTP.send_message` reads it.

    Bcc is taken out; nothing is added, neither Date nor Message-ID.  The message given is left as it
    is.  Where an address in its header section is not ASCII that section goes as UTF-8, to hosts with
    SMTPUTF8 alone (RFC 6532 §3.2); domains may be written in A-labels instead.

    Args:
        email: It.
        sender: The reverse-path, for example one for each recipient (VERP); empty is the null path.
            `None`: the address in Sender, else in From.
        recipients: Forward-paths.  `None`: those in To, Cc and Bcc, each once.  Of mail that was
            resent it is the Resent- fields that count (RFC 5322 §3.6.6).
        id: Names the message in outcomes; empty: the engine does.

    Raises:
        AddressSyntaxError: An address is no mailbox.
        ContentError: The content cannot be sent.
        TypeError: It is no message of the standard library's, or `recipients` is a text.
        ValueError: Its fields do not say whom it is from or for; the text names the field.  The two
            above are `ValueError`s as well.
    """
    if not isinstance(email, Email):
        kind = type(email).__name__
        raise TypeError(f"found a {kind}; allowed is an email.message.EmailMessage")
    if isinstance(recipients, str | bytes):
        raise TypeError("recipients is one text; allowed is a list of addresses")
    fields = _read(email)
    head = _head(fields)
    if sender is None:
        sender = _sender(fields, head)
    if recipients is None:
        recipients = _recipients(fields, head)
    is_utf8 = not all(map(str.isascii, _all_addresses(head)))
    return Message(
        id,
        Message.parse_sender(sender),
        tuple(Recipient.parse(address) for address in recipients),
        from_octets(_octets(email, is_utf8=is_utf8)),
        smtputf8=is_utf8,
    )


def _read(email: Email) -> list[tuple[str, Any]]:
    try:
        return email.items()
    except (ArithmeticError, AttributeError, LookupError, HeaderParseError) as error:
        # Of mail that was parsed, fields are read now; the standard library stumbles over some.
        raise ValueError(f"a field of the header section cannot be read: {error!r}") from None


def _head(fields: Iterable[tuple[str, Any]]) -> Letterhead:
    # Surrogates are octets of no known charset.
    made = [
        Field(name.lower(), f"{name}:{body}".encode("utf-8", "replace")) for name, body in fields
    ]
    return Letterhead(tuple(made), b"")


def _refuse_defects(fields: Iterable[tuple[str, Any]], names: Sequence[str]) -> None:
    """Refuse addresses that the standard library has read in part: who stands behind is lost."""
    for name, body in fields:
        if name.lower().removeprefix("resent-") in names:
            defects = [
                defect
                for defect in getattr(body, "defects", ())
                if isinstance(defect, InvalidHeaderDefect)
            ]
            if defects:
                raise ValueError(
                    f"{name}: found {str(body)[:80]!r} and {defects[0]}; "
                    "allowed are addresses with commas between"
                )


def _sender(fields: Iterable[tuple[str, Any]], head: Letterhead) -> str:
    _refuse_defects(fields, ("from", "sender"))
    addresses, problems = sender_of(head)
    if problems:
        raise ValueError("; ".join(problems))
    if len(addresses) != 1:
        raise ValueError(
            f"found {len(addresses)} addresses in From and none in Sender; allowed is one, or sender="
        )
    return addresses[0]


def _recipients(fields: Iterable[tuple[str, Any]], head: Letterhead) -> list[str]:
    _refuse_defects(fields, ("to", "cc", "bcc"))
    addresses, problems = recipients_of(head)
    if problems:
        raise ValueError("; ".join(problems))
    if not addresses:
        raise ValueError("found nobody in To, Cc and Bcc; allowed is one or more, or recipients=")
    return addresses


def _all_addresses(head: Letterhead) -> Iterable[str]:
    for field in head.fields:
        if field.name.removeprefix("resent-") in _ADDRESSES and not field.name.endswith("bcc"):
            yield from read_addresses(field.text)[0]


def _octets(email: Email, *, is_utf8: bool) -> bytes:
    shown = copy.copy(email)  # its fields are then its own, its parts are not
    del shown["Bcc"], shown["Resent-Bcc"]
    policy = email.policy.clone(linesep="\r\n")
    if is_utf8 and isinstance(policy, EmailPolicy):
        policy = policy.clone(utf8=True)
    elif is_utf8:
        policy = SMTPUTF8  # the old one, compat32, hides whole fields in encoded words
        fields = shown.items()
        for name, _ in fields:
            del shown[name]
        for name, value in fields:
            shown[name] = str(value)  # and knows headers that others do not
    out = BytesIO()
    BytesGenerator(out, mangle_from_=False, policy=policy).flatten(shown)
    return out.getvalue()
