"""On which line each key of a TOML document is.  Knows no I/O.

Called by `engine.worker.config`, so that each problem names its line.
Not here: whether the document is TOML (`tomllib` says), and what its keys mean.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Final

from engine.showing import show_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PART: Final = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_KEY: Final = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_STATEMENT: Final = re.compile(
    rf"[ \t]*(?:(?P<open>\[\[?)[ \t]*(?P<header>{_KEY})[ \t]*\]|(?P<key>{_KEY})[ \t]*=)"
)
#: What may not be looked into when searching for the end of a statement.
_TOKEN: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*|[\[\]{}]|\n",
    re.DOTALL,
)


def locate_keys(text: str) -> dict[str, int]:
    """Find the line of every key and table header of a TOML document, which `tomllib` forgets.

    Args:
        text: A document that `tomllib` has accepted; of any other the answer means nothing.

    Returns:
        Line numbers, from 1, by key path: `defaults.port`, `paths[0]`, `paths[0].match`.  Keys of
        inline tables are not listed: they are on the line of their table.
    """
    lines: dict[str, int] = {}
    lengths: dict[str, int] = {}
    table, position, line = "", 0, 1
    while position < len(text):
        statement = _STATEMENT.match(text, position)
        end = _end_of_statement(text, statement.end() if statement else position)
        if statement and statement["header"]:
            table = _resolve(_split_key(statement["header"]), lengths)
            if statement["open"] == "[[":
                table, name = _next_element(table, lengths)
                lines.setdefault(name, line)
            lines.setdefault(table, line)
        elif statement:
            parts = [show_key(part) for part in _split_key(statement["key"])]
            lines[".".join([table, *parts] if table else parts)] = line
        line += text.count("\n", position, end)
        position = end
    return lines


def _end_of_statement(text: str, position: int) -> int:
    depth = 0
    for token in _TOKEN.finditer(text, position):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and depth <= 0:
            return token.end()
    return len(text)


def _split_key(key: str) -> list[str]:
    if "." not in key and key[0] not in "\"'":
        return [key]
    parts = []
    value: object = tomllib.loads(f"{key} = 0")
    while isinstance(value, dict):
        ((part, value),) = value.items()
        parts.append(part)
    return parts


def _resolve(parts: Sequence[str], lengths: Mapping[str, int]) -> str:
    """Write a header's path with the index of the element that each array of tables is at."""
    path = ""
    for index, part in enumerate(parts, 1):
        path = f"{path}.{show_key(part)}" if path else show_key(part)
        if path in lengths and index < len(parts):
            path = f"{path}[{lengths[path] - 1}]"
    return path


def _next_element(name: str, lengths: dict[str, int]) -> tuple[str, str]:
    lengths[name] = lengths.get(name, 0) + 1
    return f"{name}[{lengths[name] - 1}]", name
