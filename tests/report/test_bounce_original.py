"""What goes back to the sender of his message, and what is read from it on the way."""

from __future__ import annotations

import quopri
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.report.bounce_original import (
    fields_of,
    header_of,
    header_part,
    is_automatic,
    message_id,
    shown_field,
    whole_part,
)
from engine.report.report_mail import Field

HEADER = b"From: a@a.test\r\nSubject: Hello\r\n"
WHOLE = HEADER + b"\r\nDear Bob\r\n"
MANY = 10_000


def kind_and_encoding(part):
    assert [field.name for field in part.fields] == ["Content-Type", "Content-Transfer-Encoding"]
    return tuple(field.value for field in part.fields)


# ---- header sections ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "most", "header"),
    [
        (WHOLE, MANY, HEADER),
        (HEADER, MANY, HEADER),
        (HEADER + b"\r\n", MANY, HEADER),
        (b"\r\nno header\r\n", MANY, b""),
        (b"", MANY, b""),
        (b"no end", MANY, b""),
        # What is longer is cut at the end of a line.
        (WHOLE, len(HEADER) + 2, HEADER),
        (WHOLE, len(HEADER), HEADER),
        (WHOLE, len(HEADER) - 1, b"From: a@a.test\r\n"),
        (WHOLE, 5, b""),
    ],
)
def test_the_header_section_ends_before_the_empty_line(octets, most, header):
    assert header_of(octets, most) == header


@pytest.mark.parametrize(
    ("header", "bodies"),
    [
        (b"X-A: 1\r\n", []),
        (b"A: 1\r\n", [b"1"]),
        (b"a:1\r\nB: 2\r\nA : 3 \r\n", [b"1", b"3"]),
        (b"A: 1\r\n 2\r\n\t3\r\nB: 4\r\n", [b"1 2\t3"]),
        (b"B: A: 1\r\n A: 2\r\n", []),
        (b"A:\r\n", [b""]),
    ],
)
def test_fields_are_found_by_their_name(header, bodies):
    assert fields_of(header, b"A") == bodies


@pytest.mark.parametrize(
    ("header", "identity"),
    [
        (b"Message-ID: <1@a.test>\r\n", "<1@a.test>"),
        (b"message-id:\r\n <1.2+3=%@[192.0.2.1]>\r\n", "<1.2+3=%@[192.0.2.1]>"),
        (b"", None),
        (b"Message-ID: <1@a.test>\r\nMessage-ID: <2@a.test>\r\n", None),
        (b"Message-ID: 1@a.test\r\n", None),
        (b"Message-ID: <1@a.test> (x)\r\n", None),
        (b"Message-ID: <1 2@a.test>\r\n", None),
        ("Message-ID: <\u00fc@a.test>\r\n".encode(), None),
        (b"Message-ID: <" + b"x" * 300 + b"@a.test>\r\n", None),
        (b"Message-ID: <1@a\x00.test>\r\n", None),
    ],
)
def test_a_message_is_referred_to_only_by_a_name_that_can_be_repeated(header, identity):
    assert message_id(header) == identity


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        (b"Hello", "Hello"),
        (b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Gr\u00fc\u00dfe"),
        (b"=?iso-8859-1?B?R3L832U=?= an alle", "Gr\u00fc\u00dfe an alle"),
        (b"=?gb2312?B?1tDOxA==?=", "\u4e2d\u6587"),
        (b"=?utf-8?q?one?=\r\n =?utf-8?q?two?=", "onetwo"),
        ("Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe"),
        (b"\xff\xfe", r"\xff\xfe"),
        # What cannot be decoded, or is no character set, shows as it is.
        (b"=?utf-8?b?a?=", "=?utf-8?b?a?="),
        (b"=?utf-8?q?=FF?=", "\N{REPLACEMENT CHARACTER}"),
        (b"=?klingon?q?x?=", "=?klingon?q?x?="),
        (b"=?unicode_escape?q?=5Cq?=", "=?unicode_escape?q?=5Cq?="),
        (b"=?hex?q?41?=", "=?hex?q?41?="),
        # No line is broken, no terminal is told what to do.
        (b"=?utf-8?q?a=0D=0ABcc:_x=1B[31m?=", r"a\r\nBcc: x\x1b[31m"),
        (b"=?utf-8?q?=E2=80=AEabc?=", r"\u202eabc"),
        (b"x" * 5000, "x" * 197 + "..."),
        (b"", ""),
    ],
)
def test_a_subject_is_shown_to_a_person(subject, shown):
    assert shown_field(b"Subject: " + subject + b"\r\n", b"subject") == shown


def test_of_several_fields_the_first_is_shown_and_of_none_nothing():
    assert shown_field(b"Subject: 1\r\nSubject: 2\r\n", b"subject") == "1"
    assert shown_field(HEADER, b"date") == ""


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"=?", b"?=", b"?q?", b"?b?", b"utf-8"])))
def test_any_subject_can_be_shown(pieces):
    body = b"".join(pieces).replace(b"\r", b"").replace(b"\n", b"")

    shown = shown_field(b"Subject: " + body + b"\r\n", b"subject")

    assert shown.isprintable()
    assert len(shown.encode()) <= 200


@pytest.mark.parametrize(
    ("field", "is_it"),
    [
        (b"Subject: Hello", False),
        (b"List-Id: <x.a.test>", True),
        (b"list-unsubscribe: <mailto:x@a.test>", True),
        (b"List-Post: NO", True),
        (b"List-Id:", False),
        (b"Precedence: bulk", True),
        (b"Precedence: List", True),
        (b"Precedence: first-class", False),
        (b"Auto-Submitted: auto-generated", True),
        (b"Auto-Submitted: auto-replied (vacation)", True),
        (b"Auto-Submitted: No", False),
    ],
)
def test_mail_of_machines_is_known_by_its_header(field, is_it):
    assert is_automatic(b"From: a@a.test\r\n" + field + b"\r\n\r\nHello\r\n") is is_it
    assert not is_automatic(b"From: a@a.test\r\n\r\n" + field + b"\r\n")


def test_a_hostile_header_takes_no_longer_than_its_size():
    header = b"Subject: " + b"\r\n " * 20_000 + b"=?q?" * 20_000 + b"\r\n"

    started = time.process_time()
    shown_field(header, b"subject")
    message_id(header)
    is_automatic(header)

    assert time.process_time() - started < 1


# ---- whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "utf8", "found"),
    [
        (WHOLE, True, ("message/rfc822", "7bit")),
        (b"", True, ("message/rfc822", "7bit")),
        (WHOLE + b"\xfc\r\n", True, ("message/rfc822", "8bit")),
        (WHOLE + b"\xfc\r\n", False, ("message/rfc822", "8bit")),
        ("Subject: \u00fc\r\n\r\nx\r\n".encode(), True, ("message/global", "8bit")),
        ("Subject: \u00fc\r\n\r\n".encode() + b"\xfc\r\n", True, ("message/global", "8bit")),
    ],
)
def test_a_message_goes_back_as_it_is(octets, utf8, found):
    part = whole_part(octets, utf8=utf8)

    assert kind_and_encoding(part) == found
    assert part.octets == octets


@pytest.mark.parametrize(
    ("octets", "utf8"),
    [
        (WHOLE + b"\0\r\n", True),
        (WHOLE + b"a\rb\r\n", True),
        (WHOLE + b"a\nb\r\n", True),
        (WHOLE + b"x" * 999 + b"\r\n", True),
        (b"Subject: \xfc\r\n\r\nx\r\n", True),
        ("Subject: \u00fc\r\n\r\nx\r\n".encode(), False),
    ],
)
def test_a_message_that_would_have_to_be_encoded_does_not_go_back_whole(octets, utf8):
    """RFC 2046 §5.2.1: message/rfc822 is never encoded."""
    assert whole_part(octets, utf8=utf8) is None


def test_a_line_of_998_octets_goes_back():
    assert whole_part(WHOLE + b"x" * 998 + b"\r\n", utf8=True) is not None


# ---- header alone -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "utf8", "found"),
    [
        (HEADER, True, ("text/rfc822-headers", "7bit")),
        (b"", True, ("text/rfc822-headers", "7bit")),
        ("Subject: \u00fc\r\n".encode(), True, ("message/global-headers", "8bit")),
        ("Subject: \u00fc\r\n".encode(), False, ("text/rfc822-headers", "quoted-printable")),
        (b"Subject: \xfc\r\n", True, ("text/rfc822-headers", "quoted-printable")),
        (b"Subject: \0\r\n", True, ("text/rfc822-headers", "quoted-printable")),
        (b"Subject: a\rb\nc\r\n", True, ("text/rfc822-headers", "quoted-printable")),
        (b"Subject: " + b"x" * 999 + b"\r\n", True, ("text/rfc822-headers", "quoted-printable")),
    ],
)
def test_a_header_section_always_goes_back(header, utf8, found):
    part = header_part(header, utf8=utf8)

    assert kind_and_encoding(part) == found
    if "quoted-printable" in found:
        assert part.octets.isascii()
        assert quopri.decodestring(part.octets) == header
    else:
        assert part.octets == header
    assert Field("Content-Transfer-Encoding", found[1]) in part.fields
