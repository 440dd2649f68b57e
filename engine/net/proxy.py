"""Get through a proxy: run its handshake over a stream that is connected to it.

`engine.net.detour` calls it between connect and TLS.  It knows no proxy protocol, opens and closes
nothing, and tries nothing twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from engine.net.errors import ConnectFailed
from engine.net.socks5 import ProxyRefused
from engine.outcome import Cause, Scope
from engine.smtp.stages import Stage

if TYPE_CHECKING:
    from engine.net.stream import ByteStream

#: Most octets read at once: more than any reply of a proxy.  The target's octets behind it may
#: as well wait in the kernel.
_RECEIVE_OCTETS: Final = 512


class Dialogue(Protocol):
    """A proxy's handshake without I/O; `Socks5` and `Haproxy` are two."""

    @property
    def is_done(self) -> bool:
        """Whether what follows on the stream belongs to the target."""
        ...

    @property
    def bound(self) -> tuple[str, int] | None:
        """The address or name and the port the proxy connects from, `None` where it did not say."""
        ...

    @property
    def leftover(self) -> bytes:
        """Octets of the target's that came along."""
        ...

    def begin(self) -> bytes:
        """Return the first octets to send."""
        ...

    def receive(self, octets: bytes) -> bytes:
        """Take octets and return those to send, or raise `ProxyRefused`."""
        ...


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What a handshake leaves behind.

    Attributes:
        leftover: Octets of the target's that were already read; they come before all that the
            stream still yields.
        bound: The address or name and the port the proxy connects from, `None` where it did not
            say.
    """

    leftover: bytes
    bound: tuple[str, int] | None


async def handshake(
    stream: ByteStream, dialogue: Dialogue, seconds: float, *, doing: str, sent: int = 0
) -> Tunnel:
    """Run a handshake to its end.

    Failed or cancelled, it leaves the stream open and in the middle of things: whoever opened it
    can only close it.

    Args:
        stream: Connected to the proxy; nothing was sent yet but what `sent` says.
        dialogue: A fresh one, made for the target.
        seconds: How long the whole handshake may take.
        doing: What this is for and through whom, without credentials, e.g.
            `connect to mx.test [192.0.2.1]:25 through 192.0.2.9:1080`.
        sent: How many of the dialogue's first octets are on their way, for they rode in the SYN.

    Raises:
        ConnectFailed: At the stage `proxy`, scope `source`: the proxy refused, answered
            nonsense (`malformed-reply`), hung up (`closed`) or took too long (`timeout`).
    """
    try:
        with trio.fail_after(seconds):
            await _converse(stream, dialogue, sent)
    except ProxyRefused as refusal:
        raise _failure(refusal.cause, f"{doing}: {refusal.text}") from refusal
    except trio.BrokenResourceError as error:
        raise _closed(doing, error) from error
    except trio.TooSlowError:
        text = f"{doing}: the proxy timed out after {seconds:g} s"
        raise _failure(Cause.TIMEOUT, text) from None
    return Tunnel(dialogue.leftover, dialogue.bound)


async def _converse(stream: ByteStream, dialogue: Dialogue, sent: int) -> None:
    to_send = dialogue.begin()[sent:]
    while True:
        if to_send:
            await stream.send_all(to_send)
        if dialogue.is_done:
            return
        octets = await stream.receive_some(_RECEIVE_OCTETS)
        if not octets:
            raise trio.BrokenResourceError("in the middle of the handshake")
        to_send = dialogue.receive(octets)


def _closed(doing: str, error: trio.BrokenResourceError) -> ConnectFailed:
    text = f"{doing}: the proxy closed the connection: {error}"
    system = error.__cause__
    return _failure(Cause.CLOSED, text, system.errno if isinstance(system, OSError) else None)


def _failure(cause: Cause, text: str, errno: int | None = None) -> ConnectFailed:
    return ConnectFailed(Stage.PROXY, cause, Scope.SOURCE, text, errno)
