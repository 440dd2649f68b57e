"""One piece of work at a time for each key; everybody who asks meanwhile gets its result.

Used by the cache (one question in flight a name and type) and by the router (one routing in
flight a domain): ten thousand recipients of one new domain are one MX lookup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

_K = TypeVar("_K", bound="Hashable")
_V = TypeVar("_V")


class _Flight(Generic[_V]):
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.results: list[_V] = []  # one when the work was done, none when it was given up


class SingleFlight(Generic[_K, _V]):
    """Shares work between the tasks that want the same thing at the same time."""

    def __init__(self) -> None:
        self._flights: dict[_K, _Flight[_V]] = {}

    async def share(self, key: _K, work: Callable[[], Awaitable[_V]]) -> _V:
        """Do the work for a key, or wait for whoever does it already.

        The work runs in the task of the first who asked.  If that task is cancelled, or the work
        raises, one of those who wait starts it again for the others: no asker's cancellation or
        deadline is felt by another.
        """
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            for result in flight.results:
                return result
        flight = self._flights[key] = _Flight()
        try:
            result = await work()
            flight.results.append(result)
        finally:
            del self._flights[key]
            flight.landed.set()
        return result
