from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.testing.script import Kind, ScriptMismatchError, Step, Verb, parse_script

DIALOGUE = """
    # a remark
    S: 220 mx.example.net ESMTP
    C: EHLO client.example.org

    S+ 250-mx.exam
    S:
    C~ MAIL FROM:<*@example.org> *
    C= DATA
    C# 42
    ! sleep 0.5
    ! close
"""


def the_only_step(text):
    ((step,),) = parse_script(text)
    return step


def test_each_line_becomes_a_step_with_its_number():
    (steps,) = parse_script(DIALOGUE)
    assert [(step.number, step.kind) for step in steps] == [
        (3, Kind.SEND_LINE),
        (4, Kind.EXPECT_LINE),
        (6, Kind.SEND_OCTETS),
        (7, Kind.SEND_LINE),
        (8, Kind.EXPECT_LIKE),
        (9, Kind.EXPECT_CONTENT),
        (10, Kind.EXPECT_OCTETS),
        (11, Kind.ACT),
        (12, Kind.ACT),
    ]
    assert steps[0].octets == b"220 mx.example.net ESMTP\r\n"
    assert steps[2].octets == b"250-mx.exam"
    assert steps[3].octets == b"\r\n"
    assert steps[6].amount == 42
    assert (steps[7].verb, steps[7].amount) == (Verb.SLEEP, 0.5)
    assert str(steps[8]) == "! close"


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        (r"a\r\nb", b"a\r\nb"),
        (r"\t\x00\xfF", b"\t\x00\xff"),
        (r"\\r", b"\\r"),
        (r"\x20", b" "),
        ("é", "é".encode()),
    ],
)
def test_octets_to_send_understand_escapes(text, octets):
    assert the_only_step(f"S+ {text}").octets == octets


def test_a_line_to_send_takes_backslashes_as_they_are():
    assert the_only_step(r"S: 250 \r").octets == b"250 \\r\r\n"


def test_a_line_separator_that_is_none_in_smtp_splits_no_line():
    assert the_only_step("S: 250 a\u2028b").octets == "250 a\u2028b\r\n".encode()


def test_windows_line_ends_are_no_part_of_a_step():
    assert the_only_step("C: QUIT\r\n").octets == b"QUIT"


def test_a_script_without_steps_has_no_connections():
    assert parse_script("# nothing\n\n") == ()


def test_connections_are_told_apart():
    first, second, third = parse_script("S: 1\n! connection\nS: 2\n! connection\n")
    assert (first[0].text, second[0].text, third) == ("1", "2", ())
    assert parse_script("! connection\nS: 1") == ((Step(2, Kind.SEND_LINE, "1", b"1\r\n"),),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("S: 220\nX: what", "line 2: unknown step 'X: what'; a step is one of S: S[+] C: C~"),
        ("S:220", "line 1: unknown step"),
        ("!", "line 1: unknown verb ''; it is one of close, reset"),
        ("! jump", "line 1: unknown verb 'jump'"),
        ("! sleep", "line 1: ! sleep takes one number"),
        ("! sleep long", "line 1: ! sleep takes one number"),
        ("! sleep 1 2", "line 1: ! sleep takes one number"),
        ("! sleep -1", "line 1: ! sleep takes one number"),
        ("! sleep inf", "line 1: ! sleep takes one number"),
        ("! sleep nan", "line 1: ! sleep takes one number"),
        ("! close now", "line 1: ! close takes nothing"),
        ("C# many", "line 1: 'C# many': C# takes a number"),
        ("C# -1", "line 1: 'C# -1': C# takes a number"),
        (r"S+ \q", "line 1: unknown escape"),
        (r"S+ \x2", "line 1: unknown escape"),
        ("S+ \\", "line 1: unknown escape"),
        ("! close\nS: 250", "line 2: nothing but ! connection follows ! close"),
        ("! stall\n! close", "line 2: nothing but ! connection follows ! stall"),
    ],
)
def test_a_bad_line_is_named_with_what_is_allowed(text, problem):
    with pytest.raises(ValueError, match=f"script {problem}"):
        parse_script(text)


@given(st.binary(max_size=60))
def test_any_octets_can_be_written_with_escapes(octets):
    written = "".join(f"\\x{octet:02x}" for octet in octets)
    assert the_only_step(f"S+ {written}").octets == octets


@given(st.text(max_size=80))
def test_any_text_is_a_script_or_refused_with_its_line(text):
    problem = "script line "
    try:
        parse_script(text)
    except ValueError as error:
        problem = str(error)
    assert problem.startswith("script line ")


def test_a_mismatch_names_line_expectation_and_what_came():
    error = ScriptMismatchError(7, "'C: DATA'", "the client said b'RSET'")
    assert str(error) == "script line 7: expected 'C: DATA', but the client said b'RSET'"
    assert (error.number, error.expected, error.got) == (
        7,
        "'C: DATA'",
        "the client said b'RSET'",
    )
    assert str(ScriptMismatchError(0, "a", "b")).startswith("script over: ")
