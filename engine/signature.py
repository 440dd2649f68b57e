"""Constructors that show the arguments of another, for readers and type checkers.

For `engine.blocking` and `engine.aio`, whose engines take what `engine.Engine` takes.
"""

from __future__ import annotations

import inspect
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")


def takes_arguments_of(
    constructor: Callable[Concatenate[Any, _P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """Make a constructor show the arguments of another, for readers and type checkers.

    So whatever an `Engine` can be given, one in a thread or over a loop can be given too.
    """

    def decorate(own: Callable[..., None]) -> Callable[Concatenate[Any, _P], None]:
        def make(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
            own(self, *args, **kwargs)

        update_wrapper(make, own)
        vars(make)["__signature__"] = inspect.signature(constructor)
        return make

    return decorate
