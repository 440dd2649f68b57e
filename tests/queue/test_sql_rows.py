from __future__ import annotations

from engine.content import from_text
from engine.queue.sql_rows import Envelope, Taken, make_leased, make_message, make_recipient


def envelope(**changes):
    row = Envelope(
        1,
        "x",
        "me@example.org",
        "env",
        "full",
        1,
        0,
        "t",
        "j",
        2,
        1500,
        None,
        7,
        0,
        5,
        0,
        "",
        None,
        None,
        0,
        0,
    )
    return row._replace(**changes)


def test_rows_become_messages():
    recipient = make_recipient("a@one.test", "", None)
    content = from_text("hello")

    message = make_message(envelope(), (recipient,), content)

    assert (message.id, str(message.reverse_path)) == ("x", "me@example.org")
    assert (message.envid, message.ret) == ("env", "full")
    assert (message.require_tls, message.smtputf8) == (True, False)
    assert message.content is content
    assert make_message(envelope(reverse_path=""), (recipient,), content).reverse_path is None


def test_wishes_for_reports_come_back_as_they_were():
    assert make_recipient("a@one.test", "", None).notify == frozenset()
    found = make_recipient("a@one.test", "delay,failure", "rfc822;b@two.test")

    assert (found.notify, found.orcpt) == (frozenset({"delay", "failure"}), "rfc822;b@two.test")


def test_facts_of_the_content_are_those_of_the_row():
    facts = envelope(octets=70, is_8bit=1, longest_line=50, has_utf8_header=1).facts

    assert (facts.octets, facts.is_8bit, facts.longest_line, facts.has_utf8_header) == (
        70,
        True,
        50,
        True,
    )


def test_rows_become_leased_messages():
    fresh = Taken(5, 11, 1, "a@one.test", "one.test", "", None, 0, None, 0, "")
    tried = Taken(5, 12, 1, "b@one.test", "one.test", "", None, 3, 1000, 290_000, "why")

    leased = make_leased(
        envelope(deadline=9000),
        [(fresh, "mx.test"), (tried, "mx.test")],
        from_text(""),
        lease=4,
        now=2500,
        counted=1,
    )

    assert (leased.lease, leased.submitted_at, leased.deadline) == (4, 1.5, 9.0)
    assert (leased.tenant, leased.job, leased.priority) == ("t", "j", 2)
    first, second = leased.recipients
    assert (first.number, first.attempts, first.first_attempt_at, first.wait) == (11, 1, 2.5, 0.0)
    assert (second.attempts, second.first_attempt_at, second.wait) == (4, 1.0, 290.0)
    assert (second.site, second.reason) == ("mx.test", "why")
    assert [r.address for r in leased.message.recipients] == ["a@one.test", "b@one.test"]
