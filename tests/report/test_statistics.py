"""Statistics: counted as things happen, frozen when asked for."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Status
from engine.report.statistics import Recorder, SiteStatistics, Statistics


def submit(recorder, recipients):
    recorder.messages += 1
    recorder.recipients += recipients


def test_fresh_recorder_is_all_zero():
    assert Recorder().snapshot() == Statistics()


def test_snapshot_holds_what_was_counted():
    recorder = Recorder()
    submit(recorder, 3)
    submit(recorder, 4)
    for status, count in zip(Status, (3, 1, 1, 1, 0), strict=True):
        for _ in range(count):
            recorder.settled[status] += 1
    for _ in range(3):
        recorder.connections_opened += 1
    recorder.connections_closed += 1
    recorder.connections_failed += 1
    recorder.transactions += 1
    recorder.transactions += 1
    recorder.octets += 1000
    recorder.octets += 24

    assert recorder.snapshot(events_dropped=5) == Statistics(
        messages=2,
        submitted=7,
        in_flight=1,
        delivered=3,
        deferred=1,
        failed=1,
        unknown=1,
        connections_opened=3,
        connections_open=2,
        connections_failed=1,
        transactions=2,
        octets=1024,
        events_dropped=5,
    )


@given(st.lists(st.integers(1, 5)), st.data())
def test_in_flight_and_settled_always_make_submitted(recipients, data):
    recorder = Recorder()
    for count in recipients:
        submit(recorder, count)
    settled = data.draw(st.lists(st.sampled_from(Status), max_size=sum(recipients)))
    for status in settled:
        recorder.settled[status] += 1

    now = recorder.snapshot()
    assert now.submitted == sum(recipients)
    assert now.in_flight == sum(recipients) - len(settled)
    assert now.delivered == settled.count(Status.DELIVERED)
    assert now.deferred == settled.count(Status.DEFERRED)
    assert now.failed == settled.count(Status.FAILED)
    assert now.unknown == settled.count(Status.UNKNOWN)


def test_snapshot_does_not_change_with_its_recorder():
    recorder = Recorder()
    before = recorder.snapshot()

    submit(recorder, 1)

    assert before.messages == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.messages = 1


def test_sites_come_in_order_of_their_names():
    sites = (SiteStatistics(name) for name in ("b.test", "c.test", "a.test"))

    names = [each.site for each in Recorder().snapshot(sites=sites).sites]

    assert names == ["a.test", "b.test", "c.test"]


def test_repr_is_one_stable_line():
    recorder = Recorder()
    submit(recorder, 2)
    recorder.settled[Status.DELIVERED] += 1

    assert repr(recorder.snapshot(sites=[SiteStatistics("mx.test", waiting=1, delivered=1)])) == (
        "Statistics(messages=1, submitted=2, in_flight=1, delivered=1, deferred=0, failed=0,"
        " unknown=0, connections_opened=0, connections_open=0, connections_failed=0,"
        " transactions=0, octets=0, events_dropped=0,"
        " sites=(SiteStatistics(site='mx.test', waiting=1, connections=0, idle=0, delivered=1,"
        " deferred=0, failed=0, unknown=0),))"
    )
