"""Reading a whole store, message by message, even one that is damaged.

For whoever moves a queue elsewhere or saves what is left of one.  Not here: in which form messages
are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.queue.errors import StoreDamagedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from engine.queue.entries import StoredMessage
    from engine.queue.store import Store

#: Messages read at a time, contents and all.
_AT_ONCE: Final = 50
#: So many messages that cannot be read, one after the other, and steps become longer.
_PATIENCE: Final = 100
#: No store has so many: behind it nothing follows.
_END: Final = 2**48


@dataclass(frozen=True, slots=True)
class Damage:
    """A place where there may have been messages.

    Attributes:
        first: The number of the first that could be there.
        last: The number of the last.
        text: What went wrong.
    """

    first: int
    last: int
    text: str


async def export_messages(store: Store) -> AsyncGenerator[StoredMessage | Damage, None]:
    """Yield all messages that can be read, in the order they came, and what cannot.

    Read it within `contextlib.aclosing`.  What is queued or done with meanwhile may be there or
    not.

    Raises:
        StoreError: The store cannot be read for another reason than damage.
    """
    after, limit, damage = 0, _AT_ONCE, None
    while after < _END:
        try:
            messages = await store.messages(after=after, limit=limit)
        except StoreDamagedError as error:
            if limit > 1:
                limit = limit // 2
                continue
            first = damage.first if damage else after + 1
            # Mostly the damage is of one page, which has a few messages, one beside the other.
            count = after + 1 - first
            step = 1 if count < _PATIENCE else count
            damage = Damage(first, after + step, str(error))
            after += step
            continue
        if damage is not None:
            yield damage
            damage, limit = None, _AT_ONCE
        if not messages:
            return
        for message in messages:
            yield message
        after = messages[-1].number
    if damage is not None:
        yield damage
