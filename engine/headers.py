"""The header section of mail that programs hand in: whom it names, and what it lacks.  Knows no I/O.

Called by `engine.worker.sendmail`: for `-t` recipients stand in To, Cc and Bcc, and mail that a
person or a script wrote may have neither Date nor Message-ID, which a submission agent adds
(RFC 6409 §8).  Nothing else of the content is touched.  `engine.email_message` asks whom mail is
from and for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import format_datetime, formataddr
from typing import TYPE_CHECKING, Final

from engine.smtp.content import normalise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

_CRLF: Final = b"\r\n"
#: Octets of a header section that is looked into.
MAX_HEADER_OCTETS: Final = 1024 * 1024
#: RFC 5322 §2.2: a name is of printable ASCII without the colon; before the colon there may be space
#: (RFC 5322 §4.5).
_NAME: Final = re.compile(rb"([!-9;-~]+)[ \t]*:")
#: The line with which a mailbox file begins each message.
_MBOX: Final = re.compile(rb">?From [^\n]*\n")
_TO: Final = ("to", "cc", "bcc")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a header section.

    Attributes:
        name: In lower case.
        octets: All of it, with its folding and the last line end.
    """

    name: str
    octets: bytes

    @property
    def text(self) -> str:
        """Its body on one line; octets that are no UTF-8 are replaced."""
        _, _, body = self.octets.partition(b":")
        return body.replace(_CRLF, b"").decode("utf-8", "replace").strip()


@dataclass(frozen=True, slots=True)
class Letterhead:
    """A content taken apart.

    Attributes:
        fields: Those of its header section, in order.
        body: What follows, the empty line before it included; empty when there is nothing.
    """

    fields: tuple[Field, ...]
    body: bytes

    def has(self, name: str) -> bool:
        """Whether there is a field of a name, given in lower case."""
        return any(field.name == name for field in self.fields)

    @property
    def octets(self) -> bytes:
        """The content put together."""
        return b"".join([*(field.octets for field in self.fields), self.body])


def take_apart(octets: bytes) -> Letterhead:
    """Find the header section of a content with LF or CRLF line ends.

    The header section ends with the first line that cannot belong to one, as in text that has none
    at all; an empty line is then put before it.  What a mailbox file puts first is dropped.

    Raises:
        ContentError: A NUL or a bare CR; the text names the line.
        ValueError: The header section is too large.
    """
    if mark := _MBOX.match(octets):
        octets = octets[mark.end() :]
    octets = normalise(octets)
    fields: list[Field] = []
    position = 0
    while position < len(octets) and (match := _NAME.match(octets, position)):
        end = _end_of_field(octets, position)
        if end > MAX_HEADER_OCTETS:
            raise ValueError(
                f"a header section of more than {MAX_HEADER_OCTETS} octets; allowed are as many"
            )
        fields.append(Field(match[1].decode().lower(), octets[position:end]))
        position = end
    body = octets[position:]
    if body and not body.startswith(_CRLF):
        body = _CRLF + body
    return Letterhead(tuple(fields), body)


def _end_of_field(octets: bytes, position: int) -> int:
    """Return where a field ends: behind the last line that begins with white space."""
    end = position
    while True:
        end = octets.index(b"\n", end) + 1
        if octets[end : end + 1] not in (b" ", b"\t"):
            return end


# ---- recipients ---------------------------------------------------------------------------------


def recipients_of(head: Letterhead) -> tuple[list[str], list[str]]:
    """Return the addresses that To, Cc and Bcc name, each once, and what is wrong with the fields.

    Mail that was resent goes to those of the last resending, whose fields stand first (RFC 5322
    §3.6.6).
    """
    return _named_in(head, _TO)


def sender_of(head: Letterhead) -> tuple[list[str], list[str]]:
    """Return the address of who sent the mail, and what is wrong with the field that names it.

    That is who stands in Sender, else in From (RFC 5322 §3.6.2); of mail that was resent, who resent
    it last.  Several addresses are several authors, and none of them is said to have sent it.
    """
    named = _named_in(head, ("sender",))
    return named if any(named) else _named_in(head, ("from",))


def _named_in(head: Letterhead, names: Sequence[str]) -> tuple[list[str], list[str]]:
    addresses: dict[str, None] = {}
    problems: list[str] = []
    for field in _addressed(head.fields, names):
        found, wrong = read_addresses(field.text)
        addresses |= dict.fromkeys(found)
        name = field.name.title()
        problems += (f"{name}: {problem}" for problem in wrong)
    return list(addresses), problems


def _addressed(fields: Sequence[Field], names: Sequence[str]) -> Iterator[Field]:
    if not is_resent(fields):
        yield from (field for field in fields if field.name in names)
        return
    seen = set()
    for field in fields:
        if field.name.startswith("resent-"):
            if field.name in seen:
                return
            seen.add(field.name)
            if field.name.removeprefix("resent-") in names:
                yield field


def is_resent(fields: Sequence[Field]) -> bool:
    """Whether somebody resent the mail."""
    return any(field.name.startswith("resent-") for field in fields)


# ---- lists of addresses -------------------------------------------------------------------------

# Of our own: the standard library's readers lose recipients where a comma is missing, and stumble
# over what is not finished.
_TOKEN: Final = re.compile(
    r"""(?P<quoted>"(?:\\.|[^"\\])*")
    |(?P<angle><(?:"(?:\\.|[^"\\])*"|[^<>"])*>)
    |(?P<literal>\[[^\[\]]*\])
    |(?P<end>[,;])
    |(?P<group>:)
    |(?P<text>[^\s"<>\[\],;:()]+)
    |(?P<space>\s+)""",
    re.VERBOSE | re.DOTALL,
)
_IN_COMMENT: Final = re.compile(r"\\.|[^()\\]+|[()]", re.DOTALL)


def read_addresses(text: str) -> tuple[list[str], list[str]]:
    """Read a list of addresses as header fields have it (RFC 5322 §3.4): names, comments, groups.

    Nobody is lost: each element is an address or a problem.  Whether an address is one is not
    looked at.

    Returns:
        The bare addresses, some perhaps without a domain; and what could not be read.
    """
    addresses: list[str] = []
    problems: list[str] = []
    for element in _elements(text):
        address = _address_in(element)
        if address is None:
            found = "".join(part for _, part in element).strip()
            problems.append(f"found {found[:80]!a}; allowed are addresses with commas between")
        elif address:
            addresses.append(address)
    return addresses, problems


def _elements(text: str) -> Iterator[list[tuple[str, str]]]:
    """Yield the tokens of each element; names of groups and comments are left out."""
    element: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        if text[position] == "(" and (end := _end_of_comment(text, position)):
            element.append(("space", " "))
            position = end
            continue
        token = _TOKEN.match(text, position)
        if token is None:
            # Something begins here that does not end.
            element.append(("broken", text[position:]))
            break
        position = token.end()
        kind = token.lastgroup or ""
        if kind == "end":
            yield element
            element = []
        elif kind == "group" and not any(kind in ("angle", "literal") for kind, _ in element):
            element = []
        else:
            element.append((kind, token[0]))
    yield element


def _end_of_comment(text: str, position: int) -> int | None:
    """Return where a comment ends, and with it all comments inside it; `None` where it does not."""
    depth = 0
    for token in _IN_COMMENT.finditer(text, position):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    return None


def _address_in(element: Sequence[tuple[str, str]]) -> str | None:
    """Return the address of an element, empty where it is blank; `None` where it has none."""
    kinds = [kind for kind, _ in element if kind != "space"]
    if not kinds:
        return ""
    if "broken" in kinds or "group" in kinds:
        return None
    if "angle" in kinds:
        if kinds.count("angle") > 1 or kinds[-1] != "angle":
            return None
        return next(part for kind, part in element if kind == "angle")[1:-1].strip() or None
    words = "".join(part for _, part in element).strip()
    has_gap = any(kind == "space" for kind, _ in _trimmed(element))
    return None if has_gap else words


def _trimmed(element: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    first = next(index for index, (kind, _) in enumerate(element) if kind != "space")
    last = next(index for index, (kind, _) in enumerate(reversed(element)) if kind != "space")
    return element[first : len(element) - last]


# ---- what is taken out and added ----------------------------------------------------------------


def without_bcc(head: Letterhead) -> Letterhead:
    """Take out whom others must not see (RFC 5322 §3.6.3)."""
    hidden = ("bcc", "resent-bcc")
    return Letterhead(tuple(each for each in head.fields if each.name not in hidden), head.body)


def completed(
    head: Letterhead, *, now: datetime, name: str, host: str, author: tuple[str, str]
) -> Letterhead:
    """Add the fields that mail must have and this has not (RFC 6409 §8, RFC 5322 §3.6).

    Args:
        head: The mail.
        now: The time, with its zone.
        name: Names the mail, for Message-ID.
        host: Where it is, for Message-ID.
        author: Name and address of who sends it, for From.
    """
    prefix = "Resent-" if is_resent(head.fields) else ""
    wanted = {
        f"{prefix}From": _author(author),
        f"{prefix}Date": format_datetime(now),
        f"{prefix}Message-ID": f"<{name}@{host}>",
    }
    added = [
        Field(key.lower(), f"{key}: {value}\r\n".encode())
        for key, value in wanted.items()
        if not head.has(key.lower())
    ]
    body = head.body or _CRLF
    return Letterhead((*added, *head.fields), body)


def _author(author: tuple[str, str]) -> str:
    name, address = author
    # Without control characters a name cannot begin another field.
    name = "".join(character for character in name if character.isprintable())
    try:
        return formataddr((name, address))
    except UnicodeError:
        # The address is not ASCII: so the name need not be either (RFC 6532 §3.2).
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}" <{address}>' if name else address
