"""Callouts: ask hosts whether they would take mail for an address, and send none.

The engine walks hosts, says MAIL and RCPT and takes its leave; here is what is asked, what the
answers mean, and how long they are believed.  Not here: how they travel (`engine.dispatch`).
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.content import from_octets
from engine.message import Message, Recipient
from engine.outcome import Status
from engine.report.outcome_record import read_record
from engine.units import HOURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engine.hints import Hints
    from engine.outcome import Outcome

#: Seconds for which an answer is believed: Exim's, by default.  Others are asked for again.
_SECONDS: Final[Mapping[Status, float]] = {Status.ACCEPTED: 24 * HOURS, Status.FAILED: 2 * HOURS}
_CATCH_ALL_SECONDS: Final = 24 * HOURS
_NOTHING: Final = from_octets(b"")


class Verification(NamedTuple):
    """What is known of an address.

    Attributes:
        outcome: As of a delivery; its status is `accepted` where a delivery would be `delivered`.
        is_catch_all: Whether the hosts take mail for any address of the domain, so that they say
            nothing about this one; `None`: that was not asked, or not answered.
    """

    outcome: Outcome
    is_catch_all: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome record, with `catch_all`."""
        return {**self.outcome.as_dict(), "catch_all": self.is_catch_all}


class Callout:
    """One question about some addresses.

    Attributes:
        message: What is to be asked, `None` when everything is known already.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        hints: Hints,
        *,
        sender: str = "",
        catch_all: bool = False,
        fresh: bool = False,
    ) -> None:
        """Find out what has to be asked.

        Args:
            addresses: Forward-paths.
            hints: Where answers are kept.
            sender: The reverse-path to ask with; empty is the null path.
            catch_all: Whether an address is asked about, too, that cannot exist.
            fresh: Whether what is known does not count.

        Raises:
            AddressSyntaxError: One of them is no mailbox.
            TypeError: They are one text.
        """
        if isinstance(addresses, str | bytes):
            raise TypeError(f"addresses is {addresses[:300]!r}; allowed is a list of them")
        self._hints = hints
        self._sender = Message.parse_sender(sender)
        self._answers: dict[str, Outcome] = {}
        self._is_catch_all: dict[str, bool] = {}
        self._probes: dict[str, str] = {}
        self._asked = [Recipient.parse(address) for address in addresses]
        recipients: dict[str, Recipient] = {}
        for recipient in self._asked:
            known = None if fresh else self._recall(recipient.address)
            if known is None:
                recipients[recipient.address] = recipient
            else:
                self._answers[recipient.address] = known
        if catch_all:
            for probe in self._make_probes(fresh=fresh):
                recipients[probe.address] = probe
        self.message = (
            Message("", self._sender, tuple(recipients.values()), _NOTHING) if recipients else None
        )

    def _make_probes(self, *, fresh: bool) -> Iterable[Recipient]:
        for domain in {recipient.mailbox.routing_domain for recipient in self._asked}:
            known = None if fresh else self._hints.get("catch-all", domain)
            if known is not None:
                self._is_catch_all[domain] = known == b"yes"
                continue
            probe = Recipient.parse(f"{secrets.token_hex(8)}@{domain}")
            self._probes[probe.address] = domain
            yield probe

    def hear(self, outcome: Outcome) -> None:
        """Take an answer, and keep what is worth it."""
        domain = self._probes.get(outcome.recipient)
        if domain is None:
            self._answers[outcome.recipient] = outcome
            seconds = _SECONDS.get(outcome.status)
            if seconds is not None and outcome.reply is not None:
                record = json.dumps(outcome.as_dict()).encode()
                self._hints.put("callout", self._key(outcome.recipient), record, seconds=seconds)
        elif outcome.status in _SECONDS and outcome.reply is not None:
            self._is_catch_all[domain] = is_any = outcome.status is Status.ACCEPTED
            value = b"yes" if is_any else b"no"
            self._hints.put("catch-all", domain, value, seconds=_CATCH_ALL_SECONDS)

    def verifications(self) -> list[Verification]:
        """Return what is known of each address, in the order they were given."""
        return [
            Verification(
                self._answers[recipient.address],
                self._is_catch_all.get(recipient.mailbox.routing_domain),
            )
            for recipient in self._asked
        ]

    def _key(self, address: str) -> str:
        return f"{self._sender or ''}>{address}"

    def _recall(self, address: str) -> Outcome | None:
        octets = self._hints.get("callout", self._key(address))
        if octets is None:
            return None
        try:
            return read_record(json.loads(octets))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None  # a hint that cannot be read is as good as lost
