"""TCP_INFO: octets taken apart, and what the kernel says of real sockets."""

from __future__ import annotations

import socket
import struct
import sys

import pytest

from engine.net.tcp_info import (
    SynFailure,
    TcpInfo,
    TcpState,
    parse_tcp_info,
    read_tcp_info,
)

#: 136 octets with a value of its own at each place that is read, and 0xFF elsewhere.
LAYOUT = struct.Struct("=B 4s B 1s B 16s I 40s I 28s I 24s Q")


def octets(*, state=1, options=0, bits=0, unacked=0, rtt=0, repeated=0, received=0) -> bytes:
    def gap(size):
        return b"\xff" * size

    return LAYOUT.pack(
        state, gap(4), options, gap(1), bits, gap(16), unacked, gap(40), rtt, gap(28), repeated,
        gap(24), received,
    )  # fmt: skip


def test_every_field_is_read_from_its_place():
    found = parse_tcp_info(
        octets(state=2, options=32, unacked=2, rtt=1_500_000, repeated=3, received=2**40)
    )
    assert found == TcpInfo(
        state=TcpState.SYN_SENT,
        is_syn_data_acked=True,
        syn_failure=SynFailure.UNKNOWN,
        unacked=2,
        rtt=1.5,
        repeated=3,
        received=2**40,
    )


@pytest.mark.parametrize(
    ("options", "is_acked"), [(0, False), (32, True), (7, False), (39, True), (255 - 32, False)]
)
def test_the_bit_for_syn_data_is_told_from_the_others(options, is_acked):
    assert parse_tcp_info(octets(options=options)).is_syn_data_acked is is_acked


@pytest.mark.parametrize("failure", list(SynFailure))
@pytest.mark.parametrize("others", [0x00, 0xFF])
def test_the_reason_for_failure_is_two_bits_among_others(failure, others):
    place = 1 if sys.byteorder == "little" else 5
    bits = others & ~(3 << place) | failure << place
    assert parse_tcp_info(octets(bits=bits)).syn_failure == failure


@pytest.mark.parametrize(
    ("state", "is_answered"),
    [
        (0, False),  # some sandboxes say this of everything
        (TcpState.ESTABLISHED, True),
        (TcpState.SYN_SENT, False),
        (TcpState.SYN_RECV, False),
        (4, True),
        (TcpState.CLOSE, False),
        (8, True),  # CLOSE_WAIT: the peer has ended its side already
    ],
)
def test_who_has_answered_shows_in_the_state(state, is_answered):
    assert parse_tcp_info(octets(state=state)).is_answered is is_answered


@pytest.mark.parametrize("size", [0, 1, 104, 135])
def test_less_than_the_whole_is_nothing(size):
    assert parse_tcp_info(octets()[:size]) is None


def test_what_a_later_kernel_adds_behind_does_not_matter():
    assert parse_tcp_info(octets(unacked=7) + bytes(100)).unacked == 7


def test_the_kernel_speaks_of_a_connection(listen):
    with socket.socket() as sock:
        assert read_tcp_info(sock).state == TcpState.CLOSE
        listener = listen()
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"220 mx.test\r\n")
            assert sock.recv(100) == b"220 mx.test\r\n"
            found = read_tcp_info(sock)
    assert found.is_answered
    assert found.received == len(b"220 mx.test\r\n")
    assert (found.unacked, found.repeated) == (0, 0)
    assert 0 < found.rtt < 1


def test_nothing_is_known_of_a_socket_that_is_no_tcp_or_is_closed():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert read_tcp_info(ours) is None
    assert read_tcp_info(ours) is None


def test_nothing_is_known_on_a_system_without_it(monkeypatch):
    monkeypatch.setattr("engine.net.tcp_info._TCP_INFO", None)
    with socket.socket() as sock:
        assert read_tcp_info(sock) is None
