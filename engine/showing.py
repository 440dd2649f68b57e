"""How values and keys of a configuration are written in error texts.  Knows no I/O.

Called wherever a setting is refused: one line, short, in the notation of TOML.
Not here: what is secret; a value that may be one must not come this far.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pydantic import BaseModel


def show(value: object) -> str:
    """Write a value as TOML would, on one line and short; for error texts."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    if isinstance(value, str):
        # ascii() escapes every control character and every look-alike.
        text = ascii(value[:80])[1:-1].replace("\\'", "'").replace('"', '\\"')
        return f'"{text}{"…" if len(value) > 80 else ""}"'
    if isinstance(value, Mapping | BaseModel):
        return "a table"
    if isinstance(value, list | tuple):
        more = ["…"] if len(value) > 5 else []
        return f"[{', '.join([*map(show, value[:5]), *more])}]"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a very large number"
    return f"a {type(value).__name__}" if callable(value) else str(value)


def show_key(key: str) -> str:
    """Write a key as TOML would: quoted where it is not of letters, digits, `_` and `-` only."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) else show(key)


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which names are allowed in place of an unknown one: the nearest, else all of them."""
    import difflib

    names = list(known)
    # Of a path, such as `auth.username` or `defaults.port`, a part may be one.
    parts = [part for part in name.split(".") if part in names]
    near = parts or difflib.get_close_matches(name, names, n=1)
    return f'a known name; did you mean "{near[0]}"?' if near else f"one of {', '.join(names)}"
