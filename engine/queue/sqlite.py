"""The store in a SQLite file: durable, embedded, no server.

`open_store` gives it for one `async with` block.  All its work is done by one thread with group
commit (`engine.queue.committer`), by statements in `engine/queue/sql`; here they meet.  Another
process may have the file open at the same time: each waits for the other's transactions.
Not here: which process is *the* worker.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import trio

from engine.queue import sql_entries, sql_lease, sql_settle, sql_submit, sql_upkeep
from engine.queue.committer import DEFAULT_MAX_WAITING, Kind, one_by_one, open_committer
from engine.queue.database import DEFAULT_BUSY_SECONDS, open_database
from engine.queue.errors import ContentsDamagedError, StoreDamagedError, StoreError
from engine.queue.sql_contents import (
    INLINE_OCTETS,
    PIECE_OCTETS,
    PIECES_AT_ONCE,
    checksum,
    find_damaged,
    read_pieces,
)
from engine.queue.sql_submit import DEFAULT_RESERVE_OCTETS, Intake, Pieces, pack
from engine.queue.store import DEFAULT_OVERDUE, Store
from engine.queue.unopened import UnopenedStore
from engine.queue.values import EVERYBODY, Action, Lease, Selection, check_reason, check_weight
from engine.queue.values import to_milliseconds as ms
from engine.smtp.errors import ContentError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from engine.message import Content
    from engine.queue.committer import Committer
    from engine.queue.database import Database
    from engine.queue.entries import Backlog, Counts, Delayed, Page, StoredMessage
    from engine.queue.sql_submit import Parcel
    from engine.queue.submission import Accepted, Submission
    from engine.queue.unopened import StoreToOpen
    from engine.queue.values import LeasedMessage, Owner, Recovered, Removal, Settlement, SiteState

_R = TypeVar("_R")

_log = logging.getLogger("engine.queue")

# ---- what the thread is asked to do -------------------------------------------------------------

_SUBMIT: Final = Kind("submit", sql_submit.submit)
_SETTLE: Final = Kind("settle", sql_settle.settle)
_MARK: Final = Kind("mark", sql_lease.mark, is_urgent=True)
_LEASE: Final = one_by_one("lease", sql_lease.lease)
_RECOVER: Final = one_by_one("recover", sql_lease.recover)
_STEER: Final = one_by_one("apply", sql_entries.steer)
_ADD_PIECES: Final = one_by_one("add pieces", sql_submit.add_pieces)


def _call(db: Database, do: Callable[[Database], Any]) -> Any:
    return do(db)


#: What is seldom wanted has no kind of its own.
_WRITE: Final = one_by_one("write", _call)
_READ: Final = one_by_one("read", _call, is_read=True)


class SqliteStore(Store):
    """A store in a file; made by `open_store`.

    Methods are described in `engine.queue.store.Store`.
    """

    def __init__(
        self,
        committer: Committer,
        path: Path,
        *,
        overdue: float,
        reserve_octets: int,
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self._committer = committer
        self._overdue = ms(overdue)
        self._reserve = reserve_octets
        self._clock = clock
        self._swept = 0
        self._changes = 0
        self._changed = trio.Event()

    # -- going in ---------------------------------------------------------------------------

    async def submit(
        self,
        submissions: Sequence[Submission],
        *,
        forget: Sequence[int] = (),
        warned: Sequence[int] = (),
    ) -> tuple[Accepted, ...]:
        """Take messages, all or none; large contents are written before, in pieces."""
        parcels: list[Parcel] = []
        now = max((ms(each.submitted_at) for each in submissions), default=0)
        try:
            for each in submissions:
                parcels.append(await self._pack(each))  # noqa: PERF401 - what came is to be dropped
            intake = Intake(
                tuple(parcels), tuple(forget), now, self._overdue, self._reserve, tuple(warned)
            )
            accepted = await self._committer.do(_SUBMIT, intake)
        except BaseException:
            await self._drop_uploads(parcels)
            raise
        known = [parcel for parcel, each in zip(parcels, accepted, strict=True) if not each.is_new]
        if len(known) < len(parcels):
            self._note_change()
        await self._drop_uploads(known)
        return accepted

    async def _pack(self, submission: Submission) -> Parcel:
        content = submission.message.content
        octets = content.octets
        if octets is None and content.facts.octets <= INLINE_OCTETS:
            async with aclosing(content.chunks()) as chunks:
                octets = b"".join([chunk async for chunk in chunks])
        if octets is not None and len(octets) <= INLINE_OCTETS:
            _check_size(content, len(octets))
            return pack(submission, octets, checksum(octets), None)
        upload, sha256 = await self._upload(content)
        return pack(submission, None, sha256, upload)

    async def _upload(self, content: Content) -> tuple[int, str]:
        """Write a large content; return where its pieces are, and its checksum."""
        digest, size, upload, first = hashlib.sha256(), 0, 0, 0
        most = PIECE_OCTETS * PIECES_AT_ONCE
        held = bytearray()
        try:
            async with aclosing(content.chunks()) as chunks:
                async for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    held += chunk
                    if len(held) >= most:
                        upload = await self._add(upload, first, bytes(held[:most]))
                        first += PIECES_AT_ONCE
                        del held[:most]
            if held or not upload:
                upload = await self._add(upload, first, bytes(held))
            _check_size(content, size)
        except BaseException:
            await self._drop(upload)
            raise
        return upload, digest.hexdigest()

    async def _add(self, upload: int, first: int, octets: bytes) -> int:
        pieces = tuple(
            octets[start : start + PIECE_OCTETS] for start in range(0, len(octets), PIECE_OCTETS)
        )
        call = Pieces(upload, first, pieces, ms(self._clock()), self._reserve)
        return await self._committer.do(_ADD_PIECES, call)

    async def _drop_uploads(self, parcels: Sequence[Parcel]) -> None:
        for parcel in parcels:
            await self._drop(parcel.upload or 0)

    async def _drop(self, upload: int) -> None:
        """Drop what nobody will come for, if that can be done; else a sweep will."""
        if upload:
            with trio.move_on_after(_TIDY_SECONDS, shield=True):
                try:
                    await self._write(partial(sql_submit.drop_uploads, uploads=[upload]))
                except StoreError:
                    return

    # -- leases -----------------------------------------------------------------------------

    async def lease(
        self,
        *,
        owner: str,
        now: float,
        seats: int,
        deadline: float,
        retry_at: float,
        site_seats: int,
    ) -> Lease:
        """Take recipients that are due, at most so many."""
        request = sql_lease.Leasing(
            owner=owner,
            now=ms(now),
            seats=seats,
            deadline=ms(deadline),
            retry_at=ms(retry_at),
            site_seats=site_seats,
            overdue=self._overdue,
            read=self._read_pieces,
        )
        for _ in range(_DAMAGES):
            try:
                harvest = await self._committer.do(_LEASE, request)
            except ContentsDamagedError as error:
                # What meets a damaged page can write nothing any more; so in three steps.
                damaged = await self._read(partial(find_damaged, messages=error.messages))
                await self._write(partial(sql_lease.hold_damaged, messages=damaged))
            else:
                lease = await _make_lease(harvest, request)
                if harvest.unreadable:
                    await self._hold_unreadable(harvest, request)
                return lease
        # The next lease goes on with others.
        raise StoreError(f"{self.path}: many contents are damaged; those that were found are held")

    async def _hold_unreadable(
        self, harvest: sql_lease.Harvest, request: sql_lease.Leasing
    ) -> None:
        _log.error(
            "%d recipients cannot be read and are held: %s",
            len(harvest.unreadable),
            next(iter(harvest.unreadable.values()))[0],
        )
        hold = partial(
            sql_lease.hold_unreadable, harvest=harvest, now=request.now, overdue=request.overdue
        )
        # What was leased beside them must not be forgotten because of them.
        with trio.move_on_after(_TIDY_SECONDS, shield=True):
            try:
                await self._write(hold)
            except StoreError as error:
                _log.error("they stay leased until the worker starts again: %s", error)

    async def mark(self, lease: int, recipients: Sequence[int]) -> None:
        """Write down that a content is about to go out to its end."""
        await self._committer.do(_MARK, sql_lease.Marking(lease, tuple(recipients)))

    async def settle(
        self,
        settlements: Sequence[Settlement],
        *,
        now: float,
        sites: Sequence[SiteState] = (),
        routes: Mapping[str, str] | None = None,
    ) -> tuple[int, ...]:
        """Settle leased recipients."""
        call = sql_settle.Settling(
            tuple(settlements), ms(now), self._overdue, tuple(sites), dict(routes or {})
        )
        try:
            return await self._committer.do(_SETTLE, call)
        except StoreDamagedError:
            # What was done must be known, even where the contents cannot be touched any more.
            return await self._committer.do(_SETTLE, replace(call, keeps_contents=True))

    async def extend(self, owner: str, *, deadline: float) -> int:
        """Put the deadline of all leases of an owner off."""
        return await self._write(partial(sql_lease.extend, owner=owner, deadline=ms(deadline)))

    async def owners(self) -> tuple[Owner, ...]:
        """Return who holds leases."""
        return await self._read(sql_lease.owners)

    async def recover(
        self, *, owner: str, now: float, deadline: float, dead: Sequence[str] = ()
    ) -> Recovered:
        """Take over leases that were lost."""
        request = sql_lease.Recovering(
            owner=owner,
            now=ms(now),
            deadline=ms(deadline),
            dead=tuple(dead),
            overdue=self._overdue,
            read=self._read_pieces,
        )
        recovered = await self._committer.do(_RECOVER, request)
        if recovered.released:
            self._note_change()
        return recovered

    # -- looking and steering ---------------------------------------------------------------

    async def entries(
        self, selection: Selection = EVERYBODY, *, after: int = 0, limit: int = 100
    ) -> Page:
        """List recipients."""
        return await self._read(
            partial(sql_entries.read_page, selection=selection, after=after, limit=limit)
        )

    async def counts(self, *, now: float) -> Counts:
        """Count what is there."""
        return await self._read(partial(sql_entries.count, now=ms(now)))

    async def apply(
        self, action: Action, selection: Selection, *, now: float, reason: str = ""
    ) -> int:
        """Do something to all that is selected."""
        check_reason(reason)
        total, after = 0, 0
        while True:
            call = sql_entries.Steering(action, selection, after, ms(now), self._overdue, reason)
            count, end = await self._committer.do(_STEER, call)
            total += count
            if count:
                self._note_change()
            if end is None:
                return total
            after = end

    async def messages(self, *, after: int = 0, limit: int = 100) -> tuple[StoredMessage, ...]:
        """Return whole messages."""
        return await self._read(
            partial(sql_entries.read_stored, after=after, limit=limit, read=self._read_pieces)
        )

    async def ended(self, *, after: int = 0, limit: int = 100) -> tuple[StoredMessage, ...]:
        """Return messages with recipients that ended."""
        while True:
            messages, unreadable = await self._read(
                partial(sql_entries.read_ended, after=after, limit=limit, read=self._read_pieces)
            )
            if unreadable:
                _log.error(
                    "%d recipients have ended, cannot be read and are held: %s",
                    len(unreadable),
                    next(iter(unreadable.values())),
                )
                await self._write(partial(sql_entries.hold_ended, unreadable=unreadable))
            # Whoever asks takes nothing for the end.
            if messages or not unreadable:
                return messages

    async def delayed(
        self, *, now: float, waits: Sequence[float], after: int = 0, limit: int = 100
    ) -> Delayed:
        """Return messages with recipients that wait, and whose sender is to hear of that."""
        return await self._read(
            partial(
                sql_entries.read_delayed,
                now=ms(now),
                waits=tuple(map(ms, waits)),
                after=after,
                limit=limit,
                read=self._read_pieces,
            )
        )

    async def note_warned(self, recipients: Sequence[int], *, now: float) -> None:
        """Note that a sender has heard of a delay."""
        await self._write(
            partial(sql_settle.note_warned, recipients=tuple(recipients), now=ms(now))
        )

    async def forget(self, recipients: Sequence[int]) -> None:
        """Delete recipients that ended."""
        await self._write(
            partial(sql_settle.forget, recipients=tuple(recipients), now=ms(self._clock()))
        )

    async def removals(self, *, limit: int = 500) -> tuple[Removal, ...]:
        """Return who was taken out of the queue by hand."""
        return await self._read(partial(sql_entries.read_removals, limit=limit))

    async def forget_removals(self, numbers: Sequence[int]) -> None:
        """Forget of these that they were taken out."""
        await self._write(partial(sql_entries.forget_removals, numbers=tuple(numbers)))

    async def sites(self) -> tuple[SiteState, ...]:
        """Return the sites that are not in good health."""
        return await self._read(sql_entries.read_sites)

    async def backlog(self, *, now: float, limit: int = 20) -> tuple[Backlog, ...]:
        """Return the sites most recipients wait for, or are at."""
        return await self._read(partial(sql_entries.read_backlog, now=ms(now), limit=limit))

    async def set_weight(self, tenant: str, weight: float, *, job: str | None = None) -> None:
        """Say how large a share a tenant or a job gets."""
        check_weight(weight)
        await self._write(
            partial(sql_lease.set_weight, tenant=tenant, job=job, weight=float(weight))
        )

    # -- upkeep -----------------------------------------------------------------------------

    async def sweep(self, *, now: float, remember: float) -> None:
        """Forget what nobody needs any more."""
        self._swept = await self._write(
            partial(sql_upkeep.sweep, now=ms(now), remember=ms(remember), after=self._swept)
        )

    async def check(self) -> AsyncGenerator[str, None]:
        """Look at everything, through a connection of its own: it takes long."""
        limiter = trio.CapacityLimiter(1)
        run = partial(trio.to_thread.run_sync, limiter=limiter)
        db = await run(partial(open_database, self.path, is_read_only=True))
        try:
            for problem in await run(sql_upkeep.check_structure, db):
                yield problem
            for step in (sql_upkeep.check_strays, sql_upkeep.check_contents):
                after: int | None = 0
                while after is not None:
                    problems, after = await run(step, db, after)
                    for problem in problems:
                        yield problem
        finally:
            # Only read: that is quick.
            db.close()

    @property
    def changes(self) -> int:
        """Counts what may have made something due."""
        return self._changes

    async def wait_changed(self, since: int) -> None:
        """Wait until `changes` is not `since` any more."""
        while self._changes == since:
            await self._changed.wait()

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    async def _write(self, do: Callable[[Database], _R]) -> _R:
        result: _R = await self._committer.do(_WRITE, do)
        return result

    async def _read(self, do: Callable[[Database], _R]) -> _R:
        result: _R = await self._committer.do(_READ, do)
        return result

    async def _read_pieces(self, message: int, upload: int | None, first: int) -> bytes:
        return await self._read(partial(read_pieces, message=message, upload=upload, first=first))


#: How often one lease sets messages with damaged contents aside.
_DAMAGES: Final = 20
#: For how long a caller that was cancelled still waits to have done what others need.
_TIDY_SECONDS: Final = 1.0
#: Messages that are made values of at a time: a millisecond or two.
_MADE_AT_ONCE: Final = 50


def _check_size(content: Content, size: int) -> None:
    if size != content.facts.octets:
        raise ContentError(
            f"a content of {size} octets was said to have {content.facts.octets}; "
            "allowed is one that stays as it is"
        )


async def _make_lease(harvest: sql_lease.Harvest, request: sql_lease.Leasing) -> Lease:
    """Make values of what is leased already, giving way to others now and then."""
    made: list[list[LeasedMessage]] = []
    for taken, counted in ((harvest.taken, 1), (harvest.expired, 0)):
        made.append([])
        for message in sql_lease.leased(
            harvest, taken, read=request.read, now=request.now, counted=counted
        ):
            made[-1].append(message)
            if len(made[-1]) % _MADE_AT_ONCE == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()
    messages, expired = map(tuple, made)
    return Lease(
        number=harvest.number,
        messages=messages,
        expired=expired,
        sites=harvest.sites,
        next_due=harvest.next_due,
        is_clogged=harvest.is_clogged,
    )


def open_store(
    path: str | os.PathLike[str],
    *,
    is_read_only: bool = False,
    overdue: float = DEFAULT_OVERDUE,
    busy_seconds: float = DEFAULT_BUSY_SECONDS,
    reserve_octets: int = DEFAULT_RESERVE_OCTETS,
    max_waiting: int = DEFAULT_MAX_WAITING,
    clock: Callable[[], float] = time.time,
) -> StoreToOpen[SqliteStore]:
    """Open the store in a file, for one `async with` block; a file that is not there is made.

    What has begun when the block ends, or is cancelled, is finished first.  An engine opens and
    closes for itself what was not entered: `Engine(store=open_store(path))`.

    Args:
        path: The file, in a folder that is there; two more stand beside it while it is open.
        is_read_only: Whether nothing may be changed; what changes something then raises.
        overdue: How long a recipient of a site that is backed off may be due before it is leased
            all the same, in seconds.
        busy_seconds: How long to wait for other processes.
        reserve_octets: How much of the disk is left for settling: below, nothing is taken in.
        max_waiting: Operations under way at a time; whoever asks for more waits.
        clock: Wall clock, for what is only begun; all other times come from the caller.

    Raises:
        StoreError: From the block: it cannot be opened; what is not ours is left as it was.
    """
    opener = partial(open_database, path, is_read_only=is_read_only, busy_seconds=busy_seconds)
    opening = partial(
        _open, opener, max_waiting, overdue=overdue, reserve_octets=reserve_octets, clock=clock
    )
    return cast("StoreToOpen[SqliteStore]", UnopenedStore(opening, os.fspath(path)))


@asynccontextmanager
async def _open(
    opener: Callable[[], Database], max_waiting: int, **options: Any
) -> AsyncIterator[SqliteStore]:
    async with open_committer(opener, max_waiting=max_waiting) as committer:
        yield SqliteStore(committer, committer.path, **options)
