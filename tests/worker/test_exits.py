from __future__ import annotations

import pytest

from engine.worker.exits import Exit, Incidents, exit_status


@pytest.mark.parametrize(
    ("incidents", "failed", "unfinished", "expected"),
    [
        (Incidents(), 0, 0, Exit.DELIVERED),
        (Incidents(), 0, 1, Exit.DEFERRED),
        (Incidents(), 1, 1, Exit.FAILED),
        (Incidents(is_unheard=True), 0, 0, Exit.DEFERRED),
        (Incidents(is_unheard=True), 1, 0, Exit.FAILED),
        (Incidents(has_unreadable_file=True), 1, 1, Exit.NO_INPUT),
        (Incidents(has_bad_data=True, has_unreadable_file=True), 1, 1, Exit.DATA),
        (Incidents(is_interrupted=True, has_bad_data=True), 1, 1, Exit.INTERRUPTED),
    ],
)
def test_the_gravest_status_wins(
    incidents: Incidents, failed: int, unfinished: int, expected: Exit
):
    assert exit_status(incidents, failed=failed, unfinished=unfinished) is expected


def test_the_statuses_are_those_of_the_contract():
    assert [int(status) for status in Exit] == [0, 64, 65, 66, 69, 74, 75, 78, 130]
