"""The stages of a delivery, and what each command of SMTP belongs to.  Knows no I/O."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Where a recipient's outcome was decided, in the order a delivery runs through them."""

    ROUTE = "route"
    POLICY = "policy"
    CONNECT = "connect"
    PROXY = "proxy"
    GREETING = "greeting"
    HELLO = "hello"
    STARTTLS = "starttls"
    TLS = "tls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    #: While the content was written.
    CONTENT = "content"
    #: The reply to the whole content.
    FINAL = "final"

    @property
    def is_setup(self) -> bool:
        """Whether it lies before the first MAIL, where a failure is the host's."""
        return _ORDER[self] < _ORDER[Stage.MAIL]


_ORDER = {stage: place for place, stage in enumerate(Stage)}
