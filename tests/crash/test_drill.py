"""The short form; the long one is `python -m tests.crash --kills 200`."""

from __future__ import annotations

import pytest

from tests.crash.disk import NoDiskError
from tests.crash.drill import Plan, run


def check(report):
    assert report.violations == [], (report.counts, report.log)
    assert report.counts["lost"] == 0
    assert report.counts["recipients accepted"] > 100


def test_a_worker_of_two_processes_that_are_killed_under_load_loses_nothing(tmp_path):
    check(run(Plan(kills=3, processes=2, seconds=1.0, seed=2), folder=tmp_path))


def test_a_worker_that_is_killed_and_has_no_room_on_its_disk_loses_nothing(tmp_path):
    try:
        report = run(Plan(kills=2, seconds=1.0, is_disk_full=True, seed=1), folder=tmp_path)
    except NoDiskError as error:
        pytest.skip(f"a small disk cannot be made here ({error})")
    check(report)
