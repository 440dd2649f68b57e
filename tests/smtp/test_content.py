from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.smtp.content import (
    ContentFacts,
    DotStuffer,
    Normaliser,
    Scanner,
    normalise,
    prepare_binary,
    scan,
    stuff,
)
from engine.smtp.errors import ContentError

WILD = st.lists(st.sampled_from([b"a", b".", b"\r\n", b"\n", b"\r", b"\0", b"\xc3", b"bc"])).map(
    b"".join
)
CLEAN = st.lists(st.sampled_from([b"a", b".", b"..", b"\r\n", b"\n", b"\xc3", b"bcd"])).map(
    lambda parts: normalise(b"".join(parts))
)
CUTS = st.lists(st.integers(0, 40), max_size=12)


def cut(octets, cuts):
    """All pieces between the cuts; the same cut twice gives an empty piece."""
    places = [0, *sorted(min(place, len(octets)) for place in cuts), len(octets)]
    return [octets[a:b] for a, b in pairwise(places)]


# --- normalise


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", b""),
        (b"a", b"a\r\n"),
        (b"a\n", b"a\r\n"),
        (b"a\nb\r\nc", b"a\r\nb\r\nc\r\n"),
        (b"\n\n", b"\r\n\r\n"),
        (b"\r\n\n", b"\r\n\r\n"),
        (b"a\x01\xff\n", b"a\x01\xff\r\n"),
    ],
)
def test_line_ends_become_crlf_and_the_last_one_is_added(octets, expected):
    assert normalise(octets) == expected


def test_clean_content_comes_back_as_the_same_object():
    octets = b"a: b\r\n\r\nc\r\n"
    assert normalise(octets) is octets
    assert normalise(b"") == b""


BAD = [
    (b"a\rb", "bare CR in line 1: lines end with CRLF or LF"),
    (b"a\r\nb\nc\r", "bare CR in line 3"),
    (b"a\r\r\n", "bare CR in line 1"),
    (b"\r\r", "bare CR in line 1"),
    (b"a\n\0", "NUL in line 2: allowed are all octets but NUL"),
    (b"\0\r", "NUL in line 1"),
    (b"\n\r\0", "bare CR in line 2"),
]


@pytest.mark.parametrize(("octets", "problem"), BAD)
def test_nul_and_bare_cr_are_refused_with_their_line(octets, problem):
    with pytest.raises(ContentError, match=problem):
        normalise(octets)


@pytest.mark.parametrize(("octets", "problem"), BAD)
def test_nul_and_bare_cr_are_refused_octet_by_octet_too(octets, problem):
    normaliser = Normaliser()
    with pytest.raises(ContentError, match=problem):
        for value in octets:
            normaliser.feed(bytes([value]))
        normaliser.finish()


def outcome_of(call):
    try:
        return call()
    except ContentError as error:
        return str(error)


@given(WILD, CUTS)
@example(b"a\r\nb", [2])
@example(b"a\r", [1])
def test_normalising_in_pieces_equals_normalising_whole(octets, cuts):
    def in_pieces():
        normaliser = Normaliser()
        pieces = [normaliser.feed(piece) for piece in cut(octets, cuts)]
        return b"".join([*pieces, normaliser.finish()])

    assert outcome_of(in_pieces) == outcome_of(lambda: normalise(octets))


@given(WILD)
def test_normalised_content_has_no_line_end_but_crlf_and_stays_as_it_is(octets):
    try:
        clean = normalise(octets)
    except ContentError:
        assert re.search(rb"\0|\r(?!\n)", octets)
        return
    assert not re.search(rb"\0|\r(?!\n)|(?<!\r)\n", clean)
    assert clean.endswith(b"\r\n") or not clean
    assert normalise(clean) is clean
    assert clean.replace(b"\r\n", b"\n").removesuffix(b"\n") == octets.replace(
        b"\r\n", b"\n"
    ).removesuffix(b"\n")


# --- scan


@pytest.mark.parametrize(
    ("octets", "facts"),
    [
        (b"", ContentFacts(0, False, 0, False)),
        (b"\r\n", ContentFacts(2, False, 0, False)),
        (b"a: b\r\n\r\nlonger\r\n", ContentFacts(16, False, 6, False)),
        (b"a: \xc3\xa9\r\n\r\nb\r\n", ContentFacts(12, True, 5, True)),
        (b"a: b\r\n\r\n\xc3\xa9\r\n", ContentFacts(12, True, 4, False)),
        (b"\r\n\xc3\xa9\r\n", ContentFacts(6, True, 2, False)),
        (b"\xc3\xa9\r\n", ContentFacts(4, True, 2, True)),
        (b"a\r\nb\r\n\r\n\xff\r\n\r\nc\r\n", ContentFacts(16, True, 1, False)),
        (b"TLS-Required: No\r\n\r\n", ContentFacts(20, False, 16, False, True)),
        (b"a: \xff\r\ntls-required:\r\n no\r\n", ContentFacts(26, True, 13, True, True)),
        (b"\r\nTLS-Required: No\r\n", ContentFacts(20, False, 16, False)),
    ],
)
def test_facts_count_octets_lines_and_look_for_utf8_where_it_matters(octets, facts):
    assert scan(octets) == facts


@given(CLEAN, CUTS)
@example(b"a\r\n\r\n\xc3\r\n", [3, 4])
@example(b"\r\n\xc3\r\n", [1])
@example(b"a: b\r\nTLS-Required: No\r\n\r\nb\r\n", [9, 12, 26])
@example(b"a: b\r\n\r\nTLS-Required: No\r\n", [7])
def test_scanning_in_pieces_equals_scanning_whole(octets, cuts):
    scanner = Scanner()
    for piece in cut(octets, cuts):
        scanner.feed(piece)
    assert scanner.facts() == scan(octets)


@pytest.mark.parametrize("before", [100, 200_000])
def test_the_wish_to_do_without_tls_is_found_in_large_contents_too(before):
    field, body = b"TLS-Required: No\r\n", b"x" * 98 + b"\r\n"
    assert scan(field + b"\r\n" + body * before).is_tls_optional
    assert not scan(b"\r\n" + body * before + field).is_tls_optional


@given(CLEAN)
def test_the_scan_agrees_with_a_look_at_every_line(octets):
    lines = octets.split(b"\r\n")[:-1]
    header = lines[: lines.index(b"")] if b"" in lines else lines
    assert scan(octets) == ContentFacts(
        sum(len(line) + 2 for line in lines),
        any(value > 127 for value in octets),
        max(map(len, lines), default=0),
        any(value > 127 for line in header for value in line),
    )


def test_a_content_above_the_piece_size_is_scanned_alike():
    octets = b"a: b\r\n\r\n" + b"x" * 70_000 + b"\xff\r\n" + b"y\r\n" * 50_000
    assert scan(octets) == ContentFacts(len(octets), True, 70_001, False)


# --- stuff


def unstuff(stuffed):
    """What a server does (RFC 5321 §4.5.2), a line at a time; also proves where it ends."""
    content = b""
    lines = re.findall(rb".*?\r\n", stuffed, re.DOTALL)
    assert b"".join(lines) == stuffed
    for number, line in enumerate(lines, 1):
        if line == b".\r\n":
            assert number == len(lines), "the final line came early"
            return content
        content += line.removeprefix(b".")
    pytest.fail("no final line")


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", b".\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".a\r\n.\r\n..\r\nb.\r\n", b"..a\r\n..\r\n...\r\nb.\r\n.\r\n"),
        (b"\r\n.\r\n", b"\r\n..\r\n.\r\n"),
        (b"a\r", b"a\r\r\n.\r\n"),
    ],
)
def test_stuffing_doubles_leading_dots_and_ends_with_the_final_line(octets, expected):
    assert stuff(octets) == expected


@given(CLEAN)
def test_a_server_gets_back_what_was_stuffed(octets):
    assert unstuff(stuff(octets)) == octets


@given(WILD, CUTS)
@example(b"a\r\n.", [1, 2, 3])
@example(b"a\r\n.\r\n.", [2, 5])
def test_stuffing_in_pieces_equals_stuffing_whole(octets, cuts):
    stuffer = DotStuffer()
    pieces = [stuffer.feed(piece) for piece in cut(octets, cuts)]
    assert b"".join([*pieces, stuffer.finish()]) == stuff(octets)


@given(WILD)
def test_stuffing_octet_by_octet_equals_stuffing_whole(octets):
    stuffer = DotStuffer()
    pieces = [stuffer.feed(bytes([value])) for value in octets]
    assert b"".join([*pieces, stuffer.finish()]) == stuff(octets)


def test_a_piece_without_leading_dots_is_not_copied():
    chunk = b"a.b\r\nc\r\n"
    assert DotStuffer().feed(chunk) is chunk


# --- binary


@pytest.mark.parametrize(
    ("octets", "is_binary"),
    [
        (b"", False),
        (b"a: b\r\n\r\nc\r\n", False),
        (b"a: b\r\n\r\n\xc3\xa9\r\n", False),
        (b"a: b\r\n\r\nno end", True),
        (b"a: b\r\n\r\n\0\r\n", True),
        (b"a: b\r\n\r\nx\ry\r\n", True),
        (b"a: b\r\n\r\nx\ny\r\n", True),
    ],
)
def test_what_is_not_made_of_lines_is_binary_and_stays_as_it_is(octets, is_binary):
    prepared, facts = prepare_binary(octets)

    assert prepared is octets
    assert facts.is_binary is is_binary
    assert facts.is_8bit is (is_binary or not octets.isascii())
    assert facts.octets == len(octets)


@pytest.mark.parametrize(
    "header", [b"a: b\n\r\n\r\n", b"a: \0\r\n\r\n", b"a:\rb\r\n\r\n", b"a: b\n"]
)
def test_a_header_section_is_made_of_lines_whatever_follows(header):
    with pytest.raises(ContentError):
        prepare_binary(header + b"x")
