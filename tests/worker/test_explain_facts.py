from __future__ import annotations

import json
import math

from engine.outcome import Cause, Status
from engine.smtp.status import EnhancedStatusCode
from engine.worker.explain_facts import (
    DemandFact,
    MxFact,
    PlaceFact,
    ProbeFact,
    RefusedFact,
    Result,
    WayFact,
    as_json,
)


def test_facts_are_objects_with_the_names_of_their_fields():
    way = WayFact("mx", None, (MxFact(10, "mx.test"),), 1, None, True, 300.0)
    assert as_json(way) == {
        "kind": "mx",
        "rule": None,
        "records": [{"preference": 10, "host": "mx.test"}],
        "count": 1,
        "alias": None,
        "is_signed": True,
        "seconds": 300.0,
    }


def test_what_json_does_not_have_becomes_what_it_has():
    refused = RefusedFact(Status.DEFERRED, Cause.POLICY, EnhancedStatusCode(4, 7, 1), "not named")
    probe = ProbeFact(True, "ok", connect_seconds=0.12345678, hello={"SIZE": "10"})
    place = PlaceFact("192.0.2.1", 25, 1, refused=refused, probe=probe)
    found = as_json(place)
    assert found["refused"] == {
        "status": "deferred",
        "cause": "policy",
        "enhanced": "4.7.1",
        "text": "not named",
    }
    assert found["probe"]["connect_seconds"] == 0.123457
    assert found["probe"]["hello"] == {"SIZE": "10"}
    assert json.loads(json.dumps(found)) == found


def test_numbers_that_are_none_are_none():
    assert [as_json(number) for number in (math.inf, math.nan, 1, True)] == [None, None, 1, True]
    assert as_json(Result.FORBIDDEN) == "forbidden"


def test_absent_facts_are_there():
    assert as_json(DemandFact("off", "opportunistic", (), None, "none"))["server_name"] is None
