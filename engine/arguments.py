"""Looks at what an engine is given, so that an error comes where it is given, and says what is allowed.

Used by `engine.engine`, and by `engine.hosted`, which looks at messages before an engine does.  Here
are slips which would show late, far away, or never; what its parts look at themselves is not here.
Knows no I/O.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.queue.store import Store
    from engine.routing.resolver import Resolver


def wrong_type(name: str, value: object, allowed: str) -> TypeError:
    """Return the error for a value of another type."""
    return TypeError(f"{name} is a {type(value).__name__}; allowed is {allowed}")


def no_message(value: object) -> TypeError:
    """Return the error for what was submitted and is no message."""
    return wrong_type("message", value, "a Message")


def check_seconds(name: str, value: object) -> None:
    """Refuse what is no time to wait.

    Raises:
        TypeError: It is no number.
        ValueError: It is below 0, or has no end.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, value, "a number of seconds")
    # In this form, for NaN is neither above nor below.
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; allowed is a number of seconds, 0 or more")


def check_count(name: str, value: object) -> None:
    """Refuse what is no number of things.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, value, "a whole number, at least 1")
    if value < 1:
        raise ValueError(f"{name} is {value}; at least 1 is needed")


def check_resolver(resolver: Resolver | None) -> None:
    """Refuse what answers no questions.

    Raises:
        TypeError: It has no `query`.
    """
    if resolver is not None and not hasattr(resolver, "query"):
        raise wrong_type(
            "resolver", resolver, "a Resolver; addresses of name servers go to name_servers"
        )


def check_store(store: Store | None) -> None:
    """Refuse what keeps no mail.

    Raises:
        TypeError: It is none.
    """
    # A store that is still to be opened has a block, and nothing else yet.
    is_store = hasattr(type(store), "__aenter__") or hasattr(store, "lease")
    if store is None or is_store:
        return
    allowed = "what open_store returns"
    if isinstance(store, str) or hasattr(store, "__fspath__"):
        allowed = f"what open_store returns, as in open_store({str(store)!r})"
    raise wrong_type("store", store, allowed)
