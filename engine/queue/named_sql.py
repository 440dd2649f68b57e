"""Named SQL: statements in files of their own, each with a name and a comment.  Knows no I/O.

A statement begins behind a line `-- name: NAME` and ends at the next one.  Called by
`engine.queue.database`, which reads the files.
"""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"^-- name: ([a-z_]+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"(?m)^\s*--.*\n?|[ \t]+-- .*$")


def parse_statements(text: str) -> dict[str, str]:
    """Return the statements of a file by name, without their comments.

    Raises:
        ValueError: A name stands twice, or a statement is empty.
    """
    _, *rest = _NAME.split(text)
    statements: dict[str, str] = {}
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        statement = _COMMENT.sub("", body).strip().removesuffix(";")
        if not statement or name in statements:
            raise ValueError(f"statement {name!r} is empty or stands twice")
        statements[name] = statement
    return statements
