from __future__ import annotations

from tests.queue.scale import measure


def test_a_store_with_many_recipients_starts_at_once_and_stays_small(tmp_path):
    """The size that counts is `python -m tests.queue.scale`: a million over 100,000 domains."""
    facts = measure(20_000, 2_000, folder=tmp_path)

    assert facts["queued"] == 20_000
    assert facts["leased"] == 1000
    assert facts["first_lease_seconds"] < 2
    # Leases of a thousand do not become slow with what waits behind them.
    assert facts["lease_seconds"] < 1
    assert facts["peak_mib"] < 200
