"""Log lines: one a recipient an attempt, and nothing a peer says can break or forge one."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import (
    Cause,
    Features,
    Outcome,
    Peer,
    Scope,
    Status,
    Timings,
    TlsFacts,
)
from engine.report.events import (
    ConnectionFailed,
    HostDeferred,
    RecipientSettled,
    SecurityAlert,
    SessionReady,
    SiteOpened,
)
from engine.report.log import LogWriter, json_line, log_line
from engine.smtp.reply import Reply
from engine.smtp.stages import Stage
from engine.smtp.status import EnhancedStatusCode

AT = 1787479872.345  # 2026-08-23T10:11:12.345Z
PEER = Peer("mx1.example.net", "192.0.2.7", 25, "192.0.2.1", 3)
DELIVERED = Outcome(
    message="7",
    recipient="bob@example.net",
    status=Status.DELIVERED,
    stage=Stage.FINAL,
    cause=Cause.REPLY,
    text="accepted",
    reply=Reply(250, (b"2.0.0 queued as 9F",)),
    enhanced=EnhancedStatusCode(2, 0, 0),
    peer=PEER,
    source="out-1",
    transaction=2,
    features=Features(
        fast_open="used-data", tls=TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", "dane", "dane")
    ),
    timings=Timings(0.02, 0.1, 0.2, 0.12, 1.4, 1.84),
)
UNROUTED = Outcome(
    message="8",
    recipient="bob@nowhere.test",
    status=Status.FAILED,
    stage=Stage.ROUTE,
    cause=Cause.DNS,
    text="no such domain",
    scope=Scope.DOMAIN,
)
SETTLED = RecipientSettled(AT, DELIVERED)
FAILED = ConnectionFailed(
    AT, "mx1.test,mx2.test", "mx1.test", None, None, Stage.CONNECT, Cause.REFUSED, "it said no"
)
READY = SessionReady(AT, PEER, "mx1.example.net", ("SIZE 100", "DSN"), 0.25)


#: Controls, line separators, direction overrides and surrogates.
UNCLEAN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def values(line):
    """Read a line as its docstring promises: keys and values up to the parenthesis."""
    pairs = re.findall(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ ]*)', line.partition(" (")[0])
    return dict(pairs)


def test_delivered_recipient_has_every_fact_on_one_line():
    assert log_line(DELIVERED, at=AT) == (
        "2026-08-23T10:11:12.345Z msg=7 to=<bob@example.net> relay=mx1.example.net[192.0.2.7]:25"
        " source=out-1 conn=3 txn=2 tls=TLSv1.3/TLS_AES_128_GCM_SHA256/dane tfo=used-data"
        " delay=1.840 delays=0.020/0.300/0.120/1.400"
        " dsn=2.0.0 status=delivered scope=- stage=final cause=reply (250 2.0.0 queued as 9F)"
    )


def test_absent_facts_are_hyphens_and_the_keys_stay():
    assert log_line(UNROUTED, at=AT) == (
        "2026-08-23T10:11:12.345Z msg=8 to=<bob@nowhere.test> relay=- source=- conn=- txn=- tls=- tfo=off"
        " delay=0.000 delays=0.000/0.000/0.000/0.000"
        " dsn=5.0.0 status=failed scope=domain stage=route cause=dns (no such domain)"
    )


@pytest.mark.parametrize(
    ("status", "dsn"),
    [
        (Status.DELIVERED, "2.0.0"),
        (Status.DEFERRED, "4.0.0"),
        (Status.FAILED, "5.0.0"),
        (Status.UNKNOWN, "4.0.0"),
    ],
)
def test_dsn_without_an_enhanced_code_follows_the_status(status, dsn):
    line = log_line(DELIVERED._replace(status=status, enhanced=None), at=AT)

    assert values(line)["dsn"] == dsn


def test_refused_recipient_shows_the_text_that_names_the_command():
    outcome = DELIVERED._replace(
        status=Status.FAILED,
        reply=Reply(550, (b"5.1.1 no such user",)),
        text="SMTP error after RCPT TO:<a@b.test>: 550 5.1.1 no such user",
    )

    assert log_line(outcome, at=AT).endswith(
        " (SMTP error after RCPT TO:<a@b.test>: 550 5.1.1 no such user)"
    )


def test_ipv6_peer_stands_in_brackets():
    line = log_line(DELIVERED._replace(peer=Peer("mx.test", "2001:db8::1", 2525)), at=AT)

    assert values(line)["relay"] == "mx.test[2001:db8::1]:2525"
    assert values(line)["conn"] == "-"


def test_a_peer_without_an_address_is_its_name():
    line = log_line(DELIVERED._replace(peer=Peer("unix:/run/lmtp")), at=AT)

    assert values(line)["relay"] == "unix:/run/lmtp"


def test_recipient_given_in_angle_brackets_is_not_bracketed_twice():
    line = log_line(DELIVERED._replace(recipient="<bob@example.net>"), at=AT)

    assert values(line)["to"] == "<bob@example.net>"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        pytest.param("a b", '"a b"', id="space"),
        pytest.param('say "x"', r'"say \"x\""', id="quote"),
        pytest.param("a\\b c", r'"a\\b c"', id="backslash in quotes"),
        pytest.param("a\\b", "a\\b", id="backslash alone"),
        pytest.param("", '""', id="empty"),
        pytest.param("-", '"-"', id="not the mark for absent"),
        pytest.param("7\r\nmsg=8", r'"7\r\nmsg=8"', id="line break"),
        pytest.param("\x1b[2J", r'"\x1b[2J"', id="terminal escape"),
        pytest.param("a\u202eb", r'"a\u202eb"', id="right-to-left override"),
        pytest.param("a\udc80", r'"a\udc80"', id="lone surrogate"),
        pytest.param("jürgen", "jürgen", id="letters of any script"),
    ],
)
def test_value_is_quoted_where_it_could_be_misread(message, shown):
    assert (
        log_line(DELIVERED._replace(message=message), at=AT)
        .split(" msg=")[1]
        .startswith(shown + " to=")
    )


def test_reply_of_a_hostile_server_stays_on_its_line():
    reply = Reply(250, (b"ok\r2026-08-23 msg=9 status=failed", b"\x1b]0;title\x07 \xff"))

    line = log_line(DELIVERED._replace(reply=reply), at=AT)

    assert line.endswith(r"(250 ok\r2026-08-23 msg=9 status=failed\n\x1b]0;title\x07 \xff)")
    assert values(line)["msg"] == "7"
    assert values(line)["status"] == "delivered"


def test_long_text_is_cut():
    line = log_line(UNROUTED._replace(text="x" * 5000), at=AT)

    assert line.endswith("(" + "x" * 1000 + "…)")


@given(st.text(), st.text(), st.binary(), st.sampled_from(Status))
def test_any_text_gives_one_clean_line(message, text, octets, status):
    outcome = DELIVERED._replace(
        message=message,
        recipient=message,
        text=text,
        reply=Reply(250, (octets,)),
        status=status,
    )

    line = log_line(outcome, at=AT)

    assert not UNCLEAN.search(line)
    assert values(line)["status"] == status.value
    assert not UNCLEAN.search(json_line(outcome, at=AT))


def test_json_line_of_an_outcome_is_its_record_and_the_time():
    record = json.loads(json_line(DELIVERED, at=AT))

    assert record.pop("time") == "2026-08-23T10:11:12.345Z"
    assert record == DELIVERED.as_dict()


def test_json_line_of_an_event_names_it():
    assert json.loads(json_line(SiteOpened(1.5, "mx.test"), at=1.5)) == {
        "time": "1970-01-01T00:00:01.500Z",
        "event": "site.opened",
        "site": "mx.test",
    }


def written(event, **options):
    lines = []
    LogWriter(lines.append, **options)(event)
    return lines


def test_writer_writes_a_settled_recipient_as_its_line():
    assert written(SETTLED) == [log_line(DELIVERED, at=AT) + "\n"]


def test_writer_writes_a_failed_connection_as_a_warning():
    (line,) = written(FAILED)

    assert line == (
        "2026-08-23T10:11:12.345Z level=warning event=connection.failed site=mx1.test,mx2.test"
        " host=mx1.test address=- port=- stage=connect cause=refused interface=- proxy=-"
        " seconds=0.000 (it said no)\n"
    )


def test_writer_writes_a_ready_session_at_debug_only():
    assert written(READY, level="info") == []
    (line,) = written(READY, level="debug")
    assert line == (
        "2026-08-23T10:11:12.345Z level=debug event=session.ready host=mx1.example.net"
        " address=192.0.2.7 port=25 local_address=192.0.2.1 connection=3 site=mx1.example.net"
        ' keywords="SIZE 100,DSN" seconds=0.250\n'
    )


@pytest.mark.parametrize(
    "event",
    [
        HostDeferred(AT, "mx.test", "mx [192.0.2.7]:25", Stage.HELLO, Cause.TIMEOUT, "no reply"),
        SecurityAlert(AT, PEER, "octets behind the STARTTLS reply"),
    ],
    ids=lambda event: event.name,
)
def test_writer_warns_of(event):
    (line,) = written(event, level="info")

    assert values(line)["level"] == "warning"
    assert values(line)["event"] == event.name
    assert line.endswith(f" ({event.text})\n")


def test_writer_cuts_what_a_peer_makes_too_long():
    (line,) = written(replace(READY, keywords=("X" * 8000,)), level="debug")

    assert values(line)["keywords"] == "X" * 1000 + "…"


@pytest.mark.parametrize("event", [SETTLED, FAILED, READY], ids=lambda event: event.name)
def test_writer_in_json_writes_events(event):
    (line,) = written(event, form="json", level="debug")

    assert line == json_line(event, at=AT) + "\n"
    assert json.loads(line)["event"] == event.name


@pytest.mark.parametrize("event", [SETTLED, FAILED, READY], ids=lambda event: event.name)
def test_writer_that_is_off_writes_nothing(event):
    assert written(event, form="off", level="debug") == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"form": "xml"}, "log form 'xml': allowed are text, json and off"),
        ({"level": "loud"}, "log level 'loud': allowed are info and debug"),
    ],
)
def test_writer_refuses_what_it_does_not_know(options, problem):
    with pytest.raises(ValueError, match=problem):
        LogWriter(print, **options)
