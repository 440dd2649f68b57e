"""Send the TLS reports of each day to those who want them (RFC 8460 §5).

`ReportSender.run` is a task whose parent is the engine's nursery.  How a mail or a POST leaves is
the engine's matter: it hands the functions in.  Not here: what is counted and what it looks like.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import trio

from engine.report.tlsrpt_form import (
    GZIP_TYPE,
    mailbox_of,
    read_record,
    report_id,
    to_gzip,
    to_mail,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from datetime import date
    from random import Random

    from engine.https import Dial, HttpsClient
    from engine.report.tlsrpt import DailyReport, TlsCounters
    from engine.report.tlsrpt_form import Reporter
    from engine.report.tlsrpt_store import TlsrptStore

#: RFC 8460 §4.1: reports do not all leave at midnight.
SPREAD_SECONDS: Final = 4 * 3600.0
#: RFC 8460 §5.5: redelivery is tried for a day, ever more rarely.
GIVE_UP_SECONDS: Final = 86_400.0
_FIRST_RETRY: Final = 900.0
#: Seconds between two looks at what is to be saved, and at what is to be sent.
_SAVE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 60.0
_AT_ONCE: Final = 4
_LOOKUPS_AT_ONCE: Final = 16

_log = logging.getLogger("engine.report")


class ReportMail(NamedTuple):
    """A report as a mail to be signed and sent.

    Attributes:
        sender: The mailbox in the reverse-path.
        recipient: The mailbox it goes to.
        octets: The message, CRLF at its line ends.
    """

    sender: str
    recipient: str
    octets: bytes


#: Returns the TXT records of a name; `None` where the DNS gave no answer.
Lookup: TypeAlias = "Callable[[str], Awaitable[Sequence[str] | None]]"
#: Takes a mail for delivery; returns whether it did.  RFC 8460 §3: it must be DKIM-signed by the
#: sender's domain, and delivered whatever is wrong with TLS.
Submit: TypeAlias = "Callable[[ReportMail], Awaitable[bool]]"
#: Posts a compressed report to a URL; returns whether it was taken.
Post: TypeAlias = "Callable[[str, bytes], Awaitable[bool]]"


class _Plan:
    """When a report is tried next."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.first_tried_at: float | None = None
        self.wait = _FIRST_RETRY


class ReportSender:
    """Sends what was counted, when a day is over.

    Args:
        counters: What was counted; reports that are done with are dropped from it.
        reporter: Who makes the reports.
        lookup: Asks the DNS.
        submit: Takes reports as mail.
        post: Takes reports over HTTPS; `post_by` makes one.
        store: Where the counts outlive the process; `None`: nowhere.
        clock: Wall clock, seconds since the epoch.
        rng: Spreads the reports over some hours.
    """

    def __init__(
        self,
        counters: TlsCounters,
        reporter: Reporter,
        *,
        lookup: Lookup,
        submit: Submit,
        post: Post,
        rng: Random,
        store: TlsrptStore | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._counters = counters
        self._reporter = reporter
        self._lookup = lookup
        self._submit = submit
        self._post = post
        self._store = store
        self._clock = clock
        self._rng = rng
        self._plans: dict[tuple[str, date], _Plan] = {}

    async def run(self) -> None:
        """Restore, save and send until cancelled; what was counted is saved then."""
        if self._store is not None:
            self._store.load(self._counters)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_saving)
                nursery.start_soon(self._keep_weeding)
                while True:
                    await trio.sleep(_LOOK_SECONDS)
                    await self.send_due()
        finally:
            for _ in self._save():
                pass

    async def _keep_saving(self) -> None:
        while True:
            await trio.sleep(_SAVE_SECONDS)
            for _ in self._save():
                await trio.lowlevel.checkpoint()

    async def _keep_weeding(self) -> None:
        while True:
            await trio.sleep(_SAVE_SECONDS)
            await self.weed()

    async def weed(self) -> None:
        """Find out who wants reports, and have nothing more counted for the rest."""
        limiter = trio.CapacityLimiter(_LOOKUPS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while self._counters.fresh:
                nursery.start_soon(self._ask, self._counters.fresh.pop(), limiter)

    async def _ask(self, receiver: str, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            texts = await self._lookup(f"_smtp._tls.{receiver}")
        # Without an answer it is asked again when the report is due.
        if texts is not None and not read_record(texts):
            self._counters.ignore(receiver)

    def _save(self) -> Iterator[None]:
        return iter(()) if self._store is None else self._store.save(self._counters)

    async def send_due(self) -> None:
        """Send the reports whose time has come."""
        now = self._clock()
        limiter = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for receiver, day in self._counters.finished(now):
                plan = self._plans.get((receiver, day))
                if plan is None:
                    at = now + self._rng.uniform(0, SPREAD_SECONDS)
                    plan = self._plans[receiver, day] = _Plan(at)
                if plan.at <= now:
                    nursery.start_soon(self._try, receiver, day, plan, limiter)

    async def _try(
        self, receiver: str, day: date, plan: _Plan, limiter: trio.CapacityLimiter
    ) -> None:
        async with limiter:
            try:
                reports = self._counters.reports(receiver)
                (report,) = [report for report in reports if report.day == day]
                is_done = await self.send(report)
            except Exception:  # noqa: BLE001 - the bulkhead: a bug costs a report, and no mail
                _log.exception("TLS report about %s could not be made", receiver)
                is_done = False
        now = self._clock()
        if plan.first_tried_at is None:
            plan.first_tried_at = now
        if not is_done and now + plan.wait - plan.first_tried_at <= GIVE_UP_SECONDS:
            plan.at = now + plan.wait
            plan.wait *= 2
            return
        if not is_done:
            _log.info("TLS report about %s of %s is given up", receiver, day)
        del self._plans[receiver, day]
        self._counters.drop(receiver, day)

    async def send(self, report: DailyReport) -> bool:
        """Send one report to everywhere its receiver wants it.

        Returns:
            Whether it is done with: somebody took it, or nobody wants it.
        """
        texts = await self._lookup(f"_smtp._tls.{report.receiver}")
        if texts is None:
            return False
        places = read_record(texts)
        results = [await self._send_to(place, report) for place in places]
        if any(results):
            _log.info("TLS report %s was sent", report_id(report, self._reporter))
        # RFC 8460 §3: sent is what one of them accepts.
        return any(results) or not places

    async def _send_to(self, place: str, report: DailyReport) -> bool:
        mailbox = mailbox_of(place)
        if mailbox is not None:
            octets = to_mail(report, self._reporter, mailbox, self._clock())
            return await self._submit(ReportMail(self._reporter.contact, mailbox, octets))
        if place.lower().startswith("https://"):
            return await self._post(place, to_gzip(report, self._reporter))
        return False


def post_by(dial: Dial, make_context: Callable[[], ssl.SSLContext] | None = None) -> Post:
    """Return a function that posts reports over HTTPS (RFC 8460 §5.4).

    RFC 8460 §3 would allow to pass over bad certificates.  They are what keeps a receiver from having
    us post to hosts inside our own network.

    Args:
        dial: Opens the connections.
        make_context: Makes the TLS context, in a thread; by default it trusts the certificates of
            the system.
    """
    made: list[HttpsClient] = []

    async def post(url: str, octets: bytes) -> bool:
        from engine.https import HttpsClient, HttpsError, default_context

        if not made:
            made.append(HttpsClient(dial, make_context=make_context or default_context))
        try:
            reply = await made[0].post(url, octets, media_type=GZIP_TYPE)
        except HttpsError as error:
            _log.info("TLS report: %s", error)
            return False
        if not 200 <= reply.status < 300:
            _log.info("TLS report: POST %s answered with status %d", url[:300], reply.status)
            return False
        return True

    return post
