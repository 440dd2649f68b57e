"""TLS reports of one engine (RFC 8460 §4): counted by delivery, sent by the engine itself.

Here the parts meet: the counts, the DNS, the mail that the engine delivers like any other, and HTTPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.content import from_octets
from engine.errors import EngineClosedError
from engine.message import Message, Recipient
from engine.outcome import Status
from engine.report.tlsrpt import TlsCounters
from engine.report.tlsrpt_send import ReportSender, post_by
from engine.report.tlsrpt_store import TlsrptStore
from engine.routing.sts_fetch import dial_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from engine.hints import Hints
    from engine.outcome import Outcome
    from engine.report.tlsrpt_form import Reporter
    from engine.report.tlsrpt_send import ReportMail
    from engine.routing.resolver import Resolver


class SendApart(Protocol):
    """Delivers a message whose outcomes are nobody's but the caller's."""

    async def __call__(self, message: Message, hear: Callable[[Outcome], None], /) -> None:
        """Return when every recipient has an outcome.

        Raises:
            EngineClosedError: The engine takes no more.
        """
        ...


class TlsReports:
    """The reports of an engine.

    Attributes:
        counters: What delivery counts.
    """

    def __init__(
        self,
        reporter: Reporter,
        resolver: Resolver,
        hints: Hints,
        send: SendApart,
        *,
        sign: Callable[[bytes], Awaitable[bytes]] | None,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        """Put the parts together.

        Args:
            reporter: Who makes the reports.
            resolver: Is asked who wants them.
            hints: Keep the counts over a restart.
            send: Delivers those that go by mail.
            sign: Signs those; `None`: they go without, and some receivers will not take them.
            clock: Wall clock, seconds since the epoch.
            rng: Spreads the reports over some hours.
        """
        self.counters = TlsCounters()
        self._resolver = resolver
        self._send = send
        self._sign = sign
        self._sender = ReportSender(
            self.counters,
            reporter,
            lookup=self._look_up,
            submit=self._submit,
            post=post_by(dial_by(resolver)),
            rng=rng,
            store=TlsrptStore(hints, reporter.unique),
            clock=clock,
        )

    async def run(self) -> None:
        """Send reports as their time comes, until cancelled; what was counted is kept then."""
        await self._sender.run()

    async def _look_up(self, name: str) -> Sequence[str] | None:
        answer = await self._resolver.txt(name)
        return None if answer.status == "failed" else answer.records

    async def _submit(self, mail: ReportMail) -> bool:
        octets = mail.octets if self._sign is None else await self._sign(mail.octets)
        recipient = Recipient.parse(mail.recipient, notify=["never"])
        sender = Message.parse_sender(mail.sender)
        outcomes: list[Outcome] = []
        try:
            message = Message("tls-report", sender, (recipient,), from_octets(octets))
            await self._send(message, outcomes.append)
        except EngineClosedError:
            return False
        # One that may have arrived is not sent twice.
        return outcomes[0].status in (Status.DELIVERED, Status.UNKNOWN)
