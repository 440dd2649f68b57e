"""Mailboxes of an envelope: text in, `Mailbox` values out (RFC 5321 §4.1.2, RFC 6531 §3.3).  Knows no I/O.

Called by `engine.message` for whoever submits, read by routing (where to) and by the command
encoder (what to write).  Looks nothing up, and does not read header fields: their grammar is wider
(RFC 5322 §3.4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NoReturn

import idna

from engine.smtp.errors import AddressSyntaxError

#: RFC 5321 §4.5.3.1.1 to §4.5.3.1.3, in octets.
MAX_LOCAL_PART_OCTETS: Final = 64
MAX_DOMAIN_OCTETS: Final = 255
#: With the angle brackets.
MAX_PATH_OCTETS: Final = 256
#: How many domains are remembered: a list has far fewer of them than addresses.
_REMEMBERED: Final = 16_384

_ATEXT: Final = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
# UTF8-non-ascii of RFC 6531 §3.3, without the C1 controls; surrogates are no UTF-8 at all.
_UTF8: Final = "\u00a0-\ud7ff\ue000-\U0010ffff"

_PLAIN: Final = re.compile(rf"[{_ATEXT}]+(?:\.[{_ATEXT}]+)*")
# The next two match as much as is legal, so that the end of the match is where a text breaks.  They
# are compiled when they are needed first: ranges as wide as UTF-8 take milliseconds of every start.
_DOT_STRING: Final = rf"(?:[{_ATEXT}{_UTF8}]+(?:\.[{_ATEXT}{_UTF8}]+)*)?"
_QUOTED: Final = rf'"(?:[ !#-\[\]-~{_UTF8}]|\\[ -~])*(")?'

# Let-dig and hyphens, and the underscore: RFC 5321 §4.1.2 has none, working mail domains do.
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NOT_IN_LABEL: Final = re.compile(r"[^A-Za-z0-9_-]")
_NUMERIC: Final = re.compile(r"[0-9.]+")

_ALLOWED_PLAIN: Final = (
    "allowed are letters, digits, !#$%&'*+-/=?^_`{|}~ and single dots between them; "
    "other printable characters only within double quotes"
)
_ALLOWED_QUOTED: Final = (
    'allowed within quotes is all but control characters, with a backslash before " and \\'
)
_ALLOWED_LABEL: Final = (
    "labels have 1 to 63 letters, digits, hyphens (not first or last) and underscores"
)


@dataclass(frozen=True, slots=True)
class _Domain:
    """What a domain means, found once for all its mailboxes."""

    routing: str
    literal: str | None


@dataclass(frozen=True, slots=True, init=False)
class Mailbox:
    """`local-part@domain` (RFC 5321 §2.3.11); one that exists may stand in a command.

    Two are equal when they are written alike: only the domain's own host may say that `Joe` is
    `joe` (RFC 5321 §2.4).

    Attributes:
        local_part: As written: case, quotes and quoted pairs kept.
        domain: As written; an address literal with its square brackets.
        octets: What goes between the angle brackets of a path, in UTF-8, as written.
        routing_domain: The domain to look up: lower-case A-labels without trailing dot
            (RFC 5890 §2.3.2.1); for an address literal its normal form: `[192.0.2.1]` or
            `[IPv6:2001:db8::1]`.
        literal: The bare IP address of an address literal (RFC 5321 §4.1.3), else `None`.

    Raises:
        AddressSyntaxError: Not a mailbox; the text says where it breaks and what is allowed.
    """

    local_part: str
    domain: str
    octets: bytes = field(init=False, repr=False, compare=False)
    routing_domain: str = field(init=False, repr=False, compare=False)
    literal: str | None = field(init=False, repr=False, compare=False)

    def __init__(self, local_part: str, domain: str) -> None:
        """Make a mailbox of its two parts."""
        try:
            if len(local_part) > MAX_LOCAL_PART_OCTETS or not _PLAIN.fullmatch(local_part):
                _check_local_part(local_part)
            facts = _read_domain(domain)
            octets = f"{local_part}@{domain}".encode()
            if len(octets) + 2 > MAX_PATH_OCTETS:
                _refuse_length("path with its brackets", len(octets) + 2, MAX_PATH_OCTETS)
        except AddressSyntaxError as error:
            raise AddressSyntaxError(f"{_shown(f'{local_part}@{domain}')}: {error}") from None
        put = object.__setattr__  # it is frozen
        put(self, "local_part", local_part)
        put(self, "domain", domain)
        put(self, "octets", octets)
        put(self, "routing_domain", facts.routing)
        put(self, "literal", facts.literal)

    def __str__(self) -> str:
        return f"{self.local_part}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """Whether it can be written as it is only with SMTPUTF8 (RFC 6531 §3.3)."""
        return not (self.local_part.isascii() and self.domain.isascii())

    def a_label_octets(self) -> bytes | None:
        """Return `octets` with the domain in A-labels (RFC 5890 §2.3.2.1).

        `None` when the path would grow beyond 256 octets.
        """
        if self.domain.isascii():
            return self.octets
        octets = f"{self.local_part}@{self.routing_domain}".encode()
        return octets if len(octets) + 2 <= MAX_PATH_OCTETS else None

    def ascii_octets(self) -> bytes | None:
        """Return `octets` with the domain in A-labels, for a host without SMTPUTF8.

        `None` when there is no such form: the local part is not ASCII (nobody but its own host
        may rewrite it), or the path would grow beyond 256 octets.
        """
        return self.a_label_octets() if self.local_part.isascii() else None


def parse_mailbox(text: str) -> Mailbox:
    """Read `local-part@domain`, without angle brackets, spaces or comments around it.

    Raises:
        AddressSyntaxError: Not a mailbox; the text says where it breaks and what is allowed.
    """
    # The last one: a quoted local part may hold "@", a domain never does.
    local_part, at, domain = text.rpartition("@")
    if not at:
        raise AddressSyntaxError(f'{_shown(text)}: no "@"; allowed is local-part@domain')
    return Mailbox(local_part, domain)


def parse_path(text: str) -> Mailbox:
    """Read a forward-path: a mailbox, with or without angle brackets (RFC 5321 §4.1.2).

    Raises:
        AddressSyntaxError: Not a mailbox, the null path, or a path with a source route, which
            RFC 5321 Appendix C tells clients not to send.
    """
    opening, closing = text[:1] == "<", text[-1:] == ">"
    if opening != closing:
        raise AddressSyntaxError(
            f"{_shown(text)}: angle brackets go around the whole address, or are left out"
        )
    return parse_mailbox(text[1:-1] if opening else text)


@lru_cache(maxsize=1024)  # few senders write to many recipients
def parse_reverse_path(text: str) -> Mailbox | None:
    """Read a reverse-path; `""` and `"<>"` are the null path, `None` (RFC 5321 §4.5.5).

    Raises:
        AddressSyntaxError: Neither a mailbox nor the null path.
    """
    return None if text in ("", "<>") else parse_path(text)


def _check_local_part(text: str) -> None:
    """Pass any legal local part, slowly; the plain ones never come here."""
    if not text:
        raise AddressSyntaxError('nothing before the "@"; the local part has 1 to 64 octets')
    if text.startswith("@") and ":" in text:
        raise AddressSyntaxError(
            'source routes are not supported; write what follows the ":" (RFC 5321 Appendix C)'
        )
    quoted = text.startswith('"')
    match = re.match(_QUOTED if quoted else _DOT_STRING, text)
    end = match.end() if match else 0
    if end < len(text):
        allowed = _ALLOWED_QUOTED if quoted else _ALLOWED_PLAIN
        raise AddressSyntaxError(f"{_spot(text, end)} of the local part; {allowed}")
    if quoted and match is not None and match[1] is None:
        raise AddressSyntaxError("the local part's quotes are not closed")
    if (length := len(text.encode())) > MAX_LOCAL_PART_OCTETS:
        _refuse_length("local part", length, MAX_LOCAL_PART_OCTETS)


@lru_cache(_REMEMBERED)
def _read_domain(text: str) -> _Domain:
    if text.startswith("["):
        return _read_literal(text)
    if text.isascii():
        _check_name(text)
        return _Domain(text.lower(), None)
    if bad := re.search(r"[\x00-\x20\x7f-\x9f\ud800-\udfff]", text):
        raise AddressSyntaxError(f"{_spot(text, bad.start())} of the domain; {_ALLOWED_LABEL}")
    # Before IDNA, whose effort grows with the length.
    if (length := len(text.encode())) > MAX_DOMAIN_OCTETS:
        _refuse_length("domain", length, MAX_DOMAIN_OCTETS)
    try:
        name = idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except UnicodeError as error:
        reason = str(error).encode("unicode_escape").decode()[:120]
        raise AddressSyntaxError(f"no domain name of RFC 5891 §4: {reason}") from None
    # Mapping can make dots and digits of characters that were none.
    _check_name(name)
    return _Domain(name, None)


def _read_literal(text: str) -> _Domain:
    inner = text[1:-1] if text.endswith("]") else ""
    # A zone ("%eth0") means something on one machine only; as IPv4 it fails like all the rest.
    is_ipv6 = inner[:5].lower() == "ipv6:" and "%" not in inner
    try:
        address = str(IPv6Address(inner[5:]) if is_ipv6 else IPv4Address(inner))
    except ValueError:
        raise AddressSyntaxError(
            "no address literal; allowed are [192.0.2.1] and [IPv6:2001:db8::1] (RFC 5321 §4.1.3)"
        ) from None
    return _Domain(f"[IPv6:{address}]" if is_ipv6 else f"[{address}]", address)


def _check_name(name: str) -> None:
    if len(name) > MAX_DOMAIN_OCTETS:
        _refuse_length("domain", len(name), MAX_DOMAIN_OCTETS)
    if not _NAME.fullmatch(name):
        raise AddressSyntaxError(f"{_name_problem(name)}; {_ALLOWED_LABEL}")
    if _NUMERIC.fullmatch(name):
        raise AddressSyntaxError(
            f"the domain is a bare IP address or number; write an address as [{name[:15]}]"
        )


def _name_problem(name: str) -> str:
    if not name:
        return 'nothing behind the "@"'
    if bad := _NOT_IN_LABEL.search(name.replace(".", "-")):
        return f"{_spot(name, bad.start())} of the domain"
    for label in name.split("."):
        if not label:
            return "an empty label in the domain: a dot too many, or one at its end"
        if len(label) > 63:
            return f"a label of {len(label)} octets in the domain"
    return "a hyphen at an end of a label in the domain"


def _refuse_length(part: str, length: int, allowed: int) -> NoReturn:
    raise AddressSyntaxError(
        f"a {part} of {length} octets; allowed are {allowed} (RFC 5321 §4.5.3.1)"
    )


def _spot(text: str, index: int) -> str:
    return f"{text[index]!r} at character {index + 1}"


def _shown(text: str) -> str:
    return f"address {text[:100] + '…' if len(text) > 100 else text!r}"
