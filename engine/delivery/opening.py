"""The opening of a session: greeting, hello, authentication; and the QUIT at its end.

`Opening` does it step by step before any mail; returns `Trouble` for everything a server may do, and
raises only for bugs of ours.  Not here: what is said of a message (`engine.delivery.transaction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.delivery.session import SessionLost
from engine.delivery.verdict import Trouble, lost, refused
from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities
from engine.smtp.command import QUIT, Kind, hello

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.delivery.session import Session
    from engine.smtp.reply import Reply

#: By these names, in greeting or hello, servers are known that take mail transactions in flight,
#: behind a final dot and by BDAT (tried with Exim 4.96 and Postfix 3.7).
_KNOWN_TO_STREAM: Final = (b"exim", b"postfix")


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that stands.

    Attributes:
        offered: What the server offers.
        is_known_to_stream: Whether greeting or hello name a server that takes several transactions
            in flight.
    """

    offered: Capabilities
    is_known_to_stream: bool = False


def is_known_to_stream(*replies: Reply) -> bool:
    """Whether greeting or hello name a server that takes several transactions in flight."""
    text = b" ".join([line for reply in replies for line in reply.lines[:1]]).lower()
    return any(name in text for name in _KNOWN_TO_STREAM)


async def set_up(
    session: Session,
    *,
    name: str,
    esmtp: bool = True,
    lmtp: bool = False,
    tell: Callable[[Kind, Reply], None] = lambda _kind, _reply: None,
) -> Opened | Trouble:
    """Hear the greeting and say hello.

    EHLO first; HELO after any complete refusal of it (RFC 5321 §3.2), and with `esmtp=False` at
    once.  LHLO has no fallback (RFC 2033 §4.1).

    Args:
        session: It has just begun.
        name: Our name.
        esmtp: Whether EHLO is tried.
        lmtp: Whether LMTP is spoken.
        tell: Told of each reply, with the kind of command it answers.

    Returns:
        What the server offers, or what went wrong.  After a refusal the session still stands, so
        that QUIT can be said.
    """
    try:
        greeting = await session.reply()
        tell(Kind.CONNECT, greeting.reply)
        if not greeting.reply.is_positive:
            return refused(greeting.command, greeting.reply, is_pipelined=False)
        first = Kind.LHLO if lmtp else Kind.EHLO if esmtp else Kind.HELO
        (answer,) = await session.exchange(hello(first, name))
        tell(first, answer.reply)
        if not answer.reply.is_positive and first is Kind.EHLO and session.is_usable:
            first = Kind.HELO
            refusal = answer.reply.text
            try:
                (answer,) = await session.exchange(hello(first, name))
            except SessionLost as ending:
                return lost(
                    ending,
                    ending.command,
                    is_pipelined=False,
                    is_content_written=False,
                    remark=f"EHLO response was: {refusal}",
                )
            tell(first, answer.reply)
    except SessionLost as ending:
        return lost(ending, ending.command, is_pipelined=False, is_content_written=False)
    if not answer.reply.is_positive:
        return refused(answer.command, answer.reply, is_pipelined=False)
    offered = NO_CAPABILITIES if first is Kind.HELO else Capabilities.parse(answer.reply)
    return Opened(offered, is_known_to_stream(greeting.reply, answer.reply))


async def say_quit(session: Session) -> None:
    """Say QUIT and wait for the answer as long as `Timeouts.quit` allows; nothing depends on it.

    RFC 5321 §4.1.1.10 wants the reply to be waited for; what was delivered stays delivered
    whatever becomes of it.
    """
    if not session.is_usable:
        return
    try:
        await session.exchange(QUIT)
    except SessionLost:
        return
