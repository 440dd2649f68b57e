"""Transcripts: script notation, bounded, and each transaction with its session set-up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.report.transcript import Transcript
from engine.smtp.reply import Reply

OK = Reply(250, (b"ok",))


def test_dialogue_is_written_in_script_notation():
    transcript = Transcript()
    transcript.received(Reply(220, (b"mx.test ESMTP",)))
    transcript.sent("EHLO out.test")
    transcript.received(Reply(250, (b"mx.test", b"PIPELINING", b"SIZE 100")))
    transcript.sent("DATA")
    transcript.sent_content(18000, is_chunked=False, is_last=False)
    transcript.sent_content(342, is_chunked=False, is_last=True)
    transcript.sent("BDAT 5 LAST")
    transcript.sent_content(5, is_chunked=True, is_last=True)
    transcript.note("a remark")
    transcript.lost("close")

    assert transcript.since(0) == (
        "S: 220 mx.test ESMTP",
        "C: EHLO out.test",
        "S: 250-mx.test",
        "S: 250-PIPELINING",
        "S: 250 SIZE 100",
        "C: DATA",
        "# 18000 octets of content",
        "C= 342 octets",
        "C: BDAT 5 LAST",
        "C# 5",
        "# a remark",
        "! close",
    )


def test_reply_without_text_is_its_code_alone():
    transcript = Transcript()
    transcript.received(Reply(250))

    assert transcript.since(0) == ("S: 250",)


def test_each_transaction_has_the_set_up_and_its_own_lines():
    transcript = Transcript()
    transcript.received(Reply(220, (b"hi",)))
    first = transcript.mark()
    transcript.sent("MAIL FROM:<a@b.test>")
    transcript.received(OK)
    second = transcript.mark()
    transcript.sent("MAIL FROM:<c@d.test>")

    assert transcript.since(first) == (
        "S: 220 hi",
        "C: MAIL FROM:<a@b.test>",
        "S: 250 ok",
        "C: MAIL FROM:<c@d.test>",
    )
    assert transcript.since(second) == ("S: 220 hi", "C: MAIL FROM:<c@d.test>")


def test_mark_without_lines_behind_it_gives_the_set_up():
    transcript = Transcript()
    transcript.sent("EHLO out.test")

    assert transcript.since(transcript.mark()) == ("C: EHLO out.test",)


def test_lines_lost_to_the_limit_are_counted_in_their_place():
    transcript = Transcript(limit=3)
    transcript.received(Reply(220, (b"hi",)))
    mark = transcript.mark()
    for number in range(5):
        transcript.sent(f"RCPT TO:<{number}@b.test>")

    assert transcript.since(mark) == (
        "S: 220 hi",
        "# 2 lines missing",
        "C: RCPT TO:<2@b.test>",
        "C: RCPT TO:<3@b.test>",
        "C: RCPT TO:<4@b.test>",
    )


def test_lines_lost_before_the_mark_are_not_missed():
    transcript = Transcript(limit=2)
    transcript.mark()
    for number in range(5):
        transcript.sent(f"NOOP {number}")
    mark = transcript.mark()
    transcript.sent("QUIT")

    assert transcript.since(mark) == ("C: QUIT",)


def test_set_up_of_a_talkative_server_is_bounded_too():
    transcript = Transcript(limit=2)
    transcript.received(Reply(250, (b"a", b"b", b"c", b"d")))
    mark = transcript.mark()
    transcript.sent("NOOP")

    assert transcript.since(mark) == ("# 2 lines missing", "S: 250-c", "S: 250 d", "C: NOOP")


def test_set_up_outlives_any_number_of_transactions():
    transcript = Transcript(limit=2)
    transcript.received(Reply(220, (b"hi",)))
    for _ in range(100):
        mark = transcript.mark()
        transcript.sent("NOOP")
        transcript.received(OK)

    assert transcript.since(mark) == ("S: 220 hi", "C: NOOP", "S: 250 ok")


def test_long_line_is_cut_at_512_characters():
    transcript = Transcript()
    transcript.sent("X" * 509)
    transcript.sent("X" * 510)

    assert transcript.since(0) == ("C: " + "X" * 509, "C: " + "X" * 508 + "…")
    assert [len(line) for line in transcript.since(0)] == [512, 512]


def test_control_characters_show_as_escapes():
    transcript = Transcript()
    transcript.received(Reply(250, (b"ok\x1b[2J\x00",)))
    transcript.sent("NOOP\r\nQUIT")

    assert transcript.since(0) == (r"S: 250 ok\x1b[2J\x00", r"C: NOOP\r\nQUIT")


def test_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="limit 0: a transcript keeps at least 1 line"):
        Transcript(limit=0)


@given(
    st.lists(st.text() | st.binary() | st.none(), max_size=40),
    st.integers(min_value=1, max_value=8),
)
def test_whatever_is_said_the_transcript_is_bounded_and_printable(said, limit):
    transcript, mark = Transcript(limit), 0
    for each in said:
        if each is None:
            mark = transcript.mark()
        elif isinstance(each, str):
            transcript.sent(each)
        else:
            transcript.received(Reply(250, (each, each)))

    lines = transcript.since(mark)
    assert len(lines) <= 2 * (limit + 1)
    assert all(line.isprintable() and len(line) <= 512 for line in lines)
