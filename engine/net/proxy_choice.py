"""Which proxy to go through, of several.  Decides only; `engine.net.detour` goes there."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from engine.hints import Hints
    from engine.setting_proxy import Proxy

_KIND: Final = "proxy"
#: How long a proxy that could not be connected to is the last to be tried.
_REST_SECONDS: Final = 60.0


def in_order(
    proxies: Iterable[Proxy], rng: Random, is_resting: Callable[[Proxy], bool]
) -> tuple[Proxy, ...]:
    """Return proxies in the order to try them.

    The highest priority first; among equals chance decides, a weight of 2 coming first twice as
    often as a weight of 1.  Those that rest come after all others, in the same order.

    Args:
        proxies: Some, or none.
        rng: Where chance comes from; the same state gives the same order.
        is_resting: Whether a proxy was out of reach a short while ago.
    """

    def rank(proxy: Proxy) -> tuple[bool, int]:
        return is_resting(proxy), -proxy.priority

    order: list[Proxy] = []
    for _, equals in groupby(sorted(proxies, key=rank), key=rank):
        left = list(equals)
        while left:
            weights = [proxy.weight for proxy in left]
            (place,) = rng.choices(range(len(left)), weights)
            order.append(left.pop(place))
    return tuple(order)


class ProxyMemory:
    """Which proxies could not be connected to, kept in the hints for a minute."""

    __slots__ = ("_hints",)

    def __init__(self, hints: Hints | None = None) -> None:
        self._hints = hints

    def is_resting(self, proxy: Proxy) -> bool:
        """Whether a proxy was out of reach within the last minute."""
        return self._hints is not None and self._hints.get(_KIND, proxy.name) is not None

    def rest(self, proxy: Proxy) -> None:
        """Take notice that a proxy could not be connected to."""
        if self._hints is not None:
            self._hints.put(_KIND, proxy.name, b"unreachable", seconds=_REST_SECONDS)
