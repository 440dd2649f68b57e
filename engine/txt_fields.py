"""Read TXT records made of fields: `v=STSv1; id=20261128;`.  Knows no I/O.

MTA-STS and TLS reports announce themselves so (RFC 8461 §3.1, RFC 8460 §3).  Used by
`engine.routing.mta_sts` and `engine.report.tlsrpt_form`, who know the fields.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_LAST_DELIMITER: Final = re.compile(r";[ \t]*\Z")
_BLANKS: Final = " \t"


def read_fields(
    texts: Iterable[str], version: str, value: re.Pattern[str]
) -> Mapping[str, str] | None:
    """Return the fields of the one record of a version.

    Args:
        texts: The TXT records of a name; those which do not begin with the version and a semicolon
            are somebody else's.
        version: How the record begins: `v=STSv1`.
        value: What the value of a field must match.

    Returns:
        The fields behind the version, the first of each name; `None` where not exactly one record
        is there, or a field of it is none.
    """
    begin = re.compile(rf"{re.escape(version)}[ \t]*;")
    records = [text[match.end() :] for text in texts if (match := begin.match(text))]
    if len(records) != 1:
        return None
    fields: dict[str, str] = {}
    # One semicolon may end the record.
    for part in _LAST_DELIMITER.sub("", records[0]).split(";"):
        name, equals, text = part.strip(_BLANKS).partition("=")
        if not equals or not _NAME.fullmatch(name) or not value.fullmatch(text):
            return None
        fields.setdefault(name, text)
    return fields
