from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.address import Mailbox, parse_mailbox, parse_path, parse_reverse_path
from engine.smtp.errors import AddressSyntaxError

TROUBLE = st.text(st.sampled_from('aB9.@"\\ <>[]:-_%\r\n\0\x85éä例。\ud800\U0001f600'), max_size=30)
PLAUSIBLE = st.builds(
    "{}@{}".format,
    st.text(st.sampled_from("aB9.+é"), min_size=1, max_size=12)
    | st.text(st.sampled_from('a @"\\é'), max_size=12).map('"{}"'.format),
    st.sampled_from(["b.c", "EXAMPLE.com", "exämple.de", "[192.0.2.1]", "[IPv6:::1]", "x_y"])
    | st.text(st.sampled_from("ab-.ä9"), min_size=1, max_size=12),
)

# written, routing domain, literal, needs SMTPUTF8, ASCII form ("" where there is none)
LEGAL = [
    ("joe@example.com", "example.com", None, False, "joe@example.com"),
    ("Joe.B-l+tag@EXAMPLE.Com", "example.com", None, False, "Joe.B-l+tag@EXAMPLE.Com"),
    ("!#$%&'*+-/=?^_`{|}~@a.b", "a.b", None, False, "!#$%&'*+-/=?^_`{|}~@a.b"),
    ("postmaster@localhost", "localhost", None, False, "postmaster@localhost"),
    ("a@_mail.ex_ample.com", "_mail.ex_ample.com", None, False, "a@_mail.ex_ample.com"),
    ("a@1.2.3.example", "1.2.3.example", None, False, "a@1.2.3.example"),
    ("a@3com.com", "3com.com", None, False, "a@3com.com"),
    ('""@a.b', "a.b", None, False, '""@a.b'),
    ('"a b"@c.d', "c.d", None, False, '"a b"@c.d'),
    ('"a@b>c,<d"@c.d', "c.d", None, False, '"a@b>c,<d"@c.d'),
    (r'"a\"b\\c"@c.d', "c.d", None, False, r'"a\"b\\c"@c.d'),
    ("a@[192.0.2.1]", "[192.0.2.1]", "192.0.2.1", False, "a@[192.0.2.1]"),
    (
        "a@[ipV6:2001:DB8:0:0::1]",
        "[IPv6:2001:db8::1]",
        "2001:db8::1",
        False,
        "a@[ipV6:2001:DB8:0:0::1]",
    ),
    ("a@exämple.de", "xn--exmple-cua.de", None, True, "a@xn--exmple-cua.de"),
    ("a@BÜCHER.example", "xn--bcher-kva.example", None, True, "a@xn--bcher-kva.example"),
    ("a@例え。jp", "xn--r8jz45g.jp", None, True, "a@xn--r8jz45g.jp"),
    ("a@xn--exmple-cua.de", "xn--exmple-cua.de", None, False, "a@xn--exmple-cua.de"),
    ("jösé@example.com", "example.com", None, True, ""),
    ('"jö sé"@exämple.de', "xn--exmple-cua.de", None, True, ""),
]


@pytest.mark.parametrize(
    ("text", "routing", "literal", "utf8", "ascii_form"), LEGAL, ids=[row[0] for row in LEGAL]
)
def test_legal_mailboxes_keep_what_was_written_and_know_where_to_go(
    text, routing, literal, utf8, ascii_form
):
    mailbox = parse_mailbox(text)
    assert str(mailbox) == text
    assert mailbox.octets == text.encode()
    assert mailbox.routing_domain == routing
    assert mailbox.literal == literal
    assert mailbox.needs_smtputf8 is utf8
    assert (mailbox.ascii_octets() or b"") == ascii_form.encode()


def test_the_parts_of_a_mailbox_are_kept_as_written():
    mailbox = parse_mailbox('"A \\@ b"@EXAMPLE.com')
    assert (mailbox.local_part, mailbox.domain) == ('"A \\@ b"', "EXAMPLE.com")
    assert repr(mailbox) == """Mailbox(local_part='"A \\\\@ b"', domain='EXAMPLE.com')"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'no "@"'),
        ("joe", 'no "@"'),
        ("@example.com", 'nothing before the "@"'),
        ("joe@", 'nothing behind the "@"'),
        ("a b@c.d", "' ' at character 2 of the local part"),
        (".a@c.d", "'.' at character 1 of the local part"),
        ("a.@c.d", "'.' at character 2 of the local part"),
        ("a..b@c.d", "'.' at character 2 of the local part"),
        ("a@b@c.d", "'@' at character 2 of the local part"),
        ("(joe)@c.d", "'(' at character 1 of the local part"),
        ('a"b"@c.d', "'\"' at character 2 of the local part"),
        ("a\r\nRCPT@c.d", r"'\r' at character 2 of the local part"),
        ("a\0@c.d", r"'\x00' at character 2 of the local part"),
        ("a\x85@c.d", r"'\x85' at character 2 of the local part"),
        ("a\ud800@c.d", r"'\ud800' at character 2 of the local part"),
        ('"a@c.d', "quotes are not closed"),
        ('"@c.d', "quotes are not closed"),
        ('"a\\"@c.d', "quotes are not closed"),
        ('"a"b"@c.d', "'b' at character 4 of the local part"),
        ('"a\nb"@c.d', r"'\n' at character 3 of the local part"),
        ('"a\tb"@c.d', r"'\t' at character 3 of the local part"),
        ('"a\\\rb"@c.d', r"at character 3 of the local part"),
        ('"a\\é"@c.d', r"at character 3 of the local part"),
        ('"a\x7f"@c.d', r"'\x7f' at character 3 of the local part"),
        ("a" * 65 + "@c.d", "a local part of 65 octets; allowed are 64"),
        ("é" * 33 + "@c.d", "a local part of 66 octets; allowed are 64"),
        ("a@b..c", "an empty label"),
        ("a@.b", "an empty label"),
        ("a@b.c.", "an empty label"),
        ("a@b c", "' ' at character 2 of the domain"),
        ("a@b\r\n", r"'\r' at character 2 of the domain"),
        ("a@b,c", "',' at character 2 of the domain"),
        ("a@-b.c", "a hyphen at an end"),
        ("a@b-.c", "a hyphen at an end"),
        ("a@" + "b" * 64 + ".c", "a label of 64 octets"),
        ("a@" + ".".join(["b" * 50] * 6), "a domain of 305 octets; allowed are 255"),
        ("a@" + "é" * 200, "a domain of 400 octets; allowed are 255"),
        ("a@192.0.2.1", "write an address as [192.0.2.1]"),
        ("a@\uff11.2.3.4", "write an address as [1.2.3.4]"),
        ("a@12345", "a bare IP address or number"),
        ("a@b\u0085ä.c", r"'\x85' at character 2 of the domain"),
        ("a@ä\ud800", r"'\ud800' at character 2 of the domain"),
        ("a@ex_ä.de", "no domain name of RFC 5891"),
        ("a@☃.net", "no domain name of RFC 5891"),
        ("a@ä。", "an empty label"),
        ("a@" + "ä" * 60 + ".de", "no domain name of RFC 5891"),
        ("a@[192.0.2.1", "no address literal"),
        ("a@[192.0.2]", "no address literal"),
        ("a@[192.0.2.256]", "no address literal"),
        ("a@[192.0.2.01]", "no address literal"),
        ("a@[2001:db8::1]", "no address literal"),
        ("a@[IPv6:192.0.2.1]", "no address literal"),
        ("a@[IPv6:fe80::1%eth0]", "no address literal"),
        ("a@[IPv6:::1]\r\n", "no address literal"),
        ("a@[x400:foo]", "no address literal"),
        ("a@[]", "no address literal"),
    ],
)
def test_what_is_no_mailbox_is_refused_with_the_place(text, problem):
    with pytest.raises(AddressSyntaxError) as caught:
        parse_mailbox(text)
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()


@given(TROUBLE)
def test_the_text_of_a_refusal_is_printable(text):
    with pytest.raises(AddressSyntaxError) as caught:
        parse_mailbox(text + "\n")
    assert str(caught.value).isprintable()


def test_a_long_address_is_shown_cut():
    with pytest.raises(AddressSyntaxError) as caught:
        parse_mailbox("x" * 1_000_000 + "@c.d")
    assert len(str(caught.value)) < 300


def test_lengths_up_to_the_limits_pass():
    parse_mailbox("a" * 64 + "@" + "b" * 63 + ".c")
    longest = parse_mailbox("a" * 64 + "@" + ".".join(["b" * 47] * 3 + ["c" * 45]))
    assert len(longest.octets) + 2 == 256


def test_a_path_of_257_octets_is_refused():
    with pytest.raises(AddressSyntaxError, match="path with its brackets of 257 octets"):
        parse_mailbox("a" * 64 + "@" + ".".join(["b" * 47] * 3 + ["c" * 46]))


def test_there_is_no_ascii_form_that_would_be_too_long():
    # Each label grows by two octets with its conversion.
    mailbox = parse_mailbox("a" * 64 + "@" + ".".join(["ü" + "b" * 14] * 11))
    assert len(mailbox.octets) + 2 <= 256 < len(mailbox.routing_domain) + 64 + 3
    assert mailbox.ascii_octets() is None


@pytest.mark.parametrize("text", ["a@b.c", '"<>"@b.c', "ö@b.c"])
def test_a_path_may_have_angle_brackets(text):
    assert parse_path(text) == parse_path(f"<{text}>") == parse_mailbox(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<a@b.c", "around the whole address"),
        ("a@b.c>", "around the whole address"),
        ("<", "around the whole address"),
        (">", "around the whole address"),
        ("", 'no "@"'),
        ("<>", 'no "@"'),
        ("<@a,@b:c@d>", "source routes are not supported"),
        ("@a:c@d", "source routes are not supported"),
        ("<<a@b.c>>", "'<' at character 1"),
        ("Joe <a@b.c>", "around the whole address"),
        (" <a@b.c>", "around the whole address"),
        ("<a@b.c> SIZE=1", "around the whole address"),
    ],
)
def test_what_is_no_forward_path_is_refused(text, problem):
    with pytest.raises(AddressSyntaxError, match="address ") as caught:
        parse_path(text)
    assert problem in str(caught.value)


@pytest.mark.parametrize("text", ["", "<>"])
def test_the_null_path_is_a_reverse_path(text):
    assert parse_reverse_path(text) is None


def test_a_reverse_path_may_be_a_mailbox():
    assert parse_reverse_path("<a@b.c>") == Mailbox("a", "b.c")


def test_a_reverse_path_of_blanks_is_not_the_null_path():
    with pytest.raises(AddressSyntaxError):
        parse_reverse_path("< >")


def test_the_constructor_checks_like_the_parser():
    assert Mailbox("joe", "example.com") == parse_mailbox("joe@example.com")
    for local_part, domain in [("a\r\n", "b.c"), ("a", "b\n"), ("a@b", "c"), ("a", "b@c")]:
        with pytest.raises(AddressSyntaxError):
            Mailbox(local_part, domain)


def test_a_changed_mailbox_is_checked_again():
    assert replace(Mailbox("a", "b.c"), domain="d.e").routing_domain == "d.e"
    with pytest.raises(AddressSyntaxError):
        replace(Mailbox("a", "b.c"), domain="d\n")


def test_mailboxes_written_alike_are_equal_and_one_key():
    assert len({parse_mailbox("a@b.c"), parse_mailbox("a@b.c"), parse_mailbox("A@b.c")}) == 2


@given(st.text() | TROUBLE | PLAUSIBLE)
def test_any_text_is_a_mailbox_that_reads_back_or_refused(text):
    try:
        mailbox = parse_mailbox(text)
    except AddressSyntaxError:
        return
    assert parse_path(f"<{mailbox}>") == mailbox
    assert str(mailbox) == text
    for octets in (mailbox.octets, mailbox.ascii_octets() or b""):
        assert len(octets) <= 254
        assert not set(octets) & {*range(32), 127}
    assert mailbox.routing_domain.isascii()
    assert mailbox.routing_domain[-1] != "."
    assert mailbox.needs_smtputf8 is not mailbox.octets.isascii()
