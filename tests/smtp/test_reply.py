from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.errors import RemoteProtocolError
from engine.smtp.reply import MAX_LINE_OCTETS, MAX_REPLY_OCTETS, Reply, ReplyParser, conceal
from engine.smtp.status import EnhancedStatusCode

NEXT = b"354 go ahead\r\n"

CASES = {
    "one line": (b"250 ok\r\n", Reply(250, (b"ok",))),
    "bare code": (b"250\r\n", Reply(250, (b"",))),
    "code and space": (b"250 \r\n", Reply(250, (b"",))),
    "tab": (b"250\tok\r\n", Reply(250, (b"ok",))),
    "two spaces": (b"250  ok\r\n", Reply(250, (b" ok",))),
    "blanks at the end": (b"250 ok \t\r\n", Reply(250, (b"ok",))),
    "multi-line": (b"250-a\r\n250-b\r\n250 c\r\n", Reply(250, (b"a", b"b", b"c"))),
    "multi-line with bare code last": (b"250-a\r\n250\r\n", Reply(250, (b"a", b""))),
    "multi-line with empty lines": (b"250-\r\n250- \r\n250 \r\n", Reply(250, (b"", b"", b""))),
    "codes differ within a class": (b"450-a\r\n451-b\r\n452 c\r\n", Reply(452, (b"a", b"b", b"c"))),
    "lf only": (b"220 hi\n", Reply(220, (b"hi",))),
    "lf only, bare code": (b"220\n", Reply(220, (b"",))),
    "line ends mixed": (b"250-a\n250-b\r\n250 c\n", Reply(250, (b"a", b"b", b"c"))),
    "cr cr lf": (b"250 ok\r\r\n", Reply(250, (b"ok",))),
    "cr within": (b"250 o\rk\r\n", Reply(250, (b"o\rk",))),
    "nul": (b"250 o\0k\r\n", Reply(250, (b"o\0k",))),
    "utf-8": ("550 nö\r\n".encode(), Reply(550, ("nö".encode(),))),
    "latin-1": (b"550 n\xf6\r\n", Reply(550, (b"n\xf6",))),
    "unknown but legal code": (b"599 what\r\n", Reply(599, (b"what",))),
    "text that looks like a code": (b"250 250-a\r\n", Reply(250, (b"250-a",))),
}
each_case = pytest.mark.parametrize(("octets", "reply"), CASES.values(), ids=CASES)


def replies_of(*pieces):
    parser, replies = ReplyParser(), []
    for piece in pieces:
        parser.feed(piece)
        while (reply := parser.next_reply()) is not None:
            replies.append(reply)
    return replies, parser


@each_case
def test_a_reply_is_read_whole(octets, reply):
    replies, parser = replies_of(octets)
    assert replies == [reply]
    assert parser.unread == 0


@each_case
def test_a_reply_is_read_octet_by_octet(octets, reply):
    *pieces, last = (bytes([value]) for value in octets)
    replies, parser = replies_of(*pieces)
    assert replies == []
    assert parser.unread == len(pieces)
    parser.feed(last)
    assert parser.next_reply() == reply
    assert parser.unread == 0


@each_case
def test_a_reply_is_read_with_others_glued_on(octets, reply):
    go_ahead = Reply(354, (b"go ahead",))
    replies, parser = replies_of(NEXT + octets + octets + NEXT)
    assert replies == [go_ahead, reply, reply, go_ahead]
    assert parser.next_reply() is None


@each_case
def test_a_reply_cut_in_two_anywhere_keeps_its_place(octets, reply):
    for place in range(1, len(octets)):
        replies, _ = replies_of(NEXT + octets[:place], octets[place:] + NEXT)
        assert replies == [Reply(354, (b"go ahead",)), reply, Reply(354, (b"go ahead",))]


@pytest.mark.parametrize(
    "octets",
    [
        b"hello there\r\n",
        b"25\r\n",
        b"2\r\n",
        b"+250 ok\r\n",
        b" 250 ok\r\n",
        b"2 50 ok\r\n",
        b"2_5 ok\r\n",
        b"850 ok\r\n",
        b"150 ok\r\n",
        b"050 ok\r\n",
        b"600 ok\r\n",
        b"2500 ok\r\n",
        b"250ok\r\n",
        b"250=ok\r\n",
        b"250\0ok\r\n",
        "\uff12\uff15\uff10 ok\r\n".encode(),
        b"\r\n",
        b"\n",
        b"\0\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01\n",
        b"250-a\r\n550 b\r\n",
        b"250-a\r\n350 b\r\n",
        b"250-a\r\n\r\n",
        b"250-a\r\nb\r\n",
        b"250-a\r\n 250 b\r\n",
    ],
)
def test_what_is_no_reply_is_a_protocol_error_whole_and_in_pieces(octets):
    for pieces in ([octets], [bytes([value]) for value in octets], [NEXT + octets]):
        with pytest.raises(RemoteProtocolError) as caught:
            replies_of(*pieces)
        assert caught.value.octets in octets


def test_good_replies_before_a_malformed_one_are_still_given():
    parser = ReplyParser()
    parser.feed(b"250 a\r\n250-b\r\n250 c\r\nrubbish\r\n")
    assert parser.next_reply() == Reply(250, (b"a",))
    assert parser.next_reply() == Reply(250, (b"b", b"c"))
    with pytest.raises(RemoteProtocolError) as caught:
        parser.next_reply()
    assert caught.value.octets == b"rubbish"


def test_the_octets_of_a_malformed_reply_are_cut():
    with pytest.raises(RemoteProtocolError) as caught:
        replies_of(b"x" * 5000 + b"\r\n")
    assert caught.value.octets == b"x" * 200


def line_of(length, separator=b" "):
    return b"250" + separator + b"x" * (length - 6) + b"\r\n"


def halves(octets):
    return octets[: len(octets) // 2], octets[len(octets) // 2 :]


@pytest.mark.parametrize("cut", [lambda octets: (octets,), halves], ids=["whole", "halves"])
def test_a_line_may_have_8_kib_and_no_octet_more(cut):
    replies, _ = replies_of(*cut(line_of(MAX_LINE_OCTETS)))
    assert len(replies[0].lines[0]) == MAX_LINE_OCTETS - 6
    with pytest.raises(RemoteProtocolError, match="longer than any server needs"):
        replies_of(*cut(line_of(MAX_LINE_OCTETS + 1)))


def test_a_line_without_end_is_refused_once_it_is_too_long():
    parser = ReplyParser()
    parser.feed(b"250 " + b"x" * (MAX_LINE_OCTETS - 4))
    assert parser.next_reply() is None
    parser.feed(b"x")
    with pytest.raises(RemoteProtocolError, match="longer than any server needs"):
        parser.next_reply()


def test_a_reply_of_63_kib_is_fine():
    octets = line_of(1024, b"-") * 62 + line_of(1024)
    replies, parser = replies_of(*(octets[at : at + 1000] for at in range(0, len(octets), 1000)))
    assert [len(reply.lines) for reply in replies] == [63]
    assert parser.unread == 0


def test_a_reply_may_have_64_kib_and_no_octet_more():
    lines = line_of(1024, b"-") * 63
    replies, _ = replies_of(lines + line_of(1024))
    assert len(replies[0].encode()) == MAX_REPLY_OCTETS
    with pytest.raises(RemoteProtocolError, match="longer than any server needs"):
        replies_of(lines + line_of(1025))


def test_the_bound_is_for_one_reply_not_for_all():
    replies, _ = replies_of(*[line_of(1024, b"-") * 40 + line_of(1024)] * 3)
    assert len(replies) == 3


def test_more_different_replies_than_a_parser_remembers_are_all_read():
    octets = b"".join(b"250 queued as %d\r\n" % number for number in range(100))
    expected = [Reply(250, (b"queued as %d" % number,)) for number in range(100)]
    assert replies_of(octets, octets)[0] == expected * 2


def test_unread_counts_what_was_not_handed_out_yet():
    parser = ReplyParser()
    parser.feed(b"220 go\r\n250 injected\r\n250-more\r\n250 l")
    assert parser.next_reply() == Reply(220, (b"go",))
    assert parser.unread == len(b"250 injected\r\n250-more\r\n250 l")
    parser.next_reply()
    assert parser.next_reply() is None
    assert parser.unread == len(b"250-more\r\n250 l")


@pytest.mark.parametrize(
    ("reply", "severity", "is_positive"),
    [
        (Reply(200), 2, True),
        (Reply(299), 2, True),
        (Reply(354), 3, False),
        (Reply(421), 4, False),
        (Reply(550), 5, False),
    ],
)
def test_the_first_digit_decides(reply, severity, is_positive):
    assert (reply.severity, reply.is_positive) == (severity, is_positive)


def test_the_enhanced_status_code_leads_the_first_line():
    assert Reply(550, (b"5.1.1 no", b"5.1.2 x")).enhanced == EnhancedStatusCode(5, 1, 1)
    assert Reply(550, (b"no", b"5.1.1 x")).enhanced is None
    assert Reply(250).enhanced is None


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(250), "250"),
        (Reply(250, (b"ok",)), "250 ok"),
        (Reply(550, (b"a", b"b")), r"550 a\nb"),
        (Reply(550, ("nö".encode(),)), "550 nö"),
        (Reply(550, (b"n\xf6\0\x1b[2J\r",)), r"550 n\xf6\x00\x1b[2J\r"),
        (Reply(550, ("\u202ex\u2028".encode(),)), r"550 \u202ex\u2028"),
    ],
)
def test_the_text_of_a_reply_is_printable_and_on_one_line(reply, text):
    assert reply.text == text
    assert reply.text.isprintable()


# White space and CR at the end of a line are not text; LF cannot be in one.
LINES = st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r \t"))
REPLIES = st.builds(
    Reply, st.integers(200, 599), st.lists(LINES, min_size=1, max_size=4).map(tuple)
)
STREAM = st.lists(
    st.sampled_from([b"250", b"2", b"550", b" ", b"-", b"a", b"\r\n", b"\n", b"\r", b"\0\xff"])
).map(b"".join)


@given(st.lists(REPLIES))
def test_replies_read_back_as_they_were_encoded(replies):
    assert replies_of(b"".join(reply.encode() for reply in replies))[0] == replies


@given(REPLIES)
def test_any_reply_can_be_shown(reply):
    assert reply.text.isprintable()


def outcome_of(pieces):
    """Replies in order and whether an error came behind them."""
    parser, found = ReplyParser(), []
    for piece in pieces:
        parser.feed(piece)
        try:
            while (reply := parser.next_reply()) is not None:
                found.append(reply)
        except RemoteProtocolError:
            return found, "error"
    return found, parser.unread


@given(STREAM | st.binary(), st.integers(0, 30), st.integers(0, 30))
def test_any_octets_cut_anywhere_give_the_same_replies_or_the_same_error(octets, first, second):
    start, end = sorted((first, second))
    whole = outcome_of([octets])
    assert outcome_of([octets[:start], octets[start:end], octets[end:]]) == whole
    assert outcome_of([bytes([value]) for value in octets]) == whole


# ---- secrets -------------------------------------------------------------------------------------

SECRET = b"AG1lAHMzY3JldFcwcmQ="


@pytest.mark.parametrize(
    ("octets", "shown"),
    [
        (b"5.5.4 bad: AUTH PLAIN AG1lAHMzY3JldFcwcmQ=", b"5.5.4 bad: AUTH PLAIN ****"),
        (b"AG1lAHMzY3JldFcwcmQ=", b"****"),
        (b"<AG1lAHMzY3JldFcwcmQ=> AG1lAHMzY3JldFcwcmQ=!", b"<****> ****!"),
        (b"AG1lAHMzY3JldFcwcmQ=AG1lAHMz", b"********"),
        pytest.param(b"AUTH PLAIN AG1lAHMzY3J...", b"AUTH PLAIN ****...", id="cut short"),
        pytest.param(b"auth plain AG1LAHMZY3JLDFCWCMQ=", b"auth plain ****", id="other case"),
        pytest.param(b"AG1lAHM", b"AG1lAHM", id="too little of it"),
        pytest.param(b"2.7.0 welcome", b"2.7.0 welcome", id="nothing of it"),
        (b"", b""),
    ],
)
def test_a_secret_that_is_said_back_is_concealed(octets, shown):
    assert conceal(octets, SECRET) == shown
    assert Reply(535, (b"x", octets)).without([b"unheard", SECRET]) == Reply(535, (b"x", shown))


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=12), st.binary(max_size=40))
def test_a_secret_is_never_left_whole(before, secret, behind):
    shown = conceal(before + secret + behind, secret)
    assert secret not in shown.replace(b"****", b"\xff\xfe\xfd")


def test_without_secrets_a_reply_stays_itself():
    reply = Reply(250, (b"ok",))
    assert reply.without([SECRET]) is reply
    assert reply.without([]) is reply
    assert conceal(b"ok", b"") == b"ok"
