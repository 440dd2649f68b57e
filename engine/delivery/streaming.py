"""How many mail transactions may be in flight on a connection.  Knows no I/O.

RFC 2920 §3.1 lets the next MAIL follow the final dot, and with CHUNKING (RFC 3030 §2) whole
transactions can.  Not every server takes it, and on a fast link nothing is gained; so unless told a
number, only servers that are known to take it are asked to.
"""

from __future__ import annotations

from typing import Final, Literal

#: Most transactions in flight where the number is ours to choose: then one round trip costs each a
#: sixteenth, and a lost connection leaves no more than these in doubt.
MOST: Final = 16
#: Octets of content in flight above which none is added: more does not fill a link any better.
MOST_OCTETS: Final = 1024 * 1024
#: Recipients at most in the first envelope behind a content to a server that may not take it: one
#: that holds it back has little room for it (Haraka 3.3: 8 KB, or it hangs up and keeps its reply).
FEW_RECIPIENTS: Final = 10
#: Transactions that nobody was accepted of, with others in flight behind, after which a connection
#: is given up.  Servers hang up after so many commands that bring no mail (Exim: at the eleventh
#: RSET of this kind), and what is in flight then is in doubt.
MOST_REFUSALS: Final = 3
#: A round trip that is not worth it, in seconds.
_SHORT: Final = 0.001


class Depth:
    """The depth of one connection.

    Attributes:
        limit: How many transactions may be in flight now; 1 is lockstep.
    """

    __slots__ = ("_later", "limit")

    def __init__(
        self,
        setting: int | Literal["auto"],
        *,
        is_known: bool,
        round_trip: float | None,
        is_possible: bool,
    ) -> None:
        """Begin in lockstep, as every connection does until it has delivered something.

        Args:
            setting: `stream_depth`.
            is_known: Whether the server is known to take it.
            round_trip: Seconds, where they are known.
            is_possible: Whether the commands of an envelope are pipelined at all, and the server is
                not known to refuse those that come early.
        """
        self.limit = self._later = 1
        if not is_possible:
            return
        if setting != "auto":
            self._later = setting
        elif is_known and (round_trip is None or round_trip >= _SHORT):
            self._later = MOST

    def delivered(self) -> None:
        """Account for a transaction that delivered: from here on there may be several."""
        self.limit = self._later

    def refused(self) -> None:
        """Account for a server that does not take it."""
        self.limit = self._later = 1
