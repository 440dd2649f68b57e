"""Remember answers for as long as they hold, and ask each question once at a time.

`CachingResolver` stands between the router and any other resolver; `TtlCache` is the bounded
memory beneath it, which the router uses for its routes.  Who waits for another's question waits here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from engine.routing.flight import SingleFlight
from engine.routing.resolver import Answer, AnswerStatus, Record, RecordType, Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

#: Seconds an answer is believed, least and most.
_SECONDS: Final[dict[AnswerStatus, tuple[float, float]]] = {
    # The least spares the name server from a TTL of 0 in the middle of a bulk run.
    "ok": (1.0, 86_400.0),
    # RFC 2308 §5 allows hours; mail to a domain that was just set up should not wait that long.
    "no-data": (1.0, 300.0),
    "no-such-name": (1.0, 300.0),
    # RFC 2308 §7.1 allows 5 minutes; this spares a struggling server, and is over soon after it is.
    "failed": (5.0, 30.0),
}

DEFAULT_MAX_ENTRIES: Final = 50_000

_K = TypeVar("_K", bound="Hashable")
_V = TypeVar("_V")


class TtlCache(Generic[_K, _V]):
    """A bounded dict whose entries expire; when full, the one stored first makes room."""

    def __init__(self, max_entries: int, clock: Callable[[], float]) -> None:
        """Make an empty cache.

        Raises:
            ValueError: There is no room for even one entry.
        """
        if max_entries < 1:
            raise ValueError(f"a cache holds 1 entry or more, not {max_entries}")
        self._max_entries = max_entries
        self._clock = clock
        self._entries: dict[_K, tuple[float, _V]] = {}  # key -> (expires at, value)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _K) -> _V | None:
        """Return the value, or `None` when there is none or it expired."""
        entry = self._entries.get(key)
        if entry is None or entry[0] <= self._clock():
            return None
        return entry[1]

    def seconds_left(self, key: _K) -> float:
        """Return for how long an entry will still hold; 0.0 where there is none."""
        entry = self._entries.get(key)
        return max(entry[0] - self._clock(), 0.0) if entry else 0.0

    def put(self, key: _K, value: _V, seconds: float) -> None:
        """Keep a value for some seconds; `math.inf` is for ever, room permitting."""
        self._entries.pop(key, None)
        if len(self._entries) >= self._max_entries:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (self._clock() + seconds, value)


class CachingResolver(Resolver):
    """A resolver that asks another one, and not twice for the same.

    Args:
        inner: Who is asked what is not known.
        clock: Seconds that never go back.
        max_entries: How many answers are kept, of a few hundred octets each.
    """

    def __init__(
        self,
        inner: Resolver,
        *,
        clock: Callable[[], float] = trio.current_time,
        max_entries: int = DEFAULT_MAX_ENTRIES,
    ) -> None:
        self._inner = inner
        self._answers: TtlCache[tuple[str, RecordType], Answer[Record]]
        self._answers = TtlCache(max_entries, clock)
        self._questions: SingleFlight[tuple[str, RecordType], Answer[Record]] = SingleFlight()

    async def query(self, name: str, rdtype: RecordType) -> Answer[Record]:
        """Return the answer that is known, or ask; its `ttl` is what is left of it.

        Who is cancelled while waiting disturbs nobody else with the same question.
        """
        key = (name.lower(), rdtype)
        answer = self._answers.get(key)
        if answer is not None:
            await trio.lowlevel.checkpoint()
            return replace(answer, ttl=self._answers.seconds_left(key))
        return await self._questions.share(key, partial(self._ask, key))

    async def _ask(self, key: tuple[str, RecordType]) -> Answer[Record]:
        answer = await self._inner.query(*key)
        answer = replace(answer, ttl=_seconds_to_keep(answer))
        self._answers.put(key, answer, answer.ttl)
        return answer


def _seconds_to_keep(answer: Answer[Record]) -> float:
    least, most = _SECONDS[answer.status]
    return min(max(answer.ttl, least), most)
