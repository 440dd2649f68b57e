from __future__ import annotations

from tests.queue.crash import crash


def test_a_process_that_is_killed_at_random_moments_loses_nothing(tmp_path):
    """The long version is `python -m tests.queue.crash --kills 200`."""
    counts = crash(5, seed=1, longest=0.4, folder=tmp_path)

    assert counts["lost"] == 0
    assert counts["kills"] == 5
    # How much a child gets done before it is killed is the machine's affair.
    assert counts["accepted"] > 0
