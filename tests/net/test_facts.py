"""Facts about a connection."""

from __future__ import annotations

import dataclasses

import pytest

from engine.net.facts import ConnectionFacts


def test_facts_cannot_be_changed_or_added_to():
    facts = ConnectionFacts(
        host="mx.test",
        address="192.0.2.1",
        port=25,
        local_address="192.0.2.9",
        local_port=40000,
        is_ipv6=False,
        interface=None,
        proxy=None,
        fast_open="off",
        connect_seconds=0.1,
    )
    assert (facts.round_trip_seconds, facts.through) == (None, None)
    assert not hasattr(facts, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.port = 26
