"""What a store of queued mail does: the protocol.  Knows no I/O.

The queue lives in a store: whoever submits puts messages in, the scheduler leases what is due and
settles what became of it, the command line looks and steers.  `engine.queue.sqlite` keeps it in a
file, `engine.queue.memory` in memory; `tests/queue/store_conformance.py` says what both must do.
Not here: when to try again (`engine.queue.retry`), and who delivers (`engine.queue.scheduler`).

Theory of operation

A *recipient* is `queued` until it is leased, `leased` while a worker is at it, `held` when a person
asked for that, and `ended` when it is done with but somebody has yet to be told.  What nobody needs
to be told about is deleted when it ends.

A *lease* belongs to an owner, one run of one worker, and holds until a deadline that the owner puts
off again and again.  When it is given, the attempt is counted and the next attempt is written down,
in the future: a worker that dies leaves mail that waits, never mail that is tried over and over.
Before the last octets of a content go out the recipients are *marked*.  So, after a crash, those
who may have the message already are known; all others certainly do not have it.

Recipients wait in *lanes*, one for each (site, priority, tenant, job).  A lease takes from the lanes
in turn: higher priorities first, and among equals so that tenants, and jobs of a tenant, get shares
according to their weights (`engine.queue.turns`).  No site gets more than so many recipients at a
time, so a clogged one leaves seats to others.  The site of a domain is the domain itself until
somebody who has routed it says otherwise.

All times are wall-clock seconds since the epoch and come from the caller: stores have no clock.
They keep milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from engine.queue.values import EVERYBODY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from engine.queue.entries import Backlog, Counts, Delayed, Page, StoredMessage
    from engine.queue.submission import Accepted, Submission
    from engine.queue.values import (
        Action,
        Lease,
        Owner,
        Recovered,
        Removal,
        Selection,
        Settlement,
        SiteState,
    )

#: How long a recipient of a site that is backed off may be due before it is leased all the same, in
#: seconds: a site that is down for days must not keep its mail from ever being given up.
DEFAULT_OVERDUE: Final = 4 * 3600.0


class Store(Protocol):
    """A durable queue; see the head of the module.

    Every method may raise `StoreError`, and then has not happened.  Cancelled before its turn comes
    it has not happened either; a method that has begun is waited for, and its result returned.
    """

    async def submit(
        self,
        submissions: Sequence[Submission],
        *,
        forget: Sequence[int] = (),
        warned: Sequence[int] = (),
    ) -> tuple[Accepted, ...]:
        """Take messages, all or none; they are on disk when this returns.

        Args:
            submissions: The messages.
            forget: Ended recipients to forget in the same breath: those that these messages report
                about.
            warned: Recipients to note in the same breath as in `note_warned`: those of whose delay
                these messages warn.

        Raises:
            DuplicateIdError: An id stands for another message.
            ContentError: A content cannot be read.
        """
        ...

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
        """Take recipients that are due, at most so many.

        Args:
            owner: Who takes them.
            now: The time.
            seats: How many at most; with 0 only what expired.
            deadline: Until when the lease holds.
            retry_at: When each is due again should its lease be lost; in the future.
            site_seats: How many recipients of one site may be under leases together, all owners'.
        """
        ...

    async def mark(self, lease: int, recipients: Sequence[int]) -> None:
        """Write down that the content is about to go out to its end for these recipients.

        Raises:
            LeaseLostError: Somebody else may be at them by now; nothing was marked.
        """
        ...

    async def settle(
        self,
        settlements: Sequence[Settlement],
        *,
        now: float,
        sites: Sequence[SiteState] = (),
        routes: Mapping[str, str] | None = None,
    ) -> tuple[int, ...]:
        """Settle leased recipients; once is enough, twice is no harm.

        A settlement also counts when its lease was lost but nobody has leased the recipient since.
        A hold, a cancellation or a purge that came while it was leased wins over `DEFERRED`,
        `HELD` and `RELEASED`.

        Args:
            settlements: What becomes of them.
            now: The time.
            sites: How sites have been doing.
            routes: The site of each domain, as its routing found out.

        Returns:
            The recipients that were not this lease's to settle any more; nothing was done to them.
        """
        ...

    async def extend(self, owner: str, *, deadline: float) -> int:
        """Put the deadline of all leases of an owner off; return how many recipients they have."""
        ...

    async def owners(self) -> tuple[Owner, ...]:
        """Return who holds leases."""
        ...

    async def recover(
        self,
        *,
        owner: str,
        now: float,
        deadline: float,
        dead: Sequence[str] = (),
    ) -> Recovered:
        """Take over leases that have run out, and all of owners that are known to be dead.

        Args:
            owner: Who takes over; its own leases are left alone.
            now: The time.
            deadline: Until when the lease of those taken over holds.
            dead: Owners whose leases are lost before their deadline.
        """
        ...

    async def entries(
        self, selection: Selection = EVERYBODY, *, after: int = 0, limit: int = 100
    ) -> Page:
        """List recipients, at most so many, from behind a number on.

        A page may be short, or empty, long before the end: whoever looks for little in much gets
        control back in between.
        """
        ...

    async def counts(self, *, now: float) -> Counts:
        """Count what is there."""
        ...

    async def apply(
        self, action: Action, selection: Selection, *, now: float, reason: str = ""
    ) -> int:
        """Do something to all that is selected; return to how many recipients it was done.

        What is leased is held, cancelled or purged once its attempt is settled, unless that ends
        it.  Large selections take several steps, between which others have their turn; cancelled,
        the steps so far stay done.

        Raises:
            ValueError: The reason is too long, or no text.
        """
        ...

    async def messages(self, *, after: int = 0, limit: int = 100) -> tuple[StoredMessage, ...]:
        """Return whole messages in the order they came, from behind a number on."""
        ...

    async def ended(self, *, after: int = 0, limit: int = 100) -> tuple[StoredMessage, ...]:
        """Return messages with recipients that ended and that somebody is to be told about.

        With these recipients only, in the order they came, from behind a number on.  Who cannot be
        read any more is held instead.
        """
        ...

    async def delayed(
        self, *, now: float, waits: Sequence[float], after: int = 0, limit: int = 100
    ) -> Delayed:
        """Return messages with recipients that wait, and whose sender is to hear of that.

        A message is waited for since it was submitted, or since `not_before`.  What is held is not
        waited for, and what came from the null path by nobody.  Contents that are damaged say so when they are read.

        Args:
            now: The time.
            waits: After how many seconds senders are to hear; each time once.
            after: The number of a recipient: behind it.
            limit: Recipients at most; there may be few, or none, long before the end.
        """
        ...

    async def note_warned(self, recipients: Sequence[int], *, now: float) -> None:
        """Note that a sender has heard of a delay, or does not want to, until the next wait is over.

        Args:
            recipients: Those who wait; who is not there any more is left out.
            now: The time.
        """
        ...

    async def forget(self, recipients: Sequence[int]) -> None:
        """Delete recipients that ended; those that did not are left alone."""
        ...

    async def removals(self, *, limit: int = 500) -> tuple[Removal, ...]:
        """Return who was cancelled or purged and is not forgotten, in that order, at most so many.

        For a log that says of every recipient how it ended: no outcome of an attempt does that
        here.  Who had ended before it was purged is not among them.
        """
        ...

    async def forget_removals(self, numbers: Sequence[int]) -> None:
        """Forget of these, by the numbers of their removals, that they were taken out."""
        ...

    async def sites(self) -> tuple[SiteState, ...]:
        """Return the sites that are not in good health."""
        ...

    async def backlog(self, *, now: float, limit: int = 20) -> tuple[Backlog, ...]:
        """Return the sites most recipients wait for, or are at, the largest first."""
        ...

    async def set_weight(self, tenant: str, weight: float, *, job: str | None = None) -> None:
        """Say how large a share a tenant gets among tenants, or a job among its tenant's jobs.

        Args:
            tenant: The tenant.
            weight: Above 0; 1.0 is what everybody has of whom nothing was said.
            job: The job; `None`: the tenant itself.

        Raises:
            ValueError: The weight is not above 0, or not finite.
        """
        ...

    async def sweep(self, *, now: float, remember: float) -> None:
        """Forget what nobody needs any more: ids of messages done with, sites without mail.

        Args:
            now: The time.
            remember: For how long the id of a message that is done with is known, and who was taken
                out by hand, in seconds.
        """
        ...

    def check(self) -> AsyncGenerator[str, None]:
        """Look at everything, and yield what is wrong, one line each."""
        ...

    @property
    def changes(self) -> int:
        """Counts what this object has queued: by `submit`, `apply` and `recover`.

        Not by `settle`: whoever settles knows what becomes due when.
        """
        ...

    async def wait_changed(self, since: int) -> None:
        """Wait until `changes` is not `since` any more; what other processes do is not seen."""
        ...
