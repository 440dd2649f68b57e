"""Keeping a SQL store in order: forgetting what nobody needs, and looking for damage.

Called in the thread of the store.  Not here: how often.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import apsw

from engine.queue.sql_contents import measure

if TYPE_CHECKING:
    from engine.queue.database import Database

#: Rows one call deletes at most.
_AT_ONCE: Final = 2000
#: Pages one call gives back to the disk.
_PAGES_AT_ONCE: Final = 500
#: For how long pieces wait for their message, in milliseconds.
_UPLOAD: Final = 3_600_000
_MESSAGES_PER_STEP: Final = 50


def sweep(db: Database, now: int, remember: int, after: int) -> int:
    """Forget what is old, and give room back to the disk, a bit of each.

    Args:
        db: The database.
        now: The time, in milliseconds.
        remember: For how long ids are known, in milliseconds.
        after: What the sweep before returned, 0 at first.
    """
    db.run("forget_messages", before=now - remember, limit=_AT_ONCE)
    db.run("drop_stale_removals", before=now - remember)
    db.run("drop_stale_pieces", before=now - _UPLOAD)
    db.run("drop_stale_uploads", before=now - _UPLOAD)
    db.run("drop_shares")
    db.run("clear_sites", now=now)
    sites = json.dumps(db.rows("idle_sites", now=now, after=after, limit=_AT_ONCE))
    last, count = db.row("next_sites", after=after, limit=_AT_ONCE) or (None, 0)
    db.run("drop_domains", sites=sites)
    db.run("drop_sites", sites=sites)
    _shrink(db)
    return last if count == _AT_ONCE else 0


def _shrink(db: Database) -> None:
    # What is free now will be needed again soon, unless it is most of the file.
    free, pages = next(db.pragma("freelist_count")), next(db.pragma("page_count"))
    if free > _PAGES_AT_ONCE and free > pages // 2:
        for _ in db.pragma(f"incremental_vacuum({_PAGES_AT_ONCE})"):
            pass


def check_structure(db: Database) -> list[str]:
    """Let SQLite look at the whole file, and return what is wrong; takes long where it is large."""
    try:
        found = [str(text) for text in db.pragma("integrity_check")]
    except apsw.CorruptError as error:
        return [f"the file is damaged: {error}"]
    return [f"the file is damaged: {text}" for text in found if text != "ok"]


def check_contents(db: Database, after: int) -> tuple[list[str], int | None]:
    """Compare some contents with their checksums.

    Returns:
        What is wrong, and where the next step begins, if there is one.
    """
    try:
        rows = db.rows("messages_to_check", after=after, limit=_MESSAGES_PER_STEP)
    except apsw.CorruptError as error:
        return [f"contents cannot be looked at: {error}"], None
    problems = []
    for number, id, octets, sha256, upload in rows:  # noqa: A001 - the field's word
        try:
            found, digest = measure(db, number, upload)
        except apsw.CorruptError as error:
            problems.append(f"message {id!r}: its content cannot be read: {error}")
            continue
        if (found, digest) != (octets, sha256):
            problems.append(
                f"message {id!r}: {found} octets of content are not the {octets} that were stored"
            )
    return problems, rows[-1][0] if rows else None


def check_strays(db: Database, after: int) -> tuple[list[str], int | None]:
    """Look for recipients that belong nowhere; returns as `check_contents` does."""
    try:
        found = db.rows("strays", after=after, limit=_MESSAGES_PER_STEP)
    except apsw.CorruptError as error:
        return [f"recipients cannot be looked at: {error}"], None
    problems = [f"recipient {number}: its state contradicts itself" for number in found]
    return problems, found[-1] if found else None
