"""Read the `TLS-Required` header field of a message (RFC 8689 §3).  Knows no I/O."""

from __future__ import annotations

import re
from typing import Final

# The field's body may be folded; a name that only begins alike is another field's.
_FIELD: Final = re.compile(
    rb"^tls-required[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)", re.IGNORECASE | re.MULTILINE
)
_END: Final = re.compile(rb"(?:\A|\n)\r?\n")
_FOLD: Final = re.compile(rb"\r?\n")


def says_tls_optional(content: bytes) -> bool:
    """Whether a message says `TLS-Required: No`.

    RFC 8689 §3: there must not be more than one such field; where there is, none counts.

    Args:
        content: The message or its header section; what follows that is not looked at.
    """
    end = _END.search(content)
    header = content if end is None else content[: end.start()]
    bodies = _FIELD.findall(header)
    return len(bodies) == 1 and _FOLD.sub(b"", bodies[0]).strip().lower() == b"no"
