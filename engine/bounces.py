"""Bounces of a queue: who is told what became of a message, or that it is late.

    bouncer = Bouncer(store, BounceSettings("mail.example.org"))
    policy = Policy(rules, wants_report=bouncer.wants_report)   # for the scheduler
    nursery.start_soon(bouncer.run)

Here the queue meets the reports.  What is due to whom is `engine.report.bounce_rules`' matter, what
a report looks like `engine.report.bounce`'s.  A report is a message like any other: it goes into the
store it comes from, with the null reverse-path, and is delivered by whoever delivers the rest.  With
several stores it stays in this one, whatever domain it is for: only so it goes in as what it is about
goes out.

Theory of operation

A recipient that somebody is to be told about stays in the store when it ends.  A report and the end
of what it is about are one step of the store, so a crash neither loses a report nor makes it twice.
Should two make the same report, it has the same id, and the store takes one.  Recipients of a
message that end while a worker is still at others of them wait for those, for a while: that makes
one report of many.

Who waits is looked for now and then, by the wall clock.  That a sender was warned is written down
with the warning, at each recipient, so that nobody is warned twice of the same wait, over restarts
as well.  Nobody is warned of held mail, nor before mail may be tried at all.
"""

from __future__ import annotations

import logging
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import trio

from engine.bounce_facts import event_of, fate_of, progress_of, waited_since
from engine.queue.errors import DuplicateIdError, StoreDamagedError, StoreError
from engine.queue.submission import Submission
from engine.queue.values import Result
from engine.report.bounce import MAX_HEADER_OCTETS, octets_needed, to_message
from engine.report.bounce_original import is_automatic
from engine.report.bounce_rules import Progress, due_kind, due_reports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.message import Message, Recipient
    from engine.outcome import Outcome
    from engine.queue.entries import StoredMessage
    from engine.queue.retry import RetryRules
    from engine.queue.store import Store
    from engine.report.bounce import BounceSettings
    from engine.report.bounce_rules import Report

#: How senders are told: by mail, by a record for a program, or both.
Bounce: TypeAlias = Literal["report", "event", "both"]

#: How long who ended waits for others of its message that a worker is at, in seconds.
DEFAULT_GATHER: Final = 30.0
#: How often the store is looked at though nothing is known to have ended: a person may have
#: cancelled something, in another process.
DEFAULT_IDLE: Final = 10.0

#: Messages at a time, or recipients that are late; their contents are in memory meanwhile.
_AT_ONCE: Final = 100
#: From a decision that somebody is to be told to its settlement, mostly.
_SETTLING: Final = 0.1
#: Pauses between two looks while there is something to wait for, and for how long there is after
#: the last such decision.
_LOOK: Final = 1.0
_QUICK: Final = 10.0
#: While the store fails, the next try is so many seconds away at most.
_LAST_PAUSE: Final = 30.0
#: A message that cannot be reported on is left alone for so many seconds.
_PUT_OFF: Final = 3600.0
#: Warnings come late by one part in so many of the first wait, within these bounds in seconds.
_FRACTION: Final = 24
_FIRST_LATE: Final = 1.0
_LAST_LATE: Final = 600.0

_log = logging.getLogger("engine.bounces")


@dataclass(slots=True)
class _Batch:
    """What comes of some messages that are reported on side by side.

    Attributes:
        made: How many reports were submitted.
        quiet: Recipients that are to be noted as told about, for no mail does that.
        failure: What kept some from being reported on.
    """

    made: int = 0
    quiet: list[int] = field(default_factory=list)
    failure: Exception | None = None


class Bouncer:
    """Makes the reports of one store; see the head of the module.

    With `bounce` `event` or `both` each report is a record for a program as well:

        time          when it was made, RFC 3339 §5.6 in UTC, as all times in it
        event         "report"
        report        its id; a record that comes twice, as after a crash, has the same
        message       the id of the message it is about
        sender        that message's reverse-path
        envid         the envelope identifier that came with it, or null
        tenant, job   as submitted
        submitted_at  when it was submitted
        recipients    a list, the worst first:
            recipient     the address, as in outcomes
            orcpt         the original recipient that came with it, or null
            kind          "failed", "expired", "delayed", "relayed" or "delivered"
            action        what the Action field would say (RFC 3464 §2.3.3)
            enhanced      what the Status field would say (RFC 3464 §2.3.4)
            reply         the last reply as in outcome records, or null
            text          what happened last, in one line, or null
            host          the host that decided, or null
            reason        why it is where it is, in one line
            last_attempt  when it was last tried, or null
            retry_until   until when it is tried, for who is delayed, or null

    Attributes:
        settings: Who reports, and how; they can be replaced at any time.
    """

    def __init__(
        self,
        store: Store,
        settings: BounceSettings,
        *,
        bounce: Bounce = "report",
        on_event: Callable[[Mapping[str, Any]], Awaitable[None]] | None = None,
        rules: RetryRules | None = None,
        clock: Callable[[], float] = time.time,
        gather_seconds: float = DEFAULT_GATHER,
        idle_seconds: float = DEFAULT_IDLE,
    ) -> None:
        """Make a bouncer; it works in `run`.

        Args:
            store: Where the queue is.
            settings: Who reports, and how.
            bounce: How senders are told.
            on_event: Given the record of each report, before the store is told: a crash in between
                is a record twice, never one that is missing.  An `OSError` is taken for a lack
                that passes, and the report is made again later.
            rules: By which mail is tried again, so that warnings can say until when.
            clock: Wall clock, seconds since the epoch.
            gather_seconds: How long who ended waits for others of its message that a worker is at.
            idle_seconds: How long the store is left alone at most.

        Raises:
            ValueError: No such `bounce`, or one that needs an `on_event` that is not given.
        """
        if bounce not in get_args(Bounce):
            raise ValueError(f"bounce {bounce!r}; allowed are {', '.join(get_args(Bounce))}")
        if bounce != "report" and on_event is None:
            raise ValueError(f"bounce {bounce!r} needs an on_event")
        self.settings = settings
        self._store = store
        self._makes_mail = bounce != "event"
        self._on_event = None if bounce == "report" else on_event
        self._rules = rules
        self._clock = clock
        self._gather_seconds = gather_seconds
        self._idle_seconds = idle_seconds
        self._news = trio.Event()
        self._looking = trio.Lock()
        self._warning = trio.Lock()
        # Of messages by number, by Trio's clock: when they were first seen to have somebody who
        # ended, and until when they are left alone.
        self._seen: dict[int, float] = {}
        self._put_off: dict[int, float] = {}

    # -- what the scheduler asks --------------------------------------------------------------

    def wants_report(
        self, message: Message, recipient: Recipient, outcome: Outcome, result: Result
    ) -> bool:
        """Say whether somebody is to be told that a recipient left the queue.

        For `engine.queue.decision.Policy`.  What cannot be delivered and came from the null path,
        as reports do, ends with a line in the log (RFC 3461 §5.2): nobody else can be told.
        """
        if message.reverse_path is None:
            if result is Result.FAILED:
                _log.warning(
                    "message %r came from the null path and is dropped; it could not be delivered "
                    "to %r: %s",
                    message.id,
                    recipient.address,
                    outcome.text,
                )
            return False
        # First, for it answers for almost all.
        if result is Result.DELIVERED and "success" not in recipient.notify:
            return False
        progress = Progress(recipient, fate_of(result), outcome, is_passed_on=outcome.features.dsn)
        if due_kind(message, progress) is None:
            return False
        self._news.set()
        return True

    # -- life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Report and warn until cancelled; what was not reported by then is, by the next run."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_ends)
            nursery.start_soon(self._warn_of_delays)

    async def flush(self) -> int:
        """Report on everybody who has ended, and wait for nobody.

        For who wants the queue empty: what this submits is yet to be delivered.  Cancelled, what
        was reported on is.

        Returns:
            How many reports were submitted.

        Raises:
            StoreError: Some could not be.
            OSError: `on_event` had it.
        """
        return await self._look(gathers=False)

    async def warn(self) -> int:
        """Warn all senders whose mail is late by now, and were not warned of that.

        Cancelled, those so far were.

        Returns:
            How many warnings were submitted.

        Raises:
            StoreError: Some could not be.
            OSError: `on_event` had it.
        """
        waits, made = self.settings.warn_after, 0
        after: int | None = 0 if waits else None
        async with self._warning:
            while after is not None:
                found = await self._store.delayed(
                    now=self._clock(), waits=waits, after=after, limit=_AT_ONCE
                )
                after, batch = found.next, _Batch()
                async with trio.open_nursery() as nursery:
                    for each in found.messages:
                        nursery.start_soon(self._warn_of, each, waits, batch)
                if batch.quiet:
                    await self._store.note_warned(batch.quiet, now=self._clock())
                if batch.failure is not None:
                    raise batch.failure
                made += batch.made
        return made

    async def _report_ends(self) -> None:
        pause, quick_until = 0.0, 0.0
        while True:
            if self._news.is_set():
                self._news = trio.Event()
                quick_until = trio.current_time() + _QUICK
            try:
                await self._look()
            except (StoreError, OSError) as error:
                pause = min(max(2 * pause, _LOOK), _LAST_PAUSE)
                _log.error("reports cannot be made: %s; next try in %.1f s", error, pause)
                await trio.sleep(pause)
                continue
            pause = 0.0
            is_quick = bool(self._seen) or trio.current_time() < quick_until
            with trio.move_on_after(
                min(_LOOK, self._idle_seconds) if is_quick else self._idle_seconds
            ):
                await self._news.wait()
                await trio.sleep(_SETTLING)

    async def _warn_of_delays(self) -> None:
        while True:
            try:
                await self.warn()
            except (StoreError, OSError) as error:
                _log.error("senders cannot be warned of delays: %s", error)
            first = min(self.settings.warn_after, default=_LAST_LATE)
            await trio.sleep(min(max(first / _FRACTION, _FIRST_LATE), _LAST_LATE))

    # -- who ended --------------------------------------------------------------------------

    async def _look(self, *, gathers: bool = True) -> int:
        """Report on all who have ended and need not wait for others; return how many reports."""
        async with self._looking:
            after, made, there = 0, 0, set[int]()
            while messages := await self._store.ended(after=after, limit=_AT_ONCE):
                after, batch = messages[-1].number, _Batch()
                there.update(each.number for each in messages)
                async with trio.open_nursery() as nursery:
                    for each in messages:
                        if self._is_time_for(each, gathers=gathers):
                            nursery.start_soon(self._report_on, each, batch)
                if batch.quiet:
                    await self._store.forget(batch.quiet)
                if batch.failure is not None:
                    raise batch.failure
                made += batch.made
            self._seen = {n: at for n, at in self._seen.items() if n in there}
            self._put_off = {n: at for n, at in self._put_off.items() if n in there}
            return made

    def _is_time_for(self, stored: StoredMessage, *, gathers: bool) -> bool:
        now = trio.current_time()
        if now < self._put_off.get(stored.number, now):
            return False
        if not (gathers and stored.is_at_work):
            return True
        return now >= self._seen.setdefault(stored.number, now) + self._gather_seconds

    async def _report_on(self, stored: StoredMessage, batch: _Batch) -> None:
        """Report on the recipients of a message that have ended; errors concern no other message."""
        now, numbers = self._clock(), _numbers(stored)
        self._seen.pop(stored.number, None)
        try:
            reports = due_reports(
                stored.message,
                progress_of(stored),
                arrived_at=stored.entries[0].submitted_at,
                at=now,
            )
            mails = await self._tell(stored, reports)
            await self._submit(stored, mails, batch, forget=numbers)
        except (StoreError, OSError) as error:
            batch.failure = error
        except Exception:  # noqa: BLE001 - a fault of ours with one message keeps no other back
            _log.exception(
                "internal error: message %r cannot be reported on; it stays in the queue, and the "
                "next try is in %g s",
                stored.message.id,
                _PUT_OFF,
            )
            self._put_off[stored.number] = trio.current_time() + _PUT_OFF

    # -- who is late ------------------------------------------------------------------------

    async def _warn_of(self, stored: StoredMessage, waits: Sequence[float], batch: _Batch) -> None:
        """Warn of one message; errors concern no other."""
        numbers = _numbers(stored)
        try:
            reports, header = await self._warnings(stored, waits)
            mails = await self._tell(stored, reports, header)
            await self._submit(stored, mails, batch, warned=numbers)
        except (StoreError, OSError) as error:
            batch.failure = error
        except Exception:  # noqa: BLE001 - as with who has ended
            _log.exception(
                "internal error: the sender of message %r cannot be warned of its delay",
                stored.message.id,
            )
            batch.quiet += numbers

    async def _warnings(
        self, stored: StoredMessage, waits: Sequence[float]
    ) -> tuple[Sequence[Report], bytes]:
        """Return the warnings that are due, and as much of the content as they need."""
        message, submitted_at = stored.message, stored.entries[0].submitted_at
        progress = tuple(progress_of(stored, self._rules))
        if not any(due_kind(message, each) for each in progress):
            return (), b""
        header = await self._read(stored, MAX_HEADER_OCTETS)
        shift = waited_since(stored) - submitted_at
        reports = due_reports(
            message,
            progress,
            arrived_at=submitted_at,
            at=self._clock(),
            warn_after=[wait + shift for wait in waits],
            is_automatic=is_automatic(header),
        )
        return reports, header

    # -- telling ----------------------------------------------------------------------------

    async def _tell(
        self, stored: StoredMessage, reports: Sequence[Report], original: bytes | None = None
    ) -> Sequence[Submission]:
        """Tell programs, and return what is to be submitted to tell the sender.

        Args:
            stored: The message.
            reports: What is to be told; perhaps nothing.
            original: The first octets of its content, where they have been read.
        """
        mails = await self._mails(stored, reports, original) if self._makes_mail else ()
        for report in reports:
            if self._on_event is not None:
                await self._on_event(event_of(report, stored))
            _log.info(
                "report %s to <%s> on message %r: %s",
                report.id,
                report.message.reverse_path,
                report.message.id,
                ", ".join(dict.fromkeys(entry.kind.value for entry in report.entries)),
            )
        return mails

    async def _submit(
        self,
        stored: StoredMessage,
        mails: Sequence[Submission],
        batch: _Batch,
        *,
        forget: Sequence[int] = (),
        warned: Sequence[int] = (),
    ) -> None:
        """Submit reports and note in the same breath whom they tell of, as `Store.submit` does."""
        if mails:
            try:
                await self._store.submit(mails, forget=forget, warned=warned)
            except DuplicateIdError:
                # Two that look at one store: the other was quicker.
                _log.info("message %r has been reported on already", stored.message.id)
            else:
                batch.made += len(mails)
                return
        batch.quiet += (*forget, *warned)

    async def _mails(
        self, stored: StoredMessage, reports: Sequence[Report], original: bytes | None
    ) -> list[Submission]:
        """Return reports as what is submitted; they count as mail of whom they are about."""
        settings, entry = self.settings, stored.entries[0]
        if original is None and reports:
            most = max(octets_needed(report, settings) for report in reports)
            original = await self._read(stored, most)
        mails = []
        for report in reports:
            octets = (original or b"")[: octets_needed(report, settings)]
            mail = to_message(report, settings, octets)
            mails.append(
                Submission(
                    message=mail,
                    submitted_at=report.at,
                    tenant=entry.tenant,
                    priority=entry.priority,
                )
            )
            # Each may return a whole message, and there may be hundreds.
            await trio.lowlevel.checkpoint()
        return mails

    async def _read(self, stored: StoredMessage, most: int) -> bytes:
        """Return the first octets of a content, so many at most; nothing where it is damaged."""
        content = stored.message.content
        if content.octets is not None:
            return content.octets[:most]
        held = bytearray()
        try:
            async with aclosing(content.chunks()) as chunks:
                async for chunk in chunks:
                    held += chunk
                    if len(held) >= most:
                        break
        except StoreDamagedError as error:
            _log.error("message %r is reported on without it: %s", stored.message.id, error)
            return b""
        return bytes(held[:most])


def _numbers(stored: StoredMessage) -> list[int]:
    return [entry.number for entry in stored.entries]
