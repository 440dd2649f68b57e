"""The set-up of a session: greeting and hello, and the QUIT at its end.

Returns `Trouble` for everything a server may do; raises only for bugs of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.delivery.session import SessionLost
from engine.delivery.verdict import Trouble, lost, refused
from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities
from engine.smtp.command import QUIT, Kind, hello

if TYPE_CHECKING:
    from engine.delivery.session import Session


async def set_up(
    session: Session, *, name: str, esmtp: bool = True, lmtp: bool = False
) -> Capabilities | Trouble:
    """Hear the greeting and say hello.

    EHLO first; HELO after any complete refusal of it (RFC 5321 §3.2), and with `esmtp=False` at
    once.  LHLO has no fallback (RFC 2033 §4.1).

    Returns:
        What the server offers, or what went wrong.  After a refusal the session still stands, so
        that QUIT can be said.
    """
    try:
        greeting = await session.reply()
        if not greeting.reply.is_positive:
            return refused(greeting.command, greeting.reply, is_pipelined=False)
        if lmtp:
            return await _hello(session, Kind.LHLO, name)
        if not esmtp:
            return await _hello(session, Kind.HELO, name)
        answer = await _hello(session, Kind.EHLO, name)
        if isinstance(answer, Capabilities) or not session.is_usable:
            return answer
        return await _hello(session, Kind.HELO, name)
    except SessionLost as ending:
        return lost(ending, ending.command, is_pipelined=False, is_content_written=False)


async def _hello(session: Session, kind: Kind, name: str) -> Capabilities | Trouble:
    (answer,) = await session.exchange(hello(kind, name))
    if not answer.reply.is_positive:
        return refused(answer.command, answer.reply, is_pipelined=False)
    return NO_CAPABILITIES if kind is Kind.HELO else Capabilities.parse(answer.reply)


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
