from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.capabilities import NO_CAPABILITIES, Capabilities, Limits
from engine.smtp.reply import Reply


def caps(*lines, first=b"mx.example.net at your service"):
    return Capabilities.parse(Reply(250, (first, *lines)))


@pytest.mark.parametrize(
    ("keyword", "attribute"),
    [
        ("PIPELINING", "pipelining"),
        ("8BITMIME", "eight_bit_mime"),
        ("SMTPUTF8", "smtputf8"),
        ("DSN", "dsn"),
        ("ENHANCEDSTATUSCODES", "enhanced_status_codes"),
        ("CHUNKING", "chunking"),
        ("BINARYMIME", "binarymime"),
        ("STARTTLS", "starttls"),
        ("REQUIRETLS", "requiretls"),
        ("PRDR", "prdr"),
        ("IGNOREQUOTA", "ignorequota"),
        ("PIPECONNECT", "pipeconnect"),
        ("PIPE_CONNECT", "pipeconnect"),
        ("X_PIPE_CONNECT", "pipeconnect"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "{} ", "{}\t and more"])
def test_a_keyword_counts_in_any_case_before_white_space_or_the_end(keyword, attribute, form):
    for written in (keyword, keyword.lower(), keyword.title()):
        found = caps(form.format(written).encode())
        expected = replace(
            NO_CAPABILITIES,
            server_name="mx.example.net",
            keywords=found.keywords,
            **{attribute: True},
        )
        assert found == expected
        assert list(found.keywords) == [keyword]


@pytest.mark.parametrize(
    "line",
    [
        b"PIPELININGS",
        b"PIPELINING-",
        b"PIPELINING=yes",
        b"PIPELINING.",
        b"PIPELINING\0",
        b" PIPELINING",
        b"-PIPELINING",
        b"X PIPELINING",
        b"\xefPIPELINING",
    ],
)
def test_what_only_looks_like_a_keyword_does_not_count(line):
    assert not caps(line).pipelining


def test_the_first_line_is_never_a_keyword():
    found = caps(first=b"STARTTLS")
    assert (found.starttls, found.server_name, dict(found.keywords)) == (False, "STARTTLS", {})


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (b"mx.example.net", "mx.example.net"),
        (b"mx.example.net\tHello you", "mx.example.net"),
        (b"", ""),
        (b"  \t", ""),
        (b"  Hello", "Hello"),
        (b"m\xff\x1b[2J x", r"m\xff\x1b[2J"),
        ("mx.exämple".encode(), "mx.exämple"),
        (b"m" * 300, "m" * 255),
    ],
)
def test_the_server_name_is_the_first_word_shown_safely(first, name):
    assert caps(first=first).server_name == name


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        ((), None),
        ((b"SIZE",), 0),
        ((b"SIZE 0",), 0),
        ((b"size 52428800",), 52428800),
        ((b"SIZE\t10 20",), 10),
        ((b"SIZE 10", b"SIZE 20"), 10),
        ((b"SIZE 99999999999999999999",), 99999999999999999999),
        ((b"SIZE 999999999999999999999",), 0),
        ((b"SIZE -1",), 0),
        ((b"SIZE +5",), 0),
        ((b"SIZE 1_000",), 0),
        ((b"SIZE 10M",), 0),
        ((b"SIZE 10\t20",), 10),
        (("SIZE \u0661\u0662".encode(),), 0),
        ((b"SIZE=10",), None),
        ((b"RESIZE 10",), None),
    ],
)
def test_size_is_a_number_or_no_fixed_limit_or_not_offered(lines, size):
    assert caps(*lines).size == size


@pytest.mark.parametrize(
    ("lines", "auth"),
    [
        ((), ()),
        ((b"AUTH",), ()),
        ((b"AUTH plain LOGIN",), ("PLAIN", "LOGIN")),
        ((b"AUTH=LOGIN PLAIN",), ("LOGIN", "PLAIN")),
        ((b"auth=LOGIN",), ("LOGIN",)),
        ((b"AUTH PLAIN LOGIN", b"AUTH=LOGIN PLAIN CRAM-MD5"), ("PLAIN", "LOGIN", "CRAM-MD5")),
        ((b"AUTH SCRAM-SHA-256", b"AUTH PLAIN"), ("SCRAM-SHA-256", "PLAIN")),
        ((b"AUTHENTICATE PLAIN",), ()),
        ((b"AUTH\tPLAIN\tLOGIN",), ("PLAIN", "LOGIN")),
    ],
)
def test_auth_mechanisms_come_in_the_order_offered(lines, auth):
    assert caps(*lines).auth == auth


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        (b"LIMITS", Limits()),
        (b"LIMITS MAILMAX=5 RCPTMAX=100", Limits(5, 100)),
        (b"limits rcptdomainmax=1 mailMax=999999", Limits(999999, None, 1)),
        (b"LIMITS MAILMAX=0 RCPTMAX=1000000 RCPTDOMAINMAX=01", Limits()),
        (b"LIMITS MAILMAX=-1 RCPTMAX=5x RCPTDOMAINMAX=", Limits()),
        (b"LIMITS MAILMAX =5 NEWMAX=3 MAILMAX RCPTMAX=7", Limits(None, 7)),
        (b"LIMITS RCPTMAX=9 RCPTMAX=7 RCPTMAX=8", Limits(None, 7)),
        ("LIMITS MAILMAX=\u0663 RCPTMAX=2".encode(), Limits(None, 2)),
        (b"LIMITS \xff\0 RCPTMAX=2", Limits(None, 2)),
        (b"LIMITSX RCPTMAX=2", Limits()),
    ],
)
def test_limits_take_the_well_formed_items_and_ignore_the_rest(line, limits):
    assert caps(line).limits == limits


def test_unknown_keywords_are_kept_with_the_rest_of_their_line():
    found = caps(b"XFoo  bar\xff baz", b"ETRN", b"XFOO more")
    assert found.keywords == {"XFOO": r"bar\xff baz more", "ETRN": ""}


@pytest.mark.parametrize(
    "line",
    [
        *(b"8BITMIME", b"AUTH PLAIN LOGIN", b"BINARYMIME", b"CHUNKING", b"DSN"),
        *(b"ENHANCEDSTATUSCODES", b"IGNOREQUOTA", b"LIMITS MAILMAX=5", b"PIPELINING"),
        *(b"PIPECONNECT", b"PIPE_CONNECT", b"X_PIPE_CONNECT", b"PRDR", b"REQUIRETLS"),
        *(b"SIZE 1000", b"SMTPUTF8", b"STARTTLS"),
    ],
)
def test_a_keyword_means_the_same_behind_any_number_of_others(line):
    alone, behind = caps(line), caps(*(b"X%d" % number for number in range(150)), line)
    assert replace(behind, keywords={}) == replace(alone, keywords={})
    assert replace(alone, keywords={}) != replace(caps(), keywords={})


def test_at_most_a_hundred_keywords_are_kept_and_those_that_mean_something():
    lines = [b"X%d" % number for number in range(150)]
    found = caps(*lines, b"PIPELINING", b"X5 again")
    assert len(found.keywords) == 101
    assert found.pipelining
    assert found.keywords["X5"] == "again"


def test_keywords_cannot_be_changed():
    with pytest.raises(TypeError):
        caps(b"DSN").keywords["X"] = ""


def test_capabilities_are_values():
    assert caps(b"DSN", b"SIZE 5") == caps(b"DSN", b"SIZE 5")
    assert caps(b"DSN") != caps(b"DSN", b"X")
    assert len({caps(b"DSN"), caps(b"DSN")}) == 1
    assert hash(NO_CAPABILITIES) == hash(Capabilities())


def test_a_server_that_took_helo_offers_nothing():
    assert caps(first=b"") == NO_CAPABILITIES
    assert NO_CAPABILITIES.size is None


@given(
    st.lists(
        st.binary(max_size=30)
        | st.builds(
            bytes.__add__,
            st.sampled_from([b"SIZE ", b"AUTH ", b"AUTH=", b"LIMITS ", b"LIMITS MAILMAX="]),
            st.binary(max_size=12),
        ),
        min_size=1,
    )
)
def test_any_reply_gives_capabilities(lines):
    found = Capabilities.parse(Reply(250, tuple(lines)))
    assert found.size is None or found.size >= 0
    assert all(key == key.upper() and rest.isprintable() for key, rest in found.keywords.items())
    limits = (found.limits.mailmax, found.limits.rcptmax, found.limits.rcptdomainmax)
    assert all(value is None or 1 <= value <= 999_999 for value in limits)
