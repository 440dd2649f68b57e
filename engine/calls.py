"""A call from outside Trio, as a task of Trio's that keeps a promise.

Made by `engine.blocking` and `engine.aio`, whose promises are the futures of threads and of asyncio;
run by `engine.hosted`.  Not here: how a call comes to Trio's thread, and what is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")
_T_contra = TypeVar("_T_contra", contravariant=True)


class Promise(Protocol[_T_contra]):
    """Where the result of a call goes; the futures of threads and of asyncio are such."""

    def done(self) -> bool:
        """Whether it has a result, or nobody wants one any more."""
        ...

    def set_result(self, result: _T_contra, /) -> None:
        """Say what came of it."""
        ...

    def set_exception(self, error: BaseException, /) -> None:
        """Say that it failed."""
        ...


class Call(Generic[_T]):
    """A call from outside, on its way through a task of Trio's.

    Attributes:
        promise: Gets what comes of it, in any case and once.
    """

    def __init__(
        self,
        promise: Promise[_T],
        function: Callable[..., Awaitable[_T]],
        *arguments: object,
    ) -> None:
        self.promise = promise
        self._function = function
        self._arguments = arguments
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        """Ask it to end soon; its promise is kept all the same.  Belongs to Trio's thread."""
        self._scope.cancel()

    def fail(self, error: Exception) -> None:
        """Say that nothing will come of it, unless something has."""
        if not self.promise.done():
            self.promise.set_exception(error)

    async def run(self, make_error: Callable[[], Exception]) -> None:
        """Run it; a call that is cancelled, by whom ever, fails with the error made."""
        try:
            with self._scope:
                await trio.lowlevel.checkpoint_if_cancelled()  # then it has not begun
                self.promise.set_result(await self._function(*self._arguments))
        except Exception as error:  # noqa: BLE001 - it is the caller's, and goes there
            self.fail(error)
        finally:
            if not self.promise.done():
                self.promise.set_exception(make_error())
