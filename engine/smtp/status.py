"""Enhanced status codes (RFC 3463 §2), read from replies with the suspicion they deserve.  Knows no I/O."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

# RFC 3463 §2: class "." subject "." detail, at most three digits each and no leading zeros.
_PATTERN: Final = re.compile(rb"([245])\.(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})")
_LONGEST: Final = len(b"5.999.999 ")


class EnhancedStatusCode(NamedTuple):
    """class.subject.detail, for example 5.1.1 "bad destination mailbox address".

    Attributes:
        severity: 2 success, 4 persistent transient failure, 5 permanent failure.
        subject: What the status is about (RFC 3463 §3), 0 to 999.
        detail: Which condition it is, 0 to 999.
    """

    severity: int
    subject: int
    detail: int

    def __str__(self) -> str:
        return f"{self.severity}.{self.subject}.{self.detail}"

    @classmethod
    def parse(cls, text: str) -> EnhancedStatusCode:
        """Read `class.subject.detail`.

        Raises:
            ValueError: The text is not one whole enhanced status code.
        """
        match = _PATTERN.fullmatch(text.encode())
        if match is None:
            raise ValueError(f"not an enhanced status code such as 5.1.1: {text[:40]!r}")
        return cls(*map(int, match.groups()))


@lru_cache(maxsize=512)
def _read_code(code: int, word: bytes) -> EnhancedStatusCode | None:
    match = _PATTERN.fullmatch(word)
    if match is None or int(match[1]) != code // 100:
        return None
    return EnhancedStatusCode(int(match[1]), int(match[2]), int(match[3]))


def read_enhanced(code: int, line: bytes) -> EnhancedStatusCode | None:
    """Return the enhanced status code at the start of a reply's text, if it can be trusted.

    RFC 2034 §4: its class must be the reply code's first digit.  Servers do send `550 4.7.1`;
    what contradicts itself is not used at all.
    """
    # 9 octets hold the longest one; what is remembered must not grow with what peers send.
    return _read_code(code, line[:_LONGEST].partition(b" ")[0].partition(b"\t")[0])
