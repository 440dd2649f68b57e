"""A store that is still to be opened: what `engine.queue.sqlite.open_store` returns.

    async with open_store(path) as store: ...   # opened here
    Engine(store=open_store(path))              # opened by the engine, and closed behind it

Whoever enters it closes it.  It can be given out wherever else a store can, and works as one while
it is open.  Not here: any store.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from engine.queue.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_S_co = TypeVar("_S_co", bound=Store, covariant=True)


class StoreToOpen(Store, Protocol[_S_co]):
    """What type checkers know: a store, and the block in which it works."""

    async def __aenter__(self) -> _S_co:
        """Open it."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> bool | None:
        """Close it."""
        ...


class UnopenedStore(AbstractAsyncContextManager[Any], Generic[_S_co]):
    """Passes everything on to the store while it is open; once closed it may be opened again."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[_S_co]], name: str) -> None:
        """Make it.

        Args:
            make: Makes what gives the store for one block.
            name: Names the store in errors.
        """
        self._make = make
        self._name = name
        self._opening: AbstractAsyncContextManager[_S_co] | None = None
        self._store: _S_co | None = None

    def __repr__(self) -> str:
        return f"<store {self._name!r}, {'open' if self._store is not None else 'not open'}>"

    async def __aenter__(self) -> _S_co:
        if self._opening is not None:
            raise RuntimeError(
                f"the store {self._name!r} is open already; who shares it opens it anew, "
                "or uses what `async with` gave as the store"
            )
        self._opening = self._make()
        try:
            self._store = await self._opening.__aenter__()
        except BaseException:
            self._opening = None
            raise
        return self._store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._opening is not None
        self._store = None
        try:
            return await self._opening.__aexit__(kind, error, trace)
        finally:
            self._opening = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._store is None:
            raise RuntimeError(
                f"the store {self._name!r} is not open: enter it first, "
                "`async with open_store(...) as store`, or let an engine do so: "
                "`async with Engine(store=open_store(...))`"
            )
        return getattr(self._store, name)
