"""Events are frozen values, and what they say is JSON."""

import dataclasses
import json
import typing

import pytest

from engine.outcome import Cause, Outcome, Peer, Status
from engine.report import events
from engine.smtp.stages import Stage

PEER = Peer("mx1.example.net", "192.0.2.7", 25, "192.0.2.1", 3)
OUTCOME = Outcome(
    message="7",
    recipient="bob@example.net",
    status=Status.DELIVERED,
    stage=Stage.FINAL,
    cause=Cause.REPLY,
    text="accepted",
    peer=PEER,
)
PEER_FACTS = {
    "host": "mx1.example.net",
    "address": "192.0.2.7",
    "port": 25,
    "local_address": "192.0.2.1",
    "connection": 3,
}
SITE = "mx1.example.net"

CASES = [
    (
        events.MessageSubmitted(1.5, "7", 2, 4096),
        {"event": "message.submitted", "message": "7", "recipients": 2, "octets": 4096},
    ),
    (
        events.RecipientsRouted(1.5, "example.net", SITE, 0.25),
        {"event": "recipients.routed", "domain": "example.net", "site": SITE, "seconds": 0.25},
    ),
    (
        events.ConnectionOpened(1.5, PEER, SITE, 0.1),
        {
            "event": "connection.opened",
            **PEER_FACTS,
            "site": SITE,
            "seconds": 0.1,
            "interface": None,
            "proxy": None,
            "fast_open": "off",
            "round_trip": None,
        },
    ),
    (
        events.ConnectionFailed(
            1.5,
            SITE,
            "mx1.example.net",
            "192.0.2.7",
            25,
            Stage.CONNECT,
            Cause.REFUSED,
            "refused",
            "192.0.2.9",
            None,
            0.5,
        ),
        {
            "event": "connection.failed",
            "site": SITE,
            "host": "mx1.example.net",
            "address": "192.0.2.7",
            "port": 25,
            "stage": "connect",
            "cause": "refused",
            "text": "refused",
            "interface": "192.0.2.9",
            "proxy": None,
            "seconds": 0.5,
        },
    ),
    (
        events.Greeted(1.5, PEER, SITE, "220 hello"),
        {"event": "session.greeted", **PEER_FACTS, "site": SITE, "text": "220 hello"},
    ),
    (
        events.HelloAnswered(1.5, PEER, SITE, "250 hello"),
        {"event": "session.hello", **PEER_FACTS, "site": SITE, "text": "250 hello"},
    ),
    (
        events.TlsStarted(1.5, PEER, SITE, "TLSv1.3", "AES", "dane", "dane", 0.1),
        {
            "event": "tls.started",
            **PEER_FACTS,
            "site": SITE,
            "version": "TLSv1.3",
            "cipher": "AES",
            "verified": "dane",
            "policy": "dane",
            "seconds": 0.1,
        },
    ),
    (
        events.AuthFailed(1.5, PEER, SITE, "PLAIN", "535 no"),
        {
            "event": "auth.failed",
            **PEER_FACTS,
            "site": SITE,
            "mechanism": "PLAIN",
            "text": "535 no",
        },
    ),
    (
        events.SessionReady(1.5, PEER, SITE, ("PIPELINING", "SIZE 100"), 0.2),
        {
            "event": "session.ready",
            **PEER_FACTS,
            "site": SITE,
            "keywords": ["PIPELINING", "SIZE 100"],
            "seconds": 0.2,
        },
    ),
    (
        events.TransactionStarted(1.5, PEER, "7", 2, 1),
        {
            "event": "transaction.started",
            **PEER_FACTS,
            "message": "7",
            "recipients": 2,
            "transaction": 1,
        },
    ),
    (
        events.RecipientDeferred(1.5, PEER, "7", "a@b.test", Stage.RCPT, Cause.REPLY, "later"),
        {
            "event": "recipient.deferred",
            **PEER_FACTS,
            "message": "7",
            "recipient": "a@b.test",
            "stage": "rcpt",
            "cause": "reply",
            "text": "later",
        },
    ),
    (
        events.HostDeferred(1.5, PEER, SITE, Stage.HELLO, Cause.TIMEOUT, "no reply in 5 s"),
        {
            "event": "host.deferred",
            **PEER_FACTS,
            "site": SITE,
            "stage": "hello",
            "cause": "timeout",
            "text": "no reply in 5 s",
        },
    ),
    (
        events.SecurityAlert(1.5, PEER, "octets behind the STARTTLS reply"),
        {"event": "security.alert", **PEER_FACTS, "text": "octets behind the STARTTLS reply"},
    ),
    (
        events.ConnectionClosed(1.5, PEER, SITE, "idle", 4, 9.5),
        {
            "event": "connection.closed",
            **PEER_FACTS,
            "site": SITE,
            "reason": "idle",
            "transactions": 4,
            "seconds": 9.5,
        },
    ),
    (events.SiteOpened(1.5, SITE), {"event": "site.opened", "site": SITE}),
    (events.SiteClosed(1.5, SITE), {"event": "site.closed", "site": SITE}),
]


@pytest.mark.parametrize(
    ("event", "facts"), [pytest.param(*case, id=case[0].name) for case in CASES]
)
def test_event_as_dict_holds_its_facts_and_its_time(event, facts):
    assert event.as_dict() == {"time": 1.5, **facts}


@pytest.mark.parametrize("event", [pytest.param(event, id=event.name) for event, _ in CASES])
def test_event_as_dict_survives_json_unchanged(event):
    assert json.loads(json.dumps(event.as_dict())) == event.as_dict()


def test_recipient_settled_is_the_outcome_record_with_time_and_event():
    settled = events.RecipientSettled(1.5, OUTCOME).as_dict()

    assert settled.pop("time") == 1.5
    assert settled.pop("event") == "recipient.settled"
    assert settled == OUTCOME.as_dict()


def test_every_member_of_the_union_has_a_name_of_its_own():
    members = typing.get_args(events.Event)

    assert len({member.name for member in members}) == len(members) == 17
    assert {type(event) for event, _ in CASES} | {events.RecipientSettled} == set(members)


def test_event_is_frozen_and_has_no_room_for_more():
    event = events.SiteOpened(1.5, SITE)

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.site = "other"
    assert not hasattr(event, "__dict__")
