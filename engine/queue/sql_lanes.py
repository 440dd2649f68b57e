"""Lanes, sites and domains in a SQL store: where recipients wait, and for whom they count.

Called in the thread of the store by whatever queues recipients or learns about sites.  Not here:
which lane is next (`engine.queue.sql_lease`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypeAlias

from engine.queue.values import to_milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engine.queue.database import Database
    from engine.queue.values import SiteState

#: A lane longer than this is not merged into another, but stands beside it: recipients are moved one
#: by one, and others wait meanwhile.
_LONG_LANE: Final = 1000

#: Whose mail waits together: domain, priority, tenant, job.
Place: TypeAlias = tuple[str, int, str, str]


def open_lanes(
    db: Database, waiting: Iterable[tuple[Place, int]], *, overdue: int
) -> dict[Place, int]:
    """Find or make the lanes of recipients that are going to wait.

    Args:
        db: The database.
        waiting: Places, and when something is due there in milliseconds.
        overdue: For how long a back-off may keep what is due, in milliseconds.

    Returns:
        The number of each place's lane.
    """
    dues: dict[Place, int] = {}
    for place, due in waiting:
        dues[place] = min(due, dues.get(place, due))
    if not dues:
        return {}
    domains = json.dumps(list(dict.fromkeys(place[0] for place in dues)))
    if names := db.rows("new_domains", domains=domains):
        db.run("insert_sites", names=json.dumps(names))
        db.run("insert_domains", names=json.dumps(names))
    rows = json.dumps([(*place, due) for place, due in dues.items()])
    db.run("open_lanes", rows=rows, overdue=overdue)
    return dict(zip(dues, db.rows("numbers_of_lanes", rows=rows), strict=True))


def leave_lanes(db: Database, lanes: Iterable[int], *, overdue: int) -> None:
    """Look again at lanes from which somebody was taken otherwise than by a lease."""
    numbers = json.dumps(list(lanes))
    db.run("drop_empty_lanes", lanes=numbers)
    db.run("look_again_at_lanes", lanes=numbers, overdue=overdue)


def note_sites(db: Database, states: Sequence[SiteState], *, overdue: int) -> None:
    """Write down how sites have been doing, and let their lanes follow; of two the last counts."""
    if not states:
        return
    rows = {
        state.name: (state.name, to_milliseconds(state.not_before), state.failures, state.reason)
        for state in states
    }
    db.run("note_sites", rows=json.dumps(list(rows.values())))
    db.run("lanes_of_sites", names=json.dumps(list(rows)), overdue=overdue)


def move_domains(db: Database, routes: Mapping[str, str], *, overdue: int) -> None:
    """Let domains count for the sites that their routing found.

    What waits under a domain's own name moves along.  A domain that had a site before leaves there
    what waits, and only new mail goes to its new site: domains change their hosts seldom.
    """
    if not routes:
        return
    moved = db.rows("moved_domains", rows=json.dumps(list(routes.items())))
    if not moved:
        return
    names = json.dumps(list({site for _, site, _, _ in moved}))
    db.run("insert_sites", names=names)
    numbers = dict(db.rows("numbers_of_sites", names=names))
    rows = [(domain, numbers[site]) for domain, site, _, _ in moved]
    db.run("set_sites", rows=json.dumps(rows))
    own = [(old, numbers[site]) for domain, site, old, name in moved if name == domain]
    if own:
        _move_lanes(db, own, overdue)
        db.run("move_out", rows=json.dumps(own))
        db.run("delete_sites", sites=json.dumps([old for old, _ in own]))


def _move_lanes(db: Database, sites: Sequence[tuple[int, int]], overdue: int) -> None:
    """Move the lanes of sites to others, into the lanes for the same mail where there are any."""
    moved: list[tuple[int, int, int]] = []
    merged: list[tuple[int, int]] = []
    there: dict[tuple[object, ...], int] = {}
    rows = json.dumps(sites)
    for lane, *share, site, found, length in db.rows(
        "lanes_to_move", rows=rows, most=_LONG_LANE + 1
    ):
        target = there.setdefault((*share, site), lane if found is None else found)
        if target == lane:
            moved.append((lane, site, 0))
        elif length > _LONG_LANE:
            moved.append((lane, site, lane))
        else:
            merged.append((lane, target))
    if moved:
        db.run("move_lanes", rows=json.dumps(moved))
    if merged:
        db.run("merge_lanes", rows=json.dumps(merged))
        db.run("close_lanes", lanes=json.dumps([lane for lane, _ in merged]))
    # The site they come from may have been backed off, or the one they come to may be.
    standing = {lane for lane, _, _ in moved} | {target for _, target in merged}
    if standing:
        db.run("look_again_at_lanes", lanes=json.dumps(list(standing)), overdue=overdue)
