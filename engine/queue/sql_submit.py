"""Taking messages in: what a submission becomes in the tables of a SQL store.

`pack` runs where the submitter is and does all that needs no database; the rest runs in the thread
of the store, for many submissions at once.  Not here: lanes' places in the line
(`engine.queue.sql_lease`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.queue.errors import DuplicateIdError, StoreError, StoreFullError
from engine.queue.sql_lanes import open_lanes
from engine.queue.sql_settle import forget, note_warned
from engine.queue.submission import Accepted
from engine.queue.values import to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.queue.database import Database
    from engine.queue.submission import Submission

#: So much of the disk is left for settling what is under way: intake stops before the rest does.
DEFAULT_RESERVE_OCTETS: Final = 32 * 1024 * 1024


class _Waiting(NamedTuple):
    """A recipient on its way in, as a row of `insert_recipients` without message and lane."""

    address: str
    domain: str
    notify: str
    orcpt: str | None


@dataclass(frozen=True, slots=True)
class Parcel:
    """One submission, packed.

    Attributes:
        id: The message's id.
        row: Its row, without the fingerprint.
        fingerprint: Tells it from another message with its id.
        recipients: Its recipients.
        octets: Its content where that is small, else `None`.
        upload: Where the pieces of a large one are, else `None`.
        due: When it may be tried, in milliseconds; `None` when it is held.
    """

    id: str
    row: tuple[Any, ...]
    fingerprint: str
    recipients: tuple[_Waiting, ...]
    octets: bytes | None
    upload: int | None
    due: int | None

    @property
    def share(self) -> tuple[int, str, str]:
        """Its priority, tenant and job."""
        return self.row[8], self.row[6], self.row[7]


def pack(submission: Submission, octets: bytes | None, sha256: str, upload: int | None) -> Parcel:
    """Pack a submission whose content is known.

    Args:
        submission: It.
        octets: A small content, whole.
        sha256: Of the content.
        upload: Where the pieces of a large content are.
    """
    message = submission.message
    facts = message.content.facts
    reverse_path = "" if message.reverse_path is None else str(message.reverse_path)
    submitted_at = to_milliseconds(submission.submitted_at)
    due = submitted_at if submission.not_before is None else to_milliseconds(submission.not_before)
    row = (
        message.id,
        reverse_path,
        message.envid,
        message.ret,
        int(message.require_tls),
        int(message.smtputf8),
        submission.tenant,
        submission.job,
        submission.priority,
        submitted_at,
        None if submission.deadline is None else to_milliseconds(submission.deadline),
        facts.octets,
        int(facts.is_8bit),
        facts.longest_line,
        int(facts.has_utf8_header),
        sha256,
        upload,
        None if submission.not_before is None else to_milliseconds(submission.not_before),
        int(facts.is_tls_optional),
        int(facts.is_binary),
    )
    return Parcel(
        message.id,
        row,
        fingerprint(submission, sha256),
        tuple(
            _Waiting(
                each.address,
                each.mailbox.routing_domain,
                ",".join(sorted(each.notify)),
                each.orcpt,
            )
            for each in message.recipients
        ),
        octets,
        upload,
        None if submission.is_held else max(due, submitted_at),
    )


def fingerprint(submission: Submission, sha256: str) -> str:
    """Return what two submissions have in common that stand for the same message."""
    message = submission.message
    parts = ["" if message.reverse_path is None else str(message.reverse_path), sha256]
    parts += [recipient.address for recipient in message.recipients]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


# ---- in the thread of the store -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Intake:
    """What one call of `submit` asks for.

    Attributes:
        parcels: The messages, taken all or none.
        forget: Ended recipients to forget with that.
        now: The time, in milliseconds.
        overdue: For how long a back-off may keep what is due, in milliseconds.
        reserve: Octets of the disk that are not for this.
        warned: Recipients whose senders are warned by that.
    """

    parcels: tuple[Parcel, ...]
    forget: tuple[int, ...]
    now: int
    overdue: int
    reserve: int
    warned: tuple[int, ...] = ()


def submit(
    db: Database, intakes: Sequence[Intake]
) -> list[tuple[Accepted, ...] | DuplicateIdError | StoreFullError]:
    """Take the messages of many calls; what is wrong with one call is no matter to the others."""
    free = db.free_octets()
    if any(free < each.reserve for each in intakes):
        # All of them: they would share the transaction that fills the disk.
        text = f"{db.path}: {free} octets are left on the disk; nothing more is taken below "
        return [StoreFullError(f"{text}{each.reserve}") for each in intakes]
    ids = [parcel.id for intake in intakes for parcel in intake.parcels]
    known = {row[0]: row[2] for row in db.rows("known_messages", ids=json.dumps(ids))}
    results: list[tuple[Accepted, ...] | DuplicateIdError | StoreFullError] = []
    new: list[Parcel] = []
    forgotten: list[int] = []
    for intake in intakes:
        result, parcels = _sort_out(intake, known)
        results.append(result)
        if not isinstance(result, Exception):
            known |= {parcel.id: parcel.fingerprint for parcel in parcels}
            new += parcels
            forgotten += intake.forget
            if intake.warned:
                note_warned(db, intake.warned, now=intake.now)
    if new:
        _insert(db, new, overdue=intakes[0].overdue)
    if forgotten:
        forget(db, forgotten, now=intakes[0].now)
    return results


def _sort_out(
    intake: Intake, known: dict[str, str]
) -> tuple[tuple[Accepted, ...] | DuplicateIdError, list[Parcel]]:
    """Tell what is new from what is there already."""
    mine: dict[str, str] = {}
    accepted, new = [], []
    for parcel in intake.parcels:
        there = known.get(parcel.id, mine.get(parcel.id))
        if there is not None and there != parcel.fingerprint:
            return _duplicate(parcel.id), []
        if there is None:
            mine[parcel.id] = parcel.fingerprint
            new.append(parcel)
        accepted.append(Accepted(parcel.id, there is None))
    return tuple(accepted), new


def _duplicate(id: str) -> DuplicateIdError:  # noqa: A002 - the field's word
    return DuplicateIdError(
        f"message id {id!r} is known already, with another sender, other recipients or another "
        "content; allowed is an id of its own for each message"
    )


def _insert(db: Database, parcels: list[Parcel], *, overdue: int) -> None:
    rows = [(*parcel.row, parcel.fingerprint) for parcel in parcels]
    db.run("insert_messages", rows=json.dumps(rows))
    ids = json.dumps([parcel.id for parcel in parcels])
    numbers = {row[0]: row[1] for row in db.rows("known_messages", ids=ids)}
    db.insert_many(
        "insert_contents",
        [(numbers[each.id], each.octets) for each in parcels if each.octets is not None],
    )
    uploads = [parcel.upload for parcel in parcels if parcel.upload is not None]
    if uploads:
        db.run("finish_uploads", uploads=json.dumps(uploads))
        if db.changed() != len(uploads):
            raise StoreError("a large content took so long to come that its beginning was dropped")
    lanes = open_lanes(
        db,
        [
            ((recipient.domain, *parcel.share), parcel.due)
            for parcel in parcels
            if parcel.due is not None
            for recipient in parcel.recipients
        ],
        overdue=overdue,
    )
    recipients = [
        (
            numbers[parcel.id],
            *recipient,
            parcel.row[10],
            "held" if parcel.due is None else "queued",
            parcel.row[9] if parcel.due is None else parcel.due,
            None if parcel.due is None else lanes[recipient.domain, *parcel.share],
        )
        for parcel in parcels
        for recipient in parcel.recipients
    ]
    db.run("insert_recipients", rows=json.dumps(recipients))


# -- large contents -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pieces:
    """Some pieces of a large content.

    Attributes:
        upload: Where they belong, 0 for the first of a new one.
        first: The number of the first of them, from 0.
        pieces: They.
        now: The time, in milliseconds.
        reserve: Octets of the disk that are not for this.
    """

    upload: int
    first: int
    pieces: tuple[bytes, ...]
    now: int
    reserve: int


def add_pieces(db: Database, call: Pieces) -> int:
    """Add pieces to a content, and return where they are.

    Raises:
        StoreFullError: Only the reserve is left on the disk.
    """
    if (free := db.free_octets()) < call.reserve:
        raise StoreFullError(
            f"{db.path}: {free} octets are left on the disk; nothing more is taken"
        )
    upload = call.upload
    if not upload:
        db.run("insert_upload", now=call.now)
        upload = db.last_number()
    rows = [(upload, call.first + index, piece) for index, piece in enumerate(call.pieces)]
    db.insert_many("insert_pieces", rows)
    return upload


def drop_uploads(db: Database, uploads: Sequence[int]) -> None:
    """Drop pieces that no message came for."""
    numbers = json.dumps(uploads)
    db.run("drop_pieces_of", uploads=numbers)
    db.run("finish_uploads", uploads=numbers)
