"""Which recipients a command is about: options made into a selection.  Knows no I/O.

Called by the commands on the queue.  Not here: how a store finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import idna

from engine.queue.values import Selection, State, is_text
from engine.smtp.address import parse_reverse_path

if TYPE_CHECKING:
    from collections.abc import Iterable


def select(
    *,
    states: Iterable[str] = (),
    message: str | None = None,
    recipient: str | None = None,
    domain: str | None = None,
    sender: str | None = None,
    tenant: str | None = None,
    job: str | None = None,
) -> Selection:
    """Return the selection that options stand for.

    Args:
        states: In one of these states; none: in any.
        message: Of the message with this id.
        recipient: With this address, written just so.
        domain: Of this domain, in any spelling; with a leading `*.` of its subdomains.
        sender: Of messages with this reverse-path; `<>` and an empty text are the null path.
        tenant: Of this tenant.
        job: Of this job.

    Raises:
        ValueError: The domain or the sender is none, or another text is none that there could be;
            what is allowed is said.
    """
    texts = {"--message": message, "--recipient": recipient, "--tenant": tenant, "--job": job}
    for option, text in texts.items():
        if text is not None and not is_text(text):
            raise ValueError(
                f"{option}: found {text[:80]!a}; allowed is text that UTF-8 can encode"
            )
    if sender is not None:
        try:
            mailbox = parse_reverse_path(sender)
        except ValueError as error:
            raise ValueError(f"--sender: {error}") from None
        sender = "" if mailbox is None else str(mailbox)
    return Selection(
        states=frozenset(map(State, states)),
        message=message,
        recipient=recipient,
        domain=None if domain is None else _domain(domain),
        sender=sender,
        tenant=tenant,
        job=job,
    )


def _domain(text: str) -> str:
    """Write a domain as the store does: in lower-case A-labels, without a dot at the end."""
    star, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    name = name.removesuffix(".")
    try:
        # Address literals and names with an underscore are no IDNA, and ASCII anyway.
        name = name if name.isascii() else idna.encode(name, uts46=True).decode()
    except idna.IDNAError:
        name = ""
    if not name or not name.isprintable() or " " in name:
        allowed = 'allowed are a domain and "*.domain"'
        raise ValueError(f"--domain: found {text[:80]!a}; {allowed}")
    return star + (name if name.startswith("[") else name.lower())
