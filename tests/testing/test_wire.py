"""What a log says about SMTP: commands and replies with their times, and round trips."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.testing.impairments import Direction, Fate
from engine.testing.packet_log import Passage
from engine.testing.segment import Endpoint, Flags, Segment
from engine.testing.wire import (
    dialogue,
    encrypted_round_trips,
    messages_a_round_trip,
    round_trips,
    traces,
)
from tests.testing.packets import ACK, CLIENT, FIN, SERVER, SYN

OUT, BACK = Direction.OUT, Direction.BACK
ROUND_TRIP = 0.1
COOKIE = b"12345678"
CONTENT = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n"


class Tape:
    """Writes the log of one connection; both numbers wrap soon."""

    def __init__(self, client=CLIENT, out_seq=2**32 - 20, back_seq=2**32 - 10):
        self.log = []
        self._ends = {OUT: (client, SERVER), BACK: (SERVER, client)}
        self._next = {OUT: out_seq, BACK: back_seq}

    def send(self, direction, at, payload=b"", flags=ACK, fate=Fate.PASS, **more):
        """Send a segment in the next place; returns its passage, to be repeated."""
        source, destination = self._ends[direction]
        seq = self._next[direction]
        self._next[direction] = (seq + len(payload) + (SYN in flags)) % 2**32
        ack = self._next[BACK if direction is OUT else OUT] if ACK in flags else 0
        segment = Segment(source, destination, flags, seq, ack, payload, **more)
        left = None if fate is Fate.LOSE else at + ROUND_TRIP / 2
        passage = Passage(at, left, direction, fate, segment)
        self.log.append(passage)
        return passage

    def repeat(self, passage, at):
        again = replace(passage, entered=at, left=at + ROUND_TRIP / 2, fate=Fate.PASS)
        self.log.append(again)
        return again

    def open(self, at=0.0):
        self.send(OUT, at, flags=SYN)
        self.send(BACK, at + 0.05, flags=SYN | ACK)
        self.send(OUT, at + 0.1)
        return self


def only_trace(tape):
    (trace,) = traces(tape.log)
    return trace


def turns(tape):
    """The dialogue as rows that compare well: command, sent, code, heard; in milliseconds."""
    return [
        (turn.command, round(turn.sent_at * 1000), turn.reply.code, round(turn.heard_at * 1000))
        for turn in dialogue(only_trace(tape))
    ]


def with_data(tape=None, start=0.0):
    """A whole delivery with PIPELINING: five round trips."""
    tape = (tape or Tape()).open(start)
    tape.send(BACK, start + 0.15, b"220 mx\r\n")
    tape.send(OUT, start + 0.2, b"EHLO c\r\n")
    tape.send(BACK, start + 0.25, b"250-mx\r\n250 PIPELINING\r\n")
    tape.send(OUT, start + 0.3, b"MAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nDATA\r\n")
    tape.send(BACK, start + 0.35, b"250 ok\r\n250 ok\r\n354 go\r\n")
    tape.send(OUT, start + 0.4, CONTENT + b".\r\n")
    tape.send(OUT, start + 0.4, b"QUIT\r\n")
    tape.send(BACK, start + 0.45, b"250 queued\r\n")
    tape.send(BACK, start + 0.47, b"221 bye\r\n")
    tape.send(OUT, start + 0.55, flags=FIN | ACK)
    return tape


# ---- dialogues ----------------------------------------------------------------------------------


def test_commands_are_paired_with_replies():
    assert turns(with_data()) == [
        (b"", 0, 220, 200),
        (b"EHLO c", 200, 250, 300),
        (b"MAIL FROM:<>", 300, 250, 400),
        (b"RCPT TO:<a@b.c>", 300, 250, 400),
        (b"DATA", 300, 354, 400),
        (b".", 400, 250, 500),
        (b"QUIT", 400, 221, 520),
    ]


def test_the_reply_to_a_content_is_final():
    finals = [turn.is_final for turn in dialogue(only_trace(with_data()))]
    assert finals == [False] * 5 + [True, False]


def test_a_chunk_is_not_read_as_commands():
    tape = Tape().open()
    tape.send(BACK, 0.15, b"220 mx\r\n")
    chunk = b"QUIT\r\n.\r\nBDAT 5 LAST\r\n"
    tape.send(OUT, 0.2, b"BDAT %d\r\n" % len(chunk) + chunk)
    tape.send(OUT, 0.21, b"bdat 4 last\r\nQU")
    tape.send(OUT, 0.22, b"ITQUIT\r\n")
    tape.send(BACK, 0.3, b"250 a\r\n250 b\r\n221 c\r\n")
    assert turns(tape)[1:] == [
        (b"BDAT 22", 200, 250, 350),
        (b"bdat 4 last", 220, 250, 350),
        (b"QUIT", 220, 221, 350),
    ]
    assert [turn.is_final for turn in dialogue(only_trace(tape))] == [False, False, True, False]


@pytest.mark.parametrize("content", [b"", b"..\r\n", b".a\r\n", b"a\r\n..\r\n"])
def test_a_content_ends_at_its_lone_dot(content):
    tape = Tape().open()
    tape.send(BACK, 0.15, b"220 mx\r\n")
    tape.send(OUT, 0.2, b"DATA\r\n")
    tape.send(BACK, 0.25, b"354 go\r\n")
    tape.send(OUT, 0.3, content + b".\r\nQUIT\r\n")
    tape.send(BACK, 0.35, b"250 ok\r\n221 bye\r\n")
    assert [row[0] for row in turns(tape)] == [b"", b"DATA", b".", b"QUIT"]


def test_a_refused_data_has_no_content():
    tape = Tape().open()
    tape.send(OUT, 0.2, b"DATA\r\nQUIT\r\n")
    tape.send(BACK, 0.25, b"220 mx\r\n554 no\r\n221 bye\r\n")
    assert [row[:3:2] for row in turns(tape)] == [(b"", 220), (b"DATA", 554), (b"QUIT", 221)]


def test_a_reply_that_nobody_asked_for_has_no_command():
    tape = Tape().open()
    tape.send(BACK, 0.15, b"220 mx\r\n")
    tape.send(BACK, 0.2, b"421 tired\r\n")
    assert turns(tape) == [(b"", 0, 220, 200), (b"", 200, 421, 250)]


def test_what_follows_starttls_is_not_read():
    tape = Tape().open()
    tape.send(BACK, 0.15, b"220 mx\r\n")
    tape.send(OUT, 0.2, b"STARTTLS\r\n")
    tape.send(BACK, 0.25, b"220 go\r\n")
    tape.send(OUT, 0.3, b"\x16\x03\x01 hello")
    tape.send(BACK, 0.35, b"\x16\x03\x03 hello\r\n")
    assert [row[0] for row in turns(tape)] == [b"", b"STARTTLS"]


def test_tls_from_the_first_octet_is_not_read():
    tape = Tape().open()
    tape.send(OUT, 0.1, b"\x16\x03\x01 hello")
    tape.send(BACK, 0.15, b"\x16\x03\x03 hello\r\n")
    assert turns(tape) == []


# ---- the order of octets ------------------------------------------------------------------------


def test_commands_in_the_syn_left_with_it():
    tape = Tape()
    tape.send(OUT, 0.0, b"EHLO c\r\n", SYN, fast_open=COOKIE)
    tape.send(BACK, 0.05, flags=SYN | ACK)
    tape.send(BACK, 0.05, b"220 mx\r\n250 mx\r\n")
    trace = only_trace(tape)
    assert turns(tape) == [(b"", 0, 220, 100), (b"EHLO c", 0, 250, 100)]
    assert (trace.syn.segment.fast_open, trace.syn_octets) == (COOKIE, 8)


def test_a_syn_that_was_stripped_brought_nothing():
    tape = Tape()
    syn = tape.send(OUT, 0.0, b"EHLO c\r\n", SYN, Fate.STRIP, fast_open=COOKIE)
    answer = tape.send(BACK, 0.05, flags=SYN | ACK)
    tape.log[-1] = replace(answer, segment=replace(answer.segment, ack=syn.segment.seq + 1))
    again = replace(syn.segment, seq=syn.segment.seq + 1, flags=ACK, fast_open=None)
    tape.log.append(Passage(0.1, 0.15, OUT, Fate.PASS, again))
    tape.send(BACK, 0.15, b"220 mx\r\n250 mx\r\n")
    trace = only_trace(tape)
    assert trace.syn_octets == 0
    said = trace.read(OUT)
    assert (said.octets, said.departure(0), said.arrival(7)) == (b"EHLO c\r\n", 0.0, 0.15)


def test_a_lost_segment_holds_up_what_is_behind_it():
    tape = Tape().open()
    lost = tape.send(BACK, 0.15, b"220-a\r\n", fate=Fate.LOSE)
    tape.send(BACK, 0.16, b"220 b\r\n")
    tape.repeat(lost, 0.4)
    heard = only_trace(tape).read(BACK)
    assert heard.octets == b"220-a\r\n220 b\r\n"
    assert (heard.departure(0), heard.departure(13)) == (0.15, 0.16)
    assert (heard.arrival(0), heard.arrival(13)) == (0.45, 0.45)


def test_a_lost_syn_counts_from_when_it_was_sent():
    tape = Tape()
    lost = tape.send(OUT, 0.0, flags=SYN, fate=Fate.LOSE)
    tape.repeat(lost, 1.0)
    tape.send(BACK, 1.05, flags=SYN | ACK)
    trace = only_trace(tape)
    assert trace.opened_at == 0.0
    assert [each.entered for each in trace.passages] == [0.0, 1.0, 1.05]


@given(st.binary(min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_octets_come_out_as_they_went_in_whatever_happened(octets, rng):
    tape = Tape().open()
    at, pieces = 0, []
    while at < len(octets):
        size = rng.randint(1, 9)
        fate = rng.choice([Fate.PASS, Fate.LOSE])
        pieces.append(tape.send(OUT, 0.2 + at / 1000, octets[at : at + size], fate=fate))
        at += size
    sent = [*pieces, *rng.choices(pieces, k=3)]
    rng.shuffle(sent)
    for number, piece in enumerate(sent):
        tape.repeat(piece, 0.5 + number / 1000)
    said = only_trace(tape).read(OUT)
    assert said.octets == octets
    departures = [said.departure(index) for index in range(len(octets))]
    arrivals = [said.arrival(index) for index in range(len(octets))]
    assert departures == sorted(departures)
    assert arrivals == sorted(arrivals)
    assert departures[0] == 0.2
    assert all(left + 0.05 <= came for left, came in zip(departures, arrivals, strict=True))


def test_connections_are_told_apart_even_at_one_port():
    first, again = with_data(start=0.0), with_data(Tape(out_seq=77), start=2.0)
    other = with_data(Tape(Endpoint("198.18.0.1", 40001)), start=1.0)
    found = traces([*again.log, *other.log, *first.log])
    assert [trace.opened_at for trace in found] == [0.0, 1.0, 2.0]
    assert [trace.client.port for trace in found] == [40000, 40001, 40000]
    assert [len(dialogue(trace)) for trace in found] == [7, 7, 7]


def test_what_began_before_the_log_is_left_out():
    log = with_data().log
    assert traces(log[1:]) == []
    assert traces([]) == []


# ---- round trips --------------------------------------------------------------------------------


def test_round_trips_are_counted_to_the_final_reply():
    assert round_trips(only_trace(with_data()), ROUND_TRIP) == pytest.approx(5)


def test_without_a_final_reply_there_is_nothing_to_count():
    with pytest.raises(ValueError, match="no reply to a content came in clear"):
        round_trips(only_trace(Tape().open()), ROUND_TRIP)


def test_messages_are_counted_behind_the_first():
    tape = Tape().open()
    tape.send(BACK, 0.15, b"220 mx\r\n")
    for number in range(9):
        tape.send(OUT, 0.2 + number * 0.025, b"BDAT 1 LAST\r\nx")
        tape.send(BACK, 0.25 + number * 0.025, b"250 ok\r\n")
    trace = only_trace(tape)
    assert messages_a_round_trip(trace, ROUND_TRIP) == pytest.approx(4)
    with pytest.raises(ValueError, match="1 replies to contents came in clear"):
        messages_a_round_trip(only_trace(with_data()), ROUND_TRIP)


def encrypted(tape):
    """The same delivery over TLS, with all octets unreadable and the greeting in one flight."""
    tape.open()
    tape.send(OUT, 0.1, b"\x16" + bytes(300))
    tape.send(BACK, 0.15, bytes(1400))
    tape.send(BACK, 0.151, bytes(900))
    tape.send(OUT, 0.2, bytes(500))  # Finished, and the envelope
    tape.send(BACK, 0.25, bytes(200))
    tape.send(OUT, 0.3, bytes(1400))
    tape.send(OUT, 0.301, bytes(1400))
    tape.send(OUT, 0.302, bytes(200))
    tape.send(BACK, 0.305, bytes(30))  # what comes while the content is on its way
    tape.send(BACK, 0.353, bytes(60))
    tape.send(BACK, 0.355, bytes(60))
    tape.send(OUT, 0.41, bytes(30))  # QUIT
    tape.send(BACK, 0.46, bytes(40))
    return only_trace(tape)


def test_encrypted_round_trips_are_told_by_flights():
    trace = encrypted(Tape())
    assert encrypted_round_trips(trace, ROUND_TRIP, 3000) == pytest.approx(4.05)


def test_flights_tell_the_same_as_what_can_be_read():
    trace = only_trace(with_data())
    assert encrypted_round_trips(trace, ROUND_TRIP, len(CONTENT)) == pytest.approx(
        round_trips(trace, ROUND_TRIP) + 0.2  # the reply to QUIT is in the same flight
    )


def test_a_content_that_was_not_sent_or_not_answered_is_not_made_up():
    trace = encrypted(Tape())
    with pytest.raises(ValueError, match="no flight of the client has 4000 octets"):
        encrypted_round_trips(trace, ROUND_TRIP, 4000)
    early = replace(trace, passages=trace.passages[:12])
    with pytest.raises(ValueError, match="nothing came back after"):
        encrypted_round_trips(early, ROUND_TRIP, 3000)


def test_flags_of_a_segment_may_be_any():
    tape = Tape().open()
    tape.send(BACK, 0.15, b"220 mx\r\n", flags=ACK | Flags.PSH)
    assert turns(tape) == [(b"", 0, 220, 200)]
