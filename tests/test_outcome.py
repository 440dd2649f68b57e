"""The outcome record: every key of the contract, in its order, absent facts null."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import (
    NO_FEATURES,
    NO_TIMINGS,
    Cause,
    Features,
    Outcome,
    Peer,
    Scope,
    Status,
    Timings,
    TlsFacts,
    Tried,
)
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

BARE = Outcome(
    message="1",
    recipient="a@b.test",
    status=Status.DEFERRED,
    stage=Stage.ROUTE,
    cause=Cause.DNS,
    text="no name server answered",
)
FULL = Outcome(
    message="m-7",
    recipient="<Bob@example.net>",
    status=Status.FAILED,
    scope=Scope.RECIPIENT,
    stage=Stage.RCPT,
    cause=Cause.REPLY,
    reply=Reply(550, (b"5.1.1 no such user", b"n\xf6 \xc3\xb6")),
    enhanced=EnhancedStatusCode(5, 1, 1),
    text="SMTP error from mx2.test [192.0.2.2]:25 after RCPT TO:<Bob@example.net>: 550 no",
    peer=Peer("mx2.test", "192.0.2.2", 25, "192.0.2.9", 3),
    source="bulk-1",
    transaction=2,
    features=Features(
        pipelining=True,
        early_pipelining=True,
        chunking=True,
        prdr=True,
        lmtp=True,
        fast_open="used-data",
        proxy="socks5://192.0.2.8:1080",
        auth="PLAIN",
        tls=TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384", "dane", "dane"),
    ),
    timings=Timings(0.1, 0.2, 0.3, 0.4, 0.5, 1.23456789),
    attempts=(
        Tried("mx1.test", "2001:db8::1", 2525, Stage.CONNECT, Cause.REFUSED, "refused"),
        Tried("mx0.test", None, None, Stage.ROUTE, Cause.DNS, "no address"),
    ),
)


def as_json(outcome):
    """What a script reads: order kept, and nothing that JSON does not know."""
    return json.loads(json.dumps(outcome.as_dict(), allow_nan=False))


def test_the_record_of_a_bare_outcome_has_every_key_with_null_where_nothing_is_known():
    record = as_json(BARE)
    features = {
        "pipelining": False,
        "early_pipelining": False,
        "chunking": False,
        "prdr": False,
        "lmtp": False,
        "fast_open": "off",
        "proxy": None,
        "auth": None,
        "tls": None,
    }
    timings = dict.fromkeys(["route", "connect", "tls", "hello", "transaction", "total"], 0.0)
    expected = {
        "message": "1",
        "recipient": "a@b.test",
        "status": "deferred",
        "scope": None,
        "stage": "route",
        "cause": "dns",
        "reply": None,
        "enhanced": None,
        "text": "no name server answered",
        "host": None,
        "address": None,
        "port": None,
        "local_address": None,
        "source": None,
        "transaction": None,
        "connection": None,
        "features": features,
        "timings": timings,
        "attempts": [],
    }
    assert record == expected
    assert list(record) == list(expected)
    assert list(record["features"]) == list(features)
    assert list(record["timings"]) == list(timings)


def test_the_record_of_a_full_outcome_tells_all():
    assert as_json(FULL) == {
        "message": "m-7",
        "recipient": "<Bob@example.net>",
        "status": "failed",
        "scope": "recipient",
        "stage": "rcpt",
        "cause": "reply",
        "reply": {
            "code": 550,
            "enhanced": "5.1.1",
            "lines": ["5.1.1 no such user", r"n\xf6 ö"],
        },
        "enhanced": "5.1.1",
        "text": FULL.text,
        "host": "mx2.test",
        "address": "192.0.2.2",
        "port": 25,
        "local_address": "192.0.2.9",
        "source": "bulk-1",
        "transaction": 2,
        "connection": 3,
        "features": {
            "pipelining": True,
            "early_pipelining": True,
            "chunking": True,
            "prdr": True,
            "lmtp": True,
            "fast_open": "used-data",
            "proxy": "socks5://192.0.2.8:1080",
            "auth": "PLAIN",
            "tls": {
                "version": "TLSv1.3",
                "cipher": "TLS_AES_256_GCM_SHA384",
                "verified": "dane",
                "policy": "dane",
            },
        },
        "timings": {
            "route": 0.1,
            "connect": 0.2,
            "tls": 0.3,
            "hello": 0.4,
            "transaction": 0.5,
            "total": 1.234568,
        },
        "attempts": [
            {
                "host": "mx1.test",
                "address": "2001:db8::1",
                "port": 2525,
                "stage": "connect",
                "cause": "refused",
                "text": "refused",
            },
            {
                "host": "mx0.test",
                "address": None,
                "port": None,
                "stage": "route",
                "cause": "dns",
                "text": "no address",
            },
        ],
    }


def test_every_outcome_has_the_same_keys_in_the_same_order():
    assert list(as_json(FULL)) == list(as_json(BARE))


def test_a_transcript_is_one_key_more_only_when_it_was_asked_for():
    record = as_json(FULL._replace(transcript=("S: 220 mx2.test", "C: EHLO out")))
    assert list(record) == [*as_json(FULL), "transcript"]
    assert record["transcript"] == ["S: 220 mx2.test", "C: EHLO out"]
    assert as_json(FULL._replace(transcript=()))["transcript"] == []


def test_a_reply_without_enhanced_status_code_has_null_for_it():
    record = as_json(FULL._replace(reply=Reply(550, (b"no",)), enhanced=None))
    assert record["reply"] == {"code": 550, "enhanced": None, "lines": ["no"]}
    assert record["enhanced"] is None


def test_a_peer_without_connection_leaves_null():
    record = as_json(BARE._replace(peer=Peer("mx.test", "192.0.2.1", 25)))
    facts = [record[key] for key in ("host", "address", "port", "local_address", "connection")]
    assert facts == ["mx.test", "192.0.2.1", 25, None, None]


@given(st.integers(200, 599), st.lists(st.binary(max_size=30), min_size=1, max_size=4))
def test_no_reply_is_too_strange_for_the_record(code, lines):
    record = as_json(FULL._replace(reply=Reply(code, tuple(lines))))
    assert record["reply"]["code"] == code
    assert len(record["reply"]["lines"]) == len(lines)


def test_the_words_are_those_of_the_contract():
    # The last one is for addresses that are only asked about.
    assert [status.value for status in Status] == (
        ["delivered", "deferred", "failed", "unknown", "accepted"]
    )
    assert [scope.value for scope in Scope] == (
        ["recipient", "message", "host", "domain", "source", "local"]
    )
    assert {cause.value for cause in Cause} == {
        "reply",
        "timeout",
        "closed",
        "malformed-reply",
        "refused",
        "unreachable",
        "dns",
        "tls",
        "policy",
        "unsupported",
        "event",
        "config",
        "io",
        "cancelled",
        "internal",
    }


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        (Peer("mx.test", "192.0.2.1", 25), "mx.test [192.0.2.1]:25"),
        (Peer("mx.test", "2001:db8::1", 2525), "mx.test [2001:db8::1]:2525"),
        (Peer("mx.test"), "mx.test"),
    ],
)
def test_a_peer_is_named_for_a_person(peer, text):
    assert str(peer) == text


def test_outcomes_are_frozen():
    with pytest.raises(AttributeError):
        FULL.status = Status.DELIVERED


def test_without_a_connection_nothing_was_in_force_and_no_time_was_spent():
    assert BARE.features == NO_FEATURES == Features()
    assert BARE.timings == NO_TIMINGS == Timings()
