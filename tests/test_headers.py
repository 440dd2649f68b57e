from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import headers
from engine.headers import (
    completed,
    read_addresses,
    recipients_of,
    sender_of,
    take_apart,
    without_bcc,
)
from engine.smtp.errors import ContentError

NOW = datetime(2026, 8, 23, 10, 0, tzinfo=UTC)


def complete(octets, author=("", "me@x.test")):
    return completed(take_apart(octets), now=NOW, name="n1", host="x.test", author=author).octets


# ---- apart, and together ------------------------------------------------------------------------


def test_fields_keep_their_folding_and_the_body_its_octets():
    head = take_apart(b"Subject: a\n b\nTo : c@x.test\n\nbody: no field\n.\n")
    assert [(field.name, field.octets) for field in head.fields] == [
        ("subject", b"Subject: a\r\n b\r\n"),
        ("to", b"To : c@x.test\r\n"),
    ]
    assert head.fields[0].text == "a b"
    assert head.body == b"\r\nbody: no field\r\n.\r\n"
    assert head.octets == b"Subject: a\r\n b\r\nTo : c@x.test\r\n\r\nbody: no field\r\n.\r\n"


@pytest.mark.parametrize(
    ("octets", "names", "body"),
    [
        (b"", [], b""),
        (b"\nhello\n", [], b"\r\nhello\r\n"),
        (b"hello there\n", [], b"\r\nhello there\r\n"),
        (b"Subject: a\nno field\n", ["subject"], b"\r\nno field\r\n"),
        (b"Subject: a", ["subject"], b""),
        (b" leading space: x\n", [], b"\r\n leading space: x\r\n"),
        (b"From me@x.test Mon\nSubject: a\n\nb", ["subject"], b"\r\nb\r\n"),
        (b">From me@x.test Mon\r\nSubject: a\r\n", ["subject"], b""),
    ],
)
def test_what_cannot_be_a_field_begins_the_body(octets, names, body):
    head = take_apart(octets)
    assert ([field.name for field in head.fields], head.body) == (names, body)


@pytest.mark.parametrize("octets", [b"Subject: a\0b\n\n", b"Subject: a\rb\n\n"])
def test_octets_that_mail_cannot_have_are_refused(octets):
    with pytest.raises(ContentError):
        take_apart(octets)


def test_a_header_section_of_any_length_is_not_looked_into(monkeypatch):
    monkeypatch.setattr(headers, "MAX_HEADER_OCTETS", 100)
    with pytest.raises(ValueError, match="a header section of more than 100 octets"):
        take_apart(b"A: b\n" * 30 + b"\n")


@given(st.binary(max_size=200))
def test_any_octets_are_taken_apart_or_refused(octets):
    try:
        head = take_apart(octets)
    except ContentError:
        return
    again = take_apart(head.octets)
    assert again.fields == head.fields
    assert not head.body or head.body.startswith(b"\r\n")


# ---- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("", []),
        ("a@x.test", ["a@x.test"]),
        ("a@x.test,b@y.test ,\t c@z.test", ["a@x.test", "b@y.test", "c@z.test"]),
        ("Bob <bob@x.test>, <al@y.test>", ["bob@x.test", "al@y.test"]),
        ('"Doe, John" <j@x.test>, k@x.test', ["j@x.test", "k@x.test"]),
        ('"a > b, \\" c" <j@x.test>', ["j@x.test"]),
        ("a@x.test (Doe, (the) John), b@y.test", ["a@x.test", "b@y.test"]),
        ("friends: a@x.test, Bob <b@y.test>;, c@z.test", ["a@x.test", "b@y.test", "c@z.test"]),
        ("undisclosed-recipients:;", []),
        ("root", ["root"]),
        ('"a b"@x.test', ['"a b"@x.test']),
        ('<"a>b"@x.test>', ['"a>b"@x.test']),
        ("a@[192.0.2.1], b@[IPv6:2001:db8::1]", ["a@[192.0.2.1]", "b@[IPv6:2001:db8::1]"]),
        ("Bob <b@[IPv6:2001:db8::1]>", ["b@[IPv6:2001:db8::1]"]),
        ("Jörg <jörg@bücher.test>", ["jörg@bücher.test"]),
        ("=?utf-8?q?J=2C_K?= <j@x.test>", ["j@x.test"]),
        (",, a@x.test,,", ["a@x.test"]),
        ("a@x.test; b@y.test", ["a@x.test", "b@y.test"]),
        ("J. Doe <j@x.test>", ["j@x.test"]),
    ],
)
def test_lists_of_addresses_are_read(text, addresses):
    assert read_addresses(text) == (addresses, [])


@pytest.mark.parametrize(
    "text",
    [
        "a@x.test b@y.test",
        "Bob <bob@x.test",
        "bob@x.test>",
        "<>",
        "Bob <>",
        "a b c@x.test",
        "Bob <a@x.test> <b@x.test>",
        "Bob <a@x.test> junk",
        '"unfinished <a@x.test>',
        "(unfinished a@x.test",
        "a) b@x.test",
        "[192.0.2.1",
        "<a@x.test>: b",
    ],
)
def test_nobody_is_lost_in_a_list_that_cannot_be_read(text):
    addresses, problems = read_addresses(f"good@x.test, {text}")
    assert addresses == ["good@x.test"]
    (problem,) = problems
    assert problem.endswith("allowed are addresses with commas between")


@given(st.text(alphabet=st.sampled_from('a@.<>()",;:[]\\ \tü\n')))
def test_any_text_gives_addresses_or_problems(text):
    addresses, problems = read_addresses(text)
    if "@" in text and not (":" in text or "(" in text):
        assert addresses or problems
    assert all(address.strip() for address in addresses)


# ---- recipients ---------------------------------------------------------------------------------


def test_recipients_are_those_of_all_fields_each_once():
    head = take_apart(
        b"To: a@x.test, b@x.test\nCc: Bob <b@x.test>,\n c@x.test\nBCC: d@x.test\nTo: e@x.test\n"
        b"Reply-To: f@x.test\nFrom: g@x.test\n\nTo: h@x.test\n"
    )
    found = [f"{letter}@x.test" for letter in "abcde"]
    assert sorted(recipients_of(head)[0]) == found
    assert recipients_of(head)[1] == []


def test_problems_name_their_field():
    head = take_apart(b"To: a@x.test\nCc: b c\n\n")
    assert recipients_of(head) == (
        ["a@x.test"],
        ["Cc: found 'b c'; allowed are addresses with commas between"],
    )


def test_mail_that_was_resent_goes_to_those_of_the_last_resending():
    head = take_apart(
        b"Resent-To: a@x.test\nResent-Bcc: b@x.test\nReceived: x\nResent-From: c@x.test\n"
        b"Resent-To: old@x.test\nResent-Cc: older@x.test\nTo: first@x.test\n\n"
    )
    assert recipients_of(head) == (["a@x.test", "b@x.test"], [])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"From: a@x.test\n", ["a@x.test"]),
        (b"From: a@x.test\nSender: b@x.test\n", ["b@x.test"]),
        (b"From: a@x.test, b@x.test\n", ["a@x.test", "b@x.test"]),
        (b"To: a@x.test\n", []),
        (b"Sender: b@x.test\nResent-From: c@x.test\nFrom: a@x.test\n", ["c@x.test"]),
    ],
)
def test_who_sent_it_stands_in_sender_or_from(fields, expected):
    assert sender_of(take_apart(fields + b"\n")) == (expected, [])


def test_a_sender_that_cannot_be_read_is_a_problem_and_not_another():
    addresses, (problem,) = sender_of(take_apart(b"Sender: <\nFrom: a@x.test\n\n"))
    assert addresses == []
    assert problem.startswith("Sender: found")


def test_bcc_is_taken_out_and_all_else_stays_as_it_is():
    octets = (
        b"Bcc: a@x.test,\r\n b@x.test\r\nTo: c@x.test\r\nresent-bcc: d@x.test\r\n\r\nBcc: e\r\n"
    )
    assert without_bcc(take_apart(octets)).octets == b"To: c@x.test\r\n\r\nBcc: e\r\n"


# ---- what is added ------------------------------------------------------------------------------


def test_what_mail_must_have_is_added_in_front():
    assert complete(b"Subject: a\n\nb\n", ("Me Myself", "me@x.test")) == (
        b"From: Me Myself <me@x.test>\r\n"
        b"Date: Sun, 23 Aug 2026 10:00:00 +0000\r\n"
        b"Message-ID: <n1@x.test>\r\n"
        b"Subject: a\r\n\r\nb\r\n"
    )


def test_what_is_there_is_left_alone():
    octets = b"from: a@x.test\r\nDATE: today\r\nMessage-Id: <1@x>\r\n\r\nb\r\n"
    assert complete(octets) == octets


def test_mail_that_is_resent_gets_the_fields_of_a_resending():
    text = complete(b"Resent-To: a@x.test\nFrom: b@x.test\nDate: x\nMessage-ID: y\n\n").decode()
    assert text.startswith("Resent-From: me@x.test\r\nResent-Date: Sun, 23 Aug")
    assert "Resent-Message-ID: <n1@x.test>\r\n" in text
    assert text.count("\r\nFrom:") == text.count("\r\nMessage-ID:") == 1


@pytest.mark.parametrize("octets", [b"", b"hello\n", b"\nhello\n", b"Subject: x\n"])
def test_text_without_a_header_section_becomes_mail(octets):
    message = message_from_bytes(complete(octets), policy=policy.default)
    assert message["from"] == "me@x.test"
    assert message["message-id"] == "<n1@x.test>"
    assert message.defects == []
    assert message.get_content().strip() == ("hello" if b"hello" in octets else "")


@pytest.mark.parametrize("name", ["Jörg", 'a"b\\c', "a\r\nBcc: x@y.test", ""])
@pytest.mark.parametrize("address", ["me@x.test", "mé@x.test"])
def test_no_name_can_add_a_field(name, address):
    octets = complete(b"\nhello\n", (name, address))
    assert octets.count(b"\r\n\r\n") == 1
    assert len(octets.split(b"\r\n\r\n")[0].split(b"\r\n")) == 3
    message = message_from_bytes(octets, policy=policy.default)
    found = message["from"].addresses[0].addr_spec
    assert found.encode("utf-8", "surrogateescape") == address.encode()
