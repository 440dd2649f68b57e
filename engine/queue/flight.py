"""Who is out: leased recipients from their lease to their settlement.  Knows no I/O.

Used by the scheduler.  Outcomes name a message's id and a recipient's address; here they find the
lease they belong to.  A recipient is in here once for each time its message lists it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from engine.queue.values import LeasedMessage, LeasedRecipient

_Name: TypeAlias = tuple[str, str]


class Out(NamedTuple):
    """A leased recipient: a message as it was leased, a place in it, and who stands there."""

    message: LeasedMessage
    place: int
    recipient: LeasedRecipient

    @property
    def domain(self) -> str:
        """Its routing domain."""
        return self.message.message.recipients[self.place].mailbox.routing_domain


def outs_of(message: LeasedMessage) -> list[Out]:
    """Return all recipients of a leased message."""
    return [Out(message, place, each) for place, each in enumerate(message.recipients)]


class Flight:
    """The recipients that are out.

    Attributes:
        of_site: How many of each site.
    """

    def __init__(self) -> None:
        self.of_site: Counter[str] = Counter()
        self._by_name: dict[_Name, list[Out]] = {}
        self._marked: set[int] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Out]:
        for waiting in self._by_name.values():
            yield from waiting

    def add(self, message: LeasedMessage) -> None:
        """Add all recipients of a leased message."""
        outs, name = outs_of(message), message.message.id
        for out in outs:
            recipient = out.recipient
            self._by_name.setdefault((name, recipient.address), []).append(out)
            self.of_site[recipient.site] += 1
        self._count += len(outs)

    def find(self, message: str, addresses: Iterable[str]) -> list[Out]:
        """Return those of a message that are out under these addresses."""
        return [out for address in addresses for out in self._by_name.get((message, address), ())]

    def mark(self, outs: Iterable[Out]) -> None:
        """Note that the store has been told that their content is about to go out to its end."""
        self._marked.update(out.recipient.number for out in outs)

    def is_marked(self, out: Out) -> bool:
        """Whether it may have been delivered."""
        return out.recipient.number in self._marked

    def take(self, message: str, address: str) -> Out | None:
        """Take out the first that bears this name; `None` where there is none (any more)."""
        waiting = self._by_name.pop((message, address), None)
        if waiting is None:
            return None
        out, *others = waiting
        if others:
            self._by_name[message, address] = others
        self._count -= 1
        site = out.recipient.site
        self._marked.discard(out.recipient.number)
        left = self.of_site[site] = self.of_site[site] - 1
        if not left:
            del self.of_site[site]
        return out
