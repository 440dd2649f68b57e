from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.soak import Sample, judge, run

RATE = 100.0


def samples(**slopes):
    """Samples of ten minutes; what has a slope gains so much a second, all else stays."""
    start = Sample(
        at=0, memory=80_000_000, descriptors=40, threads=6, tasks=90, waiting=50, done=0, disk=0
    )
    return [
        replace(
            start,
            at=at,
            done=int(at * slopes.get("done", RATE)),
            **{
                name: getattr(start, name) + at * slope
                for name, slope in slopes.items()
                if name != "done"
            },
        )
        for at in range(10, 610, 10)
    ]


def test_what_does_not_grow_is_flat():
    assert judge(samples(), RATE) == []
    assert judge(samples(disk=1e6), RATE) == []


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("memory", 20_000),
        ("memory", -20_000),
        ("descriptors", 0.1),
        ("threads", 0.1),
        ("tasks", 0.1),
        ("waiting", 2),
    ],
)
def test_what_grows_steadily_is_found(name, slope):
    (problem,) = judge(samples(**{name: slope}), RATE)
    assert problem.startswith("the queue" if name == "waiting" else name)


def test_memory_may_follow_the_file_until_all_of_it_that_is_cached_is_there():
    assert judge(samples(memory=20_000, disk=20_000), RATE) == []
    large = [replace(s, disk=s.disk + 40_000_000) for s in samples(memory=20_000, disk=20_000)]
    (problem,) = judge(large, RATE)
    assert problem.startswith("memory went from")
    assert judge(large, RATE, processes=2) == []


def test_what_comes_and_goes_does_not_count():
    wave = [
        replace(s, descriptors=40 + round(6 * math.sin(s.at)), memory=s.memory + s.at % 3 * 1e6)
        for s in samples()
    ]
    assert judge(wave, RATE) == []


def test_who_does_not_keep_up_is_found():
    (problem,) = judge(samples(done=RATE * 0.8), RATE)
    assert problem == "100 came a second, and 80 were done"


def test_growth_while_it_warms_up_does_not_count():
    cold = [replace(s, memory=min(s.memory, 20_000_000 + s.at * 600_000)) for s in samples()]
    assert judge(cold, RATE) == []


def test_too_few_samples_say_nothing():
    assert judge(samples()[:5], RATE) == ["5 samples are too few"]


async def test_a_worker_is_fed_and_looked_at(tmp_path):
    shown, processes = [], 2
    found, rate = await run(
        tmp_path, minutes=0.1, rate=60.0, processes=processes, show=shown.append
    )

    assert rate == 60
    assert len(found) == len(shown) - 1 >= 3
    for before, after in pairwise(found):
        assert before.at < after.at
        assert before.done <= after.done
    last = found[-1]
    assert last.done > 60
    assert 20e6 * processes < last.memory < 200e6 * (processes + 1)
    assert last.descriptors > 10 * processes
    assert last.tasks > 10 * processes
    assert "Traceback" not in (tmp_path / "worker.log").read_text()
