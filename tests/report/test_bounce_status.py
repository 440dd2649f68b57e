"""The fields for machines, against RFC 3464, RFC 3461 §6.3 and RFC 6533 §3."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outcome import Cause, Peer, Status
from engine.report.bounce_rules import Fate, Kind
from engine.report.bounce_status import (
    MAX_REPLY_LINES,
    date,
    reply_lines,
    shorten,
    status_of,
    status_part,
)
from engine.smtp.reply import Reply
from engine.smtp.status import EnhancedStatusCode
from tests.report.bounces import (
    DELAYED,
    DELIVERED,
    FAILED,
    RELAYED,
    make_message,
    make_outcome,
    make_progress,
    make_report,
)

NAME = "mail.a.test"


def part_of(*entries, utf8=True, **facts):
    return status_part(make_report(*entries, **facts), NAME, utf8=utf8)


def groups(*entries, **facts):
    """The groups of fields, each a list of lines."""
    text = part_of(*entries, **facts).octets.decode()
    assert text.endswith("\r\n")
    return [group.split("\r\n") for group in text[:-2].split("\r\n\r\n")]


def fields(*entries, **facts):
    """The fields of the first recipient, unfolded."""
    text = "\r\n".join(groups(*entries, **facts)[1]).replace("\r\n ", " ")
    return dict(line.split(": ", 1) for line in text.split("\r\n"))


# ---- the parts of it ----------------------------------------------------------------------------


def test_a_failure_has_all_the_fields():
    message = make_message(envid="QQ+314=159")
    progress = replace(
        FAILED, recipient=replace(FAILED.recipient, orcpt="rfc822;Bob+list=x@b.test")
    )

    assert groups((Kind.FAILED, progress), message=message) == [
        [
            # RFC 3461 §6.3 (a): not in xtext.
            "Original-Envelope-Id: QQ+314=159",
            "Reporting-MTA: dns; mail.a.test",
            "Arrival-Date: Sat, 28 Nov 2026 04:26:40 +0000",
            "X-Delivery-Engine-Id: order-17",
        ],
        [
            "Original-Recipient: rfc822; Bob+list=x@b.test",
            "Final-Recipient: rfc822; bob@b.test",
            "Action: failed",
            "Status: 5.1.1",
            "Remote-MTA: dns; mx.b.test",
            "Diagnostic-Code: smtp; 550 5.1.1 no such user",
            "Last-Attempt-Date: Sat, 28 Nov 2026 09:59:55 +0000",
        ],
    ]


def test_who_asked_for_little_gets_little():
    """RFC 3461 §6.3 (a) and (d): what was not in the envelope must not be in the report."""
    first, second = groups((Kind.FAILED, make_progress(Fate.GIVEN_UP)))

    assert [line.split(":")[0] for line in first] == [
        "Reporting-MTA",
        "Arrival-Date",
        "X-Delivery-Engine-Id",
    ]
    assert second == ["Final-Recipient: rfc822; bob@b.test", "Action: failed", "Status: 5.0.0"]


def test_a_delay_says_until_when_it_is_tried():
    assert fields(Kind.DELAYED) == {
        "Final-Recipient": "rfc822; dave@b.test",
        "Action": "delayed",
        "Status": "4.2.2",
        "Remote-MTA": "dns; mx.b.test",
        "Diagnostic-Code": "smtp; 452 4.2.2 mailbox full",
        "Last-Attempt-Date": "Sat, 28 Nov 2026 09:59:55 +0000",
        "Will-Retry-Until": "Tue, 01 Dec 2026 21:20:00 +0000",
    }


@pytest.mark.parametrize("kind", [Kind.FAILED, Kind.EXPIRED, Kind.RELAYED, Kind.DELIVERED])
def test_nothing_else_says_until_when_it_is_tried(kind):
    """RFC 3464 §2.3.9."""
    assert "Will-Retry-Until" not in fields((kind, replace(DELAYED)))


def test_every_recipient_has_its_group():
    found = groups(Kind.FAILED, Kind.EXPIRED, Kind.DELAYED, Kind.RELAYED, Kind.DELIVERED)

    assert [
        [line for line in group if line.startswith(("Final", "Action", "Status"))]
        for group in found[1:]
    ] == [
        ["Final-Recipient: rfc822; bob@b.test", "Action: failed", "Status: 5.1.1"],
        ["Final-Recipient: rfc822; carol@b.test", "Action: failed", "Status: 4.2.2"],
        ["Final-Recipient: rfc822; dave@b.test", "Action: delayed", "Status: 4.2.2"],
        ["Final-Recipient: rfc822; erin@b.test", "Action: relayed", "Status: 2.6.0"],
        ["Final-Recipient: rfc822; frank@b.test", "Action: delivered", "Status: 2.6.0"],
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mail.a.test", "dns; mail.a.test"),
        ("[192.0.2.1]", "dns; [192.0.2.1]"),
        ("[IPv6:2001:db8::1]", "dns; [IPv6:2001:db8::1]"),
        ("localhost", "x-local-hostname; localhost"),
    ],
)
def test_we_are_named_by_the_dns_or_else_say_so(name, value):
    """RFC 3461 §6.3 (b)."""
    octets = status_part(make_report(Kind.FAILED), name, utf8=True).octets

    assert f"Reporting-MTA: {value}\r\n".encode() in octets


@pytest.mark.parametrize(
    ("host", "value"),
    [
        ("mx.b.test", "mx.b.test"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ("evil\r\nBcc: x", r"evil\r\nBcc: x"),
    ],
)
def test_the_other_host_is_named_as_the_rfc_has_it(host, value):
    outcome = make_outcome(Status.FAILED, peer=Peer(host, "192.0.2.1", 25))

    found = fields((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))

    assert found["Remote-MTA"] == f"dns; {value}"


def test_without_a_reply_the_diagnosis_is_ours():
    """RFC 3464 §2.3.6: a Remote-MTA would say that the other host made the diagnosis."""
    outcome = make_outcome(
        Status.DEFERRED, reply=False, cause=Cause.TIMEOUT, text="SMTP timeout from mx.b.test"
    )

    found = fields((Kind.DELAYED, make_progress(Fate.WAITING, outcome=outcome)))

    assert found["Diagnostic-Code"] == "x-delivery-engine; SMTP timeout from mx.b.test"
    assert "Remote-MTA" not in found
    assert found["Status"] == "4.4.2"


def test_a_reply_of_nobody_in_particular_is_still_a_diagnosis():
    outcome = make_outcome(Status.FAILED, peer=None)

    found = fields((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))

    assert found["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert "Remote-MTA" not in found


# ---- statuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "enhanced", "status"),
    [
        (Kind.FAILED, "5.1.1", "5.1.1"),
        (Kind.FAILED, "5.999.999", "5.999.999"),
        (Kind.FAILED, "4.4.2", "5.0.0"),
        (Kind.FAILED, None, "5.0.0"),
        (Kind.EXPIRED, "4.2.2", "4.2.2"),
        (Kind.EXPIRED, "4.4.7", "4.4.7"),
        (Kind.EXPIRED, "5.7.8", "4.4.7"),
        (Kind.EXPIRED, None, "4.4.7"),
        (Kind.DELAYED, "4.4.1", "4.4.1"),
        (Kind.DELAYED, "5.7.8", "4.0.0"),
        (Kind.DELAYED, None, "4.0.0"),
        (Kind.RELAYED, "2.1.5", "2.1.5"),
        (Kind.RELAYED, None, "2.0.0"),
        (Kind.DELIVERED, "2.1.5", "2.1.5"),
        (Kind.DELIVERED, "4.0.0", "2.0.0"),
    ],
)
def test_the_status_never_contradicts_the_action(kind, enhanced, status):
    code = None if enhanced is None else EnhancedStatusCode.parse(enhanced)
    progress = make_progress(
        Fate.GIVEN_UP, outcome=make_outcome(Status.FAILED, enhanced=code, reply=False)
    )

    assert str(status_of(make_report((kind, progress)).entries[0])) == status


# ---- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ((b"",), ["550"]),
        ((b"no such user",), ["550 no such user"]),
        # The example of RFC 3461 §9.2.
        (
            (b"mailbox unavailable", b"user has moved with no forwarding address"),
            ["550-mailbox unavailable", "550 user has moved with no forwarding address"],
        ),
        ((b"", b"", b"x"), ["550-", "550-", "550 x"]),
        ((b"a\tb \0 \x1b[31m \x7f",), [r"550 a\tb \x00 \x1b[31m \x7f"]),
        ((b"\rBcc: x\n\nAction: delivered",), [r"550 \rBcc: x\n\nAction: delivered"]),
        ((b"\xff\xfe",), [r"550 \xff\xfe"]),
    ],
)
def test_a_reply_is_shown_line_by_line(lines, shown):
    assert reply_lines(Reply(550, lines)) == shown


@pytest.mark.parametrize(
    ("utf8", "shown"),
    [(True, "550 \u7528\u6237 \\u202e"), (False, r"550 \u7528\u6237 \u202e")],
)
def test_a_reply_may_be_in_utf8(utf8, shown):
    """What turns the order of letters round is escaped in any case."""
    reply = Reply(550, ("\u7528\u6237 \u202e".encode(),))

    assert reply_lines(reply, utf8=utf8) == [shown]


def test_a_long_reply_is_cut():
    lines = reply_lines(Reply(550, (b"x" * 10_000,) * 64))

    assert len(lines) == MAX_REPLY_LINES
    assert lines[0] == "550-" + "x" * 497 + "..."
    assert lines[-1] == "550 ..."


def test_a_multiline_reply_is_one_folded_field():
    outcome = make_outcome(Status.FAILED, reply=Reply(550, (b"5.1.1 a", b"", b"5.1.1 b")))

    group = groups((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))[1]

    start = group.index("Diagnostic-Code: smtp; 550-5.1.1 a")
    assert group[start + 1 :] == [" 550-", " 550 5.1.1 b"]


@pytest.mark.parametrize(
    ("text", "utf8", "shown"),
    [
        ("x" * 20, True, "x" * 20),
        ("x" * 21, True, "x" * 17 + "..."),
        ("\u4e2d" * 7, True, "\u4e2d" * 5 + "..."),
        ("\u4e2d" * 4, False, "\\u4e2d\\u4e2d\\u4e2d..."[:17] + "..."),
        ("\ud800", True, r"\ud800"),
        ("a\r\nb", True, r"a\r\nb"),
        ("", True, ""),
    ],
)
def test_what_others_say_is_cut_to_its_octets(text, utf8, shown):
    assert shorten(text, utf8=utf8, most=20) == shown


@given(st.text(st.characters()), st.booleans(), st.integers(3, 600))
def test_anything_can_be_shown(text, utf8, most):
    shown = shorten(text, utf8=utf8, most=most)

    assert len(shown.encode()) <= most
    assert shown.isprintable()
    assert utf8 or shown.isascii()


# ---- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "utf8", "value"),
    [
        ("Bob@B.test", True, "rfc822; Bob@B.test"),
        ('"a b"@b.test', True, 'rfc822; "a b"@b.test'),
        ("bob@[192.0.2.1]", True, "rfc822; bob@[192.0.2.1]"),
        ("<bob@b.test>", True, "rfc822; bob@b.test"),
        ("j\u00f6rg@b.test", True, "utf-8; j\u00f6rg@b.test"),
        ("j\u00f6rg@b.test", False, r"utf-8; j\x{F6}rg@b.test"),
        ("bob@b\u00fccher.test", False, r"utf-8; bob@b\x{FC}cher.test"),
        ("\u4e2d\u6587@b.test", False, r"utf-8; \x{4E2D}\x{6587}@b.test"),
        ("\U0001f600@b.test", False, r"utf-8; \x{1F600}@b.test"),
        ('"\u00f6 +=\\\\"@b.test', False, r'utf-8; "\x{F6}\x{20}\x{2B}\x{3D}\x{5C}\x{5C}"@b.test'),
        # With a backslash, and with what cannot be seen, it is encoded as far as it must.
        ('"\u00f6 \\\\"@b.test', True, 'utf-8; "\u00f6\\x{20}\\x{5C}\\x{5C}"@b.test'),
        ("\u00f6\u2028@b.test", True, "utf-8; \u00f6\\x{2028}@b.test"),
    ],
)
def test_a_recipient_has_the_form_that_can_be_carried(address, utf8, value):
    """RFC 6533 §3."""
    progress = make_progress(Fate.GIVEN_UP, Status.FAILED, address)

    assert fields((Kind.FAILED, progress), utf8=utf8)["Final-Recipient"] == value


@pytest.mark.parametrize(
    ("orcpt", "utf8", "value"),
    [
        ("rfc822;Bob@B.test", True, "rfc822; Bob@B.test"),
        ("X400;/c=us/s=Moore (x)/", False, "X400; /c=us/s=Moore (x)/"),
        # RFC 6533 §4.1: decoded where UTF-8 can be carried, and kept where not.
        (r"utf-8;j\x{F6}rg@b.test", True, "utf-8; j\u00f6rg@b.test"),
        (r"utf-8;j\x{F6}rg@b.test", False, r"utf-8; j\x{F6}rg@b.test"),
        ("utf-8;j\u00f6rg@b.test", True, "utf-8; j\u00f6rg@b.test"),
        ("UTF-8;j\u00f6rg+\\x{20}@b.test", False, r"UTF-8; j\x{F6}rg\x{2B}\x{20}@b.test"),
        # RFC 6533 §3: what is no such address is copied as it is.
        (r"utf-8;a\x{D800}@b.test", True, r"utf-8; a\x{D800}@b.test"),
        (r"utf-8;a\x{0A}Bcc:x@b.test", True, r"utf-8; a\x{0A}Bcc:x@b.test"),
        ("utf-8;a\\b\u00f6@b.test", True, "utf-8; a\\b\u00f6@b.test"),
        # Nobody may send these; they are shown all the same.
        ("rfc822;j\u00f6rg@b.test", False, r"rfc822; j\x{F6}rg@b.test"),
        ("rfc822;\u0085\u2028@b.test", True, r"rfc822; \x{85}\x{2028}@b.test"),
    ],
)
def test_the_original_recipient_is_the_sender_s_own(orcpt, utf8, value):
    progress = make_progress(Fate.GIVEN_UP, Status.FAILED, "\u00f6@b.test", orcpt=orcpt)

    assert fields((Kind.FAILED, progress), utf8=utf8)["Original-Recipient"] == value


@pytest.mark.parametrize(
    ("address", "orcpt", "utf8", "kind"),
    [
        ("bob@b.test", None, True, "message/delivery-status"),
        ("bob@b.test", r"utf-8;j\x{F6}rg@b.test", True, "message/delivery-status"),
        ("bob@b.test", "utf-8;j\u00f6rg@b.test", True, "message/global-delivery-status"),
        ("j\u00f6rg@b.test", None, True, "message/global-delivery-status"),
        ("j\u00f6rg@b.test", "utf-8;j\u00f6rg@b.test", False, "message/delivery-status"),
    ],
)
def test_utf8_is_used_for_addresses_that_need_it(address, orcpt, utf8, kind):
    progress = make_progress(Fate.GIVEN_UP, Status.FAILED, address, orcpt=orcpt)

    part = part_of((Kind.FAILED, progress), utf8=utf8)

    assert part.fields[0].value == kind
    # RFC 3464 §2.1: "7bit" must be used; RFC 6533 §6.4: "8bit" must.
    assert part.fields[1].value == ("8bit" if "global" in kind else "7bit")
    assert part.octets.isascii() is ("global" not in kind)


def test_a_reply_in_utf8_is_no_reason_for_a_form_that_few_know():
    outcome = make_outcome(Status.FAILED, reply=Reply(550, ("5.1.1 \u00fcber".encode(),)))

    part = part_of((Kind.FAILED, make_progress(Fate.GIVEN_UP, outcome=outcome)))

    assert part.fields[0].value == "message/delivery-status"
    assert rb"smtp; 550 5.1.1 \xfcber" in part.octets


# ---- anything -----------------------------------------------------------------------------------

ANYTHING = st.text(st.characters(), max_size=600)
LOCAL_PARTS = st.from_regex(r"[a-z\u00e0-\u00ff\u4e00-\u4eff\U0001f600]{1,15}", fullmatch=True)


@given(
    address=LOCAL_PARTS,
    orcpt=st.none() | st.text(st.characters(exclude_categories=["Cc"]), min_size=1, max_size=490),
    name=ANYTHING,
    text=ANYTHING,
    host=ANYTHING,
    lines=st.none() | st.lists(st.binary(max_size=2000), min_size=1, max_size=40),
    utf8=st.booleans(),
)
def test_whatever_is_said_stays_in_its_field(address, orcpt, name, text, host, lines, utf8):
    reply = False if lines is None else Reply(550, tuple(lines))
    outcome = make_outcome(Status.FAILED, reply=reply, text=text, peer=Peer(host, None, None))
    progress = make_progress(
        Fate.GIVEN_UP,
        address=f"{address}@b.test",
        orcpt=None if orcpt is None else f"utf-8;{orcpt}",
        outcome=outcome,
    )
    message = replace(make_message(), id=name)

    octets = part_of((Kind.FAILED, progress), message=message, utf8=utf8).octets

    assert utf8 or octets.isascii()
    assert octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    first, second = octets[:-2].replace(b"\r\n ", b" ").split(b"\r\n\r\n")
    shape = re.compile(rb"[A-Z][A-Za-z-]+: .*")
    assert all(map(shape.fullmatch, first.split(b"\r\n")))
    assert all(map(shape.fullmatch, second.split(b"\r\n")))
    assert second.count(b"\r\nAction: ") == 1


def test_dates_have_a_numeric_zone():
    """RFC 3464 §2.2.5."""
    assert date(0.0) == "Thu, 01 Jan 1970 00:00:00 +0000"
    assert date(1_795_840_000.999) == "Sat, 28 Nov 2026 04:26:40 +0000"


def test_success_has_a_diagnosis_too():
    """RFC 3461 §6.3 (i)."""
    for kind, progress in ((Kind.RELAYED, RELAYED), (Kind.DELIVERED, DELIVERED)):
        found = fields((kind, progress))
        assert found["Diagnostic-Code"] == "smtp; 250 2.6.0 queued as 9F"
        assert found["Remote-MTA"] == "dns; mx.b.test"
