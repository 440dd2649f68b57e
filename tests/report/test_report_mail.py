"""Report mails, read back by the library that did not write them."""

from __future__ import annotations

import email
import email.policy
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.report.report_mail import (
    Field,
    Part,
    in_seven_bit,
    quoted_printable,
    text_part,
    write_fields,
    write_multipart,
)

PLAIN = Part((Field("Content-Type", "text/plain"),), b"one\r\ntwo\r\n")
EIGHT_BIT = Part(
    (Field("Content-Type", "application/x"), Field("Content-Transfer-Encoding", "8bit")),
    b"\xfc\r\n",
)


def read(octets):
    return email.message_from_bytes(octets, policy=email.policy.SMTP)


# ---- fields -------------------------------------------------------------------------------------


def test_a_field_that_fits_stands_on_one_line():
    assert write_fields([Field("To", "a@b.test"), Field("X", "")]) == b"To: a@b.test\r\nX: \r\n"


def test_a_long_field_is_folded_at_blanks():
    value = " ".join(["word"] * 30)

    octets = write_fields([Field("Subject", value)])

    lines = octets.split(b"\r\n")
    assert max(map(len, lines)) == 78
    assert lines[1].startswith(b" word")
    assert octets.replace(b"\r\n ", b" ") == f"Subject: {value}\r\n".encode()


def test_a_long_word_is_not_broken_and_not_parted_from_its_name():
    assert write_fields([Field("Message-ID", "x" * 200)]) == b"Message-ID: " + b"x" * 200 + b"\r\n"


def test_lengths_are_those_of_octets():
    octets = write_fields([Field("To", " ".join(["\u4e2d" * 10] * 5))])

    assert max(map(len, octets.split(b"\r\n"))) <= 78


@given(st.text(st.sampled_from("ab \u00fc"), max_size=300))
def test_unfolding_gives_the_value_back(value):
    octets = write_fields([Field("X", value)])

    assert octets.replace(b"\r\n ", b" ") == f"X: {value}\r\n".encode()
    for line in octets.split(b"\r\n")[:-1]:
        assert line.strip(b" ")


@pytest.mark.parametrize("value", ["a\r\nBcc: x@y.test", "a\n", "\0", "a\x7f", "\t"])
def test_no_value_can_start_another_field(value):
    with pytest.raises(ValueError, match="Subject: a control character"):
        write_fields([Field("Subject", value)])


# ---- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "charset", "encoding"),
    [
        ("", "us-ascii", "7bit"),
        ("Hello,\n\nBob.\n", "us-ascii", "7bit"),
        ("Gr\u00fc\u00dfe\nFrom me\n.\n", "utf-8", "quoted-printable"),
        ("\u4e2d\u6587 \U0001f600 " * 40 + "\n", "utf-8", "quoted-printable"),
    ],
)
def test_text_is_7_bit_and_says_the_same(text, charset, encoding):
    part = text_part(text)
    assert part.octets.isascii()

    mail = read(write_fields(part.fields) + b"\r\n" + part.octets)

    assert mail.get_content_charset() == charset
    assert mail["Content-Transfer-Encoding"] == encoding
    assert mail.get_payload(decode=True).decode(charset) == text.replace("\n", "\r\n")


@given(
    st.lists(st.sampled_from([b"a" * 30, b" ", b"\t", b"=", b".", b"\r", b"\n", b"\0", b"\xff"]))
)
def test_any_octets_can_be_quoted(pieces):
    octets = b"".join(pieces)

    quoted = quoted_printable(octets)

    assert quoted.isascii()
    assert b"\0" not in quoted
    assert quoted.count(b"\r") == quoted.count(b"\n") == quoted.count(b"\r\n")
    assert max(map(len, quoted.split(b"\r\n"))) <= 78
    assert quopri.decodestring(quoted) == octets


def test_a_part_is_encoded_only_where_that_changes_something():
    assert in_seven_bit(PLAIN) is PLAIN
    assert in_seven_bit(EIGHT_BIT) == Part(
        (
            Field("Content-Type", "application/x"),
            Field("Content-Transfer-Encoding", "quoted-printable"),
        ),
        b"=FC\r\n",
    )


# ---- the whole ----------------------------------------------------------------------------------


def test_a_report_has_its_parts():
    octets = write_multipart("delivery-status", (PLAIN, EIGHT_BIT), "1")

    mail = read(octets)
    assert mail["MIME-Version"] == "1.0"
    assert mail.get_content_type() == "multipart/report"
    assert mail.get_param("report-type") == "delivery-status"
    assert [part.get_content_type() for part in mail.iter_parts()] == [
        "text/plain",
        "application/x",
    ]
    assert [part.get_payload(decode=True) for part in mail.iter_parts()] == [
        b"one\r\ntwo\r\n",
        b"\xfc\r\n",
    ]
    assert not mail.defects
    assert not mail.preamble
    assert not mail.epilogue


@pytest.mark.parametrize(
    ("parts", "encoding"), [((PLAIN,), None), ((PLAIN, EIGHT_BIT), "8bit"), ((EIGHT_BIT,), "8bit")]
)
def test_a_report_says_that_it_is_8_bit(parts, encoding):
    """RFC 2045 §6.4."""
    assert read(write_multipart("x", parts, "1"))["Content-Transfer-Encoding"] == encoding


def test_a_report_is_the_same_octets_each_time():
    parts = (PLAIN, EIGHT_BIT)

    assert write_multipart("x", parts, "1") == write_multipart("x", parts, "1")
    assert write_multipart("x", parts, "1") != write_multipart("x", parts, "2")


def test_nobody_can_guess_the_boundary():
    guessed = read(write_multipart("x", (PLAIN,), "1")).get_boundary()
    trap = Part(PLAIN.fields, f"--{guessed}\r\n\r\nhaha\r\n--{guessed}--\r\n".encode())

    mail = read(write_multipart("x", (trap,), "1"))

    (part,) = mail.iter_parts()
    assert part.get_payload(decode=True) == trap.octets


def test_an_empty_part_is_a_part():
    mail = read(write_multipart("x", (PLAIN, Part(PLAIN.fields, b"")), "1"))

    assert [part.get_payload(decode=True) for part in mail.iter_parts()] == [PLAIN.octets, b""]
