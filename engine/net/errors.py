"""How a connection fails: one exception with everything an outcome needs.

Raised by the connector, turned into outcomes by `engine.delivery`.  Decides who is to blame and
why; not whether to try again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from engine.errors import EngineError
from engine.outcome import Cause, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.smtp.stages import Stage

_CAUSES: Final[Mapping[int | None, Cause]] = {
    errno.ECONNREFUSED: Cause.REFUSED,
    # Some firewalls and overloaded servers answer a SYN, then reset.
    errno.ECONNRESET: Cause.REFUSED,
    # No such Unix socket: its server does not run.
    errno.ENOENT: Cause.REFUSED,
    errno.EHOSTUNREACH: Cause.UNREACHABLE,
    errno.ENETUNREACH: Cause.UNREACHABLE,
    # At connect: we have no address to reach a peer of this kind from.
    errno.EADDRNOTAVAIL: Cause.UNREACHABLE,
    # Linux reports a packet filter's verdict this way.
    errno.EACCES: Cause.UNREACHABLE,
    errno.EPERM: Cause.UNREACHABLE,
    errno.ETIMEDOUT: Cause.TIMEOUT,
}

#: This machine has run out of something; no peer and no source address is to blame.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class ConnectFailed(EngineError):  # noqa: N818 - an expected result, read aloud: "connect failed"
    """There is no connection; its socket, if there ever was one, is closed.

    Attributes:
        stage: `connect` or `proxy`.
        cause: `timeout`, `refused`, `unreachable`, `config` or `io`.
        scope: `host` mostly; `source` for our own address, `local` where this machine ran out of
            descriptors or memory.
        text: One line for a person: what was tried with whom, and what happened.
        errno: The system's number for it, `None` where no system call failed.
    """

    def __init__(
        self, stage: Stage, cause: Cause, scope: Scope, text: str, errno: int | None = None
    ) -> None:
        super().__init__(text)
        self.stage = stage
        self.cause = cause
        self.scope = scope
        self.text = text
        self.errno = errno

    @classmethod
    def from_os_error(
        cls,
        stage: Stage,
        doing: str,
        error: OSError,
        *,
        scope: Scope = Scope.HOST,
        cause: Cause | None = None,
    ) -> ConnectFailed:
        """Make one of what a system call said.

        Args:
            stage: Where it happened.
            doing: The step and whom it was for, e.g. `connect to mx.test [192.0.2.1]:25`.
            error: What the call raised.
            scope: Who is to blame, unless this machine is exhausted.
            cause: What happened, where that does not follow from the error's number.
        """
        number = error.errno
        if number in _EXHAUSTED:
            scope, cause = Scope.LOCAL, Cause.IO
        cause = cause or _CAUSES.get(number, Cause.IO)
        text = f"{doing}: {error.strerror or error}"
        return cls(stage, cause, scope, text, number)
