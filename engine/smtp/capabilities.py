"""What a server offers: the reply to EHLO or LHLO in, one `Capabilities` value out.  Knows no I/O.

Made by the conversation after each EHLO (the one before STARTTLS is forgotten, RFC 3207 §4.2), read
by the transfer.  Decides nothing: what is offered need not be used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from engine.smtp.reply import show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.smtp.reply import Reply

#: More keywords than any server needs; of later ones only those are kept that mean something here.
MAX_KEYWORDS: Final = 100
MAX_SERVER_NAME: Final = 255

# RFC 5321 §4.1.1.1 has no underscore, Exim's X_PIPE_CONNECT does.  "AUTH=LOGIN PLAIN" is how
# servers from before RFC 2554 §3 announce AUTH; some still send it beside the proper line.
_LINE: Final = re.compile(
    rb"(?:(AUTH)=|([A-Z0-9][A-Z0-9_-]*)(?:[ \t]+|$))(.*)", re.IGNORECASE | re.DOTALL
)
# RFC 1870 §3 lets MAIL declare 20 digits; a larger limit limits nothing.
_SIZE: Final = re.compile(r"[0-9]{1,20}(?= |$)")
# RFC 9422 §3: limit values are 1 to 999999, without leading zeros.
_LIMIT: Final = re.compile(r"([A-Z0-9-]+)=([1-9][0-9]{0,5})", re.IGNORECASE | re.ASCII)
_PIPECONNECT: Final = ("PIPECONNECT", "PIPE_CONNECT", "X_PIPE_CONNECT")
_MEANINGFUL: Final = frozenset(
    {
        *_PIPECONNECT,
        "8BITMIME",
        "AUTH",
        "BINARYMIME",
        "CHUNKING",
        "DSN",
        "ENHANCEDSTATUSCODES",
        "IGNOREQUOTA",
        "LIMITS",
        "PIPELINING",
        "PRDR",
        "REQUIRETLS",
        "SIZE",
        "SMTPUTF8",
        "STARTTLS",
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What LIMITS announces (RFC 9422 §3); `None` where nothing is said.

    Attributes:
        mailmax: Transactions in one session, 1 to 999999.
        rcptmax: RCPT commands in one transaction.
        rcptdomainmax: Different recipient domains in one session.
    """

    mailmax: int | None = None
    rcptmax: int | None = None
    rcptdomainmax: int | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The service extensions a server offers (RFC 5321 §2.2).

    Attributes:
        server_name: The first word of the reply, printable and at most 255 characters; the server
            chose it, so it proves nothing.
        keywords: Every keyword in upper case with the rest of its line; unknown ones too, as long
            as there are at most 100.  The lines of a keyword that comes twice are joined by a
            space.
        size: The largest content in octets (RFC 1870 §3); 0 when there is no fixed limit or the
            number is none, `None` when SIZE is not offered.
        pipelining: PIPELINING (RFC 2920 §3).
        eight_bit_mime: 8BITMIME (RFC 6152 §2).
        smtputf8: SMTPUTF8 (RFC 6531 §3.1).
        dsn: DSN (RFC 3461 §4).
        enhanced_status_codes: ENHANCEDSTATUSCODES (RFC 2034 §3).
        chunking: CHUNKING, that is BDAT (RFC 3030 §2).
        binarymime: BINARYMIME (RFC 3030 §3).
        starttls: STARTTLS (RFC 3207 §4).
        requiretls: REQUIRETLS (RFC 8689 §2).
        prdr: PRDR, one final reply for each recipient on request.
        ignorequota: IGNOREQUOTA, an LMTP server's offer to go over a mailbox's quota.
        pipeconnect: PIPECONNECT under any of its names: the server may be sent commands before
            its greeting.
        auth: SASL mechanisms in upper case, in the order offered (RFC 4954 §3).
        limits: LIMITS (RFC 9422 §3).
    """

    server_name: str = ""
    keywords: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    size: int | None = None
    pipelining: bool = False
    eight_bit_mime: bool = False
    smtputf8: bool = False
    dsn: bool = False
    enhanced_status_codes: bool = False
    chunking: bool = False
    binarymime: bool = False
    starttls: bool = False
    requiretls: bool = False
    prdr: bool = False
    ignorequota: bool = False
    pipeconnect: bool = False
    auth: tuple[str, ...] = ()
    limits: Limits = Limits()

    @classmethod
    def parse(cls, reply: Reply) -> Capabilities:
        """Read a positive reply to EHLO or LHLO; lines that are no keyword are skipped."""
        # RFC 5321 §4.1.1.1: the first line is domain and greeting, whatever it looks like.
        first, *lines = reply.lines
        keywords = _read_keywords(lines)
        return cls(
            server_name=show(b"".join(first.split(None, 1)[:1]))[:MAX_SERVER_NAME],
            keywords=MappingProxyType(keywords),
            size=_read_size(keywords["SIZE"]) if "SIZE" in keywords else None,
            pipelining="PIPELINING" in keywords,
            eight_bit_mime="8BITMIME" in keywords,
            smtputf8="SMTPUTF8" in keywords,
            dsn="DSN" in keywords,
            enhanced_status_codes="ENHANCEDSTATUSCODES" in keywords,
            chunking="CHUNKING" in keywords,
            binarymime="BINARYMIME" in keywords,
            starttls="STARTTLS" in keywords,
            requiretls="REQUIRETLS" in keywords,
            prdr="PRDR" in keywords,
            ignorequota="IGNOREQUOTA" in keywords,
            pipeconnect=any(name in keywords for name in _PIPECONNECT),
            auth=tuple(dict.fromkeys(keywords.get("AUTH", "").upper().split())),
            limits=_read_limits(keywords.get("LIMITS", "")),
        )


#: What a server offers that took HELO.
NO_CAPABILITIES: Final = Capabilities()


def _read_keywords(lines: list[bytes]) -> dict[str, str]:
    keywords: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        keyword = (match[1] or match[2]).decode().upper()
        rest = show(match[3].replace(b"\t", b" "))
        if keyword in keywords:
            keywords[keyword] = f"{keywords[keyword]} {rest}".strip()
        elif len(keywords) < MAX_KEYWORDS or keyword in _MEANINGFUL:
            keywords[keyword] = rest
    return keywords


def _read_size(rest: str) -> int:
    match = _SIZE.match(rest)
    return int(match[0]) if match else 0


def _read_limits(rest: str) -> Limits:
    found: dict[str, int] = {}
    for item in rest.split():
        if match := _LIMIT.fullmatch(item):
            name, value = match[1].upper(), int(match[2])
            # Said twice: the smaller one cannot be wrong.
            found[name] = min(value, found.get(name, value))
    return Limits(found.get("MAILMAX"), found.get("RCPTMAX"), found.get("RCPTDOMAINMAX"))
