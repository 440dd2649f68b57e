"""Servers of this room for tests that are not in Trio: each runs in a thread of its own.

    with in_thread(serve_script, SCRIPT) as server:
        my_sender("127.0.0.1", server.port)

Not here: what the servers do.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

_P = ParamSpec("_P")
_T = TypeVar("_T")


@contextmanager
def in_thread(
    open_server: Callable[_P, AbstractAsyncContextManager[_T]],
    /,
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> Iterator[_T]:
    """Run what is a block of Trio's, such as `serve_script` or `open_sink`, for the time of a block.

    The block is left as it would be in Trio: an error of the block is told to the server, and the
    server's own are raised on leaving, with that error as their cause.  Left by KeyboardInterrupt, it
    is cancelled.  Of what it yields, attributes may be read in any thread.

    Args:
        open_server: Makes the block.
        *args: Its arguments.
        **kwargs: Its arguments.
    """
    started: Future[tuple[_T, trio.lowlevel.TrioToken]] = Future()
    left = trio.Event()
    scope = trio.CancelScope()
    failures: list[Exception] = []

    async def serve() -> None:
        with scope:
            async with open_server(*args, **kwargs) as server:
                started.set_result((server, trio.lowlevel.current_trio_token()))
                await left.wait()
                for failure in failures:
                    raise failure

    thread = ThreadPoolExecutor(1, getattr(open_server, "__name__", ""))
    ended = thread.submit(trio.run, serve)
    either: list[Future[Any]] = [started, ended]
    wait(either, return_when=FIRST_COMPLETED)
    if not started.done():
        thread.shutdown()
        ended.result()  # raises why
    server, token = started.result()

    def leave(how: Callable[[], None]) -> BaseException | None:
        with suppress(trio.RunFinishedError):  # it may have ended by an error
            token.run_sync_soon(how)
        thread.shutdown()
        return ended.exception()

    try:
        yield server
    except Exception as error:
        failures.append(error)
        theirs = leave(left.set)
        if theirs is None or theirs is error:
            raise
        raise theirs from theirs.__cause__ or error
    except BaseException:
        leave(scope.cancel)
        raise
    if theirs := leave(left.set):
        raise theirs
